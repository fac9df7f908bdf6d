"""The tree of settings: every one with its type, its range, its default and the reason for it.

Frozen values, nothing else: `config` says where each one comes from and what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from flowmonkeyd.billing import nanos
from flowmonkeyd.documents.targets import wrong_network, wrong_target
from flowmonkeyd.errors import Invalid
from flowmonkeyd.poolsize import wrong_cron
from flowmonkeyd.vault.elsewhere import wrong_address, wrong_path
from sandbox.model import DEFAULT_REQUIRED

__all__ = [
    "AllowSection",
    "Api",
    "BillingSection",
    "ContainersSection",
    "HandlerNetwork",
    "HandlerSection",
    "HandlersSection",
    "HashicorpSection",
    "JobsNetwork",
    "JobsSection",
    "LimitsSection",
    "LogSection",
    "QuotaSection",
    "RatesSection",
    "SandboxNetwork",
    "SandboxSection",
    "Settings",
    "ShippedSection",
    "Shutdown",
    "TenantQuota",
    "TierSection",
    "TimeoutsSection",
    "TrustSection",
    "VaultSection",
    "WarmSection",
    "WindowSection",
]

_DAY_MS = 24 * 3600 * 1000
# Text in the file where a number belongs is a mistake; flags and variables are parsed before.
_Int = Annotated[int, Field(strict=True)]
_MIB = 1024 * 1024


def _each(wrong: Callable[[str], str | None]) -> AfterValidator:
    def check(text: str) -> str:
        if (words := wrong(text)) is not None:
            raise ValueError(words)
        return text

    return AfterValidator(check)


# "*" is every global address; an empty list allows nothing.
_Allow = tuple[Annotated[str, _each(lambda text: None if text == "*" else wrong_target(text))], ...]
_Deny = tuple[Annotated[str, _each(wrong_target)], ...]


class _Section(BaseModel):
    """Sections within a section come after its own keys, as TOML wants them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Shutdown(_Section):
    # How long running steps may go on after SIGTERM; systemd's own limit is 90 s.
    graceMs: Annotated[_Int, Field(ge=0, le=80_000)] = 10_000


class Api(_Section):
    # A context may have 10 MiB; JSON escapes and the rest of the request need room.
    bodyBytesMax: Annotated[_Int, Field(ge=64 * 1024, le=1024**3)] = 16 * 1024 * 1024
    socketMode: Annotated[_Int, Field(ge=0, le=0o777)] = 0o660


class LimitsSection(_Section):
    """Contract section 2."""

    stepsMax: Annotated[_Int, Field(ge=1, le=1_000_000)] = 1000
    contextBytesMax: Annotated[_Int, Field(ge=1024, le=1024**3)] = 10 * 1024 * 1024
    valueBytesMax: Annotated[_Int, Field(ge=1024, le=1024**3)] = 1024 * 1024
    keysMax: Annotated[_Int, Field(ge=1, le=100_000)] = 500
    depthMax: Annotated[_Int, Field(ge=1, le=100)] = 15


class TimeoutsSection(_Section):
    executionMs: Annotated[_Int, Field(ge=1000, le=3650 * _DAY_MS)] = _DAY_MS
    waitMs: Annotated[_Int, Field(ge=1000, le=3650 * _DAY_MS)] = 7 * _DAY_MS


class JobsNetwork(_Section):
    """How much network an attempt of a stateful handler has; what else is as for all handlers."""

    connections: Annotated[_Int, Field(ge=1, le=1_000_000)] = 10_000
    connectionsAtOnce: Annotated[_Int, Field(ge=1, le=1024)] = 64
    bytesMax: Annotated[_Int, Field(ge=1024, le=1024**4)] = 64 * 1024 * _MIB
    dnsQueriesMax: Annotated[_Int, Field(ge=0, le=1_000_000)] = 10_000


class SandboxNetwork(_Section):
    """What the gateway lets any handler do that asks for network."""

    # What it serves; none: no handler has network.
    ports: tuple[Annotated[_Int, Field(ge=1, le=65535)], ...] = (80, 443)
    allow: _Allow = ("*",)
    deny: _Deny = ()
    # For each execution.
    connections: Annotated[_Int, Field(ge=1, le=1024)] = 64
    bytesMax: Annotated[_Int, Field(ge=1024, le=1024**4)] = 256 * _MIB
    dnsQueriesMax: Annotated[_Int, Field(ge=0, le=100_000)] = 256
    connectMs: Annotated[_Int, Field(ge=1, le=60_000)] = 10_000
    idleMs: Annotated[_Int, Field(ge=1, le=60_000)] = 30_000
    jobs: JobsNetwork = JobsNetwork()


