"""`flowctl key …`: a publisher's own keys, and whose keys this daemon trusts.

`new` and `list --own` need no daemon. No command shows or sends a private key.
"""

from __future__ import annotations

from typing import Any

import click

from flowctl.client import segment
from flowctl.options import Noun, Session, given, limit_option
from flowctl.output import Column

__all__ = ["key"]

LIST: tuple[Column, ...] = (
    ("ID", lambda row: row.get("id")),
    ("PUBLISHER", lambda row: row.get("publisher")),
    ("FROM", lambda row: row.get("source")),
    ("TRUSTED", lambda row: row.get("trustedAt")),
    ("REVOKED", lambda row: row.get("revokedAt")),
    ("WHY", lambda row: row.get("reason")),
)
OWN: tuple[Column, ...] = (
    ("NAME", lambda row: row.get("name")),
    ("ID", lambda row: row.get("id")),
    ("FILE", lambda row: row.get("file")),
)
NAMESPACES: tuple[Column, ...] = (
    ("NAMESPACE", lambda row: row.get("name")),
    ("PUBLISHER", lambda row: row.get("publisher")),
    ("SINCE", lambda row: row.get("boundAt")),
)


@click.group(cls=Noun)
def key() -> None:
    """Keys that sign packages: one's own, and those this daemon trusts.

    \b
    Example:
      flowctl key new acme
      flowctl handler sign resize.afh --key acme
      flowctl key trust acme.pub
    """


@key.command()
@click.argument("name", metavar="NAME")
@click.pass_obj
def new(session: Session, name: str) -> None:
    """Make a key to sign with: NAME.key, which is yours alone, and NAME.pub for everybody.

    Both are in ~/.config/flowmonkey/keys. Whoever has NAME.key can publish as you: keep a copy
    where only you can read it, and have it revoked when it is lost.

    \b
    Example:
      flowctl key new acme
    """
    from flowctl import keyfiles

    key_id, shown = keyfiles.make(name)
    made = {"name": name, "id": key_id, "key": keyfiles.public(str(shown)), "file": str(shown)}
    output = session.output

    def words() -> None:
        output.line(f"{key_id}: {shown}")
        output.note(f"to trust it here: flowctl key trust {shown}")

    output.value(made, words)


@key.command("list")
@click.option("--own", "is_own", is_flag=True, help="The keys on this machine, without a daemon.")
@limit_option
@click.pass_obj
def list_(session: Session, is_own: bool, limit: int) -> None:
    """List the keys that this daemon trusts or trusted, or one's own.

    \b
    Example:
      flowctl key list
      flowctl key list --own
    """
    if not is_own:
        session.output.listing(session.client().pages("/v1/keys", {}, limit), LIST)
        return
    from flowctl import keyfiles

    found = keyfiles.own()
    session.output.value({"items": found}, lambda: session.output.table(found, OWN))


@key.command()
@click.argument("source", metavar="FILE.pub|NAME|KEY")
@click.option("--publisher", metavar="NAME", help="Whose it is, if not the name in the file.")
@click.pass_obj
def trust(session: Session, source: str, publisher: str | None) -> None:
    """Let a publisher's key sign for packages on this daemon.

    Of a .pub file, of one's own key by its name, or the line itself. Compare the id with what the
    publisher says it is, over another way than the file came. A publisher may have several keys.

    \b
    Example:
      flowctl key trust acme.pub
      flowctl key trust "ed25519:6Zb…= acme" --publisher acme
    """
    from flowctl import keyfiles

    body = given({"key": keyfiles.public(source), "publisher": publisher})
    answer = session.client().send("PUT", "/v1/keys", body)

    def words(now: dict[str, Any]) -> None:
        how = "trusted" if answer.status == 201 else "trusted already"
        session.output.line(f"{now.get('id')}: {how} as {now.get('publisher')}")

    session.output.answer(answer, words)


@key.command()
@click.argument("key_id", metavar="ID")
@click.option("--reason", metavar="TEXT", help="Why, for who looks at its packages later.")
@click.pass_obj
def revoke(session: Session, key_id: str, reason: str | None) -> None:
    """Let a key sign nothing more here, for ever; also one of the configuration.

    What was published with it stays and runs, and is shown as signed by a revoked key: yank it if
    the key was stolen.

    \b
    Example:
      flowctl key revoke 3f0c1b2a4d5e6f70 --reason "laptop stolen"
    """
    path = f"/v1/keys/{segment(key_id)}/revoke"
    answer = session.client().send("POST", path, given({"reason": reason}))
    session.output.answer(answer, lambda now: session.output.line(f"{now.get('id')}: revoked"))


@key.command()
@limit_option
@click.pass_obj
def namespaces(session: Session, limit: int) -> None:
    """List which publisher each namespace belongs to (acme of acme/resize).

    \b
    Example:
      flowctl key namespaces
    """
    session.output.listing(session.client().pages("/v1/namespaces", {}, limit), NAMESPACES)


@key.command()
@click.argument("namespace", metavar="NAMESPACE")
@click.argument("publisher", metavar="PUBLISHER", required=False)
@click.option("--nobody", is_flag=True, help="To whoever publishes there next.")
@click.pass_obj
def give(session: Session, namespace: str, publisher: str | None, nobody: bool) -> None:
    """Hand a namespace over to another publisher, or to nobody.

    What the publisher before published there stays.

    \b
    Example:
      flowctl key give acme acme-labs
      flowctl key give acme --nobody
    """
    if nobody == (publisher is not None):
        raise click.UsageError("name either a publisher or --nobody")
    path = f"/v1/namespaces/{segment(namespace)}"
    answer = session.client().send("PUT", path, {"publisher": publisher})

    def words(now: dict[str, Any]) -> None:
        before, after = now.get("before") or "nobody", now.get("publisher") or "nobody"
        session.output.line(f"{now.get('name')}: {after}, before {before}")

    session.output.answer(answer, words)
