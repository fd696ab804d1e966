"""Errors of Flowise calls: ours, and ``requests`` exceptions too, so that existing handlers catch them.

::

    FlowiseError (GovernanceError, requests.RequestException)
    ├── FlowiseConnectionError        not reached, or broken off     (requests and builtin ConnectionError)
    ├── FlowiseTimeoutError           no answer within the deadline  (requests.Timeout, TimeoutError)
    ├── FlowiseHTTPError              an error status                (requests.HTTPError)
    │   ├── FlowiseBadRequestError        400 and other 4xx
    │   ├── FlowiseAuthenticationError    401, and a flow's own key as 500
    │   ├── FlowisePlanExhaustedError     402
    │   ├── FlowisePermissionError        403
    │   ├── FlowiseNotFoundError          404
    │   ├── FlowiseRateLimitError         429; ``retry_after`` in seconds
    │   ├── FlowiseModelError             a model or node failed inside Flowise
    │   └── FlowiseServerError            other 5xx
    ├── FlowiseAnswerError            not Flowise's API, or not JSON (requests.InvalidJSONError)
    └── FlowiseStreamError            the stream ended without its end

``.response`` is the HTTP response where there is one; it is always true in a condition, also for an
error status (``requests`` makes those false). ``.charge`` is what the failed call was booked at.
Messages hold no text of the server, which may quote a prompt or a key; ``.response.text`` has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import requests

from ..core.errors import GovernanceError
from ..core.outcomes import Outcome
from ..wire.answers import Problem, ProblemKind

if TYPE_CHECKING:
    from ..core.records import Charge

__all__ = [
    "FlowiseAnswerError",
    "FlowiseAuthenticationError",
    "FlowiseBadRequestError",
    "FlowiseConnectionError",
    "FlowiseError",
    "FlowiseHTTPError",
    "FlowiseModelError",
    "FlowiseNotFoundError",
    "FlowisePermissionError",
    "FlowisePlanExhaustedError",
    "FlowiseRateLimitError",
    "FlowiseServerError",
    "FlowiseStreamError",
    "FlowiseTimeoutError",
    "problem_error",
]


class TruthyResponse(requests.Response):
    """A response that is true whatever its status, so that ``if error.response`` means "is there one"."""

    def __bool__(self) -> bool:
        return True

    __nonzero__ = __bool__


class FlowiseError(GovernanceError, requests.RequestException):
    """A call to Flowise failed."""

    charge: Charge | None = None
    """what the call was booked at; None where nothing was sent"""
    outcome: Outcome = Outcome.REFUSED
    """how far the call got"""

    def __init__(
        self, message: str, *, response: requests.Response | None = None, problem: Problem | None = None
    ) -> None:
        super().__init__(message)
        self.problem = problem
        self.request = None
        self.response = _truthy(response)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.problem, self.charge, self.outcome)


class FlowiseConnectionError(FlowiseError, requests.ConnectionError, ConnectionError):
    """Flowise was not reached, or the connection broke."""


class FlowiseTimeoutError(FlowiseError, requests.Timeout, TimeoutError):
    """No whole answer within the deadline. Flowise may still be at work, and billed."""


class FlowiseHTTPError(FlowiseError, requests.HTTPError):
    """Flowise answered with an error."""


class FlowiseBadRequestError(FlowiseHTTPError):
    """400 and other 4xx: the request was not understood."""


class FlowiseAuthenticationError(FlowiseHTTPError):
    """No key, or a wrong one, for Flowise or for a flow with a key of its own."""


class FlowisePlanExhaustedError(FlowiseHTTPError):
    """402: the predictions of the Flowise Cloud plan are used up."""


class FlowisePermissionError(FlowiseHTTPError):
    """403: a permission is missing, or the origin is not allowed."""


class FlowiseNotFoundError(FlowiseHTTPError):
    """404: no such flow."""


class FlowiseRateLimitError(FlowiseHTTPError):
    """429: the flow's own rate limit in Flowise."""

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait, where Flowise says."""
        return self.problem.retry_after if self.problem is not None else None


class FlowiseModelError(FlowiseHTTPError):
    """A model or an AgentFlow node failed inside Flowise."""


class FlowiseServerError(FlowiseHTTPError):
    """Flowise itself failed."""


class FlowiseAnswerError(FlowiseError, requests.exceptions.InvalidJSONError):
    """The answer is not one of Flowise's API."""


