"""A harness with a published stateful handler, and the machine its containers are played on."""

import pytest

from flowmonkeyd.testing import FlowHarness
from tests.flows import doc, echo, step
from tests.jobs.instances import Machine, publish


@pytest.fixture
async def fm(tmp_path):
    """Flow `f`: a stateful step `s`, then `z`. Flow `again` retries it twice, after 5 s."""
    async with FlowHarness({"echo": echo}, path=tmp_path / "fm.db") as fm:
        await publish(fm)
        fm.apply(doc(step("s", "acme/film", out="film", next="z"), step("z")))
        retry = {"maxAttempts": 2, "backoffMs": 5000, "backoffMultiplier": 1}
        fm.apply(doc(step("s", "acme/film", retry=retry), id="again"))
        yield fm


@pytest.fixture
def machine(fm):
    return Machine(fm)
