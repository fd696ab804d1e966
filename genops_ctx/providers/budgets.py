"""The budget classes of the guides, over the rule that all budgets keep.

:class:`BudgetEnforcedFlowiseAdapter` and budgets of contexts reserve before a call is sent, so they
hold under concurrency. :class:`FlowiseBudgetEnforcer` and :class:`BudgetManager` are *advisory*: they
tell whether a cost would fit, and count what they are told. Two callers that ask at the same moment
both hear yes; what holds then is a :class:`~genops_ctx.Budget` around ``metered_call``.
"""

from __future__ import annotations

import itertools
import logging
import time
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Any

from ..core.accounts import Account, Refusal, Reserve, Watch, reserve
from ..core.budget import Budget
from ..core.money import Amount, dollars, format_dollars, nanos_up, parse_dollars
from ..core.process import ForkedLock
from ..core.scope import ScopedBudget
from ..runtime import get_runtime
from ..stores.memory import MemoryStore
from .flowise import GenOpsFlowiseAdapter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..core.ports import Clock
    from .flowise_pricing import FlowiseCostCalculator

__all__ = ["BudgetEnforcedFlowiseAdapter", "BudgetManager", "FlowiseBudgetEnforcer"]

log = logging.getLogger("genops_ctx")

RATIOS = Context(prec=28)
"""For what is no amount of money, whatever the caller's decimal context is."""


class _Advice:
    """Limits over calendar windows, and what was reported as spent in them. Thread-safe."""

    def __init__(self, budgets: Mapping[str, Budget], clock: Clock) -> None:
        self._budgets = budgets
        self._clock = clock
        self._store = MemoryStore()
        self._numbers = itertools.count()

    def check(self, nanos: int) -> tuple[str | None, dict[str, Account]]:
        """The first window in which so much would pass the limit, and the account of each window."""
        found: dict[str, Account] = {}
        over = None
        for name, watch in self._watches().items():
            accounts = self._store.accounts([watch.account])
            found[name] = accounts[watch.account]
            wish = Reserve("", nanos, (watch,), 0.0)
            if isinstance(reserve(wish, accounts, now=self._clock()), Refusal):
                over = over or name
        return over, found

    def record(self, nanos: int) -> dict[str, Account]:
        """Book a cost in every window; the accounts after it."""
        watches = self._watches()
        accounts = tuple(watch.account for watch in watches.values())
        now = self._clock()
        # A reservation of nothing tells the store when the accounts' windows end, so that it forgets them.
        name = f"{next(self._numbers)}#1"
        self._store.reserve(Reserve(name, 0, tuple(watches.values()), now + 60.0, free=True), now)
        self._store.settle(name, nanos, accounts, now, True)
        after = self._store.accounts(accounts)
        return {name: after[watch.account] for name, watch in watches.items()}

    def _watches(self) -> dict[str, Watch]:
        now = self._clock()
        return {name: budget.watch({}, now) for name, budget in self._budgets.items()}


