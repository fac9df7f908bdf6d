"""Jobs over the API: what is shown, found, paused, resumed, cancelled and downloaded."""

import json
import zlib
from functools import partial
from hashlib import sha256

import pytest

from flowmonkeyd.api import checkpoints
from flowmonkeyd.jobmodel import NewCheckpoint, Progress
from flowmonkeyd.model import StepError
from tests.api.api_server import served
from tests.flows import doc, step
from tests.jobs.instances import ByHand, Machine, publish


@pytest.fixture
async def api(tmp_path):
    instances = {}
    async with served(tmp_path, jobs=partial(ByHand, instances=instances)) as api:
        api.instances = instances
        await publish(api)
        await api.call("PUT", "/v1/flows", doc(step("s", "acme/film")))
        await api.call("PUT", "/v1/flows", doc(step("s", "acme/film", next="w"),
                                               step("w", "wait-event", config={"event": "x"}),
                                               id="then"))  # fmt: skip
        yield api


@pytest.fixture
def machine(api):
    return Machine(api)


async def running(api, machine, flow="f", tenant="default"):
    made = (await api.call("POST", "/v1/executions", {"flow": flow, "tenantId": tenant})).json
    instance = await machine.start(made["id"])
    api.instances[instance.job.id] = instance
    return made["id"], instance, f"/v1/jobs/{instance.job.id}"


async def test_a_running_job_is_shown_with_all_that_is_known(api, machine):
    execution_id, instance, path = await running(api, machine)
    await instance.beat(Progress(50.0, "half", 1000))
    await instance.save(b"half a film", "frames")
    shown = (await api.call("GET", path)).json
    assert shown["id"] == instance.job.id
    assert shown["executionId"] == execution_id
    assert (shown["flowId"], shown["flowVersion"], shown["stepId"]) == ("f", "1.0.0", "s")
    assert shown["handler"] == {"type": "acme/film", "version": "1.0.0"}
    assert (shown["status"], shown["resources"], shown["attempt"]) == ("running", "heavy", 1)
    assert (shown["instance"], shown["container"]) == (instance.name, f"c-{instance.name}")
    assert shown["lease"]["worker"] == "w"
    progress = shown["progress"]
    assert (progress["percent"], progress["message"], progress["etaMs"]) == (50, "half", 1000)
    kept = shown["checkpoint"]
    assert (kept["name"], kept["sizeBytes"], kept["attempt"]) == ("frames", 11, 1)
    assert 0 <= kept["ageMs"] < 60_000
    ttl = shown["ttl"]
    assert (ttl["ttlMs"], ttl["softMs"], ttl["hardMs"]) == (3_600_000, 3_600_000, 86_400_000)
    assert ttl["activeMs"] + ttl["leftMs"] == ttl["ttlMs"]
    billed = shown["billed"]
    assert (billed["tier"], billed["perSecond"]) == ("heavy", "0.000100000")
    assert float(billed["amount"]) == pytest.approx(billed["seconds"] * 0.0001, abs=1e-9)
    assert (shown["error"], shown["pause"], shown["pausedMs"]) == (None, None, 0)


async def test_a_completed_job_has_its_bill_and_no_container(api, machine):
    execution_id, instance, path = await running(api, machine)
    await instance.finish()
    shown = (await api.call("GET", path)).json
    assert (shown["status"], shown["instance"], shown["lease"]) == ("completed", None, None)
    assert shown["checkpointsExpireAt"] is not None
    (entry,) = (await api.call("GET", f"/v1/executions/{execution_id}/history")).json["items"]
    if entry["billing"] is not None:  # it was active for a millisecond at least
        assert entry["billing"] == {"tier": "heavy", "amount": shown["billed"]["amount"]}


