"""Rate limits before a reservation and a breaker's permit after it: parts of the story of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .effects import Enter, Leave, Pause, PutBack, Story, Take
from .errors import CallRefused
from .outcomes import Outcome
from .ports import Turn

if TYPE_CHECKING:
    from .ports import Breaker, Limiter

__all__ = ["Guards", "Passage", "enter", "leave", "put_back", "throttle"]


class Guards(NamedTuple):
    """What stands before a call besides policies and budgets."""

    limiters: tuple[Limiter, ...] = ()
    breakers: tuple[Breaker, ...] = ()
    target: str = ""
    """what the breakers watch, for people: the flow and where it runs, or a function"""


class Passage(NamedTuple):
    """A breaker's permit for one call, and the breaker that is to be told how it ended."""

    breaker: Breaker
    permit: object


Taken = tuple["Limiter", Turn]
"""A limiter, and the turn that it gave."""


def throttle(
    limiters: Sequence[Limiter], attribution: Mapping[str, str], flow: str, now: float, deadline: float
) -> Story[tuple[Taken, ...] | CallRefused]:
    """Ask each limiter for a turn and wait for it, within the deadline (seconds); keep all turns or none."""
    taken: list[Taken] = []
    waited = 0.0
    try:
        for limiter in limiters:
            turn = yield Take(limiter, attribution, flow, now + waited, deadline - waited)
            if isinstance(turn, CallRefused):
                yield from put_back(taken, now + waited)
                return turn
            assert isinstance(turn, Turn)
            taken.append((limiter, turn))
            if turn.wait > 0:
                yield Pause(turn.wait)
                waited += turn.wait
    except BaseException:
        yield from put_back(taken, now + waited)
        raise
    return tuple(taken)


def put_back(taken: Sequence[Taken], now: float) -> Story[None]:
    """Give turns back, the last one first: the call was not made. Each is, whatever stops this."""
    stopped: BaseException | None = None
    for limiter, turn in reversed(taken):
        try:
            yield PutBack(limiter, turn, now)
        except BaseException as error:
            stopped = error
    if stopped is not None:
        raise stopped


def enter(guards: Guards, now: float, life: float | None = None) -> Story[tuple[Passage, ...] | CallRefused]:
    """Ask each breaker to let a call through that may take ``life`` seconds; keep all permits or none."""
    passages: list[Passage] = []
    try:
        for breaker in guards.breakers:
            permit = yield Enter(breaker, guards.target, now, life)
            if isinstance(permit, CallRefused):
                yield from leave(passages, Outcome.NOT_SENT, permit, now)
                return permit
            passages.append(Passage(breaker, permit))
    except BaseException as error:
        yield from leave(passages, Outcome.NOT_SENT, error, now)
        raise
    return tuple(passages)


def leave(
    passages: Sequence[Passage], outcome: Outcome, error: BaseException | None, now: float
) -> Story[None]:
    """Tell the breakers how the call ended, the last one first. Each is told, whatever stops this."""
    stopped: BaseException | None = None
    for breaker, permit in reversed(passages):
        try:
            yield Leave(breaker, permit, outcome, error, now)
        except BaseException as problem:
            stopped = problem
    if stopped is not None:
        raise stopped
