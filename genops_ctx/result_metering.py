"""``meter=``: from what a function gave back, at once or as a stream, to the usage that is booked."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import wrapt

from .core.context import GovernanceContext
from .core.current import Place, around
from .core.errors import ConfigurationError
from .core.records import Charge, CostSource, Exactness, Usage
from .core.steps import Dropped
from .metered import MeteredCall, metered_call
from .pricing.tokens import estimate_tokens
from .runtime import get_runtime
from .wire.model_events import ModelEvents, Partial
from .wire.model_results import usage_of_result

if TYPE_CHECKING:
    from .core.money import Amount
    from .core.scope import Spec

__all__ = ["Meter", "Metered", "MeteredScope"]

log = logging.getLogger("genops_ctx")

Metered: TypeAlias = Usage | Iterable[Usage] | Decimal | None
Meter: TypeAlias = Callable[[Any], Metered]
"""Turns a function's result into its usage, a list of them, a cost in dollars, or None for no call."""

_HINT = (
    "meter=\"auto\" reads results and streams of OpenAI's and Anthropic's shapes; a streamed chat completion "
    'tells its usage where stream_options={"include_usage": True} asks for it'
)


class MeteredScope:
    """A context with one metered call in it, which is booked by what the function gives."""

    __slots__ = ("_around", "_call", "_context", "_items", "_max_cost", "_meter", "_spec")

    def __init__(self, spec: Spec, meter: Meter | Literal["auto"], max_cost: Amount | None) -> None:
        self._spec = spec
        self._meter = meter
        self._max_cost = max_cost
        self._items: ModelEvents | list[Any] | None = None

    def _begin(self) -> None:
        self._open()
        try:
            self._call.__enter__()
        except BaseException as error:
            self._context.close(error)
            raise

    async def _begin_async(self) -> None:
        self._open()
        try:
            await self._call.__aenter__()
        except BaseException as error:
            self._context.close(error)
            raise

    async def _booked(self) -> None:
        """Return once the call is in the ledger, or outlives this process; within a moment."""
        await self._call._booked()

    def _open(self) -> None:
        self._context = GovernanceContext(self._spec)
        self._context._begin()
        self._around = around.get()
        try:
            self._call = metered_call(self._spec.name or "?", max_cost=self._max_cost)
        except BaseException as error:
            self._context.close(error)
            raise
        if self._meter == "auto":
            self._call.hint = _HINT

    def _leave(self) -> None:
        self._context._leave()
        around.set(self._around)
        # What is dropped is finished by a thread: a finalizer must not start one.
        get_runtime().abandoned.watch()

    def _take(self, value: Any) -> None:
        """Part of a stream."""
        if self._items is None:
            self._items = ModelEvents() if self._meter == "auto" else []
        if isinstance(self._items, list):
            self._items.append(value)
        else:
            _guarded(self._call, self._items.feed, value)

    def _returned(self, result: Any) -> Any:
        kind = type(result)
        if self._meter == "auto" and _booked_itself(result):
            self._call.not_sent()
            self.close()
            return result
        if hasattr(kind, "__next__") or hasattr(kind, "__anext__"):
            place = Place(GovernanceContext.observer)
            self._leave()
            proxy = _Stream if hasattr(kind, "__next__") else _AsyncStream
            return proxy(result, self, place)
        if self._meter == "auto":
            _guarded(self._call, _record_result, self._call, result)
        else:
            meter = self._meter
            _guarded(self._call, lambda: _record(self._call, meter(result)))
        self.close()
        return result

    def close(self, error: BaseException | None = None) -> None:
        try:
            if self._items is not None:
                self._meter_stream(self._items)
            self._call.__exit__(type(error) if error is not None else None, error, None)
        finally:
            self._context.close(error)

    def _meter_stream(self, items: ModelEvents | list[Any]) -> None:
        if isinstance(items, ModelEvents):
            _guarded(self._call, _record_events, self._call, items)
        elif self._meter != "auto":
            meter = self._meter
            _guarded(self._call, lambda: _record(self._call, meter(items)))


def _booked_itself(result: object) -> bool:
    """An adapter's answer, or its stream, which is booked at its end."""
    ours = type(result).__module__.startswith("genops_ctx.providers.")
    return isinstance(getattr(result, "charge", None), Charge) or (ours and hasattr(result, "charge"))


def _guarded(call: MeteredCall, step: Callable[..., object], *args: Any) -> None:
    """A meter that fails does not take the paid result away: its cost is booked as unknown."""
    try:
        step(*args)
    except Exception as error:
        log.error("meter of %s failed with %s; the cost is unknown", call.name, type(error).__name__)


