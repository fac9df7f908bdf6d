"""What goes into the sandbox and what comes out: plain values, no behaviour.

Owns the nouns of the package: `Call` (one execution of one handler), `Limits`, `Policy`, `Egress`,
`Reuse`, `Reply`, `Ending` (how it ended, a closed set), `LogLine`, `Usage`, `Traffic`, `Refused`,
`Layer` and `PoolSettings`.
It promises that a value that could be built is within the hard limits (60 s, 1 GiB); it never
touches a process, a file or the clock.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "ALL_LAYERS",
    "DEFAULT_REQUIRED",
    "MEMORY_MAX_BYTES",
    "MIB",
    "OUTPUT_MAX_BYTES",
    "WALL_MAX_MS",
    "AskContext",
    "Call",
    "Contact",
    "Denial",
    "Egress",
    "Ending",
    "JsonText",
    "Layer",
    "Limits",
    "LogLine",
    "OnLog",
    "Policy",
    "PoolSettings",
    "Refused",
    "Reply",
    "Reuse",
    "Traffic",
    "Usage",
]

MIB = 1024 * 1024

# The seed's non-negotiable ceilings for a stateless handler: 60 s and 1 GiB.
CORES_MAX = 2  # the large tier of the seed; all others have one
WALL_MAX_MS = 60_000
MEMORY_MAX_BYTES = 1024 * MIB
OUTPUT_MAX_BYTES = 64 * MIB

# Every layer's name and what it keeps from happening, in the order in which they are set up.
ALL_LAYERS: Mapping[str, str] = {
    "user-namespace": "whatever the handler becomes, it is nobody on the host",
    "pid-namespace": "it sees and signals no other process, and dies with everything it started",
    "mount-namespace": "its mounts are its own",
    "ipc-namespace": "no System V or POSIX message queues or shared memory of the host",
    "uts-namespace": "the host's name is not shown",
    "network-namespace": "no network interface, not even loopback",
    "cgroup-namespace": "the host's control groups are not shown",
    "private-root": "only the interpreter, its libraries and the handler exist, read-only",
    "proc": "/proc shows its own process and nothing of the system",
    "unprivileged-uid": "its user id on the host is not root",
    "one-core": "it runs on one CPU at a time, or on the two that it was given",
    "rlimits": "address space, CPU time, threads, descriptors and file size are bounded",
    "capabilities": "it has no privilege and can gain none",
    "no-new-privs": "executing a set-uid program would give nothing",
    "landlock": "even a file that could be named could not be opened outside its own places",
    "seccomp": "only the system calls that a computation needs exist",
    "memory-watchdog": "resident memory beyond the limit ends it within 100 ms",
    "cgroup": "the kernel accounts and bounds memory, tasks and CPU of the execution as a group",
    "network": "a gateway to the internet that reaches nothing inside",
}

# What must hold unless the operator says otherwise. Not every kernel and container gives the rest:
# without control groups memory is bounded by rlimits and the watchdog, without Landlock files by
# the private root, without the gateway handlers that ask for network are refused.
DEFAULT_REQUIRED: frozenset[str] = frozenset(ALL_LAYERS) - {"cgroup", "landlock", "network"}


class Ending(enum.StrEnum):
    """How an execution ended. A closed set: whatever happens inside becomes one of these."""

    RESULT = "result"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    CPU = "cpu"
    OUTPUT = "output"
    CRASH = "crash"
    PROTOCOL = "protocol"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one execution; ValueError for a value outside the hard limits.

    `cpu_ms` None means the wall limit for each core plus one second (the kernel counts CPU time in
    whole seconds, so a smaller limit than the wall is rounded up). `memory_bytes` counts what the
    handler adds to the bare interpreter. `cpu_share` is in cores, kept where the host gives control
    groups; elsewhere whole cores are. `output_bytes` bounds the encoded result with
    its events and updates; `log_bytes` the kept text of all streams together, each line counted
    with 100 bytes more than it has; `log_rate` the kept lines a second (bursts of as many).
    """

    wall_ms: int = 30_000
    cpu_ms: int | None = None
    cpu_share: float = 1.0
    memory_bytes: int = 512 * MIB
    output_bytes: int = 1 * MIB + 64 * 1024
    log_bytes: int = 1 * MIB
    log_rate: int = 5_000
    temp_bytes: int = 64 * MIB
    open_files: int = 256
    threads: int = 64

    def __post_init__(self) -> None:
        _within("wall_ms", self.wall_ms, 1, WALL_MAX_MS)
        if self.cpu_ms is not None:
            _within("cpu_ms", self.cpu_ms, 1, CORES_MAX * WALL_MAX_MS + 1000)
        _within("memory_bytes", self.memory_bytes, 16 * MIB, MEMORY_MAX_BYTES)
        _within("output_bytes", self.output_bytes, 1024, OUTPUT_MAX_BYTES)
        _within("log_bytes", self.log_bytes, 0, 64 * MIB)
        _within("log_rate", self.log_rate, 1, 1_000_000)
        if not 0.01 <= self.cpu_share <= CORES_MAX:
            raise ValueError(f"cannot use cpu_share={self.cpu_share!r}: from 0.01 to {CORES_MAX}")
        _within("temp_bytes", self.temp_bytes, 64 * 1024, 1024 * MIB)
        _within("open_files", self.open_files, 16, 1024)
        _within("threads", self.threads, 1, 512)

    @property
    def cores(self) -> int:
        """On how many processors it may run at a time."""
        return math.ceil(self.cpu_share)

    @property
    def cpu_time_ms(self) -> int:
        """How much CPU time it may use."""
        return self.cpu_ms if self.cpu_ms is not None else self.cores * self.wall_ms + 1000


