"""The stateful examples, run as their READMEs say, and killed in the middle: the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import signal
import zlib
from pathlib import Path

import pytest

from tests.stateful.conftest import Doer, skip_without_containers

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
UPLOAD = json.loads((EXAMPLES / "video/upload.json").read_text())
CLIP = {"clip": UPLOAD["clip"], "seconds": 4, "width": 480}
ROWS = {"rows": 1_000_000, "save": 50_000}


def with_examples(folder):
    """A daemon with both examples published."""
    skip_without_containers()
    made = Doer(folder)
    made.start()
    try:
        for name in ("video", "rows"):
            for handler in (EXAMPLES / name / "handlers").iterdir():
                made.publish(handler)
            for flow in (EXAMPLES / name).glob("*.yaml"):
                done = made.daemon.flowctl("flow", "apply", str(flow))
                assert (done.returncode, done.stderr) == (0, ""), done.stderr
        yield made
    finally:
        made.clear()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    yield from with_examples(tmp_path_factory.mktemp("fm"))


@pytest.fixture
def own_daemon(tmp_path_factory):
    """For one test that kills it."""
    yield from with_examples(tmp_path_factory.mktemp("fm"))


def kill_nothing(daemon, job):
    pass


def kill_the_agent(daemon, job):
    (pid,) = daemon.agents(job["instance"])
    os.kill(pid, signal.SIGKILL)


def kill_the_daemon(daemon, job):
    daemon.kill9()
    assert daemon.agents(job["instance"]), "its container runs on"
    daemon.start()


def begin(daemon, flow, context):
    body = {"flow": flow, "context": context}
    return daemon.client.must("POST", "/v1/executions", body)


def killed_in_the_middle(daemon, begun, kill, words):
    """Do it once the log has a line with the words, which is before half of the work is done."""
    daemon.until(begun, lambda _: any(words in line for line in daemon.logs(begun)))
    job = daemon.job(begun)
    assert job["status"] == "running", "it was too fast to be killed in the middle"
    kill(daemon, job)


def film_of(daemon, kill):
    """The film's facts and bytes, and how the job came to them."""
    begun = begin(daemon, "film", CLIP)
    killed_in_the_middle(daemon, begun, kill, "transcoded chunk 1")
    job = daemon.until(begun, lambda job: job["status"] == "paused")
    assert job["progress"]["message"] == f"chunk {CLIP['seconds']} of {CLIP['seconds']}"
    for upload, woken in (({**UPLOAD, "clip": "another"}, 0), (UPLOAD, 1)):
        event = {"name": "upload.complete", "data": upload}
        assert daemon.client.must("POST", "/v1/events", event)["woken"] == woken
    ended = daemon.ended(begun)
    assert ended["status"] == "completed", ended["error"]
    file = daemon.folder / "film.mp4"
    words = ("job", "checkpoint", job["id"], "--name", "result", "-o", str(file))
    assert daemon.daemon.flowctl(*words).returncode == 0
    return ended, daemon.job(begun), file.read_bytes()


@pytest.fixture(scope="module")
def film(daemon):
    """What nobody disturbed."""
    return film_of(daemon, kill_nothing)


def test_a_film_has_all_frames_and_its_subtitles(film):
    ended, job, data = film
    facts = ended["context"]["film"]
    assert facts["frames"] == 25 * CLIP["seconds"]
    assert (facts["chunks"], facts["sizeBytes"]) == (CLIP["seconds"], len(data))
    assert facts["sha256"] == hashlib.sha256(data).hexdigest()
    assert data[4:8] == b"ftyp"
    assert b"The bars begin to move" in data
    assert job["progress"]["percent"] == 100


def check_the_same_film(found, film, attempts):
    ended, job, data = found
    assert data == film[2]
    assert ended["context"]["film"] == film[0]["context"]["film"]
    assert job["attempt"] == attempts


def chunks_of(daemon, ended):
    """The name of each saved chunk and the attempt that saved it."""
    saved = [one["data"] for one in daemon.events(ended) if one["type"] == "job.checkpoint"]
    return [(one["name"], one["attempt"]) for one in saved if one["name"].startswith("chunk-")]


def test_a_film_whose_container_is_killed_has_the_same_bytes(daemon, film):
    found = film_of(daemon, kill_the_agent)
    check_the_same_film(found, film, attempts=2)
    chunks = chunks_of(daemon, found[0])
    # What was done is not done again.
    assert [one for one in chunks if one[0] in ("chunk-0", "chunk-1")] == chunks[:2]
    assert (chunks[1][1], chunks[-1][1]) == (1, 2)


def test_a_film_whose_daemon_is_killed_has_the_same_bytes(own_daemon, film):
    found = film_of(own_daemon, kill_the_daemon)
    check_the_same_film(found, film, attempts=1)
    names = [f"chunk-{number}" for number in range(CLIP["seconds"])]
    assert chunks_of(own_daemon, found[0]) == [(name, 1) for name in names]


@pytest.fixture(scope="module")
def total(tmp_path_factory):
    """The sum that a plain reading of the same file finds."""
    path = tmp_path_factory.mktemp("rows") / "sales.csv"
    sales = runpy.run_path(str(EXAMPLES / "rows/handlers/total/sales.py"))
    sales["write"](path, ROWS["rows"])
    _header, *lines = path.read_text().splitlines(keepends=True)
    cents = dict.fromkeys(sales["REGIONS"], 0)
    for line in lines:
        _, region, pieces, price = line.split(",")
        cents[region] += int(pieces) * int(price)
    return {"rows": len(lines), "crc32": zlib.crc32("".join(lines).encode()), "cents": cents}


def check_the_total(daemon, kill, total, attempts):
    begun = begin(daemon, "total", ROWS)
    killed_in_the_middle(daemon, begun, kill, "added 200000")
    ended = daemon.ended(begun)
    assert ended["status"] == "completed", ended["error"]
    assert ended["context"]["total"] == total
    assert daemon.job(begun)["attempt"] == attempts


@pytest.mark.parametrize(("kill", "attempts"), [(kill_nothing, 1), (kill_the_agent, 2)])
def test_a_million_rows_are_each_added_up_once(daemon, total, kill, attempts):
    check_the_total(daemon, kill, total, attempts)


def test_a_million_rows_outlive_a_kill_of_the_daemon(own_daemon, total):
    check_the_total(own_daemon, kill_the_daemon, total, attempts=1)
