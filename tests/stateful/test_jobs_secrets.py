"""Secrets and the network of stateful handlers."""

from __future__ import annotations

import http.server
import threading

import pytest

from tests.stateful.conftest import Doer, package, skip_without_containers

pytestmark = pytest.mark.slow
SECRET = "s3cret-of-the-jobs"


def test_a_secret_is_given_masked_and_never_kept(own_doer):
    doer = own_doer
    inputs = [{"property": "token", "type": "string", "source": "vault", "secret": True}]
    handler = {"type": "acme/teller"}
    doer.publish(package(doer.folder / "teller", handler=handler, inputs=inputs))
    done = doer.daemon.flowctl("secret", "set", "token", input=f"{SECRET}\n")
    assert done.returncode == 0, done.stderr
    ended = doer.run("tell", "save", type="acme/teller")
    assert ended["status"] == "completed", ended["error"]
    assert "token" in ended["context"]["out"]["refused"]
    assert "told [secret token]" in doer.logs(ended)
    doer.stop()
    doer.start()
    for path in doer.daemon.data_dir.rglob("*"):
        if path.is_file() and "storage" not in path.parts:
            assert SECRET.encode() not in path.read_bytes(), path


class _Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server():
    """A real server on loopback."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hello)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made.server_address[1]
    made.shutdown()
    thread.join()
    made.server_close()


def test_the_network_is_the_gateways(tmp_path_factory, server):
    skip_without_containers()
    folder = tmp_path_factory.mktemp("fm")
    made = Doer(
        folder,
        *("--set", f"sandbox.network.ports=80,{server}"),
        *("--set", 'handlers."acme/doer".privateNetworks=127.0.0.1/32'),
    )
    made.start()
    try:
        made.publish(package(folder / "doer", execution={"sandbox": {"network": True}}))
        ended = made.run(
            f"fetch http://127.0.0.1:{server}/", "fetch http://169.254.169.254/latest/meta-data"
        )
        assert ended["status"] == "completed", ended["error"]
        got = ended["context"]["out"]["got"]
        assert got[0] == "hello"
        assert got[1] != "hello"
        assert "Error" in got[1]
        (entry,) = made.history(ended)
        network = entry["usage"]["network"]
        assert [one["port"] for one in network["contacts"]] == [server]
        assert "169.254.169.254" in network["denials"][0]["target"]
    finally:
        made.clear()
