"""What stateful handlers cost: warm, specialised and cold starts, pauses, checkpoints, images.

Real containers of the checkout's images on a private storage; each row is a ratio to a baseline of
the same run. Needs root, Podman and `.images` (script/setup makes them).

    python benchmarks/containers.py [--rounds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# Before this folder, where another sandbox.py is.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flowmonkeyd.agentmodel import Assignment, Result
from flowmonkeyd.attempts import boot_id, boottime_ns
from flowmonkeyd.containers import Containers, installation
from flowmonkeyd.documents.archive import pack_files
from flowmonkeyd.instances import SPECIALISED, Instance, Instances
from flowmonkeyd.jobmodel import Fence, JobPlan, NewCheckpoint
from flowmonkeyd.model import Lane
from flowmonkeyd.packages import Packages
from flowmonkeyd.settings import ContainersSection
from flowmonkeyd.testing import FlowHarness
from flowmonkeyd.warm import Kind

STORE = Path(__file__).parents[1] / ".images"
RUNTIMES = {
    "python": "localhost/flowmonkey/runtime-python311:latest",
    "node": "localhost/flowmonkey/runtime-node20:latest",
}
FILES = 130  # of the package that a generic container is given
HANDLER = "def handle(input, ctx):\n    return 1\n"
ENTRY = "handler.py:handle"
BARE = ("/usr/bin/python3", "-S", "-E", "-c", "pass")
CHECKPOINT_BYTES = 64 * 1024


class Listener:
    """Keeps nothing; what a handler of one line says is its result."""

    def on_log(self, line: object) -> None: ...

    def on_progress(self, progress: object) -> None: ...


def assignment(package: str) -> Assignment:
    return Assignment(
        *(1, "job", "task", package, ENTRY, "execution", "flow", "step", 0, "default"),
        has_input=True,
        input={"n": 1},
        config={},
        secrets={},
        heartbeat_ms=5000,
        interval_ms=30_000,
        checkpoint_max_bytes=10_000_000,
        checkpoints={},
        ttl_ms=3_600_000,
        ttl_soft_ms=3_600_000,
        ttl_hard_ms=3_600_000,
        active_ms=0,
    )


async def answered(one: Instance, package: str) -> None:
    await one.agent.give(assignment(package), 10.0)
    said = await one.agent.serve(Listener())  # type: ignore[arg-type]
    assert isinstance(said, Result), said
    assert said.answer is not None, said
    assert said.answer["outcome"] == "success", said


def shown(what: str, ours: list[float], against: str, base: float, goal: float) -> None:
    """A row: medians and 95th percentiles in ms, the ratio, the goal."""
    ours = sorted(one * 1000 for one in ours)
    p50, p95 = statistics.median(ours), ours[max(0, round(len(ours) * 0.95) - 1)]
    ratio = p50 / (base * 1000)
    verdict = "ok" if ratio <= goal else "ABOVE"
    print(
        f"{what:46} {p50:9.2f} ms p50 {p95:9.2f} p95 | {ratio:7.3f} x {against}"
        f" ({base * 1000:.2f} ms), goal {goal}: {verdict}"
    )


_ECHO = """
import socket, sys
one = socket.socket(socket.AF_UNIX)
one.connect(sys.argv[1])
while data := one.recv(65536):
    one.sendall(data)