class SandboxSection(_Section):
    # Steps that run at a time; 0 is four for each processor. Those beyond one for each are started
    # when steps wait (for the network, say), and ended when they are idle.
    slots: Annotated[_Int, Field(ge=0, le=256)] = 0
    # Confined processes kept waiting for each fork server, and as many of Node.
    spares: Annotated[_Int, Field(ge=0, le=64)] = 2
    nodeSpares: Annotated[_Int, Field(ge=0, le=64)] = 2
    # What nobody needed for so long is ended.
    idleMs: Annotated[_Int, Field(ge=1, le=_DAY_MS)] = 60_000
    # The layers without which nothing is run.
    require: tuple[str, ...] = tuple(sorted(DEFAULT_REQUIRED))
    # The interpreters of handlers; empty are the daemon's own and the node in PATH.
    python: str = ""
    node: str = ""
    # A value may have 1 MiB, the result around it a little more.
    outputBytesMax: Annotated[_Int, Field(ge=1024, le=64 * _MIB)] = _MIB + 64 * 1024
    logBytesMax: Annotated[_Int, Field(ge=0, le=64 * _MIB)] = _MIB
    # Lines a second that are kept of a handler.
    logRate: Annotated[_Int, Field(ge=1, le=1_000_000)] = 5_000
    # A private /tmp holds so much, for handlers that ask for one.
    tempBytesMax: Annotated[_Int, Field(ge=64 * 1024, le=1024 * _MIB)] = 64 * _MIB
    network: SandboxNetwork = SandboxNetwork()


_AbsolutePath = Annotated[
    str, _each(lambda text: None if text.startswith("/") else "should be an absolute path")
]


class ContainersSection(_Section):
    """Stateful handlers run in containers, which Podman makes."""

    # The program; empty: the one in the usual places.
    podman: Literal[""] | _AbsolutePath = ""
    # Who starts the processes; auto: the first of crun and runc with which every layer holds.
    runtime: Literal["auto", "crun", "runc"] = "auto"
    # Jobs that run at a time; 0: as many as the memory for them allows.
    slots: Annotated[_Int, Field(ge=0, le=4096)] = 0
    # What the limits of all running and frozen containers may add up to; 0: three quarters of the
    # machine's memory.
    memoryBytes: Annotated[_Int, Field(ge=0, le=1024**5)] = 0
    # The private /tmp of each, and its shared memory; both count as its memory.
    tmpBytes: Annotated[_Int, Field(ge=1024 * 1024, le=64 * 1024 * _MIB)] = 256 * _MIB
    # Of what the processes of a container print; the agent's own messages are not among it.
    logBytesMax: Annotated[_Int, Field(ge=4096, le=64 * _MIB)] = _MIB
    # How long one call to Podman may take before its service process is replaced.
    callMs: Annotated[_Int, Field(ge=1000, le=600_000)] = 30_000
    # What does not survive a boot; empty: below /run, or below XDG_RUNTIME_DIR without root.
    runDir: Literal[""] | _AbsolutePath = ""
    # Images of others, read only.
    imageStores: tuple[_AbsolutePath, ...] = ()
    # What images may take of the disk, those of the stores not counted; 0: no bound.
    imageCacheBytes: Annotated[_Int, Field(ge=0, le=1024**5)] = 10 * 1024**3
    # Runtimes and handlers (TYPE or TYPE@VERSION) whose images stay, however long unused.
    imagePins: tuple[str, ...] = ()
    # As root each container has 65,536 users of the host from here on, 4096 ranges in all.
    uidBase: Annotated[_Int, Field(ge=65_536, le=2**31 - 4096 * 65_536)] = 2_000_000
    # A CDI device for the class gpu (nvidia.com/gpu=all); empty: there is none.
    gpuDevice: str = ""


class WindowSection(_Section):
    """From each moment of a cron expression on, in the machine's time zone."""

    cron: Annotated[str, _each(wrong_cron)]
    minutes: Annotated[_Int, Field(ge=1, le=7 * 24 * 60)]
    warm: Annotated[_Int, Field(ge=1, le=64)]


class HandlerNetwork(_Section):
    """Bounds what a handler's manifest asks for; it never adds to it."""

    allow: _Allow = ("*",)
    deny: _Deny = ()


