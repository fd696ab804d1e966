"""Sums over charges: what every ledger answers to ``totals()``, and the plain scan that defines it.

Costs are grouped by *dimensions*: ``day`` (UTC, of the start), ``flow`` (the name of what was
called), ``flow_id``, ``provider``, ``model``, ``source``, ``exactness``, or any attribution key. What
has no value for a dimension is under ``<none>``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from ..core.attribution import UNALLOCATED, check_attribution
from ..core.errors import ConfigurationError
from ..core.money import dollars

if TYPE_CHECKING:
    from decimal import Decimal

    from ..core.records import Charge, Line

__all__ = [
    "DAY_SECONDS",
    "DIMENSIONS",
    "Query",
    "Sums",
    "Total",
    "day_name",
    "day_of",
    "parse_query",
    "scan",
    "sums_of",
]

DIMENSIONS = ("day", "flow", "flow_id", "provider", "model", "source", "exactness")
"""Every other name is an attribution key."""

DAY_SECONDS = 86_400
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Total:
    """Sums over the lines of one group. ``key`` has the group's value for each name of ``by``."""

    key: tuple[str, ...]
    nanos: int
    """nano-dollars of all lines whose price is known"""
    calls: int
    """attempts; one with several lines counts where its first line does, a correction nowhere"""
    lines: int
    """model calls, fees and costs; one that was taken back does not count"""
    unpriced: int
    """lines without a known price: not in ``nanos``, and not zero"""
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    """part of ``input_tokens``"""
    cache_write_tokens: int
    """part of ``input_tokens``, of both lifetimes"""

    @property
    def cost(self) -> Decimal:
        """Exact dollars of all lines whose price is known."""
        return dollars(self.nanos)

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


Sums = tuple[int, int, int, int, int, int, int, int]
"""The fields of :class:`Total` after its key."""
NO_SUMS: Sums = (0,) * 8


@dataclass(frozen=True, slots=True)
class Query:
    """A checked question: times in epoch seconds, ``since`` inclusive and ``until`` exclusive."""

    since: float | None
    until: float | None
    by: tuple[str, ...]
    where: Mapping[str, frozenset[str]]

    @property
    def names(self) -> tuple[str, ...]:
        """Every dimension and attribution key that it asks for, each once."""
        return tuple(dict.fromkeys((*self.by, *self.where)))

    def covers(self, at: float) -> bool:
        return (self.since is None or at >= self.since) and (self.until is None or at < self.until)

    def answer(self, groups: Iterable[tuple[Callable[[str], str], Sums]]) -> tuple[Total, ...]:
        """Put groups together: each a function from a name to the group's value, and its sums.

        The dearest first, then by key; without ``by``, exactly one.
        """
        totals: dict[tuple[str, ...], Sums] = {} if self.by else {(): NO_SUMS}
        for value_of, sums in groups:
            if all(value_of(name) in wanted for name, wanted in self.where.items()):
                key = tuple(value_of(name) for name in self.by)
                totals[key] = add(totals.get(key, NO_SUMS), sums)
        found = [Total(key, *sums) for key, sums in totals.items()]
        return tuple(sorted(found, key=lambda total: (-total.nanos, total.key)))


def parse_query(
    since: datetime | float | None = None,
    until: datetime | float | None = None,
    by: Collection[str] = (),
    where: Mapping[str, str | Collection[str]] | None = None,
) -> Query:
    """Check a question. Raises :class:`ConfigurationError` for naive times and names near a known one."""
    names = (by,) if isinstance(by, str) else tuple(by)
    wanted = {
        name: frozenset((values,)) if isinstance(values, str) else frozenset(values)
        for name, values in (where or {}).items()
    }
    keys = [name for name in (*names, *wanted) if name not in DIMENSIONS]
    check_attribution(dict.fromkeys(keys, "?"), known=DIMENSIONS, where="a report of costs")
    return Query(_seconds(since, "since"), _seconds(until, "until"), names, wanted)


def _seconds(at: datetime | float | None, what: str) -> float | None:
    if not isinstance(at, datetime):
        return at
    if at.tzinfo is None:
        raise ConfigurationError(f"{what} needs a time zone: datetime(…, tzinfo=UTC)")
    # datetime.timestamp() rounds to a double; so do the times of charges.
    return at.astimezone(UTC).timestamp()


def day_of(at: float) -> int:
    """Days since the epoch (UTC) of a time in epoch seconds."""
    return int(at // DAY_SECONDS)


def day_name(day: int) -> str:
    """``2026-11-21``."""
    return (_EPOCH + timedelta(days=day)).isoformat()


def sums_of(charge: Charge, line: Line | None, first: bool) -> Sums:
    """What one line (None for a charge that has none) adds to its group."""
    calls = int(first and not charge.adjustment_of)
    if line is None:
        return 0, calls, 0, 0, 0, 0, 0, 0
    sign = line.sign
    unpriced = sign if line.nanos is None else 0
    usage = line.usage
    if usage is None:
        return line.nanos or 0, calls, sign, unpriced, 0, 0, 0, 0
    return (
        line.nanos or 0,
        calls,
        sign,
        unpriced,
        sign * usage.input_tokens,
        sign * usage.output_tokens,
        sign * usage.cache_read_tokens,
        sign * (usage.cache_write_tokens + usage.cache_write_1h_tokens),
    )


def add(one: Sums, other: Sums) -> Sums:
    return tuple([a + b for a, b in zip(one, other, strict=True)])  # type: ignore[return-value]


def scan(charges: Iterable[Charge], query: Query) -> tuple[Total, ...]:
    """The answer, charge by charge."""
    return query.answer(
        (_reader(charge, line), sums_of(charge, line, position == 0))
        for charge in charges
        if query.covers(charge.started_at)
        for position, line in enumerate(charge.lines or (None,))
    )


def _reader(charge: Charge, line: Line | None) -> Callable[[str], str]:
    def value_of(name: str) -> str:
        if name not in DIMENSIONS:
            value = charge.attribution.get(name, "")
        elif name == "day":
            value = day_name(day_of(charge.started_at))
        elif name == "flow":
            value = charge.name
        elif name == "flow_id":
            value = charge.flow
        elif name == "source":
            value = "" if line is None else line.source.value
        elif name == "exactness":
            value = "exact" if line is None else line.exactness.value
        else:
            usage = None if line is None else line.usage
            value = "" if usage is None else getattr(usage, name)
        return value or UNALLOCATED

    return value_of
