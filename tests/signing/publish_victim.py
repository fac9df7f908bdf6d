"""The process that dies while it publishes: kills itself before the n-th call of C code.

Started once, it imports everything and forks a child for each line `N FOLDER` on stdin, so that a
death costs milliseconds; it answers with how the child ended. The parts are the daemon's own:
`Packages.receive` with its judge, then `Engine.publish` on a real store. A profile function counts
calls of C functions (every system call is in one) in `packages` and in the store.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from flowmonkeyd.clock import RandomIds, SystemClock
from flowmonkeyd.engine import Engine
from flowmonkeyd.model import Signed
from flowmonkeyd.packages import Packages
from flowmonkeyd.store import Store
from tests.signing.parts import ACME, built, package

__all__ = ["PACKAGE", "publish"]

SIGNED = Signed("acme", ACME.public.id, '{"signature": "as verified"}')
# Node's: a Python file would be compiled by a program that takes its time, a hundred times.
PACKAGE = package(built(code=b"exports.handle = (input) => input\n", runtime="node"), ACME)
_WATCHED = tuple(
    f"/flowmonkeyd/{name}.py"
    for name in ("packages", "publishing", "store/store", "store/catalog", "store/publishers")
)


async def publish(folder: Path, data: bytes = PACKAGE) -> None:
    """What the API does with a package: keep it, then name it in the catalogue."""
    store = Store(folder / "fm.db", SystemClock())
    packages = Packages(folder / "packages")
    await store.open()
    packages.open()
    async with asyncio.TaskGroup() as group:
        group.create_task(store.run())
        try:
            engine = Engine(store, RandomIds())
            await engine.recover()
            received = packages.receive(data, lambda *_: SIGNED)
            manifest = received.manifest
            await engine.publish(
                manifest.type,
                manifest.version,
                received.digest,
                received.manifest_json,
                received.size_bytes,
                None,
                received.signed,
            )
        finally:
            await store.close()


def _die_at(number: int) -> None:
    left = [number]

    def count(frame: Any, event: str, _arg: Any) -> None:
        if event == "c_call" and frame.f_code.co_filename.endswith(_WATCHED):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(count)
    sys.setprofile(count)


def _main() -> None:
    for line in sys.stdin:
        number, folder = line.split(maxsplit=1)
        child = os.fork()
        if not child:
            _die_at(int(number))
            asyncio.run(publish(Path(folder.strip())))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _main()
