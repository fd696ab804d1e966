"""Running totals of a context, and how they split by flow, model, team …"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from .attribution import DIMENSIONS, UNALLOCATED, near_miss
from .errors import ConfigurationError
from .money import dollars
from .records import CostSource, Exactness

if TYPE_CHECKING:
    from decimal import Decimal

    from .budget import Budget
    from .holds import Hold
    from .limits import Limits
    from .process import ForkedLock
    from .records import Charge

__all__ = ["Costs", "Row", "Totals", "rows_of"]

KEPT_ROWS = 10_000
"""Combinations kept apart; further ones share a row, so that totals stay right in bounded memory."""

OTHER = "<other>"


class Row(NamedTuple):
    """What one cost belongs to."""

    flow: str
    provider: str
    model: str
    source: CostSource
    exactness: Exactness
    attribution: tuple[tuple[str, str], ...]


_DIMENSIONS: Mapping[str, int] = {name: index for index, name in enumerate(Row._fields[:-1])}


def rows_of(charge: Charge, attribution: tuple[tuple[str, str], ...]) -> list[tuple[Row, int]]:
    """The rows of a charge's lines, with the nano-dollars of each (0 where unknown)."""
    rows = []
    for line in charge.lines:
        usage = line.usage
        row = Row(
            charge.name,
            usage.provider if usage is not None else "",
            usage.model if usage is not None else "",
            line.source,
            line.exactness,
            attribution,
        )
        rows.append((row, line.nanos or 0))
    return rows


class Totals:
    """Sums of one context. Not locked: the context's tree has the lock. Amounts in nano-dollars."""

    # Class attributes rather than __init__: most contexts of a busy program never book anything.
    spent = 0
    reserved = 0
    tokens = 0
    admitted = 0
    calls = 0
    refused = 0
    would_refuse = 0
    unpriced = 0
    cached = 0
    saved = 0
    rows: dict[Row, int] | None = None
    pending: dict[str, Charge] | None = None
    """charges that may still be corrected, by the attempt's id"""
    waiting: list[Callable[[], object]] | None = None
    """called once nothing is pending any more"""
    alerted: dict[int, int] | None = None
    """how many thresholds of each of its budgets, by identity, have had their alert"""
    shared: dict[str, tuple[Hold, tuple[Limits, ...]]] | None = None
    """of the outermost context: what open metered calls have set aside, and in which contexts"""

    def book(self, charge: Charge, tokens: int, rows: list[tuple[Row, int]]) -> None:
        """Count a charge."""
        self.spent += charge.nanos
        self.tokens += tokens
        self.calls += 1
        self.unpriced += charge.unpriced
        self._add(rows)

    def correct(self, adjustment: Charge, unpriced: int, rows: list[tuple[Row, int]]) -> None:
        """Count what an adjustment adds and takes back; ``unpriced`` is the change of that count."""
        self.spent += adjustment.nanos
        self.tokens += adjustment.total_tokens
        self.unpriced += unpriced
        self._add(rows)

    def _add(self, rows: list[tuple[Row, int]]) -> None:
        if rows:
            mine = self.rows
            if mine is None:
                mine = self.rows = {}
            for row, nanos in rows:
                if row not in mine and len(mine) >= KEPT_ROWS:
                    row = Row(OTHER, OTHER, OTHER, row.source, row.exactness, ())
                mine[row] = mine.get(row, 0) + nanos

    def refuse(self, would: bool) -> None:
        """Count a call that was refused, or one that ``observe`` let through."""
        if would:
            self.would_refuse += 1
        else:
            self.refused += 1

    @property
    def inexact(self) -> int:
        return sum(nanos for row, nanos in (self.rows or {}).items() if row.exactness is not Exactness.EXACT)

    @property
    def exactness(self) -> tuple[Exactness, ...]:
        """Every degree of exactness that occurs."""
        return tuple(dict.fromkeys(row.exactness for row in self.rows or ()))


