"""``@resilient``: retry, breaker, rate limit, cache and fallback around any function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import wrapt

from ..core.context import current_context
from ..core.errors import ConfigurationError
from ..runtime import get_runtime
from .cache import Found
from .options import Resilience
from .serving import Place, Work, guarded, run, run_async, serve

__all__ = ["ResilientFunction", "resilient"]

F = TypeVar("F", bound=Callable[..., Any])

PATIENCE = 600.0
"""Seconds that a function waits at most for a turn, or for another that computes the same answer."""


def resilient(
    *,
    retry: Any = None,
    breaker: Any = None,
    rate_limit: Any = None,
    cache: Any = None,
    fallback: Any = None,
    name: str | None = None,
) -> Callable[[F], F]:
    """Make a function or coroutine function resilient; what is not given is off.

    Inside, in this order: the cache; then for each target in turn, for each try: the rate limit, the
    breaker, the function. Below ``@governed(meter=…)`` each try is metered as an attempt of one
    operation, and a cached answer not at all; above it, each try is an invocation of its own.

    Args:
        retry: True, a number of retries, or a :class:`~genops_ctx.resilience.RetryConfig`.
        breaker: True, a number of failures, or a :class:`~genops_ctx.resilience.CircuitBreaker`.
        rate_limit: ``"60/minute"``, a :class:`~genops_ctx.resilience.RateLimiter`, or a list of them.
        cache: True (an hour), a number of seconds, or a :class:`~genops_ctx.resilience.QueryCache`. The
            key is made of the arguments and the tenant; arguments need to be told apart by their value.
        fallback: an answer (text or dict), a function of the same arguments, a
            :class:`~genops_ctx.resilience.Failover`, or a list with the answer last.
        name: for records and for what processes share; the function's qualified name unless given.

    Raises:
        ConfigurationError: at decoration, for bad values.
    """

    def decorate(wrapped: Any) -> Any:
        inner = getattr(wrapped, "__wrapped__", wrapped)
        if (
            inspect.isgeneratorfunction(inner)
            or inspect.isasyncgenfunction(inner)
            or inspect.isclass(wrapped)
        ):
            raise ConfigurationError("resilient() decorates functions and coroutine functions")
        if not callable(wrapped):
            raise ConfigurationError("resilient() takes keywords only, like @resilient(retry=3)")
        title = name or f"{wrapped.__module__}.{wrapped.__qualname__}".replace("<locals>.", "")
        options = Resilience.of(
            title,
            per_target=True,
            retry=retry,
            breaker=breaker,
            rate_limit=rate_limit,
            cache=cache,
            fallback=fallback,
        )
        if options is not None and options.failover is not None:
            for target in options.failover.targets:
                if target.call is None:
                    raise ConfigurationError(
                        f"target {target.label!r} is a flow, which can stand in for a flow only: give the "
                        "fallback to the adapter, or a function that calls it"
                    )
        return ResilientFunction(wrapped, options or Resilience(), title)

    return decorate


class ResilientFunction(wrapt.FunctionWrapper[Any, Any]):
    """A function with its options."""

    def __init__(self, wrapped: Any, options: Resilience, title: str) -> None:
        self._self_options = options
        self._self_title = title
        self._self_is_async = inspect.iscoroutinefunction(_unwrapped(wrapped))
        super().__init__(wrapped, self._served)

    def around(self, wrapped: Any) -> ResilientFunction:
        """The same options around another function, for ``@governed(meter=…)`` over this one."""
        return ResilientFunction(wrapped, self._self_options, self._self_title)

    def _served(self, function: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        work = self._work(function, instance, args, kwargs)
        return run_async(serve(work)) if self._self_is_async else run(serve(work))

    def _work(self, function: Any, instance: Any, args: Any, kwargs: Any) -> Work:
        options, title = self._self_options, self._self_title
        places = [Place(title, partial(self._guarded, function, args, kwargs, title, None))]
        failover = options.failover
        if failover is not None:
            first = Place(title, places[0].run, failover.nanos)
            places = [first] + [
                Place(
                    target.label,
                    partial(self._guarded, target.call, args, kwargs, target.label, target.breaker),
                    target.nanos,
                )
                for target in failover.targets
            ]
        work = Work(title, places, options.retry, patience=PATIENCE, keep=_kept, hit=_revived)
        if failover is not None:
            work = work._replace(cheapest=failover.order == "cheapest", answer=failover.answer)
        cache = options.cache
        if cache is None:
            return work
        attribution = _attribution()
        tenant = [[key, attribution.get(key)] for key in cache.by]
        key = cache.key(title, tenant, *([] if instance is None else [instance]), list(args), kwargs)
        return work._replace(cache=cache, key=key)

    def _guarded(self, function: Any, args: Any, kwargs: Any, target: str, breaker: Any) -> Any:
        guards = self._self_options.guards(target, breaker)
        if guards is None:
            return function(*args, **kwargs)
        story = guarded(partial(function, *args, **kwargs), guards, _attribution(), target, PATIENCE)
        return run_async(story) if self._self_is_async else run(story)


def _unwrapped(function: Any) -> Any:
    if isinstance(function, classmethod | staticmethod):
        return function.__func__
    return function


def _attribution() -> dict[str, str]:
    context = current_context()
    configured = get_runtime().settings.attribution
    return {**configured, **context.inherited} if context is not None else dict(configured)


def _kept(result: Any) -> Found | None:
    charge = getattr(result, "charge", None)
    return Found(result, getattr(charge, "nanos", None))


def _revived(found: Found) -> Any:
    """An answer that carries its charge says that this time it cost nothing."""
    as_cached = getattr(found.value, "as_cached", None)
    return as_cached(found.nanos) if callable(as_cached) else found.value
