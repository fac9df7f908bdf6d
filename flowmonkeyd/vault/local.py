"""The vault in the daemon's own database: every value sealed, under a key that is not in it.

A value is sealed inside the transaction that keeps it, with the key that is current then, so that
a rotation and a write cannot miss each other. What was read stays in memory as it is in the
table, sealed. A rotation puts the new key before the old one on disk, seals everything anew in one
transaction and forgets the old key after that: whenever it dies, what is on disk opens, and the
next start finishes it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flowmonkeyd.errors import Conflict, NotFound, Unavailable
from flowmonkeyd.store import Store, Tx, ledger, vault
from flowmonkeyd.store.vault import SecretRow
from flowmonkeyd.vault.keys import Keyring
from flowmonkeyd.vault.provider import Kept, Value
from flowmonkeyd.vault.sealed import Key, Sealed, Unsealable

__all__ = ["Local"]

log = logging.getLogger(__name__)

# Sealed values in memory: 64 MiB at the very most.
KNOWN_MAX = 1024
# All of them are sealed anew in one transaction, which holds the writer.
SECRETS_MAX = 10_000
UNAVAILABLE = "SECRET_UNAVAILABLE"


class Local:
    """`vault.provider = "local"`. Its writes are engine verbs: one transaction each."""

    provider = "local"

    def __init__(self, store: Store, ring: Keyring) -> None:
        self._store = store
        self._ring = ring
        self._known: OrderedDict[tuple[str, str], SecretRow] = OrderedDict()
        self._changes = 0  # so that what was read before a change is not remembered after it
        self._keys_change = asyncio.Lock()

    async def open(self) -> None:
        """Finish a rotation that was interrupted. What no key opens is said, and stays."""
        counts = await self._store.read(vault.key_ids)
        for key_id, count in counts.items():
            if self._ring.of(key_id) is None:
                log.error(
                    "secrets are sealed under a key that the vault does not have: bring it back, "
                    "or set them anew",
                    extra={"key": key_id, "secrets": count, "keys_from": self._ring.origin},
                )
        if any(self._ring.of(key_id) not in (None, self._ring.current) for key_id in counts):
            await self._reseal(None)
        await self._forget_keys()

    async def close(self) -> None:
        self._forget()

    async def read(self, tenant: str, names: Sequence[str]) -> Mapping[str, Value]:
        """Those of the names that exist. Raises Unavailable for one that cannot be opened."""
        rows = {name: row for name in names if (row := self._known.get((tenant, name)))}
        unknown = [name for name in names if name not in rows]
        if unknown:
            changes = self._changes
            found = await self._store.read(
                lambda conn: [vault.find(conn, tenant, name) for name in unknown]
            )
            read = {row.name: row for row in found if row is not None}
            rows |= read
            if changes == self._changes:
                self._known.update(((tenant, name), row) for name, row in read.items())
                while len(self._known) > KNOWN_MAX:
                    self._known.popitem(last=False)
        return {name: self._opened(row) for name, row in rows.items()}

    async def put(self, tenant: str, name: str, value: Value, by: str) -> tuple[Kept, bool]:
        """Keep a value; the first one of all makes the key. Raises Unavailable without a key."""
        await self._need_key()

        def change(tx: Tx) -> tuple[SecretRow, bool]:
            key = self._ring.current
            assert key is not None
            before = vault.find(tx, tenant, name)
            if before is None and vault.count(tx) >= SECRETS_MAX:
                raise Conflict(f"cannot keep another secret: there are {SECRETS_MAX} already")
            row = SecretRow(
                tenant,
                name,
                before.version + 1 if before else 1,
                value.is_binary,
                before.created_at_ms if before else tx.now_ms,
                tx.now_ms,
                *("", b"", b""),
            )
            row = _sealed(row, key, value.raw)
            vault.upsert(tx, row)
            ledger.append_one(tx, "secret.set", _data(tenant, name, by) | {"version": row.version})
            return row, before is None

        try:
            row, is_new = await self._store.write(change)
        finally:
            self._forget()  # also when the caller is cancelled: it may have been written
        return _kept(row), is_new

    async def remove(self, tenant: str, name: str, by: str) -> None:
        """Forget a value. Raises NotFound."""

        def change(tx: Tx) -> None:
            if not vault.delete(tx, tenant, name):
                raise NotFound(f"no secret {name!r} for tenant {tenant!r}")
            ledger.append_one(tx, "secret.removed", _data(tenant, name, by))

        try:
            await self._store.write(change)
        finally:
            self._forget()

    async def listed(self, tenant: str | None, start: int, limit: int) -> list[Kept]:
        """By tenant and name."""
        rows = await self._store.read(lambda conn: vault.page(conn, tenant, start, limit))
        return [_kept(row) for row in rows]

    async def rotate(self, by: str) -> tuple[str, int]:
        """A new key for everything: its id, and how many secrets are sealed under it now."""
        async with self._keys_change:
            key = Key.new()
            await asyncio.to_thread(self._ring.add, key)
            count = await self._reseal(by)
        await self._forget_keys()
        return key.id, count

    async def _reseal(self, by: str | None) -> int:
        def change(tx: Tx) -> int:
            key = self._ring.current
            assert key is not None
            rows = []
            for row in vault.sealed_otherwise(tx, key.id):
                try:
                    rows.append(_sealed(row, key, self._plain(row)))
                except Unavailable as exc:
                    log.error("a secret stays under its old key: %s", exc)
            vault.reseal(tx, rows)
            data = {"keyId": key.id, "secrets": len(rows), "by": by}
            ledger.append_one(tx, "secret.rotated", data)
            return len(rows)

        count = await self._store.write(change)
        self._forget()
        log.info("secrets are sealed under a new key", extra={"secrets": count})
        return count

    async def _forget_keys(self) -> None:
        """Keys that open nothing any more go, if their file is the daemon's to write."""
        async with self._keys_change:
            if len(self._ring.keys) < 2 or self._ring.path is None:
                return
            used = (await self._store.read(vault.key_ids)).keys()
            try:
                await asyncio.to_thread(self._ring.keep, used)
            except Unavailable as exc:
                log.warning("an old key of the vault stays in its file: %s", exc)

    async def _need_key(self) -> None:
        async with self._keys_change:
            if self._ring.current is not None:
                return
            if await self._store.read(vault.count):
                raise Unavailable(
                    f"cannot keep a secret: {self._ring.path}, with the key of those that are kept "
                    "already, is gone; bring it back, or remove them all",
                    code=UNAVAILABLE,
                )
            await asyncio.to_thread(self._ring.add, Key.new())
        log.warning(
            "made the vault's key: without it no secret can be read, so keep a copy, and not in "
            "the place where the backups are",
            extra={"file": str(self._ring.path)},
        )

    def _forget(self) -> None:
        self._changes += 1
        self._known.clear()

    def _opened(self, row: SecretRow) -> Value:
        plain = self._plain(row)
        text = base64.b64encode(plain).decode() if row.is_binary else plain.decode()
        return Value(text, row.is_binary)

    def _plain(self, row: SecretRow) -> bytes:
        key = self._ring.of(row.key_id)
        why = f"it is sealed under the key {row.key_id}, which {self._ring.origin} does not have"
        if key is not None:
            try:
                return key.unseal(Sealed(row.key_id, row.nonce, row.sealed), _about(row))
            except Unsealable:
                why = "its row in the database was changed by something else than this daemon"
        raise Unavailable(
            f"cannot open the secret {row.name!r} of tenant {row.tenant!r}: {why}; bring that "
            "back, or set it anew",
            code=UNAVAILABLE,
        )


def _sealed(row: SecretRow, key: Key, plain: bytes) -> SecretRow:
    sealed = key.seal(plain, _about(row))
    return replace(row, key_id=sealed.key_id, nonce=sealed.nonce, sealed=sealed.text)


def _about(row: SecretRow) -> tuple[str | int, ...]:
    return (row.tenant, row.name, row.version, int(row.is_binary))


def _kept(row: SecretRow) -> Kept:
    return Kept(
        row.tenant, row.name, row.version, row.is_binary, row.created_at_ms, row.updated_at_ms
    )


def _data(tenant: str, name: str, by: str) -> dict[str, Any]:
    return {"name": name, "tenantId": tenant, "by": by}
