"""What this host has for containers: programs, control groups, a system call filter to start from.

Everything that can be known without starting one. What is missing is a `ContainerError` that names
the layer, the reason and what to do.
"""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from flowmonkeyd.confinement import cgroup_version
from flowmonkeyd.containermodel import ContainerError
from flowmonkeyd.podman.creation import seccomp_profile
from flowmonkeyd.podman.libpod import PATH, RUN_LENGTH_MAX, Places

__all__ = ["Host", "installation", "run_folder"]

_SECCOMP = ("/usr/share/containers/seccomp.json", "/etc/containers/seccomp.json")
# crun starts a container in half the time of runc and knows the newer interfaces.
_RUNTIMES = ("crun", "runc")


@dataclass(frozen=True, slots=True)
class Host:
    """What was found; `look` finds it."""

    program: str
    runtimes: tuple[str, ...]
    seccomp: str
    version: int  # of control groups
    rootless: bool
    manager: str
    parent: str  # the control group above the containers'; "": systemd's choice

    @classmethod
    def look(cls, program: str, runtime: str, places: Places, install: str) -> Host:
        """Raises ContainerError (SANDBOX_UNAVAILABLE)."""
        found = shutil.which(program or "podman", path=PATH)
        if found is None:
            why = f"{program} is not there" if program else "it is not installed"
            raise _missing("podman", why, "install Podman 4.3 or later (Debian: podman)")
        version, rootless = cgroup_version(), os.geteuid() != 0
        if rootless and version == 1:
            raise _missing(
                "memory, cpu, pids",
                "on control groups of version 1 Podman drops every limit unless it runs as root",
                "run the daemon as root, or boot with version 2 (systemd.unified_cgroup_hierarchy)",
            )
        asked = _RUNTIMES if runtime == "auto" else (runtime,)
        runtimes = tuple(one for one in asked if shutil.which(one, path=PATH))
        if not runtimes:
            raise _missing("runtime", f"{' and '.join(asked)} not installed", "install one")
        if shutil.which("conmon", path=PATH) is None and not _has_conmon():
            raise _missing("podman", "conmon is not installed", "install it (Debian: conmon)")
        if len(os.fsencode(places.run)) > RUN_LENGTH_MAX:
            raise _missing(
                "sockets",
                f"{places.run} is longer than {RUN_LENGTH_MAX} bytes",
                "set containers.runDir to a shorter folder",
            )
        manager, parent = _cgroups(rootless, install)
        return cls(found, runtimes, _seccomp(), version, rootless, manager, parent)


def installation(root: Path) -> str:
    """The name of this installation, 8 hexadecimal digits, made and kept in `root` at first."""
    file = root / "installation"
    if not file.exists():
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(secrets.token_hex(4))
        part.rename(file)
    return file.read_text()


def run_folder(chosen: str, install: str) -> Path:
    """Where to keep what does not survive a boot, if the operator has not chosen: a short path,
    as sockets are made below it."""
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0:
        top = "/run"
    else:
        # The second: systemd.exec(5), RuntimeDirectory= of a unit with User=. Never /tmp, where
        # anybody could have made the folder before.
        given = (os.environ.get(name) for name in ("XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY"))
        top = next((one for one in given if one), f"/run/user/{os.getuid()}")
    return Path(top) / f"flowmonkey-{install}"


def _cgroups(rootless: bool, install: str) -> tuple[str, str]:
    """(who makes the groups, the one above them)."""
    if not rootless:
        return "cgroupfs", f"/flowmonkey-{install}"
    # The user's own systemd: groups below a service's would keep that from starting again.
    top = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.environ.get("DBUS_SESSION_BUS_ADDRESS") and not Path(top, "bus").exists():
        raise _missing(
            "memory, cpu, pids",
            "there is no systemd of this user to make control groups "
            f"({'no bus in ' + top if top else 'XDG_RUNTIME_DIR is not set'})",
            f"loginctl enable-linger, and XDG_RUNTIME_DIR=/run/user/{os.getuid()} for the daemon",
        )
    return "systemd", ""


def _seccomp() -> str:
    for name in _SECCOMP:
        try:
            return seccomp_profile(Path(name).read_text())
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError) as exc:
            raise _missing("seccomp", f"{name}: {exc}", "install Podman's own profile") from exc
    raise _missing(
        "seccomp",
        f"there is no {' or '.join(_SECCOMP)}",
        "install it (Debian: golang-github-containers-common)",
    )


def _has_conmon() -> bool:
    folders = ("/usr/libexec/podman", "/usr/lib/podman", "/usr/local/libexec/podman")
    return any(os.access(f"{folder}/conmon", os.X_OK) for folder in folders)


def _missing(layer: str, why: str, remedy: str) -> ContainerError:
    return ContainerError("SANDBOX_UNAVAILABLE", f"{layer}: {why}; {remedy}")
