"""Values are planted, handlers tell them in every way, and then they are nowhere to be found.

Looked at are every byte of every file of the data directory (the write-ahead log too, while the
daemon runs and after it has ended), the daemon's log at level debug, every answer of the API and
what every command prints.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import secrets
import shutil
import subprocess
from urllib.parse import quote, quote_plus

import pytest
from click.testing import CliRunner

from flowctl.client import Client
from flowctl.main import cli
from tests.system.conftest import RunningDaemon
from tests.vault.tellers import WAYS, folder

PEM = "\n".join(["-----BEGIN-----", *(secrets.token_urlsafe(48) for _ in range(5)), "---END---\n"])
PLANTED = {
    "token": f'{secrets.token_hex(6)}/"+ä\\%d{secrets.token_urlsafe(12)}',
    "pem": PEM,
    "seed": base64.b64encode(secrets.token_bytes(40)).decode(),
    # As long as JavaScript keeps it whole: half of it must not stand anywhere by chance.
    "pin": str(10**15 + secrets.randbelow(8 * 10**15)),
}
# What must be found, by the same search: else it searches nothing.
CONTROL = f"seen-{secrets.token_hex(8)}"


@pytest.fixture
def daemon(tmp_path_factory):
    running = RunningDaemon(tmp_path_factory.mktemp("fm"))
    running.start("--set", "log.level=debug", "--set", "log.format=json")
    yield running
    if running.is_running:
        running.stop()


def needles() -> dict[str, bytes]:
    """What would tell a value, by a name that says which and how."""
    found = {}
    for name, value in PLANTED.items():
        data = base64.b64decode(value) if name == "seed" else value.encode()
        inner = base64.b64encode(b"user:" + value.encode()).decode()[8:-4]
        said = {
            "text": value,
            "json": json.dumps(value)[1:-1],
            "unicode": json.dumps(value, ensure_ascii=False)[1:-1],
            "twice": json.dumps(json.dumps(value, ensure_ascii=False), ensure_ascii=False)[3:-3],
            "url": quote(value, safe=""),
            "form": quote_plus(value),
            "hex": data.hex(),
            "base64": base64.b64encode(data).decode(),
            "basic": inner,
            # Half of it is too much as well.
            "first half": value[: len(value) // 2],
            "second half": value[len(value) // 2 :],
        }
        if name == "pem":
            said |= {f"line {n}": one for n, one in enumerate(value.splitlines()[1:-1])}
            del said["first half"], said["second half"]  # they are lines
        found |= {f"{name} as {how}": one.encode() for how, one in said.items()}
        found[f"{name} as bytes"] = data
    return found


def check(place: str, data: bytes) -> None:
    for name, needle in needles().items():
        at = data.find(needle)
        assert at < 0, f"{name} is in {place}: …{data[max(0, at - 80) : at]!r}…"


def set_all(daemon: RunningDaemon) -> list[str]:
    printed = []
    for name, value in PLANTED.items():
        more = ["--binary"] if name == "seed" else []
        given = base64.b64decode(value) if more else f"{value}\n".encode()
        printed.append(asked(daemon, "secret", "set", name, *more, stdin=given))
    return printed


def asked(daemon: RunningDaemon, *args: str, stdin: bytes | None = None) -> str:
    """What a command printed; bytes, which RunningDaemon.flowctl cannot take, from a file."""
    done = subprocess.run(
        [shutil.which("flowctl", path=daemon.env["PATH"]), *args],
        env=daemon.env,
        input=b"" if stdin is None else stdin,
        capture_output=True,
        timeout=60,
    )
    return (done.stdout + done.stderr).decode()


def looked_at(daemon: RunningDaemon, *args: str) -> str:
    """What a command that only asks printed; in this process, for there are many of them."""
    done = CliRunner(catch_exceptions=False).invoke(cli, args, env=daemon.env)
    assert done.exit_code == 0, done.output
    return done.stdout + done.stderr


def flow(runtime: str, how: str) -> dict[str, object]:
    given = {"type": "static", "value": {"how": how, "control": CONTROL}}
    step = {"id": "tell", "type": f"tell/{runtime}", "config": {}, "input": given}
    step["outputKey"] = "told"
    name = f"{runtime}-{how}"
    return {"id": name, "version": "1.0.0", "initialStepId": "tell", "steps": {"tell": step}}


def run_all(client: Client, runtimes: list[str]) -> dict[tuple[str, str], dict]:
    ended = {}
    for runtime in runtimes:
        for how, status in WAYS.items():
            client.send("PUT", "/v1/flows", flow(runtime, how))
            body = {"flow": f"{runtime}-{how}", "context": {"control": CONTROL}}
            wait = "" if status == "waiting" else "?waitMs=60000"
            run = client.send("POST", f"/v1/executions{wait}", body).fields()
            path = f"/v1/executions/{run['id']}"
            if status == "waiting":  # that is no end: it is there when its event is
                for line, event in client.lines(f"{path}/events", {"follow": "true"}):
                    assert line
                    if event["type"] == "execution.waiting":
                        break
                run = client.get(path).fields()
            assert run["status"] == status, (runtime, how, run["error"])
            ended[runtime, how] = run
    return ended


@pytest.mark.slow
def test_a_planted_value_is_nowhere_however_a_handler_tells_it(daemon, tmp_path):
    runtimes = ["python", *(["node"] if shutil.which("node") else [])]
    printed = set_all(daemon)
    client = Client(str(daemon.socket), 60.0)
    for runtime in runtimes:
        printed.append(
            asked(daemon, "handler", "publish", str(folder(tmp_path / runtime, runtime)))
        )
    ended = run_all(client, runtimes)
    forms = itertools.cycle(("table", "json", "yaml", "json"))  # each command in each
    digests = {name: hashlib.sha256(v.encode()).hexdigest() for name, v in PLANTED.items()}
    for (runtime, how), run in ended.items():
        path = f"/v1/executions/{run['id']}"
        logs = client.pages(f"{path}/logs", {}).items
        # The handler had the right values.
        assert logs[0]["fields"] == digests, (runtime, how)
        pages = [client.get(f"{path}{more}").body for more in ("", "/history", "/events", "/logs")]
        pages.append(json.dumps(logs, ensure_ascii=False).encode())
        for page in pages:
            check(f"the API's answer about {runtime} {how}", page)
        if how not in ("flood", "die"):
            assert b"[secret token]" in b"".join(pages), (runtime, how)
        reads = [e for e in client.pages(f"{path}/events", {}).items if e["type"] == "secret.read"]
        assert [sorted(one["data"]["names"]) for one in reads] == [sorted(PLANTED)], (runtime, how)
        for command in ("show", "history", "logs"):
            form = next(forms)
            printed.append(looked_at(daemon, "-o", form, "execution", command, run["id"]))
    printed += [asked(daemon, *command) for command in COMMANDS]
    for text in printed:
        check("what a command printed", text.encode())
    assert any("[secret token]" in text for text in printed)
    for url in ("/metrics", "/v1/health", "/v1/events?limit=500", "/v1/secrets", "/v1/executions"):
        check(url, client.get(url).body)
    check_files(daemon)
    daemon.stop()
    check_files(daemon)


COMMANDS = (
    ("execution", "list"),
    ("secret", "list"),
    ("-o", "json", "secret", "list"),
    ("handler", "show", "tell/python"),
    ("secret", "rotate-key"),
    ("status",),
)


def check_files(daemon: RunningDaemon) -> None:
    files = [path for path in daemon.data_dir.rglob("*") if path.is_file()]
    assert {"flowmonkey.db", "vault.key"} <= {path.name for path in files}
    everything = {str(path): path.read_bytes() for path in [*files, daemon.log]}
    for name, data in everything.items():
        check(name, data)
    assert any(CONTROL.encode() in data for data in everything.values())


@pytest.mark.slow
def test_a_missing_secret_ends_the_attempt_before_the_handler_starts(daemon, tmp_path):
    asked(daemon, "handler", "publish", str(folder(tmp_path / "python", "python")))
    asked(daemon, "secret", "set", "token", stdin=b"t0ken")
    asked(daemon, "secret", "set", "pem", "--tenant", "other", stdin=b"of another tenant")
    client = Client(str(daemon.socket), 60.0)
    client.send("PUT", "/v1/flows", flow("python", "return"))
    body = {"flow": "python-return", "context": {}}
    run = client.send("POST", "/v1/executions?waitMs=60000", body).fields()
    error = run["error"]
    assert (error["code"], error["retryable"]) == ("SECRET_NOT_FOUND", False)
    assert error["message"] == "no secret 'pem' for tenant 'default'"
    path = f"/v1/executions/{run['id']}"
    assert client.get(f"{path}/logs").fields()["items"] == []
    events = client.pages(f"{path}/events", {}).items
    assert "secret.read" not in [one["type"] for one in events]
