"""The verbs on handlers and on whose they are: publish, yank, deprecate, trust, revoke, hand over.

What a package is and whether its signature is right was found out before (`packages`, `trust`);
here is only what must be true in the very transaction that changes something: a version never
changes, a namespace is one publisher's, a key that was revoked meanwhile publishes nothing.
"""

from __future__ import annotations

from flowmonkeyd import builtin
from flowmonkeyd.errors import Conflict, Invalid, NotFound
from flowmonkeyd.model import Signed
from flowmonkeyd.store import Store, Tx, catalog, images, ledger, publishers

__all__ = ["Publishing", "namespace_of"]


def namespace_of(handler_type: str) -> str:
    """`acme` of `acme/resize` and of `acme`; capital letters make no other namespace."""
    return handler_type.partition("/")[0].lower()


class Publishing:
    """A part of the engine, which has the store."""

    store: Store

    async def publish(
        self,
        handler_type: str,
        version: str,
        digest: str,
        manifest: str,
        size_bytes: int,
        by: str | None = None,
        signed: Signed | None = None,
        runtime: str | None = None,
    ) -> tuple[catalog.HandlerRow, bool]:
        """Add a handler version whose package is on disk: (row, whether it is new). With a
        `runtime` its image is built over that runtime's.

        The same content again is unchanged, but for a signature that it did not have. Raises
        Conflict when the version exists with other content or the namespace is another's, Invalid
        for a built-in type or a key that was revoked.
        """
        if handler_type in builtin.TYPES:
            raise Invalid(f"cannot publish {handler_type!r}: it is a built-in type")
        name = f"{handler_type}@{version}"

        def change(tx: Tx) -> tuple[catalog.HandlerRow, bool]:
            row = catalog.handler_row(tx, handler_type, version)
            if row is not None and row.digest != digest:
                raise Conflict(
                    f"cannot publish {name}: this version exists with other content; give the "
                    "package a new version"
                )
            if runtime is not None:
                images.want(tx, "handler", digest, runtime)
            if row is not None and (signed is None or row.key_id is not None):
                return row, False
            _own(tx, name, namespace_of(handler_type), signed)
            data = {"type": handler_type, "version": version, "digest": digest, "by": by}
            if signed is not None:
                data |= {"publisher": signed.publisher, "keyId": signed.key_id}
            if row is None:
                row = catalog.insert_handler(
                    tx, handler_type, version, digest, manifest, size_bytes
                )
                ledger.append_one(tx, "handler.published", data)
                created = True
            else:
                ledger.append_one(tx, "handler.signed", data)
                created = False
            if signed is not None:
                row = catalog.sign_handler(tx, row.key, signed)
            return row, created

        return await self.store.write(change)

    async def yank(
        self, handler_type: str, version: str, by: str | None = None
    ) -> catalog.HandlerRow:
        """New executions take it only where a flow names exactly this version; those that have it
        go on. Raises NotFound."""

        def change(tx: Tx) -> catalog.HandlerRow:
            row = _found(tx, handler_type, version)
            if row.yanked_at_ms is None:
                row = catalog.yank_handler(tx, row.key)
                data = {"type": handler_type, "version": version, "by": by}
                ledger.append_one(tx, "handler.yanked", data)
            return row

        return await self.store.write(change)

    async def deprecate(
        self, handler_type: str, version: str, message: str | None, by: str | None = None
    ) -> catalog.HandlerRow:
        """Who uses the version is told `message` from now on; None takes it back.

        Nothing else changes. Raises NotFound.
        """

        def change(tx: Tx) -> catalog.HandlerRow:
            row = _found(tx, handler_type, version)
            if row.deprecation != message:
                row = catalog.deprecate_handler(tx, row.key, message)
                data = {"type": handler_type, "version": version, "message": message, "by": by}
                ledger.append_one(tx, "handler.deprecated", data)
            return row

        return await self.store.write(change)

    async def trust_key(
        self, key_id: str, public: str, publisher: str, by: str | None = None
    ) -> bool:
        """Signatures of this key count as the publisher's: whether that is new.

        Raises Conflict when the key was revoked or is another publisher's.
        """

        def change(tx: Tx) -> bool:
            row = publishers.key_row(tx, key_id)
            if row is not None:
                if row.revoked_at_ms is not None:
                    why = "it was revoked, and a revoked key never comes back; get a new one"
                    raise Conflict(f"cannot trust the key {key_id}: {why}")
                if (row.public, row.publisher) != (public, publisher):
                    raise Conflict(
                        f"cannot trust the key {key_id} as {publisher!r}'s: it is trusted as "
                        f"{row.publisher!r}'s already"
                    )
                return False
            publishers.insert_key(tx, key_id, public, publisher)
            data = {"keyId": key_id, "publisher": publisher, "by": by}
            ledger.append_one(tx, "key.trusted", data)
            return True

        return await self.store.write(change)

    async def revoke_key(
        self,
        key_id: str,
        public: str,
        publisher: str,
        reason: str | None = None,
        by: str | None = None,
    ) -> None:
        """Nothing more is published with this key; what was stays. A second time is no change."""

        def change(tx: Tx) -> None:
            row = publishers.key_row(tx, key_id)
            if row is None or row.revoked_at_ms is None:
                publishers.revoke_key(tx, key_id, public, publisher, reason)
                data = {"keyId": key_id, "publisher": publisher, "reason": reason, "by": by}
                ledger.append_one(tx, "key.revoked", data)

        await self.store.write(change)

    async def give_namespace(
        self, name: str, publisher: str | None, by: str | None = None
    ) -> str | None:
        """The namespace is the publisher's from now on, or with None nobody's; whose it was."""

        def change(tx: Tx) -> str | None:
            before = publishers.owner(tx, name)
            if before != publisher:
                if publisher is None:
                    publishers.release(tx, name)
                else:
                    publishers.bind(tx, name, publisher)
                data = {"namespace": name, "publisher": publisher, "before": before, "by": by}
                ledger.append_one(tx, "namespace.given", data)
            return before

        return await self.store.write(change)


def _found(tx: Tx, handler_type: str, version: str) -> catalog.HandlerRow:
    row = catalog.handler_row(tx, handler_type, version)
    if row is None:
        message = f"no handler {handler_type}@{version}; see `flowctl handler list`"
        raise NotFound(message, code="HANDLER_NOT_FOUND")
    return row


def _own(tx: Tx, name: str, namespace: str, signed: Signed | None) -> None:
    """The namespace is the signer's, or becomes it now. Unsigned packages bind nothing."""
    if signed is not None:
        key = publishers.key_row(tx, signed.key_id)
        if key is not None and key.revoked_at_ms is not None:
            message = f"cannot publish {name}: its key {signed.key_id} has just been revoked"
            raise Invalid(message, code="PUBLISHER_NOT_TRUSTED")
    owner = publishers.owner(tx, namespace)
    publisher = None if signed is None else signed.publisher
    if owner is not None and owner != publisher:
        found = "is not signed" if publisher is None else f"is signed by {publisher!r}"
        message = (
            f"cannot publish {name}: {namespace!r} belongs to the publisher {owner!r} and the "
            f"package {found}; sign it with {owner!r}'s key, choose another namespace, or hand "
            f"this one over with `flowctl key give {namespace} PUBLISHER`"
        )
        raise Conflict(message, code="NAMESPACE_TAKEN")
    if owner is None and publisher is not None:
        publishers.bind(tx, namespace, publisher)
