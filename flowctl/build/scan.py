"""Looks for secrets in what is about to be packed; the one door to detect_secrets.

Own files are searched with every detector, bundles of other people's code with those that know a
secret by its shape. A finding says where and what kind, never what; it names itself by a
fingerprint, so that one that was looked at can be allowed. No finding is checked with its provider.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.core.scan import scan_file
from detect_secrets.filters.heuristic import is_non_text_file
from detect_secrets.settings import transient_settings

__all__ = ["Finding", "Planted", "findings", "survivors"]

# These guess by entropy or by a name nearby, and find something in every minified bundle.
_GUESSES = frozenset(
    {"Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector", "KeywordDetector"}
)
# An address of the internet is no secret, and handlers are there to reach them.
_NO_SECRET = frozenset({"IPPublicDetector"})
# Not among them: the one that lets a comment allow its own line. What is allowed is said where the
# package is built.
_HEURISTIC = "detect_secrets.filters.heuristic."
_FILTERS = (
    "is_indirect_reference",
    "is_likely_id_string",
    "is_not_alphanumeric_string",
    "is_potential_uuid",
    "is_prefixed_with_dollar_sign",
    "is_sequential_string",
    "is_templated_secret",
)
# A bundle is one line of a megabyte; a detector's expressions are not made for that. Parts
# overlap by more than any secret is long.
PART_CHARS, OVERLAP_CHARS = 4096, 512
# Shorter ones ("a", 1, "test") are in every file.
VALUE_CHARS_MIN = 6


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that looks like a secret, told without the secret; `fingerprint` names it for
    `--allow`. `line` counts from 1."""

    file: str
    line: int
    kind: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Planted:
    """A test value and where it was declared."""

    file: str
    line: int
    text: str


def findings(files: Mapping[str, bytes], bundles: Collection[str] = ()) -> list[Finding]:
    """The secrets in files by name; `bundles` are the names of those with others' code."""
    detectors: Mapping[str, type] = get_mapping_from_secret_type_to_class()
    plugins = {detector.__name__ for detector in detectors.values()}
    found: set[Finding] = set()
    for names, used in (
        (files.keys() - set(bundles), plugins - _NO_SECRET),
        (files.keys() & set(bundles), plugins - _GUESSES),
    ):
        settings = {
            "plugins_used": [{"name": name} for name in sorted(used)],
            "filters_used": [{"path": _HEURISTIC + name} for name in _FILTERS],
        }
        with transient_settings(settings), TemporaryDirectory(prefix="flowctl-scan-") as place:
            for name in names:
                found.update(_found(name, files[name], Path(place)))
    return sorted(found, key=lambda f: (f.file, f.line, f.kind, f.fingerprint))


def survivors(files: Mapping[str, bytes], planted: Iterable[Planted]) -> list[Finding]:
    """Where test values are that should have been taken out."""
    found: set[Finding] = set()
    for value in planted:
        if len(value.text) < VALUE_CHARS_MIN:
            continue
        for spelling in _spellings(value.text):
            for name, content in files.items():
                at = content.find(spelling)
                if at >= 0:
                    line = content.count(b"\n", 0, at) + 1
                    kind = f"test value of {value.file}:{value.line}"
                    found.add(_finding(name, line, kind, value.text))
    return sorted(found, key=lambda f: (f.file, f.line, f.kind))


def _spellings(text: str) -> set[bytes]:
    """A text as it is, and as it is in the source code of Python, JSON and JavaScript."""
    plain, ascii = (json.dumps(text, ensure_ascii=only_ascii)[1:-1] for only_ascii in (False, True))
    spelled = (text, plain, ascii, plain.replace('\\"', '"'))
    found = {one.encode("utf-8", "surrogatepass") for one in spelled}
    return found | {text.encode("unicode_escape")}


def _found(name: str, content: bytes, place: Path) -> Iterator[Finding]:
    """The detectors read files, and one's kind in its name."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        # Binary: keys are found in it all the same.
        text = content.decode("latin-1")
    parts = [
        (number, part)
        for number, line in enumerate(text.split("\n"), 1)
        for part in _parts(line.rstrip("\r"))
    ]
    suffix = PurePosixPath(name).suffix
    if is_non_text_file(name):
        suffix = ".txt"  # they would pass over it
    path = place / f"file{suffix}"
    path.write_text("\n".join(part for _, part in parts), errors="replace", newline="")
    for secret in scan_file(str(path)):
        number = parts[min(secret.line_number, len(parts)) - 1][0]
        yield _finding(name, number, secret.type.lower(), secret.secret_value or "")


def _parts(line: str) -> Iterator[str]:
    step = PART_CHARS - OVERLAP_CHARS
    for start in range(0, max(1, len(line) - OVERLAP_CHARS), step):
        yield line[start : start + PART_CHARS]


def _finding(file: str, line: int, kind: str, secret: str) -> Finding:
    """The line is no part of the fingerprint: it changes with every edit above. Fingerprints stand
    in logs, so finding a weak password by trying costs something (scrypt, RFC 7914)."""
    salt, text = f"{file}\0{kind}".encode(), secret.encode("utf-8", "surrogatepass")
    fingerprint = hashlib.scrypt(text, salt=salt, n=2**13, r=8, p=1, dklen=8)
    return Finding(file, line, kind, fingerprint.hex())
