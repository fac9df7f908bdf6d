"""`flowctl job …`: the stateful runs: list, show, watch, pause, resume, cancel, checkpoint."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from typing import Any

import click

from flowctl.client import Answer, Client, segment
from flowctl.options import Leaf, Noun, Session, given, json_option, limit_option, live_ids
from flowctl.output import Column, Output, cell, duration, has_colour, neutral
from flowctl.problems import (
    BadAnswer,
    Interrupted,
    NotCompleted,
    Rejected,
    TimedOut,
    Unreachable,
)

__all__ = ["job"]

Fields = Mapping[str, Any]

STATUSES = ("queued", "running", "paused", "completed", "failed", "cancelled")
ENDED = frozenset({"completed", "failed", "cancelled"})
# A job that is watched is asked for this often; its heartbeats come every few seconds.
REFRESH_S = 1.0
BAR_COLUMNS = 20

LIST: tuple[Column, ...] = (
    ("ID", lambda row: row.get("id")),
    ("STEP", lambda row: f"{row.get('flowId')}:{row.get('stepId')}"),
    ("HANDLER", lambda row: _handler(row)),
    ("STATUS", lambda row: row.get("status")),
    ("DONE", lambda row: _percent(row)),
    ("TRY", lambda row: row.get("attempt")),
    ("ACTIVE", lambda row: _active(row)),
    ("BILLED", lambda row: _amount(row)),
    ("CREATED", lambda row: row.get("createdAt")),
)

_ID = click.argument("id_", metavar="ID", shell_complete=live_ids("/v1/jobs"))


class _Download(Leaf):
    """`-o` is the file: what is printed is the checkpoint itself, in the form it has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [one for one in self.params if one.name != "output"]


@click.group(cls=Noun)
def job() -> None:
    """Runs of stateful handlers: how far they are, what they keep, what they have cost.

    \b
    Example:
      flowctl job list --status running
    """


@job.command("list")
@click.option("--status", type=click.Choice(STATUSES), help="Only those in this state.")
@click.option(
    "--flow", metavar="FLOW[@V]", help="Only those of a flow.", shell_complete=live_ids("/v1/flows")
)
@click.option("--tenant", metavar="T", help="Only those of a tenant.")
@click.option("--execution", metavar="ID", help="Only those of an execution.")
@limit_option
@click.pass_obj
def list_(
    session: Session,
    status: str | None,
    flow: str | None,
    tenant: str | None,
    execution: str | None,
    limit: int,
) -> None:
    """List jobs, newest first.

    \b
    Example:
      flowctl job list --flow film --status paused
    """
    params = {"status": status, "flow": flow, "tenant": tenant, "execution": execution}
    listing = session.client().pages("/v1/jobs", params, limit)
    session.output.listing(listing, LIST)
    if listing.next_cursor and session.output.form == "table":
        session.output.note(f"there are more than {limit}: see them with --limit")


@job.command()
@_ID
@click.pass_obj
def show(session: Session, id_: str) -> None:
    """Show one job.

    \b
    Example:
      flowctl job show 01k9ax -o json
    """
    _print(session.output, session.client().get(_path(id_)))


