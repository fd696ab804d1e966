"""``httpx`` and ``httpx2``: predictions that any client sends.

The hook is on ``Client.send`` and ``AsyncClient.send``, which everything comes through: redirects and
authentication happen below it, so a call that is redirected or challenged is one call.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from ..sending import is_being_sent
from .addresses import PREDICTION, Match
from .answer_meter import AnswerMeter
from .governor import Governor, Opened
from .outcomes import failure_of
from .registry import addresses
from .request_bodies import read_body
from .rewriting import other_flow
from .tracing import headers_to_add

__all__ = ["send", "send_async", "send_one", "send_one_async"]

STREAM = "stream"
PREDICTION_BYTES = PREDICTION.encode()


def send(wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
    """Around ``Client.send``."""
    name, request, match = _matched(client, args, kwargs)
    if match is None:
        return wrapped(*args, **kwargs)
    opened = match.governs.open(match.flow, _fields(request))
    meter = opened.meter
    args, kwargs, streamed = _to_send(request, match.flow, opened, args, kwargs)
    response = None
    try:
        with opened.sending(name):
            response = wrapped(*args, **kwargs)
        _tap(response, meter, sys.modules[name].SyncByteStream, _Tapped)
        if not streamed:
            response.read()
    except BaseException as error:
        meter.fail(failure_of(error), error)
        if response is not None:
            response.close()
        raise
    return response


async def send_async(wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
    """Around ``AsyncClient.send``."""
    name, request, match = _matched(client, args, kwargs)
    if match is None:
        return await wrapped(*args, **kwargs)
    opened = await match.governs.open_async(match.flow, _fields(request))
    meter = opened.meter
    args, kwargs, streamed = _to_send(request, match.flow, opened, args, kwargs)
    response = None
    try:
        with opened.sending(name):
            response = await wrapped(*args, **kwargs)
        _tap(response, meter, sys.modules[name].AsyncByteStream, _TappedAsync)
        if not streamed:
            await response.aread()
    except GeneratorExit:
        raise  # thrown away, perhaps by the garbage collector: the meter's finalizer sees to it
    except BaseException as error:
        meter.fail(failure_of(error), error)
        if response is not None:
            await response.aclose()
        raise
    return response


def send_one(wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
    """Around ``Client._send_single_request``, which each hop of a redirect comes through."""
    request, added = _told(args, kwargs)
    try:
        return wrapped(*args, **kwargs)
    finally:
        _untold(request, added)


async def send_one_async(wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
    """Around ``AsyncClient._send_single_request``."""
    request, added = _told(args, kwargs)
    try:
        return await wrapped(*args, **kwargs)
    finally:
        _untold(request, added)


def _told(args: Any, kwargs: Any) -> tuple[Any, dict[str, str]]:
    """Add W3C headers to one hop's request of a prediction that is governed; says which."""
    request = args[0] if args else kwargs["request"]
    if not _may_match(request):
        return request, {}
    url = str(request.url)
    added = {} if addresses.match(url) is None else headers_to_add(url, request.headers)
    request.headers.update(added)
    return request, added


def _untold(request: Any, added: dict[str, str]) -> None:
    """Take them back: the request for a redirect, perhaps to another host, is made of this one's."""
    for name, value in added.items():
        if request.headers.get(name) == value:
            del request.headers[name]


def _matched(client: Any, args: Any, kwargs: Any) -> tuple[str, Any, Match[Governor] | None]:
    request = kwargs["request"] if "request" in kwargs else args[0] if args else None
    if request is None or not _may_match(request):
        return "", request, None
    match = addresses.match(str(request.url))
    name = _library(client)
    if match is not None and is_being_sent(name, match.flow):
        match = None
    return name, request, match


def _may_match(request: Any) -> bool:
    """The cheap part of the question first: to make a text of an httpx URL takes long."""
    return request.method == "POST" and PREDICTION_BYTES in request.url.raw_path.lower()


def _library(client: Any) -> str:
    """``httpx`` or ``httpx2``, also of a class that is derived from its client."""
    homes = (kind.__module__.partition(".")[0] for kind in type(client).__mro__)
    return next((home for home in homes if home in ("httpx", "httpx2")), "httpx")


def _fields(request: Any) -> dict[str, Any] | None:
    try:
        content = request.content
    except Exception:
        return None  # a stream of the user's own: reading it would consume it
    return read_body(content, request.headers.get("Content-Type") or "application/json")


def _to_send(
    request: Any, flow: str, opened: Opened, args: Any, kwargs: Any
) -> tuple[Any, dict[str, Any], bool]:
    """The arguments to send with; always as a stream, so that the body passes the meter."""
    kwargs = {**kwargs}
    streamed = bool(kwargs.get(STREAM, False))
    kwargs[STREAM] = True
    if opened.body is not None or opened.flow != flow:
        url = str(request.url) if opened.flow == flow else other_flow(str(request.url), opened.flow)
        headers = request.headers.copy()
        content = request.content if opened.body is None else opened.body
        if opened.body is not None:
            headers["Content-Type"] = "application/json"
            headers["Content-Length"] = str(len(content))
        request = type(request)("POST", url, headers=headers, content=content, extensions=request.extensions)
        if "request" in kwargs:
            kwargs["request"] = request
        else:
            args = (request, *args[1:])
    return args, kwargs, streamed


def _tap(response: Any, meter: AnswerMeter, base: type, tap: type) -> None:
    """Have the body pass the meter; one that a hook has read already is told as it is."""
    meter.answered(response.status_code, response.headers)
    if hasattr(response, "_content"):
        meter.feed(response.content)
        meter.end()
        return
    response.stream = type("Tapped", (tap, base), {})(response.stream, meter)


class _Tapped:
    """The bytes of an answer as they come from the network."""

    def __init__(self, stream: Any, meter: AnswerMeter) -> None:
        self._stream = stream
        self._meter = meter

    def __iter__(self) -> Iterator[bytes]:
        meter = self._meter
        try:
            for chunk in self._stream:
                meter.feed_coded(chunk)
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as error:
            meter.fail(failure_of(error), error)
            raise
        meter.end()

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._meter.close()


class _TappedAsync:
    """The same of an async client."""

    def __init__(self, stream: Any, meter: AnswerMeter) -> None:
        self._stream = stream
        self._meter = meter

    async def __aiter__(self) -> AsyncIterator[bytes]:
        meter = self._meter
        try:
            async for chunk in self._stream:
                meter.feed_coded(chunk)
                if meter.done:
                    await meter.attempt.booked()
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as error:
            meter.fail(failure_of(error), error)
            raise
        meter.end()
        await meter.attempt.booked()

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._meter.close()