def _split(rows: Mapping[Row, int], key: str) -> dict[str, Decimal]:
    """Dollars by one key of the rows, the dearest first; ``<none>`` for rows without a value."""
    index = _DIMENSIONS.get(key)
    sums: dict[str, int] = {}
    for row, nanos in rows.items():
        value = dict(row.attribution).get(key) if index is None else str(row[index])
        value = value or UNALLOCATED
        sums[value] = sums.get(value, 0) + nanos
    return {value: dollars(nanos) for value, nanos in sorted(sums.items(), key=lambda item: -item[1])}


class Costs:
    """The part of a context that says what it cost. Amounts are exact Decimals of dollars."""

    __slots__ = ("_lock", "_totals")

    _lock: ForkedLock
    _totals: Totals
    if TYPE_CHECKING:
        _path: tuple[Costs, ...]

    def hit(self, saved: int) -> None:
        """Count a call that a cache answered (nano-dollars saved) in it and every context around it."""
        with self._lock:
            for context in self._path:
                context._totals.cached += 1
                context._totals.saved += saved

    def newly_past(self, budget: Budget) -> tuple[tuple[Decimal, ...], int]:
        """The alert thresholds of one of its budgets that are passed now, each given once; and the spend."""
        spent, levels = self._totals.spent, budget.alert_nanos
        if not levels or spent < levels[0]:
            return (), spent
        with self._lock:
            totals = self._totals
            alerted = totals.alerted
            if alerted is None:
                alerted = totals.alerted = {}
            before = alerted.get(id(budget), 0)
            now = before
            while now < len(levels) and totals.spent >= levels[now]:
                now += 1
            alerted[id(budget)] = now
            return budget.alert_parts[before:now], totals.spent

    @property
    def total_cost(self) -> Decimal:
        """Dollars of every charge in it and below, as far as prices are known (:attr:`unpriced_calls`)."""
        return dollars(self._totals.spent)

    @property
    def total_tokens(self) -> int:
        """Input and output tokens of every charge in it and below."""
        return self._totals.tokens

    @property
    def calls(self) -> int:
        """Attempts that were sent and booked."""
        return self._totals.calls

    @property
    def refused_calls(self) -> int:
        """Calls that were refused before anything was sent."""
        return self._totals.refused

    @property
    def would_refuse_calls(self) -> int:
        """Calls that a budget or policy would have refused, had the mode not been ``observe``."""
        return self._totals.would_refuse

    @property
    def cached_calls(self) -> int:
        """Calls that a cache answered: nothing was sent, and they are not in :attr:`calls`."""
        return self._totals.cached

    @property
    def saved_cost(self) -> Decimal:
        """Dollars that those answers cost when they were computed, as far as that is known. Not spent."""
        return dollars(self._totals.saved)

    @property
    def unpriced_calls(self) -> int:
        """Charges whose cost is not all in :attr:`total_cost`, because a price is unknown."""
        return self._totals.unpriced

    @property
    def reserved(self) -> Decimal:
        """Dollars set aside by calls in flight."""
        return dollars(self._totals.reserved)

    @property
    def inexact_cost(self) -> Decimal:
        """The part of :attr:`total_cost` that is not exact."""
        with self._lock:
            return dollars(self._totals.inexact)

    def cost_by(self, key: str) -> dict[str, Decimal]:
        """Dollars by ``flow``, ``provider``, ``model``, ``source``, ``exactness`` or an attribution key.

        A slip of one of those or of a known key raises :class:`ConfigurationError`.

        What has no value for the key is under ``<none>``. The parts add up to :attr:`total_cost`.
        """
        meant = near_miss(key, DIMENSIONS)
        if meant is not None:
            raise ConfigurationError(f"cost_by() knows no key {key!r}; did you mean {meant!r}?")
        with self._lock:
            rows = dict(self._totals.rows or {})
        return _split(rows, key)
