"""Secrets of stateful handlers."""

from __future__ import annotations

import pytest

from tests.stateful.conftest import package

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