@dataclass(frozen=True, slots=True)
class Egress:
    """What an execution with network may reach through the gateway, and how much of it.

    `allow`: the only targets, "host:port", "host", "*.host:port", "address:port" or
    "network/bits:port" (no port: every port that the gateway serves); None: every global address.
    `deny`: targets refused although allowed. `private`: networks ("127.0.0.0/8") that the operator
    lets this handler reach although they are not global; nobody else can. All in one spelling,
    checked by `egress.rules`, which raises ValueError for a target that is none.
    """

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    connections: int = 64
    at_once: int = 64
    bytes: int = 256 * MIB
    dns_queries: int = 256
    connect_ms: int = 10_000
    idle_ms: int = 30_000

    def __post_init__(self) -> None:
        _within("connections", self.connections, 1, 1_000_000)
        _within("at_once", self.at_once, 1, 1024)
        _within("bytes", self.bytes, 1024, 1024 * 1024 * MIB)
        _within("dns_queries", self.dns_queries, 0, 1_000_000)
        _within("connect_ms", self.connect_ms, 1, WALL_MAX_MS)
        _within("idle_ms", self.idle_ms, 1, WALL_MAX_MS)


@dataclass(frozen=True, slots=True)
class Contact:
    """One target that an execution talked to: the name it was resolved from, if there was one."""

    host: str
    address: str
    port: int
    connections: int = 1
    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Denial:
    """One target that was refused, why, and how often."""

    target: str
    reason: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Traffic:
    """What an execution did with its network: bounded lists, the first of each kind."""

    contacts: tuple[Contact, ...] = ()
    denials: tuple[Denial, ...] = ()
    dns_queries: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Reuse:
    """A kept process may serve this call, and be kept after it.

    Only calls with the same package, entrypoint, tenant, limits and policy share a process. What
    that means: module state, open sockets and threads stay from one execution to the next.
    """

    uses: int = 100
    idle_ms: int = 60_000
    age_ms: int = 600_000

    def __post_init__(self) -> None:
        _within("uses", self.uses, 1, 1_000_000)
        _within("idle_ms", self.idle_ms, 1, 3_600_000)
        _within("age_ms", self.age_ms, 1, 24 * 3_600_000)


@dataclass(frozen=True, slots=True)
class Policy:
    """What an execution may reach.

    `filesystem`: "none" and "readonly" give its own package, read-only, and no writable place;
    "temp" adds a private /tmp of `Limits.temp_bytes` that vanishes with it.
    `network` None is none at all; an `Egress` needs the layer "network". `required` names layers
    that must hold for this call besides those that the pool requires.
    """

    filesystem: Literal["none", "readonly", "temp"] = "none"
    network: Egress | None = None
    required: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.filesystem not in ("none", "readonly", "temp"):
            raise ValueError(f"cannot use filesystem {self.filesystem!r}: none, readonly or temp")
        _known_layers(self.required)


class JsonText(bytes):
    """JSON text in the place of the value it stands for: checked by whoever made it."""


# Asks for a context, whose JSON text is given to the function handed over: later, or never.
AskContext = Callable[[Callable[[bytes], None]], None]


