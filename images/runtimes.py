"""Facts of the runtime images (layer 1): what each is made of, which languages it runs.

One tree: every image is its parent and a layer of its own, so that what two have in common is
stored once. Names of packages stand here and nowhere else; recipe.py makes plans of them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "AGENT",
    "APP",
    "REPOSITORY",
    "RUNTIMES",
    "USER",
    "Runtime",
    "image_name",
    "lineage",
    "stage_name",
]

REPOSITORY = "localhost/flowmonkey"
AGENT = "/usr/lib/flowmonkey"  # where the agent is in every runtime image but the base
APP = "/app"  # where a handler image has its package
USER = 1000  # who runs a handler; has no name in the host


@dataclass(frozen=True, slots=True)
class Runtime:
    """One runtime image; `languages` are those a handler in it may be written in."""

    name: str
    parent: str | None
    summary: str
    languages: tuple[str, ...] = ()
    debian: tuple[str, ...] = ()  # packages beside the parent's
    npm: tuple[str, ...] = ()  # put into /node_modules, where every handler in Node finds them
    node: str | None = None  # range of Node versions, when this image brings the program
    # Text files: (path, content). No variables of the environment: containers get none of them.
    files: tuple[tuple[str, str], ...] = ()
    provides: tuple[str, ...] = ()  # what choose.py looks for


RUNTIMES: dict[str, Runtime] = {
    one.name: one
    for one in (
        Runtime("base", None, "Debian 12 with its CA certificates", debian=("ca-certificates",)),
        Runtime(
            "python311",
            "base",
            "Python 3.11, Debian's, with its whole standard library compiled",
            languages=("python",),
            debian=("python3",),
        ),
        Runtime(
            "node20",
            "base",
            "Node 20, the program of the npm package `node`",
            languages=("node",),
            debian=("libstdc++6",),
            node="20",
        ),
        # Python in it costs 40 of 700 MB; an ffmpeg image of Python's own would cost 460 more.
        Runtime(
            "node20-ffmpeg",
            "node20",
            "Node 20 and Python 3.11 with ffmpeg and ffprobe",
            languages=("node", "python"),
            debian=("ffmpeg", "python3"),
            provides=("ffmpeg",),
        ),
        Runtime(
            "node20-sharp",
            "node20",
            "Node 20 with sharp and its libvips",
            languages=("node",),
            npm=("sharp@0.34.5",),
            provides=("sharp",),
        ),
        Runtime(
            "node20-puppeteer",
            "node20",
            "Node 20 with puppeteer, Chromium and fonts",
            languages=("node",),
            debian=("chromium", "fonts-liberation"),
            npm=("puppeteer@24.31.0",),
            # Looked for from the working folder upwards, https://pptr.dev/guides/configuration
            files=(
                (
                    "/.puppeteerrc.json",
                    '{"executablePath": "/usr/bin/chromium", "skipDownload": true}\n',
                ),
            ),
            provides=("puppeteer",),
        ),
    )
}


def lineage(name: str) -> list[Runtime]:
    """The runtime and its ancestors, the base first."""
    one = RUNTIMES[name]
    return [*(lineage(one.parent) if one.parent else ()), one]


def image_name(name: str) -> str:
    """Name of the image that containers are started from."""
    return f"{REPOSITORY}/runtime-{name}:latest"


def stage_name(name: str) -> str:
    """Name of the same image without the agent, from which children are made."""
    return f"{REPOSITORY}/stage-{name}:latest"
