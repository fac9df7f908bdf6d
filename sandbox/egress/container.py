"""The gateway of a container: the same as a slot's, opened from outside.

A container is started with no network but loopback, and `open_gateway` gives it one: until then
nothing inside can reach anything, and if it fails that stays so. The gateway holds no thread, no
process and no buffer until something is connected to, so that an idle container costs its
descriptors only. Its sockets keep the container's network namespace alive until it is closed.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sandbox.confine import LayerFailed
from sandbox.descriptors import receive
from sandbox.egress import dns
from sandbox.egress.enter import REFUSED
from sandbox.egress.gateway import Gateway
from sandbox.forkserver import PYTHON_DEFAULT

__all__ = ["open_gateway"]

# It takes 20 ms; on a machine this far behind nothing else works either.
_PATIENCE_S = 10.0
_MESSAGE_MAX_BYTES, _FDS_MAX = 4096, 128
_BOOT = "import sys; sys.path.append(sys.argv.pop()); from sandbox.egress.enter import main; main()"


async def open_gateway(
    pidfd: int, ports: Sequence[int], resolver: dns.Resolver | None = None
) -> Gateway:
    """Give the network namespace of the process that `pidfd` means a gateway for these ports.

    Again after a restart of the daemon, for a container that has gone on: what the handler was
    connected to is gone, new connections work. Raises LayerFailed, of the layer "network".
    """
    if not ports:
        raise LayerFailed("network", "no port is served")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.setblocking(False)
        with theirs:
            process = _start(theirs.fileno(), pidfd, ports)
        try:
            said, fds = await _receive(ours)
        finally:
            process.kill()  # it has ended, or is to
            process.wait()
    if not fds:
        reason = said.removeprefix(REFUSED).decode(errors="replace")
        raise LayerFailed("network", reason or "the program that opens it has died")
    try:
        return Gateway(fds, ports, resolver)
    except ValueError as exc:
        raise LayerFailed("network", str(exc)) from exc


def _start(control: int, pidfd: int, ports: Sequence[int]) -> subprocess.Popen[bytes]:
    served, folder = ",".join(map(str, ports)), str(Path(__file__).resolve().parents[2])
    command = [PYTHON_DEFAULT, "-I", "-S", "-B", "-c", _BOOT]
    try:
        return subprocess.Popen(
            [*command, str(control), str(pidfd), served, folder],
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[control, pidfd],
            cwd="/",
        )
    except OSError as exc:
        raise LayerFailed("network", f"cannot start {PYTHON_DEFAULT}: {exc.strerror}") from exc


async def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """What the program says, and the sockets that come with it; nothing if it died."""
    loop = asyncio.get_running_loop()
    spoken = asyncio.Event()
    loop.add_reader(control.fileno(), spoken.set)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await spoken.wait()
    except TimeoutError:
        raise LayerFailed("network", f"not open within {_PATIENCE_S:g} s") from None
    finally:
        loop.remove_reader(control.fileno())
    try:
        return receive(control, _MESSAGE_MAX_BYTES, _FDS_MAX)
    except ConnectionError:
        return b"", []
