"""The part of a context that limits: its budgets and those around it, what is set aside, what is booked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .accounts import Account, Change, Refusal, Reserve, Watch, reserve
from .errors import ConfigurationError
from .holds import Draw, Hold, HoldState, Paid, cut, drawable, pay
from .money import dollars
from .pending import Correctable
from .process import process_id
from .scope import InScope
from .totals import rows_of

if TYPE_CHECKING:
    from decimal import Decimal

    from .budget import Budget
    from .records import Charge
    from .scope import ScopedBudget, Spec

__all__ = ["Limits"]


class Limits(Correctable):
    """What the story of a call does to a context and to those around it, in one step each."""

    __slots__ = ("_in_scope", "_number", "_path", "_prefix", "_spec", "_watches", "_windowed")

    _in_scope: tuple[InScope, InScope] | None

    _number: int
    _path: tuple[Limits, ...]
    _prefix: str
    _spec: Spec
    _watches: tuple[Watch, ...] | None
    _windowed: tuple[ScopedBudget, ...]

    @property
    def name(self) -> str:
        raise AssertionError("a context has a name")

    @property
    def remaining(self) -> Decimal | None:
        """Dollars left under the tightest budget of this context and those around it; None without one.

        Budgets with a window belong to accounts beyond this tree of contexts and are not counted here.
        """
        with self._lock:
            lefts = [
                budget.limit_nanos - context._totals.spent - context._totals.reserved
                for context in self._path or (self,)
                for budget in context._spec.budgets
            ]
        return dollars(max(min(lefts), 0)) if lefts else None

    @property
    def watches(self) -> tuple[Watch, ...]:
        """The limits, without a window, of its own budgets and of those around it."""
        if self._watches is None:
            self._watches = tuple(
                Watch(
                    account=str(context._number),
                    limit=budget.limit_nanos,
                    budget=budget.label,
                    scope=f"context {context.name!r}",
                    enforced=budget.on_exceeded != "warn",
                    source=budget,
                )
                for context in self._path
                for budget in context._spec.budgets
            )
        return self._watches

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets without a window of it and the contexts around it, outermost first."""
        return tuple(budget for context in self._path for budget in context._spec.budgets)

    @property
    def windowed(self) -> tuple[ScopedBudget, ...]:
        """The budgets with a window of this context and those around it."""
        return self._windowed

    def in_scope(self, everywhere: InScope) -> InScope:
        """The budgets that a call in it must keep, with those that every call must."""
        known = self._in_scope
        if known is None or known[0] is not everywhere:
            held = self.budgets
            both = everywhere
            if self._windowed or held:
                both = InScope((*everywhere.scoped, *self._windowed), held)
            known = self._in_scope = (everywhere, both)
        return known[1]

    def expect_calls_elsewhere(self) -> None:
        """It was exported: that no call is made here says nothing."""
        for context in self._path:
            context._spec.warned = True

    def reserve(self, wish: Reserve) -> Change | Refusal:
        """Set an amount aside in it and every context around it, or in none.

        The change says how many nano-dollars (less than wished where ``at_most``). Raises
        :class:`ConfigurationError` in a child that was forked inside a context with a budget of its own:
        parent and child cannot count together.
        """
        path = self._path
        with self._lock:
            accounts = {}
            for context in path if wish.watches else ():
                if context._spec.budgets:
                    if context._prefix != process_id() and any(watch.enforced for watch in wish.watches):
                        raise _elsewhere(context)
                    totals = context._totals
                    accounts[str(context._number)] = Account(totals.spent, totals.reserved)
            around = drawable(wish.within, self._shared(), self._numbers()) if wish.within else ()
            change = reserve(wish, accounts, around=around)
            if not isinstance(change, Change):
                assert isinstance(change, Refusal), "budgets of a context have no window"
                return change
            self._put(change.around)
            for context in path:
                context._totals.reserved += change.reserved
                context._totals.admitted += 1
        return change

    def unreserve(self, amount: int, draws: tuple[Draw, ...] = ()) -> None:
        """Give a reservation back (nano-dollars); to the holds around, as far as it was drawn on them."""
        with self._lock:
            self._end(amount, draws, 0)

    def cut(self, amount: int, to: int, draws: tuple[Draw, ...] = ()) -> tuple[Draw, ...]:
        """Give a part of a reservation back (nano-dollars); returns what the rest draws on others."""
        with self._lock:
            for context in self._path:
                context._totals.reserved -= amount - to
            if draws:
                hold = Hold(HoldState.HELD, amount, 0, self._numbers(), 0.0, "", draws)
                draws, paid = cut(hold, to, self._shared())
                self._put(paid)
            return draws

    def book(
        self,
        charge: Charge,
        reserved: int,
        attribution: tuple[tuple[str, str], ...],
        draws: tuple[Draw, ...] = (),
    ) -> None:
        """Count a charge in it and every context around it, and end its reservation (nano-dollars)."""
        tokens = charge.total_tokens
        rows = rows_of(charge, attribution)
        with self._lock:
            self._end(reserved, draws, charge.nanos)
            for context in self._path:
                context._totals.book(charge, tokens, rows)

    # -- what calls inside another may draw on ------------------------------------------------------

    def share(self, name: str, amount: int) -> None:
        """Let calls inside draw on what one has set aside here (nano-dollars), by the name of its hold."""
        with self._lock:
            totals = self._path[0]._totals
            if totals.shared is None:
                totals.shared = {}
            totals.shared[name] = (Hold(HoldState.HELD, amount, 0, self._numbers(), 0.0), self._path)

    def unshare(self, name: str) -> int:
        """No call draws on it any more; returns what they have left of it."""
        with self._lock:
            shared = self._path[0]._totals.shared
            assert shared is not None
            return shared.pop(name)[0].amount

    def _numbers(self) -> tuple[str, ...]:
        return tuple([str(context._number) for context in self._path])

    def _shared(self) -> dict[str, Hold]:
        shared = self._path[0]._totals.shared
        return {name: hold for name, (hold, _) in shared.items()} if shared else {}

    def _put(self, around: tuple[Paid, ...]) -> None:
        for paid in around:
            shared = self._path[0]._totals.shared
            assert shared is not None
            _, path = shared[paid.name]
            shared[paid.name] = (paid.hold, path)
            for context in path:
                context._totals.reserved += paid.reserved

    def _end(self, amount: int, draws: tuple[Draw, ...], actual: int) -> None:
        for context in self._path:
            context._totals.reserved -= amount
        if draws:
            hold = Hold(HoldState.HELD, amount, 0, self._numbers(), 0.0, "", draws)
            self._put(pay(hold, actual, self._shared()))

    def refuse(self, would: bool = False) -> None:
        """Count a call that was refused (or only would have been) in it and every context around it."""
        with self._lock:
            for context in self._path:
                context._totals.refuse(would)


def _elsewhere(context: Limits) -> ConfigurationError:
    return ConfigurationError(
        f"budget {context._spec.budgets[0].label!r} of context {context.name!r} is counted in the process "
        "that opened it, and this one was forked from that: nothing was sent. Open the context in the child, "
        'or give the budget a window ("5/total") and a store that processes share (sqlite:////path, redis://…)'
    )
