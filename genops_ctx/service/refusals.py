"""How the service says no: to programs what it was and when to try again, to people nothing internal.

The body has the shape of Flowise's own errors, so that clients of Flowise show its message; what a program
needs is under ``error``, with the message again, since the chat widget looks for it there. Where the client
asked for a stream, it is told by an ``error`` event.
"""

from __future__ import annotations

import calendar
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..core.errors import (
    AlreadyCompleted,
    BudgetExceeded,
    CallRefused,
    CircuitOpen,
    ConfigurationError,
    GovernanceError,
    LockedAttributeError,
    OperationInProgress,
    PolicyViolation,
    PriceUnknown,
    RateLimitExceeded,
    ShuttingDown,
    StoreError,
    StoreUnavailable,
)
from ..providers.errors import FlowiseError, FlowiseNotFoundError
from ..providers.highest_cost import AboveMaximum
from ..runtime import get_runtime
from .caller import BadHeader

if TYPE_CHECKING:
    from .keys import ClientKey

__all__ = ["Refusal", "answer_to", "refusal_of", "told", "unreachable"]

log = logging.getLogger("genops_ctx")

_BUSY = "The service is busy. Please try again in a moment."


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is none. ``message`` is for end users."""

    status: int
    code: str
    message: str
    details: dict[str, Any]
    retry_after: float | None = None
    """seconds"""
    figures: dict[str, str] = field(default_factory=dict)
    """amounts in dollars, for programs; not for keys of pages, whose visitors could read them"""

    def body(self, client: ClientKey | None = None) -> dict[str, Any]:
        """As JSON; with the figures where they are for this client."""
        figures = {} if client is None or client.origins else self.figures
        return {
            "statusCode": self.status,
            "success": False,
            "message": self.message,
            "stack": {},
            "error": {"code": self.code, "message": self.message, **self.details, **figures},
        }

    def headers(self) -> dict[str, str]:
        if self.retry_after is None:
            return {}
        return {"retry-after": str(max(1, math.ceil(self.retry_after)))}

    def events(self) -> bytes:
        """As Flowise tells an error in a stream."""
        events = ({"event": "error", "data": self.message}, {"event": "end", "data": "[DONE]"})
        return "".join(
            f"message:\ndata:{json.dumps(event, ensure_ascii=False)}\n\n" for event in events
        ).encode()


def refusal_of(error: GovernanceError, now: float) -> Refusal:
    """What a client is told of an error that kept its call from being sent."""
    for kind, make in _KINDS:
        if isinstance(error, kind):
            refusal: Refusal = make(error, now)
            return refusal
    return Refusal(500, "internal", "Something went wrong on our side. Please try again later.", {})


def told(error: GovernanceError) -> Refusal:
    """What a client is told now; see :func:`refusal_of`."""
    return refusal_of(error, get_runtime().clock())


def unreachable(error: BaseException) -> Refusal:
    """What a client is told where Flowise did not answer, or broke off."""
    if isinstance(error, TimeoutError):
        return Refusal(504, "timeout", "The answer took too long. Please try again.", {}, 5.0)
    log.warning("Flowise could not be asked (%s)", type(error).__name__)
    return Refusal(502, "bad_gateway", "The service cannot be reached. Please try again.", {}, 5.0)


def answer_to(
    request: Request, refusal: Refusal, streams: bool = False, more: Mapping[str, str] | None = None
) -> Response:
    """Refusals of streams are events. Those of the request itself are statuses, which programs expect; but
    a widget, which accepts events only, shows people nothing else."""
    widget = request.headers.get("accept", "").startswith("text/event-stream")
    headers = {**refusal.headers(), **(more or {})}
    if not more:  # nothing was booked
        request.state.unsent_as = "error" if refusal.status in (502, 504) else "refused"
    if widget or (streams and refusal.status not in (400, 401, 404, 413)):
        headers |= {"cache-control": "no-cache", "x-genops-refused": refusal.code}
        return Response(refusal.events(), 200, headers, "text/event-stream")
    return JSONResponse(refusal.body(getattr(request.state, "client", None)), refusal.status, headers)


def _budget(error: Any, now: float) -> Refusal:
    resets_at = error.resets_at
    at = resets_at.timestamp() if isinstance(resets_at, datetime) else resets_at
    details = {
        "budget": error.budget,
        "resets_at": None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
    }
    when = "" if at is None else f" Please try again after {_spelt(at)}."
    return Refusal(
        402,
        "budget_exceeded",
        f"The budget for this service is used up.{when}",
        details,
        None if at is None else max(at - now, 1.0),
        _figures(error),
    )


def _figures(error: BudgetExceeded) -> dict[str, str]:
    """Why a budget refused that is not quite used up: less is left than the call costs at least."""
    if error.floor is None or error.frozen:
        return {}
    return {
        "remaining": f"{error.remaining:f}",
        "floor": f"{error.floor:f}",
        "floor_because": error.floor_because,
    }


def _spelt(at: float) -> str:
    """A time for people: ``1 March 2026, 00:00 UTC``."""
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment.day} {calendar.month_name[moment.month]} {moment:%Y, %H:%M} UTC"


def _maximum(error: Any, now: float) -> Refusal:
    message = "This request is likely to cost more than it allows."
    return Refusal(402, "max_cost", message, {})


def _policy(error: Any, now: float) -> Refusal:
    return Refusal(
        403, "policy", "This request is not allowed here.", {"policy": getattr(error, "policy", "")}
    )


def _price(error: Any, now: float) -> Refusal:
    return Refusal(403, "price_unknown", "This request is not allowed here.", {})


def _running(error: Any, now: float) -> Refusal:
    return Refusal(409, "in_progress", "This request is being answered already.", {}, 1.0)


def _completed(error: Any, now: float) -> Refusal:
    return Refusal(409, "already_completed", "This request was answered before.", {})


def _rate(error: Any, now: float) -> Refusal:
    message = "Too many requests. Please try again in a moment."
    return Refusal(429, "rate_limited", message, {"limit": error.limit}, error.retry_after)


def _busy(error: Any, now: float) -> Refusal:
    wait = getattr(error, "retry_after", None)
    return Refusal(503, "unavailable", _BUSY, {}, 1.0 if wait is None else wait)


def _refused(error: Any, now: float) -> Refusal:
    return Refusal(403, "refused", "This request is not allowed here.", {})


def _misuse(error: Any, now: float) -> Refusal:
    return Refusal(400, "bad_request", "The request is not understood.", {})


def _header(error: Any, now: float) -> Refusal:
    details = {"header": error.header, "problem": error.problem, "expected": error.expected}
    return Refusal(400, "bad_request", str(error), details)


def _no_flow(error: Any, now: float) -> Refusal:
    return Refusal(404, "no_such_flow", "There is no such flow.", {})


def _flowise(error: Any, now: float) -> Refusal:
    return unreachable(error)


_KINDS: tuple[tuple[type[GovernanceError], Any], ...] = (
    (BudgetExceeded, _budget),
    (AboveMaximum, _maximum),
    (PolicyViolation, _policy),
    (PriceUnknown, _price),
    (OperationInProgress, _running),
    (AlreadyCompleted, _completed),
    (RateLimitExceeded, _rate),
    (CircuitOpen, _busy),
    (ShuttingDown, _busy),
    (StoreUnavailable, _busy),
    (StoreError, _busy),
    (CallRefused, _refused),
    (BadHeader, _header),
    (ConfigurationError, _misuse),
    (LockedAttributeError, _misuse),
    (FlowiseNotFoundError, _no_flow),
    (FlowiseError, _flowise),
)
