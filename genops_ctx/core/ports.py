"""What the rules ask of the outside world, as small protocols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .accounts import Account, Control, Grant, Hold, HoldState, Refusal, Reserve, WrongWindow
    from .context import GovernanceContext
    from .outcomes import Outcome
    from .records import Charge, Usage

__all__ = [
    "AccountStore",
    "AuditEvent",
    "Breaker",
    "Clock",
    "Held",
    "Ledger",
    "Limiter",
    "Lost",
    "Observer",
    "Prices",
    "Quote",
    "Turn",
    "Witness",
]


class Clock(Protocol):
    """Seconds since the epoch."""

    def __call__(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Quote:
    """What one model call costs.

    ``nanos`` is the exact price, rounded up once to a nano-dollar; None where no price is known.
    """

    nanos: int | None
    version: str = ""
    """which price was used: source of the data and the start of its period"""
    note: str = ""
    """why there is no price, or what is special about it (``local model``)"""
    upper: bool = False
    """it cannot be more, and may be less"""


class Prices(Protocol):
    """The price in force at a time (seconds since the epoch, UTC)."""

    def quote(self, usage: Usage, at: float) -> Quote: ...

    def provider_of(self, name: str) -> str:
        """The canonical provider of a name that Flowise or a user gives (``chatOpenAI`` → ``openai``)."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """A reservation as the store has it now."""

    state: HoldState
    amount: int
    """nano-dollars"""
    fresh: bool
    """True where this call made it; False where the same attempt had it before"""
    passed: tuple[str, ...] = ()
    """names of budgets that only warn and are passed by it"""


@dataclass(frozen=True, slots=True)
class Lost:
    """A reservation that expired and was booked as spent."""

    name: str
    hold: Hold
    memo: str
    """what the charge of it says, as :class:`Reserve` had it"""


class AccountStore(Protocol):
    """Accounts, holds and controls; each method is one atomic step. Amounts in nano-dollars.

    ``now`` is the caller's clock in epoch seconds. A store that several processes share goes by a clock
    of its own, and takes from the caller's only how far away the times are that come with it.

    Every method raises :class:`~genops_ctx.core.errors.StoreError` where the store does not answer
    within its bound.
    """

    def reserve(self, wish: Reserve, now: float) -> Held | Refusal | WrongWindow: ...

    def settle(self, hold: str, actual: int, accounts: tuple[str, ...], now: float, completed: bool) -> None:
        """Book the actual cost; ``accounts`` are used where the hold is no longer known."""
        ...

    def release(self, hold: str, now: float, token: str = "") -> bool:
        """Give a reservation back; with a ``token`` only the one that this very reserve made.

        True where it is given back, now or before.
        """
        ...

    def extend(self, hold: str, expires_at: float, now: float) -> None:
        """``expires_at`` is of the same clock as ``now``: a store with a clock of its own converts it."""
        ...

    def reap(self, now: float) -> Sequence[Lost]:
        """Expire what is over, and return every loss that was not yet acknowledged."""
        ...

    def acknowledge(self, holds: Sequence[str]) -> None:
        """The ledger has these losses."""
        ...

    def accounts(self, keys: Sequence[str] | None = None) -> Mapping[str, Account]:
        """The accounts of these keys (empty ones too), or all there are."""
        ...

    def adjust(self, key: str, spent: int) -> None:
        """Add to what an account has spent; for corrections."""
        ...

    def reset(self, key: str) -> int:
        """Take what an account has spent back to nothing, and return how much that was, in one step.

        Of several who do so at once one is told all of it, the others 0.
        """
        ...

    def controls(self, keys: Sequence[str] | None = None) -> Mapping[str, Control]:
        """What operators have said of these scopes (also where it is nothing), or of all."""
        ...

    def set_control(self, key: str, *, frozen: bool | None = None, grant: Grant | None = None) -> Control:
        """Change what is given and leave the rest, in one step: of two operators none undoes the other.

        Returns what is said of the scope now.
        """
        ...

    def mark(self, key: str, now: float, until: float) -> bool:
        """Set a mark that is not there: True for the one caller that sets it, until ``until``.

        ``until`` is when it is gone (epoch seconds); a mark that is over counts as absent.
        """
        ...

    def close(self) -> None: ...


class Turn(NamedTuple):
    """Leave to make one call, in ``wait`` seconds."""

    wait: float
    token: object
    """to give it back by"""


class Limiter(Protocol):
    """How often something may be called, as the story of a call sees it."""

    def take(self, attribution: Mapping[str, str], flow: str, now: float, patience: float) -> object:
        """A :class:`Turn` within ``patience`` seconds at most, or what refuses the call: a
        :class:`~genops_ctx.core.errors.CallRefused`."""
        ...

    def put_back(self, turn: Turn, now: float) -> None:
        """The call was not made. Never raises."""
        ...


class Breaker(Protocol):
    """A circuit breaker as the story of a call sees it. Permits mean nothing to others."""

    def enter(self, target: str, now: float, life: float | None = None) -> object:
        """A permit for one call, or what refuses it: a :class:`~genops_ctx.core.errors.CallRefused`.

        ``life``: seconds that the call may take, where it is known.
        """
        ...

    def leave(self, permit: object, outcome: Outcome, error: BaseException | None, now: float) -> None:
        """How the call ended. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Something an operator or a policy did, for the record."""

    at: float
    """epoch seconds"""
    action: str
    """``grant``, ``reset``, ``freeze``, ``thaw``, ``rebuild``, ``store``, ``policy`` …"""
    subject: str
    """the account, scope or call it was done to"""
    actor: str = ""
    reason: str = ""
    nanos: int | None = None
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Witness:
    """An end that a store was told, by which data older than that is known."""

    store: str
    """which data of which server, as the store calls its place"""
    hold: str
    """the reservation that was settled"""
    at: float
    """epoch seconds"""


class Ledger(Protocol):
    """Where charges are kept: append-only. Appending the same charge id again changes nothing."""

    def append(self, charge: Charge, *, settled: bool = True) -> bool | None:
        """False where the ledger has a charge of this id already, so that nothing was changed.

        ``settled`` False: the accounts do not have it yet, and :meth:`unsettled` gives it back.
        """
        ...

    def mark_settled(self, charge_ids: Sequence[str], witness: Witness | None = None) -> None:
        """The accounts have these charges; ``witness`` takes the place of the store's earlier one."""
        ...

    def witness(self, store: str) -> Witness | None:
        """The newest end that a store was told by those who write this ledger."""
        ...

    def unsettled(self, limit: int = 100) -> Sequence[Charge]: ...

    def charges(self, operation: str | None = None) -> Iterable[Charge]:
        """In the order they were booked; of one operation where given."""
        ...

    def between(self, since: float, until: float) -> Iterable[Charge]:
        """Those that started in [``since``, ``until``), epoch seconds, in the order they were booked."""
        ...

    def audit(self, event: AuditEvent) -> None: ...

    def audits(self, action: str | None = None) -> Iterable[AuditEvent]:
        """In the order they were recorded; of one action where given."""
        ...

    def close(self) -> None: ...


