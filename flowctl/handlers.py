"""`flowctl handler …`: build, sign, publish, list, show, yank, deprecate."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from flowctl.authoring import COMMANDS as AUTHORING
from flowctl.client import segment
from flowctl.options import FORMS, Leaf, Noun, Session, limit_option, live_ids
from flowctl.output import Column, Output, pretty
from flowctl.problems import Rejected
from flowctl.sandboxes import job_in_words

__all__ = ["handler"]

LIST: tuple[Column, ...] = (
    ("TYPE", lambda row: row.get("type")),
    ("VERSION", lambda row: row.get("version")),
    ("RUNTIME", lambda row: row.get("runtime")),
    ("STATEFUL", lambda row: row.get("stateful")),
    ("BYTES", lambda row: row.get("sizeBytes")),
    ("PUBLISHER", lambda row: row.get("publisher")),
    ("PUBLISHED", lambda row: row.get("publishedAt")),
    ("YANKED", lambda row: row.get("yankedAt")),
    ("DEPRECATED", lambda row: row.get("deprecation")),
)

_SHOWN = ("type", "version", "name", "description", "runtime", "stateful", "digest", "sizeBytes")
_DATES = ("publishedAt", "yankedAt")
# The rest is in its permissions.
_OF_A_JOB = ("resources", "image", "time", "checkpoints", "pause", "attempts", "price")
PARTS_SHOWN = 50
_VERSION = re.compile(r"\d+\.\d+\.\d+([-+].*)?")  # and no range
_TYPES = live_ids("/v1/handlers", "type")


@click.group(cls=Noun)
def handler() -> None:
    """The packages of code that steps run.

    \b
    Example:
      flowctl handler publish ./resize
    """


class _Build(Leaf):
    """Its own -o takes a file as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [one for one in self.params if one.name != "output"]


@handler.command(cls=_Build)
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@click.option("-o", "--out", "outs", metavar="FILE.afh", multiple=True, help="Where to write it.")
@click.option("--allow", metavar="FINGERPRINT", multiple=True, help="A finding that is no secret.")
@click.pass_obj
def build(session: Session, folder: str, outs: tuple[str, ...], allow: tuple[str, ...]) -> None:
    """Build the handler in DIR into a package that can be signed and published anywhere.

    Test values and tests are left out, JavaScript and TypeScript are bundled, Python's dependencies
    come in from wheels. What may be a secret stops it, until it is allowed by its fingerprint. The
    same folder makes the same bytes. `-o json` and `-o yaml` say how to print; without a file it is
    TYPE-VERSION.afh, here.

    \b
    Example:
      flowctl handler build ./resize -o resize.afh
    """
    try:
        from flowctl.build import build as build_package
        from flowctl.build import written
    except ModuleNotFoundError as exc:
        raise Rejected(
            f"cannot build: {exc.name} is not installed; pip install 'flowmonkey[build]'"
        ) from None
    output = session.output
    files = [one for one in outs if one not in FORMS]
    if len(files) > 1:
        raise click.BadParameter(f"one file is written, not {len(files)}", param_hint="-o")
    for form in (one for one in outs if one in FORMS):
        output.form = form
    built = build_package(Path(folder), allow=allow)
    type_, version = built.manifest.type, built.manifest.version
    file = files[0] if files else f"{type_.replace('/', '-')}-{version}.afh"
    written(built, file)
    for warning in built.warnings:
        output.note(f"warning: {warning}")
    for found in built.allowed:
        output.note(f"allowed: {found.file}:{found.line}: {found.kind}")
    facts: dict[str, Any] = {
        "file": file,
        "type": type_,
        "version": version,
        "digest": built.digest,
    }
    facts |= {"sizeBytes": len(built.data), "files": dict(built.files)}

    def words() -> None:
        size = f"{len(built.files)} files, {len(built.data)} bytes"
        output.line(f"{os.path.basename(file)}: {type_}@{version}, {size}, {built.digest}")

    output.value(facts, words)


@handler.command()
@click.argument("path", metavar="DIR|FILE.afh", type=click.Path(exists=True))
@click.pass_obj
def publish(session: Session, path: str) -> None:
    """Publish the handler in DIR, or a built package, under the type and version of its manifest.

    A package is sent as it was built. Of DIR all regular files are packed, without __pycache__,
    compiled files and what version control keeps. A symbolic link is refused.

    \b
    Example:
      flowctl handler publish ./resize
      flowctl handler publish resize.afh
    """
    from flowctl.documents import package_of

    output = session.output
    client = session.client()
    data = package_of(path)
    answer = client.request("PUT", "/v1/handlers", data, content_type="application/zip")

    def words(published: dict[str, Any]) -> None:
        how = "published" if published.get("created") else "unchanged"
        if publisher := published.get("publisher"):
            how += f", signed by {publisher}"
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
    """Show all versions of a handler, newest first, or all there is to know of one version.

    Of one: what it may do, in words; its digest; who signed it, and whether that is to be trusted;
    what is in the package; whether it is deprecated; its manifest.

    \b
    Example:
      flowctl handler show acme/resize
      flowctl handler show acme/resize@1.2.0 -o yaml
    """
    client, output = session.client(), session.output
    if "@" not in reference:
        output.listing(client.pages(f"/v1/handlers/{segment(reference)}", {}), LIST)
        return
    answer, terms = client.get(_version_path(reference)), None
    if output.form == "table" and answer.fields().get("stateful"):
        terms = client.get(_version_path(reference).replace("/handlers/", "/terms/", 1)).fields()
    output.answer(answer, lambda found: _shown(output, found, terms))


