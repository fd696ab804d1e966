"""What a failed exchange says of the request: whether it had left, and the error that tells so."""

from __future__ import annotations

from ..core.outcomes import Outcome
from .errors import FlowiseConnectionError, FlowiseError, FlowiseTimeoutError

__all__ = ["network_error"]


def network_error(what: str, *, left: bool, timed_out: bool, reason: str = "") -> FlowiseError:
    """The error of an exchange that failed below HTTP, with its outcome.

    ``left`` says whether bytes of the request may have reached Flowise; ``reason`` why there was no
    connection, as " (refused)".
    """
    if timed_out and not left:
        failed: FlowiseError = FlowiseTimeoutError(
            f"{what} failed: no connection in time. Is Flowise running and reachable there?"
        )
        failed.outcome = Outcome.NOT_SENT
    elif timed_out:
        failed = FlowiseTimeoutError(
            f"{what} failed: no whole answer before the deadline. Flowise may still be at work on it, "
            "and the model is billed. A streamed call of a flow that does not exist is never answered; "
            "a longer timeout= may help otherwise"
        )
        failed.outcome = Outcome.TIMED_OUT
    elif not left:
        failed = FlowiseConnectionError(
            f"{what} failed: no connection{reason}. Is Flowise running there? "
            "Check base_url or FLOWISE_BASE_URL"
        )
        failed.outcome = Outcome.NOT_SENT
    else:
        failed = FlowiseConnectionError(
            f"{what} failed: the connection broke before the answer was whole. Flowise may have run the flow"
        )
        failed.outcome = Outcome.DISCONNECTED
    return failed
