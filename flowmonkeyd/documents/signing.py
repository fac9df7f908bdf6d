"""Signatures of handler packages: Ed25519 (RFC 8032) over a built package's handler.json. Pure.

handler.json lists the SHA-256 of every other file, so the signature speaks for the whole package:
who holds the private key has seen exactly these bytes. Whether that holder is to be trusted is the
caller's to say (`flowmonkeyd.trust`). A key's id is only a name to find it by; what counts is the
key. It never touches a file and has no key of its own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from flowmonkeyd.documents.archive import MANIFEST, SIGNATURE
from flowmonkeyd.documents.text import parse_json
from flowmonkeyd.errors import Invalid, Problem

__all__ = [
    "KEY_ID",
    "KEY_NAME",
    "PrivateKey",
    "PublicKey",
    "Signature",
    "parse_public",
    "parse_signature",
    "sign",
    "signature_of",
    "verify",
]

ALGORITHM = "Ed25519"
KEY_ID = re.compile(r"[0-9a-f]{16}")
# A publisher's name; also a file's name, so no slash and no dot in front.
KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
COMMENT_CHARS_MAX = 256
# The longest comment in JSON's escapes (a surrogate pair each), and the rest.
SIGNATURE_BYTES_MAX = 8 * 1024
_CONTEXT = b"flowmonkey-handler-v1\0"
_KEY_BYTES, _SIGNATURE_BYTES = 32, 64
_PREFIX = "ed25519:"
_FIELDS = {"algorithm", "keyId", "signature", "comment"}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """32 bytes that say whose a signature is."""

    raw: bytes

    @property
    def id(self) -> str:
        """16 hexadecimal digits: the first 8 bytes of the key's SHA-256."""
        return hashlib.sha256(self.raw).digest()[:8].hex()

    @property
    def text(self) -> str:
        """`ed25519:<base64>`, as configurations and .pub files have it."""
        return f"{_PREFIX}{base64.b64encode(self.raw).decode()}"

    def line(self, name: str) -> str:
        """The one line of a .pub file."""
        return f"{self.text} {name}\n"


