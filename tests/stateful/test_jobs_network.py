"""The network of jobs: the gateway's, in their containers, also after the daemon has died."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path

import pytest

from tests.stateful.conftest import Doer, package, skip_without_containers

pytestmark = pytest.mark.slow


class _Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server():
    """A real server on loopback."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hello)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made.server_address[1]
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def online(tmp_path_factory, server):
    """A daemon whose doer may reach the server, and nothing else of the host."""
    skip_without_containers()
    folder: Path = tmp_path_factory.mktemp("fm")
    made = Doer(
        folder,
        *("--set", f"sandbox.network.ports=80,{server}"),
        *("--set", 'handlers."acme/doer".privateNetworks=127.0.0.1/32'),
    )
    made.start()
    try:
        made.publish(package(folder / "doer", execution={"sandbox": {"network": True}}))
        yield made
    finally:
        made.clear()


def test_the_network_is_the_gateways(online, server):
    ended = online.run(
        f"fetch http://127.0.0.1:{server}/", "fetch http://169.254.169.254/latest/meta-data"
    )
    assert ended["status"] == "completed", ended["error"]
    got = ended["context"]["out"]["got"]
    assert got[0] == "hello"
    assert got[1] != "hello"
    assert "Error" in got[1]
    (entry,) = online.history(ended)
    network = entry["usage"]["network"]
    assert [one["port"] for one in network["contacts"]] == [server]
    assert "169.254.169.254" in network["denials"][0]["target"]


# The operator's word about private networks is for one type.
_SECOND = {"version": "2.0.0"}
_ENDURES = """
import time, urllib.request

def get(url):
    try:
        return urllib.request.urlopen(url, timeout=5).read().decode()
    except OSError:
        return None

def handle(input, ctx):
    said = [get(input["url"])]
    ctx.checkpoint.save(said)
    for goes_on in (lambda: get(input["url"]) is not None, lambda: get(input["url"]) is None):
        while goes_on():
            time.sleep(0.05)
        said.append("other")
    return [*said, get(input["url"])]
"""


def test_a_daemon_that_adopts_a_container_gives_it_its_network_again(online, server, tmp_path):
    """The handler goes on until there is no network, then until there is."""
    execution = {"sandbox": {"network": True}}
    online.publish(package(tmp_path / "endures", _ENDURES, execution=execution, handler=_SECOND))
    url = f"http://127.0.0.1:{server}/"
    begun = online.run(type="acme/doer@2.0.0", url=url, wait=False)
    online.until(begun, lambda job: job["checkpoint"] is not None)
    online.kill9()
    online.start()
    ended = online.ended(begun)
    assert ended["status"] == "completed", ended["error"]
    assert ended["context"]["out"] == ["hello", "other", "other", "hello"]
    assert online.job(begun)["attempt"] == 1, "it has gone on in its container"
    (contact,) = online.history(ended)[-1]["usage"]["network"]["contacts"]
    assert contact["port"] == server


def test_a_job_that_was_paused_over_a_restart_has_its_network_again(online, server):
    fetch = f"fetch http://127.0.0.1:{server}/"
    begun = online.run(fetch, "save", "pause go", fetch, wait=False)
    online.until(begun, lambda job: job["status"] == "paused")
    online.kill9()
    online.start()
    online.client.must("POST", "/v1/events", {"name": "go", "data": "went"})
    ended = online.ended(begun)
    assert ended["status"] == "completed", ended["error"]
    out = ended["context"]["out"]
    assert out["starts"] == 1, "it has gone on in its container"
    assert out["got"] == ["hello", "went", "hello"]
    (contact,) = online.history(ended)[-1]["usage"]["network"]["contacts"]
    assert contact["connections"] == 1, "what the dead daemon had counted is gone with it"


_FORGES = """
def handle(input, ctx):
    ctx._emitted.extend([["forged", number] for number in range(50_000)])
"""


def test_attack_a_forged_result_is_held_to_the_limits_of_any(doer, tmp_path):
    """A success: 50 000 rows in one transaction, while which nobody else's step is written."""
    handler = {"type": "acme/forger"}
    doer.publish(package(tmp_path / "forger", _FORGES, handler=handler))
    ended = doer.run(type="acme/forger", step={"retry": {"maxAttempts": 1}})
    assert ended["error"]["code"] == "INVALID_RESULT"
    assert "handler.custom" not in doer.types(ended)
