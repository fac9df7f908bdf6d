"""A real daemon with real containers, and handlers that do what a test says in their input.

Each test has flows of its own on a shared daemon; those that kill or stop theirs have one to
themselves. Without Podman, root or images everything here is skipped, loudly.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowmonkeyd.containers import Containers, installation, run_folder
from flowmonkeyd.settings import ContainersSection
from tests.crash.daemon import Client
from tests.system.conftest import RunningDaemon

STORE = Path(__file__).parents[2] / ".images"
PATIENCE_S = 40.0

# One handler that does as it is told, a word after the other, so that a test reads as one.
PYTHON = """
import os, time

def handle(input, ctx):
    state = ctx.checkpoint.load(default={"starts": 0, "done": [], "got": []})
    state["starts"] += 1
    ctx.log.info("start", starts=state["starts"], attempt=ctx.attempt)
    for number, word in enumerate(input["do"]):
        if number in state["done"]:
            continue
        what, _, more = word.partition(" ")
        if what == "nap":
            time.sleep(float(more))
        elif what == "save":
            state["done"].append(number)
            ctx.checkpoint.save(state)
            continue
        elif what == "pause":
            # The same handler, whether it goes on here or starts again from its checkpoint.
            data = ctx.pause.wait("waiting", event=more or None, max_wait_ms=input.get("maxWaitMs"),
                                  checkpoint=state)
            state["got"].append(data)
        elif what == "die":
            os._exit(int(more))
        elif what == "die-once":
            if state["starts"] == 1:
                os._exit(7)
        elif what == "hog":
            hog = bytearray()
            while True:
                hog += os.urandom(1) * 8_000_000
        elif what == "hang":
            while not ctx.cancelled:
                time.sleep(0.01)
            ctx.log.info("cancelled")
            time.sleep(60)
        elif what == "raise":
            raise ValueError(more)
        elif what == "fail-once":
            if ctx.attempt == 0:
                return ctx.failure("AGAIN", "once more")
        elif what == "extend":
            ctx.extend_ttl(int(more))
        elif what == "progress":
            ctx.progress(float(more), f"at {more}")
        elif what == "keep":
            ctx.checkpoint.save(os.urandom(int(more)), name="blob")
        elif what == "blob":
            state["blob"] = len(ctx.checkpoint.load("blob"))
        elif what == "print":
            print(more)
        elif what == "tell":
            print("told", ctx.secrets["token"])
            try:
                ctx.checkpoint.save({"token": ctx.secrets["token"]}, name="leak")
            except Exception as exc:
                state["refused"] = str(exc)
        elif what == "fetch":
            import urllib.request
            try:
                state["got"].append(urllib.request.urlopen(more, timeout=5).read().decode())
            except OSError as exc:
                state["got"].append(f"{type(exc).__name__}")
        state["done"].append(number)
    return {**state, "attempt": ctx.attempt, "pid": os.getpid()}
"""


def package(folder: Path, code: str = PYTHON, **manifest: Any) -> Path:
    """A stateful handler's folder; `manifest` updates its parts."""
    handler = {
        "type": "acme/doer",
        "version": "1.0.0",
        "stateful": True,
        "entrypoint": "handler.py:handle",
    } | manifest.pop("handler", {})
    execution = {
        "resources": "light",
        "checkpoint": {"required": True, "intervalMs": 30_000},
    } | manifest.pop("execution", {})
    folder.mkdir(parents=True, exist_ok=True)
    text = {"handler": handler, "execution": execution, **manifest}
    (folder / "handler.json").write_text(json.dumps(text))
    (folder / handler["entrypoint"].partition(":")[0]).write_text(code)
    return folder


