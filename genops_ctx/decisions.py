"""Decisions on calls: what the policies say, and the record of every refusal in the ledger.

A record that cannot be written is logged and stops nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .core.errors import BudgetExceeded, PolicyViolation
from .core.money import nanos_up
from .core.policy import ALLOWED, Facts, Verdict
from .core.ports import AuditEvent
from .core.runaway import Guard

if TYPE_CHECKING:
    from .core.call import Admitted, Call, Refused
    from .core.context import GovernanceContext
    from .core.policy import ModelUse
    from .core.ports import Ledger
    from .core.records import Charge
    from .settings import Settings

__all__ = ["NOT_GOVERNED", "Decisions", "Models"]

log = logging.getLogger("genops_ctx")

NOT_GOVERNED = "not_governed"
"""action of the record of an address that predictions went to and that nothing governs"""

Models = Callable[[], "tuple[ModelUse, ...] | None"]
"""The models that a call will use; None where nothing is known of them."""


class Decisions:
    """The policies of one process, and the audit records of what they and the budgets decide."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._ledger = ledger
        self._enforced = settings.mode == "enforce"
        self._guard = Guard(settings.policies) if settings.policies and settings.mode != "off" else None

    def facts(
        self,
        name: str,
        flow: str,
        attribution: Mapping[str, str],
        at: float,
        context: GovernanceContext | None,
        models: Models | None,
        question: str | None,
    ) -> Facts | None:
        """What the policies will look at; None where there are no policies."""
        if self._guard is None:
            return None
        session = attribution.get("session_id") or (context.path[0].id if context is not None else "")
        known = models() if models is not None else None
        return Facts(name, flow, attribution, at, known, session, self._guard.hash_of(question))

    def judge(self, facts: Facts) -> Verdict:
        """What the policies say of a call, recorded. In mode ``observe`` none is refused."""
        if self._guard is None:
            return ALLOWED
        decisions = self._guard.decide(facts, enforced=self._enforced)
        for policy, reason in decisions:
            if reason or policy.audit == "all":
                refusal = "refused" if self._enforced else "would_refuse"
                action = refusal if reason else "allowed"
                self._record(facts.at, action, facts.call, facts.attribution, f"policy {policy.name}", reason)
        refusing = [decision for decision in decisions if decision.reason]
        if not refusing:
            return ALLOWED
        if not self._enforced:
            return Verdict(would_refuse=tuple(f"policy {policy.name}" for policy, _ in refusing))
        policy, reason = refusing[0]
        return Verdict(PolicyViolation(policy.name, facts.call, reason))

    def undo(self, facts: Facts) -> None:
        """A call that the policies allowed was not made."""
        if self._guard is not None:
            self._guard.undo(facts)

    def refused(self, refused: Refused) -> None:
        """Record a refusal by a budget."""
        error = refused.error
        if isinstance(error, BudgetExceeded):
            wanted = nanos_up(error.wanted)
            actor = f"budget {error.budget}"
            self._record(refused.at, "refused", refused.name, refused.attribution, actor, str(error), wanted)

    def admitted(self, call: Call, admitted: Admitted) -> None:
        """Record what was decided on a call that was admitted although a budget refused it."""
        for flag in admitted.flags:
            action, _, what = flag.partition(":")
            if action == "degraded_from":
                actor, reason = "", f"runs instead of {what}"
            elif action in ("approved", "would_refuse") and not what.startswith("policy "):
                actor, reason = f"budget {what}", f"it would pass the limit ({call.expectation.because})"
            else:
                continue
            amount = admitted.reserved
            self._record(call.started_at, action, call.name, call.attribution, actor, reason, amount)

    def booked(self, charge: Charge) -> None:
        """Count the cost of a charge in the policies that limit it."""
        if self._guard is not None:
            self._guard.book(charge.attribution, charge.nanos, charge.ended_at)

    def not_governed(self, address: str, at: float) -> None:
        """Record where predictions went that nothing governs."""
        self._audit(AuditEvent(at, NOT_GOVERNED, address, reason="no base URL matches it"), address)

    def _record(
        self,
        at: float,
        action: str,
        call: str,
        attribution: Mapping[str, str],
        actor: str,
        reason: str,
        nanos: int | None = None,
    ) -> None:
        owner = ", ".join(f"{key}={value}" for key, value in sorted(attribution.items()))
        subject = f"call {call}" + (f" ({owner})" if owner else "")
        self._audit(AuditEvent(at, action, subject, actor, reason, nanos), call)

    def _audit(self, event: AuditEvent, on: str) -> None:
        try:
            self._ledger.audit(event)
        except Exception as error:
            log.warning("a decision on %s could not be recorded: %s", on, error)