@job.command()
@_ID
@click.option(
    "--timeout", metavar="S", type=click.FloatRange(min=0), help="Seconds to wait at most."
)
@click.pass_obj
def watch(session: Session, id_: str, timeout: float | None) -> None:
    """Follow a job until it ends, then print it: progress, checkpoint, time left, bill so far.

    Exits with 1 when it failed or was cancelled, 6 when --timeout passed first.

    \b
    Example:
      flowctl job watch 01k9ax
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    client, output, bar = session.client(), session.output, _Bar(session.output)
    again = f"job {id_} goes on; watch it with: flowctl job watch {neutral(id_)}"
    answer = client.get(_path(id_))
    try:
        answer = _until_end(client, id_, answer, bar, deadline)
    except KeyboardInterrupt:
        bar.clear()
        raise Interrupted(f"stopped watching: {again}") from None
    except (Unreachable, BadAnswer) as exc:
        bar.clear()
        raise type(exc)(f"{exc.message}\n{again}") from exc
    bar.clear()
    _print(output, answer)
    job = answer.fields()
    if job.get("status") not in ENDED:
        raise TimedOut(f"cannot wait any longer: --timeout has passed; {again}")
    if job["status"] != "completed":
        error = job.get("error")
        because = f": {_error(error)}" if isinstance(error, dict) else ""
        raise NotCompleted(f"job {id_} {job['status']}{because}")


@job.command()
@_ID
@click.option("--reason", metavar="TEXT", help="Why; shown until it is resumed.")
@click.pass_obj
def pause(session: Session, id_: str, reason: str | None) -> None:
    """Freeze a running job until it is resumed. It costs nothing meanwhile.

    \b
    Example:
      flowctl job pause 01k9ax --reason "the disk is full"
    """
    _act(session, id_, "pause", {"reason": reason})


@job.command()
@_ID
@json_option("--data", help="What its handler's pause.wait returns.")
@click.pass_obj
def resume(session: Session, id_: str, data: Any) -> None:
    """End a job's pause.

    \b
    Example:
      flowctl job resume 01k9ax --data '{"approved": true}'
    """
    _act(session, id_, "resume", {"data": data})


@job.command()
@_ID
@click.option("--reason", metavar="TEXT", help="Why; kept with the execution.")
@click.pass_obj
def cancel(session: Session, id_: str, reason: str | None) -> None:
    """Cancel a job and its execution. Its checkpoints are kept for a while.

    \b
    Example:
      flowctl job cancel 01k9ax --reason "wrong film"
    """
    _act(session, id_, "cancel", {"reason": reason})


@job.command(cls=_Download)
@_ID
@click.option("--name", metavar="N", help="Which one (default).")
@click.option("-o", "--out", metavar="FILE", type=click.Path(dir_okay=False), help="Where to.")
@click.pass_obj
def checkpoint(session: Session, id_: str, name: str | None, out: str | None) -> None:
    """Download what a job has kept: JSON, or bytes. Without a file it goes to stdout.

    \b
    Example:
      flowctl job checkpoint 01k9ax --name frames -o frames.json
    """
    path = f"{_path(id_)}/checkpoint"
    with session.client().download(path, {"name": name}) as (kind, chunks):
        if out is None:
            _to_stdout(session.output, kind, chunks)
            return
        part = f"{out}.part"
        try:
            with open(part, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
            os.replace(part, out)
        except OSError as exc:
            raise Rejected(f"cannot write {out}: {(exc.strerror or str(exc)).lower()}") from exc
        finally:
            if os.path.exists(part):
                os.unlink(part)
    session.output.note(f"wrote {out}, {os.path.getsize(out)} bytes")


# --- watching ----------------------------------------------------------------------------------


def _until_end(
    client: Client, id_: str, answer: Answer, bar: _Bar, deadline: float | None
) -> Answer:
    """Show the job until it has ended or the deadline passes: as it was last."""
    while answer.fields().get("status") not in ENDED:
        bar.show(answer.fields())
        left = REFRESH_S if deadline is None else min(REFRESH_S, deadline - time.monotonic())
        if left <= 0:
            break
        time.sleep(left)
        answer = client.get(_path(id_))
    return answer


class _Bar:
    """One live line on stderr, on a terminal only; a pause is said once, everywhere."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._moves = has_colour(output.err)
        self._paused: Any = None
        self._pending = False

    def show(self, job: Fields) -> None:
        """The job as it is now."""
        self._tell_pause(job)
        if not self._moves:
            return
        columns = shutil.get_terminal_size().columns
        line = f"{_drawn(job)}  {'  '.join(_words(job))}"[: columns - 1]
        self._output.err.write(f"\r\x1b[2K{neutral(line)}")
        self._output.err.flush()
        self._pending = True

    def clear(self) -> None:
        """Take the line away."""
        if self._pending:
            self._output.err.write("\r\x1b[2K")
            self._output.err.flush()
            self._pending = False

    def _tell_pause(self, job: Fields) -> None:
        found = job.get("pause")
        since = found.get("since") if isinstance(found, dict) else None
        if not isinstance(found, dict) or since == self._paused:
            return
        self._paused = since
        self.clear()
        text = f"paused: {cell(found.get('reason'))}"
        text += f", for the event {cell(found['event'])}" if found.get("event") else ""
        text += f", until {cell(found['wakeAt'])} at most" if found.get("wakeAt") else ""
        self._output.note(f"{text}\nresume it with: flowctl job resume {cell(job.get('id'))}")


def _drawn(job: Fields) -> str:
    progress = job.get("progress")
    percent = progress.get("percent") if isinstance(progress, dict) else None
    if not isinstance(percent, int | float):
        return "░" * BAR_COLUMNS
    full = round(max(0, min(100, percent)) / 100 * BAR_COLUMNS)
    return "█" * full + "░" * (BAR_COLUMNS - full)


def _words(job: Fields) -> list[str]:
    """What is worth knowing while it runs, the most important first."""
    progress, kept, ttl = (_object(job, name) for name in ("progress", "checkpoint", "ttl"))
    words = [] if job.get("status") == "running" else [cell(job.get("status"))]
    if percent := _percent(job):
        words.append(percent)
    if progress.get("message"):
        words.append(cell(progress["message"]))
    if eta := duration(progress.get("etaMs")):
        words.append(f"eta {eta}")
    if age := duration(kept.get("ageMs")):
        words.append(f"checkpoint {age} old")
    if left := duration(ttl.get("leftMs")):
        words.append(f"{left} left")
    words.append(_amount(job))
    return words


