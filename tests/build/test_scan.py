"""Secrets are found, named without being shown, and let pass by their fingerprint only."""

from __future__ import annotations

import base64
import re

import pytest

from flowctl.build.scan import PART_CHARS, Planted, findings, survivors

# Assembled here, so that no scanner takes this file for a leak.
AWS = "AKIA" + "QYLPMN5HHHFPZAM2"
STRIPE = "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"
GITHUB = "ghp_" + "wWPw5k4aXcaT4fNP0UcnZwJUVFk6LO0pINUx"
PRIVATE = "-----BEGIN " + "RSA PRIVATE KEY-----"
JWT = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=")
    for part in (b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"1234567890"}', b"a signature of bytes")
)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (f"KEY = '{AWS}'", "aws access key"),
        (f"KEY = '{STRIPE}'", "stripe access key"),
        (f"KEY = '{GITHUB}'", "github token"),
        (f"# {PRIVATE}", "private key"),
        (f"token: {JWT}", "json web token"),
        ("password = 'correct-horse-battery'", "secret keyword"),
        ("url = 'https://user:hunter22@example.com/'", "basic auth credentials"),
        ("x = 'c3VwZXIgc2VjcmV0IHZhbHVlIG5vYm9keSBrbm93cw=='", "base64 high entropy string"),
    ],
)
def test_a_secret_is_found_with_its_line_and_kind_and_never_shown(line, kind):
    found = findings({"a.py": f"import os\n\n{line}\n".encode()})
    assert (found[0].file, found[0].line) == ("a.py", 3)
    assert kind in {one.kind for one in found}
    for one in found:
        assert re.fullmatch("[0-9a-f]{16}", one.fingerprint)
        assert not {part for part in re.findall(r"\w{6,}", line) if part in repr(one)} - {
            "password", "import",
        }  # fmt: skip


def test_a_fingerprint_outlives_other_edits_and_not_another_secret():
    (one,) = findings({"a.py": f"K = '{AWS}'\n".encode()})
    (moved,) = findings({"a.py": f"import os\nK = '{AWS}'\n".encode()})
    (other,) = findings({"a.py": f"K = '{AWS[:-1]}3'\n".encode()})
    (elsewhere,) = findings({"b.py": f"K = '{AWS}'\n".encode()})
    assert one.fingerprint == moved.fingerprint
    assert len({one.fingerprint, other.fingerprint, elsewhere.fingerprint}) == 3


def test_a_comment_cannot_allow_its_own_line():
    for comment in ("# pragma: allowlist secret", "// pragma: allowlist secret"):
        assert findings({"a.py": f"K = '{AWS}'  {comment}\n".encode()})


def test_ordinary_code_has_no_findings():
    assert findings({"a.py": b"def handle(input, ctx):\n    return ctx.secrets['apiKey']\n"}) == []
    assert findings({"a.json": b'{"ip": "93.184.216.34", "url": "https://example.com/a"}'}) == []


@pytest.mark.parametrize("at", [0, PART_CHARS - 10, PART_CHARS - 512, 100_000])
def test_a_secret_in_a_line_of_a_bundle_is_found_wherever_it_is(at):
    code = b"\n".join([b"// x", (b"a+" * at)[:at] + f'"{AWS}"'.encode() + b"+a" * 50_000])
    (found,) = findings({"handler.js": code}, ["handler.js"])
    assert (found.line, found.kind) == (2, "aws access key")


def test_a_bundle_is_not_searched_for_what_only_looks_random():
    code = b"var a='c3VwZXIgc2VjcmV0IHZhbHVlIG5vYm9keSBrbm93cw==';var password='correct-horse'"
    assert findings({"handler.js": code}, ["handler.js"]) == []
    assert findings({"handler.js": code}) != []


def test_a_key_is_found_in_a_file_that_is_no_text():
    assert findings({"table.bin": b"\xff\xfe\n" + AWS.encode() + b"\n\x00"})[0].line == 2


@pytest.mark.parametrize(
    "content",
    [b"x\nprice-of-customer-7\n", b'{"a": "price-of-customer-7"}', b"\xffprice-of-customer-7"],
)
def test_a_test_value_that_survived_is_found_in_any_file(content):
    planted = [Planted("handler.py", 9, "price-of-customer-7")]
    (found,) = survivors({"data.csv": content}, planted)
    assert found.file == "data.csv"
    assert found.kind == "test value of handler.py:9"
    assert "price" not in repr(found)


def test_a_test_value_is_found_as_source_code_spells_it():
    planted = [Planted("handler.py", 1, 'line one\nline "two" é')]
    assert survivors({"a.js": 'x="line one\\nline \\"two\\" é"'.encode()}, planted)
    assert survivors({"a.py": b"x = 'line one\\nline \"two\" \\xe9'"}, planted)


def test_values_that_are_in_every_file_are_not_searched_for():
    assert survivors({"a.py": b"def test(): return 1"}, [Planted("h.py", 1, "test")]) == []
