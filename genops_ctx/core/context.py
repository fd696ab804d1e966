"""Governance contexts: attribution, budgets and running totals of a scope; they nest.

Attribution travels by one :class:`~contextvars.ContextVar`. A context counts every charge made in
it and in its descendants, also after its block has ended. All contexts of one tree share a lock, so
that reserving over several of them is one step.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .attribution import ATTRIBUTION_KEYS, Attribution, check_attribution, check_locks
from .budget import Budgets, parse_budgets
from .current import _current, around, current_context
from .errors import ConfigurationError
from .leaks import Opening, opened_by, tell_leak
from .limits import Limits
from .process import ForkedLock, process_id
from .running import Inside, decorated, runner
from .scope import Spec
from .totals import Totals
from .tree import ContextTree

if TYPE_CHECKING:
    from types import TracebackType

    from .accounts import Change, Refusal, Reserve
    from .ports import Observer

__all__ = [
    "GovernanceContext",
    "current_context",
    "governance_context",
    "with_governance_context",
]

F = TypeVar("F", bound=Callable[..., Any])

_numbers = itertools.count(1)
_unopened = ForkedLock()

KEPT_CHILDREN = 1000
"""Contexts remembered below each context for :meth:`GovernanceContext.tree`; all are counted."""


def _observer() -> Observer | None:
    return GovernanceContext.observer


class GovernanceContext(Limits):
    """A scope of governance; open it with ``with``, ``async with``, or as a decorator.

    Totals may be read at any time and from any thread, after the block too. Amounts are exact
    Decimals of dollars.
    """

    # fmt: off
    __slots__ = (
        "__weakref__", "_attribution", "_children", "_hidden", "_ids", "_left", "_locks", "_opening",
        "_outer", "_state",
    )
    # fmt: on

    observer: Observer | None = None
    """set by the runtime"""

    before_first: ClassVar[Callable[[], object] | None] = None
    """called once, when the first context of the process opens; set by the entry points"""

    kept: ClassVar[list[GovernanceContext] | None] = None
    """in a notebook: the contexts that :meth:`open` opened, which go on in the next cell"""

    _take: ClassVar[None] = None
    _returned: ClassVar[None] = None
    _path: tuple[GovernanceContext, ...]

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._path = ()
        self._attribution: Attribution = spec.attribution
        self._state: object = None
        self._number = next(_numbers)
        self._prefix = process_id()
        self._totals = Totals()
        self._hidden, self._left = 0, False
        self._children: list[GovernanceContext] | None = None
        self._lock = _unopened
        self._locks: Attribution = {}
        self._windowed = spec.windowed
        self._watches = None
        self._in_scope = None
        self._ids: tuple[str, ...] | None = None
        self._opening: Opening | None = None

    # -- life ---------------------------------------------------------------------------------

    def open(self) -> GovernanceContext:
        """Open it without ``with``; :meth:`close` ends it. In a notebook it holds over the cells between.

        Raises :class:`ConfigurationError` where it was opened before, or cannot lock what it should;
        :class:`LockedAttributeError` where it changes what an outer context locked.
        """
        self._begin()
        if self.kept is not None:
            self.kept.append(self)
        return self

    def _begin(self) -> None:
        if self._path:
            raise ConfigurationError(
                f"context {self.name!r} was opened before; call governance_context(…) for each block "
                "(a decorator does so for each call)"
            )
        kind = GovernanceContext
        if kind.before_first is not None:
            first, kind.before_first = kind.before_first, None
            first()
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
            self._lock = ForkedLock()
            self._path = (self,)
        else:
            self._lock = outer._lock
            self._path = (*outer._path, self)
            self._windowed = outer._windowed + spec.windowed if spec.windowed else outer._windowed
            self._adopt(outer)
            if outer._opening is not None:
                tell_leak(outer._opening, outer.name)
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

    def close(self, error: BaseException | None = None) -> None:
        """End it; ``error`` is what its block failed with. Its totals go on counting what began in it."""
        # No Token: a block may end in another contextvars.Context than it began in
        # (async generators do: https://github.com/python/cpython/issues/93740).
        self._step_back()
        self._opening = None
        if self.kept is not None and self in self.kept:
            self.kept.remove(self)
        if self.observer is not None:
            closed_early = isinstance(error, GeneratorExit)
            self.observer.closed(self, self._state, None if closed_early else error)
        spec, totals = self._spec, self._totals
        unused = not (totals.admitted or totals.calls or totals.refused)
        if unused and error is None and (spec.budgets or spec.windowed):
            spec.warn_unused(self.name)

    def _leave(self) -> None:
        self._step_back()
        if self.observer is not None and self._state is not None:
            self.observer.go(self.observer.around(self._state))

    def _step_back(self) -> None:
        current = _current.get()
        if current is self:
            outer = self._outer
            while outer is not None and outer._left:
                outer = outer._outer
            _current.set(outer)
        elif current is not None and self in current._path:
            self._left = True  # before one inside it, whose end must not bring it back

    def __enter__(self) -> GovernanceContext:
        self._begin()
        self._opening = opened_by(sys._getframe(1))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(error)

    async def __aenter__(self) -> GovernanceContext:
        self._begin()
        frame = sys._getframe(1)
        self._opening = opened_by(frame)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(error)

    def __call__(self, function: F) -> F:
        """As a decorator: a fresh context for each call of a function, coroutine or generator function."""
        spec = self._spec
        run = runner(function, lambda: GovernanceContext(spec), _observer)
        return decorated(function, run)  # type: ignore[no-any-return]

    def wrap(self, function: F) -> F:
        """A function that runs in this context wherever it is called: in a thread, a pool, a callback.

        Coroutine and generator functions too. What was current there before is set back afterwards.
        The context may have ended meanwhile: what runs in it still counts in it.
        """
        if not self._path:
            raise ConfigurationError(f"context {self.name!r} is not open: wrap functions inside its block")
        observer = self.observer
        seen = None if observer is None or self._state is None else observer.within(self._state)
        there = (self, seen, around.get())
        return decorated(function, runner(function, lambda: Inside(there, observer), _observer))  # type: ignore[no-any-return]

    # -- what it is ---------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Unique over processes."""
        return f"{self._prefix}-{self._number:x}"

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of its path, outermost first; those of another process that it was exported from too."""
        if self._ids is None:
            self._ids = tuple([one for scope in self._path for one in (*scope._spec.above, scope.id)])
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

    @property
    def inherited(self) -> Attribution:
        """The attribution of it and the contexts around it; not to be changed."""
        return self._attribution

    @property
    def locks(self) -> Attribution:
        """The locked keys with their values; not to be changed."""
        return self._locks

    def reserve(self, wish: Reserve) -> Change | Refusal:
        if self._opening is not None:
            tell_leak(self._opening, self.name)
        return super().reserve(wish)


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
