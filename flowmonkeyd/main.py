"""The composition root: flags and configuration in, one daemon under one TaskGroup, exit codes out.

Everything is built here, once, in one order, and taken down in the reverse: stop accepting, stop
claiming, give running steps their grace, put the rest back into the line, close. The start after
`kill -9` is this same start.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import click
import uvloop

from flowmonkeyd import __version__, logs, shipping, systemd
from flowmonkeyd.api.feed import Feed
from flowmonkeyd.api.requests import Api
from flowmonkeyd.api.server import Server, application
from flowmonkeyd.billing import Quota, nanos
from flowmonkeyd.builder import Builder
from flowmonkeyd.clock import Clock, RandomIds, SystemClock
from flowmonkeyd.config import ConfigError, Loaded, load, print_config
from flowmonkeyd.containers import Containers, installation, run_folder
from flowmonkeyd.dispatcher import Dispatcher, Executor
from flowmonkeyd.engine import Engine
from flowmonkeyd.errors import FlowMonkeyError, Unavailable
from flowmonkeyd.fleet import Fleet
from flowmonkeyd.jobmodel import JobRules
from flowmonkeyd.jobs import Jobs
from flowmonkeyd.model import Lane, Limits
from flowmonkeyd.packages import Packages
from flowmonkeyd.quotas import Quotas
from flowmonkeyd.settings import QuotaSection, Settings, TenantQuota
from flowmonkeyd.stateless import Stateless
from flowmonkeyd.store import Committed, Store, catalog
from flowmonkeyd.timers import Timers
from flowmonkeyd.vault import Vault
from flowmonkeyd.vault.keys import keyring
from flowmonkeyd.vault.local import Local
from flowmonkeyd.vitals import Vitals
from sandbox import HostedPool, PoolSettings

__all__ = ["Daemon", "main"]

log = logging.getLogger("flowmonkeyd")

EXIT_FAILED = 1
# Most handlers wait for somebody (HTTP) more than they compute.
SLOTS_PER_CPU = 4
DAY_MS = 24 * 3600 * 1000
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h


class _Told(Protocol):
    """A part that wants to hear of every commit."""

    def committed(self, hints: Committed) -> None: ...


class Daemon:
    """One daemon on one data directory. `run()` serves until `stop()`; usable by tests."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._settings = loaded.settings
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None

    def stop(self) -> None:
        """Drain and end; a second call ends at once, which is as safe as `kill -9`."""
        if self._stopping.is_set() and self._task is not None:
            self._task.cancel()
        self._stopping.set()

    async def run(self) -> None:
        """Start, serve, drain. Raises FlowMonkeyError when it cannot start."""
        self._task = asyncio.current_task()
        with _locked(self._settings.dataDir):
            await self._serve()

    async def _serve(self) -> None:
        settings, clock = self._settings, SystemClock()
        store = Store(settings.dataDir / "flowmonkey.db", clock)
        engine = _engine(store, settings)
        packages = Packages(settings.dataDir / "packages", settings.sandbox.python)
        vault = _vault(settings, store)
        pool = HostedPool(_pool_settings(settings))
        stateless = Stateless(pool, packages, engine, clock, settings, vault)
        containers = _containers(settings)
        builder = _builder(settings, store, packages, clock, containers, lambda: fleet.ready())
        fleet = Fleet(engine, containers, builder, packages, settings)
        jobs = Jobs(engine, fleet, vault, clock, settings)
        executors: dict[Lane, Executor] = {Lane.SANDBOX: stateless, Lane.CONTAINER: jobs}
        dispatcher = Dispatcher(engine, executors, f"flowmonkeyd-{os.getpid()}")
        timers = Timers(engine, clock)
        feed = Feed()
        vitals = Vitals(store, dispatcher, pool, stateless, fleet)

        store.on_commit = _telling(builder, dispatcher, fleet, timers, feed)
        store.before_commit = engine.run_ready
        store.expected = dispatcher.expected
        api = Api(
            *(engine, packages, feed, settings, vitals, vault),
            jobs=jobs,
            builder=builder,
            is_draining=self._stopping.is_set,
        )
        server = Server(
            application(api), settings.socket, settings.api.socketMode, systemd.listen_fds()
        )
        server.bind()
        try:
            await _open(store, pool, packages)
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(store.run(), name="writer")
                released = await engine.recover()
                await vault.open()
                await shipping.install(engine, packages, settings)
                await builder.open()
                working = [
                    group.create_task(builder.run(), name="builder"),
                    group.create_task(fleet.work(), name="fleet"),
                    group.create_task(dispatcher.run(), name="dispatcher"),
                    group.create_task(timers.run(), name="timers"),
                    group.create_task(self._watchdog(store), name="watchdog"),
                ]
                serving = group.create_task(server.serve(), name="server")
                await server.started()
                # What the imports made lives as long as the daemon: a full collection that walks
                # it again and again stops everything for 30 ms.
                gc.freeze()
                vitals.phase = "ready"
                log.info("ready", extra={"socket": str(settings.socket), "released": released})
                systemd.ready(f"serving on {settings.socket}")
                await self._stopping.wait()
                jobs.detach()
                await self._drain(dispatcher, vitals)
                feed.close()
                builder.close()
                server.stop()
                await serving
                await _cancelled(working)
                await vault.close()
                await store.close()
                await writer
        finally:
            await pool.close()
            await containers.close()
            await store.close()
            server.unbind()

    async def _drain(self, dispatcher: Dispatcher, vitals: Vitals) -> None:
        """Take no more work, let running steps end, hand the rest back."""
        grace_s = self._settings.shutdown.graceMs / 1000
        log.info("draining", extra={"running": dispatcher.running, "grace_s": grace_s})
        vitals.phase = "draining"
        systemd.stopping()
        await dispatcher.drain(grace_s)

    async def _watchdog(self, store: Store) -> None:
        """Tell systemd that the engine's own loop and writer are alive, not just this process."""
        interval_s = systemd.watchdog_interval_s()
        if interval_s is None:
            return
        while True:
            try:
                await store.write(lambda tx: None)
                systemd.watchdog()
            except Unavailable as exc:
                log.warning("the writer refuses: %s", exc)
            await asyncio.sleep(interval_s)

    def reload(self, loaded: Loaded) -> None:
        """Take over what can change while running: the log."""
        logs.configure(loaded.settings.log.format, loaded.settings.log.level)
        before = self._settings.model_dump(exclude={"log"})
        if loaded.settings.model_dump(exclude={"log"}) != before:
            log.warning("some changed settings need a restart; only the log's were taken over")
        log.info("reloaded")


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _open(store: Store, pool: HostedPool, packages: Packages) -> None:
    async with asyncio.TaskGroup() as opening:
        opening.create_task(store.open())
        opening.create_task(_start(pool))
    packages.open()
    # Refused or interrupted publishes leave packages that no version names.
    packages.remove_unused(await store.read(catalog.digests))


