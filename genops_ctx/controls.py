"""What an operator does to budgets: look, freeze, grant, reset, rebuild. Each deed is in the ledger's audit.

A *scope* is whom accounts belong to: ``all calls``, attribution (``team=search``,
``team=search,customer_id=acme``), ``function module.name``, ``context name``, ``adapter name``. What
is said of a scope holds for its accounts of every window.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote, unquote

from .core.accounts import Account, Control, Hold, HoldState, Refusal, Reserve, Watch, reserve
from .core.budget import Budget
from .core.errors import ConfigurationError, StoreDataLost, StoreError
from .core.money import MAX_NANOS
from .core.outcomes import Outcome
from .core.ports import AuditEvent
from .core.windows import Period, parse_window, period_of
from .generations import Generations
from .stores.tombstones import TOMBSTONE_SECONDS

if TYPE_CHECKING:
    from .core.ports import AccountStore, Clock, Ledger
    from .core.records import Charge

__all__ = ["Controls", "Limits", "Row", "scope_key", "scope_name"]

Limits: TypeAlias = list[tuple[Watch, str]]
"""What watches a call, each with the name of its window."""

ALL_CALLS = "all calls"
FENCE_SECONDS = 60.0
_ALL = 1_000_000_000
_STATES: dict[str, HoldState] = {
    Outcome.COMPLETED: HoldState.SETTLED,
    Outcome.EXPIRED: HoldState.LOST,
    Outcome.NOT_SENT: HoldState.RELEASED,
}
_PAIR = re.compile(r"([A-Za-z_]\w*)=(.+)\Z", re.DOTALL)


def scope_key(scope: str) -> str:
    """The key of a scope as people write it. Raises :class:`ConfigurationError` for an empty one."""
    text = scope.strip()
    if not text:
        raise ConfigurationError("name a scope: all, team=search, function module.name, context name")
    if text in ("all", ALL_CALLS):
        return "in:"
    if text.startswith("in:"):
        return text
    pairs = [_PAIR.match(part) for part in re.split(r",(?=[A-Za-z_]\w*=)", text)]
    if all(pairs):
        return "&".join(f"{pair[1]}={quote(pair[2], safe='')}" for pair in pairs if pair)
    return f"in:{quote(text, safe='')}"


def scope_name(key: str) -> str:
    """The scope of a key, for people; the other way round."""
    if key.startswith("in:"):
        return unquote(key[3:]) or ALL_CALLS
    return ",".join(unquote(pair) for pair in key.split("&"))


@dataclass(frozen=True, slots=True)
class Row:
    """One limit on one account, or an account without a known limit. Amounts in nano-dollars."""

    budget: str
    """empty where the settings have no budget for it: budgets in code are not known to a command"""
    scope: str
    window: str
    limit: int | None
    """with grants and what rolled over"""
    spent: int
    reserved: int
    resets_at: float | None
    """epoch seconds"""
    frozen: bool
    granted: int

    @property
    def remaining(self) -> int | None:
        return None if self.limit is None else max(self.limit - self.spent - self.reserved, 0)


class Controls:
    """The deeds of one operator on one store and its ledger."""

    def __init__(self, store: AccountStore, ledger: Ledger, clock: Clock, actor: str = "") -> None:
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._actor = actor
        Generations(store, ledger).expect()

    # -- look -----------------------------------------------------------------------------------

    def rows(self, budgets: Sequence[Budget]) -> list[Row]:
        """The accounts of the windows that are open now, each with every budget that watches it."""
        now = self._clock()
        accounts, controls = self._store.accounts(), self._store.controls()
        scopes = list(dict.fromkeys(key.rpartition("|")[0] for key in accounts))
        rows = []
        watched = set()
        for budget in budgets:
            for attribution in _attributions(budget, scopes):
                watch = budget.watch(attribution, now)
                watched.add(watch.account)
                rows.append(_row(watch, str(budget.window), accounts, controls, now))
        for scope, period, window in _open_accounts(accounts, now):
            account = f"{scope}|{period.key}"
            if account not in watched:
                also = tuple(f"{scope}|{key}" for key in period.also)
                watch = Watch(account, 0, "", "", period.end, True, period.start, also, control=scope)
                rows.append(_row(watch, window, accounts, controls, now))
        return rows

    def rows_of(self, attribution: Mapping[str, str], budgets: Sequence[Budget]) -> list[Row]:
        """The limits that a call of this attribution would have to keep now."""
        return self.rows_at([self.limits_on(attribution, budgets)])[0]

    def limits_on(self, attribution: Mapping[str, str], budgets: Sequence[Budget]) -> Limits:
        """What :meth:`rows_at` is to look at for a call of this attribution; nothing is asked yet."""
        now = self._clock()
        return [(budget.watch(attribution, now), str(budget.window)) for budget in budgets]

    def rows_at(self, asked: Sequence[Limits]) -> list[list[Row]]:
        """How the limits stand, for several calls at once: what they have in common is looked at once."""
        now = self._clock()
        watches = [watch for limits in asked for watch, _ in limits]
        keys = {key for watch in watches for key in (watch.account, *watch.also, watch.before) if key}
        accounts, controls = self._look(sorted(keys), sorted({watch.control for watch in watches}))
        return [
            [_row(watch, window, accounts, controls, now) for watch, window in limits] for limits in asked
        ]

    def _look(
        self, keys: Sequence[str], controls: Sequence[str]
    ) -> tuple[Mapping[str, Account], Mapping[str, Control]]:
        at_once = getattr(self._store, "look", None)  # where each question would be an exchange of its own
        if at_once is not None:
            return at_once(keys, controls)  # type: ignore[no-any-return]
        return self._store.accounts(keys), self._store.controls(controls)

    # -- deeds ----------------------------------------------------------------------------------

    def freeze(self, scope: str, *, frozen: bool = True, reason: str = "") -> Control:
        """Refuse every call of a scope from now on, also what costs nothing; or let calls in again."""
        key = scope_key(scope)
        control = self._store.set_control(key, frozen=frozen)
        self._record("freeze" if frozen else "thaw", key, reason)
        return control

    def grant(self, scope: str, nanos: int, until: float, *, reason: str = "") -> Control:
        """Add to every limit on a scope (nano-dollars) until a time (epoch seconds).

        It takes the place of an earlier grant. Raises :class:`ConfigurationError` for a time that is over.
        """
        if until <= self._clock():
            raise ConfigurationError("a grant needs a time that is still to come")
        key = scope_key(scope)
        control = self._store.set_control(key, grant=(nanos, until))
        self._record("grant", key, reason, nanos, until)
        return control

    def reset(self, scope: str, window: str | None = None, *, reason: str = "") -> dict[str, int]:
        """Take what a scope has spent in the windows open now (or in one) back to zero.

        Returns the nano-dollars taken from each account: of two operators at the same moment one gets them.
        The charges stay in the ledger. Where the ledger does not take the record of it, it is undone.
        """
        key = scope_key(scope)
        wanted = None if window is None else str(parse_window(window))
        accounts = self._store.accounts()
        taken = {}
        for owner, period, name in _open_accounts(accounts, self._clock()):
            if owner != key or wanted not in (None, name):
                continue
            for part in (period.key, *period.also):
                account = f"{owner}|{part}"
                spent = self._store.reset(account)
                if not spent:
                    continue
                try:
                    self._record("reset", account, reason, spent)
                except BaseException:
                    self._store.adjust(account, spent)  # else a rebuild would not know of it
                    raise
                taken[account] = spent
        return taken

    def rebuild(self, *, reason: str = "") -> dict[str, tuple[int, int]]:
        """Make the accounts what the ledger says; returns before and after (nano-dollars) of those changed.

        The ledger must hold every charge of the store. Nothing may be in flight (unless the store has lost
        its data), and one rebuild runs at a time: raises :class:`StoreError` otherwise, and changes nothing.
        """
        now = self._clock()
        restore = getattr(self._store, "restore", None)
        if restore is not None:
            return self._restore(restore, now, reason)
        if not self._store.mark("rebuild", now, now + FENCE_SECONDS):
            raise StoreError(_ANOTHER)
        before, after = self._agreed(now)
        changed = {}
        for key in sorted({*before, *after}):
            was, now_is = before.get(key, Account()).spent, after.get(key, 0)
            if was != now_is:
                self._store.adjust(key, now_is - was)
                changed[key] = (was, now_is)
        self._record("rebuild", "all accounts", reason or f"{len(changed)} account(s) changed")
        return changed

    def bring_back(self, closed: float) -> bool:
        """After a loss that the store has noticed: begin it anew from a complete ledger.

        False where another process is at it, or has done it. For ``closed`` seconds nothing is reserved.
        """
        now = self._clock()
        claim = self._store.claim_restore(FENCE_SECONDS)  # type: ignore[attr-defined]
        if claim is None:
            return False
        restore = self._store.restore  # type: ignore[attr-defined]
        waiting, accounts, ended, said = self._by_the_ledger(now, claim)
        if not restore(accounts, ended, said, now=now, claim=claim, closed=closed):
            return False
        self._ledger.mark_settled(waiting)
        reason = f"the store had lost its data; {len(accounts)} account(s) restored"
        self._record("rebuild", "all accounts", reason)
        return True

    def _by_the_ledger(
        self, now: float, claim: str
    ) -> tuple[list[str], dict[str, Account], dict[str, Hold], dict[str, Control]]:
        """What waits for the accounts, and is in them then; the accounts, ends, and what operators said."""
        waiting = [charge.id for charge in self._ledger.unsettled(_ALL)]
        charges = tuple(self._while_claimed(claim))
        spent = self._spent(charges).items()
        accounts = {key: Account(nanos) for key, nanos in spent if _is_kept(key, now)}
        return waiting, accounts, _ended(charges, now), self._said(now)

    def _while_claimed(self, claim: str) -> Iterator[Charge]:
        """All charges; reading them may take longer than a claim lasts, so it is renewed meanwhile.

        Raises :class:`StoreError` where another process has it by now.
        """
        due = time.monotonic() + FENCE_SECONDS / 4
        for charge in self._ledger.charges():
            if time.monotonic() > due:
                if self._store.claim_restore(FENCE_SECONDS, claim) is None:  # type: ignore[attr-defined]
                    raise StoreError(_ANOTHER)
                due = time.monotonic() + FENCE_SECONDS / 4
            yield charge

    def _restore(self, restore: Callable[..., bool], now: float, reason: str) -> dict[str, tuple[int, int]]:
        """A store that notices loss begins anew, in one step, from what the ledger says."""
        claim = self._store.claim_restore(FENCE_SECONDS)  # type: ignore[attr-defined]
        if claim is None:
            raise StoreError(_ANOTHER)
        try:
            before = self._store.accounts()
        except StoreDataLost:
            # Nothing can be settled any more, so what waits for it is taken as it stands.
            before = {}
        else:
            self._agreed(now)
        waiting, accounts, ended, said = self._by_the_ledger(now, claim)
        restore(accounts, ended, said, now=now, anyway=True, claim=claim)
        self._ledger.mark_settled(waiting)
        self._record("rebuild", "all accounts", reason or f"{len(accounts)} account(s) restored")
        was = {key: before.get(key, Account()).spent for key in accounts}
        return {key: (was[key], after.spent) for key, after in accounts.items() if was[key] != after.spent}

    def _agreed(self, now: float) -> tuple[Mapping[str, Account], dict[str, int]]:
        """Accounts and ledger at one moment at which nothing is on its way from the one to the other."""
        for _ in range(3):
            before = self._store.accounts()
            if any(account.reserved for account in before.values()):
                raise StoreError("calls are in flight: stop the workers, or wait for their calls to end")
            if self._ledger.unsettled(1):
                raise StoreError(_UNSETTLED)
            after = self._spent(self._ledger.charges())
            if self._store.accounts() == before and not self._ledger.unsettled(1):
                return before, {
                    key: nanos for key, nanos in after.items() if key in before or _is_kept(key, now)
                }
        raise StoreError("calls are being made: stop the workers, then rebuild")

    def _spent(self, charges: Iterable[Charge]) -> dict[str, int]:
        spent: dict[str, int] = {}
        for charge in charges:
            for key in charge.accounts:
                spent[key] = spent.get(key, 0) + charge.nanos
        for event in self._ledger.audits():
            if event.action == "reset" and event.subject in spent:
                spent[event.subject] -= event.nanos or 0
        return spent

    def _said(self, now: float) -> dict[str, Control]:
        """What operators have said of scopes and still holds, from the records of it."""
        said: dict[str, Control] = {}
        for event in self._ledger.audits():
            control = said.get(event.subject, Control())
            if event.action in ("freeze", "thaw"):
                said[event.subject] = control._replace(frozen=event.action == "freeze")
            elif event.action == "grant" and (event.until or 0.0) > now:
                granted = control._replace(granted=event.nanos or 0, granted_until=event.until or 0.0)
                said[event.subject] = granted
        return {key: control for key, control in said.items() if control != Control()}

    def _record(
        self,
        action: str,
        subject: str,
        reason: str,
        nanos: int | None = None,
        until: float | None = None,
    ) -> None:
        self._ledger.audit(AuditEvent(self._clock(), action, subject, self._actor, reason, nanos, until))


_ANOTHER = "another rebuild runs, or one broke off within the last minute: try again after it"
_UNSETTLED = "some charges are not in the accounts yet: run the workers, or wait, until they are"


def _row(
    watch: Watch,
    window: str,
    accounts: Mapping[str, Account],
    controls: Mapping[str, Control],
    now: float,
) -> Row:
    control = controls.get(watch.control, Control())
    # The rule itself says limit and account: a wish that no limit admits is refused with both.
    wish = Reserve("", 2 * MAX_NANOS, (watch._replace(enforced=True, starts_at=0.0, ends_at=None),), 0.0)
    refusal = reserve(wish, accounts, None, {watch.control: control}, now)
    assert isinstance(refusal, Refusal)
    return Row(
        budget=watch.budget,
        scope=scope_name(watch.control),
        window=window,
        limit=refusal.limit if watch.budget else None,
        spent=refusal.account.spent,
        reserved=refusal.account.reserved,
        resets_at=watch.ends_at,
        frozen=control.frozen,
        granted=control.granted if now < control.granted_until else 0,
    )


def _ended(charges: Sequence[Charge], now: float) -> dict[str, Hold]:
    """The attempts of which the ledger knows the end, as long as a store remembers one.

    Without them a charge that is settled again would be booked twice, and so would a reservation
    that an old snapshot brings back when it expires.
    """
    recent = {
        charge.adjustment_of or charge.id for charge in charges if now - charge.ended_at <= TOMBSTONE_SECONDS
    }
    ended: dict[str, Hold] = {}
    for charge in charges:
        name = charge.adjustment_of or charge.id
        if name not in recent:
            continue
        booked = charge.nanos + (ended[name].booked if name in ended else 0)
        state = _STATES.get(charge.outcome, HoldState.FAILED)
        ended[name] = Hold(state, charge.reserved_nanos, booked, charge.accounts, charge.ended_at)
    return ended


def _attributions(budget: Budget, scopes: Sequence[str]) -> list[dict[str, str]]:
    """Whom a budget has accounts for: those there are, and those its ``limits`` name."""
    if not budget.by:
        return [{}]
    found: dict[str, dict[str, str]] = {}
    for value in budget.limits or {}:
        if value != "*":
            found[f"{budget.by[0]}={quote(value, safe='')}"] = {budget.by[0]: value}
    for scope in scopes:
        if not scope.startswith("in:"):
            pairs = dict(pair.split("=", 1) for pair in scope.split("&"))
            if tuple(pairs) == budget.by:
                found[scope] = {key: unquote(value) for key, value in pairs.items()}
    return [found[scope] for scope in sorted(found)]


def _open_accounts(accounts: Mapping[str, Account], now: float) -> list[tuple[str, Period, str]]:
    """Scope, period and name of each window that is open now and has an account."""
    found = {}
    for key in sorted(accounts):
        scope, _, window_key = key.rpartition("|")
        name, _, rest = window_key.partition(":")
        name = name.removeprefix("last ")
        period = period_of(parse_window(name), now, rest.partition("@")[2] or "UTC")
        if window_key == period.key or window_key in period.also:
            found[scope, period.key] = (scope, period, name)
    return list(found.values())


def _is_kept(key: str, now: float) -> bool:
    """Whether anybody can still ask for an account: of this period, or of the one before."""
    window_key = key.rpartition("|")[2]
    name, _, rest = window_key.partition(":")
    window, zone = parse_window(name.removeprefix("last ")), rest.partition("@")[2] or "UTC"
    period = period_of(window, now, zone)
    if window_key in (period.key, *period.also):
        return True
    return period.end is not None and window_key == period_of(window, period.start - 1, zone).key
