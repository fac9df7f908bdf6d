"""Where the daemon lives: its data directory, its socket, its configuration, and who else is there.

Each start here is the real program; a refusal is one clear line, exit code 1 (78 for a bad
configuration), and leaves what is there as it was.
"""

import os
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.daemon import Daemon, DidNotStart

pytestmark = pytest.mark.slow


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    made: list[Daemon] = []

    def make(*flags: str, name: str = "d", **environ: str) -> Daemon:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        made.append(Daemon(directory, *flags, **environ))
        return made[-1]

    yield make
    for daemon in made:
        daemon.close()


def refused(daemon: Daemon, *words: str) -> None:
    """It does not start, and says why in one line with these words."""
    with pytest.raises(DidNotStart) as ended:
        daemon.start()
    assert ended.value.code == 1
    lines = ended.value.stderr.splitlines()
    assert len(lines) == 1, ended.value.stderr
    assert lines[0].startswith("flowmonkeyd: cannot ")
    for word in words:
        assert word in lines[0]


def serves(daemon: Daemon) -> bool:
    with closing(daemon.client()) as client:
        return client.must("GET", "/v1/health")["status"] in ("ok", "degraded")


# --- the data directory ------------------------------------------------------------------------


def test_second_daemon_on_a_data_directory_is_refused_and_the_first_goes_on(make) -> None:
    first, second = make(name="first"), make(name="second")
    first.start()
    second.data = first.data
    refused(second, "another flowmonkeyd", f"(pid {first.process.pid}) has it")
    assert serves(first)
    assert first.stop() == 0
    second.start()


def test_everything_of_the_daemon_is_closed_to_others(make) -> None:
    daemon = make()
    daemon.data.mkdir(mode=0o755)
    daemon.start()
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in daemon.data.rglob("*")}
    assert stat.S_IMODE(daemon.data.stat().st_mode) == 0o700
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o660
    assert modes["flowmonkey.db"] == modes["flowmonkey.db-wal"] == modes["lock"] == 0o600


@pytest.mark.root
def test_data_directory_of_another_owner_is_refused(make) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a directory away")
    daemon = make()
    daemon.data.mkdir()
    os.chown(daemon.data, 65534, 65534)
    refused(daemon, "it belongs to uid 65534 and this daemon runs as uid 0")
    assert list(daemon.data.iterdir()) == []


def test_data_directory_that_is_a_file_is_refused(make) -> None:
    daemon = make()
    daemon.data.write_text("mine")
    refused(daemon, f"cannot use the data directory {daemon.data}", "not a directory")
    assert daemon.data.read_text() == "mine"


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE t (x)")


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute(f"PRAGMA application_id = {0x464D6B79}")
        conn.execute("PRAGMA user_version = 99")


def garbage(path: Path) -> None:
    path.write_bytes(b"no database at all " * 1000)


DATABASES = [
    (newer, "it has version 99", "run the newer flowmonkeyd"),
    (foreign, "the file is not FlowMonkey's"),
    (garbage, "not a database"),
]


@pytest.mark.parametrize("case", DATABASES, ids=lambda case: case[0].__name__)
def test_database_that_is_not_ours_to_open_is_refused_and_kept(make, case) -> None:
    write, *words = case
    daemon = make()
    daemon.data.mkdir()
    database = daemon.data / "flowmonkey.db"
    write(database)
    before = database.read_bytes()
    refused(daemon, "cannot open the database", *words)
    assert database.read_bytes() == before


# --- the socket --------------------------------------------------------------------------------


def test_socket_on_which_another_daemon_answers_is_left_to_it(make) -> None:
    first, second = make(name="first"), make(name="second")
    first.start()
    second.socket = first.socket
    refused(second, f"cannot serve on {first.socket}: another daemon answers there")
    assert serves(first)


SOCKETS = [
    ("l" * 120, lambda path: None, "at most 107 bytes"),
    ("file", lambda path: path.write_text("mine"), "it exists and is not a socket"),
    ("folder", lambda path: path.mkdir(), "it exists and is not a socket"),
    ("file/s", lambda path: path.parent.write_text("mine"), "cannot serve on"),
]


