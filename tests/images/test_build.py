"""The program that builds: what a killed one leaves, that the same archives give the same image."""

from __future__ import annotations

import json
import os
import py_compile
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flowmonkeyd.builder import DIES_WITH_US
from images import records
from images.build import HERE
from images.recipe import digest, plan, runtime_recipe
from tests.images.conftest import CHECKOUT, build

pytestmark = pytest.mark.slow

ENDED_S = 20


# Otherwise the files of a layer cannot be read.
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="NO root: what is in a layer is not looked at"
)


@pytest.fixture
def agent(tmp_path):
    """An agent that no image has yet, so that there is something to build."""
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "agent.py").write_text(f"NAME = {str(tmp_path)!r}\n")
    return folder


def started(root, shared, agent, before=()):
    """A build of an agent's layer that has just begun to work on its files."""
    words = ["--root", root, "--store", shared, "--agent", agent, "runtime", "python311"]
    child = subprocess.Popen(
        [*before, sys.executable, "-m", "images.build", *map(str, words)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "python311: the agent\n"
    return child


def below(pid):
    """pidfds of a process and all its descendants."""
    found = [os.pidfd_open(pid)]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for one in (task / "children").read_text().split():
            try:
                found += below(int(one))
            except (FileNotFoundError, ProcessLookupError):
                pass
    return found


def all_end(pidfds):
    poll = select.poll()
    for fd in pidfds:
        poll.register(fd, select.POLLIN)
    for fd in pidfds:
        ended, _, _ = select.select([fd], [], [], ENDED_S)
        os.close(fd)
        assert ended, "a process of a killed build goes on"


def layers_of(root):
    return [path for path in (root / "overlay").iterdir() if len(path.name) == 64]


def nothing_is_left(root, shared, agent):
    assert str(root) not in Path("/proc/self/mountinfo").read_text()
    status, said = build(root, "--agent", agent, "runtime", "python311", stores=[shared])
    assert status == 0, said
    assert not (root / "flowmonkey/scratch").exists()
    assert json.loads((root / "overlay-containers/containers.json").read_bytes()) == []
    layers = json.loads((root / "overlay-layers/layers.json").read_bytes())
    assert {path.name for path in layers_of(root)} == {one["id"] for one in layers}
    images = records.images([root, shared])
    assert {one.id for one in images if one.root == root} == {
        records.made_by([root, shared], runtime_recipe("python311", agent)).id
    }


def test_a_killed_build_leaves_no_process_and_no_mount_and_the_next_removes_its_files(
    tmp_path, shared, agent
):
    root = tmp_path / "root"
    for _ in range(3):
        child = started(root, shared, agent)
        processes = below(child.pid)
        child.kill()
        child.wait()
        child.stdout.close()
        all_end(processes)
    nothing_is_left(root, shared, agent)


def test_a_build_ends_with_the_daemon_that_started_it(tmp_path, shared, agent):
    """The daemon is played by a shell that starts the build as the daemon does."""
    root = tmp_path / "root"
    child = started(root, shared, agent, ["sh", "-c", '"$@"; :', "sh", *DIES_WITH_US])
    processes = below(child.pid)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    all_end(processes)
    nothing_is_left(root, shared, agent)


def test_a_build_that_fails_says_why_and_leaves_no_working_container(tmp_path, shared):
    root = tmp_path / "root"
    missing = tmp_path / "missing"
    status, said = build(root, "handler", "python311", "a" * 64, missing, stores=[shared])
    assert status == 1
    assert f"cannot build: [Errno 2] No such file or directory: '{missing}'" in said
    assert json.loads((root / "overlay-containers/containers.json").read_bytes()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("runtime", "python2"), "no runtime 'python2': base, python311, node20"),
        (("handler", "python2", "a", "b"), "invalid choice: 'python2'"),
        ((), "the following arguments are required: what"),
    ],
)
def test_wrong_words_are_told(tmp_path, words, says):
    status, said = build(tmp_path / "root", *words)
    assert status == 2
    assert says in said


def test_what_is_there_is_not_built_again(tmp_path, shared):
    root = tmp_path / "root"
    assert build(root, "runtime", stores=[shared]) == (0, "")
    assert not root.exists()
    assert build(root, "--ask", "runtime", "python311")[0] == 1


def test_the_same_archives_give_the_same_image(tmp_path, shared):
    """Built anew and compared with what script/setup built; if the archives have changed between
    the two, the second build is compared with a third."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("NO mmdebstrap: the base cannot be built")

    def anew(name):
        status, said = build(tmp_path / name, "runtime", "python311")
        assert status == 0, said
        return stages([tmp_path / name])

    def stages(roots):
        made = [records.made_by(roots, digest(plan(name))) for name in ("base", "python311")]
        made.append(records.made_by(roots, runtime_recipe("python311", HERE / "agent")))
        return [one.id for one in made], made[1].labels["flowmonkey.versions"]

    before, first = stages([shared]), anew("first")
    if before[1] != first[1]:
        before = anew("second")
    assert first[0] == before[0]


@as_root
def test_bytecode_of_the_publishing_is_taken_and_no_other(tmp_path, shared):
    """What the daemon compiled is in the image as it is; what only looks like it is made anew."""
    folder, root = tmp_path / "package", tmp_path / "root"
    folder.mkdir()
    for name in ("good", "other", "timed"):
        (folder / f"{name}.py").write_text(f"NAME = {name!r}\n")
    program = CHECKOUT / "flowmonkeyd/syntax.py"
    subprocess.run([sys.executable, "-I", program, folder], check=True, capture_output=True)
    cache = folder / "__pycache__"
    made = {path.name.partition(".")[0]: path for path in cache.iterdir()}
    (folder / "other.py").write_text("NAME = 'another by now'\n")
    py_compile.compile(str(folder / "timed.py"), cfile=str(made["timed"]))
    given = {name: path.read_bytes() for name, path in made.items()}
    status, said = build(root, "handler", "python311", "a" * 64, folder, stores=[shared])
    assert status == 0, said
    (layer,) = layers_of(root)
    kept = {
        name: (layer / "diff/app/__pycache__" / path.name).read_bytes()
        for name, path in made.items()
    }
    assert kept["good"] == given["good"] or sys.version_info[:2] != (3, 11)
    assert kept["other"] != given["other"]
    assert kept["timed"] != given["timed"]
    assert {one[4:8] for one in kept.values()} == {b"\1\0\0\0"}


@as_root
def test_code_that_is_no_python_of_the_image_keeps_no_bytecode_and_breaks_nothing(tmp_path, shared):
    """A dependency may bring files for a newer Python; who imports one gets Python's own words."""
    folder, root = tmp_path / "package", tmp_path / "root"
    (folder / "lib").mkdir(parents=True)
    (folder / "handler.py").write_text("def handle(input, ctx):\n    return input\n")
    (folder / "lib/newer.py").write_text("type X = int\n")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/handler.cpython-311.pyc").write_bytes(b"of the host")
    status, said = build(root, "handler", "python311", "a" * 64, folder, stores=[shared])
    assert status == 0, said
    (layer,) = layers_of(root)
    app = layer / "diff/app"
    found = {str(path.relative_to(app)): path.stat() for path in app.rglob("*") if path.is_file()}
    assert set(found) == {
        "handler.py",
        "lib/newer.py",
        "__pycache__/handler.cpython-311.pyc",
    }
    assert {(one.st_uid, one.st_mode & 0o777) for one in found.values()} == {(0, 0o644)}
    assert (app / "__pycache__/handler.cpython-311.pyc").read_bytes()[4:8] == b"\1\0\0\0"
