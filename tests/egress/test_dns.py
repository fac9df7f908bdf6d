"""DNS messages of a stranger, the answers written, and the host's own resolver."""

import socket

import dns.edns
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.egress.dns import (
    QUERY_MAX_BYTES,
    BadQuery,
    SystemResolver,
    Unknown,
    answer,
    read_query,
)


def query(name="api.example.com", kind="A", **options):
    return dns.message.make_query(name, kind, **options).to_wire()


LONGEST = ".".join(["a" * 63] * 3 + ["b" * 61])


def test_a_query_is_read():
    read = read_query(query("API.Example.com"))
    assert (read.name, read.family) == ("api.example.com", socket.AF_INET)
    assert read_query(query(kind="AAAA")).family == socket.AF_INET6
    assert read_query(query(kind="HTTPS")).family is None
    assert read_query(query(kind="A", rdclass="CH")).family is None


def test_an_answer_has_the_addresses_of_its_kind():
    addresses = ["8.8.8.8", "2606:4700::1111", "8.8.4.4"]
    for kind, expected in (("A", {"8.8.8.8", "8.8.4.4"}), ("AAAA", {"2606:4700::1111"})):
        asked = query(kind=kind)
        read = dns.message.from_wire(answer(read_query(asked), addresses))
        assert read.id == dns.message.from_wire(asked).id
        assert {str(one) for one in read.answer[0]} == expected
        assert read.answer[0].ttl <= 10
    read = dns.message.from_wire(answer(read_query(query(kind="TXT")), addresses))
    assert read.rcode() == dns.rcode.NOERROR
    assert not read.answer


@pytest.mark.parametrize("error", ["NXDOMAIN", "REFUSED", "SERVFAIL"])
def test_an_error_is_answered_as_such(error):
    read = dns.message.from_wire(answer(read_query(query()), error=error))
    assert dns.rcode.to_text(read.rcode()) == error


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_the_longest_answer_fits_what_every_client_takes(kind):
    many = [f"8.8.8.{n}" for n in range(200)] + [f"2606:4700::{n:x}" for n in range(200)]
    asked = query(LONGEST, kind, use_edns=0, payload=4096)
    wire = answer(read_query(asked), many)
    assert len(wire) <= 512
    assert dns.message.from_wire(wire).answer


BAD = [
    b"",
    bytes(12),
    query()[:-1],
    query() + b"x",
    answer(read_query(query()), ["8.8.8.8"]),  # an answer is no question
    query()[:4] + b"\0\2" + query()[6:] + query()[12:],  # two questions
    query()[:4] + b"\0\0" + query()[6:12],  # none
    query()[:2] + b"\x28\0" + query()[4:],  # an update
    bytes(4) + b"\0\1" + bytes(6) + b"\xc0\x0c\0\1\0\1",  # a name that points at itself
    bytes(4) + b"\0\1" + bytes(6) + b"\x40a\0\0\1\0\1",  # a label of an unknown kind
    query() + bytes(QUERY_MAX_BYTES),
]


@pytest.mark.parametrize("data", BAD)
def test_what_is_no_query_is_refused(data):
    with pytest.raises(BadQuery):
        read_query(data)


def check_total(data):
    """Whatever is taken for a query can be answered, within the size that all take."""
    try:
        read = read_query(data)
    except BadQuery:
        return
    for error in ("", "NXDOMAIN"):
        assert len(answer(read, ["8.8.8.8", "2606:4700::1111"], error)) <= 512


@given(st.binary(max_size=600))
def test_any_bytes_are_a_query_or_refused(data):
    check_total(data)
    check_total(b"\0\1\1\0\0\1\0\0\0\0\0\0" + data)


@given(
    st.lists(st.binary(min_size=1, max_size=63), max_size=4),
    st.integers(0, 65535),
    st.integers(0, 65535),
    st.binary(max_size=40),
)
def test_any_name_and_kind_is_answered(labels, kind, of_class, rest):
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    question = name + kind.to_bytes(2, "big") + of_class.to_bytes(2, "big")
    check_total(b"\0\1\1\0\0\1\0\0\0\0\0\0" + question)
    check_total(b"\0\1\1\0\0\1\0\0\0\0\0\1" + question + rest)


async def test_the_hosts_resolver_reads_its_hosts_file_and_says_what_is_unknown():
    resolver = SystemResolver()
    try:
        assert "127.0.0.1" in await resolver.lookup("localhost")
        with pytest.raises((Unknown, socket.gaierror)):  # without any server: EAI_AGAIN
            await resolver.lookup("name.invalid")
    finally:
        resolver.close()