async def test_jobs_are_found_by_status_flow_tenant_and_execution(api, machine):
    one = await running(api, machine)
    two = await running(api, machine, "then", "acme")
    await two[1].finish()

    async def ids(query):
        found = await api.call("GET", f"/v1/jobs?{query}")
        assert found.status == 200, found.body
        return [job["id"] for job in found.json["items"]]

    first, second = one[1].job.id, two[1].job.id
    assert await ids("") == [second, first]
    assert await ids("status=running") == [first]
    assert await ids("status=running,completed") == [second, first]
    assert await ids("flow=then") == [second]
    assert await ids("flow=then@1.0.0") == [second]
    assert await ids("flow=then@2.0.0") == []
    assert await ids("tenant=acme") == [second]
    assert await ids(f"execution={one[0]}") == [first]
    assert await ids("tenant=acme&status=running") == []
    page = (await api.call("GET", "/v1/jobs?limit=1")).json
    assert await ids(f"limit=1&cursor={page['nextCursor']}") == [first]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/jobs/none", None, 404, "NOT_FOUND"),
        ("GET", "/v1/jobs?status=asleep", None, 422, "INVALID"),
        ("GET", "/v1/jobs?state=running", None, 422, "INVALID"),
        ("GET", "/v1/jobs/none/checkpoint", None, 404, "NOT_FOUND"),
        ("GET", "/v1/jobs/none/checkpoints", None, 404, "NOT_FOUND"),
        ("POST", "/v1/jobs/none/pause", {}, 404, "NOT_FOUND"),
        ("POST", "/v1/jobs/none/pause", {"why": 1}, 422, "INVALID"),
        ("POST", "/v1/jobs/none/resume", {"token": "x"}, 422, "INVALID"),
        ("POST", "/v1/jobs/none/cancel", {"reason": 1}, 422, "INVALID"),
    ],
)
async def test_what_is_not_there_or_wrong_is_refused(api, method, path, body, status, code):
    answer = await api.call(method, path, body)
    assert (answer.status, answer.json["code"]) == (status, code)


async def test_a_job_is_paused_and_resumed_by_hand(api, machine):
    execution_id, _, path = await running(api, machine)
    paused = (await api.call("POST", f"{path}/pause", {"reason": "lunch"})).json
    assert paused["status"] == "paused"
    assert (paused["pause"]["reason"], paused["pause"]["byHand"]) == ("lunch", True)
    again = await api.call("POST", f"{path}/pause")
    assert (again.status, again.json["code"]) == (409, "NOT_RUNNING")
    execution = (await api.call("GET", f"/v1/executions/{execution_id}")).json
    assert (execution["status"], execution["waitReason"]) == ("waiting", "lunch")
    assert execution["resumeToken"] is not None
    resumed = (await api.call("POST", f"{path}/resume", {"data": 1})).json
    assert (resumed["status"], resumed["pause"]) == ("queued", None)
    again = await api.call("POST", f"{path}/resume")
    assert (again.status, again.json["code"]) == (409, "NOT_WAITING")
    events = (await api.call("GET", f"/v1/executions/{execution_id}/events")).json["items"]
    (told,) = [event for event in events if event["type"] == "job.paused"]
    assert told["data"]["by"].startswith("uid:")
    assert told["stepId"] == "s"
    (told,) = [event for event in events if event["type"] == "execution.resumed"]
    assert told["data"]["by"].startswith("uid:")


async def test_a_daemon_without_containers_says_so(tmp_path):
    async with served(tmp_path) as api:
        await publish(api)
        await api.call("PUT", "/v1/flows", doc(step("s", "acme/film")))
        await api.call("POST", "/v1/executions", {"flow": "f"})
        instance = await Machine(api).start()
        answer = await api.call("POST", f"/v1/jobs/{instance.job.id}/pause")
        assert (answer.status, answer.json["code"]) == (503, "UNAVAILABLE")


async def test_cancelling_a_job_cancels_its_execution_and_never_another_step(api, machine):
    execution_id, _, path = await running(api, machine)
    cancelled = (await api.call("POST", f"{path}/cancel", {"reason": "enough"})).json
    assert (cancelled["status"], cancelled["error"]["code"]) == ("cancelled", "CANCELLED")
    execution = (await api.call("GET", f"/v1/executions/{execution_id}")).json
    assert (execution["status"], execution["cancellation"]["reason"]) == ("cancelled", "enough")
    execution_id, instance, path = await running(api, machine, "then")
    await instance.finish()
    answer = await api.call("POST", f"{path}/cancel")
    assert (answer.status, answer.json["code"]) == (409, "JOB_ENDED")
    execution = (await api.call("GET", f"/v1/executions/{execution_id}")).json
    assert execution["status"] in ("running", "waiting")


