"""Where a secret is on a server elsewhere: its address, and the path of a tenant's secret. Pure."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

__all__ = ["path_of", "wrong_address", "wrong_path"]


def wrong_address(text: str) -> str | None:
    """What is wrong with a server's address; None when nothing is."""
    if not text:
        return None
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "should be like https://vault.example.com:8200"
    if parts.scheme not in ("https", "http") or not host:
        return "should be like https://vault.example.com:8200"
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        return "should be scheme, host and port only, like https://vault.example.com:8200"
    if parts.scheme == "http" and not _is_here(host):
        return "should begin with https: secrets would cross the network in clear"
    return None


def wrong_path(text: str) -> str | None:
    """What is wrong with a template of paths."""
    rest = text.replace("{tenant}", "t", 1).replace("{name}", "n", 1)
    if "{" in rest or "}" in rest or len(text) - len(rest) != len("{tenant}{name}") - 2:
        return "should have {tenant} and {name}, each once"
    if any(part in ("", ".", "..") for part in rest.split("/")):
        return "should be names between single slashes"
    return None


def path_of(template: str, tenant: str, name: str) -> str | None:
    """None for a tenant that would lead out of its place."""
    path = template.replace("{name}", name).replace("{tenant}", tenant)
    if not tenant.isprintable() or any(part in ("", ".", "..") for part in tenant.split("/")):
        return None
    return path


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
