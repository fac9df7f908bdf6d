"""Handlers that lie and fight, in real containers, all at once beside an honest one.

A handler is in the same process as its agent, so it can write to the agent's connection itself.
Each of these ends its own job with the right code and leaves nothing; the daemon and the others do
not notice. Then everything that would lead out of a container, tried in one.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from tests.stateful.conftest import Doer, package, skip_without_containers

pytestmark = pytest.mark.slow

# What a handler is told to do is code; this is what it has to do it with.
HANDLER = """
import ctypes, glob, hashlib, json, os, resource, signal, socket, stat, struct, sys, time, zlib

libc = ctypes.CDLL(None, use_errno=True)

def line():
    "The agent's connection."
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                one = socket.socket(fileno=os.dup(fd))
                one.setblocking(True)
                if one.getpeername().endswith("/agent.sock"):
                    return one
        except OSError:
            pass

def frame(body, kind="J"):
    return struct.pack("!IB", 1 + len(body), ord(kind)) + body

def say(**message):
    line().sendall(frame(json.dumps(message).encode()))

def checkpoint(seq, data, **more):
    about = {"name": "default", "settled": True, "size": len(data), "encoding": "json",
             "compression": "none", "sha256": hashlib.sha256(data).hexdigest()}
    say(type="checkpoint", seq=seq, **{**about, **more})
    line().sendall(frame(data, "B"))

def handle(input, ctx):
    space = {**globals(), "ctx": ctx, "answer": None}
    exec(input["code"], space)
    return space["answer"]

def tried(code):
    "Whether it works, in a process that may be killed for it."
    child = os.fork()
    if child == 0:
        signal.alarm(3)
        try:
            worked = eval(code, dict(globals()))
        except BaseException:
            worked = False
        os._exit(0 if worked else 1)
    return os.waitpid(child, 0)[1] == 0
"""

STAY = "\ntime.sleep(60)"
GIVE = "\nanswer = 'honest'"
CRASHED, OK = ("failed", "HANDLER_CRASHED"), ("completed", None)
# name: (what it does, how its execution ends)
LIES: dict[str, tuple[str, tuple[str, str | None]]] = {
    "a frame of 2 GiB": ("line().sendall(struct.pack('!IB', 2**31, 74))" + STAY, CRASHED),
    "no JSON": ("line().sendall(frame(b'{nonsense'))" + STAY, CRASHED),
    "no message": ("say(type='sudo')" + STAY, CRASHED),
    "a number that is none": ("say(type='progress', percent=1e999)" + STAY, CRASHED),
    "a sequence with a gap": ("checkpoint(77, b'1')" + STAY, CRASHED),
    "another SHA-256": ("checkpoint(1, b'1', sha256='0' * 64)" + STAY, CRASHED),
    "another instance": (
        "say(type='hello', protocol=1, instance='0' * 32, attempt=1, runtime='x', "
        "state='running', answered=0)" + STAY,
        CRASHED,
    ),
    "a flood": (
        "beat = frame(json.dumps({'type': 'heartbeat'}).encode()) * 1000\n"
        "for _ in range(1000): line().sendall(beat)" + STAY,
        CRASHED,
    ),
    "heartbeats and nothing else": ("time.sleep(60)", ("failed", "CHECKPOINT_MISSED")),
    "a second connection": (
        "one = socket.socket(socket.AF_UNIX); one.connect('/run/flowmonkey/agent.sock')\n"
        "one.settimeout(5); assert one.recv(1) == b''" + GIVE,
        OK,
    ),
    "two results": (
        "result = {'outcome': 'success', 'output': 'honest', 'updates': {}, 'emitted': []}\n"
        "say(type='result', seq=1, answer=result); say(type='result', seq=2, answer=result)" + STAY,
        OK,
    ),
    "a gigabyte of log": (
        "for number in range(100_000):\n"
        "    print('x' * 10_000, flush=False)\n"
        "    if number % 5_000 == 0: ctx.checkpoint.save(number)" + GIVE,
        OK,
    ),
    "a fork bomb": (
        "for _ in range(10_000):\n"
        "    try:\n"
        "        if os.fork() == 0: time.sleep(600); os._exit(0)\n"
        "    except OSError: break\n"
        "else: raise AssertionError('no limit')" + GIVE,
        OK,
    ),
    "a full /tmp": (
        "try:\n"
        "    with open('/tmp/x', 'wb', 0) as file:\n"
        "        for _ in range(1000): file.write(bytes(2**20))\n"
        "    raise AssertionError('no limit')\n"
        "except OSError: pass" + GIVE,
        OK,
    ),
    "a child that stays": (
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    for number in range(1, 32):\n"
        "        try: signal.signal(number, signal.SIG_IGN)\n"
        "        except OSError: pass\n"
        "    if os.fork() == 0:\n"
        "        while True: time.sleep(0.1)\n"
        "    os._exit(0)" + GIVE,
        OK,
    ),
    "a war on its init": ("os.kill(1, 9); os.kill(1, 15); os.kill(-1, 0)" + STAY, CRASHED),
    "everything signalled": ("os.kill(0, 9)", CRASHED),
    "an honest one": ("ctx.checkpoint.save(1)" + GIVE, OK),
}


@pytest.fixture(scope="module")
def doer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One that gives a job a single chance, and two seconds to save something."""
    skip_without_containers()
    folder = tmp_path_factory.mktemp("fm")
    made = Doer(
        folder,
        *("--set", "jobs.maxAttempts=1", "--set", "warm.onPublish=0"),
        *("--set", "containers.slots=32", "--set", f"containers.memoryBytes={32 * 2**29}"),
        *("--set", f"containers.tmpBytes={64 * 2**20}"),
    )
    made.start()
    try:
        handler = {"type": "acme/liar"}
        execution = {"checkpoint": {"required": True, "intervalMs": 5000}}
        made.publish(package(folder / "liar", HANDLER, handler=handler, execution=execution))
        yield made
    finally:
        made.clear()


