"""The generic cell rate algorithm (GCRA): a token bucket kept as one time, in whole numbers.

A bucket holds ``burst`` requests and is refilled by ``limit`` a ``period``. What is kept is the
*theoretical arrival time*: when it will be full again. Each request moves it on by
``period ÷ limit``; a request is admitted while it is less than ``burst`` such steps ahead of now.
The quotient is kept exactly, as microseconds and a remainder in ``limit``-ths of one, so that nothing
drifts: of 7 a second, 7,000,000 are admitted in a million seconds.

Source: ITU-T I.371 (the virtual scheduling algorithm).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .breaker import MICROS
from .errors import ConfigurationError

__all__ = [
    "Admitted",
    "Bucket",
    "Limited",
    "RateLimit",
    "admit",
    "full_at",
    "give_back",
    "left_after",
    "remaining",
]

_YEAR = 366 * 86_400.0
_MOST = 10**9
SET_BACK = MICROS
"""A clock that is behind the last admission by more than this was set back."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """``limit`` requests each ``period`` (seconds), ``burst`` of them at once (``limit`` unless given).

    Raises :class:`ConfigurationError` for numbers out of range.
    """

    limit: int
    period: float = 60.0
    burst: int | None = None
    period_micros: int = field(init=False, repr=False, compare=False)
    capacity: int = field(init=False, repr=False, compare=False)
    """the burst"""

    def __post_init__(self) -> None:
        for name in ("limit", "burst"):
            number = getattr(self, name)
            if number is None and name == "burst":
                continue
            if type(number) is not int or not 1 <= number <= _MOST:
                raise ConfigurationError(f"{name} must be a whole number from 1 to {_MOST}, not {number!r}")
        if not 0.001 <= self.period <= _YEAR:
            raise ConfigurationError(f"period must be from 0.001 s to a year, not {self.period!r}")
        object.__setattr__(self, "period_micros", round(self.period * MICROS))
        object.__setattr__(self, "capacity", self.limit if self.burst is None else self.burst)
        if self.steps(self.capacity)[0] > _YEAR * MICROS * 10:
            raise ConfigurationError("such a burst takes more than ten years to refill")

    def steps(self, number: int) -> tuple[int, int]:
        """So many steps: whole microseconds, and the rest in ``limit``-ths of one."""
        return divmod(self.period_micros * number, self.limit)

    def check_cost(self, cost: int) -> None:
        """Raises :class:`ConfigurationError` where a request of this cost can never be admitted."""
        if not (isinstance(cost, int) and 1 <= cost <= self.capacity):
            raise ConfigurationError(
                f"a request that costs {cost!r} can never pass a limit with a burst of {self.capacity}; "
                f"the cost is a whole number from 1 to {self.capacity}"
            )


class Bucket(NamedTuple):
    """What is kept of a limit for one key. It is full where there is none, and after ``tat``."""

    tat: int
    """theoretical arrival time: microseconds since the epoch"""
    part: int
    """and the rest, in ``limit``-ths of a microsecond"""
    limit: int
    last: int
    """microsecond of the last admission"""
    begun: int
    """when it was last full"""
    given: int
    """microseconds that were given back since"""


class Admitted(NamedTuple):
    """The request may go, in ``wait`` seconds. Keep it to give it back."""

    wait: float
    cost: int
    at: int
    """when it came: microseconds since the epoch"""
    base: int
    """where the bucket stood before: whole microseconds"""
    begun: int
    given: int
    """of the bucket then"""
    limit: int


class Limited(NamedTuple):
    """Refused: the same request is admitted in ``retry_after`` seconds, if no other comes before."""

    retry_after: float


def admit(
    bucket: Bucket | None, rule: RateLimit, cost: int, patience: int, now: int
) -> tuple[Bucket | None, Admitted | Limited]:
    """Admit a request, now or within ``patience`` (microseconds; its turn is then booked), or refuse it."""
    bucket = _settled(bucket, rule, now)
    if bucket is None or bucket.tat < now:
        tat, part, last, begun, given = now, 0, now, now, 0
    else:
        tat, part, _, last, begun, given = bucket
    base = tat
    step, rest = rule.steps(cost)
    tat, part = tat + step, part + rest
    if part >= rule.limit:
        tat, part = tat + 1, part - rule.limit
    ahead, ahead_rest = rule.steps(rule.capacity)
    wait = max(tat - ahead + (part > ahead_rest) - now, 0)
    if wait > patience:
        return bucket, Limited(wait / MICROS)
    admitted = Admitted(wait / MICROS, cost, now, base, begun, given, rule.limit)
    return Bucket(tat, part, rule.limit, max(last, now), begun, given), admitted


def give_back(bucket: Bucket | None, rule: RateLimit, admitted: Admitted) -> Bucket | None:
    """As if the request had not come, or less than that: never more is admitted than without it.

    Without it the bucket may have been full before the last admission, and what overflowed then is
    lost: as much as that admission came after the time at which the bucket stood before this request
    is not given back. That time is not taken for later than it can be, now that others gave back too.
    """
    if bucket is None or not bucket.limit == admitted.limit == rule.limit:
        return bucket
    if bucket.begun != admitted.begun:
        return bucket  # it has been full since, with or without this request
    step, rest = rule.steps(admitted.cost)
    stood = max(admitted.base - (bucket.given - admitted.given), admitted.at)
    late = max(bucket.last - stood, 0)
    if late > step:
        return bucket
    tat, part = bucket.tat - step + late, bucket.part - rest
    if part < 0:
        tat, part = tat - 1, part + rule.limit
    return bucket._replace(tat=tat, part=part, given=bucket.given + step + (rest > 0) - late)


def remaining(bucket: Bucket | None, rule: RateLimit, now: int) -> int:
    """Requests that would be admitted at once."""
    bucket = _settled(bucket, rule, now)
    tat, part = (now, 0) if bucket is None or bucket.tat < now else bucket[:2]
    free = rule.period_micros * rule.capacity - ((tat - now) * rule.limit + part)
    return max(free // rule.period_micros, 0)


def left_after(rule: RateLimit, admitted: Admitted) -> tuple[int, float]:
    """Requests that would be admitted at once after this one, and seconds until the bucket is full again.

    Of one that waits for its turn: none. As of its admission, and to a microsecond.
    """
    ahead = max(admitted.base - admitted.at, 0) * rule.limit + rule.period_micros * admitted.cost
    free = rule.period_micros * rule.capacity - ahead
    return max(free // rule.period_micros, 0), ahead / rule.limit / MICROS


def full_at(bucket: Bucket | None, now: int) -> int:
    """The microsecond from which nothing is known of what came before."""
    return now if bucket is None else max(bucket.tat + 1, now)


def _settled(bucket: Bucket | None, rule: RateLimit, now: int) -> Bucket | None:
    """In parts of this rule's limit, and of a clock that was not set back."""
    if bucket is None:
        return None
    if bucket.limit != rule.limit:
        bucket = bucket._replace(tat=bucket.tat + (bucket.part > 0), part=0, limit=rule.limit)
    if bucket.last > now + SET_BACK:
        bucket = bucket._replace(tat=bucket.tat - (bucket.last - now), last=now, begun=now)
    return bucket
