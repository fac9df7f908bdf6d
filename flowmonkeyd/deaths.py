"""Who has ended, and whether for memory: the first process of each container, watched.

A pidfd tells the end at once, whoever the parent is. The counters of a control group are read in
that moment, before who cleans up removes it; on version 1 an eventfd knows even after that.
Belongs to the loop that it is used in.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field

from flowmonkeyd.confinement import Groups

__all__ = ["Deaths"]


@dataclass(slots=True)
class _Watched:
    pidfd: int
    groups: Groups
    listener: int | None
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    oom: bool = False


class Deaths:
    """`watch` a process under a key, `wait` for its end, `forget` it."""

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._watched

    def watch(self, key: str, pid: int, marks: tuple[str, ...]) -> Groups:
        """Hold on to a process that is in groups whose paths have one of the marks, so that its
        number cannot mean another. Raises OSError when there is none such."""
        if key in self._watched:
            return self._watched[key].groups
        pidfd = os.pidfd_open(pid)
        try:
            groups = Groups.of(pid, marks=marks)
            watched = _Watched(pidfd, groups, _oom_listener(groups))
        except BaseException:
            os.close(pidfd)
            raise
        self._watched[key] = watched
        asyncio.get_running_loop().add_reader(pidfd, self._has_ended, watched)
        return groups

    def pidfd(self, key: str) -> int:
        """What means that process and no other, until it is forgotten. KeyError if it was."""
        return self._watched[key].pidfd

    async def wait(self, key: str) -> bool:
        """Until it has ended or was forgotten; whether the kernel killed in its group for memory.
        False at once for one that is not watched."""
        watched = self._watched.get(key)
        if watched is None:
            return False
        await watched.gone.wait()
        return watched.oom

    def kill(self, key: str) -> None:
        """SIGKILL, to exactly that process; nothing if it has ended."""
        if (watched := self._watched.get(key)) is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(watched.pidfd, signal.SIGKILL)

    def forget(self, key: str) -> None:
        """Close what is open for it; who waits goes on."""
        if (watched := self._watched.pop(key, None)) is None:
            return
        asyncio.get_running_loop().remove_reader(watched.pidfd)
        watched.gone.set()
        os.close(watched.pidfd)
        if watched.listener is not None:
            os.close(watched.listener)

    def close(self) -> None:
        """Forget all of them."""
        for key in list(self._watched):
            self.forget(key)

    def _has_ended(self, watched: _Watched) -> None:
        asyncio.get_running_loop().remove_reader(watched.pidfd)
        kills = watched.groups.oom_kills()
        if kills is not None:
            watched.oom = kills > 0
        elif watched.listener is not None:
            watched.oom = _was_oom(watched.listener)
        watched.gone.set()


def _oom_listener(groups: Groups) -> int | None:
    """An eventfd told of each time that memory ran out, cgroup v1 only (admin-guide, memory.rst).

    Where it cannot be had, None: the counter in the group is the better source anyway.
    """
    if groups.version == 2:
        return None
    folder = groups.folders["memory"]
    listener = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        watched = os.open(folder / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            (folder / "cgroup.event_control").write_text(f"{listener} {watched}")
        finally:
            os.close(watched)
    except OSError:
        os.close(listener)
        return None
    return listener


def _was_oom(listener: int) -> bool:
    """Whether memory ran out in a group that is gone: its removal itself counts as one."""
    try:
        return os.eventfd_read(listener) >= 2
    except BlockingIOError:
        return False