async def _start(pool: HostedPool) -> None:
    """A host that cannot run the sandbox still serves: each step is refused with the reason."""
    try:
        await pool.start()
    except OSError as exc:
        log.error("the sandbox cannot start: %s", exc)


def _vault(settings: Settings, store: Store) -> Vault:
    """Who keeps secrets; a key in the environment is out of it before anything is started."""
    if settings.vault.provider == "hashicorp":
        from flowmonkeyd.vault.hashicorp import Hashicorp

        return Hashicorp(settings.vault.hashicorp)
    return Local(store, keyring(settings.vault.keyFile, settings.dataDir, os.environ))


def _engine(store: Store, settings: Settings) -> Engine:
    limits, jobs = _execution_limits(settings), settings.jobs
    rules = JobRules(jobs.backoffMs, jobs.maxBackoffMs, jobs.checkpointDays * DAY_MS)
    return Engine(store, RandomIds(), limits, quotas=_quotas(settings.quotas), job_rules=rules)


def _containers(settings: Settings) -> Containers:
    root, section = settings.dataDir / "containers", settings.containers
    install = installation(root)
    return Containers(section, root, run_folder(section.runDir, install), install)


def _builder(
    settings: Settings,
    store: Store,
    packages: Packages,
    clock: Clock,
    containers: Containers,
    ready: Callable[[], Awaitable[None]],
) -> Builder:
    section = settings.containers
    return Builder(
        *(store, packages, containers.places.storage),
        [Path(one) for one in section.imageStores],
        section.imageCacheBytes,
        section.imagePins,
        clock=clock,
        driver_problem=lambda: containers.problem,
        driver_ready=ready,
    )


