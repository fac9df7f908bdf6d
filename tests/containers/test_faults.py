"""Whatever is killed, at whatever moment: what runs goes on or is told, and nothing is left over.

The seed of what is random is printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from flowmonkeyd.containers import ContainerError, Containers, Spec, installation
from tests.containers.inside import WAIT, go, until
from tests.containers.remains import layers, remains, runtime_entries

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="session"),
]

_POINTS = 24


def service_of(driver: Containers) -> int:
    """The pid of its `podman system service`."""
    address = f"unix://{driver.places.socket}"
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                # A child that it has just forked has the same words, and is in its session.
                if address in words and os.getsid(int(folder.name)) == int(folder.name):
                    return int(folder.name)
    raise AssertionError("there is none")


def conmon_of(driver: Containers, container_id: str) -> int:
    pid_file = driver.places.state / "overlay-containers" / container_id / "userdata/conmon.pid"
    return int(pid_file.read_text())


@pytest.fixture
def leaves_nothing(containers):
    """When the test has swept there is nothing of any container, and no layer more than before."""
    before = layers(containers.places)
    yield
    install = installation(containers.places.root)
    deadline = time.monotonic() + 10
    while (left := remains(containers.places, install)) and time.monotonic() < deadline:
        time.sleep(0.05)  # conmon writes its last line
    assert left == []
    assert layers(containers.places) == before


async def test_containers_do_not_notice_that_the_service_was_killed(
    containers, start, leaves_nothing
):
    before = await start()
    os.kill(service_of(containers), signal.SIGKILL)
    after = await start()
    assert [one.state for one in await containers.found()] == ["running", "running"]
    for container in (before, after):
        await containers.kill(container)


async def test_a_service_that_does_not_answer_is_replaced(containers, start, leaves_nothing):
    running = await start()
    hanging = service_of(containers)
    os.kill(hanging, signal.SIGSTOP)
    deadline_s = containers._libpod._deadline_s
    containers._libpod._deadline_s = 2.0
    try:
        assert [one.container.pid for one in await containers.found()] == [running.pid]
    finally:
        containers._libpod._deadline_s = deadline_s
    assert not Path(f"/proc/{hanging}").exists()
    await containers.kill(running)


async def test_a_list_that_cannot_be_had_removes_nothing(containers, start, leaves_nothing):
    running, configuration = await start(), containers.places.run / "containers.conf"
    text = configuration.read_text()
    configuration.write_text("[engine\n")
    os.kill(service_of(containers), signal.SIGKILL)
    try:
        assert await containers.sweep((), 0) == 0
    finally:
        configuration.write_text(text)
    assert [one.container.pid for one in await containers.found()] == [running.pid]
    await containers.kill(running)


async def test_without_conmon_the_end_is_seen_and_all_of_it_removed(
    containers, start, leaves_nothing
):
    container = await start(WAIT)
    os.kill(conmon_of(containers, container.id), signal.SIGKILL)
    go(container)
    ended = await containers.ended(container)
    assert (ended.code, ended.oom) == (None, False)
    await containers.kill(container)


async def test_without_conmon_a_running_one_can_be_killed(containers, start, leaves_nothing):
    container = await start()
    os.kill(conmon_of(containers, container.id), signal.SIGKILL)
    await containers.freeze(container)
    await containers.kill(container)


async def test_who_kills_it_from_outside_is_told_from_an_end_of_its_own(
    containers, start, leaves_nothing
):
    container = await start()
    os.kill(container.pid, signal.SIGKILL)
    ended = await containers.ended(container)
    assert (ended.code, ended.signal, ended.oom) == (137, 9, False)
    await containers.kill(container)


async def test_a_frozen_one_is_killed_without_running_on(containers, start, leaves_nothing):
    code = """
import os, signal
open("/tmp/ready", "w").close()
print("ready")
while True:
    n = time.monotonic_ns()
    if time.monotonic_ns() - n > 20_000_000:
        print("ran on")
