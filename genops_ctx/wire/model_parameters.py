"""System message, temperature and output limit for one call: where a flow takes them, and how they are sent.

They go by ``overrideConfig``. Flowise ignores in silence what the flow's API configuration does not allow,
so it is read from the flow's definition whether it would. By the source of Flowise 3.1.4
(``replaceInputsWithConfig``): an override is allowed by the *label* of a node and the name of its input;
one that is false in JavaScript, a temperature of 0, is ignored too, so numbers are sent as texts; and what
is put in is searched for ``{{variables}}`` afterwards.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..core.errors import ConfigurationError
from .shapes import decoded, items_of, label_of, object_of, text_of

__all__ = ["ModelParameters", "Settable", "overrides_of", "settables_of"]

MOST_TOKENS: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class ModelParameters:
    """What one call wants of the flow's models; None leaves what the flow has.

    Args:
        system_message: instead of the system messages of the flow.
        temperature: from 0 to 2.
        max_tokens: the most output tokens of each model call.

    Raises :class:`ConfigurationError` for a value out of range.
    """

    system_message: str | None = field(default=None, repr=False)
    temperature: float | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        said, tokens, text = self.temperature, self.max_tokens, self.system_message
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise ConfigurationError("system_message must be a text that is not empty")
        if said is not None and (
            isinstance(said, bool)
            or not isinstance(said, int | float)
            or not math.isfinite(said)
            or not 0 <= said <= 2
        ):
            raise ConfigurationError("temperature must be a number from 0 to 2")
        if tokens is not None and (type(tokens) is not int or not 1 <= tokens <= MOST_TOKENS):
            raise ConfigurationError(f"max_tokens must be a whole number from 1 to {MOST_TOKENS}")

    @property
    def asked(self) -> dict[str, str]:
        """What is asked for, as Flowise is told it."""
        found: dict[str, str] = {}
        if self.system_message is not None:
            found["system_message"] = self.system_message
        if self.temperature is not None:
            found["temperature"] = f"{self.temperature:g}"
        if self.max_tokens is not None:
            found["max_tokens"] = str(self.max_tokens)
        return found


@dataclass(frozen=True, slots=True)
class Settable:
    """An input of a node that takes a parameter."""

    parameter: str
    """``system_message``, ``temperature`` or ``max_tokens``"""
    node_id: str
    label: str
    input: str
    """its name in ``overrideConfig``"""
    key: str = ""
    """within the input, where that is a configuration of several values"""
    allowed: bool = False
    """the flow's API configuration lets a call override it"""
    template: bool = False
    """braces of any kind are read as variables of a prompt template"""
    others: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """role and content of messages that stay where an input holds several"""


# Flowise's chat nodes: the input that limits the output, empty where there is none that is known.
_CHAT_NODES: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        [
            "azureChatOpenAI",
            "chatCerebras",
            "chatCometAPI",
            "chatDeepseek",
            "chatHuggingFace",
            "chatIBMWatsonx",
            "chatLitellm",
            "chatLocalAI",
            "chatNvidiaNIM",
            "chatOpenAI",
            "chatOpenAICustom",
            "chatOpenRouter",
            "chatPerplexity",
            "chatXAI",
            "groqChat",
        ],
        "maxTokens",
    ),
    **dict.fromkeys(("chatGoogleGenerativeAI", "chatGoogleVertexAI", "chatMistralAI"), "maxOutputTokens"),
    "chatAnthropic": "maxTokensToSample",
    "awsChatBedrock": "max_tokens_to_sample",
    **dict.fromkeys(
        [
            "chatAlibabaTongyi",
            "chatBaiduWenxin",
            "chatCohere",
            "chatFireworks",
            "chatOllama",
            "chatSambanova",
            "chatTogetherAI",
        ],
        "",
    ),
}
_SYSTEM_INPUTS: Final[Mapping[str, str]] = {
    "conversationChain": "systemMessagePrompt",
    "chatPromptTemplate": "systemMessagePrompt",
    "toolAgent": "systemMessage",
    "conversationalAgent": "systemMessage",
    "conversationalRetrievalToolAgent": "systemMessage",
}
_AGENTIC: Final[Mapping[str, str]] = {"llmAgentflow": "llm", "agentAgentflow": "agent"}

# Models whose temperature Flowise leaves out: isReasoningModelOpenAI and MODELS_WITHOUT_SAMPLING_PARAMS.
_REASONING: Final = re.compile(r"o[134]|codex-mini\Z|(?!.*gpt-5.*-chat).*gpt-5")
_WITHOUT_SAMPLING: Final = re.compile(r"opus-4-[7-9](?:\b|-)|opus-(?:[5-9]|\d{2,})-")


