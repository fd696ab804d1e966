"""One model call: LangChain's ``usage_metadata`` made into a :class:`~genops_ctx.core.records.Usage`.

``usage_metadata`` is ``{"input_tokens", "output_tokens", "total_tokens", "input_token_details":
{"cache_read", "cache_creation", "audio"}, "output_token_details": {"reasoning", "audio"}}``. The
versions Flowise 3.1.4 carries differ by provider (read in their sources and on recorded answers):

- OpenAI: whole numbers, parts within them.
- Anthropic (1.3.20): ``input_tokens`` includes cached tokens. When the answer is streamed from the
  provider, which is Flowise's default even for a JSON answer, the output count of ``message_start``
  is added to the total of ``message_delta``, so ``output_tokens`` is too high by a token or a few:
  ``upper``. Cache details are then added twice too, so the provider's own counts
  (``responseMetadata.usage``) are used where they are there.
- Google (2.1.15): thinking tokens are in ``total_tokens`` but not in ``output_tokens``; Bedrock
  (1.2.2): the same with cached tokens. Tokens beside both counts are booked as output, the dearest
  kind: ``upper``.

**Which model is billed.** The name that was configured, unless the provider answers with a dated
snapshot of it (``gpt-4o`` → ``gpt-4o-2024-08-06``), which says more precisely what is billed; or the
configured name is no model's (an Azure deployment, nothing at all). Any other answer is a proxy's or
router's business: the configured name stays and the call is flagged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.records import CostSource, Exactness, Usage, least_exact

from .shapes import label_of, object_of, token_count

__all__ = ["Caller", "billed_model", "is_anthropic", "read_call"]

_SNAPSHOT: Final = re.compile(r"[@-](?:[0-9]{3,8}|20[0-9]{2}-[0-9]{2}-[0-9]{2})\Z")

OTHER_MODEL: Final = "answered_by_other_model"
BESIDE: Final = "tokens_beside_input_and_output"
UNREADABLE_DETAILS: Final = "unreadable_token_details"
ANTHROPIC_STREAM: Final = "anthropic_stream_counts_extra_output"


@dataclass(frozen=True, slots=True)
class Caller:
    """Which node called which model, and how."""

    node: str
    provider: str
    configured: str = ""
    """model named by the node's configuration"""
    answered: str = ""
    """model the provider said it was"""
    streams: bool = True
    """the node streams from the provider (Flowise's default)"""

    @property
    def anthropic(self) -> bool:
        return is_anthropic(self.provider)


def is_anthropic(provider: str) -> bool:
    """Whether LangChain's Anthropic client made the call (``chatAnthropic``, ``ChatAnthropic``)."""
    return "anthropic" in provider.lower()


def billed_model(caller: Caller) -> tuple[str, bool]:
    """The model's name to price by, and whether it can be relied on (see the module's text)."""
    configured, answered = caller.configured, _once(caller.answered, caller.configured)
    if not configured or (answered and caller.provider.lower().startswith("azure")):
        return answered or configured, True
    plain = configured.lower().rpartition("/")[2]
    said = answered.lower().rpartition("/")[2]
    if not said or said == plain:
        return configured, True
    stem = plain.removesuffix("-latest")
    if said.startswith(stem) and _SNAPSHOT.match(said[len(stem) :]):
        return answered, True
    return configured, bool(plain.startswith(said) and _SNAPSHOT.match(plain[len(said) :]))


