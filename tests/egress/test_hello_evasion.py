"""Greetings that some servers take for TLS and a strict reader does not: none may pass unread.

What is not TLS is passed on without a look at its name, so whoever calls a greeting "not TLS" that
its server understands has let any name through. Pure.
"""

import pytest

from sandbox.egress.hello import BadHello, read_hello
from sandbox.egress.rules import Rules
from sandbox.model import Egress
from tests.egress.test_hello import REAL, hello, records, sni

# RFC 8446 5.1: the version of a record "MUST be ignored for all purposes". Go's crypto/tls takes a
# first record of any version below 16.0; OpenSSL and BoringSSL want 3.
_VERSIONS = (b"\0\0", b"\x02\0", b"\x02\xff", b"\x04\0", b"\x0f\xff")
_CIPHERS = b"\0\0\x9c\0\0\x2f"
# RFC 5246 E.2: a greeting in SSL 2's form, for TLS 1.2; it has no extensions, so no server name.
_SSL2_BODY = b"\x01\x03\x03" + bytes((0, len(_CIPHERS), 0, 0, 0, 32)) + _CIPHERS + bytes(32)
_SSL2 = (0x8000 | len(_SSL2_BODY)).to_bytes(2, "big") + _SSL2_BODY


@pytest.mark.parametrize("version", _VERSIONS)
def test_handshake_in_a_record_of_another_version_is_not_let_through(version):
    with pytest.raises(BadHello):
        read_hello(b"\x16" + version + REAL[3:])


def test_greeting_in_the_form_of_ssl_2_is_not_let_through():
    with pytest.raises(BadHello):
        read_hello(_SSL2)


def test_greeting_in_thousands_of_records_is_not_read_again_for_each_byte():
    """Success: 64 connections that send the last KiB byte by byte take minutes of the daemon's."""
    message = hello([sni(b"api.example.com"), (21, bytes(15_000))])[5:]
    with pytest.raises(BadHello):
        read_hello(records(message, 1)[:4_000])


def test_denied_server_name_is_denied_with_a_dot_at_its_end():
    """RFC 6066 3: "without a trailing dot"; servers that strip it find the denied host."""
    rules = Rules(Egress(deny=("evil.example.com:443",)), (443,), lambda _address: False)
    try:
        said = read_hello(hello([sni(b"evil.example.com.")]))
    except BadHello:
        return
    assert said is not None
    assert rules.judge_hello(said, "93.184.216.34", 443, ()) is not None


def test_denied_network_in_its_ipv4_mapped_spelling_is_denied_or_refused():
    """A rule that can never match, since addresses are unwrapped, must not look like one."""
    try:
        denied = Egress(deny=("[::ffff:93.184.216.34]:443",))
        rules = Rules(denied, (443,), lambda _address: False)
    except ValueError:
        return
    assert rules.judge_address("93.184.216.34", 443) is not None
