"""`flowctl sandbox …` and `flowctl pool`: try a handler, say what it may do, see what runs it.

`run` and `probe` need no daemon; `explain` asks one for what was published and does without for a
folder. What is printed of a handler never steers the terminal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import click

from flowctl.client import segment
from flowctl.options import NULL, Leaf, Noun, Session, json_option, live_ids
from flowctl.output import Column, Output, duration, neutral
from flowctl.problems import NotCompleted, NotReady

__all__ = ["MISSING", "job_in_words", "layers_in_words", "pool", "sandbox", "took_in_words"]

MIB = 1024 * 1024

MISSING: tuple[Column, ...] = (
    ("NOT HERE", lambda row: row.get("name")),
    ("WHY", lambda row: row.get("detail")),
    ("WHAT BOUNDS HANDLERS INSTEAD", lambda row: row.get("instead")),
)
POOLS: tuple[Column, ...] = (
    ("POOL", lambda row: row.get("name")),
    ("SLOTS", lambda row: row.get("slots")),
    ("BUSY", lambda row: row.get("busy")),
    ("WAITING", lambda row: row.get("waiting")),
    ("SPARES", lambda row: _counts(row.get("spares"))),
    ("KEPT", lambda row: row.get("kept")),
    ("STARTED", lambda row: row.get("started")),
    ("REUSED", lambda row: row.get("reused")),
    ("CRASHED", lambda row: row.get("crashed")),
)
WARM: tuple[Column, ...] = (
    ("WARM CONTAINERS", lambda row: row.get("name")),
    ("SIZE", lambda row: row.get("resources")),
    ("NETWORK", lambda row: row.get("network")),
    ("READY", lambda row: row.get("size")),
    ("TARGET", lambda row: row.get("target")),
    ("HITS", lambda row: row.get("hits")),
    ("MISSES", lambda row: row.get("misses")),
    ("PROBLEM", lambda row: row.get("problem")),
)
_FILES = {
    "none": "its own package, read-only; no writable place",
    "readonly": "its own package, read-only; no writable place",
    "temp": "its own package, read-only, and a private /tmp that vanishes with the run",
}


@click.group(cls=Noun)
def sandbox() -> None:
    """Try handlers, and say what they may do.

    \b
    Example:
      flowctl sandbox run ./resize --input '{"width": 80}'
    """


@sandbox.command()
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@json_option("--input", "given", help="The handler's input.")
@json_option("--config", mapping=True, help="What the step's config would be.")
@json_option("--context", mapping=True, help="What the execution's context would be.")
@click.option(
    "--allow-private",
    "private",
    multiple=True,
    metavar="CIDR",
    help="A network that is not global and that it may reach, such as 127.0.0.0/8.",
)
@click.option(
    "--port",
    "ports",
    multiple=True,
    type=click.IntRange(1, 65535),
    help="A port that it may reach besides 80 and 443.",
)
@click.option("--node", metavar="PATH", help="The Node that runs it (the one in PATH).")
@click.pass_obj
def run(
    session: Session,
    folder: str,
    given: Any,
    config: Any,
    context: Any,
    private: tuple[str, ...],
    ports: tuple[int, ...],
    node: str | None,
) -> None:  # fmt: skip
    """Run the handler in DIR once, in the real sandbox, without a daemon.

    The folder is read as publishing does. Its log goes to stderr while it runs, its result to
    stdout as JSON. Exits with 1 if the handler failed and with 3 if this host cannot run it.

    \b
    Example:
      flowctl sandbox run ./resize --input '{"width": 80}'
      flowctl sandbox run ./get --input '"http://127.0.0.1:80/"' --allow-private 127.0.0.0/8
    """
    from flowctl import trial

    output = session.output

    def on_line(stream: str, level: str | None, message: str, fields: Mapping[str, Any]) -> None:
        more = f" {json.dumps(dict(fields), ensure_ascii=False)}" if fields else ""
        output.note(neutral(f"{level or stream:<7}  {message}{more}"))

    gift = trial.Given(
        None if given is NULL else given, given is not None, config or {}, context or {}
    )
    ran = trial.run(folder, gift, on_line, private, ports, node)
    if output.form == "yaml":
        output.value(ran.result, lambda: None)
    else:
        output.line(json.dumps(ran.result, ensure_ascii=False))
    for line in took_in_words(ran.duration_ms, ran.usage):
        output.note(line)
    if ran.is_failure:
        error = ran.result["error"]
        details = error["details"]
        if isinstance(details, dict) and isinstance(details.get("traceback"), str):
            output.note(details["traceback"].rstrip())
        raise NotCompleted(f"the handler failed: {error['code']}: {error['message']}")


@sandbox.command()
@click.argument("what", metavar="TYPE[@V]|DIR", shell_complete=live_ids("/v1/handlers", "type"))
@click.pass_obj
def explain(session: Session, what: str) -> None:
    """Say what a handler may do on this host, in words and numbers.

    A published one as the daemon runs it; a folder as a daemon with default settings would.

    \b
    Example:
      flowctl sandbox explain acme/resize
      flowctl sandbox explain ./resize
    """
    if os.path.isdir(what):
        from flowctl import trial

        terms, layers = trial.terms(what), trial.hold_here()
    else:
        type_, _, version = what.partition("@")
        client = session.client()
        path = f"/v1/terms/{segment(type_)}" + (f"/{segment(version)}" if version else "")
        terms = client.get(path).fields()
        health = client.request("GET", "/v1/health", accept=(503,)).fields()
        layers = health.get("checks", {}).get("sandbox", {}).get("layers") or []

    def words() -> None:
        output = session.output
        output.line(f"{terms['type']}@{terms['version']}, {terms['runtime']}")
        if terms["stateful"] is not None:
            output.pairs(job_in_words(terms))
            return
        output.pairs(_terms_in_words(terms))
        layers_in_words(output, layers)

    session.output.value({"terms": terms, "layers": layers}, words)


@sandbox.command()
@click.pass_obj
def probe(session: Session) -> None:
    """Try every layer of the sandbox on this host, without a daemon.

    As this user; if that is root, as an ordinary one too; and without user namespaces. Exits with
    3 if a layer is missing here without which nothing is run.

    \b
    Example:
      flowctl sandbox probe
    """
    from flowctl import trial

    found, text, runs = trial.probe()
    session.output.value(found, lambda: session.output.lines(text.rstrip()))
    if not runs:
        raise NotReady("this host cannot run handlers: a required layer is missing")


@click.command(cls=Leaf)
@click.pass_obj
def pool(session: Session) -> None:
    """Show what runs handlers: slots, processes and containers that wait, counts since the start.

    \b
    Example:
      flowctl pool
    """
    answer = session.client().get("/v1/pools")

    def words(found: dict[str, Any]) -> None:
        session.output.table(found.get("items") or [], POOLS)
        if found.get("warm"):
            session.output.table(found["warm"], WARM)
        starts = found.get("starts") or {}
        session.output.pairs(
            [
                (f"{kind} starts, ms", _counts_by_class(starts[kind]))
                for kind in ("warm", "cold")
                if starts.get(kind)
            ]
        )

    session.output.answer(answer, words)


def layers_in_words(output: Output, layers: Iterable[Mapping[str, Any]]) -> None:
    """How many layers hold, and a table of those that do not."""
    layers = list(layers)
    if not layers:
        return
    missing = [one for one in layers if not one.get("available")]
    output.pairs([("layers", f"{len(layers) - len(missing)} of {len(layers)} hold")])
    if missing:
        output.table(missing, MISSING)


def _counts_by_class(counts: Any) -> str:
    return "  ".join(f"{name}: {count}" for name, count in counts.items())


def _counts(counts: Any) -> str | None:
    if not isinstance(counts, dict):
        return None
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "0"


def _terms_in_words(terms: Mapping[str, Any]) -> list[tuple[str, Any]]:
    share = terms["cpuShare"]
    core = "one core" if share == 1 else f"{share:g} {'cores' if share > 1 else 'of a core'}"
    temp = f" ({_size(terms['tempBytes'])})" if terms["tempBytes"] else ""
    reuse = terms["reuse"]
    process = "a new one for each execution, used once"
    if reuse:
        process = (
            f"one for up to {reuse['uses']} executions of one version and tenant, "
            f"{duration(reuse['ageMs'])} at most; what one leaves behind the next one finds"
        )
    if terms["preload"]:
        process += "; the handler may be imported before it is called"
    return [
        ("wall time", f"{duration(terms['wallMs'])}, then all it started is killed (TIMEOUT)"),
        ("CPU", f"{core}, {duration(terms['cpuMs'])} of CPU time (CPU_LIMIT)"),
        ("memory", f"{_size(terms['memoryBytes'])} beyond the interpreter (MEMORY_LIMIT)"),
        ("threads", f"{terms['threads']}, no other program"),
        ("files", f"{_FILES[terms['filesystem']]}{temp}; {terms['openFiles']} open at a time"),
        ("output", f"{_size(terms['outputBytes'])} (OUTPUT_TOO_LARGE)"),
        ("log", f"{_size(terms['logBytes'])}, {terms['logRate']} lines a second"),
        ("secrets", ", ".join(terms["secrets"]) or "none"),
        *_network_in_words(terms["network"]),
        ("process", process),
    ]


def job_in_words(terms: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What a stateful handler may do, and costs."""
    own = terms["stateful"]
    ttl, checkpoint = own["ttl"], own["checkpoint"]
    pause = f"{duration(own['pauseMaxMs'])} at most, for nothing" if own["pauseMaxMs"] else "never"
    share = terms["cpuShare"]
    return [
        (
            "resources",
            f"{own['resources']}: {share:g} {'core' if share == 1 else 'cores'}, "
            f"{_size(terms['memoryBytes'])} (MEMORY_LIMIT), {terms['threads']} processes and "
            f"threads, {terms['openFiles']} open files",
        ),
        ("image", own["image"] or "chosen when it is published"),
        (
            "time",
            f"{duration(ttl['defaultMs'])} of active time (TIMEOUT), {duration(ttl['hardMs'])} if "
            f"it asks for more; a warning after {duration(ttl['softMs'])} or shortly before",
        ),
        (
            "checkpoints",
            f"at least every {duration(checkpoint['intervalMs'])} (CHECKPOINT_MISSED after twice "
            f"that), {_size(checkpoint['maxSize'])} in all; kept {checkpoint['days']} days after",
        ),
        ("pause", pause),
        ("attempts", f"{own['maxAttempts']} containers, each goes on where a lost one was"),
        ("files", f"its own package, read-only, and /tmp ({_size(terms['tempBytes'])})"),
        ("output", f"{_size(terms['outputBytes'])} (OUTPUT_TOO_LARGE)"),
        ("log", f"{_size(own['logBytesPerS'])} a second after {_size(terms['logBytes'])}"),
        ("secrets", ", ".join(terms["secrets"]) or "none"),
        *_network_in_words(terms["network"]),
        ("warm", f"{own['warm']} containers always, others by demand"),
        ("price", f"{own['perSecond']} $ for a second of active time; pauses are free"),
    ]


