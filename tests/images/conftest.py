"""Images for real: built over the runtimes that script/setup put into .images, in roots of our own.

Where that did not work, or Podman's programs are missing, the tests are skipped and say so.
"""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import zipfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flowmonkeyd.builder import Builder, runtime_of
from flowmonkeyd.documents.manifest import parse_manifest
from flowmonkeyd.packages import Packages
from flowmonkeyd.testing import FlowHarness
from images import records
from images.build import HERE
from images.recipe import runtime_recipe

CHECKOUT = Path(__file__).parents[2]
SHARED = CHECKOUT / ".images"
CODE = "def handle(input, ctx):\n    return input\n"


@pytest.fixture(scope="session")
def shared():
    """The storage root with all runtime images."""
    if records.made_by([SHARED], runtime_recipe("python311", HERE / "agent")) is None:
        pytest.skip("NO image of the runtimes in .images: run script/setup and read what it says")
    return SHARED


def build(root, *words, stores=()):
    """Run the program; its whole output, and its exit status."""
    given = [word for store in stores for word in ("--store", str(store))]
    command = [sys.executable, "-m", "images.build", "--root", str(root), *given, *map(str, words)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=900)
    return done.returncode, done.stdout + done.stderr


class Bench:
    """A harness with packages and a builder whose loop runs."""

    def __init__(self, fm, folder, shared, **options):
        self.fm = fm
        self.root = folder / "storage"
        self.roots = [self.root, shared]
        self.packages = Packages(folder / "packages")
        self.packages.open()
        self.builder = Builder(
            fm.store, self.packages, self.root, [shared], clock=fm.clock, **options
        )

    async def publish(self, name="film", code=CODE, files=(), **fields):
        """Publish a stateful handler: the digest of its package."""
        handler = {"type": f"acme/{name}", "version": "1.0.0", "stateful": True}
        manifest = {"handler": handler | fields.pop("handler", {}), **fields}
        entry = handler_file(manifest)
        content = {"handler.json": json.dumps(manifest), entry: code, **dict(files)}
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as out:
            for one, text in content.items():
                out.writestr(one, text)
        got = await asyncio.to_thread(self.packages.receive, packed.getvalue())
        as_bytes = {one: text.encode() for one, text in content.items()}
        runtime = runtime_of(parse_manifest(json.dumps(manifest)), as_bytes)
        await self.fm.engine.publish(
            got.manifest.type, "1.0.0", got.digest, got.manifest_json, got.size_bytes,
            runtime=runtime,
        )  # fmt: skip
        return got.digest


def handler_file(manifest):
    return manifest["handler"].get("entrypoint", "handler.py:handle").partition(":")[0]


@pytest.fixture
async def bench(tmp_path, shared):
    """Makes benches; one builder at a time, ended with the test."""

    @asynccontextmanager
    async def opened(**options):
        async with FlowHarness(path=tmp_path / "fm.db") as fm:
            one = Bench(fm, tmp_path, shared, **options)
            fm.store.on_commit = one.builder.committed
            await one.builder.open()
            async with asyncio.TaskGroup() as group:
                running = group.create_task(one.builder.run())
                yield one
                running.cancel()

    return opened
