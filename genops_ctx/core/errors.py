"""The tree of errors. Every message says what happened and what to do about it.

::

    GovernanceError                     everything this package raises
    ├── ConfigurationError              bad argument or setting            (also ValueError)
    │   └── UnknownKeywordError         a keyword one slip from a known one (also TypeError)
    ├── LockedAttributeError            an inner scope changed a locked attribute
    ├── CallRefused                     refused before anything was sent; nothing was spent
    │   ├── BudgetExceeded              a limit would be passed
    │   ├── PolicyViolation             a policy does not allow the call
    │   ├── PriceUnknown                no price is known, and the budget says "block"
    │   ├── RateLimitExceeded           a rate limit has no token left; ``retry_after`` in seconds
    │   ├── CircuitOpen                 a breaker lets nothing through; ``retry_after`` in seconds
    │   ├── ShuttingDown                the program is ending
    │   ├── OperationInProgress         the same idempotency key is being sent right now
    │   ├── AlreadyCompleted            the same idempotency key was completed before
    │   └── StoreUnavailable            the budget store does not answer, and the budget says "block"
    ├── StoreError                      a store failed or did not answer within its bound
    │   └── StoreDataLost               it answers, but has lost what was booked in it
    └── FlowiseError                    genops_ctx.providers.errors: also requests exceptions

Messages never hold a prompt, an answer or a key.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from decimal import Decimal

    from .records import Charge

__all__ = [
    "AlreadyCompleted",
    "BudgetExceeded",
    "CallRefused",
    "CircuitOpen",
    "ConfigurationError",
    "GovernanceError",
    "GovernanceWarning",
    "LockedAttributeError",
    "OperationInProgress",
    "PolicyViolation",
    "PriceUnknown",
    "RateLimitExceeded",
    "ShuttingDown",
    "StoreDataLost",
    "StoreError",
    "StoreUnavailable",
    "UnknownKeywordError",
]


class GovernanceError(Exception):
    """Everything this package raises derives from this."""


class GovernanceWarning(UserWarning):
    """Something is likely not what you meant; said once."""


def say(text: str, *, stacklevel: int) -> None:
    """Warn with a :class:`GovernanceWarning`; where warnings are errors, log it instead.

    It is said after a call was paid for: an exception would take its result away.
    """
    try:
        warnings.warn(text, GovernanceWarning, stacklevel=stacklevel)
    except GovernanceWarning:
        import logging

        logging.getLogger("genops_ctx").warning("%s", text)


class ConfigurationError(GovernanceError, ValueError):
    """A bad argument or setting; nothing was sent."""


class UnknownKeywordError(ConfigurationError, TypeError):
    """A keyword that is one slip away from a known one."""


class LockedAttributeError(GovernanceError):
    """An inner scope gave another value to an attribute that an outer scope locked."""


class CallRefused(GovernanceError):
    """The call was refused before anything was sent, so nothing was spent."""


class BudgetExceeded(CallRefused):
    """A limit would be passed. All amounts are exact Decimals of dollars.

    Attributes:
        budget: name of the budget that refused.
        scope: the account it watches, for people (``context 'support'``, ``team=search``).
        limit, spent, reserved: the account at that moment.
        wanted: what the call asked to set aside.
        wanted_because: how ``wanted`` came about.
        resets_at: end of the window, or None where the budget has none.
        frozen: an operator has stopped the scope, whatever is left.
        fallback: the flow to run instead, where the budget says ``on_exceeded="degrade"``; else empty.
        floor: what the call is known to cost at least, or None: ``wanted`` is cut to what is left, but not
            below this.
        floor_because: how ``floor`` came about; empty without one.
    """

    def __init__(
        self,
        *,
        budget: str,
        scope: str,
        limit: Decimal,
        spent: Decimal,
        reserved: Decimal,
        wanted: Decimal,
        wanted_because: str,
        resets_at: datetime | None = None,
        frozen: bool = False,
        fallback: str = "",
        floor: Decimal | None = None,
        floor_because: str = "",
    ) -> None:
        self.budget = budget
        self.scope = scope
        self.limit = limit
        self.spent = spent
        self.reserved = reserved
        self.wanted = wanted
        self.wanted_because = wanted_because
        self.resets_at = resets_at
        self.frozen = frozen
        self.fallback = fallback
        self.floor = floor
        self.floor_because = floor_because
        super().__init__(
            budget, scope, limit, spent, reserved, wanted, wanted_because, resets_at, frozen, fallback, floor
        )

    @property
    def remaining(self) -> Decimal:
        """What was left, never below zero; exact whatever the caller's decimal context is."""
        from .money import EXACT, dollars

        left = EXACT.subtract(EXACT.subtract(self.limit, self.spent), self.reserved)
        return max(left, dollars(0))

    def __str__(self) -> str:
        if self.frozen:
            return (
                f"budget {self.budget!r} for {self.scope} is frozen by an operator, so the call was refused "
                "before it was sent. Thaw it with `genops-ctx budgets freeze --off`"
            )
        when = f" It resets at {self.resets_at.isoformat()}." if self.resets_at else ""
        least = ""
        if self.floor is not None:
            least = (
                f" {_usd(self.remaining)} is left, and such a call costs {_usd(self.floor)} at least "
                f"({self.floor_because})."
            )
        return (
            f"budget {self.budget!r} of {_usd(self.limit)} for {self.scope} refused the call before it "
            f"was sent: {_usd(self.spent)} spent + {_usd(self.reserved)} reserved by calls in flight + "
            f"{_usd(self.wanted)} wanted ({self.wanted_because}) would pass the limit.{least}{when} "
            f"Raise the budget, wait, or pass a smaller max_cost if this call needs less."
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (
            type(self),
            {
                name: getattr(self, name)
                for name in (
                    "budget",
                    "scope",
                    "limit",
                    "spent",
                    "reserved",
                    "wanted",
                    "wanted_because",
                    "resets_at",
                    "frozen",
                    "fallback",
                    "floor",
                    "floor_because",
                )
            },
        )


class PolicyViolation(CallRefused):
    """A policy does not allow the call.

    Attributes:
        policy: name of the policy.
        call: name of what was to be called.
        reason: which rule refused it, and what to do.
    """

    def __init__(self, policy: str, call: str, reason: str) -> None:
        self.policy = policy
        self.call = call
        self.reason = reason
        super().__init__(policy, call, reason)

    def __str__(self) -> str:
        return f"policy {self.policy!r} refused {self.call!r} before it was sent: {self.reason}"


class PriceUnknown(CallRefused):
    """No price is known for a model of this flow and the budget says ``on_unpriced="block"``."""


class RateLimitExceeded(CallRefused):
    """A rate limit has no token left.

    Attributes:
        limit: name of the limit.
        scope: whose tokens they are, for people (``user_id=ana``).
        retry_after: seconds until there is one.
    """

    def __init__(self, limit: str, scope: str, retry_after: float) -> None:
        self.limit = limit
        self.scope = scope
        self.retry_after = retry_after
        super().__init__(limit, scope, retry_after)

    def __str__(self) -> str:
        whose = f" for {self.scope}" if self.scope else ""
        return (
            f"rate limit {self.limit!r}{whose} refused the call before it was sent: try again in "
            f"{self.retry_after:.3g} s, or let calls wait with max_wait="
        )


class CircuitOpen(CallRefused):
    """A circuit breaker lets nothing through, because what it watches has been failing.

    Attributes:
        breaker: name of the breaker.
        target: what it watches, for people.
        state: ``open``, or ``half_open`` while others are trying whether it works again.
        retry_after: seconds until it may let a call through; None where an operator has opened it.
    """

    def __init__(self, breaker: str, target: str, state: str, retry_after: float | None) -> None:
        self.breaker = breaker
        self.target = target
        self.state = state
        self.retry_after = retry_after
        super().__init__(breaker, target, state, retry_after)

    def __str__(self) -> str:
        if self.retry_after is None:
            why, when = "an operator has opened it", "Have it reset"
        else:
            why = "it has been failing"
            if self.state == "half_open":
                why += ", and other calls are trying whether it works again"
            when = f"Try again in {self.retry_after:.3g} s"
        return (
            f"circuit breaker {self.breaker!r} is {self.state} and refused the call of {self.target} before "
            f"it was sent: {why}. {when}, or give a fallback"
        )


class ShuttingDown(CallRefused):
    """The program is ending and takes on no more calls (see :mod:`genops_ctx.resilience.shutdown`)."""


class StoreError(GovernanceError):
    """A store failed, or did not answer within its bound. Calls see :class:`StoreUnavailable`."""


class StoreDataLost(StoreError):
    """A store has lost what was booked in it (flushed, evicted, an old snapshot), and has to be restored.

    Until then it is not read: an empty account is not one that has spent nothing.
    """


class StoreUnavailable(CallRefused):
    """A store does not answer, and what goes by it says that calls are refused then.

    A budget in scope says ``on_store_error="block"``, or the store of a rate limit or breaker
    ``away="refuse"``.
    """


class OperationInProgress(CallRefused):
    """A call with this idempotency key is being sent right now; it was not sent again."""


class AlreadyCompleted(CallRefused):
    """An operation with this idempotency key was completed before; nothing was sent.

    ``charges`` holds what it cost then (empty where the ledger no longer has them).
    """

    def __init__(self, operation: str, charges: Sequence[Charge] = ()) -> None:
        self.operation = operation
        self.charges = tuple(charges)
        super().__init__(operation, self.charges)

    def __str__(self) -> str:
        return (
            f"operation {self.operation!r} was completed before and was not sent again; "
            f"its {len(self.charges)} charge(s) are in .charges. "
            "Use a new idempotency_key to pay for a new call."
        )


def _usd(amount: Decimal) -> str:
    from .money import format_dollars, nanos_up

    return format_dollars(nanos_up(amount))


def _rebuild(kind: type[BudgetExceeded], fields: dict[str, object]) -> BudgetExceeded:
    return kind(**fields)  # type: ignore[arg-type]
