"""A client of one Flowise: where it is, who pays, and the part of its API that costs nothing.

What is asked of Flowise is told as stories, which the sync and the async adapter drive.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..core.attribution import Attribution, check_attribution
from ..core.errors import ConfigurationError
from ..core.scope import ScopedBudget
from ..environment import variable
from ..pricing.plans import pricing_tier as check_pricing_tier
from ..resilience.options import OPTIONS, Resilience
from ..runtime import get_runtime
from ..settings import environment_attribution
from ..wire.answers import Problem, ProblemKind
from .deadline import Exchange
from .errors import problem_error
from .flows import Flow, FlowDirectory, directory_of
from .http_effects import Fetch, HttpStory
from .transport import Limits, check_base_url

if TYPE_CHECKING:
    from ..resilience import CircuitBreaker, QueryCache, RateLimiter, RetryConfig

__all__ = ["FlowiseClient", "check_api_key", "check_metering", "one_of"]

METERINGS = ("auto", "evaluation", "langfuse", "otlp", "gateway", "estimate")
TRANSPORT_KEYWORDS = ("timeout",)
PARAMETERS = (
    "base_url",
    "api_key",
    "pricing_tier",
    "metering",
    "timeout",
    "abort_on_close",
    "question",
    "sessionId",
    "overrideConfig",
    "history",
    "stream",
    "streaming",
    "chatId",
    "uploads",
    "humanInput",
    "form",
    "parameters",
    "max_cost",
    "idempotency_key",
    "flow_id",
    "chatflow_id",
    *OPTIONS,
)


class FlowiseClient:
    """Connection, attribution and metering of one Flowise, and its flows and messages."""

    parameters: ClassVar[tuple[str, ...]] = PARAMETERS
    """keywords that are no attribution"""
    called: ClassVar[str] = ""
    """what its maker is called in errors, where that is not the class"""
    _budgets: tuple[ScopedBudget, ...] = ()
    """budgets of its own calls, besides those of contexts and settings"""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        team: str | None = None,
        project: str | None = None,
        environment: str | None = None,
        cost_center: str | None = None,
        customer_id: str | None = None,
        feature: str | None = None,
        *,
        metering: str | None = None,
        pricing_tier: str | None = None,
        timeout: float | tuple[float | None, float | None] | None = None,
        abort_on_close: bool = False,
        retry: bool | int | RetryConfig | None = None,
        breaker: bool | int | CircuitBreaker | None = None,
        rate_limit: str | RateLimiter | Sequence[str | RateLimiter] | None = None,
        cache: bool | float | QueryCache | None = None,
        fallback: object = None,
        **attribution: object,
    ) -> None:
        settings = get_runtime().settings
        self.base_url = check_base_url(base_url or os.environ.get("FLOWISE_BASE_URL") or settings.base_url)
        self.api_key = check_api_key(api_key or variable("FLOWISE_API_KEY") or settings.api_key)
        given = {
            "team": team,
            "project": project,
            "environment": environment,
            "cost_center": cost_center,
            "customer_id": customer_id,
            "feature": feature,
            **attribution,
        }
        checked = check_attribution(
            given, known=self.parameters, where=f"{self.called or type(self).__name__}()"
        )
        # What code configured goes before the environment.
        self.governance_attrs: dict[str, str] = {
            **environment_attribution(),
            **settings.attribution,
            **checked,
        }
        self._taken_over = {key: said for key, said in settings.attribution.items() if key not in checked}
        self.metering = check_metering(metering or settings.metering)
        self.pricing_tier = check_pricing_tier(pricing_tier or settings.pricing_tier)
        self.timeout = Limits.of(timeout)
        self.abort_on_close = abort_on_close
        self._resilience = Resilience.of(
            self._shared_name,
            per_target=True,
            retry=retry,
            breaker=breaker,
            rate_limit=rate_limit,
            cache=cache,
            fallback=fallback,
        )
        self._address = (self.base_url, self.api_key)
        self._connect()

    def _connect(self) -> None:
        """Set up what it sends with."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.base_url}>"

    @property
    def _shared_name(self) -> str:
        """Under which its breakers, limits and cache are shared with others of the same Flowise."""
        return f"flowise {self.base_url}"

    # -- the rest of the API, told as stories ---------------------------------------------------

    def _list_flows(self, options: dict[str, Any]) -> HttpStory[list[dict[str, Any]]]:
        limits = self._options("get_chatflows()", options)
        base_url, _ = self._checked()
        raw = yield Fetch("GET", "/api/v1/chatflows", limits, f"listing the flows of {base_url}")
        rows = raw.get("data") if isinstance(raw, dict) else raw
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    def _read_flow(self, chatflow_id: str, options: dict[str, Any]) -> HttpStory[dict[str, Any]]:
        limits = self._options("get_chatflow()", options)
        current = Exchange(limits.total)
        flow = yield from self._resolved(chatflow_id, limits.half_of(current))
        what = f"reading flow {flow.name!r} at {self.base_url}"
        raw = yield Fetch("GET", f"/api/v1/chatflows/{flow.id}", limits.rest_of(current), what)
        if not isinstance(raw, dict):
            raise problem_error(Problem(ProblemKind.MALFORMED), what)
        return raw

    def _read_messages(
        self, chatflow_id: str, session_id: str | None, options: dict[str, Any]
    ) -> HttpStory[list[dict[str, Any]]]:
        raw = yield from self._messages("GET", chatflow_id, session_id, "get_chat_messages()", options)
        return [row for row in raw if isinstance(row, dict)] if isinstance(raw, list) else []

    def _delete_messages(
        self, chatflow_id: str, session_id: str | None, options: dict[str, Any]
    ) -> HttpStory[dict[str, Any]]:
        raw = yield from self._messages("DELETE", chatflow_id, session_id, "delete_chat_messages()", options)
        return dict(raw) if isinstance(raw, dict) else {}

    def _messages(
        self, method: str, chatflow_id: str, session_id: str | None, where: str, options: dict[str, Any]
    ) -> HttpStory[Any]:
        if "sessionId" in options:
            session_id = one_of("session_id", session_id, "sessionId", options.pop("sessionId"))
        limits = self._options(where, options)
        current = Exchange(limits.total)
        flow = yield from self._resolved(chatflow_id, limits.half_of(current))
        verb = "reading" if method == "GET" else "deleting"
        what = f"{verb} the messages of flow {flow.name!r} at {self.base_url}"
        params = {"sessionId": session_id} if session_id is not None else None
        return (yield Fetch(method, f"/api/v1/chatmessage/{flow.id}", limits.rest_of(current), what, params))

    # -- parts ----------------------------------------------------------------------------------

    def _checked(self) -> tuple[str, str | None]:
        """Address and key, after they may have been changed."""
        if self._address != (self.base_url, self.api_key):
            self.base_url = check_base_url(self.base_url)
            self.api_key = check_api_key(self.api_key)
            self._address = (self.base_url, self.api_key)
        return self._address

    @property
    def _directory(self) -> FlowDirectory:
        return directory_of(*self._checked())

    def _resolved(self, reference: str, limits: Limits) -> HttpStory[Flow]:
        return self._directory.resolve(reference, self.base_url, limits)

    def _own_attribution(self) -> Attribution:
        """Its attribution but what it took over from the settings, which ``configure()`` may have changed."""
        attribution = check_attribution(self.governance_attrs, where="governance_attrs")
        taken_over = self._taken_over
        return {key: said for key, said in attribution.items() if taken_over.get(key) != said}

    def _session_timeout(self) -> object:
        """What the user has set on the session; None for nothing."""
        return None

    def _limits(self, timeout: object) -> Limits:
        return Limits.of(timeout, Limits.of(self._session_timeout(), self.timeout))

    def _options(self, where: str, options: dict[str, Any]) -> Limits:
        limits = self._limits(options.pop("timeout", None))
        check_attribution(options, known=TRANSPORT_KEYWORDS, where=where)
        return limits


def check_api_key(key: object) -> str | None:
    """The key without spaces around it; None for none. Raises :class:`ConfigurationError`."""
    if key is None:
        return None
    if not isinstance(key, str) or not key.isascii() or not key.isprintable() or " " in key.strip():
        raise ConfigurationError("api_key must be Flowise's key: ASCII signs without spaces")
    return key.strip() or None


def check_metering(route: object) -> str:
    """The metering route; raises :class:`ConfigurationError` for an unknown one."""
    if route not in METERINGS:
        raise ConfigurationError(f"metering must be one of {', '.join(METERINGS)}, not {route!r}")
    return str(route)


def one_of(first: str, value: str | None, second: str, other: str | None) -> str | None:
    if value is not None and other is not None and value != other:
        raise ConfigurationError(f"{first}= and {second}= mean the same; pass one of them")
    return value if value is not None else other