def test_lies_end_the_job_of_who_tells_them_and_nothing_else(doer: Doer) -> None:
    begun = {
        name: doer.run(type="acme/liar", code=code, wait=False) for name, (code, _) in LIES.items()
    }
    ends = {}
    for name, one in begun.items():
        shown = doer.ended(one)
        ends[name] = (shown["status"], (shown["error"] or {}).get("code"))
        if ends[name] == OK:
            assert shown["context"]["out"] == "honest", name
        assert doer.types(one).count("step.completed") == 1, name
    assert ends == {name: end for name, (_, end) in LIES.items()}
    for name, one in begun.items():
        doer.until(one, lambda job: not doer.agents(doer.claimed(job)))
        assert len(doer.logs(one)) < 1000, name
    assert "Traceback" not in doer.daemon.log.read_text()


def test_a_result_after_the_cancel_is_none(doer: Doer) -> None:
    code = (
        "result = {'outcome': 'success', 'output': 'late', 'updates': {}, 'emitted': []}\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "while not ctx.cancelled: time.sleep(0.01)\n"
        "say(type='result', seq=1, answer=result)" + STAY
    )
    begun = doer.run(type="acme/liar", code=code, wait=False)
    doer.until(begun, lambda job: job["status"] == "running")
    doer.client.must("POST", f"/v1/executions/{begun['id']}/cancel", {})
    doer.until(begun, lambda job: not doer.agents(doer.claimed(job)))
    assert doer.show(begun)["status"] == "cancelled"
    assert "out" not in doer.show(begun)["context"]


def test_a_checkpoint_that_is_a_bomb_hurts_who_loads_it_and_not_the_daemon(doer: Doer) -> None:
    code = (
        # Two gigabytes of nothing, packed once and repeated: to pack them all takes 8 s.
        "pack = zlib.compressobj(9, zlib.DEFLATED, -15)\n"
        "piece = pack.compress(bytes(2**20)) + pack.flush(zlib.Z_FULL_FLUSH)\n"
        "check = (2000 * 2**20 % 65521) << 16 | 1\n"  # Adler-32 (RFC 1950) of so many zeros
        "data = b'\\x78\\xda' + 2000 * piece + b'\\x03\\x00' + check.to_bytes(4, 'big')\n"
        "checkpoint(1, data[:2**20], sha256=hashlib.sha256(data).hexdigest(), size=len(data),\n"
        "           compression='zlib', encoding='bytes')\n"
        "line().sendall(frame(data[2**20:], 'B'))\n"
        "time.sleep(4)"  # its own result would have the same number
    )
    ended = doer.run(type="acme/liar", code=code)
    job = doer.job(ended)
    assert job is not None
    assert job["checkpoint"] is not None, ended["error"]
    assert job["checkpoint"]["sizeBytes"] > 2**20
    got = doer.daemon.flowctl("job", "checkpoint", job["id"], "-o", str(doer.folder / "got"))
    status = Path(f"/proc/{doer.daemon.pid}/status").read_text()
    peak_kib = int(status.partition("VmHWM:")[2].split()[0])
    assert peak_kib < 512 * 1024, got.stderr


