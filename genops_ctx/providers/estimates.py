"""Estimates for a flow's model calls: before it runs, to reserve; after it, where nothing is reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..core.admission import Forecast
from ..core.ports import Prices
from ..core.records import CostSource, Exactness, Usage
from ..pricing.tokens import estimate_tokens
from ..wire.flows import FlowDefinition
from ..wire.readings import Gap
from ..wire.shapes import strings_in

__all__ = ["OUTPUT_TOKENS", "Texts", "estimated_usages", "forecast", "uploaded_texts"]

INSTRUCTION_TOKENS = 2_000
"""More than Flowise's own chains put around a question."""

OUTPUT_TOKENS = 1024
"""Output tokens of a model call of which nothing else is known."""


_NO_TEXTS = frozenset({"sessionId", "analytics"})
"""Parts of an ``overrideConfig`` that no model reads."""

SAMPLES = 10
SAMPLE_LENGTH = 20_000
"""Characters of each part of a long text that is counted for the whole."""


@dataclass(frozen=True, slots=True, repr=False)
class Texts:
    """What a call sends, to count its tokens; never stored or shown."""

    question: str = ""
    history: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    """see :func:`uploaded_texts`"""

    def read(self, flow: FlowDefinition | None) -> tuple[str, ...]:
        """Question, history, uploaded texts and the flow's own prompts."""
        files = self.files if flow is None or flow.reads_uploads else ()
        return (self.question, *self.history, *files, *(flow.prompt_texts if flow is not None else ()))

    def overridden(self, flow: FlowDefinition | None, override: Mapping[str, object]) -> Texts:
        """With what an ``overrideConfig`` may put into prompts; most flows ignore it."""
        if not override or flow is None or not flow.override_enabled:
            return self
        texts = strings_in([value for name, value in override.items() if name not in _NO_TEXTS])
        return replace(self, history=(*self.history, *texts)) if texts else self

    def input_tokens(self, model: str, flow: FlowDefinition | None) -> int:
        """Their tokens, by the model's probable tokenizer."""
        return sum(_tokens(text, model) for text in self.read(flow) if text)


def _tokens(text: str, model: str) -> int:
    """Of a long text, by samples spread over it: the work for one call is bounded, whatever comes."""
    if len(text) <= SAMPLES * SAMPLE_LENGTH:
        return estimate_tokens(text, model)
    step = (len(text) - SAMPLE_LENGTH) // (SAMPLES - 1)
    counted = sum(
        estimate_tokens(text[at * step : at * step + SAMPLE_LENGTH], model) for at in range(SAMPLES)
    )
    return -(-counted * len(text) // (SAMPLES * SAMPLE_LENGTH))


def uploaded_texts(uploads: object) -> tuple[str, ...]:
    """The texts of a prediction's ``uploads`` that Flowise puts before the question.

    Those of type ``file:full``, as they are given: Flowise 3.1.4 unpacks nothing of them. Files of other
    types, and those of forms, go into storage, to a vision model or a document loader.
    """
    if not isinstance(uploads, list | tuple):
        return ()
    return tuple(
        f"<doc name='{upload.get('name')}'>{data}</doc>"
        for upload in uploads
        if isinstance(upload, Mapping)
        and upload.get("type") == "file:full"
        and isinstance(data := upload.get("data"), str)
        and data
    )


def forecast(
    flow: FlowDefinition | None, texts: Texts, prices: Prices, at: float, *, bounded: bool = False
) -> Forecast:
    """What a call of the flow will probably cost: its input and 1,024 output tokens per model node.

    ``bounded`` says that the model reads nothing but these texts: no stored conversation, no override
    of the flow's own settings, no uploads. Only then can there be a ceiling.
    """
    if flow is None:
        return Forecast()
    if not flow.model_nodes:
        return Forecast(since=flow.updated_at)
    total = 0
    unpriced = []
    free = True
    for node in flow.model_nodes:
        output = min(node.max_output_tokens or OUTPUT_TOKENS, OUTPUT_TOKENS) if node.role == "chat" else 0
        usage = _estimate(node.node, node.model, texts.input_tokens(node.model, flow), output, node.label)
        quote = prices.quote(usage, at)
        if quote.nanos is None:
            unpriced.append(node.model or node.node)
            free = False
        else:
            total += quote.nanos
            free = free and quote.nanos == 0
    most = _ceiling(flow, texts, prices, at) if bounded else None
    return Forecast(
        estimate=total,
        ceiling=most,
        free=free,
        unpriced=tuple(dict.fromkeys(unpriced)),
        since=flow.updated_at,
    )


def _ceiling(flow: FlowDefinition, texts: Texts, prices: Prices, at: float) -> int | None:
    """Nano-dollars that a call can cost at most; None where the flow does not bound it.

    Only a flow that calls one model once, with an output limit, is bounded. A token is at least one
    byte of text, so the bytes are the most tokens that can be read.
    """
    node = flow.model_nodes[0]
    beside = flow.follow_up_prompts or flow.speech_to_text or flow.text_to_speech
    if not flow.single_call or beside or node.max_output_tokens is None:
        return None
    read = sum(len(text.encode("utf-8", "replace")) for text in texts.read(flow)) + INSTRUCTION_TOKENS
    usage = _estimate(node.node, node.model, read, node.max_output_tokens, node.label)
    return prices.quote(usage, at).nanos


def estimated_usages(
    gaps: Iterable[Gap], flow: FlowDefinition | None, texts: Texts, answer: str, *, input_only: bool = False
) -> tuple[tuple[Usage, ...], int]:
    """Usage that stands for unreported model calls, and how many are of an unknown model.

    ``answer`` is the text that came back, as far as it did. With ``input_only`` the model is taken to
    have read, and to have written no more than that. Otherwise, without a text that was returned, a
    usual output is assumed.
    """
    usages = []
    unknown = 0
    for gap in gaps:
        if not gap.model or not gap.provider or gap.role == "speech":
            unknown += 1
            continue
        if gap.role == "embedding" or (input_only and not answer):
            output = 0
        else:
            output = estimate_tokens(answer, gap.model) if answer else OUTPUT_TOKENS
        usages.append(
            _estimate(gap.provider, gap.model, texts.input_tokens(gap.model, flow), output, gap.node)
        )
    return tuple(usages), unknown


def _estimate(provider: str, model: str, input_tokens: int, output_tokens: int, node: str) -> Usage:
    return Usage(
        provider,
        model,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        node=node,
        source=CostSource.ESTIMATED,
        exactness=Exactness.ESTIMATED,
    )
