"""How much to set aside for a call: the ladder from a promise down to a default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .budget import Budget
from .errors import ConfigurationError, PriceUnknown
from .money import format_dollars

__all__ = [
    "ENOUGH_CHARGES",
    "ENOUGH_FOR_FLOOR",
    "SPENT_ALREADY",
    "Expectation",
    "Forecast",
    "expected_amount",
]

ENOUGH_CHARGES = 20
"""From so many charges of a flow on, their 99th percentile is used."""

ENOUGH_FOR_FLOOR = 10
"""From so many on, their 10th percentile is the least that a call is let through on. Of ten it is the
cheapest: one call in eleven will cost less than that, and of more charges no more than one in ten."""


class Earlier(NamedTuple):
    """What earlier charges of a flow tell, in nano-dollars; None where they are too few."""

    typical: int | None = None
    """their 99th percentile"""
    least: int | None = None
    """their 10th percentile"""
    charges: int = 0


NOTHING_EARLIER = Earlier()


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is known of a call before it is made. Amounts in nano-dollars, None where unknown."""

    typical: int | None = None
    """99th percentile of earlier charges of the flow"""
    estimate: int | None = None
    """priced estimate of its input and a usual output"""
    ceiling: int | None = None
    """what it can cost at most, by the flow's token limits"""
    free: bool = False
    """every model of it is known to cost nothing"""
    unpriced: tuple[str, ...] = ()
    """models of the flow without a known price"""
    least: int | None = None
    """10th percentile of earlier charges of the flow"""
    charges: int = 0
    """how many earlier charges those percentiles are of"""
    since: float | None = None
    """when the flow was last changed, epoch seconds: what it cost before says nothing. None where unknown"""

    def after(self, earlier: Earlier) -> Forecast:
        """With what earlier charges of the flow tell."""
        typical, least, charges = earlier
        if typical is None and least is None:
            return self
        return replace(self, typical=typical, least=least, charges=charges)

    def with_fee(self, fee: int | None) -> Forecast:
        """With a fee on top, which a call pays whatever its models cost; None where it is unknown."""
        if fee is None:
            return replace(self, estimate=None, ceiling=None, free=False)
        return replace(
            self,
            estimate=None if self.estimate is None else self.estimate + fee,
            ceiling=None if self.ceiling is None else self.ceiling + fee,
            free=self.free and fee == 0,
        )


@dataclass(frozen=True, slots=True)
class Expectation:
    """How much to set aside (nano-dollars), and how that came about."""

    amount: int
    because: str
    at_most: bool = True
    """derived, so it may be cut to what is left; False for a ``max_cost``"""
    free: bool = False
    floor: int = 0
    """what the call is known to cost at least: it is not cut to less"""
    floor_because: str = ""
    """how the floor came about; empty without one"""


NOTHING = Expectation(0, "no budget in scope", free=True)
SPENT_ALREADY = Expectation(0, "the call was made already", free=True)
"""For what is booked after the fact: it cannot be refused."""


def expected_amount(
    budgets: Sequence[Budget], forecast: Forecast, max_cost: int | None = None
) -> Expectation:
    """The amount that one reservation takes from every account in scope.

    Raises :class:`PriceUnknown` where a budget blocks unpriced models and the flow has one, and
    :class:`ConfigurationError` where a strict budget has nothing to go by.
    """
    if not budgets:
        return NOTHING
    if forecast.unpriced and any(budget.on_unpriced == "block" for budget in budgets):
        names = ", ".join(forecast.unpriced)
        raise PriceUnknown(
            f"no price is known for {names}, and the budget says on_unpriced='block'; set a price "
            f"(genops-ctx prices set) or use on_unpriced='reserve'"
        )
    if max_cost is not None:
        # A promise of nothing is no proof: only what is known to be free passes a used-up budget.
        return Expectation(max_cost, "max_cost", at_most=False, free=forecast.free and not max_cost)
    if forecast.free:
        return Expectation(0, "every model of the flow is free", free=True)
    if any(budget.admission == "strict" for budget in budgets):
        if forecast.ceiling is None:
            raise ConfigurationError(
                "a strict budget needs to know what the call can cost at most: pass max_cost=, "
                "or give every model node of the flow a token limit and a price"
            )
        free = forecast.ceiling == 0
        return Expectation(forecast.ceiling, "ceiling of the flow's token limits", at_most=False, free=free)
    amount, because = _likely(budgets, forecast)
    floor = forecast.least or 0
    floor_because = f"10th percentile of {forecast.charges} earlier charges of this flow" if floor else ""
    if floor > amount:
        amount, because = floor, floor_because
    if forecast.ceiling is not None and forecast.ceiling < amount:
        amount, because = forecast.ceiling, "ceiling of the flow's token limits"
    return Expectation(amount, because, floor=min(floor, amount), floor_because=floor_because)


def _likely(budgets: Sequence[Budget], forecast: Forecast) -> tuple[int, str]:
    if forecast.typical is not None:
        return max(forecast.typical, 1), "99th percentile of earlier charges of this flow"
    if forecast.estimate is not None and not forecast.unpriced:
        return max(forecast.estimate, 1), "estimate from the flow's models and the length of the input"
    amount = min(budget.default_nanos for budget in budgets)
    return amount, f"default reservation, {format_dollars(amount)}, since nothing is known of the call yet"


def earlier(ranked: Sequence[int]) -> Earlier:
    """What charges of a flow tell, in ascending order (nano-dollars), as far as they are enough."""
    count = len(ranked)
    if count < ENOUGH_FOR_FLOOR:
        return NOTHING_EARLIER
    typical = _percentile(ranked, 99) if count >= ENOUGH_CHARGES else None
    return Earlier(typical, _percentile(ranked, 10), count)


def _percentile(ranked: Sequence[int], percent: int) -> int:
    """The percentile (nearest rank) of costs in ascending order."""
    return ranked[-(-percent * len(ranked) // 100) - 1]
