"""What the calls to the kernel do to the process that makes them, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

_FAULTS_OF_A_FORK = """
import json, os, resource, sys
from sandbox import linux

def not_only_read():
    with open("/proc/self/maps") as file:
        fields = [line.split() for line in file]
    return {(span, access) for span, access, _, _, inode, *_ in fields
            if inode != "0" and access != "r--p"}

def faults():
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        json.loads(json.dumps(sorted(str(n) for n in range(100))))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        os.write(writing, str(after - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(reading, 20))

faults()  # what is touched for the first time by anybody
first, seen = faults(), not_only_read()
linux.keep_code_mapped()
print(json.dumps([first, faults(), sorted(seen ^ not_only_read())]))
"""


def test_a_fork_finds_code_mapped_and_no_code_can_be_written():
    ran = subprocess.run(
        [sys.executable, "-c", _FAULTS_OF_A_FORK], capture_output=True, text=True, check=True
    )
    before, after, changed = json.loads(ran.stdout)
    assert after < before - 10
    assert changed == []
