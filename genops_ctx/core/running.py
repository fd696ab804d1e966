"""How a function runs in a scope that is opened for each call of it, whatever kind of function it is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from .current import Place
from .managers import AsyncManager, Manager, makes_async_managers, makes_managers
from .steps import LATER, Scope, later, stepped

if TYPE_CHECKING:
    from .current import There
    from .ports import Observer

__all__ = ["Inside", "Runner", "decorated", "inner_of", "runner"]

Runner = Callable[[Callable[..., Any], object, tuple[Any, ...], dict[str, Any]], Any]
"""``(function, instance, args, kwargs) → result``: what wrapt calls for a function that it wraps."""


def inner_of(function: Any) -> Any:
    """What runs when it is called: whether that is a coroutine or generator function is what counts."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, staticmethod | classmethod):
            function = function.__func__
        elif not inspect.isroutine(function) and not hasattr(function, "__code__"):
            call = getattr(type(function), "__call__", None)  # noqa: B004
            if not hasattr(call, "__code__"):
                return function
            function = call
        else:
            return function


def runner(function: Any, scope: Callable[[], Scope], observer: Callable[[], Observer | None]) -> Runner:
    """How to run a function in a new scope each time it is called.

    The scope of a context manager made of a generator function is open for the whole ``with`` block.
    """
    inner = inner_of(function)
    if makes_managers(inner):
        return lambda function, _, args, kwargs: Manager(functools.partial(function, *args, **kwargs), scope)
    if makes_async_managers(inner):
        return lambda function, _, args, kwargs: AsyncManager(
            functools.partial(function, *args, **kwargs), scope
        )
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):

        def begin(function: Callable[..., Any], instance: object, args: Any, kwargs: Any) -> Any:
            return stepped(function(*args, **kwargs), scope(), Place(observer()), opened=False)

        return begin
    if inspect.iscoroutinefunction(inner):

        async def wait(function: Callable[..., Any], instance: object, args: Any, kwargs: Any) -> Any:
            opened = scope()
            begin_async = getattr(opened, "_begin_async", None)  # of one that may wait for a server
            if begin_async is not None:
                await begin_async()
            else:
                opened._begin()
            try:
                result = await function(*args, **kwargs)
            except BaseException as error:
                opened.close(error)
                raise
            if type(result) in LATER:
                return later(result, opened, observer())
            if opened._returned is not None:
                result = opened._returned(result)
                booked = getattr(opened, "_booked", None)
                if booked is not None:
                    await booked()
                return result
            opened.close()
            return result

        return wait

    def run(function: Callable[..., Any], instance: object, args: Any, kwargs: Any) -> Any:
        opened = scope()
        opened._begin()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            opened.close(error)
            raise
        if type(result) in LATER:
            return later(result, opened, observer())
        if opened._returned is not None:
            return opened._returned(result)
        opened.close()
        return result

    return run


def decorated(function: Any, run: Runner) -> Any:
    """A function that runs another one so; coroutine functions stay coroutine functions."""
    if inspect.iscoroutinefunction(inner_of(function)):

        async def wait(*args: Any, **kwargs: Any) -> Any:
            return await run(function, None, args, kwargs)

        return functools.wraps(function)(wait)

    def call(*args: Any, **kwargs: Any) -> Any:
        return run(function, None, args, kwargs)

    return functools.wraps(function)(call)


class Inside:
    """The scope of work that runs in a place that there is already: it opens nothing of its own."""

    __slots__ = ("_place",)

    _take: ClassVar[None] = None
    _returned: ClassVar[None] = None

    def __init__(self, there: There, observer: Observer | None) -> None:
        self._place = Place(observer, there)

    def _begin(self) -> None:
        self._place.enter()

    def close(self, error: BaseException | None = None) -> None:
        self._place.leave()

    def _leave(self) -> None:
        self._place.leave()