def made(name, data, encoding="bytes", compression="none", file=None, digest=None):
    stored = zlib.compress(data, 1) if compression == "zlib" else data
    digest = digest or sha256(stored).hexdigest()
    kept = None if file else stored
    return NewCheckpoint(name, len(stored), encoding, compression, digest, kept, file), stored


async def test_a_checkpoint_is_downloaded_as_it_was_given(api, machine):
    _, instance, path = await running(api, machine)
    text = json.dumps({"frames": list(range(500))}).encode()
    values = {
        "default": made("default", text, "json", "zlib"),
        "raw": made("raw", b"\0\1\2"),
        "empty": made("empty", b""),
        "filed": made("filed", b"x" * 3_000_000, "bytes", "zlib", "1/a"),
    }
    folder = api.directory / "checkpoints/1"
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(values["filed"][1])
    for kept, _ in values.values():
        kept = NewCheckpoint(
            kept.name, 1, kept.encoding, kept.compression, kept.sha256, kept.data, kept.file
        )
        await api.engine.save_checkpoint(instance.fence, instance.number(), kept, True, 1)
    listed = (await api.call("GET", f"{path}/checkpoints")).json["items"]
    assert [one["name"] for one in listed] == sorted(values)
    answer = await api.call("GET", f"{path}/checkpoint")
    assert (answer.headers["content-type"], answer.body) == ("application/json", text)
    for name, data in (("raw", b"\0\1\2"), ("empty", b""), ("filed", b"x" * 3_000_000)):
        answer = await api.call("GET", f"{path}/checkpoint?name={name}")
        assert (answer.status, answer.body == data) == (200, True), name
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-length"] == str(len(data))
    answer = await api.call("GET", f"{path}/checkpoint?name=other")
    assert (answer.status, answer.json["code"]) == (404, "NOT_FOUND")


async def test_a_damaged_checkpoint_is_refused_before_a_byte_is_sent(api, machine, monkeypatch):
    _, instance, path = await running(api, machine)
    cut, _ = made("cut", zlib.compress(b"abc" * 1000)[:-8])
    cut = NewCheckpoint("cut", 1, "bytes", "zlib", cut.sha256, cut.data)
    other, _ = made("other", b"abc", digest=sha256(b"abd").hexdigest())
    gone, _ = made("gone", b"abc", file="1/gone")
    for kept in (cut, other, gone):
        await api.engine.save_checkpoint(instance.fence, instance.number(), kept, True, 1)
    for name, words in (("cut", "unpack"), ("other", "not what was kept"), ("gone", "is gone")):
        answer = await api.call("GET", f"{path}/checkpoint?name={name}")
        assert answer.status == 503, name
        assert words in answer.json["detail"]
    bomb, _ = made("bomb", b"\0" * 3_000_000, compression="zlib")
    bomb = NewCheckpoint("bomb", 1, "bytes", "zlib", bomb.sha256, bomb.data)
    await api.engine.save_checkpoint(instance.fence, instance.number(), bomb, True, 1)
    monkeypatch.setattr(checkpoints, "BYTES_MAX", 2_999_999)
    answer = await api.call("GET", f"{path}/checkpoint?name=bomb")
    assert (answer.status, answer.json["code"]) == (413, "TOO_LARGE")


async def test_a_lost_container_is_told(api, machine):
    _, instance, path = await running(api, machine)
    await api.engine.lose_instance(instance.fence, None, StepError("MEMORY_LIMIT", "it was full"))
    shown = (await api.call("GET", path)).json
    assert (shown["status"], shown["failures"], shown["container"]) == ("queued", 1, None)
    assert shown["error"]["code"] == "MEMORY_LIMIT"
