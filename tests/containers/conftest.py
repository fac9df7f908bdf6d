"""One driver for the whole folder, on a storage of its own, with the images of the checkout.

Without Podman, root or images everything here is skipped, loudly. `start(code, …)` runs Python in
a container that the test's end removes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path

import pytest
import pytest_asyncio

from flowmonkeyd.containers import Container, Containers, Spec, installation
from flowmonkeyd.settings import ContainersSection
from tests.containers.inside import WAIT, go

STORE = Path(__file__).parents[2] / ".images"
PYTHON = "localhost/flowmonkey/runtime-python311:latest"


@pytest.fixture(scope="session")
def places():
    """(root, run): short, as sockets are made below the second."""
    if os.geteuid() != 0:
        pytest.skip("NO container is tested: not root")
    if shutil.which("podman") is None:
        pytest.skip("NO container is tested: no podman; script/setup installs it")
    if not (STORE / "overlay-images").is_dir():
        pytest.skip("NO container is tested: no .images; script/setup makes them")
    root = Path(tempfile.mkdtemp(prefix="fm-root-", dir="/var/tmp"))
    run = Path(tempfile.mkdtemp(prefix="fm-", dir="/run"))
    yield root, run
    shutil.rmtree(root)
    # Those that ended with no container have left nothing there; some were killed.
    shutil.rmtree(run, ignore_errors=True)


@pytest.fixture(scope="session")
def section():
    """Settings of the driver."""
    # Who kills what Podman waits for waits so long for the answer.
    return ContainersSection(imageStores=(str(STORE.resolve()),), callMs=5000)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def containers(places, section):
    """An open driver, shared: no test may leave anything in it."""
    root, run = places
    driver = Containers(section, root, run, installation(root))
    await driver.open()
    assert driver.problem is None
    yield driver
    left = await driver.found()
    await driver.sweep((), 0)
    await driver.close()
    assert [one.container.name for one in left] == []


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def python_image(containers):
    """The id of the image with Python."""
    image_id = await containers.image_id(PYTHON)
    assert image_id is not None, "script/setup makes it"
    return image_id


@pytest_asyncio.fixture(loop_scope="session")
async def start(containers, python_image):
    """`start(code)`: a container that runs Python; other fields of Spec by name."""
    started = []

    async def starting(code: str = "import time; time.sleep(3600)", **asked) -> Container:
        instance = asked.get("instance") or secrets.token_hex(16)
        fields = {
            "instance": instance,
            "role": "job",
            "image_id": python_image,
            "resources": "light",
            "folder": containers.folder(instance),
            "command": ("/usr/bin/python3", "-I", "-u", "-c", code),
            **asked,
        }
        container = await containers.start(Spec(**fields))
        started.append(container)
        return container

    yield starting
    for container in started:
        await containers.kill(container)
    assert os.listdir(containers.places.run / "c") == []


@pytest_asyncio.fixture(loop_scope="session")
async def printed(containers, start):
    """`printed(code)`: what it has printed when it has ended."""

    async def run(code: str, **asked) -> str:
        container = await start(f"{WAIT}\n{code}", **asked)
        go(container)
        await containers.ended(container)
        return await containers.output(container)

    return run