def _record(call: MeteredCall, metered: Metered) -> None:
    if metered is None:
        call.not_sent()
    elif isinstance(metered, Usage):
        call.add(metered)
    elif isinstance(metered, Decimal):
        call.record_cost(metered)
    else:
        usages = list(metered) if isinstance(metered, Iterable) else [metered]
        if not usages:
            call.not_sent()
        # All or none: half of a call's usage would pass for the whole.
        for usage in usages:
            if not isinstance(usage, Usage):
                raise TypeError(f"a meter gives Usage, a list of Usage, Decimal or None, not {type(usage)}")
        for usage in usages:
            call.add(usage)


def _record_result(call: MeteredCall, result: object) -> None:
    results = result if isinstance(result, list | tuple) else [result]
    usages = [usage_of_result(item) for item in results]
    if all(usages):
        for usage in usages:
            assert usage is not None
            call.add(usage)


def _record_events(call: MeteredCall, events: ModelEvents) -> None:
    for usage in events.usages:
        call.add(usage)
    for partial in events.partials:
        _record_partial(call, partial)


def _record_partial(call: MeteredCall, partial: Partial) -> None:
    """What was told, and the text that came; the input of OpenAI's shapes is not known before the end."""
    known = partial.input_told
    written = estimate_tokens(partial.text, partial.model)
    if known is not None:
        written = max(written, known.output_tokens)
    try:
        estimate = Usage(
            partial.provider,
            partial.model,
            input_tokens=known.input_tokens if known is not None else 0,
            output_tokens=written,
            cache_read_tokens=known.cache_read_tokens if known is not None else 0,
            cache_write_tokens=known.cache_write_tokens if known is not None else 0,
            cache_write_1h_tokens=known.cache_write_1h_tokens if known is not None else 0,
            source=CostSource.ESTIMATED,
            exactness=Exactness.ESTIMATED,
        )
    except ConfigurationError:
        return
    call.add_partial(estimate, unknown=known is None)


class _Streamed(wrapt.ObjectProxy):  # type: ignore[type-arg,unused-ignore]
    """A stream of a client, each of whose steps runs in the scope, which closes with it."""

    def __init__(self, stream: Any, scope: MeteredScope, place: Place) -> None:
        super().__init__(stream)
        self._self_scope = scope
        self._self_place = place
        self._self_over = False

    def _self_end(self, error: BaseException | None) -> None:
        if not self._self_over:
            self._self_over = True
            self._self_scope.close(error)

    def close(self, *args: Any, **kwargs: Any) -> Any:
        """Close the stream; what has come until now is booked."""
        try:
            return self.__wrapped__.close(*args, **kwargs)
        finally:
            self._self_end(GeneratorExit())

    def __del__(self) -> None:
        if not getattr(self, "_self_over", True) and Dropped.put is not None:
            self._self_over = True
            Dropped.put(functools.partial(self._self_scope.close, GeneratorExit()))


class _Stream(_Streamed):
    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        place = self._self_place
        place.enter()
        try:
            try:
                item = next(self.__wrapped__)
            except StopIteration:
                self._self_end(None)
                raise
            except BaseException as error:
                self._self_end(error)
                raise
            self._self_scope._take(item)
            return item
        finally:
            place.leave()

    def __enter__(self) -> Any:
        self.__wrapped__.__enter__()
        return self

    def __exit__(self, *args: Any) -> Any:
        try:
            return self.__wrapped__.__exit__(*args)
        finally:
            self._self_end(GeneratorExit())


class _AsyncStream(_Streamed):
    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        place = self._self_place
        place.enter()
        try:
            try:
                item = await anext(self.__wrapped__)
            except StopAsyncIteration:
                self._self_end(None)
                await self._self_scope._booked()
                raise
            except BaseException as error:
                self._self_end(error)
                raise
            self._self_scope._take(item)
            return item
        finally:
            place.leave()

    async def __aenter__(self) -> Any:
        await self.__wrapped__.__aenter__()
        return self

    async def __aexit__(self, *args: Any) -> Any:
        try:
            return await self.__wrapped__.__aexit__(*args)
        finally:
            self._self_end(GeneratorExit())

    def aclose(self) -> Any:
        """Close the stream; what has come until now is booked."""
        try:
            return self.__wrapped__.aclose()
        finally:
            self._self_end(GeneratorExit())
