"""Making executions: idempotency, ids, batches, versions, pins."""

import asyncio

import pytest

from flowmonkeyd.errors import Conflict, Invalid, NotFound
from flowmonkeyd.model import Lane, NewExecution, Outcome, Priority, TaskResult
from flowmonkeyd.store import executions, ledger
from flowmonkeyd.testing import FlowHarness
from tests.flows import doc, echo, step

DAY_MS = 24 * 3600 * 1000
FLOW = doc(step("a"))


@pytest.fixture
async def fm():
    async with FlowHarness({"echo": echo}) as fm:
        yield fm


async def count(fm):
    page = executions.Page(limit=1000)
    return len(await fm.store.read(lambda c: executions.list_page(c, page)))


# --- idempotency --------------------------------------------------------------------------------


async def test_of_parallel_creates_with_one_key_one_makes_an_execution(fm):
    """Upstream 8.2.14: ten parallel creates with one key give ten executions."""
    fm.apply(FLOW)
    await fm.create("f")
    made = []

    async def create():
        made.append(await fm.create("f", idempotency_key="k"))

    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(create())
    assert len({run.id for run in made}) == 1
    assert [run.created for run in made].count(True) == 1
    assert await count(fm) == 2


@pytest.mark.parametrize(
    ("second", "same"),
    [
        ({"flow_ref": "f"}, True),
        ({"flow_ref": "f@1.0.0"}, True),
        ({"flow_ref": "f", "context": {"other": 1}}, True),
        ({"flow_ref": "f", "id": "another-id"}, True),
        ({"flow_ref": "f", "tenant_id": "other"}, False),
        ({"flow_ref": "g"}, False),
        ({"flow_ref": "f", "idempotency_key": "k2"}, False),
        ({"flow_ref": "f", "idempotency_key": None}, False),
    ],
)
async def test_a_key_is_scoped_by_tenant_and_flow(fm, second, same):
    """Upstream 8.2.14: tenants share keys."""
    fm.apply(FLOW)
    fm.apply(doc(step("a"), id="g"))
    one = await fm.create("f", idempotency_key="k")
    two = await fm.create(**{"idempotency_key": "k", **second})
    assert (one.id == two.id, not two.created) == (same, same)


async def test_a_key_is_free_again_at_its_instant_and_not_before(fm):
    fm.apply(FLOW)
    one = await fm.create("f", idempotency_key="k")
    fm.advance(DAY_MS - 1)
    await fm.settle()
    assert (await fm.create("f", idempotency_key="k")).id == one.id
    fm.advance(1)
    two = await fm.create("f", idempotency_key="k")
    assert two.created
    fm.advance(DAY_MS - 1)
    await fm.settle()  # sweeps expired keys, and only those
    assert (await fm.create("f", idempotency_key="k")).id == two.id


async def test_a_hit_does_not_lengthen_the_window(fm):
    fm.apply(FLOW)
    one = await fm.create("f", idempotency_key="k", idempotency_window_ms=1000)
    fm.advance(999)
    await fm.create("f", idempotency_key="k", idempotency_window_ms=10_000)
    fm.advance(1)
    assert (await fm.create("f", idempotency_key="k")).id != one.id


async def test_a_key_holds_whatever_became_of_the_execution_and_over_a_restart(fm):
    fm.apply(FLOW)
    one = await fm.create("f", idempotency_key="k")
    await fm.cancel(one.id)
    await fm.restart()
    hit = await fm.create("f", idempotency_key="k")
    assert (hit.id, hit.status, hit.created) == (one.id, "cancelled", False)
    assert "idempotency.hit" in [e["type"] for e in await fm.events(one.id)]


# --- ids and batches ----------------------------------------------------------------------------


async def test_an_id_is_used_once(fm):
    """Upstream 8.2.15: reusing an id silently resets a finished execution."""
    fm.apply(FLOW)
    await fm.run((await fm.create("f", {"n": 1}, id="mine")).id)
    with pytest.raises(Conflict) as refusal:
        await fm.create("f", {"n": 2}, id="mine")
    assert refusal.value.code == "EXECUTION_EXISTS"
    assert (await fm.get("mine")).context == {"n": 1}


