"""`flowctl handler test`: what it shows, what it exits with, where secrets come from, `--watch`.

The program is run as a person runs it; the sandbox is the real one. What it leaves behind is looked
for in a TMPDIR of its own and among its processes.
"""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
ECHO = "def handle(input, ctx): return {'got': input, 'key': ctx.secrets.get('key')}"
NOSY = """
import os
def handle(input, ctx):
    for _ in range(input):
        try: os.fork()
        except OSError: pass
    return "ok"
"""
FORBIDDEN = """
import ctypes
def handle(input, ctx): ctypes.CDLL(None).unshare(0x10000000)
"""


@pytest.fixture
def tried(folder, tmp_path):
    """`tried(code, *options)`: the command, finished; nothing of it may be left."""
    temp = tmp_path / "temp"
    temp.mkdir()

    def run(code, *options, stdin="", manifest=None, **env):
        place = folder("handler.py:handle", {"handler.py": code}, **(manifest or {}))
        done = subprocess.run(
            [BIN / "flowctl", "handler", "test", place, *options],
            env={**os.environ, "TMPDIR": str(temp), **env},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert os.listdir(temp) == []
        return done

    return run


def test_a_run_is_told_in_words(tried):
    done = tried(NOSY, "--input", "3")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"outcome": "success", "output": "ok"}
    took, refused = done.stderr.splitlines()
    assert took.startswith("took ")
    assert " of CPU, at most " in took
    assert refused == "refused: the system call clone: EPERM, 3 times"


def test_a_run_is_told_as_one_object(tried):
    said = json.loads(tried(NOSY, "--input", "3", "-o", "json").stdout)
    assert said["refusedCalls"] == [{"call": "clone", "answer": "EPERM", "count": 3}]
    assert (said["outcome"], said["output"], said["logs"]) == ("success", "ok", [])
    assert said["peakMemoryBytes"] > 1 << 20
    assert {"durationMs", "cpuMs"} <= said.keys()


def test_the_call_that_killed_it_is_named(tried):
    done = tried(FORBIDDEN)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "HANDLER_CRASHED"
    assert "refused: the system call unshare: killed the process" in done.stderr.splitlines()


def test_what_is_wrong_has_its_exit_code(tried, tmp_path):
    raises = "def handle(input, ctx): raise ValueError('no')"
    assert tried(raises).returncode == 1
    assert tried("def handle(: pass").returncode == 5
    assert tried(ECHO, manifest={"version": "one"}).returncode == 5
    for options in (
        ["--timeout", "0"],
        ["--timeout", "61"],
        ["--input", "{"],
        ["--input", "@/nowhere"],
        ["--config", "[]"],
        ["--given", "{}"],
        ["--nonsense"],
    ):
        assert tried(ECHO, *options).returncode == 2, options
    absent = [BIN / "flowctl", "handler", "test", tmp_path / "absent"]
    assert subprocess.run(absent, capture_output=True).returncode == 2


def test_the_input_comes_from_where_it_is(tried, tmp_path):
    (tmp_path / "in.json").write_text('{"a": 1}')
    for options, stdin in (
        (["--input", f"@{tmp_path}/in.json"], ""),
        (["--input", "-"], '{"a":1}'),
    ):
        assert json.loads(tried(ECHO, *options, stdin=stdin).stdout)["output"]["got"] == {"a": 1}


def test_a_timeout_stands_for_the_manifests(tried):
    done = tried("def handle(input, ctx):\n    while True: pass", "--timeout", "0.2")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["message"] == "ran longer than 200 ms"


LENGTH = "def handle(input, ctx): print(ctx.secrets['key']); return len(ctx.secrets['key'])"


def test_a_secret_comes_from_the_environment_or_a_file_and_is_masked(tried, tmp_path):
    (tmp_path / "key").write_text("s3cr3t-k3y\n")
    for place in ("env:KEY", f"@{tmp_path}/key"):
        done = tried(LENGTH, "--secret", f"key={place}", KEY="s3cr3t-k3y")
        assert json.loads(done.stdout)["output"] == 10, done.stderr
        assert "s3cr3t" not in done.stdout + done.stderr
        assert "[secret key]" in done.stderr
    done = tried(ECHO, "--given", "-", stdin='{"secrets": {"key": "s3cr3t-k3y"}}')
    assert json.loads(done.stdout)["output"]["key"] == "[secret key]"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("key=s3cr3t", "does not belong on the command line"),
        ("key", "nobody can be asked here"),
        ("key=", "does not belong"),
        ("=s3cr3t", "it needs a name"),
        ("key=env:ABSENT_s3", "no such environment variable"),
        ("key=@/absent_s3", "no such file"),
    ],
)
def test_a_secret_that_is_given_wrongly_is_never_quoted(tried, told, why):
    done = tried(ECHO, "--secret", told)
    assert done.returncode == 2
    assert why in " ".join(done.stderr.split())
    assert "s3cr3t" not in done.stderr


def test_a_secret_is_asked_for_unseen(folder):
    place = folder("handler.py:handle", {"handler.py": LENGTH})
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [BIN / "flowctl", "handler", "test", place, "--secret", "key"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,  # getpass asks the terminal itself, if there is one
    )
    os.close(theirs)
    shown = b""
    while b"secret key" not in shown:
        shown += os.read(ours, 1000)
    os.write(ours, b"s3cr3t-k3y\n")
    out, _ = process.communicate(timeout=60)
    assert json.loads(out)["output"] == 10
    os.set_blocking(ours, False)
    try:
        shown += os.read(ours, 10_000)
    except OSError:
        pass  # nothing more, and nobody there
    os.close(ours)
    assert b"s3cr3t" not in shown


