"""Retry: off unless asked for, because a prediction that is sent again is paid again.

The waiting is stamina's: exponential backoff with jitter, capped by a number of tries and by a total
time. What is worth another try is :mod:`.classification`'s to say, and ``Retry-After`` is honoured. Each
try is an attempt of one operation: admitted by the budgets, and booked at what it cost.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..core.errors import ConfigurationError
from ..core.operations import Tries, trying
from .classification import classify

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = [
    "RetryConfig",
    "execute_flow_with_retry",
    "execute_with_retry",
    "retry_of",
    "retrying",
    "retrying_async",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """How often, how long and after what to try again. Durations in seconds.

    The first retry waits ``base_delay``, each further one ``exponential_base`` times as long, up to
    ``max_delay``, with up to ``jitter`` on top. Where the other side says ``Retry-After``, that is waited
    instead, or the error raised at once where it does not fit into ``max_elapsed``.

    Raises :class:`ConfigurationError` for numbers out of range.
    """

    max_retries: int = 3
    """tries after the first one: 3 makes 4 tries at most"""
    base_delay: float = 1.0
    max_delay: float = 60.0
    exponential_base: float = 2.0
    jitter: float = 1.0
    max_elapsed: float | None = 300.0
    """from the first try on, no try begins after so long; None for no such cap"""
    unpaid_only: bool = False
    """try again only where the failed try is proved to have cost nothing"""
    on: type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool] | None = None
    """which errors, instead of those that :func:`.classify` calls retriable"""

    def __post_init__(self) -> None:
        if isinstance(self.max_retries, bool) or not isinstance(self.max_retries, int):
            raise ConfigurationError(f"max_retries must be a whole number, not {self.max_retries!r}")
        if not 0 <= self.max_retries <= 100:
            raise ConfigurationError(f"max_retries must be from 0 to 100, not {self.max_retries}")
        for name in ("base_delay", "max_delay", "jitter"):
            _check_seconds(name, getattr(self, name))
        if self.max_elapsed is not None:
            _check_seconds("max_elapsed", self.max_elapsed)
        if not 1 <= self.exponential_base <= 100:
            raise ConfigurationError(f"exponential_base must be from 1 to 100, not {self.exponential_base!r}")

    def wants(self, error: Exception) -> bool:
        """Whether this error is tried again, time permitting."""
        known = classify(error)
        if self.unpaid_only and known.paid:
            return False
        if self.on is None:
            return known.retriable
        if isinstance(self.on, type | tuple):
            return isinstance(error, self.on)
        return bool(self.on(error))


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 86_400:
        raise ConfigurationError(f"{name} must be from 0 to 86400 seconds, not {value!r}")


def retry_of(value: object) -> RetryConfig | None:
    """What ``retry=`` means: None or False for none, True for the usual, a number of retries, or a config."""
    if value is None or value is False:
        return None
    if value is True:
        return RetryConfig()
    if isinstance(value, int):
        return RetryConfig(max_retries=value)
    if isinstance(value, RetryConfig):
        return value
    raise ConfigurationError(f"retry must be True, a number of retries or a RetryConfig, not {value!r}")


class _Loop:
    """The tries of one call: when they end, and that they are attempts of the same operations."""

    def __init__(self, config: RetryConfig) -> None:
        if find_spec("stamina") is None:
            raise ConfigurationError("retry= needs stamina: pip install 'genops_ctx[resilience]'")
        import stamina

        self._config = config
        self._began = time.monotonic()
        self._tries = Tries()
        self.context = stamina.retry_context(
            on=self._wait,
            attempts=config.max_retries + 1,
            timeout=config.max_elapsed,
            wait_initial=config.base_delay,
            wait_max=config.max_delay,
            wait_jitter=config.jitter,
            wait_exp_base=config.exponential_base,
        )

    def _wait(self, error: BaseException) -> bool | float:
        """Whether to try again; in how many seconds, where the other side says."""
        if not isinstance(error, Exception) or not self._config.wants(error):
            return False  # tenacity shows cancellations and interrupts too
        after = classify(error).retry_after
        if after is None:
            return True
        limit = self._config.max_elapsed
        if limit is not None and time.monotonic() - self._began + after > limit:
            return False
        return after

    @contextmanager
    def attempt(self, caught: AbstractContextManager[object]) -> Iterator[None]:
        with caught:
            self._tries.again()
            with trying(self._tries):
                yield


def retrying(config: RetryConfig) -> Iterator[AbstractContextManager[None]]:
    """``for attempt in retrying(config): with attempt: …``, until a try does not fail."""
    loop = _Loop(config)
    for caught in loop.context:
        yield loop.attempt(caught)


async def retrying_async(config: RetryConfig) -> AsyncIterator[AbstractContextManager[None]]:
    """As :func:`retrying`, with ``async for``."""
    loop = _Loop(config)
    async for caught in loop.context:
        yield loop.attempt(caught)


# -- as the guides call them --------------------------------------------------------------------


class _Flowise(Protocol):
    def predict_flow(self, chatflow_id: str, question: str, **options: Any) -> Any: ...


def execute_flow_with_retry(
    flowise: _Flowise,
    chatflow_id: str,
    question: str,
    max_retries: int = 3,
    base_delay: float = 1.0,
    max_delay: float = 60.0,
    **options: Any,
) -> Any:
    """Run a flow, again where that may help; returns the answer and raises the last error.

    Args:
        flowise: an adapter.
        chatflow_id, question: as of ``predict_flow()``.
        max_retries: tries after the first one.
        base_delay, max_delay: of :class:`RetryConfig`.
        **options: all else that ``predict_flow()`` takes.
    """
    config = RetryConfig(max_retries=max_retries, base_delay=base_delay, max_delay=max_delay)
    for attempt in retrying(config):
        with attempt:
            return flowise.predict_flow(chatflow_id, question, **options)
    raise AssertionError("the last try returns or raises")


async def execute_with_retry(
    agent: Any, query: str, config: RetryConfig | None = None, **options: Any
) -> Any:
    """Await ``agent.run(query, **options)``, again where that may help.

    ``agent`` is anything with a ``run`` method, or a function; sync or async.
    """
    run = getattr(agent, "run", agent)
    if not callable(run):
        raise ConfigurationError(
            f"execute_with_retry() needs an agent with run(), not {type(agent).__name__}"
        )
    async for attempt in retrying_async(config if config is not None else RetryConfig()):
        with attempt:
            return await awaited(run(query, **options))
    raise AssertionError("the last try returns or raises")


async def awaited(result: T | Awaitable[T]) -> T:
    """The result of a function that may be a coroutine function."""
    return await result if inspect.isawaitable(result) else result
