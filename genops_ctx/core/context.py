"""Governance contexts: attribution, budgets and running totals of a scope; they nest.

Attribution travels by one :class:`~contextvars.ContextVar`. A context counts every charge made in
it and in its descendants, also after its block has ended. All contexts of one tree share a lock, so
that reserving over several of them is one step.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from .accounts import Account, Change, Refusal, Reserve, Watch, reserve
from .attribution import ATTRIBUTION_KEYS, Attribution, check_attribution, check_locks
from .budget import Budget, Budgets, parse_budgets
from .errors import ConfigurationError
from .money import dollars
from .pending import Correctable
from .scope import ScopedBudget, Spec
from .totals import Totals, rows_of
from .tree import ContextTree

if TYPE_CHECKING:
    from decimal import Decimal
    from types import TracebackType

    from .ports import Observer
    from .records import Charge

__all__ = [
    "GovernanceContext",
    "current_context",
    "governance_context",
    "with_governance_context",
]

F = TypeVar("F", bound=Callable[..., Any])

_current: ContextVar[GovernanceContext | None] = ContextVar("genops_ctx.context", default=None)
_numbers = itertools.count(1)
_process = os.urandom(5).hex()
_unopened = threading.Lock()

KEPT_CHILDREN = 1000
"""Contexts remembered below each context for :meth:`GovernanceContext.tree`; all are counted."""


def _new_process() -> None:
    global _process
    _process = os.urandom(5).hex()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_process)


class GovernanceContext(Correctable):
    """A scope of governance; open it with ``with``, ``async with``, or as a decorator.

    Totals may be read at any time and from any thread, after the block too. Amounts are exact
    Decimals of dollars.
    """

    # fmt: off
    __slots__ = (
        "__weakref__", "_attribution", "_children", "_hidden", "_ids", "_left", "_locks", "_number",
        "_outer", "_path", "_prefix", "_spec", "_state", "_watches", "_windowed",
    )
    # fmt: on

    observer: Observer | None = None
    """set by the runtime"""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._path: tuple[GovernanceContext, ...] = ()
        self._attribution: Attribution = spec.attribution
        self._state: object = None
        self._number, self._prefix = next(_numbers), _process
        self._totals = Totals()
        self._hidden, self._left = 0, False
        self._children: list[GovernanceContext] | None = None
        self._lock = _unopened
        self._locks: Attribution = {}
        self._windowed: tuple[ScopedBudget, ...] = spec.windowed
        self._watches: tuple[Watch, ...] | None = None
        self._ids: tuple[str, ...] | None = None

    # -- life ---------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._path:
            raise ConfigurationError(
                f"context {self.name!r} was opened before; call governance_context(…) for each block "
                "(a decorator does so for each call)"
            )
        spec, outer, locks = self._spec, _current.get(), self._locks
        if outer is not None:
            own, locks = spec.attribution, outer._locks
            check_locks(locks, own)
            self._attribution = {**outer._attribution, **own} if own else outer._attribution
        if spec.locked:
            locks = {**locks, **self._lockable(spec.locked)}
        # Nothing fails from here on: a context that does not open leaves no trace.
        self._outer, self._locks = outer, locks
        if outer is None:
            self._lock = threading.Lock()
            self._path = (self,)
        else:
            self._lock = outer._lock
            self._path = (*outer._path, self)
            self._windowed = outer._windowed + spec.windowed if spec.windowed else outer._windowed
            self._adopt(outer)
        _current.set(self)
        if self.observer is not None:
            self._state = self.observer.opened(self)

    def _adopt(self, outer: GovernanceContext) -> None:
        with self._lock:
            kept = outer._children = outer._children or []
            if len(kept) < KEPT_CHILDREN:
                kept.append(self)
            else:
                outer._hidden += 1

    def _lockable(self, keys: tuple[str, ...]) -> Attribution:
        missing = [key for key in keys if key not in self._attribution]
        if missing:
            raise ConfigurationError(
                f"locked={missing[0]!r} has no value to lock; "
                f"set {missing[0]}= in this context or an outer one"
            )
        return {key: self._attribution[key] for key in keys}

    def _close(self, error: BaseException | None) -> None:
        # No Token: a block may end in another contextvars.Context than it began in
        # (async generators do: https://github.com/python/cpython/issues/93740).
        current = _current.get()
        if current is self:
            outer = self._outer
            while outer is not None and outer._left:
                outer = outer._outer
            _current.set(outer)
        elif current is not None and self in current._path:
            self._left = True  # before one inside it, whose end must not bring it back
        if self.observer is not None:
            self.observer.closed(self, self._state, error)
        spec, totals = self._spec, self._totals
        unused = not (totals.admitted or totals.calls or totals.refused)
        if unused and error is None and (spec.budgets or spec.windowed):
            spec.warn_unused(self.name)

    def __enter__(self) -> GovernanceContext:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(error)

    async def __aenter__(self) -> GovernanceContext:
        self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(error)

    def __call__(self, function: F) -> F:
        """As a decorator: a fresh context for each call of a function or coroutine function."""
        spec = self._spec
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(
                "generator functions are not governed yet: open the context inside, or around the loop"
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def governed_coroutine(*args: Any, **kwargs: Any) -> Any:
                async with GovernanceContext(spec):
                    return await function(*args, **kwargs)

            return governed_coroutine  # type: ignore[return-value]

        @functools.wraps(function)
        def governed_function(*args: Any, **kwargs: Any) -> Any:
            with GovernanceContext(spec):
                return function(*args, **kwargs)

        return governed_function  # type: ignore[return-value]

    # -- what it is ---------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Unique over processes."""
        return f"{self._prefix}-{self._number:x}"

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of its path, outermost first."""
        if self._ids is None:
            self._ids = tuple([scope.id for scope in self._path])
        return self._ids

    @property
    def name(self) -> str:
        return self._spec.name or self._attribution.get("session_id") or "context"

    @property
    def parent(self) -> GovernanceContext | None:
        return self._path[-2] if len(self._path) > 1 else None

    @property
    def path(self) -> tuple[GovernanceContext, ...]:
        """From the outermost context to this one; empty before it opens."""
        return self._path

    @property
    def attribution(self) -> Attribution:
        """Its own attribution over that of the contexts around it (a copy)."""
        return dict(self._attribution)

    if TYPE_CHECKING:
        team: str | None
        project: str | None
        environment: str | None
        cost_center: str | None
        customer_id: str | None
        user_id: str | None
        feature: str | None
        session_id: str | None
    else:

        def __getattr__(self, name):
            """``context.team``, ``context.session_id`` …: attribution; None where a known key is unset."""
            if name.startswith("_"):
                raise AttributeError(name)
            value = self._attribution.get(name)
            if value is None and name not in ATTRIBUTION_KEYS:
                raise AttributeError(f"a context has no attribute or attribution {name!r}")
            return value

    # -- what it cost -------------------------------------------------------------------------

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

    def tree(self) -> ContextTree:
        """A snapshot of this context and those below it, printable as text, HTML and by rich."""
        with self._lock:
            return self._snapshot()

    def _snapshot(self, deep: bool = True) -> ContextTree:
        totals = self._totals
        return ContextTree(
            name=self.name,
            nanos=totals.spent,
            tokens=totals.tokens,
            calls=totals.calls,
            refused=totals.refused,
            unpriced=totals.unpriced,
            exactness=totals.exactness,
            limits=tuple(budget.limit_nanos for budget in self._spec.budgets),
            children=tuple(child._snapshot() for child in self._children or ()) if deep else (),
            hidden=self._hidden,
        )

    def _repr_html_(self) -> str:
        return self.tree()._repr_html_()

    def __repr__(self) -> str:
        with self._lock:
            return f"<GovernanceContext {self.name!r}: {self._snapshot(deep=False).summary}>"

    # -- what the story of a call does to it --------------------------------------------------

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
    def inherited(self) -> Attribution:
        """The attribution of it and the contexts around it; not to be changed."""
        return self._attribution

    @property
    def locks(self) -> Attribution:
        """The locked keys with their values; not to be changed."""
        return self._locks

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets without a window of it and the contexts around it, outermost first."""
        return tuple(budget for context in self._path for budget in context._spec.budgets)

    @property
    def windowed(self) -> tuple[ScopedBudget, ...]:
        """The budgets with a window of this context and those around it."""
        return self._windowed

    def reserve(self, wish: Reserve) -> Change | Refusal:
        """Set an amount aside in it and every context around it, or in none.

        The change says how many nano-dollars (less than wished where ``at_most``).
        """
        path = self._path
        with self._lock:
            accounts = {}
            for context in path if wish.watches else ():
                if context._spec.budgets:
                    totals = context._totals
                    accounts[str(context._number)] = Account(totals.spent, totals.reserved)
            change = reserve(wish, accounts)
            if not isinstance(change, Change):
                assert isinstance(change, Refusal), "budgets of a context have no window"
                return change
            for context in path:
                context._totals.reserved += change.reserved
                context._totals.admitted += 1
        return change

    def unreserve(self, amount: int) -> None:
        """Give part or all of a reservation back (nano-dollars)."""
        with self._lock:
            for context in self._path:
                context._totals.reserved -= amount

    def book(self, charge: Charge, reserved: int, attribution: tuple[tuple[str, str], ...]) -> None:
        """Count a charge in it and every context around it, and end its reservation (nano-dollars)."""
        tokens = charge.total_tokens
        rows = rows_of(charge, attribution)
        with self._lock:
            for context in self._path:
                context._totals.book(charge, tokens, reserved, rows)

    def refuse(self, would: bool = False) -> None:
        """Count a call that was refused (or only would have been) in it and every context around it."""
        with self._lock:
            for context in self._path:
                context._totals.refuse(would)