class Watched:
    """`handler test --watch` on a folder, read line by line."""

    def __init__(self, place, temp):
        self.place = place
        self.process = subprocess.Popen(
            [BIN / "flowctl", "handler", "test", place, "--watch", "--timeout", "20"],
            env={**os.environ, "TMPDIR": str(temp), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until(self, words):
        """The lines up to one with these words."""
        lines = []
        for line in self.process.stdout:
            lines.append(line.rstrip())
            if words in line:
                return lines
        raise AssertionError(lines)

    def round(self):
        return self.until("-- waiting for a change")

    def write(self, name, text):
        """As editors do: a new file takes the old one's place."""
        (self.place / ".new").write_text(text)
        os.replace(self.place / ".new", self.place / name)

    def end(self, number=signal.SIGINT):
        children = [os.pidfd_open(int(pid)) for pid in descendants(self.process.pid)]
        assert children
        self.process.send_signal(number)
        rest = self.process.communicate(timeout=20)[0]
        for child in children:  # the kernel ends them with it, if not before
            assert select.select([child], [], [], 20)[0]
            os.close(child)
        return self.process.returncode, rest


def descendants(pid):
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [child, *descendants(child)]
    return found


@pytest.fixture
def watched(folder, tmp_path):
    temp = tmp_path / "temp"
    temp.mkdir()
    started = []

    def start(code):
        place = folder("handler.py:handle", {"handler.py": code})
        started.append(Watched(place, temp))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()
    assert os.listdir(temp) == []


def test_it_runs_again_at_every_change_until_ctrl_c(watched):
    watch = watched("def handle(input, ctx): return 1")
    assert '{"outcome": "success", "output": 1}' in watch.round()
    watch.write("handler.py", "def handle(input, ctx): return 2")
    assert '{"outcome": "success", "output": 2}' in watch.round()
    watch.write("handler.py", "def handle(input, ctx): raise ValueError('three')")
    assert "flowctl: the handler failed: HANDLER_ERROR: ValueError: three" in watch.round()
    manifest = (watch.place / "handler.json").read_text()
    watch.write("handler.json", "{")
    assert any(line.startswith("flowctl: ") for line in watch.round())
    watch.write("handler.json", manifest)
    assert "flowctl: the handler failed: HANDLER_ERROR: ValueError: three" in watch.round()
    (watch.place / "handler.py").unlink()
    assert any("handler.py" in line for line in watch.round())
    watch.write("handler.py", "def handle(input, ctx): return 4")
    assert '{"outcome": "success", "output": 4}' in watch.round()
    code, rest = watch.end()
    assert code == 0
    assert "Traceback" not in rest


def test_a_change_while_it_runs_is_not_missed(watched):
    watch = watched("import time\nprint('begun', flush=True)\ndef handle(i, c): time.sleep(0.5)")
    watch.until("begun")
    watch.write("handler.py", "def handle(input, ctx): return 'new'")
    watch.round()
    assert '{"outcome": "success", "output": "new"}' in watch.round()
    assert watch.end()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_the_middle_of_a_run(watched, number):
    code = "import time\ndef handle(i, c): print('begun', flush=True); time.sleep(15)"
    watch = watched(code)
    watch.until("begun")
    code, rest = watch.end(number)
    assert code == 0
    assert "Traceback" not in rest


# --- where there is no sandbox -------------------------------------------------------------------

_WITHOUT = """
import os, sys
from sandbox import linux, seccomp
if os.geteuid() != 0:
    linux.no_new_privs()
linux.seccomp(seccomp.without_user_namespaces())
os.execv(sys.argv[1], sys.argv[1:])
"""


def without_sandbox(*command, cwd):
    return subprocess.run(
        [sys.executable, "-c", _WITHOUT, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_without_a_sandbox_nothing_is_run_and_that_is_said(folder):
    code = "open('/tmp/was-run', 'w')\ndef handle(input, ctx): return 1"
    place = folder("handler.py:handle", {"handler.py": code})
    done = without_sandbox(BIN / "flowctl", "handler", "test", place, cwd=place)
    assert done.returncode == 3
    assert done.stderr.startswith("flowctl: cannot run it here: layer user-namespace cannot be had")
    assert done.stdout == ""
    (place / "test_it.py").write_text("def test_it(handler_test): handler_test()\n")
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    done = without_sandbox(sys.executable, "-m", "pytest", *options, cwd=place)
    assert done.returncode == 1
    assert "THE HANDLER WAS NOT RUN: cannot run it here: layer user-namespace" in done.stdout
    assert not os.path.exists("/tmp/was-run")


TESTS = """
def children():
    return open("/proc/thread-self/children").read().split()

def test_counts_and_gives_each_run_a_process_of_its_own(handler_test):
    first, second = handler_test(2), handler_test(0)
    assert (first.refused, second.refused) == ({"clone": 2}, {})
    assert [one.output for one in (first, second)] == ["ok", "ok"]

def test_one_pool_serves_all_of_them(handler_test):
    before = children()
    assert len(before) == 1
    assert handler_test(1).refused == {"clone": 1}
    assert children() == before
"""


def test_the_fixture_has_one_pool_for_a_folder(folder):
    place = folder("handler.py:handle", {"handler.py": NOSY, "test_it.py": TESTS})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
