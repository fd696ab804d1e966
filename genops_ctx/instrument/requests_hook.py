"""``requests``: predictions that any session sends.

The hook is on ``Session.get_adapter``, which every session asks what to send by, once for each hop of a
redirect: sessions that exist already are governed, and an adapter of the user's own sends as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin

import requests
import wrapt

from ..sending import is_being_sent
from .addresses import Match
from .answer_meter import AnswerMeter
from .governor import Governor, Opened
from .outcomes import failure_of
from .registry import addresses
from .request_bodies import read_body
from .rewriting import other_flow
from .tracing import headers_to_add

__all__ = ["get_adapter"]

CLIENT = "requests"


def get_adapter(wrapped: Callable[..., Any], session: Any, args: Any, kwargs: Any) -> Any:
    """Around ``Session.get_adapter``: the adapter itself, or one that governs a prediction."""
    adapter = wrapped(*args, **kwargs)
    url = kwargs["url"] if "url" in kwargs else args[0]
    match = addresses.match(url) if isinstance(url, str) else None
    return adapter if match is None else _Governed(adapter, match)


class _Governed(wrapt.ObjectProxy):  # type: ignore[type-arg]
    """An adapter whose POST is a prediction."""

    def __init__(self, adapter: Any, match: Match[Governor]) -> None:
        super().__init__(adapter)
        self._self_match = match

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        send = self.__wrapped__.send
        governor, flow = self._self_match
        if request.method != "POST" or is_being_sent(CLIENT, flow):
            response: requests.Response = send(request, *args, **kwargs)
            return response
        fields = read_body(request.body, request.headers.get("Content-Type") or "application/json")
        limits = governor.given_timeout
        if limits is not None and kwargs.get("timeout") is None:
            kwargs["timeout"] = (limits.connect, limits.total)
        opened = governor.open(flow, fields)
        meter = opened.meter
        request = _rewritten(request, flow, opened)
        try:
            with opened.sending(CLIENT):
                request = _told(request)
                response = send(request, *args, **kwargs)
        except BaseException as error:
            meter.fail(failure_of(error), error)
            raise
        meter.answered(response.status_code, response.headers)
        if response.status_code in (307, 308) and "Location" in response.headers:
            addresses.redirected(urljoin(response.url, response.headers["Location"]), governor)
        retries = getattr(getattr(response.raw, "retries", None), "history", ())
        meter.retried(sum(1 for retry in retries if retry.status is not None and retry.status >= 500))
        # Who sends it again by what it came by (an answer to a digest challenge) is governed too.
        response.connection = self  # type: ignore[assignment]
        _tap(response, meter)
        return response


def _tap(response: requests.Response, meter: AnswerMeter) -> None:
    """Have the body pass the meter; one that an adapter of the user's gives whole is told as it is."""
    content: Any = response._content
    if response.raw is None or content is not False:
        meter.feed(content or b"")
        meter.end()
    else:
        response.raw = _Tapped(response.raw, meter)


def _rewritten(request: requests.PreparedRequest, flow: str, opened: Opened) -> requests.PreparedRequest:
    if opened.body is None and opened.flow == flow:
        return request
    request = request.copy()
    if opened.body is not None:
        request.body = opened.body
        request.headers["Content-Type"] = "application/json"
        request.headers["Content-Length"] = str(len(opened.body))
    if opened.flow != flow:
        assert request.url is not None
        request.url = other_flow(request.url, opened.flow)
    return request


def _told(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """With W3C headers, in a copy: the user's own request is what a redirect is made of."""
    assert request.url is not None
    added = headers_to_add(request.url, request.headers)
    if added:
        request = request.copy()
        request.headers.update(added)
    return request


class _Tapped(wrapt.ObjectProxy):  # type: ignore[type-arg]
    """An answer's raw body, as ``urllib3`` gives it; what is read passes the meter."""

    def __init__(self, raw: Any, meter: AnswerMeter) -> None:
        super().__init__(raw)
        self._self_meter = meter
        self._self_decodes = bool(getattr(raw, "decode_content", True))
        self._self_coded = "Content-Encoding" in (getattr(raw, "headers", None) or ())

    def _self_decoded(self, kwargs: dict[str, Any], given: object = None) -> bool:
        decode = kwargs.get("decode_content", given)
        return self._self_decodes if decode is None else bool(decode)

    def _self_read(self, read: Callable[..., Any], args: Any, kwargs: Any, decoded: bool, all_: bool) -> Any:
        meter = self._self_meter
        try:
            data = read(*args, **kwargs)
        except BaseException as error:
            meter.fail(failure_of(error), error)
            raise
        if isinstance(data, bytes) and data:
            (meter.feed if decoded else meter.feed_coded)(data)
        # What came in full may not be decoded in full.
        came = not self._self_coded and getattr(self.__wrapped__, "length_remaining", None) == 0
        if all_ or not data or came:
            meter.end()
        return data

    def read(self, *args: Any, **kwargs: Any) -> Any:
        amount = kwargs.get("amt", args[0] if args else None)
        if amount == 0:
            return self.__wrapped__.read(*args, **kwargs)
        decoded = self._self_decoded(kwargs, args[1] if len(args) > 1 else None)
        whole = amount is None or amount < 0
        return self._self_read(self.__wrapped__.read, args, kwargs, decoded, whole)

    def read1(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("amt", args[0] if args else None) == 0:
            return self.__wrapped__.read1(*args, **kwargs)
        decoded = self._self_decoded(kwargs, args[1] if len(args) > 1 else None)
        return self._self_read(self.__wrapped__.read1, args, kwargs, decoded, False)

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer) as view:
            data = self.read(len(view))
            view[: len(data)] = data
        return len(data)

    def readline(self, *args: Any) -> Any:
        return self._self_read(self.__wrapped__.readline, args, {}, self._self_decodes, False)

    def readlines(self, *args: Any) -> list[bytes]:
        return list(self)

    def __next__(self) -> bytes:
        line: bytes = self.readline()
        if not line:
            raise StopIteration
        return line

    def __iter__(self) -> Iterator[bytes]:
        return self._self_pass(iter(self.__wrapped__), self._self_decodes)

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        if not hasattr(self.__wrapped__, "stream"):
            # A file, of an adapter of the user's: what requests does then.
            return iter(lambda: self.read(args[0] if args else kwargs.get("amt")), b"")
        decoded = self._self_decoded(kwargs, args[1] if len(args) > 1 else None)
        return self._self_pass(self.__wrapped__.stream(*args, **kwargs), decoded)

    def read_chunked(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        decoded = self._self_decoded(kwargs, args[1] if len(args) > 1 else None)
        return self._self_pass(self.__wrapped__.read_chunked(*args, **kwargs), decoded)

    def _self_pass(self, chunks: Iterator[bytes], decoded: bool) -> Iterator[bytes]:
        meter = self._self_meter
        feed = meter.feed if decoded else meter.feed_coded
        try:
            for chunk in chunks:
                feed(chunk)
                yield chunk
        except GeneratorExit:
            raise  # left early: it may be read on; its end is told otherwise
        except BaseException as error:
            meter.fail(failure_of(error), error)
            raise
        meter.end()

    @property
    def data(self) -> Any:
        body = self.__wrapped__.data
        self._self_meter.feed(body)
        self._self_meter.end()
        return body

    def json(self) -> Any:
        import json

        return json.loads(self.data)

    def drain_conn(self) -> None:
        self.__wrapped__.drain_conn()
        self._self_meter.close()

    def close(self) -> None:
        try:
            self.__wrapped__.close()
        finally:
            self._self_meter.close()
