"""Which addresses and names the rules let through; IANA's registries are the table."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmonkeyd.documents.targets import wrong_target
from sandbox.egress.hello import Hello
from sandbox.egress.rules import Rules, is_host_name
from sandbox.model import Egress

PORTS = (80, 443)
OWN = "8.8.4.4"


def rules(**egress):
    return Rules(Egress(**egress), PORTS, lambda address: address == OWN)


# IANA's special-purpose address registries (2025), first and last of each, and what carries or
# hides another address.
REFUSED = """
0.0.0.0 0.0.0.1 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 127.0.0.0
127.0.0.1 127.0.0.2 127.255.255.255 169.254.0.0 169.254.169.254 169.254.170.2 169.254.255.255
172.16.0.0 172.31.255.255 192.0.0.0 192.0.0.8 192.0.0.9 192.0.0.10 192.0.0.170 192.0.0.171
192.0.0.192 192.0.0.255 192.0.2.0 192.0.2.53 192.0.2.255 192.88.99.0 192.88.99.1 192.88.99.255
192.168.0.0 192.168.255.255 198.18.0.0 198.19.255.255 198.51.100.0 198.51.100.255 203.0.113.0
203.0.113.255 224.0.0.0 224.0.0.1 239.255.255.255 240.0.0.0 255.255.255.254 255.255.255.255
100.100.100.200 168.63.129.16
:: ::1 ::2 ::7f00:1 ::808:808 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254
::ffff:0:7f00:1 ::ffff:0:808:808 64:ff9b:: 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b::a9fe:a9fe
64:ff9b:1:: 64:ff9b:1::7f00:1 64:ff9b:1:ffff:ffff:ffff:ffff:ffff 100:: 100::ffff 100:0:0:1::1
2001:: 2001::7f00:1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:1::1 2001:1::2 2001:1::3 2001:2::
2001:2:0:ffff:ffff:ffff:ffff:ffff 2001:3:: 2001:4:112:: 2001:10:: 2001:20:: 2001:2f:: 2001:30::
2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff 2001:db8:: 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff
2002:: 2002:7f00:1:: 2002:a00:1::1 2002:808:808::1 2002:a9fe:a9fe:: 3fff:: 3fff:fff:ffff::
4000:: 5f00:: 5f00:ffff:: fc00:: fc00::1 fd00:ec2::254 fd20:ce::254 fdff:ffff:ffff:: fe80::
fe80::1 fe80::1%eth0 febf:ffff:: fec0:: fec0::1 feff:ffff:: ff00:: ff02::1 ff0e::1
ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 8000:: 1:: 200:: 1000::1 1fff::
""".split()
GLOBAL = """
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0
169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.3.0
192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 198.51.99.255
198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255 168.63.129.15
2001:200:: 2001:4860:4860::8888 2001:db7:ffff:: 2001:db9:: 2003:: 2606:4700::1111 2a00:1450::1
3ffe:: 3fff:1000:: ::ffff:8.8.8.8
""".split()
NO_ADDRESSES = ["", "localhost", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "1.2.3.4.5", "a:b"]


@pytest.mark.parametrize("address", REFUSED + NO_ADDRESSES)
def test_what_is_not_global_is_refused(address):
    assert rules().judge_address(address, 443)


@pytest.mark.parametrize("address", GLOBAL)
def test_what_is_global_is_let_through(address):
    assert rules().judge_address(address, 443) is None


@given(st.integers(0, 2**32 - 1) | st.integers(0, 2**128 - 1))
def test_nothing_that_python_calls_not_global_gets_through(number):
    address = ipaddress.ip_address(number)
    if not address.is_global or address.is_multicast:
        mapped = getattr(address, "ipv4_mapped", None)
        if mapped is None or not mapped.is_global:
            assert rules().judge_address(str(address), 443)


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_in_ipv6_is_judged_as_such_or_refused(number):
    plain = rules().judge_address(str(ipaddress.IPv4Address(number)), 443)
    mapped = ipaddress.IPv6Address((0xFFFF << 32) | number)
    assert rules().judge_address(str(mapped), 443) == plain
    for prefix in ("::", "64:ff9b::", "::ffff:0:0:0"):
        inside = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | number)
        assert rules().judge_address(str(inside), 443)
    assert rules().judge_address(str(ipaddress.IPv6Address((0x2002 << 112) | number << 80)), 443)


def test_the_hosts_own_public_address_is_refused_however_spelled():
    assert rules().judge_address(OWN, 443) == "the host's own address"
    assert rules().judge_address(f"::ffff:{OWN}", 443) == "the host's own address"
    assert rules(allow=(f"{OWN}:443",)).judge_address(OWN, 443) == "the host's own address"
    assert rules(private=(f"{OWN}/32",)).judge_address(OWN, 443) is None


def test_a_port_that_is_not_served_is_refused():
    assert rules().judge_address("8.8.8.8", 22)
    assert rules(allow=("8.8.8.8:22",)).judge_address("8.8.8.8", 22)


def test_private_lifts_its_networks_and_no_more():
    open_ = rules(private=("10.0.0.0/8", "169.254.0.0/16", "::1/128"))
    assert open_.judge_address("10.1.2.3", 80) is None
    assert open_.judge_address("::ffff:10.1.2.3", 80) is None
    assert open_.judge_address("::1", 80) is None
    assert open_.judge_address("169.254.169.254", 80) is None  # the operator named it
    assert open_.judge_address("192.168.0.1", 80) == "private"
    assert open_.judge_address("127.0.0.1", 80) == "loopback"


def test_private_opens_no_address_inside_another_and_no_group():
    everything = rules(private=("0.0.0.0/0", "::/0"))
    for address in ("0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1", "::7f00:1"):
        assert everything.judge_address(address, 80), address
    for address in ("64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001::7f00:1"):
        assert everything.judge_address(address, 80), address


def test_private_is_no_permission_where_there_is_an_allow_list():
    both = rules(private=("127.0.0.0/8",), allow=("127.0.0.1:80",))
    assert both.judge_address("127.0.0.1", 80) is None
    assert both.judge_address("127.0.0.1", 443)
    assert both.judge_address("127.0.0.2", 80)


def test_deny_beats_allow_and_private():
    one = rules(allow=("8.8.8.0/24",), deny=("8.8.8.8:80", "10.0.0.0/9"), private=("10.0.0.0/8",))
    assert one.judge_address("8.8.8.8", 80) == "denied by a rule"
    assert one.judge_address("::ffff:8.8.8.8", 80) == "denied by a rule"
    assert one.judge_address("8.8.8.8", 443) is None
    assert one.judge_address("8.8.9.8", 443)
    assert one.judge_address("10.1.1.1", 80) == "denied by a rule"


def test_an_empty_allow_list_allows_nothing():
    nothing = rules(allow=())
    assert nothing.judge_address("8.8.8.8", 443)
    assert nothing.judge_name("example.com")


def test_a_name_allows_the_addresses_that_it_was_given_and_no_others():
    named = rules(allow=("api.example.com:443", "*.cdn.example.com"))
    assert named.judge_address("8.8.8.8", 443)
    assert named.judge_address("8.8.8.8", 443, ["api.example.com"]) is None
    assert named.judge_address("8.8.8.8", 80, ["api.example.com"])
    assert named.judge_address("8.8.8.8", 80, ["a.b.cdn.example.com"]) is None
    assert named.judge_address("8.8.8.8", 80, ["cdn.example.com"])
    assert named.judge_address("8.8.8.8", 80, ["evilcdn.example.com"])
    assert named.judge_address("10.0.0.1", 443, ["api.example.com"]) == "private"


def test_names_that_cannot_be_reached_are_not_looked_up():
    named = rules(allow=("API.example.com:443",), deny=("bad.example.com",))
    assert named.judge_name("api.example.com") is None
    assert named.judge_name("data.for.evil.example")
    open_ = rules(deny=("bad.example.com", "*.bad.example.com", "half.example.com:80"))
    assert open_.judge_name("good.example.com") is None
    assert open_.judge_name("bad.example.com")
    assert open_.judge_name("x.bad.example.com")
    assert open_.judge_name("half.example.com") is None
    assert open_.judge_address("8.8.8.8", 80, ["half.example.com"]) == "denied by a rule"
    assert open_.judge_address("8.8.8.8", 443, ["half.example.com"]) is None
    networks = rules(allow=("8.8.8.0/24", "api.example.com"))
    assert networks.judge_name("unknown.example.com") is None
    assert networks.judge_answer("unknown.example.com", "9.9.9.9")
    assert networks.judge_answer("unknown.example.com", "8.8.8.8") is None


@pytest.mark.parametrize("name", ["127.1", "0x7f.1", "2130706433", "0177.0.0.1", "a.0x1", "a..b"])
def test_numbers_are_no_names(name):
    assert not is_host_name(name)
    assert rules().judge_name(name)


def test_a_server_name_must_be_an_allowed_one_of_this_address():
    named = rules(allow=("a.example.com:443", "b.example.com:443", "9.9.9.9"))
    given_ = ["a.example.com", "c.example.com"]

    def judged(name, address="8.8.8.8"):
        return named.judge_hello(Hello(True, name), address, 443, given_)

    assert named.reads_hello("8.8.8.8", 443)
    assert judged("a.example.com") is None
    assert judged("b.example.com")  # allowed, but not given for this address
    assert judged("c.example.com")  # given, but not allowed
    assert judged(None) == "TLS without a server name"
    assert named.judge_hello(Hello(False), "8.8.8.8", 443, given_) is None
    assert not named.reads_hello("9.9.9.9", 443)  # allowed by address
    assert judged(None, "9.9.9.9") is None


def test_a_denied_server_name_is_refused_at_any_address():
    denied = rules(deny=("*.bad.example.com:443",))
    assert denied.reads_hello("8.8.8.8", 443)
    assert denied.judge_hello(Hello(True, "x.bad.example.com"), "8.8.8.8", 443, ())
    assert denied.judge_hello(Hello(True, "x.example.com"), "8.8.8.8", 443, ()) is None
    assert not rules().reads_hello("8.8.8.8", 443)


BAD_TARGETS = """
:80 host: host:0 host:65536 host:x http://host/ a..b -a.example *.*.example * *.127.0.0.1 127.1
0x7f000001 1.2.3.4/8 1.2.3.4/33 [::1 [::1]:0 ::1/129 1.2.3.4:80:80 hö.example a/b
""".split()
BAD_TARGETS += ["", "a b", "a\tb", "x" * 301, "a." * 150 + "a"]
GOOD_TARGETS = """
host host:80 *.host:443 a_b.example.com 1.2.3.4 1.2.3.4:80 1.2.3.0/24:80 ::1 [::1] [::1]:443
2001:db8::/32 [2001:db8::/32]:443 xn--hxajbheg2az3al.example 0.0.0.0/0
""".split()


@pytest.mark.parametrize("target", BAD_TARGETS)
@pytest.mark.parametrize("place", ["allow", "deny"])
def test_a_target_that_is_none_is_named(target, place):
    assert wrong_target(target)  # as documents say
    with pytest.raises(ValueError) as caught:
        rules(**{place: (target,)})
    assert repr(target) in str(caught.value)


@pytest.mark.parametrize("target", GOOD_TARGETS)
def test_what_documents_take_for_a_target_is_one(target):
    assert wrong_target(target) is None
    rules(allow=(target,), deny=(target,))


@given(st.text(st.sampled_from("a1.*:/[]-_fF0x9 "), max_size=20))
def test_documents_and_rules_agree_about_targets(target):
    try:
        rules(allow=(target,))
        refused = False
    except ValueError:
        refused = True
    assert refused == (wrong_target(target) is not None)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "host", "10.0.0.0/8:80", ""])
def test_a_private_network_that_is_none_is_named(text):
    with pytest.raises(ValueError, match="private network"):
        rules(private=(text,))
