"""A file of sales, the same for the same number of rows: it stands for one that is downloaded."""

from __future__ import annotations

from pathlib import Path

REGIONS = ("north", "east", "south", "west")
HEADER = b"id,region,pieces,cents\n"


def write(path: Path, rows: int) -> None:
    """Write `rows` sales as CSV."""
    number = 20_251
    with path.open("wb") as file:
        file.write(HEADER)
        for start in range(0, rows, 10_000):
            lines = []
            for row in range(start, min(start + 10_000, rows)):
                number = (number * 1_103_515_245 + 12_345) % 2**31
                region, pieces = REGIONS[number >> 8 & 3], 1 + (number >> 12 & 7)
                lines.append(f"{row},{region},{pieces},{number >> 15}\n")
            file.write("".join(lines).encode())
