"""HTTP to one Flowise by aiohttp: requests with a deadline, and what a failure says of the request.

Loaded where the async adapter first sends something; aiohttp comes with the extra ``async``.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import aiohttp
import requests
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers

from ..core.errors import ConfigurationError
from ..instrument.tracing import outgoing_headers
from ..wire.answers import MAX_ANSWER_BYTES
from .async_sessions import OpenSession
from .deadline import Exchange, exchange
from .errors import FlowiseError
from .http_effects import json_of
from .network_errors import network_error
from .transport import Limits, keep_body

__all__ = ["AsyncReply", "AsyncTransport"]

ON_TIME = 1e9
"""Seconds above which aiohttp may round a timeout up: never."""

LARGE = 2**20
"""Bytes of a request above which aiohttp wants to write it in pieces."""

NEVER_LEFT = (aiohttp.ClientConnectorError, aiohttp.ClientSSLError, aiohttp.ClientHttpProxyError)


class AsyncReply:
    """An answer whose headers are here; its bytes are read under the exchange's deadline."""

    def __init__(
        self, response: aiohttp.ClientResponse, current: Exchange, what: str, opened: OpenSession
    ) -> None:
        self._response = response
        self._exchange = current
        self._what = what
        self._loop = asyncio.get_running_loop()
        self._opened = opened  # keeps the session open while the answer is read

    @property
    def status_code(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def next(self) -> bytes:
        """The next bytes; none at the end. Raises :class:`FlowiseTimeoutError` and others."""
        try:
            _ = self._exchange.left
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            self._response.close()
            raise _network_error(self._what, self._exchange, error) from error
        except asyncio.CancelledError:
            self._response.close()
            raise
        except GeneratorExit:
            # Thrown away, perhaps by the garbage collector in the middle of anything: the loop sees to it.
            self._close_soon()
            raise

    async def read(self) -> bytes:
        """All of it; a byte more than can be decoded where it is too large."""
        content = await self.next()
        if not content:
            return content
        parts = bytearray(content)
        while chunk := await self.next():
            parts += chunk
            if len(parts) > MAX_ANSWER_BYTES:
                self._response.close()
                break
        return bytes(parts)

    def as_response(self, content: bytes | None = None) -> requests.Response:
        """The answer as ``requests`` would have given it; without content its text is empty."""
        ours, theirs = requests.Response(), self._response
        ours.status_code = theirs.status
        ours.reason = theirs.reason or ""
        ours.headers = CaseInsensitiveDict(theirs.headers)
        ours.encoding = get_encoding_from_headers(ours.headers)
        ours.url = str(theirs.url)
        keep_body(ours, content or b"")
        return ours

    def close(self) -> None:
        """Hang up, from any thread: a task that is reading sees the connection end."""
        if self._loop is _running_loop():
            self._response.close()
        else:
            self._close_soon()

    def _close_soon(self) -> None:
        with suppress(RuntimeError):  # the loop is closed, and its connections with it
            self._loop.call_soon_threadsafe(self._response.close)


class AsyncTransport:
    """Requests to one base URL with one key, each by the session of the loop it runs in."""

    def __init__(self, base_url: str, api_key: str | None, session: Callable[[], OpenSession]) -> None:
        self.base_url = base_url
        self.api_key = api_key
        self._session = session

    async def send(
        self,
        method: str,
        path: str,
        current: Exchange,
        limits: Limits,
        *,
        what: str,
        body: bytes | None = None,
        params: Mapping[str, str] | None = None,
    ) -> AsyncReply:
        """Send, and come back with the headers; the body is read later.

        Raises :class:`FlowiseConnectionError` and :class:`FlowiseTimeoutError` whose ``outcome`` says
        whether the request had left.
        """
        opened = self._session()
        session = opened.session
        headers = {"Accept": "application/json, text/event-stream", **outgoing_headers(self.base_url)}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self.api_key and "Authorization" not in session.headers and session.auth is None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        if any("\r" in value or "\n" in value for value in session.headers.values()):
            # The value may be a key: it is not quoted.
            raise ConfigurationError(
                f"{what} failed: a header of adapter.session is not valid; headers are strings of one line"
            )
        # Our own connector says when a connection is there; of another only the exceptions tell.
        current.sent = False if opened.watched else None
        token = exchange.set(current)
        try:
            left = current.left
            response = await session.request(
                method,
                self.base_url + path,
                data=body if body is None or len(body) <= LARGE else io.BytesIO(body),
                params=params,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=left, sock_connect=min(limits.connect, left), ceil_threshold=ON_TIME
                ),
                **opened.route_to(self.base_url),
            )
        except (aiohttp.ClientError, OSError) as error:
            raise _network_error(what, current, error) from error
        finally:
            with suppress(ValueError):  # a coroutine that is thrown away ends in another context
                exchange.reset(token)
        return AsyncReply(response, current, what, opened)

    async def get_json(
        self, method: str, path: str, limits: Limits, *, what: str, params: Mapping[str, str] | None = None
    ) -> Any:
        """A JSON value of the management API; raises the error of whatever else comes."""
        reply = await self.send(method, path, Exchange(limits.total), limits, what=what, params=params)
        try:
            return json_of(reply, await reply.read(), what)
        finally:
            reply.close()


def _network_error(what: str, current: Exchange, error: BaseException) -> FlowiseError:
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        raise ConfigurationError(f"{what} failed: the URL is not valid; check base_url") from None
    timed_out = isinstance(error, TimeoutError)
    if current.sent is not None:
        left = current.sent
    else:
        # A session of the user's own with its own connector.
        left = not isinstance(error, (*NEVER_LEFT, aiohttp.ConnectionTimeoutError))
    return network_error(what, left=left, timed_out=timed_out, reason=_reason(error))


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return " (the host name is not known)"
    if isinstance(error, aiohttp.ClientSSLError):
        return " (TLS failed: check the certificate, or set adapter.session to one whose connector trusts it)"
    if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        return " (the proxy failed)"
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError):
        return " (refused)"
    return ""


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
