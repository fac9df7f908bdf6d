"""The pool's face; its working comes with the next commit."""

from __future__ import annotations

from sandbox.model import Call, Layer, OnLog, PoolSettings, Reply

__all__ = ["Pool"]


class Pool:
    """Runs calls in fresh confined processes, `settings.slots` at a time."""

    def __init__(self, settings: PoolSettings | None = None) -> None:
        self.settings = settings or PoolSettings()

    @property
    def slots(self) -> int:
        """How many executions run at a time."""
        return self.settings.slots

    async def start(self) -> None:
        """Start the fork servers and try every layer; raises OSError if no server starts."""
        raise NotImplementedError

    async def run(self, call: Call, on_log: OnLog | None = None) -> Reply:
        """Run one call to its end; never raises for what a handler did."""
        raise NotImplementedError

    async def close(self) -> None:
        """Kill everything and wait until it is gone."""
        raise NotImplementedError

    def layers(self) -> list[Layer]:
        """Every layer with what this host gives, as tried at start."""
        raise NotImplementedError
