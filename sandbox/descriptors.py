"""Descriptors that come over a Unix socket (SCM_RIGHTS of unix(7)), closed by every exec.

What `socket.recv_fds` is for; in Python 3.11 that one takes flags and leaves them out.
"""

from __future__ import annotations

import array
import socket

__all__ = ["receive"]


def receive(one: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Data, and at most so many descriptors that came with it; what is more the kernel closes."""
    fds = array.array("i")
    space = socket.CMSG_LEN(most * fds.itemsize)
    data, ancillary, _flags, _address = one.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)
