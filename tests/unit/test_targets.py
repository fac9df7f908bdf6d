"""Targets of the network: what is one, and what two lists of them allow together."""

import pytest

from flowmonkeyd.documents.targets import both, wrong_network, wrong_target


@pytest.mark.parametrize(
    "text",
    [
        "api.stripe.com:443", "*.example.com", "localhost", "a_b.example:80", "xn--bcher-kva.ch",
        "93.184.216.34:443", "192.0.2.0/24:80", "2001:db8::1", "2001:db8::/32",
        "[2001:db8::1]:443", "[2001:db8::/32]:443",
    ],
)  # fmt: skip
def test_a_target(text):
    assert wrong_target(text) is None
    assert both([text], None) == (text,)
    assert both([text], [text]) == (text,)


@pytest.mark.parametrize(
    "text",
    [
        "", ":443", "a.org:", "a.org:0", "a.org:65536", "a.org:x", "a b", "http://a.org", "a.org/x",
        "*", "*.", "a.*.org", "*a.org", "a..org", ".a.org", "-a.org", "a.org\n", "b\u00fccher.ch",
        "1.2.3", "0x7f.1", "2130706433", "0177.0.0.1", "1.2.3.4.5", "10.0.0.1/8", "10.0.0.0/33",
        "[::1", "::1]:80", "[a.org]:80", "a" * 64 + ".org", "a." * 130 + "org", "a@b.org",
    ],
)  # fmt: skip
def test_no_target(text):
    """Above all nothing that one reader takes for a name and another for an address."""
    assert wrong_target(text)


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (None, None, None),
        (None, ["a.org"], ("a.org",)),
        (["a.org"], [], ()),
        (["a.org:443", "b.org"], ["*.org"], ("a.org:443", "b.org")),
        (["*.org"], ["*.a.org:443", "a.org:80"], ("*.a.org:443", "a.org:80")),
        (["*.a.org"], ["a.org", "xa.org"], ()),  # the name itself is not below itself
        (["A.org"], ["a.ORG:80"], ("a.org:80",)),
        (["a.org:443"], ["a.org:80"], ()),
        (["10.0.0.0/8:80"], ["10.1.0.0/16", "11.0.0.0/8"], ("10.1.0.0/16:80",)),
        (["2001:db8::/32"], ["[2001:db8::1]:443"], ("[2001:db8::1]:443",)),
        (["a.org"], ["0.0.0.0/0"], ()),  # which address it has is not known
        (["10.0.0.0/8"], ["::/0"], ()),
    ],
)
def test_two_lists_allow_what_both_allow(first, second, together):
    assert both(first, second) == together
    assert set(both(second, first) or ()) == set(together or ())


def test_a_private_network():
    assert wrong_network("127.0.0.0/8") is None
    assert wrong_network("fd00::/8") is None
    assert wrong_network("127.0.0.1/8")
    assert wrong_network("localhost")
