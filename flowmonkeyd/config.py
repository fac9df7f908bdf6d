"""The configuration: one frozen tree of settings, where each came from, what is wrong with it.

Flags beat the environment (`FLOWMONKEY_SOCKET`, `FLOWMONKEY_DATA_DIR`, `FLOWMONKEY_CONFIG`,
`FLOWMONKEY_<SECTION>__<KEY>`), which beats the TOML file, which beats the defaults here. An unknown
key or a value out of range stops the start with one line each. A variable that is empty counts as
not set. What is set for one handler (`[handlers."acme/resize"]`) has no variable. Reads one file
and nothing else.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from flowmonkeyd.documents.manifest import HANDLER_TYPE
from flowmonkeyd.documents.problems import problems_of
from flowmonkeyd.documents.signing import parse_public
from flowmonkeyd.documents.targets import wrong_network, wrong_target
from flowmonkeyd.errors import Invalid
from flowmonkeyd.vault.elsewhere import wrong_address, wrong_path
from sandbox.model import ALL_LAYERS, DEFAULT_REQUIRED

__all__ = [
    "AllowSection",
    "Api",
    "ConfigError",
    "HandlerNetwork",
    "HandlerSection",
    "HandlersSection",
    "HashicorpSection",
    "LimitsSection",
    "Loaded",
    "LogSection",
    "SandboxNetwork",
    "SandboxSection",
    "Settings",
    "Shutdown",
    "TimeoutsSection",
    "TrustSection",
    "VaultSection",
    "load",
    "print_config",
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
# Where a setting is: its names from the top. "*" stands for the name of any handler.
_Key = tuple[str, ...]
_ANY = "*"
_BARE = re.compile(r"[A-Za-z0-9_-]+")


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


class VaultSection(_Section):
    """Who keeps the secrets of users."""

    provider: Literal["local", "hashicorp"] = "local"
    # The key of the local vault; empty: see docs/secrets.md for where else it can come from.
    keyFile: str = ""
    hashicorp: HashicorpSection = HashicorpSection()


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
    log: LogSection = LogSection()
    trust: TrustSection = TrustSection()
    vault: VaultSection = VaultSection()
    handlers: HandlersSection = HandlersSection()


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and where each dotted key came from."""

    settings: Settings
    origins: Mapping[str, str]


