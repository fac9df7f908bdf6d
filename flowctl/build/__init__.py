"""Makes a package (.afh) of a handler's folder, so that the same folder makes the same bytes.

What is for development only is taken out, JavaScript is bundled, Python's dependencies come in from
wheels, everything is listed with its SHA-256 and in an SBOM, and what was made is searched for
secrets. It never runs a line of the handler nor of what it depends on, and writes into no folder
but temporary ones and the cache of its tools.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from flowmonkeyd.documents.manifest import Manifest

__all__ = ["Built", "Finding", "build"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that looks like a secret, told without the secret; `fingerprint` names it for
    `--allow`. `line` counts from 1."""

    file: str
    line: int
    kind: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Built:
    """A package: `data` are the bytes of the .afh, `digest` its content's, `files` name to size.
    `allowed` are the findings that a given fingerprint let pass."""

    data: bytes
    manifest: Manifest
    digest: str
    files: Mapping[str, int]
    allowed: tuple[Finding, ...]
    warnings: tuple[str, ...]


def build(folder: Path, *, allow: Collection[str] = ()) -> Built:
    """Build the handler in a folder. Raises Rejected with every problem found.

    `allow` holds fingerprints of findings that somebody looked at.
    """
    raise NotImplementedError
