"""What metering a flow allows, told from its definition before it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..core.ports import Prices
from ..core.records import Usage
from ..wire.flows import FlowDefinition, FlowKind, ModelNode
from ..wire.model_calls import is_anthropic

__all__ = ["FlowOutlook", "flow_outlook"]


@dataclass(frozen=True, slots=True)
class FlowOutlook:
    """A flow as a check shows it: its models, whether they have a price, and how it is metered."""

    id: str
    name: str
    kind: str
    models: tuple[str, ...] = ()
    """``provider/model`` of each model the flow calls; ``?`` where it is chosen at run time"""
    unpriced: tuple[str, ...] = ()
    """those of :attr:`models` for which no price is known"""
    metering: str = "estimated"
    """``reported`` by the answer, by Flowise's ``evaluation`` metrics, or ``estimated``"""
    gaps: tuple[str, ...] = ()
    """model calls that nothing reports, which are estimated or booked as unknown"""
    upper: bool = False
    """True where what is reported may be more than what is billed, never less"""
    protected: bool = False
    """True where predictions need a key of the flow's own"""

    @property
    def exact(self) -> bool:
        """Whether the cost of a call will be exact, without doing more."""
        return (
            self.metering == "reported"
            and bool(self.models)
            and not (self.gaps or self.unpriced or self.upper)
            and not any(model.endswith("/?") for model in self.models)
        )

    @property
    def summary(self) -> str:
        """How it is metered, in a few words."""
        if self.metering == "estimated":
            return "estimated"
        route = "from the answer" if self.metering == "reported" else "from evaluation metrics"
        if not self.models:
            return f"{route}, as far as it reports"
        if self.gaps:
            return f"partly estimated, the rest {route}"
        if self.upper:
            return f"exact or an upper bound, {route}"
        return f"exact, {route}"


def flow_outlook(
    definition: FlowDefinition, prices: Prices, at: float, metering: str = "auto"
) -> FlowOutlook:
    """What can be said of a flow's costs; ``at`` is the time of the prices, in epoch seconds.

    ``metering`` is the route that is set: ``evaluation`` meters classic flows, without streaming.
    """
    agentflow = definition.kind is FlowKind.AGENTFLOW
    route = "reported" if agentflow else "evaluation" if metering == "evaluation" else "estimated"
    models: dict[str, bool] = {}
    for node in definition.model_nodes:
        shown = f"{prices.provider_of(node.node) or node.node}/{node.model or '?'}"
        models[shown] = _priced(node, prices, at)
    upper = agentflow and any(is_anthropic(node.node) for node in definition.model_nodes)
    return FlowOutlook(
        id=definition.id,
        name=definition.name,
        kind=definition.kind.value,
        models=tuple(models),
        unpriced=tuple(model for model, priced in models.items() if not priced),
        metering=route,
        gaps=() if route == "estimated" else tuple(_gaps(definition)),
        # Evaluation metrics do not tell cached input from other input, which may cost less.
        upper=upper or route == "evaluation",
        protected=definition.protected,
    )


def _priced(node: ModelNode, prices: Prices, at: float) -> bool:
    if not node.model:
        return True  # chosen at run time: nothing can be said
    probe = Usage(node.node, node.model, input_tokens=1, output_tokens=0 if node.role == "embedding" else 1)
    return prices.quote(probe, at).nanos is not None


def _gaps(definition: FlowDefinition) -> Iterator[str]:
    if definition.kind is FlowKind.AGENTFLOW:
        for label in definition.structured_nodes:
            yield f"structured output of {label}"
    for label in definition.summary_memory_nodes:
        yield f"summary memory of {label}"
    if definition.kind is FlowKind.AGENTFLOW:
        for label in definition.dynamic_human_input_nodes:
            yield f"question written by {label}"
    if any(node.role == "embedding" for node in definition.model_nodes):
        yield "embeddings"
    if definition.follow_up_prompts:
        yield "follow-up prompts"
    if definition.speech_to_text:
        yield "speech to text"
    if definition.text_to_speech:
        yield "text to speech"
