"""Each wall of a container, tried from within; a handler's own code would find no more.

Every attack is Python run in a real container: it prints what it got, or the error's name.
"""

from __future__ import annotations

import json

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="session"),
]

# By name: their numbers on x86-64 and arm64, and arguments that would do no harm.
_REFUSED = {
    "unshare-user": (272, 97, 0x10000000),
    "unshare-network": (272, 97, 0x40000000),
    "setns": (308, 268, 0, 0),
    "ptrace-traceme": (101, 117, 0, 0, 0, 0),
    "mount": (165, 40, 0, 0, 0, 0, 0),
    "umount": (166, 39, 0, 0),
    "pivot-root": (155, 41, 0, 0),
    "open-tree": (428, 428, 0, 0, 0),
    "fsopen": (430, 430, 0, 0),
    "move-mount": (429, 429, 0, 0, 0, 0, 0),
    "keyctl": (250, 219, 0, 0),
    "add-key": (248, 217, 0, 0, 0, 0, 0),
    "bpf": (321, 280, 0, 0, 0),
    "perf": (298, 241, 0, 0, 0, 0, 0),
    "io-uring": (425, 425, 1, 0),
    "userfaultfd": (323, 282, 0),
    "process-vm-readv": (310, 270, 1, 0, 0, 0, 0, 0),
    "pidfd-getfd": (438, 438, 0, 0, 0),
    "name-to-handle": (303, 264, 0, 0, 0, 0, 0),
    "quotactl": (179, 60, 0, 0, 0, 0),
    "fanotify": (300, 262, 0, 0),
    "reboot": (169, 142, 0, 0, 0, 0),
    "syslog": (103, 116, 0, 0, 0),
    "settimeofday": (164, 170, 0, 0),
    "chroot": (161, 51, 0),
    "memfd-secret": (447, 447, 0),
}
_CALL = """
import ctypes, errno, json, os
libc = ctypes.CDLL(None, use_errno=True)
def call(x86, arm, *arguments):
    done = libc.syscall(arm if os.uname().machine == "aarch64" else x86, *arguments)
    return errno.errorcode[ctypes.get_errno()] if done < 0 else done
"""


async def test_calls_are_refused_before_their_arguments_are_looked_at(printed):
    code = f"{_CALL}\nprint(json.dumps({{k: call(*v) for k, v in {_REFUSED}.items()}}))"
    assert json.loads(await printed(code)) == dict.fromkeys(_REFUSED, "EPERM")


async def test_clone_makes_no_namespaces_and_clone3_is_unknown(printed):
    said = await printed(
        f"{_CALL}\nprint(call(56, 220, 0x10000011, 0, 0, 0, 0), call(435, 435, 0, 0))"
    )
    assert said.split() == ["ENOSYS", "ENOSYS"]


async def test_sockets_are_of_families_that_stay_within_its_network(printed):
    code = """
import socket, errno
# unix, inet, inet6, netlink, packet, alg, vsock
for family, kind in ((1, 1), (2, 1), (10, 1), (16, 3), (17, 3), (38, 5), (40, 1)):
    try:
        socket.socket(family, kind).close()
        print(family, "made")
    except OSError as exc:
        print(family, errno.errorcode[exc.errno])
"""
    said = dict(line.split() for line in (await printed(code)).splitlines())
    assert {said[one] for one in ("1", "2", "10", "16")} == {"made"}
    assert {said[one] for one in ("17", "38", "40")} == {"ENOSYS"}


async def test_threads_and_processes_are_made_all_the_same(printed):
    code = """
import asyncio, subprocess, sys, threading
thread = threading.Thread(target=print, args=("thread",)); thread.start(); thread.join()
print(subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, text=True).stdout)
async def child():
    made = await asyncio.create_subprocess_exec(sys.executable, "-c", "pass")
    print(await made.wait())
asyncio.run(child())
"""
    assert (await printed(code)).split() == ["thread", "1", "0"]


async def test_nothing_of_the_root_can_be_written_but_tmp(printed):
    code = """
import errno, os
for place in ("/", "/etc", "/usr/lib", "/run", "/run/flowmonkey", "/app", "/var/tmp", "/dev",
              "/proc", "/sys", "/home", "/tmp", "/dev/shm"):
    try:
        with open(place + "/made", "w"):
            print(place)
    except OSError:
        pass
"""
    assert (await printed(code)).split() == ["/tmp", "/dev/shm"]


async def test_who_runs_in_it_is_nobody_on_the_host(printed, containers, start):
    code = """
import os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(os.getuid(), os.getgid(), os.getgroups(), status["CapEff"].strip(), status["CapBnd"].strip())
"""
    assert (await printed(code)).split() == ["1000", "1000", "[1000]", "0" * 16, "0" * 16]
    first, second = await start(), await start()
    assert abs(first.first_uid - second.first_uid) >= 65536


async def test_no_program_gives_more_rights(printed):
    code = """
import os, subprocess
su = subprocess.run(["/bin/su", "-c", "id"], stdin=subprocess.DEVNULL, capture_output=True)
print(su.returncode != 0)
try:
    os.setuid(0)
except OSError as exc:
    print(exc.errno)
print(open("/proc/self/status").read().split("NoNewPrivs:")[1].split()[0])
"""
    assert (await printed(code)).split() == ["True", "1", "1"]


async def test_there_is_no_way_out(printed):
    code = """
import os, socket
print(os.listdir("/sys/class/net"))
for family, address in ((2, "1.1.1.1"), (2, "10.0.0.1"), (2, "169.254.169.254"),
                        (10, "2606:4700:4700::1111")):
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.settimeout(5)
        try:
            one.connect((address, 80))
            print("connected")
        except OSError as exc:
            print(exc.errno in (101, 99))
"""
    assert (await printed(code)).split() == ["['lo']", "True", "True", "True", "True"]


async def test_its_environment_is_what_it_was_given(printed, monkeypatch):
    monkeypatch.setenv("PLANTED_IN_THE_DAEMON", "planted")
    said = json.loads(await printed("import json, os; print(json.dumps(dict(os.environ)))"))
    instance = said.pop("FLOWMONKEY_INSTANCE")
    assert len(instance) == 32
    assert set(said) <= {"HOME", "HOSTNAME", "PATH", "LC_CTYPE"}
    assert "planted" not in said.values()


async def test_the_host_is_not_seen(printed):
    code = """
import os
processes = [one for one in os.listdir("/proc") if one.isdigit()]
print(processes.count("1"), len(processes) < 5)
print(os.uname().nodename, os.path.exists("/dev/kvm"), os.path.exists("/dev/vda"))
for hidden in ("/proc/kcore", "/proc/keys", "/proc/timer_list"):
    try:
        print(len(open(hidden, "rb").read(10)))
    except OSError:
        print(0)
"""
    assert (await printed(code)).split() == [
        *("1", "True", "flowmonkey", "False", "False"),
        *("0", "0", "0"),
    ]


async def test_the_folder_of_the_host_is_seen_and_cannot_be_changed(containers, printed, start):
    code = """
import os
print(sorted(os.listdir("/run/flowmonkey")), open("/run/flowmonkey/given").read())
for change in (lambda: os.unlink("/run/flowmonkey/given"), lambda: os.mkdir("/run/flowmonkey/x")):
    try:
        change()
    except OSError as exc:
        print(exc.errno)
"""
    instance = "f" * 32
    folder = containers.folder(instance)
    (folder / "given").write_text("text")
    said = await printed(code, instance=instance, folder=folder)
    assert said.split() == ["['given',", "'go']", "text", "30", "30"]