"""


async def ping_pong(folder: Path, rounds: int = 60) -> float:
    """A bare round trip of a task's bytes over a Unix socket, from this loop to another Python
    process that sends them back, in seconds. Both were idle before, as a warm container is."""
    loop = asyncio.get_running_loop()
    payload = json.dumps(assignment(SPECIALISED).message("i" * 32)).encode()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "echo"))
        listening.listen()
        listening.setblocking(False)
        child = subprocess.Popen([sys.executable, "-c", _ECHO, str(folder / "echo")])
        one, _ = await loop.sock_accept(listening)
        samples = []
        with one:
            for _ in range(rounds):
                await asyncio.sleep(0.05)
                began = time.perf_counter()
                await loop.sock_sendall(one, payload)
                left = len(payload)
                while left:
                    left -= len(await loop.sock_recv(one, left))
                samples.append(time.perf_counter() - began)
        child.wait()
    return statistics.median(samples)


class Place:
    """A driver and what starts instances on it, on a storage of its own."""

    def __init__(self, folder: Path, run: Path) -> None:
        root = folder / "containers"
        section = ContainersSection(imageStores=(str(STORE.resolve()),))
        self.folder = folder
        self.containers = Containers(section, root, run, installation(root))
        self.instances = Instances(self.containers, folder / "spool", ())
        (folder / "spool").mkdir()
        self.package = folder / "package"
        self.package.mkdir()
        (self.package / "handler.py").write_text(HANDLER)
        for number in range(FILES - 1):
            (self.package / f"m{number}.py").write_text(f"VALUE = {number}\n" * 40)

    async def kind(self, runtime: str) -> Kind:
        image_id = await self.containers.image_id(RUNTIMES[runtime])
        assert image_id is not None, "run script/setup: it makes the images"
        return Kind(runtime, image_id, runtime, "light", False)

    async def start(self, kind: Kind, specialise: bool = False) -> Instance:
        one = await self.instances.start(kind)
        if specialise:
            one.specialise(self.package)
        return one

    async def rest(self, path: str, method: str = "POST", **params: Any) -> Any:
        return await self.containers._podman.call(method, path, params)


async def starts(place: Place, rounds: int) -> None:
    """Warm, specialised and cold starts to the first result."""
    kind = await place.kind("python")
    warm, specialised, cold = [], [], []
    for _ in range(rounds):
        one = await place.start(kind, specialise=True)
        # As one of a handler's own image, which has imported it before there is a job.
        assert await one.agent.prepare(SPECIALISED, ENTRY, 10.0) is None
        await asyncio.sleep(0.05)
        began = time.perf_counter()
        await answered(one, SPECIALISED)
        warm.append(time.perf_counter() - began)
        await one.kill()
        one = await place.start(kind)
        began = time.perf_counter()
        await asyncio.to_thread(one.specialise, place.package)
        await answered(one, SPECIALISED)
        specialised.append(time.perf_counter() - began)
        await one.kill()
        began = time.perf_counter()
        one = await place.start(kind, specialise=True)
        await answered(one, SPECIALISED)
        cold.append(time.perf_counter() - began)
        await one.kill()
    one = await place.start(kind, specialise=True)
    executed = [await timed(lambda: executing(place, one)) for _ in range(rounds)]
    await one.kill()
    run = [await timed(lambda: podman_run(place, kind.image_id)) for _ in range(rounds)]
    base = statistics.median(executed)
    trip = await ping_pong(place.folder)
    shown("warm: given its task to result", warm, "REST exec of true", base, 0.02)
    shown("warm, the same", warm, "bare socket round trip", trip, 10)
    shown(f"specialised ({FILES} files), to result", specialised, "cold", median(cold), 0.1)
    shown("cold: start to result", cold, "podman run --rm", median(run), 0.8)
    node = await place.kind("node")
    cold_node = []
    (place.package / "handler.js").write_text("exports.handle = async () => 1;\n")
    for _ in range(max(3, rounds // 4)):
        began = time.perf_counter()
        one = await place.start(node)
        cold_node.append(time.perf_counter() - began)
        await one.kill()
    shown("cold Node: start to its agent's first word", cold_node, "podman run", median(run), 0.8)


def median(samples: list[float]) -> float:
    return statistics.median(samples)


async def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def executing(place: Place, one: Instance) -> None:
    """`true` in a container by Podman's own way: made, started, and its output to the end."""
    await asyncio.to_thread(_execute, place.containers.places.socket, one.container.id)


def _execute(path: Path, container: str) -> None:
    body = json.dumps({"Cmd": ["/usr/bin/true"], "AttachStdout": True})
    made = _asked(path, f"/containers/{container}/exec", body)
    said = _asked(path, f"/exec/{json.loads(made)['Id']}/start", json.dumps({"Detach": False}))
    assert said == b"", said