class ConfigError(Exception):
    """The configuration cannot be used; `lines` has one line for each problem."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


def load(flags: Mapping[str, str], environ: Mapping[str, str], is_root: bool, home: Path) -> Loaded:
    """The effective configuration. `flags` may have socket, dataDir, config and dotted keys.

    Raises ConfigError with every problem.
    """
    places = _places(environ, is_root, home)
    values: dict[_Key, Any] = {}
    origins: dict[_Key, str] = {}

    def take(key: _Key, value: Any, origin: str) -> None:
        values[key], origins[key] = value, origin

    for name in ("socket", "dataDir"):
        take((name,), str(places[name]), "default")
    file, asked = _file(flags, environ, places)
    for key, value in _flatten(_read(file, asked)).items():
        take(key, value, str(file))
    defaults = _defaults()
    variables = {_variable(key): key for key in defaults if _ANY not in key}
    lines: list[str] = []
    for name, text in environ.items():
        if name in variables and text:
            take(variables[name], _parsed(defaults[variables[name]], text), name)
        elif name.startswith("FLOWMONKEY_") and "__" in name and name not in variables:
            lines.append(f"{name}: unknown variable; see `flowmonkeyd --print-config` for keys")
    for written, text in flags.items():
        if written != "config":
            key = _key(written)
            take(key, _parsed(defaults.get(_general(key)), text), "flag")
    for key in [key for key in values if _general(key) not in defaults]:
        value, where = values.pop(key), f"{origins[key]}: {_dotted(key)}"
        if not any(one[: len(key)] == _general(key) for one in defaults):
            lines.append(f"{where}: unknown key; see `flowmonkeyd --print-config`")
        elif value != {}:
            lines.append(f"{where} = {value!r}: should be a section")
    for name in ("socket", "dataDir"):
        # An empty path would be the working directory, nobody's intention.
        if isinstance(text := values[(name,)], str) and text:
            values[(name,)] = _absolute(text, home)
        else:
            lines.append(f"{origins[(name,)]}: {name} = {text!r}: should be a path")
            values[(name,)] = places[name]  # so that all else is looked at too
    settings = _validated(values, origins, lines)
    shown = _flatten(settings.model_dump(mode="json"))
    return Loaded(settings, {_dotted(key): origins.get(key, "default") for key in shown})


def print_config(loaded: Loaded) -> str:
    """The effective configuration as TOML, each value with its source in a comment."""
    lines = []
    section: _Key = ()
    for key, value in _flatten(loaded.settings.model_dump(mode="json")).items():
        if value == {}:  # of no handler
            continue
        if key[:-1] != section:
            section = key[:-1]
            lines.extend(["", f"[{_dotted(section)}]"])
        shown = oct(value) if key == ("api", "socketMode") else _toml(value)
        lines.append(f"{_dotted(key[-1:])} = {shown}  # {loaded.origins[_dotted(key)]}")
    return "\n".join(lines)


def _places(environ: Mapping[str, str], is_root: bool, home: Path) -> dict[str, Path]:
    """Contract section 1."""
    if is_root:
        return {
            "socket": Path("/run/flowmonkey/flowmonkeyd.sock"),
            "dataDir": Path("/var/lib/flowmonkey"),
            "config": Path("/etc/flowmonkey/flowmonkeyd.toml"),
        }
    runtime = environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) if runtime else home / ".local/state"
    data = Path(environ.get("XDG_DATA_HOME") or home / ".local/share")
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    return {
        "socket": base / "flowmonkey/flowmonkeyd.sock",
        "dataDir": data / "flowmonkey",
        "config": config / "flowmonkey/flowmonkeyd.toml",
    }


def _file(
    flags: Mapping[str, str], environ: Mapping[str, str], places: Mapping[str, Path]
) -> tuple[Path, bool]:
    named = flags.get("config") or environ.get("FLOWMONKEY_CONFIG")
    return (Path(named), True) if named else (places["config"], False)


def _read(file: Path, asked: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if asked:
            raise ConfigError([f"{file}: there is no such file"]) from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError([f"{file}: cannot read the configuration: {exc}"]) from None


def _flatten(tree: Mapping[str, Any], above: _Key = ()) -> dict[_Key, Any]:
    flat: dict[_Key, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, (*above, name)))
        else:
            flat[*above, name] = value
    return flat


def _dotted(key: _Key) -> str:
    return ".".join(one if _BARE.fullmatch(one) else json.dumps(one) for one in key)


def _key(text: str) -> _Key:
    """A key as TOML writes it: `a.b`, `a."b.c".d`."""
    try:
        tree: Any = tomllib.loads(f"{text} = 0")
    except tomllib.TOMLDecodeError:
        return (text,)
    found: _Key = ()
    while isinstance(tree, dict):
        if len(tree) != 1:
            return (text,)
        ((name, tree),) = tree.items()
        found = (*found, name)
    return found


def _general(key: _Key) -> _Key:
    if key[:1] != ("handlers",) or len(key) < 2 or key[1] in HandlersSection.model_fields:
        return key
    return ("handlers", _ANY, *key[2:])


def _absolute(text: str, home: Path) -> Path:
    return (home / text[2:] if text.startswith("~/") else Path(text)).absolute()


def _defaults() -> dict[_Key, Any]:
    """Every key with its default (None for the two without)."""
    defaults: dict[_Key, Any] = {("socket",): None, ("dataDir",): None}
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            defaults.update(_flatten(field.default.model_dump(mode="json"), (name,)))
    one = HandlerSection().model_dump(mode="json")
    return {**defaults, **_flatten(one, ("handlers", _ANY))}


def _variable(key: _Key) -> str:
    """`shutdown.graceMs` is FLOWMONKEY_SHUTDOWN__GRACE_MS."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", "__".join(key))
    return f"FLOWMONKEY_{words.upper()}"


def _parsed(default: Any, text: str) -> Any:
    """Text from a flag or variable as the type its default has."""
    if isinstance(default, int):
        try:
            return int(text, 0)
        except ValueError:
            return text  # refused by the model, with the key's name
    if isinstance(default, list):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return [_parsed(default[0], part) for part in parts] if default else parts
    return text


def _validated(
    values: Mapping[_Key, Any], origins: Mapping[_Key, str], lines: list[str]
) -> Settings:
    """The settings of values under known keys; `lines` are the problems found before."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        place = tree
        for name in key[:-1]:
            place = place.setdefault(name, {})
        place[key[-1]] = value
    for name in tree.get("handlers", {}).keys() - HandlersSection.model_fields.keys():
        if not HANDLER_TYPE.fullmatch(name):
            lines.append(f"{_dotted(('handlers', name))}: is no handler's type")
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as exc:
        for found, problem in zip(exc.errors(), problems_of(exc), strict=True):
            # of a list's member: the list
            key = tuple(part for part in found["loc"] if isinstance(part, str))
            lines.append(f"{origins[key]}: {_dotted(key)} = {values[key]!r}: {problem.message}")
        raise ConfigError(lines) from None
    for layer in sorted(set(settings.sandbox.require) - set(ALL_LAYERS)):
        where = f"{origins[('sandbox', 'require')]}: sandbox.require"
        known = ", ".join(ALL_LAYERS)
        lines.append(f"{where}: unknown layer {layer!r}; the layers are {known}")
    if lines:
        raise ConfigError(lines)
    return settings


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # A JSON string is a TOML string, but for what lies beyond ASCII in escapes.
    return json.dumps(str(value), ensure_ascii=False)
