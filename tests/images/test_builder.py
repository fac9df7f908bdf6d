"""The builder of the daemon: handlers' images at publish, once for all who ask, within a bound."""

from __future__ import annotations

import asyncio
import json
import shutil
import time

import pytest

from flowmonkeyd.errors import Invalid, NotFound, Unavailable
from flowmonkeyd.model import NewExecution
from flowmonkeyd.store import images as table
from images import records
from images.handler import handler_name
from tests.flows import doc, step

pytestmark = pytest.mark.slow


def own(bench):
    """The images that are not the store's, by id."""
    return {one.id: one for one in records.images(bench.roots) if one.root == bench.root}


async def row_of(bench, name):
    return await bench.fm.store.read(lambda conn: table.find(conn, name))


async def test_publishing_a_stateful_handler_builds_its_image_in_the_background(bench):
    async with bench() as one:
        package = await one.publish()
        image_id = await one.builder.image_for(package)
        image = own(one)[image_id]
        assert image.names == (handler_name(package),)
        assert image.labels["flowmonkey.package"] == package
        assert image.labels["flowmonkey.runtime"] == "python311"
        assert records.intact(one.roots, image_id)
        row = await row_of(one, package)
        assert (row.state, row.image_id, row.own_bytes) == ("ready", image_id, image.own_bytes)
        assert 0 < image.own_bytes < 100_000 < image.size_bytes
        assert await one.builder.image_for(package) == image_id
        assert one.builder.builds == 1


async def test_twenty_who_ask_get_one_build(bench):
    async with bench() as one:
        package = await one.publish()
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(one.builder.image_for(package)) for _ in range(20)]
        assert len({each.result() for each in asked}) == 1
        assert one.builder.builds == 1


async def test_the_same_package_is_the_same_image_wherever_it_is_built(bench, tmp_path):
    async with bench() as one:
        package = await one.publish(files={"lib/x.py": "X = 1\n", "data/a.bin": "a" * 5000})
        first = await one.builder.image_for(package)
        shutil.rmtree(one.root)
        # It is not there any more: who needs it has it built again.
        assert await one.builder.image_for(package) == first
        assert one.builder.builds == 2


async def test_an_image_that_is_not_what_its_id_says_is_built_again(bench):
    async with bench() as one:
        package = await one.publish()
        image_id = await one.builder.image_for(package)
        (config,) = (one.root / "overlay-images" / image_id).glob("=c2hhMjU2*")
        config.write_text(config.read_text().replace("amd64", "arm64"))
        assert not records.intact(one.roots, image_id)
        assert await one.builder.image_for(package) == image_id
        assert records.intact(one.roots, image_id)
        assert one.builder.builds == 2


async def test_a_build_that_fails_shows_its_log_and_is_tried_again_when_wanted(bench):
    async with bench() as one:
        package = await one.publish()
        place = one.packages.path(package)
        await one.builder.image_for(package)
        shutil.rmtree(one.root)
        place.rename(place.with_name("away"))
        with pytest.raises(Unavailable, match=f"No such file or directory: '{place}'") as refused:
            await one.builder.image_for(package)
        assert refused.value.code == "IMAGE_UNAVAILABLE"
        row = await row_of(one, package)
        assert (row.state, row.image_id) == ("failed", None)
        with pytest.raises(Unavailable, match="No such file"):
            await one.builder.image_for(package)  # at once: it has just been tried
        assert one.builder.builds == 2
        place.with_name("away").rename(place)
        one.fm.advance(60_000)
        assert await one.builder.image_for(package)


async def test_what_nobody_published_has_no_image(bench):
    async with bench() as one:
        with pytest.raises(NotFound):
            await one.builder.image_for("a" * 64)
        with pytest.raises(NotFound, match="there are: python311, node20"):
            await one.builder.runtime_image("python2")


async def test_a_runtime_that_a_store_has_is_used_from_there(bench, shared):
    async with bench() as one:
        image_id = await one.builder.runtime_image("python311")
        assert image_id in {image.id for image in records.images([shared])}
        assert one.builder.builds == 0
        assert not one.root.exists()


async def test_a_build_that_a_crash_cut_off_is_done_by_the_next_daemon(bench):
    async with bench() as one:
        package = await one.publish()
        await one.builder.image_for(package)
        shutil.rmtree(one.root)
    async with bench() as one:
        assert (await row_of(one, package)).state == "absent"
        await one.fm.store.write(lambda tx: table.want(tx, "handler", package, "python311"))
    # whatever state the loop was in when it ended
    async with bench() as one:
        assert await one.builder.image_for(package)