@pytest.mark.parametrize("case", SOCKETS, ids=lambda case: case[0][:8])
def test_socket_path_that_cannot_be_served_on_is_refused(make, case) -> None:
    name, prepare, words = case
    daemon = make()
    daemon.socket = daemon.directory / name
    prepare(daemon.socket)
    before = sorted(daemon.directory.iterdir())
    refused(daemon, words)
    left = set(daemon.directory.iterdir()) - {daemon.data, daemon.log}
    assert sorted(left - {daemon.directory / "notify"}) == before


def test_socket_left_by_kill_9_is_taken_over(make) -> None:
    daemon = make()
    daemon.start()
    daemon.kill()
    assert daemon.socket.is_socket()
    daemon.start()
    assert serves(daemon)
    assert daemon.stop() == 0
    assert not daemon.socket.exists()


def test_socket_given_by_systemd_is_served_on_and_left(make) -> None:
    daemon = make()
    # systemd's part: the socket as descriptor 3, the variables, then exec (sd_listen_fds(3)).
    hand_over = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_FDS'] = '1';"
        "os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[2], sys.argv[2:])"
    )
    given = daemon.directory / "given"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(given))
        listening.listen()
        early = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with early:
            early.connect(str(given))  # asked before there is a daemon, answered once there is
            early.sendall(b"GET /v1/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            early.settimeout(20)
            daemon.before = (sys.executable, "-c", hand_over, str(listening.fileno()))
            daemon.launch(pass_fds=[listening.fileno()])
            assert early.recv(65536).startswith(b"HTTP/1.1 ")
        while "READY=1" not in daemon.told(20):
            pass
        assert not daemon.socket.exists()
        daemon.socket = given
        assert serves(daemon)
        assert daemon.stop() == 0
        assert given.is_socket()


# --- the configuration -------------------------------------------------------------------------


def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FLOWMONKEY")}
    command = [sys.executable, "-m", "flowmonkeyd", *args]
    return subprocess.run(command, env={**inherited, **environ}, capture_output=True, text=True)


def test_bad_configuration_is_one_line_each_and_exit_78(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('colour = "red"\n[shutdown]\ngraceMs = -1\n[log]\nlevel = "loud"\n')
    flags = ("--config", str(file), "--data-dir", str(tmp_path / "data"), "--set", "nope.x=1")
    done = run(*flags, FLOWMONKEY_SANDBOX__SLOTS="many", FLOWMONKEY_NO__SUCH="1")
    assert (done.returncode, done.stdout) == (78, "")
    lines = done.stderr.splitlines()
    for where, key in (
        (str(file), "colour"),
        (str(file), "shutdown.graceMs = -1"),
        (str(file), "log.level = 'loud'"),
        ("FLOWMONKEY_SANDBOX__SLOTS", "sandbox.slots = 'many'"),
        ("FLOWMONKEY_NO__SUCH", "unknown variable"),
        ("flag", "nope"),
    ):
        found = [line for line in lines if line.startswith(f"flowmonkeyd: {where}: {key}")]
        assert len(found) == 1, (where, key, lines)
    assert len(lines) == 6
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "there is no such file"), ("a = ", "cannot read the configuration")],
)
def test_configuration_file_that_cannot_be_read_is_exit_78(tmp_path, text, words) -> None:
    file = tmp_path / "c.toml"
    if text is not None:
        file.write_text(text)
    done = run("--config", str(file))
    assert (done.returncode, len(done.stderr.splitlines())) == (78, 1)
    assert words in done.stderr


def test_print_config_shows_where_each_value_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('socket = "/file"\n[shutdown]\ngraceMs = 7\n[log]\nlevel = "error"\n')
    environ = {"FLOWMONKEY_CONFIG": str(file), "FLOWMONKEY_SANDBOX__SLOTS": "3"}
    done = run("--print-config", "--socket", "/flag", "--set", "log.level=debug", **environ)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert 'socket = "/flag"  # flag' in lines
    assert f"graceMs = 7  # {file}" in lines
    assert 'level = "debug"  # flag' in lines
    assert "slots = 3  # FLOWMONKEY_SANDBOX__SLOTS" in lines
    assert "stepsMax = 1000  # default" in lines
