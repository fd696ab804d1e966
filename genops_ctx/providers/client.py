"""A client of one Flowise: where it is, who pays, and the part of its API that costs nothing."""

from __future__ import annotations

import os
from typing import Any

from ..core.attribution import check_attribution
from ..core.errors import ConfigurationError
from ..core.scope import ScopedBudget
from ..pricing.plans import pricing_tier as check_pricing_tier
from ..runtime import get_runtime
from ..settings import environment_attribution
from ..wire.answers import Problem, ProblemKind
from .errors import problem_error
from .flows import FlowDirectory, directory_of
from .transport import Limits, Transport, check_base_url, new_session

__all__ = ["FlowiseClient", "check_api_key", "check_metering", "one_of"]

METERINGS = ("auto", "evaluation", "estimate")
TRANSPORT_KEYWORDS = ("timeout",)
PARAMETERS = (
    "base_url",
    "api_key",
    "pricing_tier",
    "metering",
    "timeout",
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
    "max_cost",
    "idempotency_key",
    "flow_id",
    "chatflow_id",
)


class FlowiseClient:
    """Connection, attribution and metering of one Flowise, and its flows and messages."""

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
        **attribution: object,
    ) -> None:
        settings = get_runtime().settings
        self.base_url = check_base_url(base_url or os.environ.get("FLOWISE_BASE_URL") or settings.base_url)
        self.api_key = check_api_key(api_key or os.environ.get("FLOWISE_API_KEY") or settings.api_key)
        given = {
            "team": team,
            "project": project,
            "environment": environment,
            "cost_center": cost_center,
            "customer_id": customer_id,
            "feature": feature,
            **attribution,
        }
        checked = check_attribution(given, known=PARAMETERS, where=f"{type(self).__name__}()")
        # What code configured goes before the environment.
        self.governance_attrs: dict[str, str] = {
            **environment_attribution(),
            **settings.attribution,
            **checked,
        }
        self.metering = check_metering(metering or settings.metering)
        self.pricing_tier = check_pricing_tier(pricing_tier or settings.pricing_tier)
        self.timeout = Limits.of(timeout)
        self.session = new_session()
        self._transport = Transport(self.base_url, self.api_key, lambda: self.session)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.base_url}>"

    # -- the rest of the API --------------------------------------------------------------------

    def get_chatflows(self, **options: Any) -> list[dict[str, Any]]:
        """All flows that the key may see, as Flowise lists them.

        ``timeout=`` as everywhere; attribution keywords are accepted, nothing is metered. Raises
        :class:`FlowiseError`.
        """
        limits = self._options("get_chatflows()", options)
        raw = self._link().get_json(
            "GET", "/api/v1/chatflows", limits, what=f"listing the flows of {self.base_url}"
        )
        rows = raw.get("data") if isinstance(raw, dict) else raw
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    def get_chatflow(self, chatflow_id: str, **options: Any) -> dict[str, Any]:
        """One flow with its definition; by id or unique name. Raises :class:`FlowiseError`."""
        limits = self._options("get_chatflow()", options)
        flow = self._directory.resolve(chatflow_id, self._link(), limits)
        what = f"reading flow {flow.name!r} at {self.base_url}"
        raw = self._link().get_json("GET", f"/api/v1/chatflows/{flow.id}", limits, what=what)
        if not isinstance(raw, dict):
            raise problem_error(Problem(ProblemKind.MALFORMED), what)
        return raw

    def get_chat_messages(
        self, chatflow_id: str, session_id: str | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Stored messages of a flow, of one session where given. Raises :class:`FlowiseError`."""
        raw = self._messages("GET", chatflow_id, session_id, "get_chat_messages()", options)
        return [row for row in raw if isinstance(row, dict)] if isinstance(raw, list) else []

    def delete_chat_messages(
        self, chatflow_id: str, session_id: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Delete the stored messages of a flow, of one session where given.

        Returns Flowise's answer, ``{"raw": [], "affected": N}``. Raises :class:`FlowiseError`.
        """
        raw = self._messages("DELETE", chatflow_id, session_id, "delete_chat_messages()", options)
        return dict(raw) if isinstance(raw, dict) else {}

    def _messages(
        self, method: str, chatflow_id: str, session_id: str | None, where: str, options: dict[str, Any]
    ) -> Any:
        if "sessionId" in options:
            session_id = one_of("session_id", session_id, "sessionId", options.pop("sessionId"))
        limits = self._options(where, options)
        flow = self._directory.resolve(chatflow_id, self._link(), limits)
        verb = "reading" if method == "GET" else "deleting"
        return self._link().get_json(
            method,
            f"/api/v1/chatmessage/{flow.id}",
            limits,
            what=f"{verb} the messages of flow {flow.name!r} at {self.base_url}",
            params={"sessionId": session_id} if session_id is not None else None,
        )

    # -- parts ----------------------------------------------------------------------------------

    @property
    def _directory(self) -> FlowDirectory:
        return directory_of(self.base_url, self.api_key)

    def _link(self) -> Transport:
        """The transport, after ``base_url`` or ``api_key`` may have been changed."""
        if (self._transport.base_url, self._transport.api_key) != (self.base_url, self.api_key):
            self.base_url = check_base_url(self.base_url)
            self.api_key = check_api_key(self.api_key)
            self._transport = Transport(self.base_url, self.api_key, lambda: self.session)
        return self._transport

    def _limits(self, timeout: object) -> Limits:
        ours = Limits.of(getattr(self.session, "timeout", None), self.timeout)
        return Limits.of(timeout, ours)

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