def read_call(
    metadata: object,
    caller: Caller,
    *,
    billed: object = None,
    source: CostSource = CostSource.REPORTED,
) -> tuple[Usage | None, tuple[str, ...]]:
    """The usage of one call, and remarks on it; None where the counts cannot be believed.

    ``billed`` is ``responseMetadata.usage``, the provider's own counts, where the answer has them.
    """
    counts = object_of(metadata)
    inputs = token_count(counts.get("input_tokens"))
    outputs = token_count(counts.get("output_tokens"))
    if inputs is None or outputs is None or inputs + outputs == 0:
        return None, ()
    flags: list[str] = []
    exactness = [Exactness.EXACT]
    beside = _beside(counts, inputs + outputs)
    if beside:
        outputs += beside
        flags.append(BESIDE)
        exactness.append(Exactness.UPPER)
    parts, readable = _details(counts)
    if not readable:
        flags.append(UNREADABLE_DETAILS)
        exactness.append(Exactness.ESTIMATED)
    if caller.anthropic:
        inputs = _anthropic_cache(parts, inputs, object_of(billed), caller.streams, exactness)
        if caller.streams:
            flags.append(ANTHROPIC_STREAM)
            exactness.append(Exactness.UPPER)
    model, reliable = billed_model(caller)
    if not reliable:
        flags.append(OTHER_MODEL)
        exactness.append(Exactness.ESTIMATED)
    cached = parts["cache_read"] + parts["cache_write"] + parts["cache_write_1h"]
    if cached > inputs:  # reported beside the input, as older versions of Anthropic's client do
        inputs += cached
    if parts["reasoning"] > outputs:
        outputs += parts["reasoning"]
    try:
        usage = Usage(
            provider=caller.provider,
            model=model,
            input_tokens=inputs,
            output_tokens=outputs,
            cache_read_tokens=parts["cache_read"],
            cache_write_tokens=parts["cache_write"],
            cache_write_1h_tokens=parts["cache_write_1h"],
            reasoning_tokens=parts["reasoning"],
            input_audio_tokens=parts["input_audio"],
            output_audio_tokens=parts["output_audio"],
            node=caller.node,
            source=source,
            exactness=least_exact(exactness),
        )
    except ConfigurationError:  # parts that contradict their whole
        return None, ()
    return usage, tuple(flags)


def _beside(counts: dict[str, Any], known: int) -> int:
    """Tokens in the call's total and in neither of its counts.

    The total of an Agent's last call also holds its earlier calls (``tool_call_tokens``).
    """
    total = token_count(counts.get("total_tokens"))
    earlier = token_count(counts.get("tool_call_tokens", 0))
    if total is None or earlier is None:
        return 0
    return max(0, total - earlier - known)


def _details(counts: dict[str, Any]) -> tuple[dict[str, int], bool]:
    parts: dict[str, int] = {"cache_write_1h": 0}
    readable = True
    for kind, group, key in (
        ("cache_read", "input_token_details", "cache_read"),
        ("cache_write", "input_token_details", "cache_creation"),
        ("input_audio", "input_token_details", "audio"),
        ("reasoning", "output_token_details", "reasoning"),
        ("output_audio", "output_token_details", "audio"),
    ):
        value = object_of(counts.get(group)).get(key)
        count = 0 if value is None else token_count(value)
        readable = readable and count is not None
        parts[kind] = count or 0
    return parts, readable


def _anthropic_cache(
    parts: dict[str, int],
    inputs: int,
    billed: dict[str, Any],
    streams: bool,
    exactness: list[Exactness],
) -> int:
    """Corrects the cache parts in place; returns the input tokens, cached ones included."""
    read = token_count(billed.get("cache_read_input_tokens"))
    written = token_count(billed.get("cache_creation_input_tokens"))
    if read is not None and written is not None:
        hour = token_count(object_of(billed.get("cache_creation")).get("ephemeral_1h_input_tokens")) or 0
        hour = min(hour, written)
        parts.update(cache_read=read, cache_write=written - hour, cache_write_1h=hour)
        fresh = token_count(billed.get("input_tokens"))
        return inputs if fresh is None else fresh + read + written
    if streams and parts["cache_read"] + parts["cache_write"]:
        # added twice, or not: the dearer reading is that reads were, and writes were not
        parts["cache_write"] = min(parts["cache_write"], inputs)
        parts["cache_read"] = min(parts["cache_read"] // 2, inputs - parts["cache_write"])
        exactness.append(Exactness.UPPER)
    return inputs


def _once(answered: str, configured: str) -> str:
    """A name that streaming repeated (``gpt-4ogpt-4o``) said once."""
    for name in (configured, answered[: len(answered) // 2]):
        if name and len(answered) > len(name) and answered == name * (len(answered) // len(name)):
            return name
    return label_of(answered)