class FlowiseBudgetEnforcer:
    """A daily and a monthly limit to ask before an execution. Advisory: see the module.

    Args:
        daily_budget, monthly_budget: dollars. The windows are the calendar's: a new day and a new month
            begin at midnight of ``time_zone``, whether or not a call falls on them.
        cost_calculator: kept for callers; costs are those that it is told.
        time_zone: IANA name.
        clock: gives epoch seconds; for tests.
    """

    def __init__(
        self,
        daily_budget: Amount,
        monthly_budget: Amount,
        cost_calculator: FlowiseCostCalculator | None = None,
        *,
        time_zone: str = "UTC",
        clock: Clock = time.time,
    ) -> None:
        self.daily_budget = parse_dollars(daily_budget, what="daily_budget")
        self.monthly_budget = parse_dollars(monthly_budget, what="monthly_budget")
        self.cost_calculator = cost_calculator
        windows = {"daily": ("day", self.daily_budget), "monthly": ("month", self.monthly_budget)}
        self._advice = _Advice(
            {name: Budget(limit, window, time_zone=time_zone) for name, (window, limit) in windows.items()},
            clock,
        )

    @property
    def daily_spend(self) -> Decimal:
        """Dollars recorded today."""
        return dollars(self._advice.check(0)[1]["daily"].spent)

    @property
    def monthly_spend(self) -> Decimal:
        """Dollars recorded this month."""
        return dollars(self._advice.check(0)[1]["monthly"].spent)

    def check_budget_before_execution(
        self, estimated_cost: Amount, team: str = "", project: str = ""
    ) -> dict[str, Any]:
        """Whether a cost would fit now: ``allowed``, and why not or what would remain.

        Amounts are exact Decimals of dollars. ``team`` and ``project`` are echoed; the limits are on
        all that this enforcer is told.
        """
        estimate = parse_dollars(estimated_cost, what="estimated_cost")
        nanos = nanos_up(estimate)
        over, accounts = self._advice.check(nanos)
        owner = {key: value for key, value in (("team", team), ("project", project)) if value}
        if over is not None:
            return {
                "allowed": False,
                "reason": f"{over}_budget_exceeded",
                f"current_{over}_spend": dollars(accounts[over].spent),
                f"{over}_budget": getattr(self, f"{over}_budget"),
                "estimated_cost": estimate,
                **owner,
            }
        return {
            "allowed": True,
            "remaining_daily_budget": self.daily_budget - dollars(accounts["daily"].spent + nanos),
            "remaining_monthly_budget": self.monthly_budget - dollars(accounts["monthly"].spent + nanos),
            **owner,
        }

    def record_execution_cost(self, actual_cost: Amount) -> None:
        """Count what an execution has cost, over the limit too."""
        self._advice.record(nanos_up(parse_dollars(actual_cost, what="actual_cost")))


class BudgetEnforcedFlowiseAdapter(GenOpsFlowiseAdapter):
    """A Flowise adapter whose calls keep a daily and a monthly budget, under concurrency too.

    What a call may cost is set aside before it is sent, and what it did cost is booked: no estimate
    stays. Adapters of the same attribution share their accounts, in every process that shares the
    store.

    Args:
        daily_budget, monthly_budget: dollars of a calendar day and month.
        pricing_tier: the Flowise plan whose fee counts too.
        budget_name: whose accounts these are, instead of the adapter's attribution.
        time_zone: IANA zone of days and months.
        **kwargs: as for :class:`GenOpsFlowiseAdapter`.

    ``predict_flow`` raises :class:`~genops_ctx.BudgetExceeded` before anything is sent.
    """

    def __init__(
        self,
        daily_budget: Amount,
        monthly_budget: Amount,
        pricing_tier: str = "self_hosted",
        *,
        budget_name: str | None = None,
        time_zone: str = "UTC",
        **kwargs: Any,
    ) -> None:
        super().__init__(pricing_tier=pricing_tier, **kwargs)
        owner = budget_name or ", ".join(f"{key}={self.governance_attrs[key]}" for key in self._owners())
        self._budgets = tuple(
            ScopedBudget(Budget(limit, window, name=name, time_zone=time_zone), f"adapter {owner}".strip())
            for name, limit, window in (
                ("daily_budget", daily_budget, "day"),
                ("monthly_budget", monthly_budget, "month"),
            )
        )

    def _owners(self) -> list[str]:
        return [key for key in ("team", "project", "customer_id") if key in self.governance_attrs]

    @property
    def daily_spend(self) -> Decimal:
        """Dollars booked today, by every adapter of these accounts."""
        return self._account(0)[1]

    @property
    def monthly_spend(self) -> Decimal:
        """Dollars booked this month."""
        return self._account(1)[1]

    @property
    def remaining_budget(self) -> Decimal:
        """Dollars that may still be set aside now, under the tighter of both limits."""
        return max(min(self._account(0)[0], self._account(1)[0]), dollars(0))

    def _account(self, index: int) -> tuple[Decimal, Decimal]:
        """What is left, and what is spent."""
        runtime = get_runtime()
        budget, owner = self._budgets[index]
        watch = budget.watch({}, runtime.clock(), owner)
        account = runtime.books.store.accounts([watch.account])[watch.account]
        return dollars(watch.limit - account.spent - account.reserved), dollars(account.spent)


