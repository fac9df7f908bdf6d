"""Versions compare as SemVer, ranges read as npm's: 10.0.0 is newer than 9.0.0, `^1` is any 1.x.

The library semantic-version knows both; this file is its only door.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from semantic_version import NpmSpec, Version

__all__ = ["is_range", "is_version", "newest", "sort_key"]


# Longer than any version; what is longer is not worth a place in the caches.
LENGTH_MAX = 128


@lru_cache(maxsize=4096)
def sort_key(version: str) -> Version:
    """A value that orders versions by SemVer precedence. Raises ValueError for no version."""
    return Version(version)


@lru_cache(maxsize=1024)
def _range(text: str) -> NpmSpec:
    return NpmSpec(text)


def is_version(text: str) -> bool:
    """Whether the text is a SemVer version, all three numbers given."""
    if not _is_plain(text):
        return False
    try:
        sort_key(text)
    except ValueError:
        return False
    return True


def is_range(text: str) -> bool:
    """Whether the text is a version or an npm-style range (`^1`, `~1.2`, `1.x`, `>=1 <2`)."""
    if not _is_plain(text) or not text.strip():
        return False
    try:
        _range(text)
    except ValueError:
        return False
    return True


def newest(versions: Iterable[str], wanted: str | None) -> str | None:
    """The newest version in the range; without one, the newest release, else the newest
    pre-release. None when nothing fits."""
    known = sorted(versions, key=sort_key, reverse=True)
    if wanted is None:
        releases = (v for v in known if not sort_key(v).prerelease)
        return next(releases, known[0] if known else None)
    wanted = wanted.removeprefix("=")
    if is_version(wanted):  # a pin; the ranges of the library take 1.0.0 for 1.0.0-a
        pin = sort_key(wanted)
        same = (v for v in known if sort_key(v).truncate("prerelease") == pin)
        return wanted if wanted in known else next(same, None)
    spec = _range(wanted)
    return next((v for v in known if spec.match(sort_key(v))), None)


def _is_plain(text: str) -> bool:
    """The library takes digits of any script and a newline at the end."""
    return text.isascii() and text.isprintable() and 0 < len(text) <= LENGTH_MAX
