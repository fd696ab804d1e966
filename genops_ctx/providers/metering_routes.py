"""Metering routes that bring usage after the answer, or beside it: which apply, what they do not show.

A route does not see every model call. What it never shows stays booked at its estimate, whatever else is
corrected (:data:`~genops_ctx.core.booking.BEYOND`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from ..core.outcomes import Outcome
from ..wire.flows import FlowDefinition, FlowKind
from ..wire.langfuse import langfuse_override
from ..wire.readings import Gap
from ..wire.usage import FOLLOW_UP, SUMMARY

__all__ = ["LATER", "body_for", "is_beyond", "routes_of"]

LATER: Final = ("langfuse", "otlp", "gateway")
"""The routes by which evidence comes from elsewhere than the answer."""

_EXPORTERS: Final = {"langFuse": "langfuse", "phoenix": "otlp"}


def routes_of(asked: str, definition: FlowDefinition | None, receiving: Collection[str]) -> tuple[str, ...]:
    """The routes that may bring evidence of a call.

    ``asked`` is the metering route that the user named; ``auto`` takes those that the flow is set up
    for and that this process receives (``receiving``).
    """
    if asked in LATER:
        return (asked,)
    if asked != "auto" or definition is None:
        return ()
    routes = {_EXPORTERS.get(name) for name in definition.exporters}
    if definition.through_gateway:
        routes.add("gateway")
    return tuple(route for route in LATER if route in routes and route in receiving)


def body_for(body: Mapping[str, Any], routes: Collection[str], request: str) -> Mapping[str, Any]:
    """The request's body with our id of the attempt in it, where a route carries it."""
    if "langfuse" not in routes:
        return body
    return {**body, "overrideConfig": langfuse_override(body.get("overrideConfig"), request)}


def is_beyond(gap: Gap, routes: tuple[str, ...], flow: FlowDefinition | None, outcome: Outcome) -> bool:
    """Whether no route would show the model call that is missing."""
    if not routes or gap.role == "speech" or gap.why == FOLLOW_UP:
        return bool(routes)
    if gap.role == "embedding":
        return "gateway" not in routes
    if gap.why == SUMMARY:
        return routes == ("langfuse",)
    if flow is None or flow.kind is not FlowKind.AGENTFLOW or "otlp" in routes or "gateway" in routes:
        return False
    # Of an AgentFlow, Langfuse is told what the answer says too: it knows more only where none came,
    # and then not of calls that Flowise itself does not count.
    hidden = flow.structured_nodes or flow.summary_memory_nodes or flow.dynamic_human_input_nodes
    return outcome is Outcome.COMPLETED or bool(hidden)
