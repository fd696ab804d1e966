"""Usage of a prediction, from a JSON answer, a stream or a failure: what is known, what is not.

Classic flows report nothing; with ``evaluation`` in the request their answer gains ``metrics``.
AgentFlow V2 reports per node (:mod:`.agentflow`). What a flow's definition says is called outside of
both (follow-up prompts, speech, embeddings) is added as gaps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from genops_ctx.core.records import CostSource, Usage

from .agentflow import read_executed, started_model_node
from .answers import Problem, problem_of_error_event
from .flows import FlowDefinition, FlowKind
from .model_calls import Caller, read_call
from .readings import Gap, Reading, gap_of, reading
from .shapes import decoded, items_of, label_of, object_of, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .sse import Event

__all__ = ["Gap", "Reading", "StreamReader", "read_failure", "read_usage"]

CLASSIC: Final = "a classic flow's answer reports no usage"
UNKNOWN_FLOW: Final = "the answer reports no usage and the flow's definition is not known"
FOLLOW_UP: Final = "follow-up prompts are on: the call that writes them is not reported"
SUMMARY: Final = "summary memory: the call that summarises is not reported"
SPEECH_IN: Final = "speech to text is on: transcription of an upload is not reported"
SPEECH_OUT: Final = "text to speech is on: speaking the answer is not reported"
EMBEDDING: Final = "embedding calls are not reported"
UNMEASURED: Final = "the evaluation metrics name a model call without its tokens"
CUT_SHORT: Final = "the stream was cut short; Flowise runs the flow on and its model is billed"
NOT_REACHED: Final = "the call failed; what its models used before is not reported"

FOLLOW_UP_FLAG: Final = "followup_prompts_not_metered"
SPEECH_IN_FLAG: Final = "speech_to_text_not_metered"
SPEECH_OUT_FLAG: Final = "text_to_speech_not_metered"
NO_CACHED_SPLIT: Final = "evaluation_no_cached_split"
"""evaluation metrics count cached tokens as plain input: ``upper`` where the model has a cache price"""
TRUNCATED: Final = "stream_truncated"
ABORTED: Final = "stream_aborted"

_MAX_TEXT: Final = 4_000_000


def read_usage(
    answer: Mapping[str, Any], flow: FlowDefinition | None, *, audio_uploaded: bool | None = None
) -> Reading:
    """Usage out of a JSON answer. Never raises for what a server sends.

    ``audio_uploaded`` says whether the request held audio, so that speech to text could run; None
    where the caller does not know.
    """
    given = object_of(answer)
    if "agentFlowExecutedData" in given or "executionId" in given:
        main = _executed(given.get("agentFlowExecutedData"), flow)
    elif "metrics" in given:
        main = _evaluated(given.get("metrics"), flow)
    else:
        main = _unreported(flow)
    return main + _outside(flow, audio_uploaded, wrote_follow_ups=_wrote_follow_ups(given))


def read_failure(problem: Problem, flow: FlowDefinition | None) -> Reading:
    """What an answer that is an error says of usage: nothing billed, or calls not reported.

    An AgentFlow's finished nodes are in its execution record (:mod:`.executions`), if it can be read.
    """
    if problem.nothing_called:
        return Reading()
    if problem.upstream_status in (401, 403, 404) and _has_one_model(flow):
        return Reading()  # a key or a name that is wrong is so from the first call on
    if problem.provider_rejected and flow is not None and flow.single_call:
        return Reading()
    return _unreported(flow, NOT_REACHED)


def _has_one_model(flow: FlowDefinition | None) -> bool:
    """Whether no other model can have been called, and billed, before the one that was refused."""
    if flow is None or flow.speech_to_text:
        return False
    return len({(node.node, node.model) for node in flow.model_nodes}) == 1


class StreamReader:
    """Reads usage out of a stream's events as they pass; :meth:`finish` when it is over."""

    def __init__(self, flow: FlowDefinition | None, *, audio_uploaded: bool | None = None) -> None:
        self._flow = flow
        self._audio_uploaded = audio_uploaded
        self._executed: object = None
        self._metadata: dict[str, Any] = {}
        self._text: list[str] = []
        self._room = _MAX_TEXT
        self._open: dict[str, str] = {}
        self._agentflow = False
        self._worked = False
        self._ended = False
        self._aborted = False
        self.error: Problem | None = None
        """the problem the stream reported, if it did"""

    def __repr__(self) -> str:
        return f"StreamReader(ended={self._ended}, error={self.error!r})"  # no text of the answer

    @property
    def text(self) -> str:
        """The answer's text as far as it was streamed, to estimate tokens from."""
        return "".join(self._text)

    @property
    def ended(self) -> bool:
        """True once Flowise said that the stream is whole."""
        return self._ended

    @property
    def chat_id(self) -> str:
        return label_of(self._metadata.get("chatId"))

    @property
    def chat_message_id(self) -> str:
        return label_of(self._metadata.get("chatMessageId"))

    @property
    def session_id(self) -> str:
        return label_of(self._metadata.get("sessionId"))

    def feed(self, event: Event) -> None:
        """Takes note of one event. Never raises for what a server sends."""
        name, data = event
        if name == "token":
            kept = text_of(data)[: self._room]
            if kept:
                self._room -= len(kept)
                self._text.append(kept)
        elif name == "agentFlowExecutedData":
            self._agentflow = True
            if isinstance(data, list):
                self._executed = data
        elif name == "nextAgentFlow":
            self._agentflow = True
            self._progress(object_of(data))
        elif name in ("agentFlowEvent", "usageMetadata"):
            self._agentflow = True
        elif name in ("usedTools", "calledTools", "sourceDocuments"):
            self._worked = True
        elif name == "metadata":
            self._metadata = object_of(data)
        elif name == "error":
            self.error = problem_of_error_event(data)
        elif name == "abort":
            self._aborted = True
        elif name == "end":
            self._ended = True

    def finish(self) -> Reading:
        """The usage of what was streamed; a stream cut short has gaps for what may have run on."""
        cut = self._cut_flags()
        if self.error is not None and not self._agentflow and not self._text and not self._worked:
            main = read_failure(self.error, self._flow)
        elif self._agentflow:
            main = _executed(self._executed if self._executed is not None else [], self._flow)
            main += Reading(gaps=tuple(self._unfinished(bool(cut))))
        else:
            main = _unreported(self._flow)
        flagged = main + Reading(flags=cut)
        if self.error is not None:
            return flagged
        return flagged + _outside(
            self._flow, self._audio_uploaded, wrote_follow_ups=_wrote_follow_ups(self._metadata)
        )

    def _progress(self, data: dict[str, Any]) -> None:
        node_id = text_of(data.get("nodeId"))
        if data.get("status") == "INPROGRESS":
            if started_model_node(node_id) and len(self._open) < 10_000:
                self._open[node_id] = label_of(data.get("nodeLabel"))
        else:
            self._open.pop(node_id, None)

    def _cut_flags(self) -> tuple[str, ...]:
        if self._aborted:
            return (ABORTED,)
        return () if self._ended or self.error is not None else (TRUNCATED,)

    def _unfinished(self, cut: bool) -> list[Gap]:
        """Nodes that began and did not end, and in a stream cut short those that may yet run."""
        flow = self._flow or FlowDefinition()
        gaps = []
        for node_id, label in self._open.items():
            node = flow.model_node(node_id)
            gaps.append(gap_of(node, CUT_SHORT) if node else Gap(label, "", "", CUT_SHORT))
        if not cut:
            return gaps
        seen = {text_of(object_of(item).get("nodeId")) for item in items_of(self._executed)} | set(self._open)
        gaps.extend(gap_of(node, CUT_SHORT) for node in flow.model_nodes if node.id not in seen)
        if self._flow is None and not gaps:
            gaps.append(Gap("", "", "", CUT_SHORT))
        return gaps