def _network_in_words(network: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    if network is None:
        return [("network", "none")]
    if not network["ports"]:
        return [("network", "asked for, and this daemon serves no ports: refused")]
    ports = ", ".join(map(str, network["ports"]))
    allow = network["allow"]
    if allow is None:
        reach = f"every global address, ports {ports}"
    else:
        reach = ", ".join(allow) or "nothing: no target is allowed by manifest and operator both"
    bounds = (
        f"{network['connections']} connections, {_size(network['bytes'])}, "
        f"{network['dnsQueries']} DNS queries"
    )
    return [
        ("network", reach),
        ("refused", ", ".join([*network["deny"], "whatever is not global"])),
        ("private", ", ".join(network["private"]) or None),
        ("bounds", bounds),
    ]


def took_in_words(duration_ms: int, usage: Mapping[str, Any]) -> list[str]:
    """What an execution took, one thing a line."""
    lines = [
        f"took {duration(duration_ms)}, {duration(usage.get('cpuMs', 0))} of CPU, "
        f"at most {_size(usage.get('peakMemoryBytes', 0))} of memory"
    ]
    network = usage.get("network")
    if network:
        for one in network["contacts"]:
            host = one["host"] or one["address"]
            lines.append(
                f"network: {neutral(host)} ({one['address']}:{one['port']}): {one['connections']} "
                f"connections, {one['sentBytes']} bytes sent, {one['receivedBytes']} received"
            )
        refused = sum(one["count"] for one in network["denials"])
        lines.append(f"network: {refused} refused, {network['dnsQueries']} DNS queries")
    return lines


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} bytes"
    if count >= 1024 * MIB:
        return f"{count / MIB / 1024:.4g} GiB"
    return f"{count / MIB:.4g} MiB" if count >= MIB else f"{count / 1024:.4g} KiB"
