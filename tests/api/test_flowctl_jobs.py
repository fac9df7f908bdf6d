"""`flowctl job`: the requests it sends, what it prints, how it watches, what it downloads."""

from __future__ import annotations

import pytest
from flowctl_server import Reply, flowctl, problem, serving

from flowctl import jobs

PATH = "/v1/jobs/01job"
RUNNING = {
    "id": "01job",
    "executionId": "01abc",
    "flowId": "film",
    "flowVersion": "1.0.0",
    "tenantId": "default",
    "stepId": "cut",
    "handler": {"type": "acme/film", "version": "1.2.0"},
    "status": "running",
    "resources": "heavy",
    "attempt": 2,
    "stepAttempt": 0,
    "failures": 1,
    "maxAttempts": 3,
    "instance": "00ff",
    "container": "fm-1-00ff",
    "lease": {"worker": "flowmonkeyd-7", "claimedAt": "T1", "heartbeatAt": "T2"},
    "progress": {"percent": 50.0, "message": "frame \x1b[2J5", "etaMs": 12_000, "at": "T3"},
    "checkpoint": {
        "name": "frames",
        "sizeBytes": 11,
        "encoding": "json",
        "attempt": 1,
        "savedAt": "T4",
        "ageMs": 3000,
    },
    "ttl": {
        "ttlMs": 3_600_000,
        "softMs": 3_600_000,
        "hardMs": 86_400_000,
        "activeMs": 20_000,
        "leftMs": 3_580_000,
    },
    "pause": None,
    "pausedMs": 0,
    "billed": {
        "tier": "heavy",
        "perSecond": "0.000100000",
        "seconds": 20.0,
        "amount": "0.002000000",
    },
    "error": None,
    "createdAt": "T5",
    "startedAt": "T6",
    "updatedAt": "T7",
    "finishedAt": None,
    "checkpointsExpireAt": None,
}
PAUSED = {
    **RUNNING,
    "status": "paused",
    "lease": None,
    "pause": {
        "reason": "lunch",
        "event": "uploaded",
        "byHand": False,
        "since": "T8",
        "wakeAt": "T9",
    },
    "pausedMs": 5000,
}
COMPLETED = {
    **RUNNING,
    "status": "completed",
    "instance": None,
    "container": None,
    "lease": None,
    "checkpoint": None,
    "failures": 0,
    "attempt": 1,
    "finishedAt": "T10",
    "checkpointsExpireAt": "T11",
}
FAILED = {
    **COMPLETED,
    "status": "failed",
    "checkpoint": RUNNING["checkpoint"],
    "error": {"code": "JOB_LOST", "message": "gone\n", "retryable": True, "details": None},
}
RUNNING_TEXT = """\
job         01job
execution   01abc
flow        film@1.0.0
step        cut
handler     acme/film@1.2.0
tenant      default
status      running
progress    50 %  frame \\e[2J5  eta 12.0 s
checkpoint  frames, 11 bytes, 3.0 s old
try         2, 1 of 3 lost
time        20.0 s of 1 h 0 m (at most 24 h 0 m), 59 m 40 s left
billed      0.002000000 $ for 20.0 s at 0.000100000 $ a second (heavy)
worker      flowmonkeyd-7
heartbeat   T2
container   fm-1-00ff
created     T5
started     T6
"""
FAILED_TEXT = """\
job         01job
execution   01abc
flow        film@1.0.0
step        cut
handler     acme/film@1.2.0
tenant      default
status      failed
progress    50 %  frame \\e[2J5
checkpoint  frames, 11 bytes, 3.0 s old
try         1
time        20.0 s of 1 h 0 m (at most 24 h 0 m)
billed      0.002000000 $ for 20.0 s at 0.000100000 $ a second (heavy)
created     T5
started     T6
finished    T10
kept until  T11
error: JOB_LOST: gone\\n
"""


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "REFRESH_S", 0.001)
    with serving(str(tmp_path / "d.sock")) as found:
        monkeypatch.setenv("FLOWMONKEY_SOCKET", found.path)
        yield found


