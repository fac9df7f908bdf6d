"""Every example is run as its README says, against a real daemon and through the real sandbox."""

from __future__ import annotations

import csv
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowmonkeyd.testing import FlowHarness

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


def publish(daemon, name: str) -> None:
    """All handlers and flows of an example."""
    for folder in sorted((EXAMPLES / name / "handlers").iterdir()):
        done = daemon.flowctl("handler", "publish", str(folder))
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("published\n")
    flows = sorted(map(str, (EXAMPLES / name).glob("*.yaml")))
    assert daemon.flowctl("flow", "validate", *flows).returncode == 0
    done = daemon.flowctl("flow", "apply", *flows)
    assert (done.returncode, done.stderr.count("error")) == (0, 0), done.stderr


def run(daemon, flow: str, context: str | None = None, code: int = 0) -> dict[str, Any]:
    """The execution as it ended."""
    given = () if context is None else ("--context", context)
    done = daemon.flowctl("run", flow, *given, "-o", "json", "--timeout", "30")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def path_of(daemon, execution: dict[str, Any]) -> list[tuple[str, str]]:
    done = daemon.flowctl("execution", "history", execution["id"], "-o", "json")
    items = json.loads(done.stdout)["items"]
    assert [item["seq"] for item in items] == list(range(1, len(items) + 1))
    return [(item["stepId"], item["outcome"]) for item in items]


def start_and_wait_for(daemon, flow: str, context: str, type_: str) -> str:
    """Start a flow and return its id once an event of this type has happened to it."""
    done = daemon.flowctl("run", flow, "--context", context, "--no-wait", "-o", "json")
    execution_id = json.loads(done.stdout)["id"]
    with subprocess.Popen(
        [sys.executable, "-m", "flowctl", "event", "tail", "--after", "0", "-o", "json"],
        env=daemon.env,
        stdout=subprocess.PIPE,
        text=True,
    ) as tail:
        assert tail.stdout is not None
        for line in tail.stdout:
            event = json.loads(line)
            if (event["executionId"], event["type"]) == (execution_id, type_):
                break
        tail.kill()
    return execution_id


def order(daemon, name: str) -> str:
    return f"@{EXAMPLES / 'order' / name}"


def test_a_small_order_is_priced_with_retries_and_shipped_by_a_sub_flow(daemon):
    publish(daemon, "order")
    execution = run(daemon, "order", order(daemon, "small.json"))
    assert execution["context"]["priced"]["totalCents"] == 2 * 2990
    shipping = execution["context"]["shipping"]
    assert shipping["status"] == "completed"
    assert [parcel["skus"] for parcel in shipping["context"]["parcels"]] == [["TEAPOT", "TEAPOT"]]
    assert path_of(daemon, execution) == [
        ("validate", "success"),
        ("price", "failure"),
        ("price", "failure"),
        ("price", "success"),
        ("is-large", "success"),
        ("ship", "success"),
    ]


@pytest.mark.parametrize(
    ("decision", "last"),
    [
        ({"approved": True, "by": "mia"}, "ship"),
        ({"approved": False, "by": "mia", "why": "too dear"}, "reject"),
    ],
)
def test_a_large_order_waits_for_the_decision_on_this_very_order(daemon, decision, last):
    publish(daemon, "order")
    waits = start_and_wait_for(daemon, "order", order(daemon, "large.json"), "execution.waiting")
    other = daemon.flowctl("event", "send", "order.decided", "--data", '{"orderId": "A-99"}')
    assert "woke 0" in other.stdout
    data = json.dumps({"orderId": "A-2", **decision})
    done = daemon.flowctl("event", "send", "order.decided", "--data", data, "-o", "json")
    assert json.loads(done.stdout)["executionIds"] == [waits]
    watched = daemon.flowctl("execution", "watch", waits, "--timeout", "30", "-o", "json")
    execution = json.loads(watched.stdout)
    assert (execution["status"], execution["currentStepId"]) == ("completed", last)
    assert execution["context"]["resumeData"] == {"orderId": "A-2", **decision}


def test_a_waiting_order_outlives_a_kill_of_the_daemon(daemon):
    publish(daemon, "order")
    waits = start_and_wait_for(daemon, "order", order(daemon, "large.json"), "execution.waiting")
    daemon.kill9()
    daemon.start()
    shown = json.loads(daemon.flowctl("execution", "show", waits, "-o", "json").stdout)
    assert shown["status"] == "waiting"
    given = ("--token", shown["resumeToken"], "--data", '{"approved": true}')
    assert daemon.flowctl("execution", "resume", waits, *given).returncode == 0
    assert daemon.flowctl("execution", "watch", waits, "--timeout", "30").returncode == 0


def test_a_broken_order_ends_in_the_branch_that_reads_the_error(daemon):
    publish(daemon, "order")
    execution = run(daemon, "order", order(daemon, "broken.json"))
    rejection = execution["context"]["rejection"]
    assert rejection["because"] == "INVALID_ORDER"
    assert "line 1 has no sku" in rejection["details"]
    assert "_error" not in execution["context"]
    assert path_of(daemon, execution) == [("validate", "failure"), ("reject", "success")]


