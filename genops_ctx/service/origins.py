"""Browsers and other pages: closed, but for the origins that a key in the address names.

A key that is in a page can be read by everybody who sees the page. So it works from the pages it is made
for only, and should have a budget of its own: other clients than browsers may claim any origin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..core.errors import StoreError
from .access import Access
from .caller import CALLERS_KEYS
from .refusals import Refusal

__all__ = ["OriginsMiddleware"]

Message = MutableMapping[str, Any]

_SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
}

# A page may say whose question it is, by the widget's onRequest.
_PREFLIGHT = {
    "access-control-allow-methods": "GET, POST, PUT",
    "access-control-allow-headers": ", ".join(
        ("content-type", *(f"x-genops-{name.replace('_', '-')}" for name in CALLERS_KEYS))
    ),
    "access-control-max-age": "600",
}


class OriginsMiddleware:
    """Answers preflights, and says whose page may read an answer."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        access: Access,
        refused: Callable[[Request], Awaitable[None]],
    ) -> None:
        """``refused`` is told of each request that no route has answered."""
        self._app = app
        self._access = access
        self._refused = refused

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
        origins = await self._origins_of(scope["path"])
        allowed = origins is not None and (origin is None or origin.lower() in origins)
        answer: Callable[..., Awaitable[None]] = self._app
        if origin is not None and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            answer = Response(status_code=204 if allowed else 403, headers=_PREFLIGHT if allowed else None)
        elif origins is not None and not allowed:
            # No page of this key's. Its answer could not be read there, but it would be paid for.
            refusal = Refusal(403, "origin", "This chat is not for this page.", {})
            answer = JSONResponse(refusal.body(), refusal.status)
            await self._refused(Request(scope))
        await answer(scope, receive, self._marked(send, origin, allowed))

    async def _origins_of(self, path: str) -> tuple[str, ...] | None:
        """Of the key that is part of an address, where it is one."""
        if not path.startswith("/k/"):
            return None
        try:
            return await self._access.origins_of(path[3:].partition("/")[0])
        except StoreError:
            return None

    def _marked(
        self, send: Callable[[Message], Awaitable[None]], origin: str | None, allowed: bool
    ) -> Callable[[Message], Awaitable[None]]:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY.items():
                    headers.setdefault(name, value)
                headers.add_vary_header("Origin")
                if allowed:
                    headers["cross-origin-resource-policy"] = "cross-origin"  # images have no origin
                if allowed and origin is not None:
                    headers["access-control-allow-origin"] = origin
            await send(message)

        return marked
