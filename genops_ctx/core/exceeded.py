"""What follows where a budget refuses: block, run a cheaper flow, ask a function, or only warn.

Of several budgets that refuse one call, ``block`` counts before ``degrade``, before a function, before
``warn``. A scope that an operator has frozen is blocked whatever the budget says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import BudgetExceeded
from .money import dollars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from .accounts import Refusal, Watch

__all__ = ["asked", "budget_exceeded", "degrades", "may_go_on", "soften", "would_refuse"]


def _action(watch: Watch) -> object:
    if watch.source is not None:
        return watch.source.on_exceeded
    return "block" if watch.enforced else "warn"


def degrades(watch: Watch) -> bool:
    """Its budget names a cheaper flow to run instead."""
    return _action(watch) == "degrade"


def asked(watch: Watch) -> Callable[[BudgetExceeded], object] | None:
    """The function that decides where its budget refuses, if there is one."""
    action = _action(watch)
    return action if callable(action) else None


def may_go_on(refusal: Refusal, before: Iterable[Refusal]) -> bool:
    """Whether anything can come of this refusal but a refusal, those of ``before`` being known."""
    watch = refusal.watch
    if refusal.frozen or not (degrades(watch) or asked(watch)):
        return False
    return all(not _same(watch, earlier.watch) for earlier in before)


def soften(
    watches: tuple[Watch, ...], refusals: Iterable[Refusal], *, enforced: bool, degraded: bool
) -> tuple[Watch, ...]:
    """The watches, those of ``refusals`` made to warn only: what comes of them is decided later.

    All of them where not ``enforced`` (mode ``observe``), and then a frozen scope refuses nothing either;
    those that degrade where the call is the cheaper one already.
    """
    if not enforced:
        return tuple([watch._replace(enforced=False, observed=True) for watch in watches])
    if not degraded and not refusals:
        return watches
    known = tuple(refusals)
    return tuple(
        watch._replace(enforced=False)
        if (degraded and degrades(watch)) or any(_same(watch, refusal.watch) for refusal in known)
        else watch
        for watch in watches
    )


def _same(one: Watch, other: Watch) -> bool:
    return one.account == other.account and one.source == other.source


def would_refuse(budget: str, watches: Iterable[Watch]) -> bool:
    """Whether a budget of that name does more than warn."""
    actions = [_action(watch) for watch in watches if watch.budget == budget]
    return any(action != "warn" for action in actions) or not actions


def budget_exceeded(
    refusal: Refusal, because: str, floor: int = 0, floor_because: str = ""
) -> BudgetExceeded:
    """The error of a refusal; ``because`` says how the wanted amount came about, and its floor."""
    watch, account = refusal.watch, refusal.account
    resets_at: datetime | None = None
    if watch.ends_at is not None:
        from datetime import UTC, datetime

        resets_at = datetime.fromtimestamp(watch.ends_at, UTC)
    return BudgetExceeded(
        budget=watch.budget,
        scope=watch.scope,
        limit=dollars(refusal.limit),
        spent=dollars(account.spent),
        reserved=dollars(account.reserved),
        wanted=dollars(refusal.wanted),
        wanted_because=because,
        resets_at=resets_at,
        frozen=refusal.frozen,
        fallback=_fallback(refusal),
        floor=dollars(floor) if floor else None,
        floor_because=floor_because,
    )


def _fallback(refusal: Refusal) -> str:
    """The flow to run instead; none where an operator has stopped the scope."""
    source = refusal.watch.source
    return "" if refusal.frozen or source is None else source.fallback or ""
