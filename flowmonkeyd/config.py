"""The configuration: from where each setting comes, and what is wrong with it.

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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from flowmonkeyd.documents.manifest import HANDLER_TYPE
from flowmonkeyd.documents.problems import problems_of
from flowmonkeyd.settings import HandlerSection, HandlersSection, Settings, TenantQuota
from sandbox.model import ALL_LAYERS

__all__ = ["ConfigError", "Loaded", "load", "print_config"]

# Where a setting is: its names from the top. "*" stands for the name of any handler.
_Key = tuple[str, ...]
_ANY = "*"
_BARE = re.compile(r"[A-Za-z0-9_-]+")


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
    if key[:2] == ("quotas", "tenants") and len(key) > 2:
        return ("quotas", "tenants", _ANY, *key[3:])
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
    quota = TenantQuota().model_dump(mode="json")
    return {
        **defaults,
        **_flatten(one, ("handlers", _ANY)),
        **_flatten(quota, ("quotas", "tenants", _ANY)),
    }


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