# What a way out would look like: true, if it worked. Numbers are of x86-64.
WAYS_OUT = {
    "the host's password file": "open('/etc/shadow').read()",
    "the daemon among the processes": (
        "any(b'flowmonkeyd' in open(one, 'rb').read() for one in glob.glob('/proc/[0-9]*/cmdline'))"
    ),
    "another container's folder": ("len(glob.glob('/run/**/agent.sock', recursive=True)) > 1"),
    "Podman's socket": "glob.glob('/run/**/podman.sock', recursive=True)",
    "its own folder, writable": "open('/run/flowmonkey/x', 'w')",
    "its own program, writable": "open('/usr/lib/flowmonkey/agent.py', 'a')",
    "its own package, writable": "open('/app/x', 'w')",
    "a control group, writable": (
        "any(os.access(one, os.W_OK) for one in glob.glob('/sys/fs/cgroup/**', recursive=True))"
    ),
    "settings of the kernel": "open('/proc/sys/kernel/core_pattern', 'w')",
    "the magic key": "open('/proc/sysrq-trigger', 'w')",
    "the kernel's memory": "open('/proc/kcore', 'rb').read(1)",
    "the kernel's log": "open('/dev/kmsg').read(1) or libc.klogctl(3, b'x' * 10, 10) > 0",
    "a disk made": "os.mknod('/tmp/disk', 0o600 | stat.S_IFBLK, os.makedev(8, 0)) is None",
    "ptrace of init": "libc.ptrace(16, 1, 0, 0) == 0",
    "memory of init": "open('/proc/1/mem', 'rb').read(1)",
    "a user namespace": "libc.unshare(0x10000000) == 0",
    "a mount namespace": "libc.unshare(0x00020000) == 0",
    "init's namespaces": "libc.setns(os.open('/proc/1/ns/mnt', 0), 0) == 0",
    "a mount": "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "another root": "os.chroot('/tmp') is None",
    "a name for the host": "socket.sethostname('owned') is None",
    "the clock": "time.clock_settime(0, 0) is None",
    "root by asking": "os.setuid(0) is None",
    "root by another group": "os.setgroups([0]) is None",
    "privileges by a program": "'NoNewPrivs:\\t0' in open('/proc/self/status').read()",
    "a capability": (
        "any(int(row.split()[1], 16) for row in open('/proc/self/status') if row[:3] == 'Cap')"
    ),
    "a raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "a packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)",
    "a netlink socket that writes": "socket.socket(16, socket.SOCK_RAW, 12)",
    "the metadata address": "socket.create_connection(('169.254.169.254', 80), 1)",
    "an interface": "set(os.listdir('/sys/class/net')) - {'lo'}",
    "a keyring": "libc.syscall(250, 1, None) >= 0",
    "a BPF program": "libc.syscall(321, 0, bytes(64), 64) >= 0",
    "io_uring": "libc.syscall(425, 1, ctypes.create_string_buffer(120)) >= 0",
    "perf events": "libc.syscall(298, bytes(128), 0, -1, -1, 0) >= 0",
    "userfaultfd": "libc.syscall(323, 0) >= 0",
    "a file by its handle": "libc.syscall(304, 0, bytes(128), 0) >= 0",
    "a kernel module": "libc.syscall(313, 0, b'', 0) == 0",
    "another kernel": "libc.syscall(246, 0, 0, None, 0) == 0",
    "a reboot": "libc.reboot(0) == 0",
    "more files than its limit": "resource.setrlimit(7, (2**20, 2**20)) is None",
    "a better place in the queue": "os.nice(-5) < 0",
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64: NO way out is tried")
def test_no_way_leads_out(doer: Doer) -> None:
    code = (
        f"ways = {WAYS_OUT!r}\n"
        "assert tried('1 + 1')  # it would tell\n"
        "answer = [name for name, code in ways.items() if tried(code)]"
    )
    ended = doer.run(type="acme/liar", code=code)
    assert ended["status"] == "completed", ended["error"]
    assert ended["context"]["out"] == []