READ_CASES = [
    (
        "job list --status running --flow film@1.0.0 --tenant t --execution 01abc --limit 7",
        "/v1/jobs?status=running&flow=film%401.0.0&tenant=t&execution=01abc&limit=7",
        {"items": [RUNNING, {**PAUSED, "progress": None}], "nextCursor": None},
        "ID     STEP      HANDLER          STATUS   DONE  TRY  ACTIVE  BILLED         CREATED\n"
        "01job  film:cut  acme/film@1.2.0  running  50 %  2    20.0 s  0.002000000 $  T5\n"
        "01job  film:cut  acme/film@1.2.0  paused   -     2    20.0 s  0.002000000 $  T5\n",
    ),
    ("job show 01job", PATH, RUNNING, RUNNING_TEXT),
    ("job show 01job", PATH, FAILED, FAILED_TEXT),
]


@pytest.mark.parametrize(("line", "path", "body", "text"), READ_CASES)
def test_what_is_shown(daemon, line, path, body, text):
    raw = daemon.on("GET", path, body)
    result = flowctl(*line.split())
    assert (result.code, result.err, result.out) == (0, "", text)
    assert daemon.asked() == [f"GET {path}"]
    result = flowctl(*line.split(), "-o", "json")
    assert (result.code, result.err, result.out) == (0, "", raw.decode() + "\n")


def test_a_paused_job_says_what_it_waits_for(daemon):
    daemon.on("GET", PATH, PAUSED)
    out = flowctl("job", "show", "01job").out
    assert "waits for   uploaded\nwakes at    T9\npaused      5.0 s\n" in out


@pytest.mark.parametrize(
    ("args", "verb", "sent", "status"),
    [
        (["pause", "01job", "--reason", "lunch"], "pause", b'{"reason":"lunch"}', "paused"),
        (["pause", "01job"], "pause", b"{}", "paused"),
        (["resume", "01job", "--data", '{"ok": true}'], "resume", b'{"data":{"ok":true}}', "q"),
        (["resume", "01job", "--data", "null"], "resume", b'{"data":null}', "queued"),
        (["resume", "01job"], "resume", b"{}", "queued"),
        (["cancel", "01job", "--reason", "x"], "cancel", b'{"reason":"x"}', "cancelled"),
    ],
)
def test_what_is_done(daemon, args, verb, sent, status):
    raw = daemon.on("POST", f"{PATH}/{verb}", {**RUNNING, "status": status})
    result = flowctl("job", *args)
    assert (result.code, result.err, result.out) == (0, "", f"01job: {status}\n")
    assert daemon.requests[-1].body == sent
    assert flowctl("job", *args, "-o", "json").out == raw.decode() + "\n"


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [(404, "NOT_FOUND", 4), (409, "NOT_RUNNING", 5), (422, "INVALID", 5), (503, "UNAVAILABLE", 3)],
)
@pytest.mark.parametrize("verb", ["show", "watch", "pause", "resume", "cancel", "checkpoint"])
def test_a_refusal_is_told_with_its_exit_code(daemon, verb, status, code, exit_code):
    path = {"show": PATH, "watch": PATH}.get(verb, f"{PATH}/{verb}")
    method = "GET" if verb in ("show", "watch", "checkpoint") else "POST"
    daemon.on(method, path, problem(status, code, "cannot"), status)
    result = flowctl("job", verb, "01job")
    assert (result.code, result.out) == (exit_code, "")
    assert result.err.startswith(f"flowctl: cannot ({code})\n")


# --- watch -------------------------------------------------------------------------------------