class Doer:
    """A daemon, with what tests do to it all the time."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.daemon = RunningDaemon(folder)
        self.flags = (
            "--set",
            f"containers.imageStores={STORE.resolve()}",
            "--set",
            "jobs.backoffMs=50",
            *flags,
        )
        self._flows = 0
        self._client: Client | None = None

    def start(self) -> None:
        self.daemon.start(*self.flags)
        # Here, for a fixture may open it and a test may not.
        self._client = Client(self.daemon.socket)
        self._client.connect()

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    def stop(self) -> None:
        self._drop_client()
        self.daemon.stop()

    def kill9(self) -> None:
        self._drop_client()
        self.daemon.kill9()

    def crash(self) -> None:
        self._drop_client()
        self.daemon.crash()

    def _drop_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def publish(self, folder: Path) -> None:
        done = self.daemon.flowctl("handler", "publish", str(folder))
        assert done.returncode == 0, done.stderr

    def run(self, *words: str, wait: bool = True, **more: Any) -> dict[str, Any]:
        """An execution of the doer: ended, or (wait False) just begun."""
        self._flows += 1
        step = {
            "id": "do",
            "type": more.pop("type", "acme/doer"),
            "input": {"type": "full"},
            "outputKey": "out",
            **more.pop("step", {}),
        }
        name = f"f{self._flows}-{os.urandom(3).hex()}"
        flow = {"id": name, "version": "1.0.0", "initialStepId": "do", "steps": {"do": step}}
        self.client.must("PUT", "/v1/flows", flow)
        body = {"flow": name, "context": {"do": list(words), **more}}
        path = f"/v1/executions?waitMs={int(PATIENCE_S * 1000)}" if wait else "/v1/executions"
        return self.client.must("POST", path, body)

    def show(self, execution: dict[str, Any]) -> dict[str, Any]:
        return self.client.must("GET", f"/v1/executions/{execution['id']}")

    def ended(self, execution: dict[str, Any]) -> dict[str, Any]:
        path = f"/v1/executions/{execution['id']}?waitMs={int(PATIENCE_S * 1000)}"
        return self.client.must("GET", path)

    def until(
        self, execution: dict[str, Any], holds: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """The job of an execution, once it is so."""
        until_s = time.monotonic() + PATIENCE_S
        while True:
            job = self.job(execution)
            if job is not None and holds(job):
                return job
            assert time.monotonic() < until_s, f"it never came to that: {job}"
            time.sleep(0.01)

    def job(self, execution: dict[str, Any]) -> dict[str, Any] | None:
        items = self.client.must("GET", f"/v1/jobs?execution={execution['id']}")["items"]
        return items[0] if items else None

    def events(self, execution: dict[str, Any]) -> list[dict[str, Any]]:
        return self.client.pages(f"/v1/executions/{execution['id']}/events")

    def types(self, execution: dict[str, Any]) -> list[str]:
        return [one["type"] for one in self.events(execution)]

    def logs(self, execution: dict[str, Any]) -> list[str]:
        path = f"/v1/executions/{execution['id']}/logs"
        return [one["message"] for one in self.client.pages(path)]

    def history(self, execution: dict[str, Any]) -> list[dict[str, Any]]:
        return self.client.pages(f"/v1/executions/{execution['id']}/history")

    def agents(self, instance: str = "") -> list[int]:
        """The agents of this daemon's containers, or of one, as the host counts processes."""
        run = f"/{self.install()}/c/{instance}"
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                mounts = Path(f"/proc/{pid}/mountinfo").read_text()
            except OSError:
                continue
            is_agent = b"/usr/lib/flowmonkey/agent" in command and b"podman-init" not in command
            if is_agent and run in mounts:
                found.append(int(pid))
        return sorted(found)

    def claimed(self, job: dict[str, Any]) -> str:
        """The last instance that had a job."""
        events = self.client.pages(f"/v1/executions/{job['executionId']}/events")
        return [one["data"]["instance"] for one in events if one["type"] == "job.claimed"][-1]

    def install(self) -> str:
        """The folder below /run of this installation."""
        return f"flowmonkey-{installation(self.daemon.data_dir / 'containers')}"

    def clear(self) -> None:
        """Cancel what a test has left, and end: nothing may be there any more."""
        if not self.daemon.is_running:
            self.start()
        for job in self.client.pages("/v1/jobs?"):
            if job["finishedAt"] is None:
                self.client.ask("POST", f"/v1/executions/{job['executionId']}/cancel", {})
        self.stop()
        left = self.agents()
        if left:
            self.sweep()
        assert not left

    def sweep(self) -> None:
        """Remove all containers of this daemon, which does not run."""
        asyncio.run(self._sweep())

    async def _sweep(self) -> None:
        root = self.daemon.data_dir / "containers"
        install = installation(root)
        driver = Containers(ContainersSection(), root, run_folder("", install), install)
        await driver.open()
        await driver.sweep((), 0)
        await driver.close()


def skip_without_containers() -> None:
    if os.geteuid() != 0:
        pytest.skip("NO container is tested: not root")
    if shutil.which("podman") is None:
        pytest.skip("NO container is tested: no podman; script/setup installs it")
    if not (STORE / "overlay-images").is_dir():
        pytest.skip("NO container is tested: no .images; script/setup makes them")


@pytest.fixture(scope="module")
def doer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doer]:
    """A daemon with the doer published, for a whole file."""
    yield from _doer(tmp_path_factory)


@pytest.fixture
def own_doer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doer]:
    """The same, for one test that stops, kills or bends it."""
    yield from _doer(tmp_path_factory)


def _doer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doer]:
    skip_without_containers()
    folder = tmp_path_factory.mktemp("fm")
    made = Doer(folder)
    made.start()
    try:
        made.publish(package(folder / "doer"))
        yield made
    finally:
        made.clear()
