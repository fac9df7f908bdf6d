"""Builds and keeps the images of stateful handlers, each once however many ask.

One loop builds what the table says is wanted, by the program `images.build`, which ends with the
daemon and leaves nothing but files that the next build removes. Whoever needs an image asks for its
id here before every start and waits if it is being built; an image that is not what was recorded is
built again. What the storage takes is bounded: images that nobody uses now go, the longest unused
first, and are built again when wanted.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import images
from flowmonkeyd import jsontext
from flowmonkeyd.clock import Clock
from flowmonkeyd.documents.manifest import Manifest
from flowmonkeyd.errors import Invalid, NotFound, Problem, Unavailable
from flowmonkeyd.packages import Packages
from flowmonkeyd.store import Committed, Store, Tx
from flowmonkeyd.store import images as table
from flowmonkeyd.store.images import ImageRow
from images import records
from images.choose import Unsuitable, choose, names_in
from images.handler import HandlerPlan
from images.recipe import digest, plan, runtime_recipe
from images.runtimes import RUNTIMES, image_name, lineage

__all__ = ["Builder", "runtime_of"]

log = logging.getLogger(__name__)

# A build that takes longer hangs: the largest image takes minutes on a slow line.
BUILD_S_MAX = 3600
# Lines of a build that are kept for who reads along, and bytes of them that stay.
LINES_MAX = 2000
LOG_BYTES = 16 * 1024
# After a failure the next who ask are told of it, before it is tried again.
FAILED_MS = 10_000
RETRY_S = 1.0
LINE_BYTES = 16 * 1024
# It is not to outlive a daemon that was killed; what it starts does not outlive it.
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
PROGRAMS = ("buildah", "mmdebstrap", "unshare", "setpriv")


class _Build:
    """The build that runs now, for who reads along."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: deque[str] = deque(maxlen=LINES_MAX)
        self.count = 0  # lines so far
        self.changed = asyncio.Event()

    def say(self, line: str) -> None:
        self.lines.append(line)
        self.count += 1
        self.changed.set()
        self.changed = asyncio.Event()

    def since(self, seen: int) -> list[str]:
        """The kept lines after the first `seen`."""
        new = min(self.count - seen, len(self.lines))
        return list(self.lines)[len(self.lines) - new :]

    @property
    def tail(self) -> str:
        return "\n".join(self.lines)[-LOG_BYTES:]


def runtime_of(manifest: Manifest, files: Mapping[str, bytes]) -> str:
    """The runtime image for a package. Raises Invalid when none has all the tools it names."""
    sbom = manifest.package.sbom if manifest.package else None
    documents = [files[name] for name in ("package.json", sbom or "") if name in files]
    tools = manifest.stateful.tools if manifest.stateful else ()
    try:
        return choose(
            manifest.runtime, {*manifest.dependencies, *names_in(files, documents)}, tools
        )
    except Unsuitable as exc:
        problem = Problem("$.execution.tools", str(exc))
        raise Invalid("cannot accept the package: 1 problem", problems=(problem,)) from None