class PrivateKey:
    """What signs. Its repr shows the id only."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"<PrivateKey {self.public.id}>"

    @classmethod
    def new(cls) -> PrivateKey:
        """A key of the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> PrivateKey:
        """The key of a PEM file (PKCS #8, not encrypted). Raises Invalid; never quotes the text."""
        try:
            key = load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise Invalid("cannot read the private key: it is not PEM, or is encrypted") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise Invalid("cannot use the private key: it is not Ed25519; make one that is")
        return cls(key)

    def pem(self) -> bytes:
        """The text of a .key file: PKCS #8 without a passphrase, so keep it to yourself."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign_bytes(self, message: bytes) -> bytes:
        return self._key.sign(message)


@dataclass(frozen=True, slots=True)
class Signature:
    """handler.sig, read. `comment` is signed too."""

    key_id: str
    signature: bytes
    comment: str


def parse_public(text: str) -> tuple[PublicKey, str | None]:
    """The key and name of a line `ed25519:<base64> NAME`; the name may be missing. Raises Invalid.

    A key whose signatures anybody could make (a point of small order) is refused.
    """
    key, _, name = text.strip().partition(" ")
    name = name.strip()
    raw = _base64(key.removeprefix(_PREFIX)) if key.startswith(_PREFIX) else None
    if raw is None or len(raw) != _KEY_BYTES:
        raise Invalid(f"cannot read the public key: it should be {_PREFIX}BASE64 NAME, one line")
    if name and not KEY_NAME.fullmatch(name):
        raise Invalid(
            f"cannot read the public key: the name {name[:64]!r} should be letters, digits, "
            "'.', '_' and '-', at most 64"
        )
    if _is_weak(raw):
        raise Invalid("cannot use the public key: anybody can make its signatures; get another")
    return PublicKey(raw), name or None


def sign(files: Mapping[str, bytes], key: PrivateKey, comment: str = "") -> bytes:
    """The handler.sig of a built package. Raises Invalid for a package that was not built."""
    manifest = files.get(MANIFEST)
    if manifest is None or parse_json(manifest).get("package") is None:
        why = "it was not built, so its handler.json does not list its files; build it first"
        raise Invalid(f"cannot sign the package: {why}", problems=(Problem("$.package", why),))
    if len(comment) > COMMENT_CHARS_MAX or not comment.isprintable():
        raise Invalid(
            "cannot sign the package: the comment should be one line of at most "
            f"{COMMENT_CHARS_MAX} printable characters"
        )
    document = {
        "algorithm": ALGORITHM,
        "keyId": key.public.id,
        "signature": base64.b64encode(key.sign_bytes(_message(manifest, comment))).decode(),
        "comment": comment,
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def parse_signature(data: bytes) -> Signature:
    """handler.sig, read without trust. Raises Invalid (SIGNATURE_INVALID)."""
    if len(data) > SIGNATURE_BYTES_MAX:
        raise _refused(f"{SIGNATURE} has more than {SIGNATURE_BYTES_MAX} bytes")
    try:
        document = parse_json(data)
    except Invalid as exc:
        raise _refused(f"{SIGNATURE} is not JSON ({exc.message})") from None
    if not isinstance(document, dict) or set(document) != _FIELDS:
        raise _refused(f"{SIGNATURE} should have {', '.join(sorted(_FIELDS))} and nothing else")
    if document["algorithm"] != ALGORITHM:
        raise _refused(f"its algorithm is not {ALGORITHM}")
    key_id, text, comment = (document[name] for name in ("keyId", "signature", "comment"))
    if not isinstance(key_id, str) or not KEY_ID.fullmatch(key_id):
        raise _refused("its keyId is not 16 hexadecimal digits")
    raw = _base64(text) if isinstance(text, str) else None
    if raw is None or len(raw) != _SIGNATURE_BYTES:
        raise _refused(f"its signature is not {_SIGNATURE_BYTES} bytes in base64")
    if (
        not isinstance(comment, str)
        or len(comment) > COMMENT_CHARS_MAX
        or not comment.isprintable()
    ):
        raise _refused(f"its comment is not one line of at most {COMMENT_CHARS_MAX} characters")
    return Signature(key_id, raw, comment)


def signature_of(files: Mapping[str, bytes]) -> Signature | None:
    """The signature of a package as read; None when it is not signed. Raises Invalid."""
    return parse_signature(files[SIGNATURE]) if SIGNATURE in files else None


def verify(files: Mapping[str, bytes], signature: Signature, key: PublicKey) -> None:
    """Raises Invalid (SIGNATURE_INVALID) unless `key` signed this handler.json and this comment.

    That the other files are those that handler.json lists is what `read_archive` has checked.
    """
    if signature.key_id != key.id:
        raise _refused(f"it is by the key {signature.key_id}, not by {key.id}")
    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(
            signature.signature, _message(files.get(MANIFEST, b""), signature.comment)
        )
    except (InvalidSignature, ValueError):
        raise _refused(
            f"the key {key.id} did not sign this {MANIFEST}; the package was changed after it was "
            "signed: get it again from its publisher"
        ) from None


def _message(manifest: bytes, comment: str) -> bytes:
    return _CONTEXT + hashlib.sha256(manifest).digest() + comment.encode()


def _base64(text: str) -> bytes | None:
    """Only what `b64encode` writes: another spelling of the same bytes is not the same text."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.b64encode(raw).decode() == text else None


# y of the points of order 1, 2, 4 and 8 (RFC 8032 section 5.1), and their spellings beyond the
# field's prime: the last bit is x's sign and does not count.
_PRIME = 2**255 - 19
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_WEAK = {y + extra for y in (0, 1, _PRIME - 1) for extra in (0, _PRIME)} | {
    _ORDER_8,
    _PRIME - _ORDER_8,
}


def _is_weak(raw: bytes) -> bool:
    return int.from_bytes(raw, "little") & (2**255 - 1) in _WEAK


def _refused(why: str) -> Invalid:
    problems = (Problem("$", why),)
    return Invalid(f"cannot trust the signature: {why}", "SIGNATURE_INVALID", problems)
