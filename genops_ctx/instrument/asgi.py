"""ASGI middleware: a governance context for each request (Starlette, FastAPI, Quart, Django …)."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from ..core.budget import Budgets
from .inbound import Authenticate, Inbound
from .tracing import remote_parent

__all__ = ["GovernanceMiddleware"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class GovernanceMiddleware:
    """``app.add_middleware(GovernanceMiddleware, authenticate=…, budget="100/day")``.

    The context is open until the application has done with the request: its streamed response and
    background tasks count in it. Websockets have one for the whole connection.

    Args:
        app: the application.
        authenticate: from the request's headers (names in lower case) to the caller's attribution, or
            None for nobody known; may be a coroutine function. Without it, nothing of a request is believed.
        name: of the contexts.
        budget: for each request without a window (``"0.50"``), for all of them with one (``"100/day"``);
            ``Budget("5/day", by="customer_id")`` for each customer that ``authenticate`` names.
        locked: attribution keys that nothing inside may change, besides those that ``authenticate`` gives.
        **attribution: of every request.
    """

    def __init__(
        self,
        app: App,
        *,
        authenticate: Authenticate | None = None,
        name: str = "request",
        budget: Budgets = None,
        locked: str | Iterable[str] = (),
        **attribution: object,
    ) -> None:
        self.app = app
        self._inbound = Inbound(authenticate, name, budget, locked, attribution, "GovernanceMiddleware()")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = _headers(scope)
        authenticate = self._inbound.authenticate
        caller = authenticate(headers) if authenticate is not None else None
        if inspect.isawaitable(caller):
            caller = await caller
        with remote_parent(headers if caller is not None else {}), self._inbound.context(caller, headers):
            await self.app(scope, receive, send)


def _headers(scope: Message) -> dict[str, str]:
    """Those that came several times are joined, as HTTP says."""
    headers: dict[str, str] = {}
    for name, value in scope.get("headers") or ():
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        headers[key] = f"{headers[key]},{text}" if key in headers else text
    return headers
