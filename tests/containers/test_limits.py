"""Each limit of a container is really held, by the kernel, while its code does its worst."""

from __future__ import annotations

import asyncio

import pytest

from flowmonkeyd.containers import RESOURCES, ContainerError
from tests.containers.inside import WAIT, go, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="session"),
]

_MIB = 1024 * 1024


async def test_more_memory_than_the_limit_ends_it_and_is_told_from_other_ends(containers, start):
    hog = await start(f"{WAIT}\nheld = []\nwhile True: held.append(bytearray(16 * {_MIB}))")
    go(hog)
    ended = await containers.ended(hog)
    assert (ended.signal, ended.oom) == (9, True)


async def test_memory_of_a_child_counts_too(containers, start):
    code = f"""
import subprocess, sys
hog = "held = []\\nwhile True: held.append(bytearray(16 * {_MIB}))"
print(subprocess.run([sys.executable, "-c", hog]).returncode)
"""
    parent = await start(f"{WAIT}\n{code}")
    go(parent)
    ended = await containers.ended(parent)
    assert (await containers.output(parent)).strip() == "-9"
    assert (ended.code, ended.signal, ended.oom) == (0, None, True)


async def test_a_full_tmp_is_an_error_and_counts_as_memory(printed):
    code = f"""
written = 0
try:
    with open("/tmp/full", "wb", 0) as file:
        while True:
            written += file.write(bytes({_MIB}))
except OSError as exc:
    print(exc.errno, written)
"""
    errno, written = (await printed(code, tmp_bytes=16 * _MIB)).split()
    assert (int(errno), int(written)) == (28, 16 * _MIB)  # ENOSPC


async def test_a_fork_bomb_stops_at_the_limit_of_processes(printed):
    code = """
import os
made = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except OSError as exc:
    print(exc.errno, made)
"""
    errno, made = (await printed(code)).split()
    assert int(errno) == 11  # EAGAIN
    # Besides them its own two: the init and this one.
    assert RESOURCES["light"].pids - 8 <= int(made) + 2 <= RESOURCES["light"].pids


async def test_descriptors_end_at_the_limit(printed):
    code = """
import os
try:
    while True:
        last = os.open("/dev/null", os.O_RDONLY)
except OSError as exc:
    print(exc.errno, last + 1)
"""
    assert (await printed(code)).split() == ["24", str(RESOURCES["light"].files)]  # EMFILE


async def test_two_busy_threads_get_the_share_of_one_class(containers, printed):
    """Its own clock and its own CPU time: how busy the machine is does not matter upwards."""
    code = """
import os, time
begun, used = time.monotonic(), time.process_time()
children = []
for _ in range(2):
    if (child := os.fork()) == 0:
        while time.monotonic() - begun < 1.5:
            pass
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
spent = os.times()
print((spent.children_user + spent.children_system) / (time.monotonic() - begun))
"""
    share = float(await printed(code))
    # A period more than the share may be used in a window that begins within a period.
    assert share <= RESOURCES["light"].cpus * 1.15


async def test_shared_memory_counts_as_memory(printed):
    code = f"""
try:
    with open("/dev/shm/full", "wb", 0) as file:
        while True:
            file.write(bytes({_MIB}))
except OSError as exc:
    print(exc.errno)
"""
    assert (await printed(code, tmp_bytes=16 * _MIB)).strip() == "28"


async def test_of_what_it_prints_a_megabyte_is_kept(containers, section, start):
    flood = await start(f"{WAIT}\nfor n in range(60000): print('x' * 200)")
    go(flood)
    await containers.ended(flood)
    log = containers.places.storage / "overlay-containers" / flood.id / "userdata/ctr.log"
    # The cap is looked at when a line has been written.
    assert log.stat().st_size <= section.logBytesMax + 64 * 1024
    assert len(await containers.output(flood)) <= 64 * 1024


async def test_a_program_that_is_not_there_is_said(containers, start):
    with pytest.raises(ContainerError) as refused:
        await start(command=("/no/such/program",))
    assert refused.value.code in ("UNAVAILABLE", "HANDLER_CRASHED")
    assert await containers.found() == []


