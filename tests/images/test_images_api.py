"""Images over the API and by flowctl: the real daemon, and one that can have none."""

from __future__ import annotations

import json

import pytest

from flowmonkeyd.documents.archive import pack_files
from images.runtimes import RUNTIMES
from tests.api.api_server import served
from tests.system.conftest import RunningDaemon

MANIFEST = {"handler": {"type": "acme/film", "version": "1.0.0", "stateful": True}}
CODE = "def handle(input, ctx):\n    return input\n"


def package(**fields):
    return {
        "handler.json": json.dumps({**MANIFEST, **fields}).encode(),
        "handler.py": CODE.encode(),
    }


@pytest.fixture
def daemon(tmp_path, shared):
    """A daemon that uses the runtimes of the checkout."""
    one = RunningDaemon(tmp_path)
    one.start("--set", f"containers.imageStores={shared}")
    yield one
    if one.is_running:
        one.stop()  # killed, it would leave Podman's mount to its next start


@pytest.mark.slow
def test_the_whole_life_of_an_image_by_flowctl(daemon, tmp_path):
    folder = tmp_path / "film"
    folder.mkdir()
    for name, content in package().items():
        (folder / name).write_bytes(content)
    assert daemon.flowctl("handler", "publish", str(folder)).returncode == 0

    built = daemon.flowctl("image", "build", "acme/film@1.0.0", "-o", "json")
    assert built.returncode == 0, built.stderr
    (image,) = json.loads(built.stdout)
    assert image["state"] == "ready"
    assert f"handler:{image['name']}: {image['imageId']}" in built.stderr

    items = json.loads(daemon.flowctl("image", "list", "-o", "json").stdout)["items"]
    by_name = {one["name"]: one for one in items}
    assert list(by_name)[:-1] == sorted(name for name, one in RUNTIMES.items() if one.languages)
    film = by_name[image["name"]]
    assert film["handlers"] == [{"type": "acme/film", "version": "1.0.0", "yanked": False}]
    assert (film["runtime"], film["imageId"]) == ("python311", image["imageId"])
    assert 0 < film["ownBytes"] < 100_000 < film["sizeBytes"]
    assert (by_name["python311"]["state"], by_name["python311"]["images"]) == ("ready", 1)

    daemon.stop()
    daemon.start()  # without the store: what it stood on is gone
    items = json.loads(daemon.flowctl("image", "list", "-o", "json").stdout)["items"]
    assert {one["name"]: one["state"] for one in items}[image["name"]] == "absent"


@pytest.mark.slow
def test_prune_by_flowctl_and_what_is_no_image(daemon, tmp_path):
    pruned = daemon.flowctl("image", "prune")
    assert (pruned.returncode, pruned.stderr) == (0, "0 removed, nothing freed\n")
    assert daemon.flowctl("image", "build", "acme/none").returncode == 4
    daemon.stop()


async def test_a_daemon_without_containers_refuses_stateful_handlers_and_says_why(tmp_path):
    zip_ = {"content-type": "application/zip"}
    async with served(tmp_path) as api:
        api.no_containers = "podman is not installed"
        packed = pack_files(package())
        refused = await api.call("PUT", "/v1/handlers", packed, zip_)
        assert (refused.status, refused.json["code"]) == (503, "CONTAINERS_UNAVAILABLE")
        assert refused.json["detail"] == (
            "cannot publish acme/film: it is stateful, and containers cannot be run on this host: "
            "podman is not installed; see `flowctl status`"
        )
        assert (await api.call("GET", "/v1/handlers")).json["items"] == []
        stateless = {**MANIFEST["handler"], "stateful": False}
        packed = pack_files(package(handler=stateless))
        assert (await api.call("PUT", "/v1/handlers", packed, zip_)).status == 201
        names = [one["name"] for one in (await api.call("GET", "/v1/images")).json["items"]]
        assert names == sorted(name for name, one in RUNTIMES.items() if one.languages)
