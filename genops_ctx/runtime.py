"""The runtime: store, ledger, prices and telemetry of this process, built once, on first use."""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .abandoned import Abandoned
from .books import open_books
from .core.accounts import Watch
from .core.admission import SPENT_ALREADY, Forecast, expected_amount
from .core.alerts import Alert
from .core.attribution import check_locks
from .core.budget import Budget, Budgets, parse_budgets
from .core.call import Ask, Book, Call, Effect, Hold, Judge, LookUp, Release, Undo
from .core.context import GovernanceContext
from .core.cost_history import CostHistory
from .core.effects import Pause
from .core.errors import ConfigurationError
from .core.operations import named
from .core.policy import Policy
from .core.ports import AccountStore, Clock, Ledger, Prices
from .core.process import ForkedLock
from .core.scope import InScope, ScopedBudget
from .corrections import Corrections
from .decisions import Decisions, Models
from .inflight import InFlight
from .settings import Settings, load_settings
from .telemetry.alerts import Alerts, sinks_of
from .telemetry.spans import Spans

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from .core.guarding import Guards
    from .core.records import Charge

__all__ = ["Runtime", "configure", "get_runtime", "reset_runtime"]

log = logging.getLogger("genops_ctx")

REAP_EVERY = 5.0
"""Seconds between looks for expired reservations, made while calls are admitted."""

CATCH_UP_SECONDS = 0.1
"""What the call that looks spends at most on what others left behind, however much that is."""

KEPT_WARNINGS = 1000

_NOTHING_KNOWN = Forecast()