def _asked(path: Path, what: str, body: str) -> bytes:
    """The body of an answer, or all of a stream that it becomes."""
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(path))
        lines = [f"POST /v4.0.0/libpod{what} HTTP/1.1", "Host: podman", "Connection: close"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", body]
        one.sendall("\r\n".join(lines).encode())
        answer = b""
        while data := one.recv(65536):
            answer += data
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.split()[1] in (b"200", b"201", b"101"), answer
    return rest


async def podman_run(place: Place, image_id: str) -> None:
    """As a person would: with a storage, a configuration and events of its own."""
    conf = place.folder / "storage.conf"
    if not conf.exists():
        conf.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{place.folder}/plain"\n'
            f'runroot = "{place.folder}/plain-run"\n[storage.options]\n'
            f'additionalimagestores = ["{STORE.resolve()}"]\n'
        )
    words = ["podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs"]
    words += ["--events-backend", "file", "run", "--rm", "--network", "none"]
    words += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=512:512", image_id, *BARE]
    child = await asyncio.create_subprocess_exec(
        *words,
        env={"PATH": os.environ["PATH"], "CONTAINERS_STORAGE_CONF": str(conf)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()


async def frozen(place: Place, rounds: int) -> None:
    """A paused job that goes on, against Podman's own unpause."""
    one = await place.start(await place.kind("python"), specialise=True)
    ours, theirs = [], []
    for _ in range(rounds):
        await place.instances.freeze(one)
        began = time.perf_counter()
        await place.instances.thaw(one)
        await one.agent.ping(5.0)
        ours.append(time.perf_counter() - began)
        await place.rest(f"/containers/{one.container.id}/pause")
        began = time.perf_counter()
        await place.rest(f"/containers/{one.container.id}/unpause")
        theirs.append(time.perf_counter() - began)
    await one.kill()
    shown("frozen: thawed, and its agent has answered", ours, "REST unpause", median(theirs), 0.5)


async def memory(place: Place, count: int = 20) -> None:
    """Private memory of warm containers, and of bare interpreters with the same agent."""
    kind = await place.kind("python")
    bare_root = Path(__file__).parents[1] / "images/agent/agent.py"
    children = [
        subprocess.Popen(
            ["/usr/bin/python3", "-I", "-B", str(bare_root)],
            env={"FLOWMONKEY_INSTANCE": secrets.token_hex(16)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(count)
    ]
    held = [await place.start(kind) for _ in range(count)]
    await asyncio.sleep(1.0)
    bare = sum(private_bytes(child.pid) for child in children)
    agents = [pid for one in held for pid in agent_pids(one)]
    warm = sum(map(private_bytes, agents))
    for child in children:
        child.kill()
        child.wait()
    for one in held:
        await one.kill()
    ratio = warm / bare
    verdict = "ok" if ratio <= 1.3 else "ABOVE"
    print(
        f"{f'{len(agents)} idle warm Python agents, private memory':46} {warm / 2**20:9.1f} MiB"
        f" | {ratio:7.3f} x bare interpreters with the agent ({bare / 2**20:.1f} MiB), goal 1.3:"
        f" {verdict}"
    )


def agent_pids(one: Instance) -> list[int]:
    assert one.container.groups is not None
    found = []
    for pid in one.container.groups.pids():
        with suppress(OSError):
            if b"agent.py" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[2]:
                found.append(pid)
    return found


def private_bytes(pid: int) -> int:
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith("Private_")) * 1024


async def images(place: Place, rounds: int, count: int) -> None:
    """A handler's image after a change of its code, against a `podman build` all cached."""
    environment = place.containers.places.environment()
    command = [sys.executable, "-m", "images.build"]
    where = ["--root", str(place.containers.places.storage), "--store", str(STORE.resolve())]
    packages = Packages(place.folder / f"packages-{count}")
    packages.open()
    files = {f"m{n}.py": f"VALUE = {n}\n".encode() * 40 for n in range(count - 1)}
    files["handler.json"] = b'{"handler": {"type": "x", "version": "1.0.0"}}'
    ours = []
    for number in range(rounds):
        # What publishing does, bytecode included, is not the image's.
        got = packages.receive(
            pack_files(files | {"handler.py": f"{HANDLER}# {number}\n".encode()})
        )
        folder = str(packages.path(got.digest))
        began = time.perf_counter()
        words = [*command, *where, "handler", "python311", got.digest, folder]
        ran = await asyncio.to_thread(subprocess.run, words, capture_output=True)
        assert ran.returncode == 0, ran.stderr.decode()
        ours.append(time.perf_counter() - began)
    context = place.folder / f"context-{count}"
    shutil.copytree(folder, context / "bundle")
    (context / "Containerfile").write_text(f"FROM {RUNTIMES['python']}\nCOPY bundle /app\n")
    words = ["podman", "build", "--isolation", "oci", "--network", "none", "--timestamp", "0"]
    theirs = []
    for number in range(rounds + 1):
        began = time.perf_counter()
        ran = await asyncio.to_thread(
            subprocess.run, [*words, str(context)], env=environment, capture_output=True
        )
        assert ran.returncode == 0, ran.stderr.decode()
        if number:  # the first fills the cache
            theirs.append(time.perf_counter() - began)
    what = f"image of {count} modules after a change of one"
    shown(what, ours, "cached podman build", median(theirs), 2)


async def checkpoints(folder: Path, rounds: int) -> None:
    """64 KiB kept by the engine, against write and fsync of a file of as much."""
    data = os.urandom(CHECKPOINT_BYTES)
    async with FlowHarness(handlers={"x": lambda i, c: None}, path=folder / "fm.db") as fm:
        step = {"id": "a", "type": "x", "config": {}, "input": {"type": "full"}}
        fm.apply({"id": "f", "version": "1.0.0", "initialStepId": "a", "steps": {"a": step}})
        await fm.create("f", {})
        (task,) = await fm.engine.claim(Lane.SANDBOX, 1, "benchmark")
        plan = JobPlan("light", 10_000, 3_600_000, 3_600_000, 3_600_000, 3, 10**7)
        job = await fm.engine.open_job(task, plan)
        job = await fm.engine.claim_instance(task.key, task.lease_id, job.key, "i" * 32, None)
        fence = Fence(task.key, task.lease_id, job.key, "i" * 32)
        await fm.engine.begin_active(fence, boot_id(), boottime_ns())
        ours, theirs = [], []
        for seq in range(1, rounds * 5 + 1):
            kept = NewCheckpoint("default", len(data), "bytes", "none", "0" * 64, data)
            began = time.perf_counter()
            await fm.engine.save_checkpoint(fence, seq, kept, False, boottime_ns())
            ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            fd = os.open(folder / "file", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(fd, data)
            os.fsync(fd)
            os.close(fd)
            theirs.append(time.perf_counter() - began)
    shown("a checkpoint of 64 KiB, committed", ours, "write + fsync", median(theirs), 3)


async def measure(rounds: int) -> None:
    # Side by side with the package, so that a container is given it by hard links.
    folder = Path(tempfile.mkdtemp(prefix="fm-bench-", dir="/var/tmp"))
    run = Path(tempfile.mkdtemp(prefix="fm-b-", dir="/run"))
    place = Place(folder, run)
    try:
        await place.containers.open()
        assert place.containers.problem is None, place.containers.problem
        async with asyncio.TaskGroup() as group:
            working = group.create_task(place.instances.run())
            await asyncio.sleep(0)
            await starts(place, rounds)
            await frozen(place, rounds)
            await memory(place)
            working.cancel()
        await checkpoints(folder, rounds)
        for count in (10, FILES):
            await images(place, max(3, rounds // 4), count)
    finally:
        if place.containers.problem is None:
            await place.containers.sweep((), 0)
        await place.containers.close()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(run, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    asyncio.run(measure(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
