"""`flowctl handler …`: publish, list, show, yank."""

from __future__ import annotations

from typing import Any

import click

from flowctl.client import segment
from flowctl.options import Noun, Session, limit_option, live_ids
from flowctl.output import Column

__all__ = ["handler"]

LIST: tuple[Column, ...] = (
    ("TYPE", lambda row: row.get("type")),
    ("VERSION", lambda row: row.get("version")),
    ("RUNTIME", lambda row: row.get("runtime")),
    ("STATEFUL", lambda row: row.get("stateful")),
    ("BYTES", lambda row: row.get("sizeBytes")),
    ("PUBLISHED", lambda row: row.get("publishedAt")),
    ("YANKED", lambda row: row.get("yankedAt")),
)

_SHOWN = ("type", "version", "name", "description", "runtime", "stateful", "digest", "sizeBytes")
_DATES = ("publishedAt", "yankedAt")
_TYPES = live_ids("/v1/handlers", "type")


@click.group(cls=Noun)
def handler() -> None:
    """The packages of code that steps run.

    \b
    Example:
      flowctl handler publish ./resize
    """


@handler.command()
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@click.pass_obj
def publish(session: Session, folder: str) -> None:
    """Publish the handler in DIR under the type and version of its handler.json.

    All regular files of DIR go into the package, without __pycache__, compiled files and what
    version control keeps. A symbolic link is refused.

    \b
    Example:
      flowctl handler publish ./resize
    """
    from flowctl.documents import pack

    output = session.output
    client = session.client()
    answer = client.request("PUT", "/v1/handlers", pack(folder), content_type="application/zip")

    def words(published: dict[str, Any]) -> None:
        how = "published" if published.get("created") else "unchanged"
        output.line(f"{published.get('type')}@{published.get('version')}: {how}")

    output.answer(answer, words)
    for warning in answer.fields().get("warnings") or []:
        output.note(f"warning: {warning.get('path')}: {warning.get('message')}")


@handler.command("list")
@limit_option
@click.pass_obj
def list_(session: Session, limit: int) -> None:
    """List the handlers that were published.

    \b
    Example:
      flowctl handler list
    """
    session.output.listing(session.client().pages("/v1/handlers", {}, limit), LIST)


@handler.command()
@click.argument("reference", metavar="TYPE[@V]", shell_complete=_TYPES)
@click.pass_obj
def show(session: Session, reference: str) -> None:
    """Show all versions of a handler, newest first, or one version with its manifest.

    \b
    Example:
      flowctl handler show acme/resize
      flowctl handler show acme/resize@1.2.0 -o yaml
    """
    type_, at, version = reference.partition("@")
    client, output = session.client(), session.output
    if not at:
        output.listing(client.pages(f"/v1/handlers/{segment(type_)}", {}), LIST)
        return

    def words(found: dict[str, Any]) -> None:
        from flowctl.output import pretty

        output.pairs([(name, found.get(name)) for name in (*_SHOWN, *_DATES)])
        output.line("manifest")
        output.lines(pretty(found.get("manifest")))

    output.answer(client.get(_path(type_, version)), words)


@handler.command()
@click.argument("reference", metavar="TYPE@V", shell_complete=_TYPES)
@click.pass_obj
def yank(session: Session, reference: str) -> None:
    """Take a version out of use for new executions; those that have it keep it.

    \b
    Example:
      flowctl handler yank acme/resize@1.2.0
    """
    type_, _, version = reference.partition("@")
    if not type_ or not version:
        raise click.BadParameter(
            "name the version too, like acme/resize@1.2.0", param_hint="TYPE@V"
        )
    answer = session.client().send("POST", f"{_path(type_, version)}/yank", {})
    output = session.output
    output.answer(
        answer, lambda now: output.line(f"{now.get('type')}@{now.get('version')}: yanked")
    )


def _path(type_: str, version: str) -> str:
    return f"/v1/handlers/{segment(type_)}/{segment(version)}"
