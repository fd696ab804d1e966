"""The connections to Flowise: what is sent there, under which headers and key, and how long it may take."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from ..instrument.tracing import outgoing_headers
from .forwarding import request_headers

if TYPE_CHECKING:
    import aiohttp
    from starlette.requests import Request

    from ..instrument.governor import Governor
    from .configuration import ServiceSettings

__all__ = ["Link"]

AT_ONCE = 64 * 1024
"""Bytes that are written in one piece. Larger bodies are in several, so that other requests go on."""


class Link:
    """Connections of one worker, made on first use."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp

            from ..providers.async_sessions import KEPT_ALIVE

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                timeout=self._timeout(None),
            )
        return self._session

    async def ask(
        self,
        request: Request,
        to: Governor,
        path: str,
        body: bytes,
        content: bytes | None = None,
        left: float | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a client's request on to a path of a Flowise, within so many seconds.

        ``content`` is JSON to send instead of its own body. Raises what aiohttp does.
        """
        url = f"{to.base_url}/api/v1/{path}"
        query = request.scope["query_string"].decode("latin-1")
        headers = request_headers(request.headers.items(), to.api_key)
        headers |= outgoing_headers(url)
        if content is not None:
            headers["content-type"] = "application/json"
        sent = body if content is None else content
        return await self.session().request(
            request.method,
            f"{url}?{query}" if query else url,
            data=_payload(sent),
            headers=headers,
            allow_redirects=False,
            timeout=self._timeout(left),
        )

    def _timeout(self, left: float | None) -> aiohttp.ClientTimeout:
        import aiohttp

        settings = self._settings
        return aiohttp.ClientTimeout(
            total=settings.total_seconds if left is None else left,
            sock_connect=settings.connect_seconds,
            sock_read=settings.silent_seconds,
        )


def _payload(body: bytes) -> bytes | BytesIO | None:
    if not body:
        return None
    return body if len(body) <= AT_ONCE else BytesIO(body)
