"""What handlers answer, however strange: a result, or the failure of their own step, no more."""

import functools

import pytest

from flowmonkeyd import jsontext
from flowmonkeyd.api.wire import execution_json
from flowmonkeyd.replies import denial_text, result_of
from flowmonkeyd.testing import FlowHarness
from sandbox import Contact, Denial, Ending, Reply, Traffic, Usage
from tests.flows import doc, step

YEAR_9999_MS = 253_402_300_799_999


@pytest.mark.parametrize(
    ("until", "status", "wake_at_ms", "code"),
    [
        (YEAR_9999_MS, "waiting", YEAR_9999_MS, None),
        ("9999-12-31T23:59:59.999+00:00", "waiting", YEAR_9999_MS, None),
        (YEAR_9999_MS + 1, "failed", None, "INVALID_RESULT"),
        ("9999-12-31T23:59:59.999-01:00", "failed", None, "INVALID_RESULT"),
        (2**62, "failed", None, "INVALID_RESULT"),
        (2**70, "failed", None, "INVALID_RESULT"),
        (1e300, "failed", None, "INVALID_RESULT"),
        (-(2**70), "completed", None, None),
        ("0001-01-01T00:00:00+23:59", "completed", None, None),
    ],
)
async def test_a_wait_has_a_moment_that_can_be_kept_and_shown(until, status, wake_at_ms, code):
    """A moment no column takes failed as INTERNAL; one no date has made every list a 500."""
    async with FlowHarness(handlers={"h": lambda given, ctx: ctx.wait(until=until)}) as fm:
        fm.apply(doc(step("a", "h")))
        made = await fm.create("f")
        run = await fm.run(made.id)
        assert (run.status, run.wake_at_ms) == (status, wake_at_ms)
        assert (run.error or {}).get("code") == code
        execution_json(await fm.engine.get(made.id))


async def test_the_errors_of_many_children_do_not_add_up_in_their_parent():
    """A hundred errors of a megabyte each made one error of a hundred, twice in the database."""

    def no(given, ctx):
        return ctx.failure("NO", "no", retryable=False, details="x" * 400_000)

    async with FlowHarness(handlers={"no": no}) as fm:
        nothing = {"type": "static", "value": {}}
        config = {"flowId": "child", "forEach": "items"}
        fm.apply(doc(step("a", "no"), id="child"))
        fm.apply(doc(step("a", "sub-flow", config=config, input=nothing)))
        made = await fm.create("f", {"items": list(range(5))})
        run = await fm.run(made.id)
        children = run.error["details"]["children"]
        assert run.error["code"] == "CHILD_FAILED"
        assert [child["error"]["code"] for child in children] == ["NO"] * 5
        assert [len(child["error"]["details"] or "") for child in children] == (
            [400_000, 400_000, 0, 0, 0]
        )


@pytest.mark.parametrize(
    ("handler", "code"),
    [
        (lambda given, ctx: ctx.success(1, next="x" * 500_000), "INVALID_TRANSITION"),
        (lambda given, ctx: ctx.update("x" * 500_000, "y" * 1_100_000), "CONTEXT_VALUE_TOO_LARGE"),
    ],
)
async def test_an_error_does_not_repeat_what_a_handler_wrote_at_length(handler, code):
    async with FlowHarness(handlers={"h": handler}) as fm:
        fm.apply(doc(step("a", "h")))
        made = await fm.create("f")
        run = await fm.run(made.id)
        assert run.error["code"] == code
        assert len(run.error["message"]) < 400


@pytest.mark.parametrize("levels", [1, 2, 6, 14])
async def test_details_that_are_nested_as_deep_as_they_may_be_can_be_read_at_every_level(levels):
    """Each sub-flow wrapped them anew, until the row could be written and not be read."""
    deepest = functools.reduce(lambda inner, _: [inner], range(196), 1)
    handlers = {"no": lambda given, ctx: ctx.failure("NO", "no", False, deepest)}
    async with FlowHarness(handlers=handlers) as fm:
        fm.apply(doc(step("a", "no"), id="f0"))
        for level in range(levels):
            config = {"flowId": f"f{level}"}
            fm.apply(doc(step("a", "sub-flow", config=config), id=f"f{level + 1}"))
        made = await fm.create(f"f{levels}")
        run = await fm.run(made.id)
        assert run.error["code"] == "CHILD_FAILED"
        assert len(await fm.history(made.id)) == 1
        (child,) = await fm.children(made.id)
        assert child.status == "failed"


TRAFFIC = Traffic(
    (Contact("api.example.com", "93.184.216.34", 443, 2, 10, 20),),
    (Denial("169.254.169.254:80", "link-local"), Denial("x\ud800:1", "not allowed", 3)),
    4,
    100,
    200,
)


@pytest.mark.parametrize("ending", [Ending.RESULT, Ending.TIMEOUT])
def test_the_network_of_an_attempt_is_in_its_history_however_it_ended(ending):
    answer = {"outcome": "success"} if ending is Ending.RESULT else None
    result = result_of(Reply(ending, answer, "", usage=Usage(7, 8, 9), traffic=TRAFFIC), 0)
    assert result.usage["network"] == {
        "contacts": [
            {
                "host": "api.example.com",
                "address": "93.184.216.34",
                "port": 443,
                "connections": 2,
                "sentBytes": 10,
                "receivedBytes": 20,
            }
        ],
        "denials": [
            {"target": "169.254.169.254:80", "reason": "link-local", "count": 1},
            {"target": "x?:1", "reason": "not allowed", "count": 3},
        ],
        "dnsQueries": 4,
        "sentBytes": 100,
        "receivedBytes": 200,
    }
    jsontext.dumps(result.usage)  # a name is the handler's to choose, and it is kept as text
    assert "network" not in result_of(Reply(ending, answer), 0).usage


def test_a_refused_target_is_a_line_of_the_log():
    assert [denial_text(one) for one in TRAFFIC.denials] == [
        "network: refused 169.254.169.254:80: link-local",
        "network: refused x?:1: not allowed (3 times)",
    ]
