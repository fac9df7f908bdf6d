"""What the processes of a container have printed, as conmon keeps it (Podman's k8s-file)."""

from __future__ import annotations

import os

from flowmonkeyd.podman.libpod import Places

__all__ = ["tail"]

_BYTES_MAX = 64 * 1024


def tail(places: Places, container_id: str) -> str:
    """The end of it, stdout and stderr as they came; "" when it is not there (any more). Blocks."""
    file = places.storage / "overlay-containers" / container_id / "userdata/ctr.log"
    try:
        with open(file, "rb") as kept:
            kept.seek(max(0, os.fstat(kept.fileno()).st_size - _BYTES_MAX))
            text = kept.read().decode(errors="replace")
    except OSError:
        return ""
    # Time, stream, F or P, text: F ends a line, after a P it goes on.
    pieces = [line.split(" ", 3) for line in text.split("\n")]
    ends = {"F": "\n", "P": ""}
    return "".join(f"{one[3]}{ends.get(one[2], '')}" for one in pieces if len(one) == 4)