"""
    container = await start(f"{WAIT}\n{code}")
    go(container)
    await until(lambda: containers.output(container))
    await containers.freeze(container)
    log = containers.places.storage / "overlay-containers" / container.id / "userdata/ctr.log"
    with open(log) as kept:
        await asyncio.sleep(0.05)
        await containers.kill(container)
        assert "ran on" not in kept.read()


async def test_killing_twice_and_all_at_once_is_killing(containers, start, leaves_nothing):
    made = [await start() for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        for container in made + made:
            group.create_task(containers.kill(container))
    assert await containers.found() == []
    await containers.kill(made[0])


async def test_a_start_that_is_cancelled_leaves_nothing(containers, python_image, leaves_nothing):
    for delay_s in (0, 0.005, 0.03, 0.08):
        instance = secrets.token_hex(16)
        folder = containers.folder(instance)
        spec = Spec(instance, "job", python_image, "light", folder, ("/usr/bin/python3",))
        async with asyncio.TaskGroup() as group:
            starting = group.create_task(containers.start(spec))
            await asyncio.sleep(delay_s)
            starting.cancel()
    await containers.sweep((), 0)


async def test_a_service_killed_at_any_moment_of_a_start_leaves_nothing(
    containers, python_image, leaves_nothing
):
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    rng, refused, install = random.Random(seed), 0, installation(containers.places.root)
    for _ in range(_POINTS):
        instance = secrets.token_hex(16)
        command = ("/usr/bin/python3", "-c", "import time; time.sleep(3600)")
        folder = containers.folder(instance)
        spec = Spec(instance, "job", python_image, "light", folder, command)

        async def starting(spec=spec) -> bool:
            try:
                await containers.start(spec)
            except ContainerError:
                return False
            return True

        await containers.images()  # so that there is a service to be killed
        victim = service_of(containers)
        async with asyncio.TaskGroup() as group:
            outcome = group.create_task(starting())
            await asyncio.sleep(rng.uniform(0, 0.1))
            os.kill(victim, signal.SIGKILL)
        refused += not outcome.result()
        await until(lambda: _is_swept(containers, install))
    print(f"{refused} of {_POINTS} starts were refused")


async def test_a_start_that_was_begun_again_leaves_nothing_of_the_first_try(
    containers, start, leaves_nothing
):
    """No sweep is needed: the process killed here had not noted that conmon was there."""
    install = installation(containers.places.root)
    for _ in range(3):  # on a busy machine the kill may come too late
        await containers.images()  # so that there is a service to be killed
        victim = service_of(containers)
        async with asyncio.TaskGroup() as group:
            starting = group.create_task(start())
            await until(lambda: _has_begun(containers))
            os.kill(victim, signal.SIGKILL)
        await containers.kill(starting.result())
        await until(lambda: _is_clean(containers, install))


async def _has_begun(driver: Containers) -> bool:
    return bool(runtime_entries(driver.places))


async def _is_swept(driver: Containers, install: str) -> bool:
    """As every minute: what the killed process had begun may come to be after the first time."""
    await driver.sweep((), 0)
    return await _is_clean(driver, install)


async def _is_clean(driver: Containers, install: str) -> bool:
    return not remains(driver.places, install)


async def test_conmon_and_runtime_killed_at_any_moment_of_a_start_leave_nothing(
    containers, python_image, leaves_nothing
):
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    rng, install = random.Random(seed), installation(containers.places.root)
    for _ in range(_POINTS // 2):
        instance = secrets.token_hex(16)
        command = ("/usr/bin/python3", "-c", "import time; time.sleep(3600)")
        folder = containers.folder(instance)
        spec = Spec(instance, "job", python_image, "light", folder, command)

        async def starting(spec=spec) -> None:
            with suppress(ContainerError):
                await containers.start(spec)

        async with asyncio.TaskGroup() as group:
            group.create_task(starting())
            await asyncio.sleep(rng.uniform(0.02, 0.12))
            for pid in _of_starting(containers):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await until(lambda: _is_swept(containers, install))


def _of_starting(driver: Containers) -> list[int]:
    """conmon, the OCI runtime and what it starts, but not the service."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes().decode(errors="replace")
                if str(driver.places.storage) in words and "service" not in words:
                    found.append(int(folder.name))
    return found


_DAEMON = """
import asyncio, os, sys
from pathlib import Path
from flowmonkeyd.containers import Containers, Spec
from flowmonkeyd.settings import ContainersSection

async def main(root, run, install, store, image, instances):
    driver = Containers(ContainersSection(imageStores=(store,)), Path(root), Path(run), install)
    await driver.open()
    for instance in instances.split(","):
        command = ("/usr/bin/python3", "-c", "import time; time.sleep(3600)")
        folder = driver.folder(instance)
        await driver.start(Spec(instance, "job", image, "light", folder, command))
    print("started", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_the_next_daemon_finds_what_a_killed_one_has_left(
    places, section, containers, python_image, leaves_nothing
):
    root, run = places[0] / "other", places[1] / "other"
    install, instances = secrets.token_hex(4), [secrets.token_hex(16) for _ in range(2)]
    words = [str(root), str(run), install, section.imageStores[0], python_image]
    daemon = subprocess.Popen(
        [sys.executable, "-c", _DAEMON, *words, ",".join(instances)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with daemon:
        assert await asyncio.to_thread(daemon.stdout.readline) == "started\n"
        daemon.kill()
    following = Containers(section, root, run, install)
    await following.open()
    try:
        assert following.problem is None
        found = await following.found()
        assert {one.container.instance for one in found} == set(instances)
        assert {one.state for one in found} == {"running"}
        # One is adopted; the other one is of no job any more.
        kept = next(one.container for one in found if one.container.instance == instances[0])
        assert await following.sweep([kept.instance], 3600) == 0  # both are too young
        assert await following.sweep([kept.instance], 0) == 1
        os.kill(kept.pid, signal.SIGKILL)
        assert (await following.ended(kept)).signal == 9
        await following.kill(kept)
        await until(lambda: _is_clean(following, install))
    finally:
        await following.sweep((), 0)
        await following.close()
    assert not json.loads((root / "storage/overlay-containers/containers.json").read_text())
