"""The real agents as plain processes, and who listens to them in these tests."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from pathlib import Path

from flowmonkeyd.agentmodel import Assignment
from flowmonkeyd.agents import Agent
from flowmonkeyd.errors import Invalid
from sandbox import nodejs

ROOT = Path(__file__).parents[2]
HANDLERS = Path(__file__).parent / "handlers"
PATIENCE_S = 30.0
LANGUAGES = ("python", "node")


def command(language: str) -> list[str]:
    if language == "python":
        return ["/usr/bin/python3", "-I", str(ROOT / "images/agent/agent.py")]
    return [str(nodejs.find(None)), str(ROOT / "images/agent/agent.cjs")]


async def until(is_so):
    """Wait for what nobody tells."""
    for _ in range(int(PATIENCE_S / 0.005)):
        if is_so():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError


class Cut(Exception):
    """The daemon is gone, in the middle of a question."""


class Keeper:
    """Keeps in memory what a daemon keeps in tables, each question once.

    `cuts`: at these questions the daemon is lost, {seq: "before" or "after" the commit}.
    """

    def __init__(self) -> None:
        self.lines = []
        self.progress = []
        self.saved = {}
        self.settled = []
        self.pauses = []
        self.seqs = []
        self.cuts = {}
        self.ttl_ms = 60_000
        self.context = b'{"k": [1, 2]}'
        self.happened = asyncio.Event()

    async def until(self, is_so):
        async with asyncio.timeout(PATIENCE_S):
            while not is_so(self):
                self.happened.clear()
                await self.happened.wait()

    def messages(self, *streams):
        return [one.message for one in self.lines if one.stream in streams]

    def on_log(self, line):
        self.lines.append(line)
        self.happened.set()

    def on_progress(self, progress):
        self.progress.append(progress)
        self.happened.set()

    async def on_checkpoint(self, wanted, blob):
        if wanted.name == "refused":
            raise Invalid("not this one", "NOT_THIS")
        data = blob.data if blob.file is None else blob.file.read_bytes()
        with self._once(wanted) as is_new:
            if is_new:
                self.saved[wanted.name] = dataclasses.replace(blob, data=data, file=None)
                self.settled.append(wanted.settled)

    async def on_clear(self, wanted):
        with self._once(wanted) as is_new:
            for name in [wanted.name] if wanted.name else list(self.saved):
                if is_new:
                    self.saved.pop(name, None)

    async def on_pause(self, wanted, blob):
        with self._once(wanted) as is_new:
            if is_new:
                self.pauses.append(wanted)
                if blob is not None:
                    self.saved[wanted.name] = blob

    async def on_extend(self, wanted):
        with self._once(wanted) as is_new:
            self.ttl_ms += wanted.ms if is_new else 0
        return self.ttl_ms

    async def on_load(self, name):
        return self.saved.get(name)

    async def on_context(self):
        return self.context

    @contextlib.contextmanager
    def _once(self, wanted):
        """One transaction, in which a question counts the first time."""
        if self.cuts.get(wanted.seq) == "before":
            del self.cuts[wanted.seq]
            raise Cut
        is_new = wanted.seq not in self.seqs
        yield is_new
        if is_new:
            self.seqs.append(wanted.seq)
        self.happened.set()
        if self.cuts.pop(wanted.seq, None):
            raise Cut


class Started:
    """An agent's process and the daemon's end of its line."""

    packages: Path

    def __init__(self, language: str, folder: Path) -> None:
        self.language = language
        self.folder = folder
        self.spool = folder / "spool"
        self.spool.mkdir(exist_ok=True)
        self.instance = secrets.token_hex(16)
        self.agent = self.another_daemon()
        self.process = None

    def another_daemon(self, **more) -> Agent:
        self.agent = Agent(self.instance, self.folder, self.spool, **more)
        return self.agent

    async def start(self) -> None:
        await self.agent.open()
        env = {"FLOWMONKEY_INSTANCE": self.instance, "PATH": "/usr/bin:/bin"}
        args = [*command(self.language), str(self.folder / "agent.sock")]
        self.process = await asyncio.create_subprocess_exec(*args, env=env)

    async def give(self, name: str, input=None, **more) -> None:
        await self.agent.connected(PATIENCE_S)
        await self.agent.give(self.task(name, input, **more), PATIENCE_S)

    async def run(self, name: str, input=None, keeper=None, **more):
        """The answer of a handler that neither pauses nor is lost."""
        await self.give(name, input, **more)
        return await self.result(keeper or Keeper())

    async def result(self, keeper):
        async with asyncio.timeout(PATIENCE_S):
            result = await self.served(keeper)
            self.agent.acknowledge(result)
            assert await self.process.wait() == 0
        return result.answer or result

    async def served(self, keeper):
        """What the first daemon that is not lost is told in the end."""
        while True:
            try:
                return await self.agent.serve(keeper)
            except Cut:
                await self.restart()

    async def restart(self):
        """Another daemon in the place of this one, which has forgotten everything."""
        await self.agent.close()
        self.another_daemon(blob_max_bytes=16 * 1024 * 1024)
        await self.agent.open()

    def task(self, name: str, input=None, **more) -> Assignment:
        file = {"python": "handler.py", "node": "handler.js"}[self.language]
        given = {
            "attempt": 1,
            "job_id": "job",
            "task_id": "task",
            "package": str(self.packages / self.language),
            "entrypoint": f"{file}:{name}",
            "execution_id": "execution",
            "flow_id": "flow",
            "step_id": "step",
            "step_attempt": 0,
            "tenant_id": "default",
            "has_input": input is not None,
            "input": input,
            "config": {},
            "secrets": {},
            "heartbeat_ms": 5000,
            "interval_ms": 30_000,
            "checkpoint_max_bytes": 16 * 1024 * 1024,
            "checkpoints": {},
            "ttl_ms": 60_000,
            "ttl_soft_ms": 50_000,
            "ttl_hard_ms": 100_000,
            "active_ms": 0,
            "pause_max_ms": 1_000_000,
        }
        return Assignment(**{**given, **more})

    async def end(self) -> None:
        await self.agent.close()
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        assert not list(self.spool.iterdir()), "a blob was left behind"
