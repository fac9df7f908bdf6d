"""Agents for the tests of this folder, each ended with its test."""

from __future__ import annotations

import secrets
import shutil
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from started import HANDLERS, LANGUAGES, PATIENCE_S, ROOT, Started


@pytest.fixture(params=LANGUAGES)
def language(request):
    return request.param


@pytest_asyncio.fixture
async def start(tmp_path, language):
    """`await start()`: an agent that has connected."""
    async with AsyncExitStack() as stack:

        async def started(language=language, folder=None):
            folder = folder or tmp_path / secrets.token_hex(4)
            folder.mkdir(exist_ok=True)
            one = Started(language, folder)
            stack.push_async_callback(one.end)
            await one.start()
            await one.agent.connected(PATIENCE_S)
            return one

        yield started


@pytest.fixture(scope="session", autouse=True)
def _packages(tmp_path_factory):
    """The handlers as packages: with the authoring library in them."""
    root = tmp_path_factory.mktemp("packages")
    Started.packages = root
    shutil.copytree(HANDLERS, root, dirs_exist_ok=True)
    for language, place in (("python", "flowmonkey"), ("node", "node_modules/flowmonkey")):
        library = root / language / place
        library.mkdir(parents=True)
        for file in ROOT.glob("flowmonkey/*.py" if language == "python" else "flowmonkey/node/*"):
            shutil.copy(file, library)
