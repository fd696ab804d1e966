"""WSGI middleware: a governance context for each request (Flask, Django, Bottle …)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..core.budget import Budgets
from ..core.context import GovernanceContext
from ..core.current import Place
from .inbound import Authenticate, Inbound
from .tracing import remote_parent

__all__ = ["GovernanceMiddleware"]

App = Callable[[dict[str, Any], Any], Iterable[bytes]]


class GovernanceMiddleware:
    """``app.wsgi_app = GovernanceMiddleware(app.wsgi_app, authenticate=…, budget="100/day")``.

    The context is open until the response has been sent and closed: what its body's generator calls
    counts in it. The parameters are those of :class:`genops_ctx.instrument.asgi.GovernanceMiddleware`;
    ``authenticate`` is a plain function.
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

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        headers = _headers(environ)
        authenticate = self._inbound.authenticate
        caller = authenticate(headers) if authenticate is not None else None
        context = self._inbound.context(caller, headers)
        outside = Place(GovernanceContext.observer)
        with remote_parent(headers if caller is not None else {}):
            context._begin()
            try:
                body = self.app(environ, start_response)
            except BaseException as error:
                context.close(error)
                raise
            if isinstance(body, list | tuple):
                context.close()
                return body
            inside = Place(GovernanceContext.observer)
        outside.enter()
        return _Body(body, context, inside)


class _Body:
    """The body of a response, each of whose parts is made in the request's context."""

    def __init__(self, body: Iterable[bytes], context: GovernanceContext, place: Place) -> None:
        self._body = body
        self._parts: Iterator[bytes] | None = None
        self._context = context
        self._place = place
        self._failed: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._place.enter()
        try:
            if self._parts is None:
                self._parts = iter(self._body)
            return next(self._parts)
        except StopIteration:
            raise
        except BaseException as error:
            self._failed = error
            raise
        finally:
            self._place.leave()

    def close(self) -> None:
        """Called by the server, once, however the response ended."""
        self._place.enter()
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._context.close(self._failed)
            self._failed = None
            self._place.leave()


def _headers(environ: dict[str, Any]) -> dict[str, str]:
    headers = {
        key[5:].lower().replace("_", "-"): value for key, value in environ.items() if key.startswith("HTTP_")
    }
    for key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(key):
            headers[key.lower().replace("_", "-")] = environ[key]
    return headers
