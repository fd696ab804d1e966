"""``aiohttp``: predictions that any session sends.

The hook is on ``ClientSession._request``, which every request comes through, redirects below it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import wrapt
from aiohttp.streams import AsyncStreamIterator, ChunkTupleAsyncStreamIterator

from ..sending import is_being_sent
from .addresses import Match
from .answer_meter import AnswerMeter
from .governor import Governor, Opened
from .outcomes import failure_of
from .registry import addresses
from .request_bodies import FormFields, read_body
from .rewriting import other_flow
from .tracing import headers_to_add, is_anybody_told

__all__ = ["request"]

CLIENT = "aiohttp"


async def request(wrapped: Callable[..., Any], session: Any, args: Any, kwargs: Any) -> Any:
    """Around ``ClientSession._request``."""
    match, url = _matched(session, args, kwargs)
    if match is None:
        return await wrapped(*args, **kwargs)
    opened = await match.governs.open_async(match.flow, _fields(session, kwargs))
    meter = opened.meter
    args, kwargs = _to_send(match.flow, url, opened, args, kwargs)
    if is_anybody_told():
        kwargs = _telling(session, kwargs)
    try:
        with opened.sending(CLIENT):
            response = await wrapped(*args, **kwargs)
        meter.answered(response.status, response.headers)
        _tap(response, meter)
    except GeneratorExit:
        raise  # thrown away, perhaps by the garbage collector: the meter's finalizer sees to it
    except BaseException as error:
        meter.fail(failure_of(error), error)
        raise
    return response


def _matched(session: Any, args: Any, kwargs: Any) -> tuple[Match[Governor] | None, str]:
    method = args[0] if args else kwargs.get("method")
    url = args[1] if len(args) > 1 else kwargs.get("str_or_url")
    if not isinstance(method, str) or method.upper() != "POST":
        return None, ""
    try:
        address = str(session._build_url(url))
    except Exception:
        return None, ""  # aiohttp says what is wrong with it
    match = addresses.match(address)
    if match is not None and is_being_sent(CLIENT, match.flow):
        match = None
    return match, address


def _fields(session: Any, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    if kwargs.get("json") is not None:
        value = kwargs["json"]
        return value if isinstance(value, dict) else {}
    data = kwargs.get("data")
    if isinstance(data, dict):
        plain = all(isinstance(value, str | int | float) for value in data.values())
        return FormFields((name, str(value)) for name, value in data.items()) if plain else None
    headers = {str(name).lower(): str(value) for name, value in dict(kwargs.get("headers") or {}).items()}
    kind = headers.get("content-type") or session.headers.get("Content-Type") or "application/json"
    return read_body(data, kind)


def _to_send(
    flow: str, url: str, opened: Opened, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if opened.body is not None:
        headers = {
            name: value
            for name, value in dict(kwargs.get("headers") or {}).items()
            if str(name).lower() not in ("content-type", "content-length")
        }
        headers["Content-Type"] = "application/json"
        kwargs = {**kwargs, "json": None, "data": opened.body, "headers": headers}
    if opened.flow != flow:
        changed = other_flow(url, opened.flow)
        if len(args) > 1:
            args = (args[0], changed, *args[2:])
        else:
            kwargs = {**kwargs, "str_or_url": changed}
    return args, kwargs


def _telling(session: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """With a middleware for W3C headers, the innermost; before aiohttp 3.12 there are none."""
    if not hasattr(session, "_middlewares"):
        return kwargs
    given = kwargs.get("middlewares")
    return {**kwargs, "middlewares": (*(session._middlewares if given is None else given), _tell)}


async def _tell(request: Any, send: Callable[[Any], Awaitable[Any]]) -> Any:
    """Add W3C headers to one hop of a prediction; the next one is made of the user's headers again."""
    url = str(request.url)
    if request.method == "POST" and addresses.match(url) is not None:
        request.headers.update(headers_to_add(url, request.headers))
    return await send(request)


def _tap(response: Any, meter: AnswerMeter) -> None:
    """Have the body pass the meter; one that a middleware has read already is told as it is."""
    if response._body is not None:
        meter.feed(response._body)
        meter.end()
        return
    response.content = _Tapped(response.content, response, meter)


class _Tapped(wrapt.ObjectProxy):  # type: ignore[type-arg]
    """An answer's ``content``; what is read passes the meter."""

    def __init__(self, content: Any, response: Any, meter: AnswerMeter) -> None:
        super().__init__(content)
        self._self_meter = meter
        # aiohttp decodes unless told otherwise
        self._self_feed = meter.feed

    async def _self_read(self, read: Callable[[], Awaitable[bytes]], whole: bool = False) -> bytes:
        try:
            data = await read()
        except GeneratorExit:
            raise
        except BaseException as error:
            self._self_meter.fail(failure_of(error), error)
            raise
        self._self_passed(data, whole)
        if self._self_meter.done:
            await self._self_meter.attempt.booked()
        return data

    def _self_passed(self, data: bytes, whole: bool = False) -> None:
        self._self_feed(data)
        if whole or self.__wrapped__.at_eof():
            self._self_meter.end()

    async def read(self, n: int = -1) -> bytes:
        if n == 0:
            return b""
        return await self._self_read(lambda: self.__wrapped__.read(n), whole=n < 0)

    async def readany(self) -> bytes:
        return await self._self_read(self.__wrapped__.readany)

    async def readexactly(self, n: int) -> bytes:
        return await self._self_read(lambda: self.__wrapped__.readexactly(n))

    async def readline(self, **kwargs: Any) -> bytes:
        return await self._self_read(lambda: self.__wrapped__.readline(**kwargs))

    async def readuntil(self, *args: Any, **kwargs: Any) -> bytes:
        return await self._self_read(lambda: self.__wrapped__.readuntil(*args, **kwargs))

    async def readchunk(self) -> tuple[bytes, bool]:
        ended = False

        async def read() -> bytes:
            nonlocal ended
            data: bytes
            data, ended = await self.__wrapped__.readchunk()
            return data

        return await self._self_read(read), ended

    def set_exception(self, *args: Any, **kwargs: Any) -> None:
        """The answer is closed or released: there is no more to be read."""
        self.__wrapped__.set_exception(*args, **kwargs)
        self._self_meter.close()

    def read_nowait(self, n: int = -1) -> bytes:
        data: bytes = self.__wrapped__.read_nowait(n)
        self._self_passed(data)
        return data

    def __aiter__(self) -> AsyncStreamIterator[bytes]:
        return AsyncStreamIterator(self.readline)

    def iter_chunked(self, n: int) -> AsyncStreamIterator[bytes]:
        return AsyncStreamIterator(lambda: self.read(n))

    def iter_any(self) -> AsyncStreamIterator[bytes]:
        return AsyncStreamIterator(self.readany)

    def iter_chunks(self) -> ChunkTupleAsyncStreamIterator:
        return ChunkTupleAsyncStreamIterator(self)  # type: ignore[arg-type]
