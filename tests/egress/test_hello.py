"""The server name in a TLS greeting: found in real ones, and nothing but BadHello for the rest."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.egress.hello import HELLO_MAX_BYTES, BadHello, Hello, read_hello


def greeting(name="api.example.com", **versions):
    """What a real client says first."""
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    for key, value in versions.items():
        setattr(context, key, value)
    if name is None:
        context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


REAL = greeting()


def records(message, size):
    """A handshake message in records of this size."""
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)


def vector(content, size=2):
    return len(content).to_bytes(size, "big") + content


def hello(extensions=None, rest=b""):
    body = b"\x03\x03" + bytes(32) + vector(b"", 1) + vector(b"\x13\x01") + vector(b"\0", 1)
    if extensions is not None:
        body += vector(b"".join(kind.to_bytes(2, "big") + vector(c) for kind, c in extensions))
    return records(b"\x01" + vector(body + rest, 3), 16384)


def sni(name, kind=0):
    return 0, vector(bytes([kind]) + vector(name))


@pytest.mark.parametrize(
    "versions",
    [
        {},
        {"maximum_version": ssl.TLSVersion.TLSv1_2},
        {"minimum_version": ssl.TLSVersion.TLSv1_3},
    ],
)
def test_the_name_of_a_real_client_is_found(versions):
    assert read_hello(greeting(**versions)) == Hello(True, "api.example.com")


def test_a_name_is_compared_in_lower_case():
    assert read_hello(hello([sni(b"API.Example.COM")])) == Hello(True, "api.example.com")


def test_a_client_without_a_name_says_none():
    assert read_hello(greeting(None)) == Hello(True, None)
    assert read_hello(hello()) == Hello(True, None)
    assert read_hello(hello([])) == Hello(True, None)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_greeting_spread_over_records_is_put_together(size):
    assert read_hello(records(REAL[5:], size)) == Hello(True, "api.example.com")


def test_a_greeting_that_arrives_byte_by_byte_is_waited_for():
    for end in range(len(REAL)):
        assert read_hello(REAL[:end]) is None
    assert read_hello(REAL) == Hello(True, "api.example.com")
    assert read_hello(REAL + b"and more") == Hello(True, "api.example.com")


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1", b"S", b"\0\0\0\x08", b"\x80\x2e\x02", b"\x04\x02"]
)
def test_what_is_not_tls_is_said_to_be_so(first):
    assert read_hello(first) == Hello(False)


@pytest.mark.parametrize(
    "data",
    [
        b"\x15\x03\x01\x00\x02\x01\x00" + REAL,  # an alert that some servers skip
        b"\x14\x03\x01\x00\x01\x01" + REAL,
        b"\x16\x03\x01\x00\x00" + REAL,  # an empty record
        b"\x16\x03\x01\x40\x01",  # longer than a record may be
        records(b"\0\0\0\0" + REAL[5:], 16384),  # HelloRequest before
        records(REAL[5:20], 100) + b"\x17\x03\x03\x00\x01x",
        records(b"\x01\xff\xff\xff", 100),
        hello([sni(b"a.example"), sni(b"b.example")]),
        hello([(0, vector(b"\0" + vector(b"a.example") + b"\0" + vector(b"b.example")))]),
        hello([sni(b"a.example\0.b.example")]),
        hello([sni(b"")]),
        hello([sni("bücher.example".encode())]),
        hello([sni(b"a.example", kind=1)]),
        hello([(0, b"")]),
        hello([(10, b""), (10, b"")]),
        hello([], rest=b"x"),
    ],
)
def test_a_greeting_that_two_readers_could_read_differently_is_refused(data):
    with pytest.raises(BadHello):
        read_hello(data)


def test_an_endless_greeting_is_refused():
    endless = records(b"\x01\x00\x40\x00" + bytes(HELLO_MAX_BYTES), 1)
    with pytest.raises(BadHello):
        read_hello(endless[:HELLO_MAX_BYTES])


def check_bounded(data):
    try:
        read = read_hello(data)
    except BadHello:
        return
    assert read is not None or len(data) < HELLO_MAX_BYTES


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data):
    check_bounded(data)
    check_bounded(b"\x16\x03\x01" + data)
    check_bounded(records(b"\x01" + data, 50) if data else b"")


@given(st.integers(0, len(REAL) - 1), st.integers(0, 255), st.integers(1, 600))
def test_a_changed_greeting_is_read_or_refused(at, byte, size):
    changed = bytearray(REAL)
    changed[at] = byte
    check_bounded(bytes(changed))
    check_bounded(records(bytes(changed[5:]), size))


@given(st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=30)), max_size=6))
def test_a_name_is_only_said_if_it_is_there(extensions):
    data = hello(extensions)
    try:
        read = read_hello(data)
    except BadHello:
        return
    assert read.is_tls
    assert read.server_name is None or read.server_name.encode() in data.lower()