async def test_an_image_that_is_not_there_is_said(containers, start):
    with pytest.raises(ContainerError) as refused:
        await start(image_id="0" * 64)
    assert refused.value.code == "NOT_FOUND"


async def test_a_gpu_that_is_not_there_is_said(start):
    with pytest.raises(ContainerError, match=r"gpu: .*containers\.gpuDevice") as refused:
        await start(resources="gpu")
    assert refused.value.code == "SANDBOX_UNAVAILABLE"


async def test_the_kernel_says_what_was_asked_for(containers, start):
    for name in ("light", "medium"):
        container, limits = await start(resources=name), RESOURCES[name]
        memory, swap, cpus, pids = container.groups.limits()
        assert (memory, swap, cpus, pids) == (limits.memory_bytes, 0, limits.cpus, limits.pids)


async def test_frozen_it_does_nothing_and_thawed_it_goes_on(containers, start):
    code = """
n = 0
while True:
    n += 1
    print(n)
    time.sleep(0.005)
"""
    ticking = await start(f"{WAIT}\n{code}")
    go(ticking)
    await until(lambda: containers.output(ticking))
    await containers.freeze(ticking)
    used = ticking.groups.cpu_ns()
    said = await containers.output(ticking)
    await asyncio.sleep(0.2)  # in which it would have printed some forty numbers
    assert await containers.output(ticking) == said
    assert ticking.groups.cpu_ns() == used
    assert [one.state for one in await containers.found()] == ["frozen"]
    await containers.thaw(ticking)

    async def goes_on() -> bool:
        return await containers.output(ticking) != said

    await until(goes_on)
    assert [one.state for one in await containers.found()] == ["running"]


async def test_freezing_twice_is_freezing_and_a_dead_one_cannot_be(containers, start):
    container = await start()
    await containers.thaw(container)
    await containers.freeze(container)
    await containers.freeze(container)
    await containers.kill(container)
    with pytest.raises(ContainerError) as refused:
        await containers.freeze(container)
    assert refused.value.code == "HANDLER_CRASHED"


async def test_one_that_starts_programs_all_the_time_can_be_frozen(containers, start):
    """Version 1 never gets a thread that waits in execve(2) for a frozen one of its process."""
    code = """
import os, subprocess, sys, threading
def again():
    while True:
        subprocess.run(["/bin/true"])
for _ in range(3):
    threading.Thread(target=again).start()
"""
    busy = await start(f"{WAIT}\n{code}")
    go(busy)
    for _ in range(20):
        await containers.freeze(busy)
        assert busy.groups.is_frozen()
        await containers.thaw(busy)


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("raise SystemExit(0)", (0, None)),
        ("raise SystemExit(7)", (7, None)),
        ("raise ValueError", (1, None)),
        ("import os; os.kill(os.getpid(), 9)", (137, 9)),
        ("import os; os.abort()", (134, 6)),
    ],
    ids=["zero", "seven", "traceback", "killed", "aborted"],
)
async def test_how_it_ended_is_told(containers, start, code, ending):
    container = await start(f"{WAIT}\n{code}")
    go(container)
    ended = await containers.ended(container)
    assert ((ended.code, ended.signal), ended.oom) == (ending, False)
    assert [one.state for one in await containers.found()] == ["exited"]


async def test_who_waits_for_the_end_hears_of_a_kill(containers, start):
    container = await start()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(containers.ended(container))
        await asyncio.sleep(0)
        await containers.kill(container)
    assert waiting.result().oom is False


async def test_what_it_is_can_be_read_by_the_next_daemon(containers, start):
    made = await start(role="warm", attempt=3, labels={"flow": "order"})
    [found] = await containers.found()
    assert found.container.instance == made.instance
    assert (found.container.pid, found.container.id) == (made.pid, made.id)
    assert found.container.first_uid == made.first_uid
    assert (found.role, found.attempt, found.state) == ("warm", 3, "running")
    assert found.labels["flow"] == "order"
