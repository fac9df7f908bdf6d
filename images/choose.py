"""Which runtime image a handler gets: a pure function of what its package says and brings.

The first of puppeteer, ffmpeg and sharp that it needs decides, then its language. What it needs is
what it names itself (`tools`) and what the names of its dependencies tell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from typing import Any

from images.runtimes import RUNTIMES, Runtime

__all__ = ["ORDER", "TOLD_BY", "Unsuitable", "choose", "names_in"]

ORDER = ("puppeteer", "ffmpeg", "sharp")
# Names of packages of PyPI and npm that are of no use without the program.
TOLD_BY: dict[str, frozenset[str]] = {
    "puppeteer": frozenset({"puppeteer", "puppeteer-core", "puppeteer-extra"}),
    "ffmpeg": frozenset(
        {
            "@ffmpeg-installer/ffmpeg",
            "ffmpeg",
            "ffmpeg-python",
            "ffmpeg-static",
            "ffmpy",
            "ffprobe-static",
            "fluent-ffmpeg",
            "imageio-ffmpeg",
            "pydub",
        }
    ),
    "sharp": frozenset({"sharp"}),
}
_MODULE = re.compile(r"(?:^|/)node_modules/((?:@[^/]+/)?[^/@][^/]*)/")
_WHEEL = re.compile(r"(?:^|/)([A-Za-z0-9_.]+)-[^/-]+\.dist-info/")


class Unsuitable(ValueError):
    """No runtime image has all that a handler names."""


def choose(language: str, names: Collection[str], tools: Collection[str] = ()) -> str:
    """The name of the runtime for a handler in `language` ("python" or "node").

    `names` are its dependencies, `tools` what it asks for by itself, of ORDER. A dependency that
    no image of the language serves decides nothing. Raises Unsuitable for tools that none has
    together.
    """
    fitting = [one for one in RUNTIMES.values() if language in one.languages]
    if not set(tools) <= {tool for one in fitting for tool in one.provides}:
        missing = sorted(set(tools) - {tool for one in fitting for tool in one.provides})
        raise Unsuitable(f"no runtime image has {language} and {', '.join(missing)}")
    fitting = [one for one in fitting if set(tools) <= set(one.provides)]
    if not fitting:
        raise Unsuitable(f"no runtime image has {' and '.join(sorted(tools))} together")
    for tool in ORDER:
        if tool in tools or not TOLD_BY[tool].isdisjoint(names):
            for one in fitting:
                if tool in one.provides:
                    return one.name
    return min(fitting, key=_weight).name


def names_in(files: Iterable[str], documents: Collection[bytes] = ()) -> set[str]:
    """The dependencies that a package brings, by the names of its files and by its documents:
    package.json, a CycloneDX SBOM. What cannot be read tells nothing."""
    names = set()
    for file in files:
        for pattern in (_MODULE, _WHEEL):
            if found := pattern.search(file):
                names.add(_normal(found[1]))
    for document in documents:
        try:
            names |= {_normal(name) for name in _told(json.loads(document))}
        except (ValueError, RecursionError):
            continue
    return names


def _weight(one: Runtime) -> tuple[int, int]:
    """The plainest first: what its language needs and no more."""
    return len(one.provides), len(one.languages)


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


def _told(document: Any) -> Iterable[str]:
    if not isinstance(document, dict):
        return
    for key in ("dependencies", "optionalDependencies"):
        if isinstance(document.get(key), dict):
            yield from document[key]
    components = document.get("components")
    for one in components if isinstance(components, list) else ():
        if isinstance(one, dict) and isinstance(one.get("name"), str):
            group = one.get("group")
            yield f"{group}/{one['name']}" if isinstance(group, str) and group else one["name"]