# --- one job -----------------------------------------------------------------------------------


def _print(output: Output, answer: Answer) -> None:
    """One job for people, else the API's own form."""

    def summary(job: dict[str, Any]) -> None:
        lease, found = _object(job, "lease"), _object(job, "pause")
        output.pairs(
            [
                ("job", job.get("id")),
                ("execution", job.get("executionId")),
                ("flow", f"{job.get('flowId')}@{job.get('flowVersion')}"),
                ("step", job.get("stepId")),
                ("handler", _handler(job)),
                ("tenant", job.get("tenantId")),
                ("status", job.get("status")),
                ("progress", _progress(job)),
                ("checkpoint", _kept(job)),
                ("try", _tries(job)),
                ("time", _time(job)),
                ("waits for", found.get("event") or found.get("reason") if found else None),
                ("wakes at", found.get("wakeAt")),
                ("paused", duration(job.get("pausedMs") or None)),
                ("billed", _billed(job)),
                ("worker", lease.get("worker")),
                ("heartbeat", lease.get("heartbeatAt")),
                ("container", job.get("container")),
                ("created", job.get("createdAt")),
                ("started", job.get("startedAt")),
                ("finished", job.get("finishedAt")),
                ("kept until", job.get("checkpointsExpireAt") if job.get("checkpoint") else None),
            ]
        )
        if isinstance(job.get("error"), dict):
            output.line(f"error: {_error(job['error'])}")

    output.answer(answer, summary)


def _progress(job: Fields) -> str | None:
    progress = _object(job, "progress")
    eta = duration(progress.get("etaMs")) if job.get("status") == "running" else None
    words = [_percent(job), progress.get("message"), f"eta {eta}" if eta else None]
    return "  ".join(str(word) for word in words if word) or None


def _kept(job: Fields) -> str | None:
    kept = _object(job, "checkpoint")
    if not kept:
        return None
    age = duration(kept.get("ageMs"))
    return f"{kept.get('name')}, {kept.get('sizeBytes')} bytes, {age} old"


def _tries(job: Fields) -> str:
    lost = f", {job.get('failures')} of {job.get('maxAttempts')} lost"
    return f"{job.get('attempt')}" + (lost if job.get("failures") else "")


def _time(job: Fields) -> str:
    ttl = _object(job, "ttl")
    used, whole, hard = (duration(ttl.get(name)) for name in ("activeMs", "ttlMs", "hardMs"))
    left = f", {duration(ttl.get('leftMs'))} left" if job.get("status") not in ENDED else ""
    return f"{used} of {whole} (at most {hard}){left}"


def _billed(job: Fields) -> str:
    rate = _object(job, "billed").get("perSecond")
    return f"{_amount(job)} for {_active(job)} at {rate} $ a second ({job.get('resources')})"


def _percent(job: Fields) -> str | None:
    percent = _object(job, "progress").get("percent")
    return f"{percent:.0f} %" if isinstance(percent, int | float) else None


def _active(job: Fields) -> str | None:
    seconds = _object(job, "billed").get("seconds")
    return duration(round(seconds * 1000)) if isinstance(seconds, int | float) else None


def _amount(job: Fields) -> str:
    return f"{_object(job, 'billed').get('amount')} $"


def _handler(job: Fields) -> str:
    handler = _object(job, "handler")
    return f"{handler.get('type')}@{handler.get('version')}"


def _error(error: Fields) -> str:
    return f"{cell(error.get('code'))}: {cell(error.get('message'))}"


def _object(job: Fields, name: str) -> Fields:
    value = job.get(name)
    return value if isinstance(value, dict) else {}


def _to_stdout(output: Output, kind: str, chunks: Any) -> None:
    """The bytes as they are; what is no text is not sent to a terminal."""
    output.out.flush()
    if output.out.isatty():
        if kind != "application/json":
            raise Rejected("cannot show bytes on a terminal: name a file with -o FILE")
        output.line(b"".join(chunks).decode(errors="replace"))
        return
    for chunk in chunks:
        output.out.buffer.write(chunk)
    output.out.buffer.flush()


def _act(session: Session, id_: str, verb: str, body: Fields) -> None:
    answer = session.client().send("POST", f"{_path(id_)}/{verb}", given(body))
    output: Output = session.output
    output.answer(answer, lambda now: output.line(f"{now.get('id')}: {now.get('status')}"))


def _path(id_: str) -> str:
    return f"/v1/jobs/{segment(id_)}"
