"""Which models a prediction will use, as far as its flow's definition says: what policies look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.policy import ModelUse

if TYPE_CHECKING:
    from ..core.ports import Prices
    from ..wire.flows import FlowDefinition, ModelNode

__all__ = ["models_of"]

UNKNOWN = ModelUse("", "")


def models_of(flow: FlowDefinition | None, override: object, prices: Prices) -> tuple[ModelUse, ...] | None:
    """The models of every node that calls one; None where the definition is not known or names none.

    A node that does not name its model, and an ``overrideConfig`` that may change models where the
    flow allows overrides, add one that is not known. A flow that another flow runs is not looked into.
    """
    if flow is None or not flow.model_nodes:
        return None
    nodes = [*flow.model_nodes, *([flow.follow_up_model] if flow.follow_up_model is not None else [])]
    uses = [_use(node, prices) for node in nodes]
    if flow.speech_to_text or flow.text_to_speech:
        uses.append(UNKNOWN)
    if flow.override_enabled and _names_models(override):
        uses.append(UNKNOWN)
    return tuple(dict.fromkeys(uses))


def _use(node: ModelNode, prices: Prices) -> ModelUse:
    return ModelUse(prices.provider_of(node.node) if node.node else "", node.model.strip(), node.node)


def _names_models(value: Any) -> bool:
    """Whether a key anywhere in it is about models or where they are (``modelName``, ``basepath``)."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            names = [str(key).lower() for key in item]
            if any("model" in name or "basepath" in name for name in names):
                return True
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
    return False
