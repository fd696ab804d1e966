"""The Redis store for code that awaits: the same scripts, the same session, no thread."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ..core.accounts import Account, Control, Grant, Refusal, Reserve, WrongWindow
from ..core.ports import Held, Lost
from . import redis_words as words
from .redis import RedisStore
from .redis_session import Request

__all__ = ["AsyncRedisStore"]

T = TypeVar("T")


class AsyncRedisStore:
    """What :class:`~genops_ctx.stores.redis.RedisStore` does, by coroutines, within one event loop.

    It shares the session of ``store`` (generation, counter, clock), and has connections of its own.
    """

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._client: Any = None

    def __repr__(self) -> str:
        return f"Async{self._store!r}"

    async def reserve(self, wish: Reserve, now: float) -> Held | Refusal | WrongWindow:
        return await self._ask(words.reserve(wish, now))

    async def settle(
        self, hold: str, actual: int, accounts: tuple[str, ...], now: float, completed: bool
    ) -> None:
        await self._ask(words.settle(hold, actual, accounts, now, completed))

    async def release(self, hold: str, now: float, token: str = "") -> bool:
        return await self._ask(words.release(hold, now, token))

    async def extend(self, hold: str, expires_at: float, now: float) -> None:
        await self._ask(words.extend(hold, expires_at, now))

    async def reap(self, now: float) -> Sequence[Lost]:
        while True:
            losses = await self._ask(words.reap(now))
            if losses is not None:
                return losses

    async def acknowledge(self, holds: Sequence[str]) -> None:
        if holds:
            await self._ask(words.acknowledge(holds))

    async def accounts(self, keys: Sequence[str] | None = None) -> Mapping[str, Account]:
        return await self._ask(words.accounts(keys))

    async def adjust(self, key: str, spent: int) -> None:
        await self._ask(words.adjust(key, spent))

    async def control(self, key: str) -> Control:
        return await self._ask(words.control(key))

    async def set_control(
        self, key: str, *, frozen: bool | None = None, grant: Grant | None = None
    ) -> Control:
        return await self._ask(words.set_control(key, frozen, grant))

    async def mark(self, key: str, now: float, until: float) -> bool:
        return await self._ask(words.mark(key, now, until))

    async def close(self) -> None:
        """Close its own connections; the store that it was made from stays open."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _ask(self, transition: words.Transition[T]) -> T:
        line = self._store.line
        line.check()
        name, now, arguments, read = transition
        begun = time.monotonic()
        try:
            if self._client is None:
                self._client = self._store.connect(asynchronous=True)
            question = self._store.session.ask(name, now, *arguments)
            request = next(question)
            while True:
                request = question.send(await self._run(request))
        except StopIteration as end:
            answer = end.value
        except Exception as error:
            raise line.failed(error, begun) from None
        line.answered()
        return read(answer)

    async def _run(self, request: Request) -> list[Any]:
        from redis.exceptions import NoScriptError

        (text, sha), arguments = request
        keys = self._store.keys
        try:
            reply = await self._client.execute_command("EVALSHA", sha, len(keys), *keys, *arguments)
        except NoScriptError:
            reply = await self._client.execute_command("EVAL", text, len(keys), *keys, *arguments)
        return list(reply)
