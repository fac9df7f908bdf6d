"""`flowctl secret …`: set, list, rm, rotate-key.

A value comes from stdin or from a prompt that does not show it, never from an argument, which the
whole machine can read in /proc. No command shows one.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import click

from flowctl.client import segment
from flowctl.options import Noun, Session, limit_option
from flowctl.output import Column

__all__ = ["secret"]

VALUE_BYTES_MAX = 64 * 1024  # what the daemon takes
LIST: tuple[Column, ...] = (
    ("TENANT", lambda row: row.get("tenantId")),
    ("NAME", lambda row: row.get("name")),
    ("VERSION", lambda row: row.get("version")),
    ("ENCODING", lambda row: row.get("encoding")),
    ("CREATED", lambda row: row.get("createdAt")),
    ("UPDATED", lambda row: row.get("updatedAt")),
)

_tenant_option = click.option(
    "--tenant", metavar="T", default="default", show_default=True, help="Whose secret it is."
)


@click.group(cls=Noun)
def secret() -> None:
    """What handlers may read and nobody may see: keys, tokens, passwords.

    \b
    Example:
      flowctl secret set apiKey < key.txt
      flowctl secret list
    """


@secret.command("set")
@click.argument("name", metavar="NAME")
@_tenant_option
@click.option("--binary", "is_binary", is_flag=True, help="Bytes; a handler gets their base64.")
@click.pass_obj
def set_(session: Session, name: str, tenant: str, is_binary: bool) -> None:
    """Keep a secret, or give it another value, from stdin or a prompt.

    One line break at the end of a text is not part of it; --binary takes every byte.

    \b
    Example:
      flowctl secret set apiKey
      flowctl secret set tls-key --tenant acme < key.pem
      flowctl secret set seed --binary < seed.bin
    """
    body = {"value": _value(name, is_binary), "encoding": "base64" if is_binary else "text"}
    client = session.client()
    path = f"/v1/secrets/{segment(name)}"
    answer = client.send("PUT", path, body, {"tenant": tenant})

    def words(now: dict[str, Any]) -> None:
        how = "kept" if answer.status == 201 else "has a new value"
        session.output.line(f"{now.get('name')}: {how} (version {now.get('version')})")

    session.output.answer(answer, words)


@secret.command("list")
@click.option("--tenant", metavar="T", help="Of this tenant only.")
@limit_option
@click.pass_obj
def list_(session: Session, tenant: str | None, limit: int) -> None:
    """List the secrets there are: names and dates.

    \b
    Example:
      flowctl secret list --tenant acme
    """
    session.output.listing(session.client().pages("/v1/secrets", {"tenant": tenant}, limit), LIST)


@secret.command()
@click.argument("name", metavar="NAME")
@_tenant_option
@click.pass_obj
def rm(session: Session, name: str, tenant: str) -> None:
    """Forget a secret. Steps that need it fail from now on.

    \b
    Example:
      flowctl secret rm apiKey
    """
    path = f"/v1/secrets/{segment(name)}"
    answer = session.client().request("DELETE", path, params={"tenant": tenant})
    session.output.answer(answer, lambda now: session.output.line(f"{now.get('name')}: removed"))


@secret.command("rotate-key")
@click.pass_obj
def rotate_key(session: Session) -> None:
    """Make a new key for the vault and seal every secret anew under it.

    The old key is forgotten after that, but a copy of the data from before still opens with it.

    \b
    Example:
      flowctl secret rotate-key
    """
    answer = session.client().request("POST", "/v1/secrets:rotateKey")

    def words(now: dict[str, Any]) -> None:
        session.output.line(f"sealed under the new key {now.get('keyId')}: {now.get('secrets')}")
        session.output.note("keep a copy of the new key, and the old one as long as old backups")

    session.output.answer(answer, words)


def _value(name: str, is_binary: bool) -> str:
    if not is_binary and sys.stdin.isatty():
        value: str = click.prompt(f"value of {name}", hide_input=True, err=True)
        return value
    data = sys.stdin.buffer.read(VALUE_BYTES_MAX + 3)  # one too many, and a line break
    if is_binary:
        return base64.b64encode(data).decode()
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise click.UsageError(
            "cannot take the value: it is not text in UTF-8; say --binary, and a handler gets it "
            "as base64"
        ) from None
    return text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")
