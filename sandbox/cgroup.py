"""Control groups of the slots. (Placeholder.)"""

from __future__ import annotations

__all__ = ["Group", "Groups"]


class Group:
    """One slot's group."""

    def add(self, pid: int) -> None:
        """Move a process into it."""

    def limit(self, memory_bytes: int, tasks: int, cpu_share: float) -> None:
        """Bound it."""


class Groups:
    """The groups of one pool."""

    @classmethod
    def open(cls, name: str) -> Groups:
        """Raises OSError, in words, where the host gives none."""
        raise OSError(38, "control groups are not built yet")

    def slot(self, number: int) -> Group:
        """The group of a slot."""
        return Group()

    def close(self) -> None:
        """Remove everything."""