class FlowiseStreamError(FlowiseError, requests.exceptions.ChunkedEncodingError):
    """The stream ended before its end."""


_KINDS: dict[ProblemKind, tuple[type[FlowiseError], str]] = {
    ProblemKind.BAD_REQUEST: (
        FlowiseBadRequestError,
        "Flowise did not accept the request; check overrideConfig, and that the flow's id is a UUID",
    ),
    ProblemKind.UNAUTHORIZED: (
        FlowiseAuthenticationError,
        "the API key is missing or wrong for it. Set FLOWISE_API_KEY or api_key=; a flow may ask for a key "
        "of its own (Flowise: API configuration of the flow)",
    ),
    ProblemKind.FORBIDDEN: (
        FlowisePermissionError,
        "the API key lacks the permission, or the flow does not allow this origin. Give the key "
        "chatflows:view and agentflows:view in Flowise",
    ),
    ProblemKind.PLAN_EXHAUSTED: (
        FlowisePlanExhaustedError,
        "the predictions of the Flowise Cloud plan are used up; wait for the next period or change the plan",
    ),
    ProblemKind.NOT_FOUND: (
        FlowiseNotFoundError,
        "there is no such flow; list them with adapter.get_chatflows() or `genops-ctx check`",
    ),
    ProblemKind.TOO_LARGE: (
        FlowiseBadRequestError,
        "the request is larger than Flowise accepts (FLOWISE_FILE_SIZE_LIMIT)",
    ),
    ProblemKind.RATE_LIMITED: (
        FlowiseRateLimitError,
        "the flow's rate limit in Flowise is reached",
    ),
    ProblemKind.MODEL_FAILED: (
        FlowiseModelError,
        "a model of the flow failed",
    ),
    ProblemKind.SERVER_ERROR: (
        FlowiseServerError,
        "Flowise failed; its log says why",
    ),
    ProblemKind.NOT_FLOWISE: (
        FlowiseAnswerError,
        "what answered is not Flowise's API but a page (its user interface or a proxy); check that base_url "
        "is Flowise's address without /api/v1",
    ),
    ProblemKind.MALFORMED: (
        FlowiseAnswerError,
        "the answer is not a JSON object that can be read; check what stands between this program "
        "and Flowise",
    ),
}

_UPSTREAM = {
    400: "the provider refused the request (400); check model name and parameters in the flow",
    401: "the provider refused its key (401); check the credential in Flowise",
    403: "the provider refused its key (403); check the credential in Flowise",
    404: "the provider does not know the model (404); check its name in the flow",
    429: "the provider's rate limit was reached (429) and Flowise gave up retrying",
}


def problem_error(problem: Problem, what: str, response: requests.Response | None = None) -> FlowiseError:
    """The error of a problem; ``what`` says which flow and base URL."""
    kind, advice = _KINDS[problem.kind]
    status = f" ({problem.status})" if problem.status is not None and problem.status != 200 else ""
    if problem.upstream_status is not None:
        advice = _UPSTREAM.get(
            problem.upstream_status,
            f"the model provider answered {problem.upstream_status}; see Flowise's log",
        )
    if problem.node is not None:
        advice = f"in its {problem.node} node, {advice}"
    if problem.retry_after is not None:
        advice += f"; try again in {problem.retry_after:g} s"
    error = kind(f"{what} failed{status}: {advice}", response=response, problem=problem)
    if problem.nothing_called:
        error.outcome = Outcome.REFUSED
    elif problem.kind is ProblemKind.MALFORMED:
        # It said that all went well, so the flow ran; what it wrote cannot be read.
        error.outcome = Outcome.TRUNCATED
    else:
        error.outcome = Outcome.FAILED
    return error


def _truthy(response: requests.Response | None) -> requests.Response | None:
    if response is None or isinstance(response, TruthyResponse):
        return response
    truthy = TruthyResponse()
    truthy.__dict__.update(response.__dict__)
    return truthy


def _rebuild(
    kind: type[FlowiseError],
    message: str,
    problem: Problem | None,
    charge: Charge | None,
    outcome: Outcome,
) -> FlowiseError:
    error = kind(message, problem=problem)
    error.charge = charge
    error.outcome = outcome
    return error