@handler.command()
@click.argument("reference", metavar="TYPE@V", shell_complete=_TYPES)
@click.pass_obj
def yank(session: Session, reference: str) -> None:
    """Take a version out of use: no range takes it any more.

    Executions that have it keep it, and a flow that names exactly this version goes on as it did,
    with a warning.

    \b
    Example:
      flowctl handler yank acme/resize@1.2.0
    """
    path = f"{_version_path(reference)}/yank"
    answer = session.client().send("POST", path, {})
    output = session.output
    output.answer(
        answer, lambda now: output.line(f"{now.get('type')}@{now.get('version')}: yanked")
    )


@handler.command()
@click.argument("reference", metavar="TYPE@V", shell_complete=_TYPES)
@click.argument("message", metavar="MESSAGE", required=False)
@click.option("--undo", is_flag=True, help="Take back what was said.")
@click.pass_obj
def deprecate(session: Session, reference: str, message: str | None, undo: bool) -> None:
    """Say something against a version to everybody who applies or runs a flow with it.

    It stays in use; to take it out of use, yank it.

    \b
    Example:
      flowctl handler deprecate acme/resize@1.2.0 "loses colours; use 1.3.0"
      flowctl handler deprecate acme/resize@1.2.0 --undo
    """
    if undo == (message is not None):
        raise click.UsageError("give either a message or --undo")
    path = f"{_version_path(reference)}/deprecate"
    answer = session.client().send("POST", path, {"message": message})
    output = session.output
    how = "deprecated no more" if undo else "deprecated"
    output.answer(answer, lambda now: output.line(f"{now.get('type')}@{now.get('version')}: {how}"))


@handler.command()
@click.argument("path", metavar="FILE.afh", type=click.Path(exists=True))
@click.option("--key", "key", metavar="NAME|FILE", required=True, help="The key to sign with.")
@click.option("--comment", metavar="TEXT", default="", help="One line that is signed as well.")
@click.option("--to", metavar="FILE.afh", type=click.Path(), help="Where to write it (in place).")
@click.pass_obj
def sign(session: Session, path: str, key: str, comment: str, to: str | None) -> None:
    """Sign a built package with one's key, in place of whoever signed it before.

    No daemon is asked. The signature speaks for every byte of the package.

    \b
    Example:
      flowctl handler sign resize.afh --key acme
    """
    from flowctl import keyfiles

    secret = keyfiles.private(key)
    name, before = keyfiles.sign_file(path, to or path, secret, comment)
    output, key_id = session.output, secret.public.id
    facts = {"file": to or path, "handler": name, "keyId": key_id, "before": before}

    def words() -> None:
        output.line(f"{os.path.basename(to or path)}: {name}, signed with {key_id}")
        if before not in (None, key_id):
            output.note(f"it was signed with {before}")

    output.value(facts, words)


def _shown(output: Output, found: dict[str, Any], terms: dict[str, Any] | None) -> None:
    """One version, for who decides whether to use it."""
    signature, sbom = found.get("signature") or {}, found.get("sbom") or {}
    facts: dict[str, Any] = {name: found.get(name) for name in _SHOWN}
    facts["publisher"] = found.get("publisher")
    if signature:
        facts["signature"] = f"{signature.get('status')}: {signature.get('reason')}"
        facts["signed comment"] = signature.get("comment") or None
    facts |= {name: found.get(name) for name in _DATES}
    facts["deprecated"] = found.get("deprecation")
    output.pairs(facts.items())
    for title, lines in (
        ("permissions", found.get("permissions") or []),
        (
            "not allowed here any more",
            [f"{one.get('path')}: {one.get('message')}" for one in found.get("notAllowed") or []],
        ),
    ):
        if lines:
            output.line(title)
            for line in lines:
                output.line(f"  {line}")
    if terms is not None:
        output.line("as a job")
        for name, words in job_in_words(terms):
            if name in _OF_A_JOB:
                output.line(f"  {name}: {words}")
    if sbom:
        parts = sbom.get("components") or []
        output.line(f"parts ({sbom.get('file')}): {len(parts)}")
        for part in parts[:PARTS_SHOWN]:
            licenses = ", ".join(part.get("licenses") or []) or "no licence given"
            output.line(f"  {part.get('name')} {part.get('version') or '?'} ({licenses})")
        if len(parts) > PARTS_SHOWN:
            output.line(f"  and {len(parts) - PARTS_SHOWN} more: -o json has them all")
    output.line("manifest")
    output.lines(pretty(found.get("manifest")))


def _version_path(reference: str) -> str:
    type_, _, version = reference.partition("@")
    if not type_ or _VERSION.fullmatch(version) is None:
        raise click.BadParameter(
            "name one version of it, like acme/resize@1.2.0", param_hint="TYPE@V"
        )
    return f"/v1/handlers/{segment(type_)}/{segment(version)}"


for _command in AUTHORING:
    handler.add_command(_command)
