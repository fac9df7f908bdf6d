"""The child's side of counting refused system calls: a filter that asks, and whom it asks.

`install` puts the filter in place with every refusal turned into a question to a descriptor
(seccomp_unotify(2)), which goes to the pool; what answers there is `refused.Watch`. Where the
kernel has no such thing the filter is installed as it is. It allows nothing that the filter
refuses: a question that nobody answers is a call that never returns.

Theory of operation. The descriptor exists only once the filter holds, and then the child may not
send it any more. So a process that was forked before, with the child's own table of descriptors,
sends it and ends; by then nothing of a handler has run.
"""

from __future__ import annotations

import _socket
import functools
import json
import os
import struct

from sandbox import linux, wire

__all__ = ["ALLOW", "ASK", "install", "prepared", "reporting"]

ALLOW, ASK = 0x7FFF0000, 0x7FC00000  # SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF (linux/seccomp.h)
_INSTRUCTION = struct.Struct("=HBBI")
_RETURN = 0x06  # linux/bpf_common.h: BPF_RET | BPF_K
_NUMBER = struct.Struct("=i")
_NONE = -1
_FLAGS = (  # the second for Linux before 5.19, where a signal may interrupt who waits
    linux.SECCOMP_FILTER_FLAG_NEW_LISTENER | linux.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    linux.SECCOMP_FILTER_FLAG_NEW_LISTENER,
)


def reporting(program: bytes) -> bytes:
    """The same filter, asking where it would refuse; what it allows stays allowed, unasked."""
    changed = bytearray(program)
    for at in range(0, len(program), _INSTRUCTION.size):
        code, jump_true, jump_false, value = _INSTRUCTION.unpack_from(program, at)
        if code == _RETURN and value != ALLOW:
            _INSTRUCTION.pack_into(changed, at, code, jump_true, jump_false, ASK)
    return bytes(changed)


def prepared(program: bytes, channel_fd: int) -> linux.Prepared:
    """`install`, as a step of a child has it."""
    return linux.Prepared("seccomp", functools.partial(install, program, channel_fd))


def install(program: bytes, channel_fd: int) -> None:
    """Install the filter and send its descriptor over the channel; raises OSError.

    A LISTENER frame goes first: with the descriptor, or with the reason why there is none.
    """
    read, write = os.pipe()
    sender = linux.fork_sharing_files()
    if sender == 0:
        _send_and_end(read, channel_fd)
    number, reason = _installed(program)
    os.write(write, _NUMBER.pack(number))
    _, status = os.waitpid(sender, 0)
    os.close(read)
    os.close(write)
    if number == _NONE:
        os.write(channel_fd, _frame(reason))
    elif status != 0:
        raise BrokenPipeError(32, "the filter's descriptor cannot be sent")


def _installed(program: bytes) -> tuple[int, str]:
    asking, reason = reporting(program), ""
    for flags in _FLAGS:
        try:
            return linux.seccomp(asking, flags), ""
        except OSError as exc:
            reason = str(exc.strerror)
    linux.seccomp(program)
    return _NONE, reason


def _send_and_end(read: int, channel_fd: int) -> None:
    """In a process of our own code, confined but for the filter, that ends here."""
    status = 1
    try:
        (number,) = _NUMBER.unpack(os.read(read, _NUMBER.size))
        if number != _NONE:
            rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, _NUMBER.pack(number))
            channel = _socket.socket(fileno=channel_fd)
            channel.sendmsg([_frame("")], [rights])
            channel.detach()  # closed here is closed there
        status = 0
    finally:
        os._exit(status)


def _frame(reason: str) -> bytes:
    return wire.frame(wire.LISTENER, bytes(wire.TOKEN_BYTES), json.dumps(reason).encode())