class Runtime:
    """What the entry points of one process share. Users reach it by :func:`configure` only."""

    listeners: ClassVar[list[Callable[[Charge], object]]] = []
    """told of every charge of this process once it is booked; for tests (``genops_ctx.testing.capture``)"""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        store: AccountStore | None = None,
        ledger: Ledger | None = None,
        prices: Prices | None = None,
        clock: Clock = time.time,
        tracer_provider: TracerProvider | None = None,
        on_alert: object = None,
    ) -> None:
        self.settings = settings if settings is not None else Settings()
        self.books = open_books(self.settings, store, ledger, clock)
        self.clock = clock
        self.decisions = Decisions(self.settings, self.books.ledger)
        sinks = sinks_of(on_alert, self.settings.alert_webhook) if self.settings.mode != "off" else ()
        self.alerts = Alerts(self.books.store, clock, sinks)
        self.spans = Spans(tracer_provider)
        self._prices = prices
        scoped = tuple(ScopedBudget(_windowed(budget), "") for budget in self.settings.budgets)
        self._everywhere = InScope(scoped if self.settings.mode != "off" else ())
        self.costs = CostHistory(getattr(self.books.ledger, "recent_costs", None))
        self._next_reap = 0.0
        self._warned: set[str] = set()
        self.abandoned = Abandoned()
        self.in_flight = InFlight()
        self.corrections = Corrections(self.books, lambda: self.prices, clock, self.corrected)
        if self.settings.evidence == "shared":
            self.share_evidence()

    # -- parts ----------------------------------------------------------------------------------

    @property
    def prices(self) -> Prices:
        """The price catalogue, loaded on first use; raises :class:`ConfigurationError` for a bad file."""
        if self._prices is None:
            from .pricing.catalogue import Catalogue, default_catalogue
            from .pricing.overrides import load_overrides

            path = self.settings.prices
            if path and not Path(path).is_file():
                raise ConfigurationError(f"the settings name {path!r} for prices, and there is no such file")
            self._prices = Catalogue(load_overrides(path)) if path else default_catalogue()
        return self._prices

    def budgets_in_scope(
        self, context: GovernanceContext | None, own: tuple[ScopedBudget, ...] = ()
    ) -> InScope:
        """The budgets that a call there must keep."""
        if self.settings.mode == "off" or (context is None and not own):
            return self._everywhere
        everywhere = InScope((*self._everywhere.scoped, *own)) if own else self._everywhere
        return everywhere if context is None else context.in_scope(everywhere)

    # -- a call ---------------------------------------------------------------------------------

    def prepare(
        self,
        name: str,
        *,
        context: GovernanceContext | None,
        flow: str = "",
        defaults: Mapping[str, str] | None = None,
        attribution: Mapping[str, str],
        max_nanos: int | None = None,
        idempotency_key: str | None = None,
        deadline: float,
        forecast: Callable[[], Forecast] = Forecast,
        spent_already: bool = False,
        own: tuple[ScopedBudget, ...] = (),
        models: Models | None = None,
        question: str | None = None,
        degraded_from: str = "",
        guards: Guards | None = None,
    ) -> Call:
        """All that admission needs to know of a call. ``defaults`` are the adapter's attribution.

        ``own`` are the adapter's budgets, ``models`` and ``question`` what policies may look at (only
        a keyed hash of the question is kept), ``guards`` its rate limits and breakers.

        ``max_nanos`` is what it can cost at most; ``forecast`` is asked only where a budget is in
        scope. Raises :class:`ConfigurationError` for a bad key, and :class:`LockedAttributeError`.
        """
        now = self.clock()
        if self._reap_is_due(now) or not self.abandoned.empty():
            self.books.hand_off.run(self.tidy)
        merged = {**self.settings.attribution, **defaults} if defaults else self.settings.attribution.copy()
        if context is not None:
            merged.update(context.inherited)
            check_locks(context.locks, attribution)
        merged.update(attribution)
        scope = self.budgets_in_scope(context, own)
        mode = self.settings.mode

        def watches(at: float) -> tuple[Watch, ...]:
            found = tuple([budget.watch(merged, at, owner) for budget, owner in scope.scoped])
            # What was spent already is booked, also where an operator has frozen the scope.
            if spent_already:
                return tuple([watch._replace(enforced=False, observed=True) for watch in found])
            return found

        if spent_already:
            expectation = SPENT_ALREADY
        else:
            asked = scope.budgets if mode == "enforce" else tuple(map(_observed, scope.budgets))
            known = _NOTHING_KNOWN
            if asked and (max_nanos is None or (scope.block_unpriced and mode == "enforce")):
                known = self.forecast(flow or name, forecast)
            expectation = expected_amount(asked, known, max_nanos)
        operation, attempt, keyed, flags = named(idempotency_key)
        return Call(
            name=name,
            operation=operation,
            attribution=merged,
            expectation=expectation,
            watches=watches(now) if scope.scoped else (),
            started_at=now,
            deadline=deadline,
            flow=flow,
            keyed=keyed,
            books_unpriced=scope.book_unpriced,
            enforced=mode == "enforce",
            kept=mode != "off",
            rewatch=watches,
            needs_store=not spent_already and mode == "enforce" and scope.block_without_store,
            degraded_from=degraded_from,
            guards=guards,
            attempt=attempt,
            flags=flags,
            facts=None
            if spent_already
            else self.decisions.facts(name, flow, merged, now, context, models, question),
        )

    def forecast(self, flow: str, forecast: Callable[[], Forecast]) -> Forecast:
        """What is known before it is made of a call of the flow of this id, or by this name."""
        if not self.costs.recalled:
            self.books.hand_off.run(self.costs.recall)
        found = forecast()
        return found.after(self.costs.of(flow, found.since))

    def perform(self, effect: Effect) -> object:
        """Do what a story asks for."""
        if isinstance(effect, Hold):
            return self.books.reserve(effect.wish, effect.now)
        if isinstance(effect, LookUp):
            return self.books.charges_of(effect.operation)
        if isinstance(effect, Book):
            self.books.book(effect.charge, effect.settles)
        elif isinstance(effect, Judge):
            return self.decisions.judge(effect.facts)
        elif isinstance(effect, Undo):
            self.decisions.undo(effect.facts)
        elif isinstance(effect, Ask):
            return effect.function(effect.refusal)
        elif isinstance(effect, Release):
            self.books.release(effect.hold, effect.now, effect.token)
        elif isinstance(effect, Pause):
            time.sleep(effect.seconds)
        else:
            return effect.perform()
        return None

    def finished(self, charge: Charge) -> None:
        """Tell who listens, and learn from a charge what the next call of its flow will probably cost."""
        for tell in tuple(self.listeners):
            tell(charge)
        self.decisions.booked(charge)
        self.costs.learn(charge)

    def share_evidence(self) -> None:
        """Have the processes that share the ledger correct charges by what any of them receives.

        With a ledger in memory there are none. Before anything is sent.
        """
        make_log = getattr(self.books.ledger, "evidence_log", None)
        if make_log is None or hasattr(self.corrections, "collector"):
            return
        from .evidence.shared import SharedCorrections

        self.corrections = SharedCorrections(
            make_log(), self.books, lambda: self.prices, self.clock, self.corrected
        )
        self.corrections.routes.update(("langfuse", "otlp", "gateway"))

    def corrected(self, adjustment: Charge) -> None:
        """Tell who listens of a charge that corrects another."""
        for tell in tuple(self.listeners):
            tell(adjustment)
        self.decisions.booked(adjustment)

    def say_once(self, message: str, *args: object) -> None:
        """Log a warning the first time only."""
        text = message % args if args else message
        if text not in self._warned:
            if len(self._warned) > KEPT_WARNINGS:
                self._warned.clear()
            self._warned.add(text)
            log.warning("%s", text)

    # -- what nobody waits for ------------------------------------------------------------------

    def _reap_is_due(self, now: float) -> bool:
        """Also where the clock was set back."""
        return not self._next_reap - REAP_EVERY <= now < self._next_reap

    def tidy(self) -> None:
        """Finish abandoned attempts, and book reservations that expired as lost."""
        self.abandoned.drain()
        now = self.clock()
        if self._reap_is_due(now):
            self._next_reap = now + REAP_EVERY
            self.books.catch_up(now, within=CATCH_UP_SECONDS)
            self.corrections.tidy()
            if self.costs.recalled:  # else no budget has asked
                self.costs.recall()

    def close(self) -> None:
        """Book what is left to be booked, and close store and ledger; a later use opens them again."""
        self.abandoned.drain()
        self.alerts.flush()
        self.books.close()


