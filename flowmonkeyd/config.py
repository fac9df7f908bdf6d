"""The configuration: one frozen tree of settings, where each came from, what is wrong with it.

Flags beat the environment (`FLOWMONKEY_SOCKET`, `FLOWMONKEY_DATA_DIR`, `FLOWMONKEY_CONFIG`,
`FLOWMONKEY_<SECTION>__<KEY>`), which beats the TOML file, which beats the defaults here. An unknown
key or a value out of range stops the start with one line each. A variable that is empty counts as
not set. Reads one file and nothing else.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowmonkeyd.documents.problems import problems_of
from sandbox.model import ALL_LAYERS, DEFAULT_REQUIRED

__all__ = [
    "Api",
    "ConfigError",
    "LimitsSection",
    "Loaded",
    "LogSection",
    "SandboxSection",
    "Settings",
    "Shutdown",
    "TimeoutsSection",
    "load",
    "print_config",
]

_DAY_MS = 24 * 3600 * 1000
# Text in the file where a number belongs is a mistake; flags and variables are parsed before.
_Int = Annotated[int, Field(strict=True)]


class _Section(BaseModel):
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


class SandboxSection(_Section):
    # Steps that run at a time; 0 is one for each processor.
    slots: Annotated[_Int, Field(ge=0, le=256)] = 0
    # Confined processes kept waiting for each fork server.
    spares: Annotated[_Int, Field(ge=0, le=64)] = 2
    # The layers without which nothing is run.
    require: tuple[str, ...] = tuple(sorted(DEFAULT_REQUIRED))
    # The interpreter of handlers; empty is the daemon's own.
    python: str = ""
    # A value may have 1 MiB, the result around it a little more.
    outputBytesMax: Annotated[_Int, Field(ge=1024, le=64 * 1024**2)] = 1024 * 1024 + 64 * 1024
    logBytesMax: Annotated[_Int, Field(ge=0, le=64 * 1024**2)] = 1024 * 1024


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
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def take(key: str, value: Any, origin: str) -> None:
        values[key], origins[key] = value, origin

    for key in ("socket", "dataDir"):
        take(key, str(places[key]), "default")
    file, asked = _file(flags, environ, places)
    for key, value in _flatten(_read(file, asked)).items():
        take(key, value, str(file))
    defaults = _defaults()
    variables = {_variable(key): key for key in defaults}
    lines: list[str] = []
    for name, text in environ.items():
        if name in variables and text:
            take(variables[name], _parsed(defaults[variables[name]], text), name)
        elif name.startswith("FLOWMONKEY_") and "__" in name and name not in variables:
            lines.append(f"{name}: unknown variable; see `flowmonkeyd --print-config` for keys")
    for key, text in flags.items():
        if key != "config":
            take(key, _parsed(defaults.get(key), text), "flag")
    for key in [key for key in values if key not in defaults]:
        value = values.pop(key)
        if key not in Settings.model_fields:
            lines.append(f"{origins[key]}: {key}: unknown key; see `flowmonkeyd --print-config`")
        elif value != {}:
            lines.append(f"{origins[key]}: {key} = {value!r}: should be a section")
    for key in ("socket", "dataDir"):
        # An empty path would be the working directory, nobody's intention.
        if isinstance(text := values[key], str) and text:
            values[key] = _absolute(text, home)
        else:
            lines.append(f"{origins[key]}: {key} = {text!r}: should be a path")
            values[key] = places[key]  # so that all else is looked at too
    settings = _validated(values, origins, lines)
    return Loaded(settings, {key: origins.get(key, "default") for key in defaults})


def print_config(loaded: Loaded) -> str:
    """The effective configuration as TOML, each value with its source in a comment."""
    lines, section = [], ""
    for key, value in _flatten(loaded.settings.model_dump(mode="json")).items():
        head, dot, tail = key.rpartition(".")
        if head != section:
            lines.extend(["", f"[{head}]"])
            section = head
        shown = oct(value) if key == "api.socketMode" else _toml(value)
        lines.append(f"{tail if dot else key} = {shown}  # {loaded.origins[key]}")
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


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _absolute(text: str, home: Path) -> Path:
    return (home / text[2:] if text.startswith("~/") else Path(text)).absolute()


def _defaults() -> dict[str, Any]:
    """Every dotted key with its default (None for the two without)."""
    defaults: dict[str, Any] = {"socket": None, "dataDir": None}
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            dumped = field.default.model_dump(mode="json")
            defaults.update({f"{name}.{key}": value for key, value in dumped.items()})
    return defaults


def _variable(key: str) -> str:
    """`shutdown.graceMs` is FLOWMONKEY_SHUTDOWN__GRACE_MS."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).replace(".", "__")
    return f"FLOWMONKEY_{words.upper()}"


def _parsed(default: Any, text: str) -> Any:
    """Text from a flag or variable as the type its default has."""
    if isinstance(default, int):
        try:
            return int(text, 0)
        except ValueError:
            return text  # refused by the model, with the key's name
    if isinstance(default, list):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _validated(values: Mapping[str, Any], origins: Mapping[str, str], lines: list[str]) -> Settings:
    """The settings of values under known keys; `lines` are the problems found before."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        section, dot, name = key.partition(".")
        (tree.setdefault(section, {}) if dot else tree)[name or section] = value
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as exc:
        for problem in problems_of(exc):
            key = problem.path.removeprefix("$.").partition("[")[0]  # of a list's member: the list
            lines.append(f"{origins[key]}: {key} = {values[key]!r}: {problem.message}")
        raise ConfigError(lines) from None
    for layer in sorted(set(settings.sandbox.require) - set(ALL_LAYERS)):
        where = f"{origins['sandbox.require']}: sandbox.require"
        known = ", ".join(ALL_LAYERS)
        lines.append(f"{where}: unknown layer {layer!r}; the layers are {known}")
    if lines:
        raise ConfigError(lines)
    return settings


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # A JSON string is a TOML string, but for what lies beyond ASCII in escapes.
    return json.dumps(str(value), ensure_ascii=False)
