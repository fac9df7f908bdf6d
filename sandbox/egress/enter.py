"""The program that opens the gateway's network in the network namespace of a running container.

Run by the daemon as `… CONTROL PIDFD PORTS` (`container`), because entering a user namespace takes
a process with one thread. It enters the namespaces of the process that PIDFD means, never of
another one that has its number by now, makes the network there as a fork server does
(`namespace.prepare`), sends the sockets over CONTROL and ends.

It refuses a network that is not the container's alone: the daemon's own, or one with an interface
besides loopback, over which strangers would reach the gateway. Nothing was changed in it then.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import struct
import sys
from typing import NoReturn

from sandbox import linux
from sandbox.egress import namespace

__all__ = ["REFUSED", "main"]

REFUSED = b"!"  # before the reason; the sockets come with another byte

_SIOCGIFFLAGS, _IFREQ_BYTES = 0x8913, 40  # netdevice(7)
_FLAGS = struct.Struct("=16xH")
_IFF_UP, _IFF_LOOPBACK = 1, 8


def main() -> NoReturn:
    """See above. Never returns."""
    control = _socket.socket(fileno=int(sys.argv[1]))
    try:
        _enter(int(sys.argv[2]))
        fds = namespace.prepare([int(port) for port in sys.argv[3].split(",")])
    except OSError as exc:
        control.send(REFUSED + f"cannot {exc.strerror}".encode())
    else:
        packed = struct.pack(f"{len(fds)}i", *fds)
        control.sendmsg([b"."], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)])
    os._exit(0)


def _enter(pidfd: int) -> None:
    """setns(2) with a pidfd: Linux 5.8."""
    before = _network()
    try:
        try:
            linux.setns(pidfd, linux.CLONE_NEWNET)
        except PermissionError:
            # Not root: privilege over the container's network is its user namespace's to give.
            linux.setns(pidfd, linux.CLONE_NEWUSER | linux.CLONE_NEWNET)
    except OSError as exc:
        reason = os.strerror(exc.errno or 0)
        raise OSError(exc.errno, f"enter the container's network: {reason}") from exc
    if _network() == before:
        raise PermissionError(1, "open a gateway in the daemon's own network")
    one = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    for _index, name in _socket.if_nameindex():
        asked = name.encode().ljust(_IFREQ_BYTES, b"\0")
        (flags,) = _FLAGS.unpack_from(fcntl.ioctl(one.fileno(), _SIOCGIFFLAGS, asked))
        # An interface that is down, such as the kernel's own of tunnels, stays down.
        if flags & _IFF_UP and not flags & _IFF_LOOPBACK:
            raise PermissionError(1, f"open a gateway beside the interface {name}")


def _network() -> tuple[int, int]:
    found = os.stat("/proc/self/ns/net")
    return found.st_dev, found.st_ino
