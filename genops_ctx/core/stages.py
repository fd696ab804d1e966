"""The stages of one attempt as plain values: called, then admitted or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .booking import hold_id

if TYPE_CHECKING:
    from .accounts import Refusal, Watch
    from .admission import Expectation
    from .errors import CallRefused
    from .guarding import Guards, Passage
    from .holds import Draw
    from .policy import Facts

__all__ = ["Admitted", "Call", "Refused"]


@dataclass(frozen=True, slots=True)
class Call:
    """What is about to be sent."""

    name: str
    operation: str
    """the idempotency key"""
    attribution: Mapping[str, str]
    expectation: Expectation
    watches: tuple[Watch, ...]
    """limits on shared accounts, resolved for this call's attribution and time"""
    started_at: float
    """seconds since the epoch"""
    deadline: float
    """seconds the whole call may take"""
    flow: str = ""
    keyed: bool = False
    """the user gave the idempotency key, so it is remembered"""
    books_unpriced: bool = True
    enforced: bool = True
    """False where budgets only observe: what would have been refused is recorded instead"""
    kept: bool = True
    """False where no budgets are kept (mode ``off``)"""
    rewatch: Callable[[float], tuple[Watch, ...]] | None = None
    """the watches anew for the store's own time, where it is in another window"""
    needs_store: bool = True
    """a budget says ``on_store_error="block"``"""
    degraded_from: str = ""
    """the flow that it runs instead of: budgets that degrade do not refuse it"""
    facts: Facts | None = None
    """what the policies look at; None where there are none"""
    guards: Guards | None = None
    """its rate limits and breakers"""
    attempt: int = 1
    """which one of its operation this is; of a keyed one, the earliest that it can be"""
    flags: tuple[str, ...] = ()
    """of its charge"""
    within: tuple[str, ...] = ()
    """holds of the metered calls around, innermost first, that it draws on"""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A call that may be sent. Plain and picklable; amounts in nano-dollars."""

    name: str
    operation: str
    attempt: int
    flow: str
    attribution: Mapping[str, str]
    context_path: tuple[str, ...]
    started_at: float
    reserved: int
    """set aside in the shared accounts, or in the contexts where there is no shared one"""
    held_here: int
    """set aside in the contexts of this process"""
    accounts: tuple[str, ...]
    stored: bool
    """the store has a hold for it"""
    because: str
    books_unpriced: bool = True
    """a budget says ``on_unpriced="reserve"``"""
    passed: tuple[str, ...] = ()
    """budgets that only warn and are passed by it"""
    flags: tuple[str, ...] = ()
    passages: tuple[Passage, ...] = ()
    """permits of its breakers"""
    draws: tuple[Draw, ...] = ()
    """whence ``held_here`` came, where there are metered calls around"""

    @property
    def hold(self) -> str:
        """The identity of its reservation: operation and attempt."""
        return hold_id(self.operation, self.attempt)


@dataclass(frozen=True, slots=True)
class Refused:
    """A call that must not be sent, with the error that says why."""

    error: CallRefused
    name: str
    attribution: Mapping[str, str]
    at: float
    refusal: Refusal | None = None
    """the limit that refused, where one did"""