def _observed(budget: Budget) -> Budget:
    """As it is where budgets refuse nothing: neither what has no price nor what has no ceiling."""
    if budget.on_unpriced != "block" and budget.admission != "strict":
        return budget
    return replace(budget, on_unpriced="reserve", admission="expected")


def _windowed(budget: Budget) -> Budget:
    if budget.window is None:
        raise ConfigurationError(
            f"configured budget {budget.label!r} needs a window (day, month, total, …): "
            "a budget without one belongs to a context"
        )
    return budget


# Contexts make spans from the first on, also where no call has asked for a runtime yet.
_spans = Spans()
GovernanceContext.observer = _spans

_runtime: Runtime | None = None
_replaced: list[Runtime] = []
_lock = ForkedLock()


def get_runtime() -> Runtime:
    """This process's runtime, built from environment and TOML file on first use."""
    runtime = _runtime
    return runtime if runtime is not None else _install(None)


def _install(runtime: Runtime | None) -> Runtime:
    global _runtime
    with _lock:
        if runtime is None and _runtime is not None:
            return _runtime
        if _runtime is not None:
            _replaced.append(_runtime)  # calls in flight still finish there
        _runtime = runtime if runtime is not None else Runtime(load_settings())
        GovernanceContext.observer = _runtime.spans
        return _runtime


def reset_runtime(runtime: Runtime | None = None) -> Runtime | None:
    """Replace the runtime (None: build it anew on next use); returns the one before. For tests."""
    global _runtime
    with _lock:
        before, _runtime = _runtime, runtime
        GovernanceContext.observer = _spans if runtime is None else runtime.spans
    return before


@atexit.register
def _at_exit() -> None:
    for runtime in (*_replaced, _runtime):
        if runtime is not None:
            runtime.close()


def configure(
    *,
    budgets: Budgets = None,
    policies: Iterable[Policy] | None = None,
    mode: str | None = None,
    store: str | None = None,
    ledger: str | Ledger | None = None,
    ledger_complete: bool | None = None,
    prices: str | Prices | None = None,
    tracer_provider: TracerProvider | None = None,
    clock: Clock | None = None,
    on_alert: Callable[[Alert], object] | str | Iterable[Callable[[Alert], object] | str] | None = None,
    **attribution: object,
) -> None:
    """Set up this process; what is not given comes from the environment, then the TOML file.

    Args:
        budgets: budgets with a window that every call must keep, ``[Budget("100/month", by="team")]``.
        policies: what may be called, by whom and when, ``[Policy("cheap", allow_models=("gpt-4o-mini",))]``.
        mode: ``enforce``, ``observe`` or ``off``.
        store: where budgets with a window live: ``memory://`` (this process), ``sqlite:////path``
            (this machine), ``redis://host:6379/0`` (any number of machines); the user's own file
            unless given.
        ledger: where charges are kept: ``memory://``, ``sqlite:////path``, or any object with the
            methods of :class:`genops_ctx.core.ports.Ledger`; the user's own file unless given.
        ledger_complete: every charge of the store is in this ledger, whoever made it: a Redis that loses
            its data is then brought back from it, by one of the processes.
        prices: path of a file of your own prices, or any object with ``quote`` and ``provider_of``.
        tracer_provider: an OpenTelemetry tracer provider; the global one unless given.
        on_alert: functions of an :class:`~genops_ctx.core.alerts.Alert`, and addresses of webhooks, told
            when a budget's spending passes one of its ``alert_thresholds``, besides the log.
        clock: a callable that gives the time in epoch seconds; for tests.
        **attribution: defaults for every call (team, project, …).

    Raises:
        ConfigurationError: a bad value.
    """
    from .core.attribution import check_attribution

    settings = load_settings()
    given: dict[str, Any] = {
        "mode": mode,
        "store": store,
        "ledger": ledger if isinstance(ledger, str) else None,
        "ledger_complete": ledger_complete,
        "prices": prices if isinstance(prices, str) else None,
    }
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    if budgets is not None:
        settings = replace(settings, budgets=parse_budgets(budgets))
    if policies is not None:
        settings = replace(settings, policies=tuple(policies))
    checked = check_attribution(attribution, known=tuple(configure.__kwdefaults__ or ()), where="configure()")
    settings = replace(settings, attribution={**settings.attribution, **checked})
    _install(
        Runtime(
            settings,
            ledger=None if isinstance(ledger, str) else ledger,
            prices=None if isinstance(prices, str) else prices,
            clock=clock or time.time,
            on_alert=on_alert,
            tracer_provider=tracer_provider,
        )
    )