def _executed(items: object, flow: FlowDefinition | None) -> Reading:
    if isinstance(items, list):
        return read_executed(items, flow)
    return _unreported(flow, UNKNOWN_FLOW if flow is None else CLASSIC)


def _unreported(flow: FlowDefinition | None, why: str = CLASSIC) -> Reading:
    """One gap for each model the definition names; one unknown gap where it names none."""
    gaps = [] if flow is None else [gap_of(node, why) for node in flow.model_nodes]
    if not any(gap.role == "chat" for gap in gaps):
        gaps.append(Gap("", "", "", UNKNOWN_FLOW if flow is None and why == CLASSIC else why))
    return Reading(gaps=tuple(gaps))


def _evaluated(metrics: object, flow: FlowDefinition | None) -> Reading:
    """Usage out of the evaluation metrics.

    Strings of JSON, in the order of the calls: ``{"provider": "ChatOpenAI"}`` before each
    ``{"promptTokens", "completionTokens", "model"}``. Bare objects are a guess of Flowise's own (a
    tokenizer's count) and are skipped.
    """
    usages: list[Usage] = []
    gaps: list[Gap] = []
    flags: list[str] = []
    provider = ""
    waiting = False
    for item in items_of(metrics):
        metric = object_of(decoded(item)) if isinstance(item, str) else {}
        if "promptTokens" in metric or "completionTokens" in metric:
            usage, remarks = _evaluated_call(metric, provider)
            if usage is None:
                gaps.append(Gap("", provider, label_of(metric.get("model")), UNMEASURED))
            else:
                usages.append(usage)
                flags.extend((*remarks, NO_CACHED_SPLIT))
            waiting = False
        elif "provider" in metric:
            if waiting:
                gaps.append(Gap("", provider, "", UNMEASURED))
            provider, waiting = label_of(metric.get("provider")), True
    if waiting:
        gaps.append(Gap("", provider, "", UNMEASURED))
    if not usages and not gaps:
        return _unreported(flow)
    embeddings = () if flow is None else (n for n in flow.model_nodes if n.role == "embedding")
    gaps.extend(gap_of(node, EMBEDDING) for node in embeddings)
    return reading(usages, gaps, flags)


