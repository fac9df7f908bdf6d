"""The process that dies while it keeps secrets and rotates: before the n-th call of C code.

As tests/signing/publish_victim.py: one fork for each line `N FOLDER`. Every system call of the key
file and of the database is a call of C code in one of the watched files.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from flowmonkeyd.vault import Value
from tests.vault.parts import opened

__all__ = ["VALUES", "rotate"]

VALUES = {f"key{number}": f"v4lue of {number}" for number in range(3)}
_WATCHED = tuple(
    f"/flowmonkeyd/{name}.py"
    for name in ("vault/keys", "vault/local", "store/store", "store/vault")
)


async def rotate(folder: Path) -> None:
    """The first secrets, a new key, another secret."""
    async with opened(folder) as vault:
        *first, last = VALUES.items()
        for name, text in first:
            await vault.put("default", name, Value(text), "me")
        await vault.rotate("me")
        await vault.put("default", last[0], Value(last[1]), "me")


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
            asyncio.run(rotate(Path(folder.strip())))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _main()
