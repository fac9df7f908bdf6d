"""What flowctl says of the sandbox, asked of a daemon: layers, pools, what a handler may do."""

from __future__ import annotations

import json

import pytest
from flowctl_server import flowctl, serving


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    with serving(str(tmp_path / "d.sock")) as found:
        monkeypatch.setenv("FLOWMONKEY_SOCKET", found.path)
        yield found


LAYERS = [
    {
        "name": "seccomp",
        "available": True,
        "required": True,
        "detail": "no process, no socket",
        "instead": None,
    },
    {
        "name": "cgroup",
        "available": False,
        "required": False,
        "detail": "not\x1bmounted",
        "instead": "memory by rlimits",
    },
]
HEALTH = {
    "status": "ok",
    "version": "0.1.0",
    "uptimeS": 1,
    "checks": {"sandbox": {"status": "ok", "detail": "every required", "layers": LAYERS}},
}
MISSING_TEXT = (
    "layers  1 of 2 hold\n"
    "NOT HERE  WHY           WHAT BOUNDS HANDLERS INSTEAD\n"
    "cgroup    not\\emounted  memory by rlimits\n"
)
TERMS = {
    "type": "acme/resize",
    "version": "1.2.0",
    "runtime": "node",
    "wallMs": 30_000,
    "cpuShare": 0.5,
    "cpuMs": 31_000,
    "memoryBytes": 256 * 1024**2,
    "threads": 64,
    "openFiles": 256,
    "outputBytes": 1114112,
    "logBytes": 1048576,
    "logRate": 5000,
    "filesystem": "temp",
    "tempBytes": 65536,
    "secrets": ["token"],
    "network": {
        "ports": [80, 443],
        "allow": None,
        "deny": ["a.org"],
        "private": ["10.0.0.0/8"],
        "connections": 64,
        "bytes": 1024,
        "dnsQueries": 256,
    },
    "reuse": {"uses": 100, "idleMs": 60_000, "ageMs": 600_000},
    "preload": False,
    "stateful": None,
}


def test_status_says_which_layers_are_not_there_and_what_bounds_handlers_instead(daemon):
    daemon.on("GET", "/v1/health", HEALTH)
    result = flowctl("status")
    assert result.code == 0
    assert result.out.endswith("sandbox  ok      every required\n" + MISSING_TEXT)


def test_pool_shows_processes_by_kind(daemon):
    pool = {
        "name": "sandbox",
        "slots": 2,
        "busy": 1,
        "waiting": 0,
        "servers": 2,
        "spares": {"python": 4, "node": 0, "python+network": 1},
        "kept": 3,
        "started": 10,
        "reused": 7,
        "crashed": 0,
    }
    raw = daemon.on("GET", "/v1/pools", {"items": [pool]})
    assert flowctl("pool").out == (
        "POOL     SLOTS  BUSY  WAITING  SPARES                      "
        "KEPT  STARTED  REUSED  CRASHED\n"
        "sandbox  2      1     0        4 python, 1 python+network  3     10       7       0\n"
    )
    assert flowctl("pool", "-o", "json").out == raw.decode() + "\n"


def test_explain_says_in_words_what_a_published_handler_may_do(daemon):
    daemon.on("GET", "/v1/terms/acme%2Fresize/1.2.0", TERMS)
    daemon.on("GET", "/v1/health", HEALTH)
    result = flowctl("sandbox", "explain", "acme/resize@1.2.0")
    assert result.code == 0
    assert result.out == (
        "acme/resize@1.2.0, node\n"
        "wall time  30.0 s, then all it started is killed (TIMEOUT)\n"
        "CPU        0.5 of a core, 31.0 s of CPU time (CPU_LIMIT)\n"
        "memory     256 MiB beyond the interpreter (MEMORY_LIMIT)\n"
        "threads    64, no other program\n"
        "files      its own package, read-only, and a private /tmp that vanishes with the run "
        "(64 KiB); 256 open at a time\n"
        "output     1.062 MiB (OUTPUT_TOO_LARGE)\n"
        "log        1 MiB, 5000 lines a second\n"
        "secrets    token\n"
        "network    every global address, ports 80, 443\n"
        "refused    a.org, whatever is not global\n"
        "private    10.0.0.0/8\n"
        "bounds     64 connections, 1 KiB, 256 DNS queries\n"
        "process    one for up to 100 executions of one version and tenant, 10 m 0 s at most; "
        "what one leaves behind the next one finds\n" + MISSING_TEXT
    )
    shown = json.loads(flowctl("sandbox", "explain", "acme/resize@1.2.0", "-o", "json").out)
    assert shown == {"terms": TERMS, "layers": LAYERS}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"network": None}, "network    none"),
        ({"network": {**TERMS["network"], "ports": []}}, "network    asked for, and this daemon"),
        ({"network": {**TERMS["network"], "allow": []}}, "network    nothing: no target is"),
        ({"network": {**TERMS["network"], "allow": ["b.org:443"]}}, "network    b.org:443\n"),
        ({"reuse": None}, "process    a new one for each execution, used once\n"),
        (
            {"preload": True, "reuse": None},
            "process    a new one for each execution, used once; the handler may be imported "
            "before it is called\n",
        ),
        ({"cpuShare": 1}, "CPU        one core, "),
        ({"secrets": []}, "secrets    none\n"),
    ],
)
def test_explain_tells_each_case(daemon, change, line):
    daemon.on("GET", "/v1/terms/acme%2Fresize", {**TERMS, **change})
    daemon.on("GET", "/v1/health", HEALTH)
    assert f"\n{line}" in flowctl("sandbox", "explain", "acme/resize").out


def test_explain_says_what_a_stateful_handler_has_and_costs(daemon):
    own = {
        "resources": "medium",
        "image": "node20-ffmpeg",
        "ttl": {"defaultMs": 3_600_000, "softMs": 1_800_000, "hardMs": 7_200_000},
        "checkpoint": {"intervalMs": 30_000, "maxSize": 64 * 1024**2, "days": 7},
        "pauseMaxMs": 86_400_000,
        "maxAttempts": 3,
        "heartbeatMs": 5000,
        "logBytesPerS": 16 * 1024,
        "warm": 0,
        "perSecond": "0.000030000",
    }
    change = {"cpuShare": 1, "cpuMs": None, "logRate": None, "reuse": None, "network": None}
    daemon.on("GET", "/v1/terms/acme%2Fresize", {**TERMS, **change, "stateful": own})
    daemon.on("GET", "/v1/health", HEALTH)
    out = flowctl("sandbox", "explain", "acme/resize").out
    for promised in (
        "resources    medium: 1 core, 256 MiB (MEMORY_LIMIT), 64 processes and threads",
        "image        node20-ffmpeg\n",
        "time         1 h 0 m of active time (TIMEOUT), 2 h 0 m if it asks for more; a warning "
        "after 30 m 0 s",
        "checkpoints  at least every 30.0 s (CHECKPOINT_MISSED after twice that), 64 MiB in all",
        "pause        24 h 0 m at most, for nothing\n",
        "price        0.000030000 $ for a second of active time; pauses are free\n",
    ):
        assert f"\n{promised}" in out, out
