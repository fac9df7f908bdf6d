"""What a real daemon says of itself while it works, and that its parts agree."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.daemon import Daemon, package
from tests.flows import doc, step

pytestmark = pytest.mark.slow

PATIENCE_S = 20.0
ENDLESS = "import time\ndef handle(given, ctx):\n    time.sleep(60)\n"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with a single slot, and a flow that keeps it."""
    daemon = Daemon(tmp_path, "--set", "sandbox.slots=1")
    try:
        daemon.start()
        with closing(daemon.client()) as client:
            client.must("PUT", "/v1/handlers", package("end/less", ENDLESS))
            client.must("PUT", "/v1/flows", doc(step("one", "end/less"), id="endless"))
        yield daemon
    finally:
        daemon.close()


def test_a_step_that_waits_for_the_slot_makes_no_second_one_busy(daemon: Daemon) -> None:
    """The dispatcher holds more tasks than there are slots; it said "2 of 1 slots busy"."""
    with closing(daemon.client()) as client:
        for _ in range(2):
            client.must("POST", "/v1/executions", {"flow": "endless"})
        until = time.monotonic() + PATIENCE_S
        (pool,) = client.must("GET", "/v1/pools")["items"]
        while not pool["waiting"]:
            assert time.monotonic() < until, pool
            (pool,) = client.must("GET", "/v1/pools")["items"]
        assert (pool["busy"], pool["slots"]) == (1, 1)
        dispatcher = client.must("GET", "/v1/health")["checks"]["dispatcher"]
        assert dispatcher == {"status": "ok", "detail": "1 of 1 slots busy"}
