"""Whose packages are published here, and what they may ask for. Pure.

Roots of trust are the configuration's (`trust.keys`) and the operator's (`flowctl key trust`). A
package that claims a signer must be that signer's; one that claims none is published only where
signatures are not required. What a handler asks for beyond `handlers.allow` refuses it, with all of
it named at once. Refusals happen before anything of the package is on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from flowmonkeyd.documents.archive import MANIFEST, SIGNATURE
from flowmonkeyd.documents.manifest import Manifest
from flowmonkeyd.documents.permissions import parts_of, secrets_of
from flowmonkeyd.documents.signing import (
    PublicKey,
    parse_public,
    parse_signature,
    signature_of,
    verify,
)
from flowmonkeyd.documents.targets import both
from flowmonkeyd.errors import Invalid, Problem
from flowmonkeyd.model import Signed
from flowmonkeyd.settings import AllowSection, Settings
from flowmonkeyd.store.publishers import KeyRow

__all__ = ["TrustedKey", "check", "known_keys", "not_allowed", "standing"]


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key this daemon knows; `is_root` when it is the configuration's."""

    public: PublicKey
    publisher: str
    is_root: bool
    trusted_at_ms: int | None = None
    revoked_at_ms: int | None = None
    reason: str | None = None


def known_keys(roots: Iterable[str], rows: Iterable[KeyRow]) -> dict[str, TrustedKey]:
    """The keys by id. What was revoked is so wherever it was trusted."""
    found = dict[str, TrustedKey]()
    for row in rows:
        public, _ = parse_public(row.public)
        found[row.id] = TrustedKey(
            public, row.publisher, False, row.trusted_at_ms, row.revoked_at_ms, row.reason
        )
    for text in roots:
        public, name = parse_public(text)
        root = TrustedKey(public, name or "", is_root=True)
        known = found.get(public.id)
        if known is not None and known.public == public:
            root = replace(known, publisher=root.publisher, is_root=True)
        found[public.id] = root
    return found


def check(
    manifest: Manifest,
    files: Mapping[str, bytes],
    keys: Mapping[str, TrustedKey],
    settings: Settings,
) -> Signed | None:
    """Who signed a package that may be published here; None when nobody did and nobody must.

    Raises Invalid: SIGNATURE_INVALID, SIGNATURE_REQUIRED, PUBLISHER_NOT_TRUSTED,
    PERMISSION_NOT_ALLOWED, or a list of parts that cannot be read.
    """
    name = f"{manifest.type}@{manifest.version}"
    signed = _signed(name, files, keys, settings.handlers.requireSignature)
    if missing := not_allowed(manifest, settings.handlers.allow):
        things = f"{len(missing)} thing" + ("s" if len(missing) > 1 else "")
        message = f"cannot publish {name}: it asks for {things} that this daemon does not allow"
        raise Invalid(message, "PERMISSION_NOT_ALLOWED", missing)
    sbom = manifest.package.sbom if manifest.package else None
    if sbom is not None:
        if sbom not in files:
            problem = Problem("$.package.sbom", f"there is no file {sbom!r} in the package")
            raise Invalid("cannot accept the package: 1 problem", problems=(problem,))
        parts_of(files[sbom])
    return signed


def not_allowed(manifest: Manifest, allow: AllowSection) -> tuple[Problem, ...]:
    """Everything a handler asks for that the settings do not allow, with the setting to change."""
    return tuple(_not_allowed(manifest, allow))


def standing(
    signed: Signed | None, manifest: bytes, keys: Mapping[str, TrustedKey]
) -> tuple[str, str]:
    """What a published version's signature is worth now, as a word and its reason: `trusted`,
    `revoked`, `unknown` (the key is trusted no more), `invalid`, `unsigned`.

    `manifest` is handler.json as it is on disk.
    """
    if signed is None:
        return "unsigned", "nobody signed it"
    key = keys.get(signed.key_id)
    if key is None:
        return "unknown", f"the key {signed.key_id} is not trusted here any more"
    try:
        verify({MANIFEST: manifest}, parse_signature(signed.signature.encode()), key.public)
    except Invalid as exc:
        return "invalid", exc.message
    if key.revoked_at_ms is not None:
        return "revoked", f"the key {signed.key_id} was revoked: {key.reason or 'no reason given'}"
    return "trusted", f"signed by {key.publisher} with the key {signed.key_id}"


def _signed(
    name: str, files: Mapping[str, bytes], keys: Mapping[str, TrustedKey], required: bool
) -> Signed | None:
    signature = signature_of(files)
    if signature is None:
        if not required:
            return None
        message = (
            f"cannot publish {name}: it is not signed, and handlers.requireSignature is set; "
            "build it and sign it with `flowctl handler sign`"
        )
        raise Invalid(message, "SIGNATURE_REQUIRED")
    key = keys.get(signature.key_id)
    if key is None:
        message = (
            f"cannot publish {name}: it is signed with the key {signature.key_id}, which is not "
            "trusted here; if you know whose key it is, `flowctl key trust` its .pub file"
        )
        raise Invalid(message, "PUBLISHER_NOT_TRUSTED")
    verify(files, signature, key.public)
    if key.revoked_at_ms is not None:
        message = (
            f"cannot publish {name}: it is signed with {key.publisher!r}'s key "
            f"{signature.key_id}, which was revoked ({key.reason or 'no reason given'}); get it "
            "signed with another key"
        )
        raise Invalid(message, "PUBLISHER_NOT_TRUSTED")
    return Signed(key.publisher, signature.key_id, files[SIGNATURE].decode())


def _not_allowed(manifest: Manifest, allow: AllowSection) -> Iterator[Problem]:
    if manifest.network is not None and "*" not in allow.network:
        wanted = manifest.network.allow
        if wanted is None:
            yield _problem("sandbox.network", "to reach the internet", "network", "*")
        for target in wanted or ():
            # All of it, or none: a part of what it asks for would be another handler.
            if both([target], allow.network) != both([target], [target]):
                yield _problem("sandbox.network.allow", f"to reach {target}", "network", target)
    if manifest.filesystem not in allow.filesystem:
        what = f"the filesystem {manifest.filesystem!r}"
        yield _problem("sandbox.filesystem", what, "filesystem", manifest.filesystem)
    for secret in secrets_of(manifest):
        if not any(fnmatchcase(secret, pattern) for pattern in allow.secrets):
            message = f"asks to read the secret {secret!r}: add it to handlers.allow.secrets"
            yield Problem("$.inputs", message)
    if manifest.stateful is not None:
        if not allow.stateful:
            message = "asks to be stateful: set handlers.allow.stateful = true"
            yield Problem("$.handler.stateful", message)
        size = manifest.stateful.resources
        if size not in allow.resources:
            yield _problem("resources", f"for the resources {size!r}", "resources", size)
        return
    for name, asked, most in (
        ("memory", manifest.memory_mib, allow.memory),
        ("cpu", manifest.cpu, allow.cpu),
    ):
        if asked > most:
            unit = "MiB" if name == "memory" else "cores"
            message = f"asks for {asked:g} {unit}: raise handlers.allow.{name} from {most:g}"
            yield Problem(f"$.execution.{name}", message)


def _problem(path: str, what: str, setting: str, value: str) -> Problem:
    message = f'asks {what}: add "{value}" to handlers.allow.{setting} to allow it'
    return Problem(f"$.execution.{path}", message)
