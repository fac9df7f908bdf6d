"""The compiled filter does what the table says, for every number, on both architectures.

The table is judged here by a second reading of it that knows nothing of BPF, and the programs are
run by a small interpreter of classic BPF as the kernel runs them (linux/seccomp.h,
Documentation/userspace-api/seccomp_filter.rst). `calls.txt` lists the policy by number, so that a
change of it is seen in a diff; write it anew with `python tests/sandbox/test_seccomp.py`.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path

import pyseccomp
import pytest

from sandbox import seccomp

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
WORDS = {ALLOW: "allow", KILL: "kill", EPERM: "EPERM", ENOSYS: "ENOSYS"}
TOKENS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_* of linux/audit.h
FOREIGN = (0x40000003, 0x40000028, 0x4000003E, 0xC0000015, 0, 0xFFFFFFFF)  # i386, arm, x32 …
PROFILES = [(runtime, network) for runtime in ("python", "node") for network in (False, True)]
LISTING = Path(__file__).with_name("calls.txt")
_native = os.uname().machine
# libseccomp translates from this machine's numbers, and not all of x86_64's exist on others.
MACHINES = [name for name in TOKENS if name == _native or _native == "x86_64"]
_each = pytest.mark.parametrize("machine", MACHINES)
_each_profile = pytest.mark.parametrize(("runtime", "network"), PROFILES)


def run_bpf(program: bytes, token: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """The value that the program returns for one call."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, token, 0, *padded)
    words = struct.unpack("=16I", data)
    code = decoded(program)
    at = accumulator = 0
    while True:
        operation, jump_true, jump_false, value = code[at]
        at += 1
        match operation:
            case 0x20:  # ld [value]
                assert value % 4 == 0
                accumulator = words[value // 4]
            case 0x05:  # ja
                at += value
            case 0x15:  # jeq
                at += jump_true if accumulator == value else jump_false
            case 0x25:  # jgt
                at += jump_true if accumulator > value else jump_false
            case 0x35:  # jge
                at += jump_true if accumulator >= value else jump_false
            case 0x45:  # jset
                at += jump_true if accumulator & value else jump_false
            case 0x54:  # and
                accumulator &= value
            case 0x06:  # ret
                return value
            case _:
                raise AssertionError(f"instruction {operation:#x} at {at - 1}")


@cache
def decoded(program: bytes) -> list[tuple[int, ...]]:
    return list(struct.iter_unpack("=HBBI", program))


@cache
def program_of(machine: str, runtime: str, network: bool) -> bytes:
    return seccomp.compile_filter(runtime, network, machine)


@cache
def names_of(machine: str) -> dict[int, str]:
    """The calls of an architecture, by libseccomp's resolver."""
    found = {}
    for number in range(1024):
        try:
            found[number] = pyseccomp.resolve_syscall(TOKENS[machine], number).decode()
        except ValueError:
            continue
    return found


@cache
def words_of(table: str) -> frozenset[str]:
    return frozenset(" ".join(getattr(seccomp, table).values()).split())


def judged(
    machine: str, runtime: str, network: bool, number: int, arguments: tuple[int, ...]
) -> int:
    """What the policy says, read from the table."""
    names = names_of(machine)
    if number >= 1 << 30:
        return KILL
    if number > max(names):
        return ENOSYS
    name = names.get(number)
    if name in words_of("ALLOWED"):
        return ALLOW
    if name in words_of("UNIMPLEMENTED"):
        return ENOSYS
    rules = [rule for rule in seccomp.ARGUMENT_RULES if rule.call == name]
    for rule in rules:
        wanted = {"": True, "network": network, "node": runtime == "node"}[rule.only]
        if wanted and all(arguments[n] & mask == value for n, mask, value in rule.where):
            return ALLOW
    return EPERM if rules or name in words_of("HARMLESS") else KILL


def edges(name: str) -> list[tuple[int, ...]]:
    """Arguments at the edges of every rule of a call, and with bits that no rule looks at."""
    found = {(0,) * 6, (2**64 - 1,) * 6}
    for rule in seccomp.ARGUMENT_RULES:
        if rule.call != name:
            continue
        good = [0] * 6
        for n, _mask, value in rule.where:
            good[n] = value
        variants = [good, [x | 0xDEAD << 32 for x in good], [x | 1 << 31 for x in good]]
        for n, mask, value in rule.where:
            for changed in (value + 1, value - 1, ~value, value | ~mask, 0, 2**31, 2**32 | value):
                variants.append([*good[:n], changed, *good[n + 1 :]])
            variants += [[*good[:n], value ^ 1 << bit, *good[n + 1 :]] for bit in range(64)]
        found.update(tuple(x & 2**64 - 1 for x in one) for one in variants)
    return sorted(found)


@_each
@_each_profile
def test_every_number_is_judged_as_the_table_says(machine, runtime, network):
    program, token = program_of(machine, runtime, network), TOKENS[machine]
    for number in range(1024):
        name = names_of(machine).get(number, "")
        for arguments in edges(name):
            got = run_bpf(program, token, number, arguments)
            wanted = judged(machine, runtime, network, number, arguments)
            assert got == wanted, (name, number, [hex(x) for x in arguments], hex(got))


@_each
@_each_profile
def test_x32_and_other_architectures_are_killed(machine, runtime, network):
    program = program_of(machine, runtime, network)
    for number in [*range(1024), 2**30 - 1, 2**31 - 1, 2**31, 2**32 - 1]:
        for high in (1 << 30, 1 << 31, 3 << 30):
            assert run_bpf(program, TOKENS[machine], number | high) == KILL, hex(number | high)
        others = {*FOREIGN, *TOKENS.values()} - {TOKENS[machine]}
        for token in others:
            assert run_bpf(program, token, number) == KILL, (hex(number), hex(token))


@_each
@_each_profile
def test_what_is_newer_than_libseccomp_does_not_exist(machine, runtime, network):
    program, last = program_of(machine, runtime, network), max(names_of(machine))
    for number in (last + 1, last + 2, 1023, 1 << 20, (1 << 30) - 1):
        assert run_bpf(program, TOKENS[machine], number) == ENOSYS


def test_network_and_node_only_add():
    """A profile without network, or for Python, allows nothing that the wider one refuses."""
    for machine in MACHINES:
        plain = program_of(machine, "python", False)
        for runtime, network in PROFILES:
            wider = program_of(machine, runtime, network)
            for number, name in names_of(machine).items():
                for arguments in edges(name):
                    if run_bpf(plain, TOKENS[machine], number, arguments) == ALLOW:
                        got = run_bpf(wider, TOKENS[machine], number, arguments)
                        assert got == ALLOW, (runtime, network, name, arguments)


def test_each_call_is_named_once():
    ruled = {rule.call for rule in seccomp.ARGUMENT_RULES}
    for table in ("ALLOWED", "HARMLESS", "UNIMPLEMENTED", "FATAL"):
        names = " ".join(getattr(seccomp, table).values()).split()
        assert len(names) == len(set(names)), table
    assert not words_of("ALLOWED") & (ruled | words_of("HARMLESS"))
    for table in ("ALLOWED", "HARMLESS", "UNIMPLEMENTED"):
        assert not words_of(table) & words_of("FATAL"), table
    assert not words_of("UNIMPLEMENTED") & (words_of("ALLOWED") | words_of("HARMLESS") | ruled)


def test_every_call_that_libseccomp_knows_is_in_the_table():
    named = {rule.call for rule in seccomp.ARGUMENT_RULES}.union(
        *(words_of(table) for table in ("ALLOWED", "HARMLESS", "UNIMPLEMENTED", "FATAL"))
    )
    for machine in MACHINES:
        # What came after Linux 6.7 may not have been thought about yet; it kills.
        forgotten = {name for n, name in names_of(machine).items() if n <= 456} - named
        assert forgotten == set()


def listing() -> str:
    lines = []
    for machine in MACHINES:
        for number, name in names_of(machine).items():
            if number > 456:
                break
            said = []
            for runtime, network in PROFILES:
                program = program_of(machine, runtime, network)
                results = {
                    run_bpf(program, TOKENS[machine], number, arguments)
                    for arguments in edges(name)
                }
                said.append("/".join(sorted(WORDS[result] for result in results)))
            if len(set(said)) == 1:
                said = said[:1]
            lines.append(f"{machine} {number:3} {name} {' '.join(said)}\n")
    return "".join(lines)


@pytest.mark.skipif(len(MACHINES) < 2, reason="needs x86_64: the listing is NOT compared")
def test_the_policy_is_the_listed_one():
    if max(names_of("x86_64")) < 456:
        pytest.skip("this libseccomp knows too few calls: the listing is NOT compared")
    assert listing() == LISTING.read_text()


def test_description_names_every_call_of_the_profile():
    text = "\n".join(seccomp.describe("node", True))
    for rule in seccomp.rules_for("node", True):
        assert f"{rule.call}: " in text
    assert "execveat: become Node" in text
    assert "execveat: become Node" not in "\n".join(seccomp.describe("python", True))


def test_an_architecture_without_a_table_is_refused():
    with pytest.raises(OSError, match="no table for riscv64"):
        seccomp.compile_filter("python", False, "riscv64")


_UNDER_THE_FILTER = """
import ctypes, os, sys
from sandbox import linux, seccomp
program = seccomp.compile_filter(sys.argv[1], sys.argv[2] == "network")
call = ctypes.CDLL(None, use_errno=True).syscall
linux.no_new_privs()
linux.seccomp(program)
result = call(*(ctypes.c_long(int(x, 0)) for x in sys.argv[3:]))
print(result if result >= 0 else -ctypes.get_errno())
"""


@pytest.mark.skipif(_native != "x86_64", reason="the numbers are x86_64's")
@pytest.mark.parametrize(
    ("profile", "words", "wanted"),
    [
        ("no", "39", None),  # getpid
        ("no", "41 2 1 0", "-1"),  # socket(AF_INET, SOCK_STREAM)
        ("network", "41 2 0x80801 6", "3"),
        ("network", "41 2 3 0", "-1"),  # SOCK_RAW
        ("network", "41 1 1 0", "-1"),  # AF_UNIX
        ("network", "41 2 1 262", "-1"),  # MPTCP
        ("no", "57", "-1"),  # fork
        ("no", "435 0 0", "-38"),  # clone3
        ("no", "999", "-38"),
        ("no", "101 0 0 0 0", "SIGSYS"),  # ptrace
        ("no", "400", "SIGSYS"),  # a gap
        ("no", f"{0x40000000 + 39}", "SIGSYS"),
    ],
)
def test_the_kernel_agrees(profile, words, wanted):
    command = [sys.executable, "-c", _UNDER_THE_FILTER, "python", profile, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    if wanted == "SIGSYS":
        assert done.returncode == -31, done
    else:
        assert done.returncode == 0, done
        assert wanted is None or done.stdout.strip() == wanted


if __name__ == "__main__":
    LISTING.write_text(listing())