def settables_of(
    nodes: Iterable[Mapping[str, Any]], used: Container[str] | None, api_config: object
) -> tuple[Settable, ...]:
    """The inputs of a flow that take parameters.

    Args:
        nodes: their ``data``.
        used: ids of nodes that others are wired to; None where the wires say nothing.
        api_config: the flow's ``apiConfig``.
    """
    found: list[Settable] = []
    for node in nodes:
        name, inputs = text_of(node.get("name")), object_of(node.get("inputs"))
        prefix = _AGENTIC.get(name)
        if prefix is not None:
            found += _agentic(node, inputs, prefix)
        elif name in _CHAT_NODES and (used is None or label_of(node.get("id")) in used):
            found += [
                _settable(parameter, node, named) for parameter, named in _of_model(name, inputs).items()
            ]
        elif name in _SYSTEM_INPUTS and not _filled(inputs.get("chatPromptTemplate")):
            found.append(_settable("system_message", node, _SYSTEM_INPUTS[name], template=True))
    allowed = _allowed(api_config)
    return tuple(_with_leave(one, allowed) for one in found)


def overrides_of(
    settables: Iterable[Settable], asked: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The ``overrideConfig`` for what is asked for, and of what would be ignored the reason, by its name."""
    override: dict[str, Any] = {}
    ignored: dict[str, str] = {}
    known = list(settables)
    for parameter, value in asked.items():
        fitting = [one for one in known if one.parameter == parameter]
        allowed = [one for one in fitting if one.allowed]
        if not fitting:
            ignored[parameter] = "no node of it takes one that is known to arrive"
        elif not allowed:
            where = " or ".join(dict.fromkeys(f"{one.input!r} of {one.label!r}" for one in fitting))
            ignored[parameter] = f"its API configuration in Flowise does not allow calls to override {where}"
        elif parameter == "system_message" and any(_garbles(one, value) for one in allowed):
            ignored[parameter] = "Flowise would read the braces in it as variables"
        else:
            for one in allowed:
                _put(override, one, value)
    return override, ignored


def _agentic(node: Mapping[str, Any], inputs: Mapping[str, Any], prefix: str) -> list[Settable]:
    config = object_of(inputs.get(f"{prefix}ModelConfig"))
    model = text_of(inputs.get(f"{prefix}Model")) or text_of(config.get(f"{prefix}Model"))
    found = [
        _settable(parameter, node, f"{prefix}ModelConfig", key=named)
        for parameter, named in _of_model(model, config).items()
    ]
    messages = [object_of(message) for message in items_of(inputs.get(f"{prefix}Messages"))]
    others = tuple(
        (text_of(message.get("role")), text_of(message.get("content")))
        for message in messages
        if message.get("role") != "system"
    )
    return [*found, _settable("system_message", node, f"{prefix}Messages", others=others)]


def _of_model(name: str, inputs: Mapping[str, Any]) -> dict[str, str]:
    """The inputs of a chat model, by parameter."""
    if name not in _CHAT_NODES:
        return {}
    model = text_of(inputs.get("modelName")) or text_of(inputs.get("model"))
    found = {} if _fixed_temperature(name, model, inputs) else {"temperature": "temperature"}
    return {**found, "max_tokens": _CHAT_NODES[name]} if _CHAT_NODES[name] else found


def _fixed_temperature(name: str, model: str, inputs: Mapping[str, Any]) -> bool:
    if name in ("chatOpenAI", "azureChatOpenAI") and _REASONING.match(model):
        return True
    thinks = any(inputs.get(key) in (True, "true") for key in ("extendedThinking", "adaptiveThinking"))
    return thinks or _WITHOUT_SAMPLING.search(model) is not None


def _settable(
    parameter: str,
    node: Mapping[str, Any],
    named: str,
    *,
    key: str = "",
    template: bool = False,
    others: tuple[tuple[str, str], ...] = (),
) -> Settable:
    label = text_of(node.get("label"))
    return Settable(parameter, label_of(node.get("id")), label, named, key, False, template, others)


def _with_leave(one: Settable, allowed: Container[tuple[str, str]]) -> Settable:
    if (one.label, one.input) not in allowed:
        return one
    return Settable(one.parameter, one.node_id, one.label, one.input, one.key, True, one.template, one.others)


def _allowed(api_config: object) -> set[tuple[str, str]]:
    """Label and input of what calls may override."""
    config = object_of(object_of(decoded(api_config)).get("overrideConfig"))
    if config.get("status") is not True:
        return set()
    allowed = set()
    for label, inputs in object_of(config.get("nodes")).items():
        seen = set()
        for one in map(object_of, items_of(inputs)):
            name = text_of(one.get("name"))
            if name not in seen and one.get("enabled") is True:  # the first of a name counts
                allowed.add((str(label), name))
            seen.add(name)
    return allowed


def _garbles(one: Settable, text: str) -> bool:
    return any(brace in text for brace in (("{", "}") if one.template else ("{{", "}}")))


def _put(override: dict[str, Any], one: Settable, value: str) -> None:
    if one.key:
        override.setdefault(one.input, {}).setdefault(one.node_id, {})[one.key] = value
    elif one.template or one.parameter != "system_message":
        override[one.input] = value
    else:
        messages = [{"role": role, "content": content} for role, content in one.others]
        override.setdefault(one.input, {})[one.node_id] = [{"role": "system", "content": value}, *messages]


def _filled(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
