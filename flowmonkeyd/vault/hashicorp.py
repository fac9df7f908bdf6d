"""The vault on a HashiCorp Vault or OpenBao server: a KV v2 engine, read and never written.

The one door to `hvac`. What was read is used for `cacheMs`, kept sealed under a key that this
process made and nobody else has; after that the server is asked anew, and when it does not answer
the attempt fails and may be retried: no old value is used. Who the daemon is comes from a private
file, read anew when the server refuses. Errors say what failed, never what was sent or answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmonkeyd.errors import Conflict, Invalid, Unavailable
from flowmonkeyd.settings import HashicorpSection
from flowmonkeyd.vault.elsewhere import path_of
from flowmonkeyd.vault.keys import read_private
from flowmonkeyd.vault.provider import NAME, Kept, Value, value_of
from flowmonkeyd.vault.sealed import Key, Sealed

__all__ = ["Hashicorp"]

log = logging.getLogger(__name__)

# Each asks from a thread of its own, with a connection of its own.
CONNECTIONS_MAX = 4
KNOWN_MAX = 1024
UNAVAILABLE = "SECRET_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class _Known:
    sealed: Sealed
    is_binary: bool
    until_s: float


class Hashicorp:
    """`vault.provider = "hashicorp"`."""

    provider = "hashicorp"

    def __init__(self, settings: HashicorpSection) -> None:
        self._settings = settings
        self._key = Key.new()
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._idle: list[Any] = []  # hvac.Client
        self._turns = asyncio.Semaphore(CONNECTIONS_MAX)

    async def open(self) -> None:
        """Whether it could work; the server is asked when a secret is needed."""
        said = self._settings
        by_role = bool(said.roleId and said.secretIdFile)
        if not said.address or by_role == bool(said.tokenFile):
            raise Unavailable(
                "cannot use vault.provider hashicorp: set vault.hashicorp.address, and either "
                "tokenFile or both roleId and secretIdFile"
            )
        self._credential()
        try:
            import hvac  # noqa: F401
        except ImportError:
            raise Unavailable(
                "cannot use vault.provider hashicorp: hvac is not installed; run "
                "`pip install 'flowmonkey[hashicorp]'`"
            ) from None

    async def close(self) -> None:
        self._known.clear()
        while self._idle:
            self._idle.pop().adapter.close()

    async def read(self, tenant: str, names: Sequence[str]) -> Mapping[str, Value]:
        """Those of the names that exist. Raises Unavailable when the server cannot say."""
        now_s = time.monotonic()
        values: dict[str, Value] = {}
        missing = []
        for name in names:
            known = self._known.get((tenant, name))
            if known is not None and known.until_s > now_s:
                plain = self._key.unseal(known.sealed, (tenant, name)).decode()
                values[name] = Value(plain, known.is_binary)
            elif NAME.fullmatch(name) and path_of(self._settings.path, tenant, name) is not None:
                missing.append(name)
        if missing:
            async with self._turns:
                found = await asyncio.to_thread(self._fetch, tenant, missing)
            for name, value in found.items():
                self._remember((tenant, name), value, now_s)
            values |= found
        return values

    async def put(self, tenant: str, name: str, value: Value, by: str) -> tuple[Kept, bool]:
        raise self._not_ours()

    async def remove(self, tenant: str, name: str, by: str) -> None:
        raise self._not_ours()

    async def listed(self, tenant: str | None, start: int, limit: int) -> list[Kept]:
        raise self._not_ours()

    async def rotate(self, by: str) -> tuple[str, int]:
        raise self._not_ours()

    def _not_ours(self) -> Conflict:
        where = f"{self._settings.address}, {self._settings.mount}/{self._settings.path}"
        return Conflict(f"cannot manage secrets here: they are kept at {where}; do it there")

    def _remember(self, place: tuple[str, str], value: Value, now_s: float) -> None:
        if self._settings.cacheMs:
            sealed = self._key.seal(value.text.encode(), place)
            until_s = now_s + self._settings.cacheMs / 1000
            self._known[place] = _Known(sealed, value.is_binary, until_s)
            self._known.move_to_end(place)
            while len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)

    # --- in a thread -----------------------------------------------------------------------------

    def _fetch(self, tenant: str, names: Sequence[str]) -> dict[str, Value]:
        from hvac.exceptions import Forbidden, Unauthorized, VaultError

        try:
            client = self._idle.pop()
        except IndexError:
            client = self._client()
        try:
            try:
                found = self._values(client, tenant, names)
            except (Forbidden, Unauthorized):  # the token has ended; there may be another by now
                self._log_in(client)
                found = self._values(client, tenant, names)
        # OSError: all that requests raises
        except (VaultError, OSError) as exc:
            failed = self._failed(exc)
        except BaseException:
            client.adapter.close()
            raise
        else:
            self._idle.append(client)
            return found
        client.adapter.close()
        # Out here, so that what led to it, with the connection and what came over it, is let go.
        raise failed

    def _values(self, client: Any, tenant: str, names: Sequence[str]) -> dict[str, Value]:
        from hvac.exceptions import InvalidPath

        if not client.token:
            self._log_in(client)
        values = {}
        for name in names:
            path = path_of(self._settings.path, tenant, name)
            try:
                answer = client.secrets.kv.v2.read_secret_version(
                    path=path, mount_point=self._settings.mount, raise_on_deleted_version=True
                )
            except InvalidPath:
                continue  # there is none, or its newest version was deleted
            values[name] = self._value(name, answer)
        return values

    def _value(self, name: str, answer: Any) -> Value:
        fields = answer.get("data", {}).get("data") if isinstance(answer, dict) else None
        for field, is_binary in (("value", False), ("base64", True)):
            text = fields.get(field) if isinstance(fields, dict) else None
            if isinstance(text, str):
                try:
                    return value_of(name, text, is_binary)
                except Invalid as exc:
                    why = exc.problems[0].message
                    message = f"cannot use the secret {name!r}: {why}"
                    raise Unavailable(message, code=UNAVAILABLE) from None
        raise Unavailable(
            f"cannot use the secret {name!r}: it has no text in its field `value` or `base64`",
            code=UNAVAILABLE,
        )

    def _client(self) -> Any:
        import hvac

        said = self._settings
        client = hvac.Client(
            url=said.address,
            token="",  # not one that the environment or the home directory has
            verify=said.caFile or True,
            timeout=said.timeoutMs / 1000,
            namespace=said.namespace or None,
            allow_redirects=False,
        )
        # Proxies, certificates and passwords of the environment are not asked for secrets.
        client.session.trust_env = False
        return client

    def _log_in(self, client: Any) -> None:
        credential = self._credential()
        if self._settings.roleId:
            client.token = ""
            client.auth.approle.login(
                self._settings.roleId, credential, mount_point=self._settings.roleMount
            )
        else:
            client.token = credential

    def _credential(self) -> str:
        path = Path(self._settings.tokenFile or self._settings.secretIdFile)
        return read_private(path).strip()

    def _failed(self, exc: Exception) -> Unavailable:
        """By its kind: the words of an answer may be about anything."""
        kind = type(exc).__name__
        log.warning("the vault cannot be read", extra={"kind": kind})
        why = f"{self._settings.address} answered with {kind}"
        if isinstance(exc, OSError):
            why = f"{self._settings.address} cannot be reached ({kind})"
        return Unavailable(f"cannot read secrets: {why}", code=UNAVAILABLE)