class LogEntry(NamedTuple):
    """Something that one process has seen of evidence, for the one that puts it together."""

    number: int
    """in the order of writing"""
    at: float
    """epoch seconds, by the clock of who wrote it"""
    kind: str
    content: str
    """JSON; never a prompt, an answer or a key"""


class EvidenceLog(Protocol):
    """Evidence on its way from the processes that receive it to the one that corrects charges by it.

    It lies beside a ledger and is shared by all who share that. Every method raises
    :class:`~genops_ctx.core.errors.StoreError` where it does not answer.
    """

    remote: bool
    """asking it waits for a network"""

    def add(self, at: float, entries: Sequence[tuple[str, str]]) -> None:
        """Write down entries, as kind and content, all or none."""
        ...

    def after(self, number: int, kind: str = "", limit: int = 1000) -> Sequence[LogEntry]:
        """The entries with a higher number, in their order; of one kind where given."""
        ...

    def these(self, numbers: Sequence[int]) -> Sequence[LogEntry]:
        """Those of the numbers that are there (by now)."""
        ...

    def newest(self) -> int:
        """The highest number so far; 0 for none."""
        ...

    def lead(self, who: str, seconds: float) -> float | None:
        """Be the one who reads it for so many seconds, or go on being it; None where another is.

        Else how long before nobody had said so: 0.0 for the one who was it already.
        """
        ...

    def resign(self, who: str) -> None:
        """Leave the reading to another."""
        ...

    def forget(self, before: float, most: int) -> bool:
        """Drop what was written before that time (epoch seconds), and all but the ``most`` newest.

        The oldest first, so many at once that it takes a moment; False where there may be more.
        """
        ...


class Observer(Protocol):
    """Told of contexts that open and close (by the runtime, to make spans)."""

    def opened(self, context: GovernanceContext) -> object: ...

    def closed(self, context: GovernanceContext, state: object, error: BaseException | None) -> None: ...

    def here(self) -> object:
        """What is current now; None where nothing is observed."""
        ...

    def go(self, there: object) -> None:
        """Make that current again."""
        ...

    def within(self, state: object) -> object:
        """What is current in a context that opened with this state."""
        ...

    def around(self, state: object) -> object:
        """What was current when it opened."""
        ...