class BudgetManager:
    """An hourly, a daily and a monthly limit to ask. Advisory: see the module.

    The windows are the calendar's (hours and days of UTC unless ``time_zone`` says otherwise).

    Args:
        hourly_budget, daily_budget, monthly_budget: dollars; 0 allows nothing that costs.
        alert_threshold: the part of a limit from which on a warning is logged, once a window.
        clock: gives epoch seconds; for tests.
    """

    def __init__(
        self,
        hourly_budget: Amount,
        daily_budget: Amount,
        monthly_budget: Amount,
        alert_threshold: float | Decimal = 0.8,
        *,
        time_zone: str = "UTC",
        clock: Clock = time.time,
    ) -> None:
        self.budgets = {
            "hourly": parse_dollars(hourly_budget, what="hourly_budget"),
            "daily": parse_dollars(daily_budget, what="daily_budget"),
            "monthly": parse_dollars(monthly_budget, what="monthly_budget"),
        }
        self.alert_threshold = parse_dollars(alert_threshold, what="alert_threshold")
        self.total_queries = 0
        self.blocked_queries = 0
        windows = {
            "hourly": Budget(self.budgets["hourly"], "hour"),
            "daily": Budget(self.budgets["daily"], "day", time_zone=time_zone),
            "monthly": Budget(self.budgets["monthly"], "month", time_zone=time_zone),
        }
        self._limits = windows
        self._clock = clock
        self._advice = _Advice(windows, clock)
        self._total = 0
        self._lock = ForkedLock()

    @property
    def spent(self) -> dict[str, Decimal]:
        """Dollars recorded in each window that is open now."""
        return {name: dollars(account.spent) for name, account in self._advice.check(0)[1].items()}

    def can_afford(self, estimated_cost: Amount) -> tuple[bool, str]:
        """Whether a cost would fit every limit now, and why not."""
        over, _ = self._advice.check(nanos_up(parse_dollars(estimated_cost, what="estimated_cost")))
        if over is None:
            return True, "OK"
        with self._lock:
            self.blocked_queries += 1
        return False, f"{over.capitalize()} budget exceeded"

    def record_cost(self, cost: Amount) -> None:
        """Count a cost in every window, over the limits too."""
        nanos = nanos_up(parse_dollars(cost, what="cost"))
        with self._lock:
            before = {name: account.spent for name, account in self._advice.check(0)[1].items()}
            after = self._advice.record(nanos)
            self.total_queries += 1
            self._total += nanos
        for name, account in after.items():
            level = self.budgets[name] * self.alert_threshold
            if dollars(before[name]) < level <= dollars(account.spent):
                log.warning(
                    "%s budget: %s of %s spent",
                    name,
                    format_dollars(account.spent),
                    format_dollars(self._limits[name].limit_nanos),
                )

    def get_stats(self) -> dict[str, Any]:
        """Each window's ``spent``, ``budget``, ``remaining`` and ``utilization`` (a part of 1; 0 for a
        budget of nothing), the counts of queries, and ``avg_cost`` over all that were recorded."""
        stats: dict[str, Any] = {}
        for name, spent in self.spent.items():
            budget = self.budgets[name]
            stats[name] = {
                "spent": spent,
                "budget": budget,
                "remaining": budget - spent,
                "utilization": RATIOS.divide(spent, budget) if budget else Decimal(0),
            }
        with self._lock:
            queries, blocked, total = self.total_queries, self.blocked_queries, self._total
        average = RATIOS.divide(dollars(total), Decimal(queries)) if queries else Decimal(0)
        return {**stats, "total_queries": queries, "blocked_queries": blocked, "avg_cost": average}