PARAMETERS = ("name", "budget", "locked")


def governance_context(
    name: str | None = None,
    *,
    budget: Budgets = None,
    locked: str | Iterable[str] = (),
    **attribution: object,
) -> GovernanceContext:
    """A scope of governance: ``with governance_context("support", team="help", budget=5) as context:``.

    Args:
        name: for reports and refusals.
        budget: ``5``, ``"5.00"``, ``"5/day"``, Decimal, :class:`Budget`, or a list of them. Without a
            window it holds for this context and what runs in it; with one, for the account that all
            contexts of this name share.
        locked: attribution keys that nothing inside may change.
        **attribution: team, project, environment, cost_center, customer_id, user_id, feature,
            session_id, and custom keys.

    Raises:
        ConfigurationError: bad values; :class:`UnknownKeywordError` for a slip of a known keyword.
        LockedAttributeError: on opening, where it changes what an outer context locked.
    """
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise ConfigurationError("name= must be a string that is not empty")
    keys = (locked,) if isinstance(locked, str) else tuple(locked)
    checked = check_attribution(attribution, known=PARAMETERS, where="governance_context()")
    return GovernanceContext(Spec(name, checked, parse_budgets(budget), keys))


with_governance_context = governance_context


def current_context() -> GovernanceContext | None:
    """The innermost open context of this task or thread, or None."""
    return _current.get()