def _evaluated_call(metric: dict[str, Any], provider: str) -> tuple[Usage | None, tuple[str, ...]]:
    counts = {
        "input_tokens": metric.get("promptTokens"),
        "output_tokens": metric.get("completionTokens"),
        "total_tokens": metric.get("totalTokens"),
    }
    caller = Caller("", provider, configured=label_of(metric.get("model")))
    return read_call(counts, caller, source=CostSource.EVALUATION)


def _outside(flow: FlowDefinition | None, audio_uploaded: bool | None, *, wrote_follow_ups: bool) -> Reading:
    """Calls that Flowise makes beside the flow itself."""
    gaps: list[Gap] = []
    flags: list[str] = []
    if wrote_follow_ups or (flow is not None and flow.follow_up_prompts):
        model = flow.follow_up_model if flow is not None else None
        gaps.append(gap_of(model, FOLLOW_UP) if model else Gap("follow-up prompts", "", "", FOLLOW_UP))
        flags.append(FOLLOW_UP_FLAG)
    if flow is not None and flow.kind not in (FlowKind.AGENTFLOW, FlowKind.UNKNOWN):
        gaps.extend(_summarising(flow))
    if flow is not None and flow.speech_to_text and audio_uploaded is not False:
        gaps.append(Gap("speech to text", "", "", SPEECH_IN, "speech"))
        flags.append(SPEECH_IN_FLAG)
    if flow is not None and flow.text_to_speech:
        gaps.append(Gap("text to speech", "", "", SPEECH_OUT, "speech"))
        flags.append(SPEECH_OUT_FLAG)
    return reading((), gaps, flags)


def _summarising(flow: FlowDefinition) -> Iterator[Gap]:
    """The memory of a classic flow calls its model apart from the chain, by no callback and no metric.

    Measured: it bills such a call from the second turn on.
    """
    models = {(node.node, node.model) for node in flow.model_nodes if node.role == "chat"}
    provider, model = next(iter(models)) if len(models) == 1 else ("", "")
    for label in flow.summary_memory_nodes:
        yield Gap(label, provider, model, SUMMARY)


def _wrote_follow_ups(answer: Mapping[str, Any]) -> bool:
    return bool(items_of(decoded(decoded(answer.get("followUpPrompts")))))