class HandlerSection(_Section):
    """What the operator says of one handler type, under `[handlers."TYPE"]`."""

    # "reuse": the same process for many executions of one version and tenant.
    policy: Literal["fresh", "reuse"] = "fresh"
    reuseUses: Annotated[_Int, Field(ge=1, le=1_000_000)] = 100
    reuseIdleMs: Annotated[_Int, Field(ge=1, le=3_600_000)] = 60_000
    reuseAgeMs: Annotated[_Int, Field(ge=1, le=_DAY_MS)] = 600_000
    # Processes that wait for a call of it have imported it (python only).
    preload: bool = False
    # Containers of a stateful one that are always warm, and those of some hours of the week.
    warm: Annotated[_Int, Field(ge=0, le=64)] = 0
    warmWindows: tuple[WindowSection, ...] = ()
    # Networks that are not global and that it may reach all the same.
    privateNetworks: tuple[Annotated[str, _each(wrong_network)], ...] = ()
    network: HandlerNetwork = HandlerNetwork()


class AllowSection(_Section):
    """What handlers may ask for. A package that asks for more is not published."""

    network: _Allow = ("*",)
    filesystem: tuple[Literal["none", "readonly", "temp"], ...] = ("none", "readonly", "temp")
    # Names of secrets, `*` and `?` stand for anything.
    secrets: tuple[str, ...] = ("*",)
    stateful: bool = True
    # Of stateful handlers; the other two of stateless ones, in MiB and cores.
    resources: tuple[Literal["light", "medium", "heavy", "gpu"], ...] = (
        *("light", "medium", "heavy", "gpu"),
    )
    memory: Annotated[_Int, Field(ge=1, le=1024 * 1024)] = 1024
    cpu: Annotated[float, Field(gt=0, le=64)] = 2.0


class HandlersSection(_Section):
    """What is said of all handlers; beside it, under their types, what is said of one."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, HandlerSection] = Field(init=False)

    # Packages that no trusted key has signed are refused.
    requireSignature: bool = False
    allow: AllowSection = AllowSection()

    def of(self, handler_type: str) -> HandlerSection:
        """What is said of one type; the defaults for one without a table."""
        return self.__pydantic_extra__.get(handler_type, _SAID_NOTHING)


_SAID_NOTHING = HandlerSection()


def _public_key(text: str) -> str | None:
    from flowmonkeyd.documents.signing import parse_public  # brings cryptography: 10 ms

    try:
        _, name = parse_public(text)
    except Invalid as exc:
        return exc.message
    return None if name else "should be ed25519:BASE64 NAME, the line of a .pub file"


class TrustSection(_Section):
    """Whose signatures count here, beside what `flowctl key trust` adds."""

    keys: tuple[Annotated[str, _each(_public_key)], ...] = ()


class HashicorpSection(_Section):
    """A HashiCorp Vault or OpenBao server with a KV v2 engine, read only."""

    # https://vault.example.com:8200; without TLS on this machine only.
    address: Annotated[str, _each(wrong_address)] = ""
    namespace: str = ""
    mount: Annotated[str, Field(min_length=1)] = "secret"
    # Where a secret is in the engine, its value in the field `value` (`base64` for bytes).
    path: Annotated[str, _each(wrong_path)] = "flowmonkey/{tenant}/{name}"
    # The authority of its certificate; empty: those of the system.
    caFile: str = ""
    # Who this daemon is there: a token, or the two halves of an AppRole.
    tokenFile: str = ""
    roleId: str = ""
    secretIdFile: str = ""
    roleMount: Annotated[str, Field(min_length=1)] = "approle"
    timeoutMs: Annotated[_Int, Field(ge=100, le=60_000)] = 5_000
    # For so long a value is used without asking again; kept sealed.
    cacheMs: Annotated[_Int, Field(ge=0, le=_DAY_MS)] = 60_000


def _dollars(text: str) -> str | None:
    try:
        nanos(text)
    except ValueError as exc:
        return str(exc)
    return None


_Dollars = Annotated[str, _each(_dollars)]


class TierSection(_Section):
    """A price for handlers that declare at most so much."""

    memory: Annotated[_Int, Field(ge=1, le=1024 * 1024)]
    cpu: Annotated[float, Field(gt=0, le=64)]
    price: _Dollars


class RatesSection(_Section):
    """What a second of a stateful handler's active time costs, by its resources."""

    light: _Dollars = "0.00001"
    medium: _Dollars = "0.00003"
    heavy: _Dollars = "0.0001"
    gpu: _Dollars = "0.0005"

    def of(self, resources: str) -> str:
        rates = {"light": self.light, "medium": self.medium, "heavy": self.heavy, "gpu": self.gpu}
        return rates[resources]


