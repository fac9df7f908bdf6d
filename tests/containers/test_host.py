"""What a host lacks is said by name, with the reason and what to do; then nothing is started."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from flowmonkeyd.confinement import LAYERS, cgroup_version
from flowmonkeyd.containers import ContainerError, Containers, Spec, installation, run_folder
from flowmonkeyd.podman.creation import NO_PROGRAM
from flowmonkeyd.podman.host import Host
from flowmonkeyd.podman.libpod import RUN_LENGTH_MAX, Places
from flowmonkeyd.settings import ContainersSection

_NOBODY = 65534
_OPEN = """
import asyncio, json, sys
from pathlib import Path
from flowmonkeyd.containers import Containers
from flowmonkeyd.settings import ContainersSection

async def main(folder):
    top = Path(folder)
    driver = Containers(ContainersSection(), top / "root", top / "run", "aaaabbbb")
    await driver.open()
    print(json.dumps([driver.problem, dict(driver.facts)]))
    await driver.close()

asyncio.run(main(sys.argv[1]))
"""


def driver(tmp_path: Path, **settings) -> Containers:
    section = ContainersSection(**settings)
    return Containers(section, tmp_path / "root", tmp_path / "run", "aaaabbbb")


async def refused(containers: Containers, tmp_path: Path) -> str:
    """Why, once nothing can be started there."""
    await containers.open()
    try:
        spec = Spec("a" * 32, "job", "0" * 64, "light", tmp_path, ("/bin/true",))
        with pytest.raises(ContainerError) as said:
            await containers.start(spec)
        assert said.value.code == "SANDBOX_UNAVAILABLE"
        assert await containers.sweep((), 0) == 0
        assert containers.problem is not None
        assert containers.problem in said.value.message
        return containers.problem
    finally:
        await containers.close()


async def test_without_podman_that_is_what_it_says(tmp_path, monkeypatch):
    for name in ("flowmonkeyd.podman.host.PATH", "flowmonkeyd.podman.libpod.PATH"):
        monkeypatch.setattr(name, str(tmp_path))
    problem = await refused(driver(tmp_path), tmp_path)
    assert problem == ("podman: it is not installed; install Podman 4.3 or later (Debian: podman)")


async def test_a_podman_that_is_not_where_it_was_set_is_said(tmp_path):
    problem = await refused(driver(tmp_path, podman="/no/such/podman"), tmp_path)
    assert problem.startswith("podman: /no/such/podman is not there")


@pytest.mark.root
@pytest.mark.skipif(shutil.which("podman") is None, reason="NO podman")
async def test_a_run_folder_that_is_too_long_for_sockets_is_said(tmp_path):
    long = tmp_path / ("x" * RUN_LENGTH_MAX)
    containers = Containers(ContainersSection(), tmp_path / "root", long, "aaaabbbb")
    assert (await refused(containers, tmp_path)).startswith(f"sockets: {long} is longer than")


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(shutil.which("podman") is None, reason="NO podman")
async def test_a_podman_that_does_not_start_is_said(tmp_path):
    program = tmp_path / "podman"
    program.write_text("#!/bin/sh\necho 'it is broken today' >&2\nexit 3\n")
    program.chmod(0o755)
    run = Path("/run/fm-broken")
    containers = Containers(
        ContainersSection(podman=str(program)), tmp_path / "root", run, "aaaabbbb"
    )
    try:
        problem = await refused(containers, tmp_path)
        assert not run.exists()
    finally:
        shutil.rmtree(run, ignore_errors=True)
    assert problem.startswith("podman: its service process does not start: it is broken today")


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(shutil.which("podman") is None, reason="NO podman")
@pytest.mark.skipif(cgroup_version() != 1, reason="NO control groups of version 1")
def test_without_root_on_version_1_the_limits_that_would_be_dropped_are_named(tmp_path):
    tmp_path.chmod(0o755)
    folder = Path(f"/var/tmp/fm-nobody-{os.getpid()}")
    folder.mkdir()
    os.chown(folder, _NOBODY, _NOBODY)
    try:
        ran = subprocess.run(
            [sys.executable, "-c", _OPEN, str(folder)],
            user=_NOBODY,
            group=_NOBODY,
            extra_groups=[],
            cwd=Path(__file__).parents[2],
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        shutil.rmtree(folder)
    assert ran.returncode == 0, ran.stderr
    problem, facts = json.loads(ran.stdout)
    assert problem.startswith("memory, cpu, pids: on control groups of version 1 Podman drops")
    assert facts == {}


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.asyncio(loop_scope="session")
async def test_a_runtime_with_which_a_layer_does_not_hold_is_not_used(containers):
    """What open() has found out on this host, whatever it is."""
    assert containers.problem is None
    assert containers.facts["runtime"] in ("crun", "runc")
    assert containers.facts["proved"] == list(LAYERS)
    if cgroup_version() == 1:
        assert containers.facts["cgroups"] == 1
        assert containers.facts["runtime"] == "runc", "crun refuses the hybrid tree"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(shutil.which("podman") is None, reason="NO podman")
def test_without_root_somebody_has_to_make_the_control_groups(tmp_path, monkeypatch):
    """On version 2, asked as this user would be."""
    monkeypatch.setattr("flowmonkeyd.podman.host.cgroup_version", lambda: 2)
    monkeypatch.setattr(os, "geteuid", lambda: _NOBODY)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    places = Places(tmp_path / "root", Path("/run/fm"))
    with pytest.raises(ContainerError, match=r"XDG_RUNTIME_DIR is not set.*enable-linger"):
        Host.look("", "auto", places, "aaaabbbb")
    (tmp_path / "bus").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    host = Host.look("", "auto", places, "aaaabbbb")
    assert (host.manager, host.parent) == ("systemd", "")


def test_an_installation_keeps_its_name(tmp_path):
    name = installation(tmp_path / "data")
    assert installation(tmp_path / "data") == name
    assert len(name) == 8
    assert run_folder("", name).name == f"flowmonkey-{name}"
    assert run_folder("/run/other", name) == Path("/run/other")


def test_podman_py_is_imported_by_who_runs_containers_only():
    words = "import sys, flowmonkeyd.containers; print({'podman', 'requests'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.asyncio(loop_scope="session")
async def test_volumes_that_an_image_declares_are_not_made(containers, start):
    """They would be anonymous, writable and left behind."""
    name = "localhost/flowmonkey-test-volumes:1"
    await containers._podman.call(
        "POST",
        "/images/import",
        {"reference": name, "changes": ["VOLUME /data", "ENTRYPOINT /no/such/entry"]},
        _empty_image(),
    )
    image_id = await containers.image_id(name)
    try:
        container = await start(image_id=image_id, command=NO_PROGRAM)
        mounted = Path(f"/proc/{container.pid}/mountinfo").read_text()
        assert " /data " not in mounted
        assert await containers._podman.call("GET", "/volumes/json") == []
        await containers.kill(container)
    finally:
        await containers.remove_image(image_id)
    assert await containers.image_id(name) is None


def _empty_image() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        folder = tarfile.TarInfo("data")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
    return made.getvalue()


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.asyncio(loop_scope="session")
async def test_a_device_of_the_class_gpu_is_the_one_that_the_operator_named(
    places, section, python_image
):
    """A made-up CDI device, as this machine has no GPU: what is in its file is in the container."""
    devices = Path("/run/cdi/flowmonkey-test.json")
    edits = {"env": ["MADE_UP_DEVICE=here"], "deviceNodes": [{"path": "/dev/zero"}]}
    specification = {
        "cdiVersion": "0.3.0",
        "kind": "flowmonkey.test/gpu",
        "devices": [{"name": "one", "containerEdits": edits}],
    }
    devices.parent.mkdir(exist_ok=True)
    devices.write_text(json.dumps(specification))
    root, run = places[0] / "gpu", places[1] / "gpu"
    named = section.model_copy(update={"gpuDevice": "flowmonkey.test/gpu=one"})
    containers = Containers(named, root, run, "aaaacccc")
    await containers.open()
    try:
        assert containers.problem is None
        command = ("/usr/bin/python3", "-c", "import time; time.sleep(3600)")
        spec = Spec("c" * 32, "job", python_image, "gpu", containers.folder("c" * 32), command)
        container = await containers.start(spec)
        environment = Path(f"/proc/{container.pid}/environ").read_bytes().split(b"\0")
        assert b"MADE_UP_DEVICE=here" in environment
        await containers.kill(container)
    finally:
        await containers.sweep((), 0)
        await containers.close()
        devices.unlink()


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.asyncio(loop_scope="session")
async def test_one_installation_never_touches_anothers(places, section, containers, start):
    mine = await start()
    other = Containers(section, places[0] / "third", places[1] / "third", "aaaadddd")
    await other.open()
    try:
        assert other.problem is None
        assert await other.found() == []
        assert await other.sweep((), 0) == 0
    finally:
        await other.close()
    assert [one.container.pid for one in await containers.found()] == [mine.pid]
