"""Podman, behind `flowmonkeyd.containers`: nobody else imports from here."""
