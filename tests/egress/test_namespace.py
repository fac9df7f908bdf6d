"""The gateway's network could not be made: it says why, and leaves nothing open."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PREPARE = """
import os, sys
sys.path.insert(0, {root!r})
from sandbox import linux
from sandbox.egress import namespace
{before}
held = len(os.listdir("/proc/self/fd"))
try:
    fds = namespace.prepare({ports})
    print(len(fds), [os.get_inheritable(fd) or os.get_blocking(fd) for fd in fds].count(True))
except OSError as exc:
    print(exc.strerror, len(os.listdir("/proc/self/fd")) - held)
"""
NEW = "linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNET)"


def prepared(ports, before=""):
    code = PREPARE.format(root=str(ROOT), ports=ports, before=before)
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout.strip() or done.stderr


def test_without_privilege_over_the_network_it_fails():
    nobody = "os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)"
    before = f"linux.unshare(linux.CLONE_NEWNET); {nobody}" if os.getuid() == 0 else ""
    assert prepared([80], before) == "bring the loopback interface up: Operation not permitted 0"


def test_a_port_that_is_taken_is_named():
    assert prepared([80, 443, 80], NEW) == "bind 0.0.0.0 port 80: Address already in use 0"


def test_it_opens_one_socket_for_names_and_two_for_each_port():
    count = 5 if os.path.exists("/proc/net/if_inet6") else 3
    assert prepared([80, 443], NEW) == f"{count} 0"


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="there is no IPv6 here")
def test_without_ipv6_it_goes_on_with_ipv4():
    off = (
        f"{NEW}; open('/proc/sys/net/ipv6/conf/all/disable_ipv6', 'w').write('1');"
        "open('/proc/sys/net/ipv6/conf/lo/disable_ipv6', 'w').write('1')"
    )
    # /proc/sys shows the namespace of who opens it; it is root's there
    assert prepared([80, 443], off) in ("3 0", "5 0")
