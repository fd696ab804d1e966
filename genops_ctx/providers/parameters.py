"""Parameters of one call's models, so that they arrive: what a flow would ignore is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigurationError
from ..wire.model_parameters import ModelParameters, overrides_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..wire.flows import FlowDefinition

__all__ = ["ModelParameters", "ParameterIgnored", "check_parameters", "ignored_parameters", "with_parameters"]


class ParameterIgnored(ConfigurationError):
    """A flow would ignore in silence what a call asks of its models; nothing was sent."""

    parameters: tuple[str, ...] = ()
    """their names"""


def check_parameters(value: object) -> ModelParameters | None:
    """What ``parameters=`` means. Raises :class:`ConfigurationError`."""
    if value is None or isinstance(value, ModelParameters):
        return value if value is not None and value.asked else None
    raise ConfigurationError(
        "parameters must be ModelParameters(system_message=, temperature=, max_tokens=), from "
        f"genops_ctx.providers.parameters, not {type(value).__name__}"
    )


def ignored_parameters(definition: FlowDefinition | None, parameters: ModelParameters) -> dict[str, str]:
    """Which of them Flowise would ignore, and why; all of them where the definition is not known."""
    if definition is None:
        return dict.fromkeys(parameters.asked, "its definition cannot be read, so it is not known to arrive")
    return overrides_of(definition.settables, parameters.asked)[1]


def with_parameters(
    name: str, definition: FlowDefinition | None, parameters: ModelParameters, override: Mapping[str, Any]
) -> tuple[dict[str, Any], FlowDefinition]:
    """The call's ``overrideConfig`` with the parameters in it, and the flow as it will then run.

    Raises :class:`ParameterIgnored` for what Flowise would ignore in silence, and
    :class:`ConfigurationError` for what ``override`` says too.
    """
    ignored = ignored_parameters(definition, parameters)
    if ignored or definition is None:
        said = "; ".join(f"{parameter}: {reason}" for parameter, reason in ignored.items())
        error = ParameterIgnored(
            f"flow {name!r} would ignore {' and '.join(ignored)} ({said}). Leave it out, or name another flow"
        )
        error.parameters = tuple(ignored)
        raise error
    asked = parameters.asked
    mine, _ = overrides_of(definition.settables, asked)
    both = sorted(mine.keys() & override.keys())
    if both:
        raise ConfigurationError(f"say {both[0]!r} by parameters= or by overrideConfig, not by both")
    changed = definition
    if parameters.max_tokens is not None:
        settables = [one for one in definition.settables if one.parameter == "max_tokens"]
        limited = {one.node_id for one in settables if one.allowed}
        nodes = tuple(
            replace(node, max_output_tokens=parameters.max_tokens)
            if node.id in limited and node.role == "chat"
            else node
            for node in definition.model_nodes
        )
        changed = replace(changed, model_nodes=nodes)
    if parameters.system_message is not None:
        texts = (*definition.prompt_texts, parameters.system_message)
        changed = replace(changed, prompt_texts=texts)
    return {**override, **mine}, changed
