"""What the fleet is told while there are no containers at all."""

from __future__ import annotations

from typing import Any

from flowmonkeyd.containers import Containers
from flowmonkeyd.fleet import Fleet
from flowmonkeyd.packages import Packages
from flowmonkeyd.settings import ContainersSection, Settings
from flowmonkeyd.store import Committed
from flowmonkeyd.testing import FlowHarness
from tests.jobs.instances import publish


class NoImages:
    """A daemon without Podman has none, and nobody asks."""

    async def image_for(self, digest: str) -> str:
        raise AssertionError(digest)

    runtime_for = runtime_image = image_for


async def test_a_host_without_podman_forgets_old_checkpoints_and_commits_on(tmp_path: Any) -> None:
    section = ContainersSection(podman="/nonexistent/podman")
    settings = Settings(socket=tmp_path / "s", dataDir=tmp_path, containers=section)
    containers = Containers(section, tmp_path / "root", tmp_path / "run", "x")
    async with FlowHarness(path=tmp_path / "fm.db") as fm:
        await publish(fm)
        packages = Packages(tmp_path / "packages", "")
        fleet = Fleet(fm.engine, containers, NoImages(), packages, settings)
        await fleet.work()
        await fleet.ready()
        assert fleet.problem is not None
        assert "podman" in fleet.problem
        # Those of a time when it had Podman expire in any commit, which must not fail for that.
        hints = Committed()
        hints.discarded.add("1/aa")
        hints.evicted.add("0" * 32)
        fleet.committed(hints)
    await containers.close()
