"""systemd's side of the house: sd_notify, the watchdog's pace, sockets handed over at start.

The protocols are a datagram and three variables, so no library is needed (sd_notify(3),
sd_watchdog_enabled(3), sd_listen_fds(3)). Without systemd every function here does nothing and says
so. Never raises: a service manager that does not listen must not stop the daemon.
"""

from __future__ import annotations

import os
import socket
import time

__all__ = [
    "listen_fds",
    "notify",
    "ready",
    "reloading",
    "status",
    "stopping",
    "watchdog",
    "watchdog_interval_s",
]

_LISTEN_FDS_START = 3  # SD_LISTEN_FDS_START of sd-daemon.h


def ready(text: str = "") -> bool:
    """The daemon serves, for the first time or again after `reloading`."""
    return notify(READY=1, **_status(text))


def status(text: str) -> bool:
    """One line for `systemctl status`."""
    return notify(**_status(text))


def watchdog() -> bool:
    """Still alive; due at least every `watchdog_interval_s`."""
    return notify(WATCHDOG=1)


def stopping(text: str = "") -> bool:
    """The daemon drains and will end."""
    return notify(STOPPING=1, **_status(text))


def reloading() -> bool:
    """The configuration is being read again; `ready` ends it (Type=notify-reload)."""
    # systemd compares the time with its own, so the clock must be CLOCK_MONOTONIC.
    return notify(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)


def notify(**fields: str | int) -> bool:
    """Send the fields in one datagram to NOTIFY_SOCKET; False when nobody got it.

    A newline in a value becomes a space: each line is a field, and a value must not forge one.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    # A leading @ stands for the NUL byte of Linux' abstract namespace (unix(7)).
    address = "\0" + path[1:] if path.startswith("@") else path
    lines = [f"{name}={' '.join(str(value).splitlines())}" for name, value in fields.items()]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            # A full queue must not stop the event loop; the next word will do as well.
            sock.setblocking(False)
            sock.connect(address)
            sock.sendall("\n".join(lines).encode())
    except OSError:
        return False
    return True


def watchdog_interval_s() -> float | None:
    """Seconds between two `watchdog` calls, half of what systemd allows; None when it asks none."""
    micros = _number("WATCHDOG_USEC")
    pid = os.environ.get("WATCHDOG_PID")
    if not micros or (pid is not None and pid != str(os.getpid())):
        return None
    return micros / 2_000_000


def listen_fds() -> list[int]:
    """The listening sockets systemd handed over, often none; each is ours to close.

    The variables are taken away and the descriptors closed on exec: no child inherits them.
    """
    count = _number("LISTEN_FDS") or 0
    is_ours = os.environ.get("LISTEN_PID") == str(os.getpid())
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if not is_ours:
        return []
    fds = []
    for fd in range(_LISTEN_FDS_START, _LISTEN_FDS_START + count):
        try:
            os.set_inheritable(fd, False)
        except OSError:
            break  # fewer than promised; what is there is served
        fds.append(fd)
    return fds


def _status(text: str) -> dict[str, str | int]:
    return {"STATUS": text} if text else {}


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None
