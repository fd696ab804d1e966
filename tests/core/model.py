"""An independent model of accounts: the whole history, replayed each time, in exact fractions.

It follows DESIGN's words (reserve admits where spent + reserved + amount ≤ limit for every limit, all
or nothing; settle books the actual always, once; a lost reservation counts as spent), not the code:
it keeps no running sums and knows no deltas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from genops_ctx.core.accounts import Reserve, Watch
from tests.strategies import as_dollars


@dataclass
class Entry:
    """One attempt in the model: what it keeps aside, what it has cost, and for whom."""

    accounts: frozenset[str]
    aside: Fraction
    cost: Fraction
    state: str
    expires_at: float


@dataclass
class Verdict:
    """What the model says to a wish."""

    admitted: bool
    amount: Fraction = Fraction(0)
    seen: str | None = None
    tightest: frozenset[Watch] = frozenset()
    warned: tuple[Watch, ...] = ()


@dataclass
class Model:
    """All that has happened, in order."""

    forgets_unkeyed_releases: bool
    """a store need not remember the release of an operation that nobody can ask for again"""
    history: list[tuple[object, ...]] = field(default_factory=list)

    def replay(self) -> dict[str, Entry]:
        """Every attempt that is remembered."""
        entries: dict[str, Entry] = {}
        for event in self.history:
            kind, name = event[0], str(event[1])
            entry = entries.get(name)
            if kind == "held":
                _, _, accounts, amount, expires_at = event
                assert entry is None
                entries[name] = Entry(accounts, amount, Fraction(0), "held", expires_at)  # type: ignore[arg-type]
            elif kind == "settle":
                _, _, actual, accounts, completed = event
                if entry is None:
                    entry = entries[name] = Entry(accounts, Fraction(0), Fraction(0), "", 0.0)  # type: ignore[arg-type]
                entry.aside, entry.cost = Fraction(0), actual  # type: ignore[assignment]
                entry.state = "settled" if completed else "failed"
            elif kind == "release":
                _, _, keyed = event
                if entry is not None and entry.state in ("held", "lost"):
                    entry.aside, entry.cost, entry.state = Fraction(0), Fraction(0), "released"
                    if self.forgets_unkeyed_releases and not keyed:
                        del entries[name]
            elif kind == "extend":
                _, _, until = event
                if entry is not None and entry.state == "held":
                    entry.expires_at = max(entry.expires_at, until)  # type: ignore[type-var]
            elif kind == "expire":
                _, _, now = event
                if entry is not None and entry.state == "held" and entry.expires_at <= now:  # type: ignore[operator]
                    entry.aside, entry.cost, entry.state = Fraction(0), entry.aside, "lost"
            else:
                raise AssertionError(kind)
        return entries

    def account(self, key: str) -> tuple[Fraction, Fraction]:
        """Dollars spent and set aside."""
        entries = self.replay()
        mine = [entry for entry in entries.values() if key in entry.accounts]
        return (
            sum((entry.cost for entry in mine), Fraction(0)),
            sum((entry.aside for entry in mine), Fraction(0)),
        )

    def judge(self, wish: Reserve) -> Verdict:
        """Whether the wish may be granted, and with how much."""
        entries = self.replay()
        if wish.id in entries:
            return Verdict(True, entries[wish.id].aside, seen=entries[wish.id].state)
        amount = Fraction(0) if wish.free else as_dollars(wish.amount)
        left = {w: as_dollars(w.limit) - sum(self.account(w.account)) for w in wish.watches}
        hard = {w: room for w, room in left.items() if w.enforced and not wish.free}
        if any(amount > room for room in hard.values()):
            least = min(hard.values())
            if not (wish.at_most and least > 0) or least < as_dollars(wish.floor):
                return Verdict(False, tightest=frozenset(w for w in hard if hard[w] == least))
            amount = least
        warned = tuple(w for w in wish.watches if not w.enforced and amount > left[w])
        return Verdict(True, amount, warned=warned)

    def names(self) -> Sequence[str]:
        return sorted(self.replay())
