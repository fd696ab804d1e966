"""A rate that follows the errors of what it limits: fewer requests while it fails, more while it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .errors import ConfigurationError

__all__ = ["AdaptiveRate", "Observed", "observe", "rate_of"]


@dataclass(frozen=True, slots=True)
class AdaptiveRate:
    """From ``base``, between ``minimum`` and ``maximum`` requests a period.

    After each ``sample`` calls the rate is looked at once: with more than ``shrink_above`` of them
    failed it is multiplied by ``shrink``, with less than ``grow_below`` by ``grow``, by 1 at least in
    either direction, so that it leaves any rate again.

    Raises :class:`ConfigurationError` for numbers that contradict each other.
    """

    base: int
    minimum: int = 1
    maximum: int = 1_000_000_000
    sample: int = 100
    shrink_above: float = 0.1
    grow_below: float = 0.01
    shrink: float = 0.8
    grow: float = 1.2

    def __post_init__(self) -> None:
        for name in ("base", "minimum", "maximum", "sample"):
            if type(getattr(self, name)) is not int:
                raise ConfigurationError(f"{name} of an adaptive rate must be a whole number")
        if not 1 <= self.minimum <= self.base <= self.maximum <= 1_000_000_000:
            raise ConfigurationError("an adaptive rate needs 1 <= minimum <= base <= maximum <= 1000000000")
        if self.sample < 1 or not 0 <= self.grow_below <= self.shrink_above <= 1:
            raise ConfigurationError(
                "an adaptive rate needs sample >= 1, 0 <= grow_below <= shrink_above <= 1"
            )
        if not 0 < self.shrink < 1 < self.grow <= 10:
            raise ConfigurationError("an adaptive rate needs 0 < shrink < 1 < grow <= 10")


class Observed(NamedTuple):
    """The rate now, and what was seen since it was last looked at."""

    rate: int
    calls: int = 0
    failures: int = 0


def observe(seen: Observed | None, rule: AdaptiveRate, failed: bool) -> Observed:
    """One more call, and the rate that follows."""
    before = seen or Observed(rule.base)
    rate = rate_of(before, rule)
    calls, failures = before.calls + 1, before.failures + failed
    if calls < rule.sample:
        return Observed(rate, calls, failures)
    if failures > rule.shrink_above * calls:
        rate = max(min(int(rate * rule.shrink), rate - 1), rule.minimum)
    elif failures < rule.grow_below * calls:
        rate = min(max(int(rate * rule.grow), rate + 1), rule.maximum)
    return Observed(rate)


def rate_of(seen: Observed | None, rule: AdaptiveRate) -> int:
    """The rate that holds now, within the bounds of this rule."""
    return rule.base if seen is None else min(max(seen.rate, rule.minimum), rule.maximum)