def _telling(*parts: _Told) -> Callable[[Committed], None]:
    """Tells each part, in this order, what was committed."""

    def committed(hints: Committed) -> None:
        for part in parts:
            part.committed(hints)

    return committed


def _execution_limits(settings: Settings) -> Limits:
    limits = settings.limits
    return Limits(
        steps_max=limits.stepsMax,
        context_bytes_max=limits.contextBytesMax,
        value_bytes_max=limits.valueBytesMax,
        keys_max=limits.keysMax,
        depth_max=limits.depthMax,
    )


def _quotas(section: QuotaSection) -> Quotas:
    return Quotas(_quota(section), {name: _quota(one) for name, one in section.tenants.items()})


def _quota(section: TenantQuota) -> Quota:
    spend = section.spendPerMonth
    return Quota(section.executionsPerDay or None, nanos(spend) if spend else None)


def _pool_settings(settings: Settings) -> PoolSettings:
    sandbox = settings.sandbox
    return PoolSettings(
        slots=sandbox.slots or SLOTS_PER_CPU * (os.cpu_count() or 1),
        spares=sandbox.spares,
        spares_node=sandbox.nodeSpares,
        idle_ms=sandbox.idleMs,
        ports=sandbox.network.ports,
        python=sandbox.python or None,
        node=sandbox.node or None,
        required_layers=frozenset(sandbox.require),
    )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """The data directory: made, ours, closed to others, and used by one daemon only.

    Raises Unavailable with what is wrong.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = directory.stat().st_uid
        if owner != os.geteuid():
            raise Unavailable(
                f"cannot use the data directory {directory}: it belongs to uid {owner} and this "
                f"daemon runs as uid {os.geteuid()}"
            )
        directory.chmod(0o700)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        why = "it is not a directory" if isinstance(exc, FileExistsError) else exc.strerror
        message = f"cannot use the data directory {directory}: {why}"
        raise Unavailable(message) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
            raise Unavailable(
                f"cannot use the data directory {directory}: another flowmonkeyd"
                f"{f' (pid {pid})' if pid else ''} has it"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", help="Configuration file (TOML).", metavar="FILE")
@click.option("--data-dir", help="Where everything durable is kept.", metavar="DIR")
@click.option("--socket", help="The Unix socket to serve on.", metavar="PATH")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any setting by its key.")
@click.option("--print-config", "show", is_flag=True, help="Show the effective configuration.")
@click.version_option(__version__, message="flowmonkeyd %(version)s")
def main(
    config: str | None,
    data_dir: str | None,
    socket: str | None,
    sets: tuple[str, ...],
    show: bool,
) -> None:
    """Run durable flows whose steps are untrusted handlers in a sandbox. Serves in the foreground.

    Example: flowmonkeyd --data-dir ./data --socket ./fm.sock
    """
    given = {"config": config, "dataDir": data_dir, "socket": socket}
    flags = {key: value for key, value in given.items() if value is not None}
    for assignment in sets:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"--set needs KEY=VALUE, not {assignment!r}")
        flags[key] = value
    loaded = _load_or_exit(flags)
    if show:
        click.echo(print_config(loaded))
        return
    logs.configure(loaded.settings.log.format, loaded.settings.log.level)
    # Each connection of a handler takes two descriptors here, each process five.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # what it says, we say ourselves
    try:
        uvloop.run(_run(Daemon(loaded), flags))
    except FlowMonkeyError as exc:
        click.echo(f"flowmonkeyd: {exc.message}", err=True)
        sys.exit(EXIT_FAILED)


async def _run(daemon: Daemon, flags: Mapping[str, str]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)

    def reload() -> None:
        systemd.reloading()
        try:
            daemon.reload(load(flags, os.environ, os.geteuid() == 0, Path.home()))
        except ConfigError as exc:
            log.error("cannot reload: %s", exc)
        systemd.ready("reloaded")

    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        await daemon.run()
    except asyncio.CancelledError:
        log.warning("stopped at once; running steps go on at the next start")
    except ExceptionGroup as group:
        if group.split(FlowMonkeyError)[1] is not None:
            raise
        first: Exception = group
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def _load_or_exit(flags: Mapping[str, str]) -> Loaded:
    try:
        return load(flags, os.environ, os.geteuid() == 0, Path.home())
    except ConfigError as exc:
        for line in exc.lines:
            click.echo(f"flowmonkeyd: {line}", err=True)
        sys.exit(EXIT_CONFIG)
