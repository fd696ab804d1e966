"""Where a call goes when its first target fails: other flows, instances, models, functions, an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ..core.errors import ConfigurationError
from ..core.money import Amount, nanos_up, parse_dollars
from .breaker import CircuitBreaker
from .classification import ErrorClassifier
from .retry import RetryConfig, execute_with_retry

__all__ = ["NO_ANSWER", "Failover", "Target", "failover_of", "query_with_fallback"]

log = logging.getLogger("genops_ctx")

NO_ANSWER: Final = object()
"""There is no fallback answer: the last error is raised."""


@dataclass(frozen=True, slots=True)
class Target:
    """Another way to serve a call. One of ``call``, or any of ``adapter``, ``flow`` and ``override``."""

    call: Callable[..., Any] | None = None
    """a function: given the arguments of the function it stands in for; for an adapter, the question"""
    adapter: Any = None
    """another Flowise"""
    flow: str | None = None
    """another flow, by id or unique name"""
    override: Mapping[str, Any] = field(default_factory=dict)
    """another model, say: put over the call's ``overrideConfig``; the flow must allow overrides"""
    name: str = ""
    """for records; made of the rest unless given"""
    cost: Amount | None = None
    """dollars that a call usually costs there, to order by; one without comes last"""
    breaker: CircuitBreaker | None = None
    """of ``call``; that of the option unless given"""

    def __post_init__(self) -> None:
        elsewhere = self.adapter is not None or self.flow is not None or bool(self.override)
        if (self.call is not None) == elsewhere:
            raise ConfigurationError("a Target is a call=, or one or more of adapter=, flow= and override=")
        if self.call is not None and not callable(self.call):
            raise ConfigurationError("Target(call=) must be a function")
        if self.adapter is not None and not hasattr(self.adapter, "predict_flow"):
            raise ConfigurationError("Target(adapter=) must be an adapter, which has predict_flow()")
        if self.cost is not None:
            parse_dollars(self.cost, what="cost")

    @property
    def label(self) -> str:
        """What records call it."""
        if self.name:
            return self.name
        if self.call is not None:
            return getattr(self.call, "__qualname__", type(self.call).__name__).rpartition("<locals>.")[2]
        parts = [] if self.adapter is None else [str(getattr(self.adapter, "base_url", "another adapter"))]
        parts += [] if self.flow is None else [self.flow]
        parts += [f"override of {', '.join(sorted(self.override))}"] if self.override else []
        return " ".join(parts)

    @property
    def nanos(self) -> int | None:
        return None if self.cost is None else nanos_up(parse_dollars(self.cost, what="cost"))


@dataclass(frozen=True, slots=True)
class Failover:
    """Targets to go to in turn, and an answer for when all of them fail."""

    targets: Sequence[Target] = ()
    answer: Any = NO_ANSWER
    """given where nothing else can; costs nothing and is never cached"""
    order: Literal["given", "cheapest"] = "given"
    """``cheapest``: the first target too takes its turn by cost; those of unknown cost come last"""
    cost: Amount | None = None
    """dollars that a call of the first target usually costs"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.order not in ("given", "cheapest"):
            raise ConfigurationError(f"order must be 'given' or 'cheapest', not {self.order!r}")
        if any(not isinstance(target, Target) for target in self.targets):
            raise ConfigurationError("Failover(targets=) takes Target objects")
        if not self.targets and self.answer is NO_ANSWER:
            raise ConfigurationError("a Failover needs targets=, answer=, or both")
        _ = self.nanos

    @property
    def nanos(self) -> int | None:
        """What a call of the first target usually costs."""
        return None if self.cost is None else nanos_up(parse_dollars(self.cost, what="cost"))


def failover_of(value: object) -> Failover | None:
    """What ``fallback=`` means.

    A text or dict is an answer; an adapter, a function or a :class:`Target` a target; a list several, with
    the answer last.
    """
    if value is None or value is False:
        return None
    if isinstance(value, Failover):
        return value
    if isinstance(value, str | dict):
        return Failover(answer=value)
    if isinstance(value, list | tuple):
        items, answer = list(value), NO_ANSWER
        if items and isinstance(items[-1], str | dict):
            answer = items.pop()
        return Failover(tuple(map(_target, items)), answer)
    return Failover((_target(value),))


def _target(value: object) -> Target:
    if isinstance(value, Target):
        return value
    if hasattr(value, "predict_flow"):
        return Target(adapter=value)
    if callable(value):
        return Target(call=value)
    raise ConfigurationError(
        "fallback must be an answer (text or dict), an adapter, a function, a Target, a Failover, or a list "
        f"of them with the answer last; not {value!r}"
    )


async def query_with_fallback(
    agent: Any,
    query: str,
    fallback_response: str = "I cannot answer right now. Please try again later.",
    config: RetryConfig | None = None,
    **options: Any,
) -> Any:
    """The text of ``agent.run(query)``, retried where that may help; ``fallback_response`` where all fails.

    Whatever is raised is answered by the fallback and logged by its type, as an error where a person has
    to do something about it.
    """
    try:
        result = await execute_with_retry(agent, query, config, **options)
    except Exception as error:
        alert = ErrorClassifier.should_alert(error)
        log.log(
            logging.ERROR if alert else logging.WARNING,
            "a query failed (%s) and was answered by the fallback",
            type(error).__name__,
        )
        return fallback_response
    if isinstance(result, Mapping):
        return result.get("text", result)
    return getattr(result, "content", result)
