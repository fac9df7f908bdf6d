"""What every test leaves behind is counted: a leak fails the test that made it.

After a test and its fixtures have ended there must be no new descriptor, child process or thread;
an asyncio test must have ended its tasks before its loop is closed over them; and the whole run
leaves no file in the checkout. What fixtures of a wider scope open is counted when the run ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# An editor may save these meanwhile; a test would leave a database, a socket, a log.
SOURCES = (".py", ".md", ".sql", ".lock", ".cfg", ".toml", ".service", ".socket", ".json", ".yaml")

# In the background of a shell (`pytest &`) Ctrl-C is ignored, and so it would be by all that the
# tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

_before = pytest.StashKey[dict[str, set[str]]]()


def _held() -> dict[str, set[str]]:
    """What this process holds now, each thing by a name that says what it is."""
    fds = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the descriptor that listed the others
        if int(fd) > 2:  # pytest's capture moves the first three
            fds.add(f"{fd} -> {target}")
    children = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            children.update((task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that ended meanwhile; its children are another's now
    threads = {one.name for one in threading.enumerate()}
    return {"descriptor": fds, "child process": children, "thread": threads}


def _leaks(before: dict[str, set[str]]) -> str:
    after = _held()
    for thread in threading.enumerate():
        if thread.name not in before["thread"]:
            # One that was told to end (aiosqlite's) may still be on its last line.
            thread.join(timeout=1)
            after = _held()
    return ", ".join(
        f"{kind} {name}" for kind, names in after.items() for name in sorted(names - before[kind])
    )


@pytest.fixture(autouse=True)
def _count_what_is_held(request: pytest.FixtureRequest) -> None:
    # In a fixture, not in the set-up hook: those of a wider scope have run before it.
    if not _shares_a_loop(request.node):
        request.node.stash[_before] = _held()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Outermost, so that the test's own fixtures and its loop are gone when it counts."""
    yield
    before = item.stash.get(_before, None)
    if before is not None and (leaks := _leaks(before)):
        pytest.fail(f"leaked {leaks}; close what the test opens", pytrace=False)


def _shares_a_loop(item: pytest.Item) -> bool:
    """On a shared loop live shared things (the sandbox pool) that come and go at any time."""
    marker = item.get_closest_marker("asyncio")
    return marker is not None and marker.kwargs.get("loop_scope", "function") != "function"


@pytest.fixture
async def _tasks_end() -> AsyncIterator[None]:
    yield
    ours = {asyncio.current_task()}
    for _ in range(3):  # a task that was just cancelled or told needs its turn
        await asyncio.sleep(0)
    if left := asyncio.all_tasks() - ours:
        names = ", ".join(sorted(f"{task.get_name()} ({task.get_coro()})" for task in left))
        pytest.fail(f"leaked task {names}; await or cancel it", pytrace=False)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only asyncio tests have a loop; first in the list is last to end."""
    for item in items:
        if not isinstance(item, pytest.Function) or _shares_a_loop(item):
            continue
        if inspect.iscoroutinefunction(item.function):
            item.fixturenames.insert(0, "_tasks_end")


@pytest.fixture(autouse=True, scope="session")
def _the_run_leaves_nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    held, files = _held(), _strange_files()
    yield
    if leaks := _leaks(held):
        pytest.fail(f"the run leaked {leaks}; close what its fixtures open", pytrace=False)
    for _ in range(100):  # what is killed needs a moment
        if not (orphans := _orphans(tmp_path_factory.getbasetemp())):
            break
        time.sleep(0.05)
    if orphans:
        pytest.fail(f"the run leaked processes: {', '.join(orphans)}", pytrace=False)
    if left := sorted(_strange_files() - files):
        pytest.fail(f"the tests left in the checkout: {', '.join(left)}", pytrace=False)


def _orphans(temp: Path) -> list[str]:
    """Processes that the tests have started and whose parent is gone. A conmon never has one: those
    of this run name its folder; others are of a run beside this one."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                text = " ".join(words)
                is_ours = f"{ROOT}/" in text and not words[0].endswith("conmon")
                if parent == "1" and (is_ours or f"{temp}/" in text):
                    found.append(f"{folder.name} ({text[:200]})")
    return found


def _strange_files() -> set[str]:
    if not (ROOT / ".git").exists():
        return set()
    names = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    return {name for name in names if name and not name.endswith(SOURCES)}


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A folder in memory where that can be had, for tests in which processes are killed hundreds
    of times: that, unlike a power cut, loses no file."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="flowmonkey-test-", dir=memory) as name:
        yield Path(name)
