"""The story of an answer that was kept: it costs nothing, and yet a policy or an operator may forbid it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .accounts import Refusal
from .effects import Judge, Standing, Story, Undo
from .errors import StoreError
from .exceeded import budget_exceeded
from .policy import Verdict
from .reserving import unavailable
from .stages import Refused

if TYPE_CHECKING:
    from .context import GovernanceContext
    from .ports import AccountStore
    from .stages import Call

__all__ = ["let_through"]


def let_through(call: Call, context: GovernanceContext | None, store: AccountStore) -> Story[Refused | None]:
    """Why a kept answer must not be given instead of this call; None where it may be.

    Policies judge it as they would the call, and count it. Of budgets only a frozen scope forbids it:
    one that is used up has nothing to lose.
    """
    refused: Refused | None = None
    judged = False
    try:
        if call.facts is not None:
            verdict = yield Judge(call.facts)
            assert isinstance(verdict, Verdict)
            if verdict.violation is not None:
                refused = Refused(verdict.violation, call.name, call.attribution, call.started_at)
                return refused
            judged = True
        if call.watches and call.kept and call.enforced:
            refused = yield from _frozen(call, store)
        return refused
    finally:
        if refused is not None:
            if judged and call.facts is not None:
                yield Undo(call.facts)
            if context is not None:
                context.refuse()


def _frozen(call: Call, store: AccountStore) -> Story[Refused | None]:
    try:
        found = yield Standing(store, call.watches, call.started_at)
    except StoreError as error:
        if not call.needs_store:
            return None
        return Refused(unavailable(error), call.name, call.attribution, call.started_at)
    if not isinstance(found, Refusal):
        return None
    frozen = budget_exceeded(found, "a kept answer costs nothing")
    return Refused(frozen, call.name, call.attribution, call.started_at, found)