async def test_an_unknown_flow_or_version_is_not_found(fm):
    fm.apply(FLOW)
    for ref in ("nowhere", "f@2.0.0", "f@", "@1.0.0"):
        with pytest.raises(NotFound) as refusal:
            await fm.create(ref)
        assert refusal.value.code == "FLOW_NOT_FOUND"
    with pytest.raises(NotFound):
        await fm.get("nobody")


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (NewExecution("nowhere"), NotFound),
        (NewExecution("f", {"a": "x" * 2**20}), Invalid),
        (NewExecution("f", id="taken"), Conflict),
        (NewExecution("f", id="twin"), Conflict),
        (NewExecution("f", parent_id="nobody"), NotFound),
    ],
)
async def test_a_batch_is_all_or_nothing_with_its_keys_and_events(fm, bad, kind):
    fm.apply(FLOW)
    await fm.create("f", id="taken")
    before = (await count(fm), await fm.store.read(ledger.last_seq))
    good = NewExecution("f", idempotency_key="k", id="twin")
    with pytest.raises(kind) as refusal:
        await fm.engine.submit_batch([good, bad, good])
    assert "item 1" in refusal.value.message
    assert (await count(fm), await fm.store.read(ledger.last_seq)) == before
    assert (await fm.create("f", idempotency_key="k")).created


async def test_a_batch_answers_in_its_order_and_sees_its_own_keys(fm):
    fm.apply(FLOW)
    await fm.create("f")
    made = await fm.engine.submit_batch(
        [NewExecution("f", idempotency_key=key) for key in ("a", "b", "a")]
    )
    ids = [m.record.execution.id for m in made]
    assert ids[0] == ids[2] != ids[1]
    assert [m.created for m in made] == [True, True, False]
    assert await fm.engine.submit_batch([]) == []


async def test_ids_sort_by_the_time_they_were_made(fm):
    fm.apply(FLOW)
    ids = []
    for _ in range(20):
        ids.append((await fm.create("f")).id)
        fm.advance(1)
    assert ids == sorted(ids)


# --- versions and pins --------------------------------------------------------------------------


async def test_versions_compare_as_numbers(fm):
    """Upstream 8.2.16: 9.0.0 is newer than 10.0.0 as text."""
    for version in ("9.0.0", "10.0.0", "10.1.0-rc.1", "2.0.0"):
        fm.apply(doc(step("a"), version=version))
    assert (await fm.create("f")).flow_version == "10.0.0"
    assert (await fm.create("f@2.0.0")).flow_version == "2.0.0"


async def test_an_applied_version_never_changes(fm):
    made = await fm.engine.apply_flow(FLOW)
    again = await fm.engine.apply_flow({**FLOW})
    assert (made.created, again.created, again.row) == (True, False, made.row)
    with pytest.raises(Conflict):
        await fm.engine.apply_flow(doc(step("b")))


async def test_an_execution_goes_on_with_the_version_it_began_with(fm):
    fm.apply(doc(step("a", next="b"), step("b", out="old")))
    run = await fm.create("f")
    await fm.tick(run.id)
    await fm.engine.apply_flow(doc(step("a", next="c"), step("c"), version="2.0.0"))
    ended = await fm.run(run.id)
    assert (ended.flow_version, "old" in ended.context) == ("1.0.0", True)


async def publish(fm, *versions, type="acme/x"):
    for version in versions:
        await fm.engine.publish(type, version, f"digest-{version}", "{}", 1)


async def claimed(fm):
    (task,) = await fm.engine.claim(Lane.SANDBOX, 1, "test")
    await fm.engine.finish(task.key, task.lease_id, TaskResult(Outcome.SUCCESS))
    return (task.handler_type, task.handler_version, task.package_digest)


