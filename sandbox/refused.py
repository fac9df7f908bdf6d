"""The pool's side of counting refused system calls: who answers what the filter asks.

Owns the descriptor that a child's filter asks through (`listener`). It promises the filter's own
answer to each question, by running the filter on the very same data: nothing that the filter
refuses is ever allowed, a call that kills ends the child, and whatever cannot be judged kills too.
It reads no memory of the child and never lets a call go on.

Sources: seccomp_unotify(2), linux/seccomp.h; the instructions as in
Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import fcntl
import os
import select
import struct
from collections.abc import Callable

from sandbox import seccomp
from sandbox.model import Refused

__all__ = ["KILL", "REFUSE", "Watch", "verdict"]

KILL, REFUSE = 0x80000000, 0x00050000  # SECCOMP_RET_KILL_PROCESS; _ERRNO, with the number below
_ACTION, _DATA = 0xFFFF0000, 0x0000FFFF
_RECEIVE, _ANSWER = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, _SEND
_QUESTION = struct.Struct("=QII64s")  # struct seccomp_notif: id, pid, flags, seccomp_data
_REPLY = struct.Struct("=QqiI")  # struct seccomp_notif_resp: id, value, error, flags
_CALL = struct.Struct("=iI56x")  # struct seccomp_data: number, architecture, …
_WORDS = struct.Struct("=16I")
_CODE = struct.Struct("=HBBI")
_KINDS_MAX = 500  # more than there are calls; numbers that stand for none are without end
_OTHERS = "others"


def verdict(program: bytes, data: bytes) -> int:
    """What a filter says of one call (struct seccomp_data); KILL for a filter that is none."""
    words, code = _WORDS.unpack(data), list(_CODE.iter_unpack(program))
    at = held = 0
    try:
        while True:  # every jump is forward
            operation, jump_true, jump_false, value = code[at]
            at += 1
            match operation:
                case 0x20:  # ld [value]
                    held = words[value // 4]
                case 0x05:  # ja
                    at += value
                case 0x15:  # jeq
                    at += jump_true if held == value else jump_false
                case 0x25:  # jgt
                    at += jump_true if held > value else jump_false
                case 0x35:  # jge
                    at += jump_true if held >= value else jump_false
                case 0x45:  # jset
                    at += jump_true if held & value else jump_false
                case 0x54:  # and
                    held &= value
                case 0x06:  # ret
                    return int(value)
                case _:
                    return KILL
    except IndexError:
        return KILL


class Watch:
    """Answers for one child's filter and counts, from `begin` to `close`."""

    def __init__(self, program: bytes) -> None:
        self._program = program
        self._on_fatal: Callable[[], None] = lambda: None
        self._fd = -1
        self._is_told = False
        self._poll = select.poll()
        self._counts = collections.Counter[tuple[str, str]]()

    def begin(self, fd: int, on_fatal: Callable[[], None]) -> None:
        """Answer what is asked through this descriptor, which is the watch's from now on.

        `on_fatal` is called for a call that kills: whoever made it waits, and must be killed.
        """
        self._on_fatal = on_fatal
        self._fd, self._is_told = fd, True
        self._poll.register(fd, select.POLLIN)
        asyncio.get_running_loop().add_reader(fd, self._on_question)

    def forget(self) -> None:
        """Count from here: what came before was an interpreter's start."""
        self._counts.clear()

    def found(self) -> tuple[Refused, ...] | None:
        """What was refused, most often first; None if the host did not tell."""
        if not self._is_told:
            return None
        return tuple(
            Refused(call, answer, count) for (call, answer), count in self._counts.most_common()
        )

    def close(self) -> None:
        """To be called once the child is killed: who still asks is told ENOSYS."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _on_question(self) -> None:
        events = self._poll.poll(0)
        if not any(event & select.POLLIN for _, event in events):
            if events:  # POLLHUP: nobody is left to ask
                asyncio.get_running_loop().remove_reader(self._fd)
            return  # a signal took back the question, which is asked again
        question = bytearray(_QUESTION.size)  # the kernel wants zeros
        try:
            fcntl.ioctl(self._fd, _RECEIVE, question)
        except OSError:
            return  # who asked was interrupted or has died
        number, _pid, _flags, data = _QUESTION.unpack(question)
        answer = verdict(self._program, data)
        if answer & _ACTION != REFUSE:  # ALLOW too: it would not have been asked
            self._count(data, "killed")
            self._on_fatal()
            return
        try:
            reply = bytearray(_REPLY.pack(number, 0, -(answer & _DATA), 0))
            fcntl.ioctl(self._fd, _ANSWER, reply)
        except OSError:
            return  # the same
        self._count(data, errno.errorcode.get(answer & _DATA, str(answer & _DATA)))

    def _count(self, data: bytes, answer: str) -> None:
        key = (_name(data), answer)
        if key not in self._counts and len(self._counts) >= _KINDS_MAX:
            key = (_OTHERS, answer)
        self._counts[key] += 1


def _name(data: bytes) -> str:
    number, architecture = _CALL.unpack(data)
    return seccomp.call_name(number & 0xFFFFFFFF, architecture)
