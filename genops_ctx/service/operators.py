"""Who may do what over HTTP, by the role of the key, and what is answered where it cannot be done."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from ..core.errors import ConfigurationError, GovernanceError
from .access import Access, secret_of
from .keys import ClientKey, Role

__all__ = ["CALLERS", "REFUSED", "OfHolder", "done", "holder_of", "may_operate"]

T = TypeVar("T")

REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"description": "A bad value"},
    401: {"description": "No valid key"},
    403: {"description": "Another role is needed"},
    503: {"description": "Store, ledger or keys do not answer"},
}
"""For the document of routes whose answers these two may be."""


CALLERS = (Role.CLIENT, Role.OPERATOR, Role.ADMIN)
"""Roles whose keys may ask what is for everybody; the others are for one purpose only."""


class _Holder:
    """The key of a request, which has one of these roles; 401, 403 or 503 without."""

    def __init__(self, access: Access, roles: tuple[Role, ...]) -> None:
        self._access = access
        self._roles = roles

    async def __call__(self, request: Request) -> ClientKey:
        try:
            key = await self._access.key_of(secret_of(request.headers))
        except GovernanceError:
            raise HTTPException(503, "the keys cannot be read") from None
        if key is None:
            raise HTTPException(401, "a valid key is needed", {"WWW-Authenticate": "Bearer"})
        if key.role not in self._roles:
            raise HTTPException(403, f"this needs a key with the role {' or '.join(self._roles)}")
        return key


def holder_of(access: Access, *roles: Role) -> Callable[[Request], Any]:
    """A dependency: the key of the request, which has one of these roles; 401, 403 or 503 without."""
    return _Holder(access, roles)


class OfHolder(APIRoute):
    """A route that knows the key before the body is read.

    FastAPI reads a body, and makes all of its values, before it asks a dependency; 16 MB of ``[],`` stop
    a worker for seconds. Nothing is parsed for those who may not do it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        holders = [one.call for one in self.dependant.dependencies if isinstance(one.call, _Holder)]

        async def answered(request: Request) -> Response:
            for holder in holders:
                await holder(request)
            return await answer(request)

        return answered


async def may_operate(access: Access, request: Request) -> bool:
    """Whether the request has a key of an operator; no error for none, or where the keys cannot be read."""
    secret = secret_of(request.headers)
    if secret is None:
        return False
    try:
        async with asyncio.timeout(1.0):
            key = await access.client_of(secret)
    except (TimeoutError, GovernanceError):
        return False
    return key is not None and key.role is not Role.CLIENT


async def done(work: Callable[[], T]) -> T:
    """Work that asks stores and ledgers, away from the event loop; its errors as answers."""
    try:
        return await asyncio.to_thread(work)
    except ConfigurationError as error:
        raise HTTPException(400, str(error)) from None
    except GovernanceError:
        raise HTTPException(503, "store or ledger does not answer") from None
