"""A local vault on a folder: its database, its key, and the writer that runs meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path

from flowmonkeyd.clock import SystemClock
from flowmonkeyd.store import Store, ledger
from flowmonkeyd.vault.keys import keyring
from flowmonkeyd.vault.local import Local

__all__ = ["opened"]


@asynccontextmanager
async def opened(
    folder: Path, environ: MutableMapping[str, str] | None = None
) -> AsyncIterator[Local]:
    """As the daemon opens it."""
    store = Store(folder / "fm.db", SystemClock())
    vault = Local(store, keyring("", folder, {} if environ is None else environ))
    vault.store = store  # type: ignore[attr-defined]
    await store.open()
    async with asyncio.TaskGroup() as group:
        group.create_task(store.run())
        try:
            await store.write(ledger.sync_types)
            await vault.open()
            yield vault
        finally:
            await vault.close()
            await store.close()