@pytest.mark.parametrize(
    ("ref", "version"),
    [
        ("acme/x", "10.0.0"),
        ("acme/x@^1", "1.10.0"),
        ("acme/x@1.2.0", "1.2.0"),
        ("acme/x@~1.2", "1.2.9"),
        ("acme/x@2.0.0-rc.1", "2.0.0-rc.1"),
        ("acme/x@^3", None),
    ],
)
async def test_a_step_takes_the_newest_published_version_that_fits(fm, ref, version):
    await publish(fm, "1.2.0", "9.0.0", "1.2.9", "1.10.0", "10.0.0", "2.0.0-rc.1")
    fm.apply(doc(step("a", ref)))
    run = await fm.create("f")
    if version is None:
        assert (run.status, run.error["code"]) == ("failed", "HANDLER_NOT_FOUND")
    else:
        assert await claimed(fm) == ("acme/x", version, f"digest-{version}")


async def test_the_version_is_fixed_when_the_execution_is_made(fm):
    await publish(fm, "1.0.0")
    fm.apply(doc(step("a", "acme/x", next="b"), step("b", "acme/x")))
    await fm.create("f")
    assert (await claimed(fm))[1] == "1.0.0"
    await publish(fm, "1.1.0")
    await fm.engine.yank("acme/x", "1.0.0")
    assert (await claimed(fm))[1] == "1.0.0"


async def test_a_yanked_version_is_not_taken_by_new_executions(fm):
    await publish(fm, "1.0.0", "1.1.0")
    fm.apply(doc(step("a", "acme/x")))
    await fm.create("f")
    await claimed(fm)
    await fm.engine.yank("acme/x", "1.1.0")
    await fm.create("f")
    assert (await claimed(fm))[1] == "1.0.0"
    await fm.engine.yank("acme/x", "1.0.0")
    assert (await fm.create("f")).error["code"] == "HANDLER_NOT_FOUND"


async def test_a_handler_published_later_serves_an_execution_that_comes_to_it(fm):
    fm.apply(doc(step("a", next="b"), step("b", "acme/x", next="c"), step("c", "acme/x")))
    run = await fm.create("f")
    await publish(fm, "1.0.0")
    await fm.tick(run.id)
    assert (await claimed(fm))[1] == "1.0.0"
    await publish(fm, "2.0.0")
    assert (await claimed(fm))[1] == "1.0.0", "pinned when it was first needed"


async def test_a_missing_handler_fails_at_once_without_retry_or_branch(fm):
    document = doc(
        step("a", next="b"), step("b", "acme/x", retry={"maxAttempts": 3}, fail="c"), step("c")
    )
    fm.apply(document)
    run = await fm.run((await fm.create("f")).id)
    assert (run.status, run.error["code"], run.current_step_id) == (
        "failed",
        "HANDLER_NOT_FOUND",
        "b",
    )
    assert run.step_count == 1
    await publish(fm, "1.0.0")
    await fm.retry(run.id)
    assert (await claimed(fm))[1] == "1.0.0"
    assert (await fm.get(run.id)).status == "completed"


async def test_a_published_version_never_changes(fm):
    row, new = await fm.engine.publish("acme/x", "1.0.0", "d1", "{}", 1)
    again, fresh = await fm.engine.publish("acme/x", "1.0.0", "d1", "{}", 1)
    assert (new, fresh, again) == (True, False, row)
    with pytest.raises(Conflict):
        await fm.engine.publish("acme/x", "1.0.0", "d2", "{}", 1)
    with pytest.raises(Invalid):
        await fm.engine.publish("delay", "1.0.0", "d1", "{}", 1)
    with pytest.raises(NotFound):
        await fm.engine.yank("acme/x", "3.0.0")


async def test_priority_and_metadata_are_kept(fm):
    fm.apply(FLOW)
    run = await fm.create("f", priority=Priority.LOW, metadata={"m": [1]}, tenant_id="t")
    assert (run.priority, run.metadata, run.tenant_id) == ("low", {"m": [1]}, "t")