async def test_an_order_nobody_decides_on_is_rejected_after_twelve_hours():
    """The same flow and handlers as a person would test them: in process, in no time."""
    handlers = {}
    for folder in sorted((EXAMPLES / "order/handlers").iterdir()):
        manifest = json.loads((folder / "handler.json").read_text())["handler"]
        name = manifest["entrypoint"].partition(":")[2]
        found = runpy.run_path(str(folder / "handler.py"))[name]
        handlers[manifest["type"]] = found().handle if isinstance(found, type) else found
    context = json.loads((EXAMPLES / "order/large.json").read_text())
    async with FlowHarness(handlers=handlers) as fm:
        for flow in ("shipping", "order"):
            fm.apply((EXAMPLES / f"order/{flow}.yaml").read_text())
        execution = await fm.create("order", context)
        await fm.settle()
        after_ms = (100, 200, 12 * 3_600_000 - 1, 1)  # two backoffs, then the wait
        for ms, status in zip(after_ms, ["waiting"] * 3 + ["completed"], strict=True):
            fm.advance(ms)
            await fm.settle()
            execution = await fm.get(execution.id)
            assert execution.status == status
    assert execution.context["rejection"]["because"] == "NOT_DECIDED"


def test_three_megabytes_of_sales_are_added_up_as_an_independent_reading_does(daemon):
    subprocess.run([sys.executable, EXAMPLES / "data" / "make_sales.py"], check=True)
    publish(daemon, "data")
    totals = run(daemon, "sales")["context"]["totals"]
    cents: dict[str, int] = {}
    rows = bad = 0
    with (EXAMPLES / "data/handlers/parse/sales.csv").open() as file:
        for row in csv.DictReader(file):
            rows += 1
            euros, dot, rest = row["amount"].partition(".")
            if not (dot and len(rest) == 2 and euros.isdecimal()):
                bad += 1
                continue
            value = (int(euros) * 100 + int(rest)) * int(row["pieces"])
            cents[row["region"]] = cents.get(row["region"], 0) + value
    assert (rows, bad) == (75_000, 75)
    assert (totals["rows"], totals["badRows"]) == (rows, bad)
    assert totals["centsByRegion"] == cents


def test_every_chapter_has_a_child_and_their_counts_are_merged(daemon):
    publish(daemon, "fanout")
    execution = run(daemon, "words", f"@{EXAMPLES / 'fanout' / 'book.json'}")
    result = execution["context"]["result"]
    assert result["chapters"] == ["The tree", "The river", "The sea"]
    assert (result["words"], result["most"][0]) == (34, ["the", 7])
    children = [child["childExecutionId"] for child in execution["context"]["counted"]]
    for child in children:
        done = daemon.flowctl("execution", "show", child, "-o", "json")
        assert json.loads(done.stdout)["parentExecutionId"] == execution["id"]


def test_one_chapter_that_fails_is_named_by_the_parent(daemon):
    publish(daemon, "fanout")
    context = json.dumps({"text": "# One\nword\n# Two\n# Three\nword\n"})
    execution = run(daemon, "words", context, code=1)
    assert (execution["status"], execution["error"]["code"]) == ("failed", "CHILD_FAILED")
    [failed] = execution["error"]["details"]["children"]
    assert failed["error"]["code"] == "EMPTY_CHAPTER"


@pytest.fixture
def price_server() -> Iterator[int]:
    """The example's server on a port of its own, as its README starts it."""
    folder = EXAMPLES / "net/server"
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        found = re.search(r" port (\d+) ", server.stdout.readline())
        assert found
        yield int(found[1])
        server.kill()


def test_handlers_reach_the_server_they_may_and_nothing_inside(stopped_daemon, price_server):
    daemon = stopped_daemon
    private = "privateNetworks=127.0.0.0/8"
    daemon.start(
        *("--set", f"sandbox.network.ports=80,443,{price_server}"),
        *("--set", f'handlers."net/price".{private}', "--set", f'handlers."net/convert".{private}'),
    )
    publish(daemon, "net")
    server = f"http://127.0.0.1:{price_server}"
    execution = run(daemon, "price", json.dumps({"server": server, "item": "teapot"}))
    assert execution["context"]["quote"]["amount"] == 29.9
    # What success of the nosy one would look like: a text instead of an error's name.
    assert set(execution["context"]["refused"].values()) <= {
        "ConnectionResetError",
        "ConnectionRefusedError",
    }
    done = daemon.flowctl("execution", "history", execution["id"], "-o", "json")
    ask, look = (item["usage"]["network"] for item in json.loads(done.stdout)["items"])
    (contact,) = ask["contacts"]
    assert (contact["address"], contact["port"]) == ("127.0.0.1", price_server)
    assert contact["receivedBytes"] > len((EXAMPLES / "net/server/prices.json").read_bytes())
    assert look["contacts"] == []
    assert sum(denial["count"] for denial in look["denials"]) >= 3
    logs = daemon.flowctl("execution", "logs", execution["id"]).stdout
    assert "network: refused 169.254.169.254:80: " in logs
    context = {"server": server, "quote": execution["context"]["quote"]}
    converted = run(daemon, "convert", json.dumps(context))["context"]["converted"]  # in JavaScript
    assert (converted["amount"], converted["currency"]) == (28.11, "CHF")