def test_watching_shows_a_bar_on_a_terminal_and_ends_with_the_job(daemon, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for job in (RUNNING, {**RUNNING, "progress": None, "checkpoint": None}, COMPLETED):
        daemon.on("GET", PATH, job)
    result = flowctl("job", "watch", "01job", tty=True)
    assert result.code == 0
    half, none = "█" * 10 + "░" * 10, "░" * 20
    words = "50 %  frame \\e[2J5  eta 12.0 s  checkpoint 3.0 s old  59 m 40 s left  0.002000000 $"
    assert result.err == (
        f"\r\x1b[2K{half}  {words}\r\x1b[2K{none}  59 m 40 s left  0.002000000 $\r\x1b[2K"
    )
    assert "completed" in result.out


def test_a_bar_is_no_wider_than_the_terminal(daemon, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    daemon.on("GET", PATH, RUNNING)
    daemon.on("GET", PATH, COMPLETED)
    err = flowctl("job", "watch", "01job", tty=True).err
    lines = [line for line in err.split("\r\x1b[2K") if line]
    assert [len(line) for line in lines] == [39]


def test_watching_without_a_terminal_says_only_what_a_person_must_do(daemon):
    for job in (RUNNING, PAUSED, PAUSED, RUNNING, COMPLETED):
        daemon.on("GET", PATH, job)
    result = flowctl("job", "watch", "01job", "-o", "json")
    assert result.code == 0
    assert result.err == (
        "paused: lunch, for the event uploaded, until T9 at most\n"
        "resume it with: flowctl job resume 01job\n"
    )
    assert result.out.startswith('{"id": "01job"')
    assert '"status": "completed"' in result.out


def test_a_job_that_fails_is_exit_code_1(daemon):
    daemon.on("GET", PATH, RUNNING)
    daemon.on("GET", PATH, FAILED)
    result = flowctl("job", "watch", "01job")
    assert (result.code, result.out) == (1, FAILED_TEXT)
    assert result.err == "flowctl: job 01job failed: JOB_LOST: gone\\n\n"


def test_time_that_is_up_is_exit_code_6_and_the_job_is_printed(daemon):
    daemon.on("GET", PATH, RUNNING)
    result = flowctl("job", "watch", "01job", "--timeout", "0.01")
    assert (result.code, result.out) == (6, RUNNING_TEXT)
    assert "watch it with: flowctl job watch 01job" in result.err


def test_a_daemon_that_goes_away_is_exit_code_3_and_the_job_goes_on(daemon):
    daemon.on("GET", PATH, RUNNING)
    daemon.put("GET", PATH, Reply(cut=True))
    result = flowctl("job", "watch", "01job")
    assert result.code == 3
    assert "watch it with: flowctl job watch 01job" in result.err


# --- checkpoints -------------------------------------------------------------------------------


def test_a_checkpoint_is_written_to_a_file_or_stdout(daemon, tmp_path):
    data = bytes(range(256)) * 1000
    path = f"{PATH}/checkpoint"
    daemon.put("GET", f"{path}?name=a%2Fb", Reply(200, data, content_type="application/x"))
    file = tmp_path / "kept"
    result = flowctl("job", "checkpoint", "01job", "--name", "a/b", "-o", str(file))
    assert (result.code, result.out) == (0, "")
    assert result.err == f"wrote {file}, 256000 bytes\n"
    assert file.read_bytes() == data
    daemon.put("GET", path, Reply(200, b'{"n":"\xc2\x9b"}'))
    assert flowctl("job", "checkpoint", "01job").out == '{"n":"\x9b"}'
    assert flowctl("job", "checkpoint", "01job", tty=True).out == '{"n":"\\x9b"}\n'


def test_bytes_are_not_sent_to_a_terminal(daemon):
    kind = "application/octet-stream"
    daemon.put("GET", f"{PATH}/checkpoint", Reply(200, b"\0\1", content_type=kind))
    result = flowctl("job", "checkpoint", "01job", tty=True)
    assert (result.code, result.out) == (5, "")
    assert "name a file with -o FILE" in result.err


def test_a_checkpoint_that_breaks_off_leaves_no_file(daemon, tmp_path):
    daemon.put("GET", f"{PATH}/checkpoint", Reply(200, b"x" * 1000, cut=True))
    file = tmp_path / "kept"
    file.write_text("older")
    result = flowctl("job", "checkpoint", "01job", "-o", str(file))
    assert result.code == 3
    assert file.read_text() == "older"
    assert list(tmp_path.glob("*.part")) == []
    result = flowctl("job", "checkpoint", "01job", "-o", str(tmp_path / "no/where"))
    assert result.code == 5
    assert "no such file or directory" in result.err
