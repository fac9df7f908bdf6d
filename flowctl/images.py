"""`flowctl image …`: the images that stateful handlers run in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import click

from flowctl.client import Client, segment
from flowctl.options import Noun, Session
from flowctl.output import Column, duration, neutral
from flowctl.problems import NotCompleted

__all__ = ["image"]

MB = 1000 * 1000
COLUMNS: tuple[Column, ...] = (
    ("IMAGE", lambda row: _name(row)),
    ("KIND", lambda row: row.get("kind")),
    ("RUNTIME", lambda row: row.get("runtime")),
    ("STATE", lambda row: row.get("state")),
    ("SIZE", lambda row: _size(row.get("sizeBytes"))),
    ("OWN LAYER", lambda row: _size(row.get("ownBytes"))),
    ("AGE", lambda row: _age(row.get("builtAt"))),
    ("USED BY", lambda row: _used_by(row)),
)
BUILT: tuple[Column, ...] = (
    ("IMAGE", lambda row: row.get("name")),
    ("STATE", lambda row: row.get("state")),
    ("ID", lambda row: row.get("imageId")),
)


@click.group(cls=Noun)
def image() -> None:
    """Look after the images that stateful handlers run in.

    \b
    Example:
      flowctl image list
      flowctl image build node20-ffmpeg
    """


@image.command("list")
@click.pass_obj
def list_(session: Session) -> None:
    """List images: those of the runtimes, then those of handlers.

    A handler's size counts its runtime, its own layer does not.

    \b
    Example:
      flowctl image list
    """
    found = session.client().get("/v1/images")
    session.output.answer(
        found, lambda page: session.output.table(page.get("items") or [], COLUMNS)
    )


@image.command()
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="Every runtime.")
@click.option("--again", is_flag=True, help="Also what is there, from what the archives have now.")
@click.pass_obj
def build(session: Session, name: str | None, every: bool, again: bool) -> None:
    """Build the image of a runtime or of a handler (TYPE or TYPE@VERSION), and wait for it.

    What the build prints goes to stderr as it comes. Exits with 1 if one could not be built.

    \b
    Example:
      flowctl image build node20-ffmpeg
      flowctl image build acme/film@1.0.0 --again
      flowctl image build --all
    """
    if (name is None) != every:
        raise click.UsageError("give a NAME or --all")
    client = session.client()
    body = {"name": "all" if every else name, "again": again}
    asked = client.send("POST", "/v1/images:build", body).fields()
    ended = [_followed(session, client, one["name"]) for one in asked["items"]]
    # A handler's image is called by its package's digest, and asked for by the handler's name.
    rows = [{**one, "name": name or one["name"]} for one in ended]
    session.output.value(ended, lambda: session.output.table(rows, BUILT))
    if failed := [one["name"] for one in rows if one["state"] != "ready"]:
        raise NotCompleted(f"could not be built: {', '.join(failed)}")


@image.command()
@click.pass_obj
def prune(session: Session) -> None:
    """Remove images that nothing uses now and no pin keeps. They are built again when needed.

    \b
    Example:
      flowctl image prune
    """
    answer = session.client(timeout_s=600).send("POST", "/v1/images:prune", {})

    def words(found: dict[str, Any]) -> None:
        session.output.lines("\n".join(found["removed"]))
        session.output.note(
            f"{len(found['removed'])} removed, {_size(found['bytes']) or 'nothing'} freed"
        )

    session.output.answer(answer, words)


def _followed(session: Session, client: Client, name: str) -> dict[str, Any]:
    """Show a build's lines until it ends; how it ended."""
    for _, item in client.lines(f"/v1/images/{segment(name)}/log", {}):
        if "line" in item:
            session.output.note(neutral(f"{name[:20]}: {item['line']}"))
        else:
            return {"name": name, "state": item.get("state"), "imageId": item.get("imageId")}
    raise NotCompleted("the daemon stopped before the build ended")


def _name(row: Mapping[str, Any]) -> str:
    handlers: Iterable[dict[str, Any]] = row.get("handlers") or ()
    names = [f"{one.get('type')}@{one.get('version')}" for one in handlers]
    return ", ".join(names) or str(row.get("name"))


def _used_by(row: Mapping[str, Any]) -> str | None:
    counts = [
        f"{row.get(key)} {word}" + "s" * (row.get(key) != 1)
        for key, word in (("images", "image"), ("jobs", "job"))
        if row.get(key)
    ]
    return ", ".join(counts) or None


def _age(built_at: Any) -> str | None:
    if not isinstance(built_at, str):
        return None
    ago = datetime.now(UTC) - datetime.fromisoformat(built_at)
    return duration(max(0, int(ago.total_seconds() * 1000)))


def _size(count: Any) -> str | None:
    return f"{count / MB:.1f} MB" if isinstance(count, int) and count else None
