"""The network namespace of the gateway, made in the fork server. (Placeholder.)"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["prepare"]


def prepare(ports: Sequence[int]) -> list[int]:
    """Make every address of this network namespace local and listen; raises OSError."""
    raise OSError(38, "the gateway is not built yet")
