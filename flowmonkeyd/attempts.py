"""One attempt of a job: the conversation with its agent, under the clocks that bound it.

What the agent asks to last is committed under the attempt's fence before it is answered. Beside the
conversation runs a watch over what the handler cannot be trusted with: its time to live, its
heartbeats, its checkpoints, and the disk's knowledge of how long it was active. Whatever happens
first ends the attempt in one of a few ways (`End`). Time is CLOCK_BOOTTIME: it goes on in a suspend
and does not jump with the wall clock; a frozen container's time does not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import secrets
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmonkeyd.agentblobs import move, not_kept
from flowmonkeyd.agentmodel import (
    BlobHead,
    Checkpoint,
    Clear,
    Extend,
    LogLine,
    Pause,
    Progress,
    Result,
)
from flowmonkeyd.agents import Blob
from flowmonkeyd.agentwire import ProtocolError
from flowmonkeyd.clock import Clock
from flowmonkeyd.engine import Engine
from flowmonkeyd.errors import Conflict, FlowMonkeyError, Invalid, LeaseLost, Unavailable
from flowmonkeyd.instances import Instance
from flowmonkeyd.jobmodel import Fence, Job, JobState, NewCheckpoint
from flowmonkeyd.jobmodel import Progress as JobProgress
from flowmonkeyd.loglines import Lines
from flowmonkeyd.masking import Masks
from flowmonkeyd.model import StepError, Task, Wait, WaitKind

__all__ = ["Attempt", "End", "Rules", "boot_id", "boottime_ns", "ttl_warning_ms"]

log = logging.getLogger(__name__)

# Contract: stale after three heartbeats, a checkpoint is missed after two intervals.
STALE_HEARTBEATS = 3
MISSED_INTERVALS = 2
# How often progress is written at the most.
PROGRESS_EVERY_S = 1.0
# A warning comes this share of the time to live before its end, where `soft` is not earlier.
_WARN_SHARE, _WARN_MIN_MS = 10, 10_000
_PART_BYTES = 1024 * 1024


def boottime_ns() -> int:
    """CLOCK_BOOTTIME (clock_gettime(2))."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Which boot of the machine this is (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def ttl_warning_ms(ttl_ms: int, soft_ms: int) -> int:
    """After how much active time the handler is warned: at `soft`, or in time before the end."""
    return min(soft_ms, ttl_ms - min(max(ttl_ms // _WARN_SHARE, _WARN_MIN_MS), ttl_ms // 2))


@dataclass(frozen=True, slots=True)
class Rules:
    """What bounds an attempt, from manifest and settings."""

    heartbeat_ms: int
    interval_ms: int  # between checkpoints
    pause_max_ms: int  # 0: the handler may not pause


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ended. One of: `result` is the agent's last word; `paused`, committed, by the
    handler or by hand; `lost` without a result, for another attempt to go on; `failed` for good;
    `superseded`, another instance or nobody has the job; `detached`, the daemon ends and the
    container runs on. `at_ns` is when its active time ended, None for its last heartbeat."""

    result: Result | None = None
    paused: bool = False
    lost: StepError | None = None
    failed: StepError | None = None
    superseded: bool = False
    detached: bool = False
    at_ns: int | None = None


class Attempt:
    """The Listener of an agent, for one job on one instance. `run` once; the rest is asked of it
    from outside while it runs."""

    def __init__(
        self,
        task: Task,
        job: Job,
        instance: Instance,
        engine: Engine,
        clock: Clock,
        rules: Rules,
        checkpoints: Path,
        lines: Lines,
        masks: Masks | None,
        active_ns: int,
    ) -> None:
        """`checkpoints` is the folder of large ones; `active_ns` what of the job's time to live
        was used before."""
        self.job = job
        self.fence = Fence(task.key, task.lease_id, job.key, job.instance or "")
        self.instance = instance
        self._task = task
        self._engine = engine
        self._clock = clock
        self._rules = rules
        self._folder = checkpoints / str(job.key)
        self._lines = lines
        self._masks = masks
        self._active_before_ns = active_ns
        self._began_ns = boottime_ns()
        self._ttl_ms = job.ttl_ms
        self._warned_ttl = self._warned_checkpoint = False
        self._checkpoint_s = time.monotonic()
        self._beat_s = time.monotonic()
        self._progress: JobProgress | None = None
        self._progress_s = 0.0
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._end: asyncio.Future[End] = asyncio.get_running_loop().create_future()

    async def run(self) -> End:
        """Until it ends. Cancelled, it leaves the container as it is."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._converse(), name=f"agent-{self.instance.id}"),
                group.create_task(self._watch(), name=f"watch-job-{self.job.id}"),
                group.create_task(self._see_end(), name=f"end-job-{self.job.id}"),
            ]
            try:
                return await self._end
            finally:
                for task in tasks:
                    task.cancel()

    def detach(self) -> None:
        """The daemon ends: the container goes on alone."""
        self._ended(End(detached=True))

    async def hold(self, by: str, reason: str | None) -> None:
        """Pause it where it is, for somebody. Raises Conflict when it has just ended."""
        wake_at_ms = None
        if self._rules.pause_max_ms:
            wake_at_ms = self._clock.now_ms() + self._rules.pause_max_ms
        reason = reason or f"paused by {by}"
        async with self._turn:
            if self._end.done() or self.job.state is JobState.PAUSED:
                raise Conflict("cannot pause the job: it has just ended or paused")
            at_ns = await self._tell()
            self.job = await self._engine.pause_by_hand(self.fence, by, reason, wake_at_ms, at_ns)
            self._ended(End(paused=True, at_ns=at_ns))

    def _ended(self, end: End) -> None:
        if not self._end.done():
            self._end.set_result(end)

    @contextlib.asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        """The tables are told one thing after the other, and nothing after the end: what has paused
        the job meanwhile has ended the lease, and another lease is asked again."""
        async with self._turn:
            if self._end.done():
                await asyncio.get_running_loop().create_future()  # `run` cancels this
            yield

    # --- the conversation ------------------------------------------------------------------------

    async def _converse(self) -> None:
        try:
            while True:
                end = await self.instance.agent.serve(self)
                if isinstance(end, Result):
                    async with self._turn:
                        if self._end.done():
                            self.instance.agent.hang_up()  # it says it again to who goes on
                        else:
                            self._ended(End(result=end, at_ns=await self._tell()))
                    return
                if self.job.state is JobState.PAUSED:
                    self._ended(End(paused=True))
                    return
                # An answer that was lost with a daemon: this pause is over already.
                resume = self.job.resume
                by, data = (resume.by, resume.data) if resume is not None else ("hand", None)
                self.instance.agent.resume(by, data, self.job.last_pause_ms)
        except LeaseLost:
            self._ended(End(superseded=True))
        except ProtocolError as exc:
            message = f"the agent broke the protocol: {exc}"
            self._ended(End(lost=StepError("HANDLER_CRASHED", message), at_ns=boottime_ns()))

    async def _see_end(self) -> None:
        how = await asyncio.shield(self.instance.exit)
        at_ns = boottime_ns()
        # What it said before it ended may still be on its way to us.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.shield(self._end)
                return
        if how.oom:
            error = StepError("MEMORY_LIMIT", "the container was killed for want of memory")
        elif how.code is None and how.signal is None:
            error = StepError("JOB_LOST", "the container was lost")
        else:
            what = f"signal {how.signal}" if how.signal else f"code {how.code}"
            message = f"the handler's process ended with {what} and no result"
            error = StepError("HANDLER_CRASHED", message)
        self._ended(End(lost=error, at_ns=at_ns))

    def on_log(self, line: LogLine) -> None:
        """At our clock's time: the container's is the handler's to play with."""
        message = line.message.encode(errors="replace").decode()
        fields = line.fields or None
        self._lines.add((self._clock.now_ms(), line.stream, line.level, message, fields))

    def on_progress(self, progress: Progress) -> None:
        message = progress.message
        if message is not None and self._masks is not None:
            message = self._masks.text(message)
        self._progress = JobProgress(progress.percent, message, progress.eta_ms)
        self._wake.set()

    async def on_checkpoint(self, wanted: Checkpoint, blob: Blob) -> None:
        await self._check_for_secrets(wanted.name, blob)
        async with self._in_turn(), self._stored(wanted.name, blob) as checkpoint:
            applied = await self._engine.save_checkpoint(
                self.fence, wanted.seq, checkpoint, wanted.settled, boottime_ns()
            )
            if not applied:  # it was, before its answer was lost
                self._discard(checkpoint)
            self._saved()

    async def on_clear(self, wanted: Clear) -> None:
        async with self._in_turn():
            await self._engine.clear_checkpoints(self.fence, wanted.seq, wanted.name)

    async def on_pause(self, wanted: Pause, blob: Blob | None) -> None:
        if not self._rules.pause_max_ms:
            message = "cannot pause: the manifest sets execution.pause.enabled = false"
            raise Invalid(message, code="PAUSE_NOT_ENABLED")
        wait_ms = min(wanted.max_wait_ms or self._rules.pause_max_ms, self._rules.pause_max_ms)
        reason, event, event_filter = wanted.reason, wanted.event, wanted.filter
        if self._masks is not None:
            reason, event_filter = self._masks.text(reason), self._masks.tree(event_filter)
            event = None if event is None else self._masks.text(event)
        wake_at_ms = self._clock.now_ms() + wait_ms
        wait = Wait(WaitKind.PAUSE, wake_at_ms, reason, event, event_filter)
        if blob is not None and wanted.name is not None:
            await self._check_for_secrets(wanted.name, blob)
        async with self._in_turn(), contextlib.AsyncExitStack() as stack:
            checkpoint = None
            if blob is not None and wanted.name is not None:
                stored = self._stored(wanted.name, blob)
                checkpoint = await stack.enter_async_context(stored)
            at_ns = await self._tell()
            self.job = await self._engine.pause_job(self.fence, wanted.seq, wait, checkpoint, at_ns)

    async def on_extend(self, wanted: Extend) -> int:
        async with self._in_turn():
            self.job = await self._engine.extend_ttl(self.fence, wanted.seq, wanted.ms)
        self._ttl_ms = self.job.ttl_ms
        self._warned_ttl = False
        self._wake.set()
        return self._ttl_ms

    async def on_load(self, name: str) -> Blob | None:
        found = await self._engine.checkpoint_of(self.job.key, name)
        if found is None:
            return None
        head = BlobHead(found.size_bytes, found.encoding, found.compression, found.sha256)
        file = None if found.file is None else self._folder.parent / found.file
        return Blob(head, data=found.data, file=file)

    async def on_context(self) -> bytes:
        return await self._engine.context_text(self._task.key)

    # --- checkpoints -----------------------------------------------------------------------------

    async def _check_for_secrets(self, name: str, blob: Blob) -> None:
        """Raises Invalid for a checkpoint that holds a secret that the handler was given: it would
        lie here in clear, and the next attempt is given the secret anyway."""
        if self._masks is not None:
            most = max(self.job.checkpoint_bytes_max, blob.head.size)
            found = await asyncio.to_thread(_secret_in, self._masks, blob, most)
            if found is not None:
                raise Invalid(f"cannot keep the checkpoint {name!r}: {found}")

    @contextlib.asynccontextmanager
    async def _stored(self, name: str, blob: Blob) -> AsyncIterator[NewCheckpoint]:
        """The blob as a checkpoint, a large one in its place on disk unless it is refused. Raises
        Unavailable when it cannot be there."""
        head, file = blob.head, None
        if blob.file is not None:
            file = f"{self.job.key}/{secrets.token_hex(16)}"
            try:
                await asyncio.to_thread(move, blob.file, self._folder / Path(file).name)
            except OSError as exc:
                self._saved()  # our disk is full: the handler has missed nothing
                raise not_kept(exc) from exc
        checkpoint = NewCheckpoint(
            name,
            head.size,
            "json" if head.encoding == "json" else "bytes",
            "zlib" if head.compression == "zlib" else "none",
            head.sha256,
            data=blob.data,
            file=file,
        )
        try:
            yield checkpoint
        except FlowMonkeyError as exc:
            self._discard(checkpoint)
            if isinstance(exc, Unavailable):
                self._saved()  # likewise
            raise

    def _discard(self, checkpoint: NewCheckpoint) -> None:
        if checkpoint.file is not None:
            (self._folder.parent / checkpoint.file).unlink(missing_ok=True)

    def _saved(self) -> None:
        self._checkpoint_s = time.monotonic()
        self._warned_checkpoint = False

    # --- the watch -------------------------------------------------------------------------------

    @property
    def active_ms(self) -> int:
        """Of the job's time to live, until now."""
        return (self._active_before_ns + boottime_ns() - self._began_ns) // 10**6

    async def _watch(self) -> None:
        while not self._end.done():
            self._wake.clear()
            end = self._overdue()
            if end is not None:
                self._ended(end)
                return
            self._warn()
            try:
                await self._beat()
            except LeaseLost:
                self._ended(End(superseded=True))
                return
            except Unavailable as exc:
                log.warning("a heartbeat cannot be kept: %s", exc, extra={"job": self.job.id})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._next_s()):
                    await self._wake.wait()

    def _overdue(self) -> End | None:
        now_s, at_ns, active_ms = time.monotonic(), boottime_ns(), self.active_ms
        if active_ms >= self._ttl_ms:
            message = f"the job was active for {active_ms} ms; its time to live is {self._ttl_ms}"
            return End(failed=StepError("TIMEOUT", message), at_ns=at_ns)
        silent_s = now_s - self.instance.agent.last_heard
        if silent_s >= self._stale_s:
            message = f"nothing was heard of the handler's container for {silent_s:.1f} s"
            error = StepError("HEARTBEAT_MISSED", message)
            return End(lost=error, at_ns=at_ns - int(silent_s * 1e9))
        if now_s - self._checkpoint_s >= MISSED_INTERVALS * self._interval_s:
            message = (
                f"no checkpoint was saved within {MISSED_INTERVALS} intervals of "
                f"{self._rules.interval_ms} ms (execution.checkpoint.intervalMs)"
            )
            return End(lost=StepError("CHECKPOINT_MISSED", message), at_ns=at_ns)
        return None

    def _warn(self) -> None:
        warning_ms = ttl_warning_ms(self._ttl_ms, self.job.ttl_soft_ms)
        if not self._warned_ttl and self.active_ms >= warning_ms:
            self._warned_ttl = True
            left_ms = max(0, self._ttl_ms - self.active_ms)
            self.instance.agent.ttl(left_ms)
            self._say(f"the job has {left_ms} ms of its time to live left", leftMs=left_ms)
        late_s = time.monotonic() - self._checkpoint_s
        if not self._warned_checkpoint and late_s >= self._interval_s:
            self._warned_checkpoint = True
            self._say(
                f"no checkpoint for {late_s:.1f} s: after twice intervalMs the attempt ends",
                intervalMs=self._rules.interval_ms,
            )

    async def _beat(self) -> None:
        """Have the tables know that it is alive, and how far it has come."""
        now_s = time.monotonic()
        progress = self._progress
        # Billed is what was heard of: the tables are told when its heartbeat has just come.
        silent_s = now_s - self.instance.agent.last_heard
        is_due = self._beat_due_s <= now_s and silent_s <= self._heartbeat_s / 4
        is_told = progress is not None and now_s - self._progress_s >= PROGRESS_EVERY_S
        if not is_due and not is_told:
            return
        self._progress = None
        self._beat_s = now_s
        if progress is not None:
            self._progress_s = now_s
        async with self._in_turn():
            await self._engine.heartbeat(self.fence, boottime_ns() - int(silent_s * 1e9), progress)

    async def _tell(self) -> int:
        """Keep all that was said so far, before the lease ends under which that can be done; the
        time it was then, which is billed no further."""
        at_ns = boottime_ns()
        await self._lines.flush()
        progress, self._progress = self._progress, None
        if progress is not None:
            with contextlib.suppress(Unavailable):  # a full disk may have room for the answer
                await self._engine.heartbeat(self.fence, at_ns, progress)
        return at_ns

    def _next_s(self) -> float:
        """Until the next look: whichever clock is due first."""
        now_s, active_ms = time.monotonic(), self.active_ms
        due = [
            max(self._beat_due_s - now_s, self._heartbeat_s / 50),
            self.instance.agent.last_heard + self._stale_s - now_s,
            (self._ttl_ms - active_ms) / 1000,
        ]
        intervals = MISSED_INTERVALS if self._warned_checkpoint else 1
        due.append(self._checkpoint_s + intervals * self._interval_s - now_s)
        if not self._warned_ttl:
            due.append((ttl_warning_ms(self._ttl_ms, self.job.ttl_soft_ms) - active_ms) / 1000)
        if self._progress is not None:
            due.append(self._progress_s + PROGRESS_EVERY_S - now_s)
        return max(0.001, min(due))

    @property
    def _heartbeat_s(self) -> float:
        return self._rules.heartbeat_ms / 1000

    @property
    def _beat_due_s(self) -> float:
        return self._beat_s + self._heartbeat_s * 3 / 4

    @property
    def _stale_s(self) -> float:
        return STALE_HEARTBEATS * self._heartbeat_s

    @property
    def _interval_s(self) -> float:
        return self._rules.interval_ms / 1000

    def _say(self, message: str, **fields: Any) -> None:
        """A warning of ours, in the execution's log."""
        self._lines.add((self._clock.now_ms(), "log", "warning", message, fields))


def _secret_in(masks: Masks, blob: Blob, most: int) -> str | None:
    """Why the blob cannot be kept: a secret is in it, or nobody can say because it is too large or
    not what it says. None: it can."""
    source = blob.file.open("rb") if blob.file is not None else io.BytesIO(blob.data or b"")
    inflate = zlib.decompressobj() if blob.head.compression == "zlib" else None
    seen, tail = 0, b""
    with source:
        try:
            while part := source.read(_PART_BYTES):
                while part:
                    plain = part if inflate is None else inflate.decompress(part, _PART_BYTES)
                    part = b"" if inflate is None else inflate.unconsumed_tail
                    seen += len(plain)
                    if seen > most:
                        return f"it has more than {most} bytes once it is not compressed any more"
                    text = tail + plain
                    if (name := masks.name_in(text)) is not None:
                        return (
                            f"it has the value of the secret {name!r} in it; leave it out, the "
                            "handler is given it again with each attempt"
                        )
                    tail = text[-masks.longest_bytes :]
        except zlib.error as exc:
            return f"it is not zlib: {exc}"
    return None
