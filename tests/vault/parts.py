"""A local vault on a folder with the writer that runs meanwhile, and a server elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hvac

from flowmonkeyd.clock import SystemClock
from flowmonkeyd.settings import HashicorpSection
from flowmonkeyd.store import Store, ledger
from flowmonkeyd.vault.keys import keyring
from flowmonkeyd.vault.local import Local

__all__ = ["Bao", "opened", "private"]


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


class Bao:
    """An OpenBao server for tests, and what its administrator does."""

    def __init__(self, address: str, ca: Path) -> None:
        self.address = address
        self.ca = ca

    def client(self, **more: Any) -> Any:
        """As root. Close it."""
        return hvac.Client(url=self.address, token="root", verify=str(self.ca), **more)

    def put(self, tenant: str, name: str, **fields: object) -> None:
        client = self.client()
        path = f"flowmonkey/{tenant}/{name}"
        client.secrets.kv.v2.create_or_update_secret(path, fields)
        client.adapter.close()

    def settings(self, folder: Path, **more: Any) -> HashicorpSection:
        """The daemon's: by a token of root's, unless told."""
        if "roleId" not in more and "tokenFile" not in more:
            more["tokenFile"] = str(private(folder / "token", "root\n"))
        return HashicorpSection(address=self.address, caFile=str(self.ca), **more)


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path
