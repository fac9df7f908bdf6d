"""The shapes all commands share: the groups, the global options, and how JSON is given.

`-o`, `--socket`, `--no-headers` and `--request-timeout` work before and after the command. A group
imports a command's module only when that command is used.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from flowctl.client import Client, socket_path
from flowctl.output import Output
from flowctl.problems import FlowctlError, ReaderGone

__all__ = [
    "FORMS",
    "NULL",
    "LazyGroup",
    "Leaf",
    "Noun",
    "Session",
    "given",
    "global_options",
    "json_option",
    "json_value",
    "limit_option",
    "live_ids",
    "moment",
]

FORMS = ("table", "json", "yaml")
REQUEST_TIMEOUT_S = 60.0  # above the longest an answer may take: a large flow on a busy disk
COMPLETION_TIMEOUT_S = 1.0  # a person waits for the shell
LIST_LIMIT = 100  # items a list shows unless told; a screenful or two


NULL = object()


class Session:
    """What the global options said; makes the client and the output when first used."""

    def __init__(self) -> None:
        self.socket: str | None = None
        self.timeout_s = REQUEST_TIMEOUT_S
        self.output = Output()

    def client(self, timeout_s: float | None = None) -> Client:
        return Client(socket_path(self.socket), timeout_s or self.timeout_s)


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        session = ctx.ensure_object(Session)
        if value is None or value is False:
            return
        if name == "form":
            session.output.form = value
        elif name == "headers":
            session.output.headers = False
        else:
            setattr(session, name, value)

    return callback


def global_options() -> list[click.Parameter]:
    """Fresh instances of the options every command takes."""
    return [
        click.Option(
            ["-o", "--output"],
            type=click.Choice(FORMS),
            expose_value=False,
            callback=_remember("form"),
            help="How to print: table (default), json as the API answers, or yaml.",
        ),
        click.Option(
            ["--socket"],
            metavar="PATH",
            type=click.Path(),
            expose_value=False,
            callback=_remember("socket"),
            help="The daemon's socket (also FLOWMONKEY_SOCKET).",
        ),
        click.Option(
            ["--no-headers"],
            is_flag=True,
            expose_value=False,
            callback=_remember("headers"),
            help="Tables without their first line.",
        ),
        click.Option(
            ["--request-timeout"],
            metavar="S",
            type=click.FloatRange(min=0, min_open=True),
            expose_value=False,
            callback=_remember("timeout_s"),
            help=f"Seconds to wait for one answer of the daemon ({REQUEST_TIMEOUT_S:g}).",
        ),
    ]


class Leaf(click.Command):
    """A command that does something; it takes the global options too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options()


class Noun(click.Group):
    """A group of commands on one kind of thing; an unknown one gets the nearest names."""

    command_class = Leaf

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and name[:1].isalnum():
            from difflib import get_close_matches

            near = get_close_matches(name, self.list_commands(ctx))
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"no such command: {name}{hint}", ctx)
        return super().resolve_command(ctx, args)


class LazyGroup(Noun):
    """The root group: `places` says in which module each command is, imported on demand."""

    def __init__(self, *args: Any, places: dict[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places = places

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a reader that has gone gets a kind of its own before click sees it."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as exc:
            raise ReaderGone from exc
        return result

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self._places.get(cmd_name)
        if place is None:
            return None
        from importlib import import_module

        module, _, name = place.partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


def json_option(*names: str, mapping: bool = False, help: str) -> Callable[..., Any]:
    """An option whose value is JSON: in place, as @FILE, or `-` for stdin.

    `mapping` asks for an object. What cannot be read is a usage error with line and column.
    JSON's null becomes NULL, since None says that the option was not given; `given` takes both.
    """

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        if value is None or ctx.resilient_parsing:
            return None
        try:
            parsed = json_value(value, mapping)
        except ValueError as exc:
            raise click.BadParameter(str(exc), ctx, param) from exc
        return NULL if parsed is None else parsed

    return click.option(*names, metavar="JSON|@FILE|-", callback=callback, help=help)


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A request body with the fields that were given on the command line."""
    return {
        name: None if value is NULL else value
        for name, value in fields.items()
        if value is not None
    }


def moment(text: str | None, option: str) -> str | None:
    """A time as the API takes it: a span such as `30m` is that long ago, a date its first moment
    (UTC); anything else goes to the daemon as it is."""
    from datetime import UTC, date, datetime, timedelta

    if text is None:
        return None
    try:
        return f"{date.fromisoformat(text)}T00:00:00Z"
    except ValueError:
        pass
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86_400}.get(text[-1:])
    if seconds is None or not text[:-1].isdecimal():
        return text
    try:
        past = datetime.now(UTC) - timedelta(seconds=int(text[:-1]) * seconds)
    except OverflowError:
        raise click.BadParameter(f"{text} is too long ago", param_hint=f"'{option}'") from None
    return past.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def json_value(value: str, mapping: bool) -> Any:
    """What `json_option` reads; ValueError, in words, for what it cannot."""
    text, place = _json_text(value)
    try:
        parsed = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as exc:
        where = f"line {exc.lineno}, column {exc.colno}"
        raise ValueError(f"{place} is not JSON: {exc.msg} ({where})") from exc
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"{place} is not JSON: {exc}") from exc
    if mapping and not isinstance(parsed, dict):
        raise ValueError(f'{place} must be a JSON object, like {{"n": 1}}')
    return parsed


def _json_text(value: str) -> tuple[str, str]:
    """The text and where it came from, for messages."""
    if value != "-" and not value.startswith("@"):
        return value, "the value"
    place = "stdin" if value == "-" else value[1:]
    try:
        if value == "-":
            return sys.stdin.buffer.read().decode(), place
        with open(place, encoding="utf-8") as file:
            return file.read(), place
    except UnicodeDecodeError as exc:
        raise ValueError(f"{place} is not JSON: it is not UTF-8 (byte {exc.start})") from exc
    except OSError as exc:
        raise ValueError(f"cannot read {place}: {(exc.strerror or str(exc)).lower()}") from exc


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def limit_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--limit N` of every list."""
    return click.option(
        "--limit",
        type=click.IntRange(min=1),
        default=LIST_LIMIT,
        show_default=True,
        help="The most items to list.",
    )(command)


def live_ids(
    path: str, field: str = "id"
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """A shell completion with the ids the daemon knows; silent when it cannot be asked."""

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        client = ctx.ensure_object(Session).client(COMPLETION_TIMEOUT_S)
        try:
            items = client.pages(path, {}, LIST_LIMIT).items
        except FlowctlError:  # a completion has nowhere to complain
            return []
        found = dict.fromkeys(str(item.get(field)) for item in items)
        return [value for value in found if value.startswith(incomplete)]

    return complete
