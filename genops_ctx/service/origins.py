"""Browsers and other pages: closed, but for the origins that a key in the address names.

A key that is in a page can be read by everybody who sees the page. So it works from the pages it is made
for only, and should have a budget of its own: other clients than browsers may claim any origin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from ..core.errors import StoreError
from .access import Access

__all__ = ["OriginsMiddleware"]

Message = MutableMapping[str, Any]

_SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
}


class OriginsMiddleware:
    """Answers preflights, and says whose page may read an answer."""

    def __init__(self, app: Callable[..., Awaitable[None]], access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin is not None and await self._allows(scope["path"], origin)
        if origin is not None and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            answer = Response(status_code=204 if allowed else 403)
            if allowed:
                answer.headers["access-control-allow-methods"] = "GET, POST, PUT"
                answer.headers["access-control-allow-headers"] = "content-type"
                answer.headers["access-control-max-age"] = "600"
            await answer(scope, receive, self._marked(send, origin, allowed))
            return
        await self._app(scope, receive, self._marked(send, origin, allowed))

    async def _allows(self, path: str, origin: str) -> bool:
        before, _, _ = path.partition("/api/v1/")
        secret = before[3:] if before.startswith("/k/") else ""
        try:
            key = await self._access.client_of(secret)
        except StoreError:
            return False
        return key is not None and origin.lower() in key.origins

    def _marked(
        self, send: Callable[[Message], Awaitable[None]], origin: str | None, allowed: bool
    ) -> Callable[[Message], Awaitable[None]]:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY.items():
                    headers.setdefault(name, value)
                headers.add_vary_header("Origin")
                if allowed and origin is not None:
                    headers["access-control-allow-origin"] = origin
                    headers["cross-origin-resource-policy"] = "cross-origin"
            await send(message)

        return marked