class BillingSection(_Section):
    """What an execution of a stateless handler costs, in dollars as text: the seed's prices. Beside
    it those of stateful ones."""

    small: TierSection = TierSection(memory=256, cpu=0.5, price="0.0001")
    medium: TierSection = TierSection(memory=512, cpu=1.0, price="0.0003")
    large: TierSection = TierSection(memory=1024, cpu=2.0, price="0.0008")
    jobs: RatesSection = RatesSection()


class JobsSection(_Section):
    """How stateful handlers are run."""

    # Containers that may be lost (a crash, an OOM, no heartbeat) before the step fails.
    maxAttempts: Annotated[_Int, Field(ge=1, le=100)] = 3
    # The wait after a lost one doubles each time, up to the second.
    backoffMs: Annotated[_Int, Field(ge=0, le=3_600_000)] = 1000
    maxBackoffMs: Annotated[_Int, Field(ge=0, le=3_600_000)] = 60_000
    # How often an agent says that it lives; three that are missed are too many. What a job was
    # active is on disk as often: a power cut costs nobody more than this.
    heartbeatMs: Annotated[_Int, Field(ge=100, le=60_000)] = 5000
    # Between telling a handler that it is cancelled and killing it.
    cancelGraceMs: Annotated[_Int, Field(ge=0, le=60_000)] = 2000
    # How long a daemon that was started again waits for the agent of a container that runs on.
    adoptMs: Annotated[_Int, Field(ge=100, le=600_000)] = 30_000
    # A paused container is kept frozen for so long; later its job goes on in a new one.
    frozenMs: Annotated[_Int, Field(ge=0, le=30 * _DAY_MS)] = 3_600_000
    # So long after a job has ended its checkpoints can be had, and be gone on from by a retry.
    checkpointDays: Annotated[_Int, Field(ge=0, le=3650)] = 7


class WarmSection(_Section):
    """Containers that wait for stateful handlers."""

    # Of one kind; how many there are follows demand.
    most: Annotated[_Int, Field(ge=0, le=256)] = 8
    # Of all that wait, an idle one counted with 16 MiB.
    bytesMax: Annotated[_Int, Field(ge=0, le=1024**4)] = 256 * _MIB
    # What nobody asked for so long is ended, but for what is declared.
    idleMs: Annotated[_Int, Field(ge=1, le=_DAY_MS)] = 600_000
    # When a handler is published so many are started for its first calls.
    onPublish: Annotated[_Int, Field(ge=0, le=64)] = 1
    # By runtime image, generic ones that any handler can be given: {python311 = 1}.
    runtimes: Mapping[str, Annotated[_Int, Field(ge=0, le=64)]] = Field(default_factory=dict)


class TenantQuota(_Section):
    """What a tenant may start in a UTC day and spend in a UTC month; 0 and "": no limit."""

    executionsPerDay: Annotated[_Int, Field(ge=0, le=10**12)] = 0
    spendPerMonth: Literal[""] | _Dollars = ""


class QuotaSection(TenantQuota):
    """The quota of every tenant, and of those that have another one."""

    tenants: Mapping[str, TenantQuota] = Field(default_factory=dict)


class VaultSection(_Section):
    """Who keeps the secrets of users."""

    provider: Literal["local", "hashicorp"] = "local"
    # The key of the local vault; empty: see docs/secrets.md for where else it can come from.
    keyFile: str = ""
    hashicorp: HashicorpSection = HashicorpSection()


class ShippedSection(_Section):
    """The handlers that come with FlowMonkey."""

    # Publish those that are missing at every start.
    install: bool = True


class LogSection(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "human", "json"] = "auto"


class Settings(_Section):
    """Everything an operator can set. Paths are absolute."""

    socket: Path
    dataDir: Path
    shutdown: Shutdown = Shutdown()
    api: Api = Api()
    limits: LimitsSection = LimitsSection()
    timeouts: TimeoutsSection = TimeoutsSection()
    sandbox: SandboxSection = SandboxSection()
    containers: ContainersSection = ContainersSection()
    log: LogSection = LogSection()
    shipped: ShippedSection = ShippedSection()
    billing: BillingSection = BillingSection()
    quotas: QuotaSection = QuotaSection()
    jobs: JobsSection = JobsSection()
    warm: WarmSection = WarmSection()
    trust: TrustSection = TrustSection()
    vault: VaultSection = VaultSection()
    handlers: HandlersSection = HandlersSection()
