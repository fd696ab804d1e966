"""What is put on record of a call that a cache answered, or that was served elsewhere.

In the log, in the ledger's audit trail, in the context's totals, and on the current span. None of it
holds a question or an answer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..core.context import current_context
from ..core.ports import AuditEvent
from ..runtime import get_runtime
from ..telemetry.events import add_event

if TYPE_CHECKING:
    from .cache import Found
    from .classification import ErrorKind

__all__ = ["fell_back", "record_hit", "went_elsewhere"]

log = logging.getLogger("genops_ctx")


def record_hit(name: str, found: Found) -> None:
    """A cache answered: $0, and what that saved."""
    context = current_context()
    if context is not None:
        context.hit(found.nanos or 0)
    _record("cached", name, "", "answered from the cache", found.nanos)
    add_event("genops.cached", {"genops.call": name, "genops.saved.nano_usd": found.nanos or 0})


def went_elsewhere(name: str, failed: str, instead: str, kind: ErrorKind) -> None:
    """A target failed, and another is tried."""
    log.warning("%s: %s failed (%s); %s is tried instead", name, failed, kind, instead)
    _record("failover", name, instead, f"{failed} failed: {kind}")
    add_event(
        "genops.failover", {"genops.call": name, "genops.failover.from": failed, "error.type": str(kind)}
    )


def fell_back(name: str, failed: Sequence[str], kind: ErrorKind) -> None:
    """All targets failed, and the fallback answer was given."""
    log.warning("%s: %s failed (%s); the fallback answer was given", name, ", ".join(failed), kind)
    _record("fallback", name, "the fallback answer", f"{', '.join(failed)} failed: {kind}")
    add_event("genops.fallback", {"genops.call": name, "error.type": str(kind)})


def _record(action: str, name: str, actor: str, reason: str, nanos: int | None = None) -> None:
    runtime = get_runtime()
    context = current_context()
    owner: Mapping[str, str] = context.inherited if context is not None else {}
    told = ", ".join(f"{key}={value}" for key, value in sorted(owner.items()))
    subject = f"call {name}" + (f" ({told})" if told else "")
    event = AuditEvent(runtime.clock(), action, subject, actor, reason, nanos)

    def audit() -> None:
        try:
            runtime.books.ledger.audit(event)
        except Exception as error:
            log.warning("what was decided on %s could not be recorded: %s", name, error)

    runtime.books.hand_off.run(audit)
