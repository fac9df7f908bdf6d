"""Bills of a real daemon: what handlers in the sandbox cost, and how that is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.daemon import Daemon, package
from tests.flows import doc, step

pytestmark = pytest.mark.slow

_ENDINGS = """
import os
def handle(input, ctx):
    if input == "crash": os._exit(1)
    if input == "raise": raise ValueError(input)
    if input == "fail": return ctx.failure("NO", "no", retryable=False)
    return input
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, "--set", 'quotas.tenants."poor".executionsPerDay=1')
    try:
        daemon.start()
        with closing(daemon.client()) as client:
            client.must("PUT", "/v1/handlers", package("acme/ends", _ENDINGS))
            flow = doc(step("one", "acme/ends", input={"type": "key", "key": "how"}), id="ends")
            client.must("PUT", "/v1/flows", flow)
        yield daemon
    finally:
        daemon.close()


def _run(client, how, tenant="default"):
    body = {"flow": "ends", "context": {"how": how}, "tenantId": tenant}
    return client.must("POST", "/v1/executions?waitMs=20000", body)


def _billing(client, **query):
    asked = "&".join(f"{name}={value}" for name, value in query.items())
    return client.must("GET", f"/v1/billing?{asked}")


def test_what_reached_the_handler_is_billed_whatever_came_of_it(daemon: Daemon) -> None:
    with closing(daemon.client()) as client:
        for how in ("well", "crash", "raise", "fail"):
            (entry,) = client.must("GET", f"/v1/executions/{_run(client, how)['id']}/history")[
                "items"
            ]
            assert entry["billing"] == {"tier": "medium", "amount": "0.000300000"}, entry
        found = _billing(client, groupBy="handler")
        assert found == {
            "items": [{"key": "acme/ends@1.0.0", "executions": 4, "amount": "0.001200000"}],
            "total": {"executions": 4, "amount": "0.001200000"},
            "groupBy": "handler",
            "currency": "USD",
        }
        assert _billing(client, until="2020-01-01T00:00:00Z")["total"]["amount"] == "0.000000000"
        status, problem = client.ask("GET", "/v1/billing?groupBy=colour")
        assert (status, problem["errors"][0]["path"]) == (422, "groupBy")
        _flowctl_shows_the_same(client, daemon)


def _flowctl_shows_the_same(client, daemon: Daemon) -> None:
    program = [str(Path(sys.executable).with_name("flowctl")), "--socket", str(daemon.socket)]
    for options, wanted in (
        (["-o", "json"], lambda text: json.loads(text) == _billing(client)),
        ([], lambda text: "acme/ends@1.0.0  4           0.001200000 $" in text),
    ):
        done = subprocess.run(
            [*program, *options, "billing"], capture_output=True, text=True, env=dict(os.environ)
        )
        assert done.returncode == 0, done.stderr
        assert wanted(done.stdout), done.stdout


def test_a_quota_that_is_used_up_is_told_with_its_end(daemon: Daemon) -> None:
    with closing(daemon.client()) as client:
        assert _run(client, "well", "poor")["status"] == "completed"
        status, problem = client.ask(
            "POST", "/v1/executions", {"flow": "ends", "context": {}, "tenantId": "poor"}
        )
        assert (status, problem["code"]) == (429, "QUOTA_EXCEEDED")
        assert "tenant 'poor' has had its 1 of this day" in problem["detail"]
        assert _run(client, "well", "rich")["status"] == "completed"
        daemon.kill()
        daemon.start()
    with closing(daemon.client()) as client:
        status, _ = client.ask(
            "POST", "/v1/executions", {"flow": "ends", "context": {}, "tenantId": "poor"}
        )
        assert status == 429
        assert _billing(client, groupBy="tenant", tenant="poor")["total"]["executions"] == 1
