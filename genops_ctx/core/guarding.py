"""Rate limits before a reservation and a breaker's permit after it: parts of the story of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .effects import Enter, Pause, PutBack, Story, Take
from .errors import CircuitOpen, RateLimitExceeded

if TYPE_CHECKING:
    from .ports import Breaker, RateLimit

__all__ = ["Guards", "Passage", "enter", "put_back", "throttle"]


class Guards(NamedTuple):
    """What stands before a call besides policies and budgets."""

    limits: tuple[RateLimit, ...] = ()
    breaker: Breaker | None = None
    target: str = ""
    """what the breaker watches, for people: the flow and where it runs, or a function"""


class Passage(NamedTuple):
    """A breaker's permit for one call, and the breaker that is to be told how it ended."""

    breaker: Breaker
    permit: object


Taken = tuple["RateLimit", object]
"""A rate limit, and the token that was taken from it."""


def throttle(
    limits: Sequence[RateLimit], attribution: Mapping[str, str], flow: str, now: float, deadline: float
) -> Story[tuple[Taken, ...] | RateLimitExceeded]:
    """Take a token from each limit, waiting as long as it and the deadline (seconds) allow; or from none."""
    taken: list[Taken] = []
    waited = 0.0
    try:
        for limit in limits:
            while True:
                answer = yield Take(limit, attribution, flow, now + waited)
                if not isinstance(answer, RateLimitExceeded):
                    break
                if waited + answer.retry_after > min(limit.max_wait, deadline):
                    yield from put_back(taken, now + waited)
                    return answer
                yield Pause(answer.retry_after)
                waited += answer.retry_after
            taken.append((limit, answer))
    except BaseException:
        yield from put_back(taken, now + waited)
        raise
    return tuple(taken)


def put_back(taken: Sequence[Taken], now: float) -> Story[None]:
    """Give tokens back, the last one first: the call was not made."""
    for limit, token in reversed(taken):
        yield PutBack(limit, token, now)


def enter(guards: Guards, now: float) -> Story[Passage | CircuitOpen | None]:
    """Ask the breaker, if there is one, to let the call through."""
    if guards.breaker is None:
        return None
    permit = yield Enter(guards.breaker, guards.target, now)
    return permit if isinstance(permit, CircuitOpen) else Passage(guards.breaker, permit)
