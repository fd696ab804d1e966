"""HTTP to one Flowise: a session, a base URL, a deadline, and what a failure says of the request."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
import requests.auth
import urllib3.exceptions

from .._version import __version__
from ..core.errors import ConfigurationError
from ..instrument.tracing import outgoing_headers
from ..wire.answers import MAX_ANSWER_BYTES
from .deadline import DeadlineAdapter, Exchange, exchange
from .errors import FlowiseError
from .http_effects import json_of
from .network_errors import network_error

__all__ = [
    "CONNECT_TIMEOUT",
    "TOTAL_TIMEOUT",
    "Body",
    "Limits",
    "Transport",
    "causes_of",
    "check_base_url",
    "new_session",
]

CONNECT_TIMEOUT = 5.0
TOTAL_TIMEOUT = 120.0
"""Seconds. Flowise itself tries a failing model for up to 103 s before it answers."""

_CHUNK = 65536

NEVER_LEFT = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.NameResolutionError,
    urllib3.exceptions.ProxyError,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: to connect, and for the whole exchange."""

    connect: float = CONNECT_TIMEOUT
    total: float = TOTAL_TIMEOUT

    @classmethod
    def of(cls, timeout: object, default: Limits | None = None) -> Limits:
        """From a number (the whole), a pair ``(connect, whole)``, or None (the default)."""
        base = default if default is not None else cls()
        if timeout is None:
            return base
        if isinstance(timeout, tuple) and len(timeout) == 2:
            connect, total = timeout
            return cls(
                base.connect if connect is None else _seconds(connect),
                base.total if total is None else _seconds(total),
            )
        total = _seconds(timeout)
        return cls(min(base.connect, total), total)

    def half_of(self, current: Exchange) -> Limits:
        """The same, within half of what the exchange has left."""
        return self._within(current.remaining / 2)

    def rest_of(self, current: Exchange) -> Limits:
        """The same, within what the exchange has left."""
        return self._within(current.remaining)

    def _within(self, seconds: float) -> Limits:
        seconds = max(seconds, 0.0005)
        return Limits(min(self.connect, seconds), min(self.total, seconds))


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError("timeout must be seconds, or a pair (connect, total) of seconds")
    if not math.isfinite(value) or not 0 < value <= 86_400:
        raise ConfigurationError(f"timeout must be above 0 and at most 86400 seconds, not {value}")
    return float(value)


def check_base_url(url: str) -> str:
    """The URL without a slash at its end; a path below the host is kept.

    Raises :class:`ConfigurationError` for anything but http(s)://host[:port][/path], and for a URL
    that holds a password, which error texts would show.
    """
    if not isinstance(url, str):
        raise ConfigurationError(f"base_url must be a string, not {type(url).__name__}")
    text = url.strip().rstrip("/")
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        valid = False
    if not valid or any(letter.isspace() or not letter.isprintable() for letter in text):
        raise ConfigurationError(
            "base_url must be like http://localhost:3000 or https://flowise.example.com/path"
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            "base_url must not hold a user or password; set adapter.session.auth instead"
        )
    if parts.query or parts.fragment:
        raise ConfigurationError("base_url must not have a query or fragment")
    for ending in ("/api/v1/prediction", "/api/v1", "/api"):
        text = text.removesuffix(ending)
    return text


def new_session() -> requests.Session:
    """A session whose connections keep a total deadline."""
    session = requests.Session()
    session.headers["User-Agent"] = f"genops_ctx/{__version__}"
    for scheme in ("http://", "https://"):
        session.mount(scheme, DeadlineAdapter(pool_connections=10, pool_maxsize=32))
    return session


class Body:
    """The bytes of an answer, read under the exchange's deadline and never more than can be decoded."""

    def __init__(self, response: requests.Response, current: Exchange, what: str) -> None:
        self.response = response
        self._exchange = current
        self._what = what

    @property
    def status_code(self) -> int:
        return self.response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        return self.response.headers

    def as_response(self, content: bytes | None = None) -> requests.Response:
        """The response, with the content that was read where its ``text`` and ``json()`` find it."""
        if content is not None:
            keep_body(self.response, content)
        return self.response

    def __iter__(self) -> Iterator[bytes]:
        """As they come. Raises :class:`FlowiseTimeoutError` and :class:`FlowiseConnectionError`."""
        with _mapped(self._what, self._exchange):
            while True:
                if self._exchange.remaining <= 0:
                    self.response.close()  # nobody reads on, and an open connection would say otherwise
                    raise TimeoutError("the deadline is over")
                chunk = self.response.raw.read1(_CHUNK, decode_content=True)
                if not chunk:
                    return
                yield chunk

    def read(self) -> bytes:
        """All of it; a byte more than can be decoded where it is too large."""
        parts = bytearray()
        for chunk in self:
            parts += chunk
            if len(parts) > MAX_ANSWER_BYTES:
                self.close()
                break
        return bytes(parts)

    def close(self) -> None:
        """Hang up, also on a thread that is reading: it sees the end of the answer."""
        sock = self._exchange.sock
        # A child that was forked meanwhile would hang up for its parent. And without its connection the
        # answer was read to the end, and the socket may work for another.
        ours = self._exchange.process == os.getpid() and self.response.raw.connection is not None
        if sock is not None and ours:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self.response.close()


