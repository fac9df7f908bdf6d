"""Signatures of packages: what one speaks for, and every way it can be wrong."""

from __future__ import annotations

import base64
import json
import random

import pytest

from flowmonkeyd.documents.archive import (
    MANIFEST,
    SIGNATURE,
    content_digest,
    pack_files,
    read_archive,
)
from flowmonkeyd.documents.signing import (
    PrivateKey,
    PublicKey,
    parse_public,
    parse_signature,
    sign,
    signature_of,
    verify,
)
from flowmonkeyd.errors import Invalid
from tests.signing.parts import built

KEY = PrivateKey.new()
OTHER = PrivateKey.new()


def signed(comment: str = "") -> dict[str, bytes]:
    files = built()
    return {**files, SIGNATURE: sign(files, KEY, comment)}


def check(files, key=KEY):
    found = signature_of(files)
    assert found is not None
    verify(files, found, key.public)


def test_a_signed_package_is_read_and_verified_again():
    files = signed("release 1, 東京")
    check(read_archive(pack_files(files)))
    assert signature_of(files).comment == "release 1, 東京"
    assert signature_of(built()) is None


def test_signing_does_not_make_another_package():
    assert content_digest(signed()) == content_digest(built())


def test_the_signed_message_is_the_documented_one():
    """Another program must be able to check it: domain, SHA-256 of handler.json, comment."""
    import hashlib

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    files = signed("hello")
    document = json.loads(files[SIGNATURE])
    message = b"flowmonkey-handler-v1\0" + hashlib.sha256(files[MANIFEST]).digest() + b"hello"
    Ed25519PublicKey.from_public_bytes(KEY.public.raw).verify(
        base64.b64decode(document["signature"]), message
    )
    assert document["keyId"] == hashlib.sha256(KEY.public.raw).hexdigest()[:16]


def test_every_altered_byte_of_an_archive_is_refused():
    """Whatever byte of the whole ZIP is changed: it is no package any more, or its signature is
    wrong, or nothing that counts has changed (times, the version that wrote it)."""
    archive = pack_files(signed())
    whole = read_archive(archive)
    chooser = random.Random(7)
    refused = same = 0
    for at in range(len(archive)):
        broken = bytearray(archive)
        broken[at] ^= 1 << chooser.randrange(8)
        try:
            files = read_archive(bytes(broken))
            check(files)
        except Invalid:
            refused += 1
        else:
            assert files == whole, at
            same += 1
    assert refused > len(archive) * 0.8, f"{same} of {len(archive)} changes did not count"


def test_another_manifest_or_comment_is_not_what_was_signed():
    files = signed("tested by Ann")
    with pytest.raises(Invalid, match=r"did not sign this handler\.json") as caught:
        check({**files, MANIFEST: files[MANIFEST].replace(b"1.0.0", b"1.0.1")})
    assert caught.value.code == "SIGNATURE_INVALID"
    document = json.loads(files[SIGNATURE])
    document["comment"] = "tested by Bob"
    with pytest.raises(Invalid, match="did not sign"):
        check({**files, SIGNATURE: json.dumps(document).encode()})


def test_another_key_is_not_the_signer():
    files = signed()
    with pytest.raises(Invalid, match=f"by the key {KEY.public.id}, not by {OTHER.public.id}"):
        check(files, OTHER)
    document = json.loads(files[SIGNATURE])
    document["keyId"] = OTHER.public.id
    with pytest.raises(Invalid, match="did not sign"):
        check({**files, SIGNATURE: json.dumps(document).encode()}, OTHER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "RSA"}, "algorithm is not Ed25519"),
        ({"keyId": "ABCDEF0123456789"}, "keyId is not 16"),
        ({"keyId": 7}, "keyId is not 16"),
        ({"signature": "AAAA"}, "not 64 bytes"),
        ({"signature": base64.b64encode(bytes(64)).decode().replace("=", "")}, "not 64 bytes"),
        ({"signature": None}, "not 64 bytes"),
        ({"comment": "two\nlines"}, "comment is not one line"),
        ({"comment": "x" * 257}, "comment is not one line"),
        ({"comment": 1}, "comment is not one line"),
        ({"more": 1}, "nothing else"),
    ],
)
def test_a_signature_of_another_shape_is_refused(change, message):
    document = {**json.loads(signed()[SIGNATURE]), **change}
    with pytest.raises(Invalid, match=message) as caught:
        parse_signature(json.dumps(document).encode())
    assert caught.value.code == "SIGNATURE_INVALID"


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b'{"a":1,"a":2}', b"{" * 9000, b"[" * 8000])
def test_what_is_no_signature_at_all_is_refused(data):
    with pytest.raises(Invalid) as caught:
        parse_signature(data)
    assert caught.value.code == "SIGNATURE_INVALID"


def test_a_folder_that_was_not_built_cannot_be_signed():
    files = {MANIFEST: b'{"handler": {"type": "acme/echo", "version": "1.0.0"}}'}
    with pytest.raises(Invalid, match="it was not built"):
        sign(files, KEY)
    with pytest.raises(Invalid, match="it is signed and was not built"):
        pack_files({**files, SIGNATURE: signed()[SIGNATURE]})


def test_a_comment_of_many_lines_is_not_signed():
    with pytest.raises(Invalid, match="one line"):
        sign(built(), KEY, "a\nb")


def test_a_public_key_line_is_read_as_written():
    assert parse_public(KEY.public.line("acme")) == (KEY.public, "acme")
    assert parse_public(KEY.public.text) == (KEY.public, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519 AAAA acme",
        "ed25519:AAAA acme",
        "ed25519:" + base64.b64encode(bytes(range(33))).decode(),
        KEY.public.text.replace("=", ""),
        KEY.public.text + " ../acme",
        KEY.public.text + " two names",
        KEY.public.text + "\n" + OTHER.public.text,
    ],
)
def test_what_is_no_public_key_is_refused(text):
    with pytest.raises(Invalid, match="cannot read the public key"):
        parse_public(text)


PRIME = 2**255 - 19
ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
WEAK = [0, 1, PRIME - 1, PRIME, PRIME + 1, 2**255 | 1, ORDER_8, PRIME - ORDER_8, 2**255 | ORDER_8]


@pytest.mark.parametrize("number", WEAK)
def test_a_key_that_everybody_can_sign_for_is_refused(number):
    with pytest.raises(Invalid, match="anybody can make its signatures"):
        parse_public(PublicKey(number.to_bytes(32, "little")).text)


def test_a_private_key_is_read_again_and_never_shown():
    again = PrivateKey.from_pem(KEY.pem())
    assert again.public == KEY.public
    assert repr(again) == f"<PrivateKey {KEY.public.id}>"


def test_other_private_keys_are_refused_without_quoting_them():
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    key = X25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(Invalid, match="it is not Ed25519"):
        PrivateKey.from_pem(pem)
    locked = KEY._key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
    )
    for text in (locked, KEY.pem()[:40], b"secret words"):
        with pytest.raises(Invalid, match="it is not PEM, or is encrypted") as caught:
            PrivateKey.from_pem(text)
        assert "secret" not in str(caught.value)
