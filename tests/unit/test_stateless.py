"""What handlers answer, however strange: a result, or the failure of their own step, no more."""

import pytest

from flowmonkeyd.api.wire import execution_json
from flowmonkeyd.testing import FlowHarness
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