class Transport:
    """Requests to one base URL with one key. Thread-safe as far as its session is."""

    def __init__(self, base_url: str, api_key: str | None, session: Callable[[], requests.Session]) -> None:
        self.base_url = base_url
        self.api_key = api_key
        self._session = session

    def send(
        self,
        method: str,
        path: str,
        current: Exchange,
        limits: Limits,
        *,
        what: str,
        body: bytes | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Body:
        """Send, and come back with the headers; the body is read later.

        Raises :class:`FlowiseConnectionError` and :class:`FlowiseTimeoutError` whose ``outcome`` says
        whether the request had left.
        """
        headers = {"Accept": "application/json, text/event-stream", **outgoing_headers(self.base_url)}
        if body is not None:
            headers["Content-Type"] = "application/json"
        session = self._session()
        auth = None
        if self.api_key and "Authorization" not in session.headers and session.auth is None:
            auth = _Bearer(self.api_key)
        token = exchange.set(current)
        try:
            with _mapped(what, current):
                current.sent = False
                left = current.left
                if not isinstance(session.get_adapter(self.base_url), DeadlineAdapter):
                    current.sent = None
                response = session.request(
                    method,
                    self.base_url + path,
                    data=body,
                    params=params,
                    headers=headers,
                    auth=auth,
                    timeout=(min(limits.connect, left), left),
                    stream=True,
                    allow_redirects=False,
                )
        finally:
            exchange.reset(token)
        return Body(response, current, what)

    def get_json(
        self,
        method: str,
        path: str,
        limits: Limits,
        *,
        what: str,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Any:
        """A JSON value of the management API; raises the error of whatever else comes."""
        answer = self.send(method, path, Exchange(limits.total), limits, what=what, body=body, params=params)
        return json_of(answer, answer.read(), what)


class _Bearer(requests.auth.AuthBase):
    """The key, as ``auth``: where only a header says it, ``requests`` lets a ~/.netrc replace it."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def keep_body(response: requests.Response, content: bytes) -> None:
    """Put bytes that were read already where ``response.text`` and ``.json()`` find them."""
    response._content = content
    response._content_consumed = True  # type: ignore[attr-defined]


@contextmanager
def _mapped(what: str, current: Exchange) -> Iterator[None]:
    """Turn what ``requests``, ``urllib3`` and sockets raise into our errors, with the outcome."""
    try:
        yield
    except FlowiseError:
        raise
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise _network_error(what, current, error) from error


def _network_error(what: str, current: Exchange, error: BaseException) -> FlowiseError:
    causes = list(causes_of(error))
    left = _has_left(current, causes)
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        raise ConfigurationError(f"{what} failed: the URL is not valid; check base_url") from None
    if isinstance(error, requests.exceptions.InvalidHeader):
        # Its text quotes the header, which may be a key.
        raise ConfigurationError(
            f"{what} failed: a header of adapter.session is not valid; headers are strings of one line"
        ) from None
    timed_out = any(_is_timeout(cause) for cause in causes)
    return network_error(what, left=left, timed_out=timed_out, reason=_reason(causes))


_TIMEOUTS = (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)


def _is_timeout(cause: BaseException) -> bool:
    # urllib3 derives a refused connection from its timeouts.
    return isinstance(cause, _TIMEOUTS) and not isinstance(cause, urllib3.exceptions.NewConnectionError)


def _has_left(current: Exchange, causes: list[BaseException]) -> bool:
    """Whether bytes of the request may have reached Flowise."""
    if current.sent is not None:
        return current.sent
    # A session with adapters of the user's own: only the exceptions tell.
    return not any(isinstance(cause, NEVER_LEFT) for cause in causes)


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """The error, what it wraps and what caused it, each once."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        item = waiting.pop()
        if isinstance(item, BaseException) and id(item) not in seen:
            seen.add(id(item))
            yield item
            waiting += [item.__cause__, getattr(item, "reason", None), *item.args]


def _reason(causes: list[BaseException]) -> str:
    for cause in causes:
        if isinstance(cause, urllib3.exceptions.NameResolutionError):
            return " (the host name is not known)"
        if isinstance(cause, urllib3.exceptions.SSLError):
            return " (TLS failed: check the certificate, or adapter.session.verify)"
        if isinstance(cause, urllib3.exceptions.ProxyError):
            return " (the proxy failed)"
        if isinstance(cause, ConnectionRefusedError):
            return " (refused)"
    return ""