@dataclass(frozen=True, slots=True)
class Call:
    """One execution of one handler.

    `package_dir` is the absolute path of its unpacked package; when the pool runs as root its
    files must be readable by everyone (0644, 0755), because the handler is not root; the folders
    above may be closed. Its files stay as they are while calls use them: a package that is another
    one by now is to have another path. `entrypoint` is "file.py:name" (node: "file.js:name").
    `input`, `config` are JSON values or JsonText; `context` is a mapping, its JSON text as
    bytes or somebody to ask, and is sent only if the handler reads it. `reuse` None: a new
    process, used once. `preload`: processes that wait for this package may import the handler
    before there is a call, unless it has network.
    """

    package_dir: str
    entrypoint: str = "handler.py:handle"
    runtime: Literal["python", "node"] = "python"
    input: Any = None
    has_input: bool = True
    config: Any = field(default_factory=dict)
    context: Mapping[str, Any] | bytes | AskContext = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    execution_id: str = ""
    flow_id: str = ""
    step_id: str = ""
    attempt: int = 0
    tenant_id: str = "default"
    task_id: str = ""
    limits: Limits = field(default_factory=Limits)
    policy: Policy = field(default_factory=Policy)
    reuse: Reuse | None = None
    preload: bool = False


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line from a handler; `at_ms` is wall-clock time in ms when the pool received it.

    `stream` is "stdout", "stderr" or "log" (`ctx.log`); the first two have no level (None).
    A last line with the message "… truncated" marks that more was written than was kept.
    """

    at_ms: int
    stream: Literal["stdout", "stderr", "log"]
    message: str
    level: Literal["debug", "info", "warning", "error"] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """What an execution took, as the kernel counted it."""

    wall_ms: int = 0
    cpu_ms: int = 0
    peak_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """A system call that the filter refused: its name, "EPERM", "ENOSYS" or "killed", how often."""

    call: str
    answer: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Reply:
    """How an execution ended and what came out of it.

    `result` is a dict only when `ending` is RESULT: `{"outcome": "success" | "failure" | "wait"}`
    with, for a success, "output" (absent: no value) and "next" (absent, null or a step id);
    for a failure "error": {code, message, retryable, details}; for a wait "wait":
    {durationMs | until | event, filter, reason} with absent keys left out; and in every case
    "updates": {…} and "emitted": [[event, data], …]. An exception that leaves the handler is
    the failure HANDLER_ERROR with its traceback in details, at most 16 KiB.
    `text` is the JSON text of the result as it came.
    For every other ending `message` says in one line what happened. `traffic` is None for an
    execution without network, `refused` where it was not counted.
    """

    ending: Ending
    result: dict[str, Any] | None = None
    message: str = ""
    logs: tuple[LogLine, ...] = ()
    usage: Usage = field(default_factory=Usage)
    traffic: Traffic | None = None
    refused: tuple[Refused, ...] | None = None
    text: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of confinement on this host, as found by trying it."""

    name: str
    available: bool
    required: bool
    detail: str


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How a pool runs.

    `slots`: executions at a time, each in a slot with a fork server of its own; slots beyond the
    number of CPUs have one only while they are needed, until they were idle for `idle_ms`.
    `spares`: confined processes kept waiting in each slot. `python`: interpreter of the handlers,
    None for the one that runs this; `node` likewise, None for the one in PATH, "" for none.
    `ports`: those that the gateway serves; none: no network for anybody. `required_layers`:
    without one of them nothing is run. `without`: layers to leave out, for measuring and for
    trying how a poorer host behaves; a required layer cannot be left out. `host_uid`: the host's
    user and group id of handlers when the pool runs as root. `family`: the process whose
    descendants may be moved between control groups as our own, 0 for the one that runs this.

    For somebody who tries one handler: `kinds`, those of `wire.PROFILES` that are served (None:
    all); `try_layers` false: what could be set up is not tried before the first call;
    `report_refused`: each system call that the filter refuses is answered by this process, as the
    filter would, and counted in `Reply.refused`. No process is kept then.
    """

    slots: int = 4
    spares: int = 2
    spares_node: int = 2
    idle_ms: int = 60_000
    ports: tuple[int, ...] = (80, 443)
    # A spawn takes 3 ms and a take 0.1 ms; on a machine this far behind nothing else works either.
    patience_ms: int = 10_000
    python: str | None = None
    node: str | None = None
    required_layers: frozenset[str] = DEFAULT_REQUIRED
    without: frozenset[str] = frozenset()
    # 65536 to 99999 is given out by neither useradd, subuid nor systemd (systemd's UIDS-GIDS).
    host_uid: int = 70_000
    family: int = 0
    kinds: tuple[str, ...] | None = None
    try_layers: bool = True
    report_refused: bool = False

    def __post_init__(self) -> None:
        _within("slots", self.slots, 1, 256)
        _within("spares", self.spares, 0, 64)
        _within("spares_node", self.spares_node, 0, 64)
        _within("idle_ms", self.idle_ms, 1, 24 * 3_600_000)
        for port in self.ports:
            _within("ports", port, 1, 65535)
        _within("patience_ms", self.patience_ms, 1, 600_000)
        _within("host_uid", self.host_uid, 1, 2**31)
        _known_layers(self.required_layers | self.without)
        if both := sorted(self.required_layers & self.without):
            raise ValueError(f"cannot leave out the required layer {both[0]}")


OnLog = Callable[[LogLine], None]


def _within(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"cannot use {name}={value!r}: it must be from {low} to {high}")


def _known_layers(names: frozenset[str]) -> None:
    if unknown := sorted(names - set(ALL_LAYERS)):
        raise ValueError(f"cannot require layer {unknown[0]!r}: one of {', '.join(ALL_LAYERS)}")
