"""Which flows of a Flowise the demo runs."""

from __future__ import annotations

from collections import Counter
from itertools import cycle, islice
from typing import TYPE_CHECKING

from ..core.errors import ConfigurationError
from ..wire.flows import FlowKind, parse_flow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..providers.flowise import GenOpsFlowiseAdapter

__all__ = ["ASKED", "choose_flows"]

ASKED = 3


def choose_flows(flowise: GenOpsFlowiseAdapter, named: Sequence[str] = ()) -> tuple[str, str, str]:
    """Three flows, by name or id: those that were named, else the simplest that are fit to be asked.

    Fit is a chatflow or AgentFlow with a model in it that needs no key of its own. AgentFlows go
    first, since they report what they use, then those with fewer model nodes. Fewer than three are
    asked in turn. Raises :class:`FlowiseError` where the flows cannot be listed, and
    :class:`ConfigurationError` where none is fit.
    """
    if len(named) > ASKED:
        raise ConfigurationError(f"the demo asks {ASKED} flows; --flow names {len(named)}")
    chosen = list(named) or _fit_flows(flowise)
    if not chosen:
        raise ConfigurationError(
            f"{flowise.base_url} has no flow that the demo can ask: it needs a chatflow or AgentFlow with a "
            "model in it and without a key of its own. Name another with --flow"
        )
    first, second, third = islice(cycle(chosen[:ASKED]), ASKED)
    return first, second, third


def _fit_flows(flowise: GenOpsFlowiseAdapter) -> list[str]:
    """By name where that says which flow is meant, else by id."""
    definitions = [parse_flow(row) for row in flowise.get_chatflows()]
    names = Counter(flow.name for flow in definitions)
    fit = [
        flow
        for flow in definitions
        if flow.kind in (FlowKind.CHATFLOW, FlowKind.AGENTFLOW)
        and flow.id
        and flow.model_nodes
        and not flow.protected
    ]
    fit.sort(key=lambda flow: (flow.kind is not FlowKind.AGENTFLOW, len(flow.model_nodes)))
    return [flow.name if flow.name.strip() and names[flow.name] == 1 else flow.id for flow in fit]