class Builder:
    """The images below one storage root. `run()` builds; `committed()` is told of every commit."""

    def __init__(
        self,
        store: Store,
        packages: Packages,
        root: Path,
        stores: Sequence[Path] = (),
        bytes_max: int = 0,
        pins: Collection[str] = (),
        *,
        clock: Clock,
        driver_problem: Callable[[], str | None] = lambda: None,
        driver_ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`stores` are roots whose images are used and never written; `bytes_max` 0 is no bound;
        `pins` are runtimes and handlers (TYPE or TYPE@VERSION) whose images always stay."""
        self._store, self._packages = store, packages
        self._root, self._stores = root, tuple(stores)
        self._bytes_max, self._pins = bytes_max, frozenset(pins)
        self._clock, self._driver_problem = clock, driver_problem
        self._driver_ready = driver_ready
        self._build: _Build | None = None
        self._closed = False
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()  # a build has begun or ended
        self._recipes: dict[str, str] = {}
        self.builds = 0  # since the start

    async def ready(self) -> None:
        """Stateful handlers are wanted: wait until `problem` is known."""
        if self._driver_ready is not None:
            await self._driver_ready()

    @property
    def missing(self) -> str | None:
        """Why nothing can be built here; None: images can, whether containers run or not."""
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        return f"not installed: {', '.join(missing)}" if missing else None

    @property
    def problem(self) -> str | None:
        """Why this host can run no handlers in images; None: it can."""
        return self.missing or self._driver_problem()

    async def open(self) -> None:
        """Compare the table with what the storage holds. The store's writer must run."""
        folder = Path(images.__path__[0]) / "agent"
        self._recipes = await asyncio.to_thread(
            lambda: {
                name: runtime_recipe(name, folder)
                for name, one in RUNTIMES.items()
                if one.languages
            }
        )
        await self._store.write(table.recover)
        for name in self._recipes:
            found = await asyncio.to_thread(self._there, "runtime", name, name)
            row = await self._store.read(partial(table.find, name=name))
            if found is not None and (row is None or row.image_id != found.id):
                await self._record("runtime", name, name, found, None)
        for row in await self._store.read(table.every):
            if row.state == "ready" and not await asyncio.to_thread(self._is_good, row):
                await self._store.write(partial(table.absent, key=row.key, image_id=row.image_id))

    def committed(self, hints: Committed) -> None:
        if hints.images:
            self._wake.set()

    def close(self) -> None:
        """The daemon drains: who reads along is sent away."""
        self._closed = True
        if self._build is not None:
            self._build.changed.set()
        self._tell()

    async def run(self) -> None:
        """Build what is wanted, one after the other, until cancelled."""
        while True:
            self._wake.clear()
            try:
                row = await self._store.write(table.take)
                if row is None:
                    await self._wake.wait()
                    continue
                await self._make(row)
            except Unavailable as exc:
                log.warning("cannot build images: %s", exc)
                await asyncio.sleep(RETRY_S)

    async def image_for(self, package: str) -> str:
        """The id of the image of a package, which is built first if need be.

        Raises Unavailable (IMAGE_UNAVAILABLE) with the end of the log when it cannot be built,
        NotFound for a package that no stateful handler has.
        """
        return await self._image(package)

    async def runtime_image(self, name: str) -> str:
        """The id of a runtime's image, likewise."""
        if name not in self._recipes:
            raise NotFound(f"no runtime {name!r}; there are: {', '.join(self._recipes)}")
        return await self._image(name)

    async def runtime_for(self, package: str) -> str:
        """The runtime on which the image of a package stands. Raises NotFound."""
        row = await self._store.read(partial(table.find, name=package))
        if row is None:
            raise NotFound(f"no image of the package {package}")
        return row.runtime

    async def want(
        self, kind: table.Kind, names: Sequence[str], runtime: str | None, again: bool = False
    ) -> None:
        """Have images built, in the background; with `again` anew, if they are there. `runtime` of
        a handler's; a runtime's is itself."""

        def change(tx: Tx) -> None:
            for name in names:
                table.want(tx, kind, name, runtime or name, again)

        await self._store.write(change)

    async def follow(self, name: str) -> AsyncGenerator[bytes, None]:
        """NDJSON of an image's build until it ends: {"line"} as they come, then {"state",
        "imageId"}. Of one that is not being built, the kept end of its log."""
        build, seen = None, 0
        while True:
            changed, current = self._changed, self._build
            if current is not None and current.name == name:
                build, changed = current, current.changed
            row = await self._store.read(partial(table.find, name=name))
            if row is None:
                yield _ndjson({"state": "absent", "imageId": None})
                return
            lines = build.since(seen) if build is not None else (row.log or "").splitlines()
            is_over = row.state not in ("wanted", "building")
            if build is not None or is_over:
                for line in lines:
                    yield _ndjson({"line": line})
            if self._closed:
                return
            if is_over:
                yield _ndjson({"state": row.state, "imageId": row.image_id})
                return
            seen = build.count if build is not None else 0
            await changed.wait()

    async def settled(self) -> None:
        """Return once nothing is wanted or being built, and the storage is within its bound."""
        while True:
            changed = self._changed
            rows = await self._store.read(table.every)
            waiting = any(row.state in ("wanted", "building") for row in rows)
            if not waiting and self._build is None:
                return
            await changed.wait()

    async def prune(self) -> tuple[list[str], int]:
        """Remove every image that nothing uses now and no pin keeps: (names, bytes)."""
        before = await self._stored()
        await self._remove_stale()
        removed = [row.name for row in await self._removable() if await self._remove(row)]
        return removed, before - await self._stored()

    # --- asking ----------------------------------------------------------------------------------

    async def _image(self, name: str) -> str:
        has_asked = False
        while True:
            changed = self._changed  # before the look: no end of a build is missed
            row = await self._store.read(partial(table.find, name=name))
            if row is None and name not in self._recipes:
                raise NotFound(f"no stateful handler has the package {name}")
            if row is not None and row.image_id is not None:
                if await asyncio.to_thread(self._is_good, row):
                    await self._touch(row)
                    return row.image_id
                log.warning("an image is not what was recorded", extra={"image": name})
                await self._store.write(partial(table.absent, key=row.key, image_id=row.image_id))
            elif row is not None and row.state == "failed":
                lately_ms = self._clock.now_ms() - (row.built_at_ms or 0)
                if has_asked or 0 <= lately_ms < FAILED_MS:
                    raise _unbuildable(row)
            elif row is not None and row.state != "absent":
                await changed.wait()
                has_asked = True
                continue
            kind: table.Kind = "runtime" if name in self._recipes else "handler"
            runtime = row.runtime if row is not None else name
            await self._store.write(partial(table.want, kind=kind, name=name, runtime=runtime))
            has_asked = True

    async def _touch(self, row: ImageRow) -> None:
        if self._clock.now_ms() - (row.used_at_ms or 0) > table.USED_EVERY_MS:
            await self._store.write(partial(table.used, key=row.key))

    # --- building --------------------------------------------------------------------------------

    async def _make(self, row: ImageRow) -> None:
        build = self._build = _Build(row.name)
        self.builds += 1
        self._tell()
        try:
            found = None
            if self.missing is not None:
                build.say(f"cannot build: {self.missing}")
            elif await self._run(_words(row, self._packages), build.say):
                found = await asyncio.to_thread(self._there, row.kind, row.name, row.runtime)
            if found is None:
                log.warning("an image could not be built", extra={"image": row.name})
                await self._store.write(partial(table.failed, key=row.key, log=build.tail))
                return
            log.info("an image is built", extra={"image": row.name, "id": found.id})
            await self._record(row.kind, row.name, row.runtime, found, build.tail)
            self._tell()
            await self._keep_within()
        finally:
            self._build = None
            build.changed.set()
            self._tell()

    async def _run(self, words: Sequence[str], say: Callable[[str], None]) -> bool:
        """Run `images.build`; whether it did what it was asked."""
        stores = [word for store in self._stores for word in ("--store", str(store))]
        command = [*DIES_WITH_US, sys.executable, "-m", "images.build", "--root", str(self._root)]
        try:
            child = await asyncio.create_subprocess_exec(
                *command,
                *stores,
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=Path(images.__path__[0]).parent,
                limit=LINE_BYTES,
            )
        except OSError as exc:  # no process can be had
            say(f"cannot build: {exc}")
            return False
        assert child.stdout is not None
        try:
            async with asyncio.timeout(BUILD_S_MAX):
                while line := await _line(child.stdout):
                    say(line.decode(errors="replace").rstrip())
                return await child.wait() == 0
        except TimeoutError:
            say(f"cannot build: it took more than {BUILD_S_MAX} s")
            return False
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()

    async def _record(
        self, kind: table.Kind, name: str, runtime: str, found: records.Image, told: str | None
    ) -> None:
        ready = partial(
            table.ready,
            kind=kind,
            name=name,
            runtime=runtime,
            image_id=found.id,
            size_bytes=found.size_bytes,
            own_bytes=found.own_bytes,
            log=told,
        )
        await self._store.write(ready)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- what the storage holds; in threads ------------------------------------------------------

    @property
    def _roots(self) -> tuple[Path, ...]:
        return (self._root, *self._stores)

    def _there(self, kind: table.Kind, name: str, runtime: str) -> records.Image | None:
        """The image that this build of the daemon would make, if it is there."""
        base = records.made_by(self._roots, self._recipes[runtime])
        base = base or records.brought(self._roots, image_name(runtime))
        if kind == "runtime" or base is None:
            return base
        return records.made_by(self._roots, HandlerPlan(name, runtime, base.id).recipe)

    def _is_good(self, row: ImageRow) -> bool:
        """Whether the recorded image is there, whole, and of the runtime as it is now."""
        found = self._there(row.kind, row.name, row.runtime)
        return (
            found is not None and found.id == row.image_id and records.intact(self._roots, found.id)
        )

    # --- keeping within the bound ----------------------------------------------------------------

    async def _keep_within(self) -> None:
        if not self._bytes_max or await self._stored() <= self._bytes_max:
            return
        await self._remove_stale()
        for row in await self._removable():
            if await self._stored() <= self._bytes_max:
                return
            await self._remove(row)

    async def _stored(self) -> int:
        return await asyncio.to_thread(records.stored_bytes, self._root)

    async def _remove_stale(self) -> None:
        """Remove our own images in whose place newer ones came."""
        rows = await self._store.read(table.every)
        for image_id in await asyncio.to_thread(self._stale, {row.image_id for row in rows}):
            await self._run(["remove", image_id], lambda _: None)

    def _stale(self, recorded: Collection[str | None]) -> list[str]:
        made = [records.made_by(self._roots, digest(plan(name))) for name in RUNTIMES]
        made += [records.made_by(self._roots, recipe) for recipe in self._recipes.values()]
        needed = {*recorded, *(one.id for one in made if one is not None)}
        own = self._own().values()
        return [one.id for one in own if records.RECIPE in one.labels and one.id not in needed]

    async def _removable(self) -> list[ImageRow]:
        """What nothing uses now and no pin keeps: handlers before runtimes, which other images
        stand on, and the longest unused first."""
        rows = await self._store.read(table.every)
        uses = await self._store.read(table.in_use)
        names = await self._store.read(table.names_of)
        own = await asyncio.to_thread(self._own)
        there = [row for row in rows if row.image_id in own]
        handlers = [
            row
            for row in there
            if row.kind == "handler" and row.name not in uses and not self._pinned(row, names)
        ]
        needed = {row.runtime for row in there if row.kind == "handler"}
        runtimes = [
            row for row in there if row.kind == "runtime" and row.name not in needed | self._pins
        ]
        return [*sorted(handlers, key=_last_used), *sorted(runtimes, key=_last_used)]

    def _pinned(self, row: ImageRow, names: Mapping[str, list[tuple[str, str, bool]]]) -> bool:
        return any(
            {handler_type, f"{handler_type}@{version}"} & self._pins
            for handler_type, version, _ in names.get(row.name, ())
        )

    async def _remove(self, row: ImageRow) -> bool:
        """Remove an image from our own root; one that a container uses stays."""
        assert row.image_id is not None
        ids = [row.image_id]
        if row.kind == "runtime":
            ids += await asyncio.to_thread(self._stages_of, row.name)
        await self._run(["remove", *ids], lambda _: None)
        if row.image_id in await asyncio.to_thread(self._own):
            return False
        await self._store.write(partial(table.absent, key=row.key, image_id=row.image_id))
        log.info("an image is removed", extra={"image": row.name})
        return True

    def _own(self) -> dict[str, records.Image]:
        """By id, the images that are in our own root."""
        return {one.id: one for one in records.images(self._roots) if one.root == self._root}

    def _stages_of(self, name: str) -> list[str]:
        """Ids of what a runtime's image was made from and no other runtime's needs."""
        recipes = {one.labels.get(records.RECIPE): one.id for one in self._own().values()}
        needed = {
            one.name
            for other, recipe in self._recipes.items()
            if other != name and recipe in recipes
            for one in lineage(other)
        }
        stages = [one.name for one in reversed(lineage(name)) if one.name not in needed]
        return [recipes[made] for one in stages if (made := digest(plan(one))) in recipes]


def _words(row: ImageRow, packages: Packages) -> list[str]:
    since = ["--since", str(row.since_ms)]
    if row.kind == "runtime":
        return [*since, "runtime", row.name]
    return [*since, "handler", row.runtime, row.name, str(packages.path(row.name))]


async def _line(stream: asyncio.StreamReader) -> bytes:
    """A line, or as much of one as is kept; nothing at the end."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as exc:
        return exc.partial
    except asyncio.LimitOverrunError as exc:
        return await stream.readexactly(exc.consumed)


def _last_used(row: ImageRow) -> int:
    return row.used_at_ms or row.built_at_ms or 0


def _unbuildable(row: ImageRow) -> Unavailable:
    return Unavailable(
        f"cannot build the image of {row.name}:\n{row.log or ''}", code="IMAGE_UNAVAILABLE"
    )


def _ndjson(value: Mapping[str, object]) -> bytes:
    return jsontext.dumps(value).encode() + b"\n"
