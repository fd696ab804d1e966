"""Context managers made of generator functions: their scope is open from entering to leaving the block."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncContextDecorator, ContextDecorator, asynccontextmanager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .steps import Scope

__all__ = ["AsyncManager", "Manager", "makes_async_managers", "makes_managers"]

_MANAGERS = contextmanager(iter).__code__
_ASYNC_MANAGERS = asynccontextmanager(aiter).__code__


def makes_managers(function: object) -> bool:
    """Whether :func:`contextlib.contextmanager` made it."""
    return getattr(function, "__code__", None) is _MANAGERS


def makes_async_managers(function: object) -> bool:
    """Whether :func:`contextlib.asynccontextmanager` made it."""
    return getattr(function, "__code__", None) is _ASYNC_MANAGERS


class _Managed:
    __slots__ = ("_make", "_manager", "_opened", "_scope")

    def __init__(self, make: Callable[[], Any], scope: Callable[[], Scope]) -> None:
        self._make = make
        self._scope = scope
        self._manager = make()  # now, so that wrong arguments are told where they are given

    def _open(self) -> None:
        self._opened = self._scope()
        self._opened._begin()


class Manager(_Managed, ContextDecorator):
    """A manager whose block runs in a new scope; as a decorator, one for each call."""

    def _recreate_cm(self) -> Manager:
        return Manager(self._make, self._scope)

    def __enter__(self) -> Any:
        self._open()
        try:
            return self._manager.__enter__()
        except BaseException as error:
            self._opened.close(error)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        try:
            swallowed = self._manager.__exit__(kind, error, traceback)
        except BaseException as failure:
            self._opened.close(failure)
            raise
        self._opened.close(None if swallowed else error)
        return swallowed


class AsyncManager(_Managed, AsyncContextDecorator):
    """The same for ``async with``."""

    def _recreate_cm(self) -> AsyncManager:
        return AsyncManager(self._make, self._scope)

    async def __aenter__(self) -> Any:
        self._open()
        try:
            return await self._manager.__aenter__()
        except BaseException as error:
            self._opened.close(error)
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        try:
            swallowed = await self._manager.__aexit__(kind, error, traceback)
        except BaseException as failure:
            self._opened.close(failure)
            raise
        self._opened.close(None if swallowed else error)
        return swallowed
