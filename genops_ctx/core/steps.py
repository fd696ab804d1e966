"""What runs on after its function has returned: generators and coroutines, each in its scope.

A generator's scope is current during each of its steps and never between them: it is set before each
step and what was there before is set back after it. So generators may be suspended, interleaved, closed
early, thrown into, dropped, and stepped by any thread or task; contexts that their bodies open stay
inside them too.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from .current import Place

if TYPE_CHECKING:
    from .ports import Observer

__all__ = ["LATER", "Dropped", "Scope", "later", "stepped"]

Alive: TypeAlias = "list[weakref.ref[Any]]"

CO_ITERABLE_COROUTINE = 0x100
"""flag of the generators that :func:`types.coroutine` has made awaitable"""

LATER = frozenset({GeneratorType, AsyncGeneratorType, CoroutineType})
"""Results that have not run yet when the function that made them has returned."""


class Scope(Protocol):
    """What is open while something runs. Opening makes it current, closing what was around it."""

    @property
    def _take(self) -> Callable[[Any], None] | None:
        """Told of each value that a generator yields."""
        ...

    @property
    def _returned(self) -> Callable[[Any], Any] | None:
        """Given the result, closes it, and gives what the caller gets; None where it needs no result."""
        ...

    def _begin(self) -> None: ...

    def close(self, error: BaseException | None = None) -> None: ...

    def _leave(self) -> None:
        """Make current what was around it; it stays open."""
        ...


class Dropped:
    """Where the scopes of generators go that nobody holds any more.

    The runtime queues them: a finalizer may run while its thread holds any lock, so it takes none.
    """

    put: Callable[[Callable[[], object]], object] | None = None


def later(result: Any, opened: Scope, observer: Observer | None) -> Any:
    """A generator or coroutine that was made in an open scope, which is left now and closed at its end."""
    place = Place(observer)
    opened._leave()
    if type(result) is CoroutineType:
        return _awaited(result, opened, place)
    return stepped(result, opened, place, opened=True)


async def _awaited(coroutine: Awaitable[Any], scope: Scope, place: Place, opened: bool = True) -> Any:
    _begin(scope, place, opened)
    try:
        try:
            result = await coroutine
        except BaseException as error:
            scope.close(error)
            raise
        if scope._returned is not None:
            return scope._returned(result)
        scope.close()
        return result
    finally:
        place.leave()


def stepped(result: Any, scope: Scope, place: Place, *, opened: bool) -> Any:
    """A generator or async generator with each of its steps in a scope, which opens at the first one."""
    if type(result) is GeneratorType and result.gi_code.co_flags & CO_ITERABLE_COROUTINE:
        return _awaited(cast("Awaitable[Any]", result), scope, place, opened)
    alive: Alive = []
    steps = _steps if type(result) is GeneratorType else _async_steps
    made: Any = steps(result, scope, place, opened, alive)
    alive.append(weakref.ref(made, _forget))
    return made


def _forget(reference: object) -> None:
    """A weak reference with a callback is cleared before its object's finalizer runs, in each version."""


def _end(scope: Scope, error: BaseException | None, alive: Alive) -> None:
    if isinstance(error, GeneratorExit) and alive[0]() is None and Dropped.put is not None:
        Dropped.put(functools.partial(scope.close, error))
    else:
        scope.close(error)


def _begin(scope: Scope, place: Place, opened: bool) -> None:
    if opened:
        place.enter()
        return
    place.begin()
    try:
        scope._begin()
    except BaseException:
        place.leave()
        raise


def _steps(
    generator: Generator[Any, Any, Any],
    scope: Scope,
    place: Place,
    opened: bool,
    alive: Alive,
) -> Generator[Any, Any, Any]:
    take = scope._take
    step: Callable[[Any], Any] = generator.send
    sent: Any = None
    failed: BaseException | None = None
    _begin(scope, place, opened)
    try:
        while True:
            try:
                value = step(sent)
            except StopIteration as stop:
                return stop.value
            sent = None
            if take is not None:
                take(value)
            place.leave()
            try:
                sent = yield value
            except BaseException as thrown:  # GeneratorExit too: closing is throwing that
                place.enter()
                step, sent = generator.throw, thrown
            else:
                place.enter()
                step = generator.send
    except BaseException as error:
        failed = error
        raise
    finally:
        try:
            _end(scope, failed, alive)
        finally:
            failed = sent = None
            place.leave()


async def _async_steps(
    generator: AsyncGenerator[Any, Any],
    scope: Scope,
    place: Place,
    opened: bool,
    alive: Alive,
) -> AsyncGenerator[Any, Any]:
    take = scope._take
    failed: BaseException | None = None
    _begin(scope, place, opened)
    try:
        step = _first_step(generator)
        while True:
            try:
                value = await step
            except StopAsyncIteration:
                return
            if take is not None:
                take(value)
            place.leave()
            try:
                sent = yield value
            except BaseException as thrown:
                place.enter()
                step = generator.athrow(thrown)
            else:
                place.enter()
                step = generator.asend(sent)
    except BaseException as error:
        failed = error
        raise
    finally:
        try:
            _end(scope, failed, alive)
        finally:
            failed = None
            place.leave()


def _first_step(generator: AsyncGenerator[Any, Any]) -> Any:
    """The event loop closes what it knows of when it ends: it knows the outer one, which closes this one."""
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return generator.asend(None)
    finally:
        sys.set_asyncgen_hooks(*hooks)
