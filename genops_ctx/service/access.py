"""Who is calling: from the key that comes with a request to the client that it belongs to."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from .keys import ClientKey, KeyStore, Role, is_secret_of, is_valid, key_id_of

__all__ = ["Access", "secret_of"]

REMEMBERED_SECONDS = 5.0
"""How long a key is used without asking the store again: a revoked one may go on for as long."""
REMEMBERED = 10_000
STRANGERS = 50
"""Ids in a second that the store is asked for one by one. Of more, made up to try it, none is."""


class Access:
    """Knows the keys of a :class:`KeyStore`; many requests of one client ask the store once."""

    def __init__(self, store: KeyStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, ClientKey | None]] = OrderedDict()
        self._second, self._asked = 0.0, 0
        self._all: tuple[float, asyncio.Task[dict[str, ClientKey]]] | None = None

    async def client_of(self, secret: str | None) -> ClientKey | None:
        """The client that a secret belongs to; None for none that is good, and for one that may call nothing.

        Raises :class:`~genops_ctx.core.errors.StoreError` where the store does not answer.
        """
        key = await self.key_of(secret)
        return None if key is None or key.role is Role.MONITOR else key

    async def key_of(self, secret: str | None) -> ClientKey | None:
        """As :meth:`client_of`, whatever its role."""
        key = await self._find(secret)
        return key if secret and is_valid(key, secret, self._clock()) else None

    async def origins_of(self, secret: str) -> tuple[str, ...] | None:
        """Whose pages may read answers to a key, also that it is over; None for no key of ours.

        Raises :class:`~genops_ctx.core.errors.StoreError` where the store does not answer.
        """
        key = await self._find(secret)
        return key.origins if key and is_secret_of(key, secret, self._clock()) else None

    async def _find(self, secret: str | None) -> ClientKey | None:
        """The key whose id a secret begins with, unchecked."""
        key_id = key_id_of(secret) if secret else None
        if key_id is None:
            return None
        at, key = self._known.get(key_id, (0.0, None))
        now = time.monotonic()
        if not at or now - at > REMEMBERED_SECONDS:
            if key is None and self._is_crowded(now):
                key = (await self._every(now)).get(key_id)
                if key is None:
                    return None
            else:
                key = await asyncio.to_thread(self._store.find, key_id)
            self._known[key_id] = (now, key)
            self._known.move_to_end(key_id)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return key

    def _is_crowded(self, now: float) -> bool:
        if now - self._second >= 1.0:
            self._second, self._asked = now, 0
        self._asked += 1
        return self._asked > STRANGERS

    async def _every(self, now: float) -> dict[str, ClientKey]:
        """All keys, as of a second ago at most: one look for however many strangers."""
        if self._all is None or now - self._all[0] >= 1.0:
            self._all = (now, asyncio.create_task(asyncio.to_thread(self._look_at_all)))
        return await asyncio.shield(self._all[1])

    def _look_at_all(self) -> dict[str, ClientKey]:
        every = self._store.keys()
        return {key.id: key for key in every}

    def forget(self) -> None:
        """Ask the store anew; after a key was changed here."""
        self._known.clear()
        self._all = None


def secret_of(headers: Mapping[str, str], path_key: str = "") -> str | None:
    """The key of a request: a bearer token, ``X-API-Key``, or the one in the path that a widget uses."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key", "").strip() or path_key or None
