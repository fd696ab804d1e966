"""Usage out of the results of model clients: OpenAI's and Anthropic's shapes, as objects or as dicts.

Shapes, by the official SDKs (openai 3, anthropic 2) and APIs: chat completions, completions,
embeddings, responses, and Anthropic's messages. Which server answered is not in a result: a model that
is not the maker's own has no price under its name, and stays unknown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from genops_ctx.core.records import Exactness, Usage

from .model_calls import Caller, read_call
from .openai_api import openai_counts
from .shapes import label_of, object_of, token_count

__all__ = ["field_of", "fields_of", "usage_of_message", "usage_of_openai", "usage_of_result"]

_COMPLETIONS: Final = ("chat.completion", "text_completion")
_USUAL_TIERS: Final = ("", "auto", "default", "standard")
_BILLED_TOOLS: Final = (
    "web_search_call",
    "file_search_call",
    "code_interpreter_call",
    "image_generation_call",
)
"""items of a response that are billed beside its tokens"""


def field_of(value: object, name: str) -> Any:
    """A field of an object or dict; None where it has none."""
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def fields_of(value: object) -> dict[str, Any]:
    """All fields of an object or dict, those below it too; an empty dict for anything else."""
    if isinstance(value, dict):
        return value
    dump = getattr(type(value), "model_dump", None)
    if dump is not None:
        return object_of(dump(value))
    return {name: fields_of(item) or item for name, item in getattr(value, "__dict__", {}).items()}


def usage_of_result(result: object) -> Usage | None:
    """The usage that a model client's result tells; None for anything else."""
    kind = field_of(result, "object")
    usage = fields_of(field_of(result, "usage"))
    if not usage:
        return None
    if field_of(result, "type") == "message" and kind is None:
        return usage_of_message(usage, field_of(result, "model"))
    if kind in _COMPLETIONS or kind == "response" or (kind == "list" and _embeds(usage)):
        return usage_of_openai(result, usage)
    return None


def _embeds(usage: dict[str, Any]) -> bool:
    return "prompt_tokens" in usage and not usage.get("completion_tokens")


def usage_of_openai(result: object, usage: dict[str, Any]) -> Usage | None:
    """The usage of a completion, response, or list of embeddings."""
    caller = Caller("", "openai", answered=label_of(field_of(result, "model")))
    counts = openai_counts(usage, field_of(result, "object") == "list")
    read, _ = read_call(counts, caller)
    if read is None:
        return None
    output = field_of(result, "output")
    items = output if isinstance(output, list) else ()
    if _priced_apart(result) or any(field_of(item, "type") in _BILLED_TOOLS for item in items):
        return replace(read, exactness=Exactness.ESTIMATED)
    return read


def usage_of_message(usage: dict[str, Any], model: object) -> Usage | None:
    """The usage of an Anthropic message, whose cached tokens are beside its input tokens."""
    counts = (
        usage.get("input_tokens"),
        usage.get("output_tokens"),
        usage.get("cache_read_input_tokens") or 0,
        usage.get("cache_creation_input_tokens") or 0,
        object_of(usage.get("cache_creation")).get("ephemeral_1h_input_tokens") or 0,
        object_of(usage.get("output_tokens_details")).get("thinking_tokens") or 0,
    )
    believed = [count for count in map(token_count, counts) if count is not None]
    if len(believed) < len(counts) or not sum(believed):
        return None
    fresh, output, read, written, hour, thought = believed
    hour = min(hour, written)
    tools = object_of(usage.get("server_tool_use"))
    apart = any(tools.values()) or usage.get("speed") == "fast" or _priced_apart(usage)
    return Usage.from_exclusive(
        "anthropic",
        label_of(model),
        input_tokens=fresh,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=written - hour,
        cache_write_1h_tokens=hour,
        reasoning_tokens=min(thought, output),
        exactness=Exactness.ESTIMATED if apart else Exactness.EXACT,
    )


def _priced_apart(told: object) -> bool:
    """A service tier with prices of its own."""
    return (field_of(told, "service_tier") or "") not in _USUAL_TIERS