async def test_the_bound_removes_the_longest_unused_and_never_what_is_in_use_or_pinned(bench):
    big = {"data.bin": "a" * 300_000}
    async with bench(bytes_max=1_000_000, pins=("acme/pinned",)) as one:
        made = {}
        for name in ("pinned", "used", "old", "new", "newest"):
            made[name] = await one.publish(name, files={**big, "name.txt": name})
            if name == "used":
                await one.fm.engine.apply_flow(doc(step("s", "acme/used")))
                await one.fm.engine.submit(NewExecution("f"))
            await one.builder.image_for(made[name])
            one.fm.advance(120_000)
        await one.builder.settled()
        states = {name: (await row_of(one, digest)).state for name, digest in made.items()}
        assert states == {
            "pinned": "ready",
            "used": "ready",
            "old": "absent",
            "new": "absent",
            "newest": "ready",
        }
        assert records.stored_bytes(one.root) <= 1_000_000
        assert await one.builder.image_for(made["old"])  # built again


async def test_prune_removes_what_nothing_uses(bench):
    async with bench() as one:
        package = await one.publish()
        image_id = await one.builder.image_for(package)
        removed, freed = await one.builder.prune()
        assert removed == [package]
        assert freed > 0
        assert own(one) == {}
        assert await one.builder.image_for(package) == image_id


@pytest.mark.parametrize(
    ("fields", "files", "runtime"),
    [
        ({"dependencies": {"ffmpeg-python": "==0.2.0"}}, {}, "node20-ffmpeg"),
        ({"execution": {"tools": ["ffmpeg"]}}, {}, "node20-ffmpeg"),
        (
            {"handler": {"runtime": "node", "entrypoint": "handler.js:handle"}},
            {"node_modules/sharp/package.json": "{}"},
            "node20-sharp",
        ),
    ],
)
async def test_the_runtime_is_chosen_from_manifest_and_package(bench, fields, files, runtime):
    async with bench() as one:
        package = await one.publish(files=files, **fields)
        image_id = await one.builder.image_for(package)
        image = own(one)[image_id]
        assert image.labels["flowmonkey.runtime"] == runtime
        assert await one.builder.runtime_for(package) == runtime


async def test_tools_that_no_image_has_refuse_the_package(bench):
    async with bench() as one:
        with pytest.raises(Invalid) as refused:
            await one.publish(execution={"tools": ["sharp"]})
        (problem,) = refused.value.problems
        assert (problem.path, problem.message) == (
            "$.execution.tools",
            "no runtime image has python and sharp",
        )


async def test_what_a_build_prints_can_be_read_along_and_later(bench):
    async with bench() as one:
        package = await one.publish()
        lines = [json.loads(line) async for line in one.builder.follow(package)]
        image_id = await one.builder.image_for(package)
        assert lines[-1] == {"state": "ready", "imageId": image_id}
        assert lines[:-1] == [{"line": f"{handler_name(package)}: {image_id}"}]
        assert [json.loads(line) async for line in one.builder.follow(package)] == lines


async def test_an_image_built_anew_takes_the_place_of_the_old_one(bench):
    """As after updates in the archives: same recipe, made later."""
    async with bench() as one:
        package = await one.publish()
        first = await one.builder.image_for(package)
        before = own(one)[first].made_ms
        one.fm.advance(int(time.time() * 1000) - one.fm.clock.now_ms())
        await one.builder.want("handler", [package], "python311", again=True)
        assert await one.builder.image_for(package) == first  # the same files, the same image
        assert own(one)[first].made_ms >= before
        assert one.builder.builds == 2


async def test_prune_removes_images_whose_place_others_took(bench):
    async with bench() as one:
        kept, stale = await one.publish("kept"), await one.publish("stale")
        ids = [await one.builder.image_for(package) for package in (kept, stale)]
        await one.fm.engine.apply_flow(doc(step("s", "acme/kept")))
        await one.fm.engine.submit(NewExecution("f"))
        row = await row_of(one, stale)
        await one.fm.store.write(lambda tx: table.absent(tx, row.key, row.image_id))
        assert set(own(one)) == set(ids)
        assert (await one.builder.prune())[0] == []
        assert set(own(one)) == {ids[0]}


async def test_records_that_are_half_written_are_no_images_and_no_error(bench):
    async with bench() as one:
        package = await one.publish()
        image_id = await one.builder.image_for(package)
        listed = one.root / "overlay-images/images.json"
        whole = listed.read_bytes()
        listed.write_bytes(whole[: len(whole) // 2])
        assert own(one) == {}
        listed.write_bytes(whole)
        assert set(own(one)) == {image_id}
