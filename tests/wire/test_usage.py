from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.records import CostSource, Exactness
from genops_ctx.wire import agentflow, usage
from genops_ctx.wire.answers import Problem, ProblemKind
from genops_ctx.wire.flows import FlowDefinition, FlowKind, ModelNode
from genops_ctx.wire.readings import Gap, Reading
from genops_ctx.wire.sse import Event, EventDecoder
from genops_ctx.wire.usage import StreamReader, read_failure, read_usage

from .recorded import FLOWS, PREDICTIONS, body, booked, definition, read, streamed

EXACT = [
    "agentflow1_nonstream",
    "agentflow1_stream",
    "agentflow1_missing_question",
    "agentflow_agent_nonstream",
    "agentflow_agent_session_turn2",
    "agentflow_agent_stream",
    "agentflow_unpriced_nonstream",
    "agentflow_unpriced_stream",
    "evaluation_agentflow1",
    "evaluation_conv_chain",
    "evaluation_llm_chain",
    "evaluation_tool_agent",
]


@pytest.mark.parametrize("name", EXACT)
def test_what_is_read_is_what_was_billed(name: str) -> None:
    reading = read(name)
    assert booked(reading) == PREDICTIONS[name]["billed"]
    assert reading.complete
    assert {call.exactness for call in reading.usages} == {Exactness.EXACT}


@pytest.mark.parametrize(
    "name", ["agentflow2_nonstream", "agentflow2_stream", "agentflow2_second_node_unaffected"]
)
def test_anthropic_streamed_inside_flowise_is_an_upper_bound_by_one(name: str) -> None:
    reading = read(name)
    first, second = PREDICTIONS[name]["billed"]
    assert booked(reading) == [first, [second[0], second[1], second[2] + 1]]
    assert [call.exactness for call in reading.usages] == [Exactness.EXACT, Exactness.UPPER]
    assert [call.node for call in reading.usages] == ["Drafter", "Reviewer"]
    assert [call.provider for call in reading.usages] == ["chatOpenAI", "chatAnthropic"]
    assert reading.complete


@pytest.mark.parametrize("name", ["agentflow_structured_nonstream", "agentflow_structured_stream"])
def test_structured_output_is_a_gap_not_zero(name: str) -> None:
    assert read(name) == Reading(gaps=(Gap("LLM", "chatOpenAI", "gpt-4o", agentflow.STRUCTURED),))


def test_summary_memory_is_a_gap_beside_the_call_that_is_known() -> None:
    reading = read("agentflow_summary_nonstream")
    assert PREDICTIONS["agentflow_summary_nonstream"]["billed"] == [
        ["gpt-4o-mini", 73, 25],
        ["gpt-4o-mini", 22, 8],
    ]
    assert booked(reading) == [["gpt-4o-mini", 22, 8]]
    assert reading.gaps == (Gap("LLM", "chatOpenAI", "gpt-4o-mini", agentflow.SUMMARY),)


@pytest.mark.parametrize(
    ("name", "flow"),
    [
        ("conv_chain_nonstream", "conv_chain"),
        ("conv_chain_stream", "conv_chain"),
        ("evaluation_conv_chain_stream", "conv_chain"),
        ("conv_chain_stream_aborted", "conv_chain"),
        ("llm_chain_nonstream", "llm_chain"),
        ("llm_chain_stream", "llm_chain"),
        ("tool_agent_nonstream", "tool_agent"),
        ("tool_agent_stream", "tool_agent"),
    ],
)
def test_a_classic_answer_is_one_gap_for_each_model(name: str, flow: str) -> None:
    assert read(name, definition(flow)).gaps == (Gap("OpenAI", "chatOpenAI", "gpt-4o-mini", usage.CLASSIC),)
    assert read(name).gaps == (Gap("", "", "", usage.UNKNOWN_FLOW),)
    assert read(name).usages == ()


@pytest.mark.parametrize("name", [name for name in PREDICTIONS if name not in EXACT])
def test_no_recorded_answer_is_silently_wrong(name: str) -> None:
    own = [flow for flow in FLOWS if flow in name]
    for flow in (None, *map(definition, own)):
        reading = read(name, flow)
        exact = booked(reading) == PREDICTIONS[name]["billed"]
        assert exact or reading.gaps or any(call.exactness is not Exactness.EXACT for call in reading.usages)


def test_evaluation_usage_says_where_it_came_from() -> None:
    reading = read("evaluation_tool_agent")
    assert {call.source for call in reading.usages} == {CostSource.EVALUATION}
    assert {call.provider for call in reading.usages} == {"ChatOpenAI"}
    assert reading.flags == (usage.NO_CACHED_SPLIT,)


def test_evaluation_metrics_that_name_a_call_without_tokens_leave_a_gap() -> None:
    metrics = [
        '{"provider":"A"}',
        '{"provider":"B"}',
        '{"promptTokens":5,"completionTokens":true,"model":"m"}',
    ]
    reading = read_usage({"metrics": [*metrics, '{"provider":"C"}', "nonsense", 5]}, None)
    assert reading.usages == ()
    assert [(gap.provider, gap.model, gap.why) for gap in reading.gaps] == [
        ("A", "", usage.UNMEASURED),
        ("B", "m", usage.UNMEASURED),
        ("C", "", usage.UNMEASURED),
    ]
    assert read_usage({"metrics": None}, None).gaps == (Gap("", "", "", usage.UNKNOWN_FLOW),)


def test_evaluation_does_not_see_embeddings() -> None:
    flow = FlowDefinition(model_nodes=(ModelNode("e", "E", "openAIEmbeddings", "small", role="embedding"),))
    metrics = ['{"provider":"ChatOpenAI"}', '{"promptTokens":5,"completionTokens":2,"model":"m"}']
    reading = read_usage({"metrics": metrics}, flow)
    assert booked(reading) == [["m", 5, 2]]
    assert reading.gaps == (Gap("E", "openAIEmbeddings", "small", usage.EMBEDDING, "embedding"),)


def test_calls_outside_the_flow_are_gaps_and_flags() -> None:
    model = ModelNode("", "follow-up prompts", "chatOpenAI", "gpt-4o")
    flow = FlowDefinition(
        follow_up_prompts=True, follow_up_model=model, speech_to_text=True, text_to_speech=True
    )
    answer = PREDICTIONS["agentflow1_nonstream"]["json"]
    reading = read_usage(answer, flow)
    assert [(gap.model, gap.why, gap.role) for gap in reading.gaps] == [
        ("gpt-4o", usage.FOLLOW_UP, "chat"),
        ("", usage.SPEECH_IN, "speech"),
        ("", usage.SPEECH_OUT, "speech"),
    ]
    assert reading.flags == (usage.FOLLOW_UP_FLAG, usage.SPEECH_IN_FLAG, usage.SPEECH_OUT_FLAG)
    assert usage.SPEECH_IN_FLAG not in read_usage(answer, flow, audio_uploaded=False).flags
    # the answer itself may show that follow-up prompts were written: a string in a string
    told = read_usage({**answer, "followUpPrompts": '"[\\"more?\\"]"'}, None)
    assert told.flags == (usage.FOLLOW_UP_FLAG,)
    assert read_usage({**answer, "followUpPrompts": '"[]"'}, None).complete


# --- AgentFlow items -------------------------------------------------------------------------------


def item(node: str, *, status: str = "FINISHED", **data: Any) -> dict[str, Any]:
    return {
        "nodeId": f"{node}_0",
        "nodeLabel": node,
        "data": {"id": f"{node}_0", "name": node, **data},
        "status": status,
    }


def llm(tokens: tuple[int, int], **data: Any) -> dict[str, Any]:
    config = {"llmModel": "chatOpenAI", "llmModelConfig": {"modelName": "m"}}
    output = {"usageMetadata": counts(*tokens)}
    return item("llmAgentflow", input=config, output=output, **data)


def counts(inputs: int, outputs: int, **more: Any) -> dict[str, Any]:
    return {"input_tokens": inputs, "output_tokens": outputs, "total_tokens": inputs + outputs, **more}


def agent(messages: list[dict[str, Any]], *, status: str = "FINISHED", **output: Any) -> dict[str, Any]:
    inputs = {"agentModel": "chatOpenAI", "agentModelConfig": {"modelName": "m"}, "messages": messages}
    return item("agentAgentflow", status=status, input=inputs, output=output)


def executed(*items: Any, flow: FlowDefinition | None = None) -> Reading:
    return read_usage({"agentFlowExecutedData": list(items)}, flow)


def test_every_round_of_an_iteration_and_of_an_agent_counts() -> None:
    rounds = [llm((n, 1), iterationIndex=n) for n in (1, 2, 3)]
    tools = [{"role": "assistant", "usage_metadata": counts(n, 2)} for n in (4, 5)]
    last = counts(6, 3) | {"total_tokens": 99, "tool_call_tokens": 90}
    reading = executed(*rounds, item("iterationAgentflow"), agent(tools, usageMetadata=last))
    assert booked(reading) == [["m", 1, 1], ["m", 2, 1], ["m", 3, 1], ["m", 4, 2], ["m", 5, 2], ["m", 6, 3]]
    assert reading.complete


def test_an_agent_that_waits_for_approval_has_its_last_call_once() -> None:
    pending = {"role": "assistant", "id": "c1", "usage_metadata": counts(4, 2)}
    stopped = agent([pending], status="STOPPED", isWaitingForHumanInput=True, usageMetadata=counts(4, 2))
    assert booked(executed(stopped)) == [["m", 4, 2]]


def test_a_resumed_flow_books_only_what_this_prediction_called() -> None:
    earlier = {"role": "assistant", "id": "c1", "usage_metadata": counts(4, 2)}
    second = {"role": "assistant", "id": "c2", "usage_metadata": counts(7, 2)}
    stopped = agent([earlier], status="STOPPED", isWaitingForHumanInput=True, usageMetadata=counts(4, 2))
    resumed = agent([earlier, second], usageMetadata=counts(9, 1))
    reading = executed(llm((1, 1)), stopped, resumed, llm((3, 3)))
    assert booked(reading) == [["m", 7, 2], ["m", 9, 1], ["m", 3, 3]]
    assert reading.flags == (agentflow.RESUMED,)
    # rejected: the earlier call is taken out of the messages
    assert booked(executed(stopped, agent([second], usageMetadata=counts(9, 1)))) == [
        ["m", 7, 2],
        ["m", 9, 1],
    ]
    # inside an iteration the flow goes on by itself
    inner = copy.deepcopy(stopped)
    inner["data"]["iterationIndex"] = 0
    assert booked(executed(inner, llm((3, 3)))) == [["m", 4, 2], ["m", 3, 3]]


def test_an_agent_with_structured_output_hides_its_answer_and_the_conversion() -> None:
    node = agent([], usageMetadata={"total_tokens": 5, "tool_call_tokens": 5})
    node["data"]["input"]["agentStructuredOutput"] = [{"key": "x"}]
    assert [gap.why for gap in executed(node).gaps] == [agentflow.UNREADABLE, agentflow.STRUCTURED]


def test_calls_hidden_in_tools_are_gaps() -> None:
    available = [
        {"name": "helper", "toolNode": {"name": "chatflowTool"}},
        {"name": "docs", "toolNode": {"name": "retrieverTool"}},
        {"name": "sum", "toolNode": {"name": "calculator"}},
    ]
    used = [{"tool": name} for name in ("helper", "docs", "sum", "stranger")] + [
        {"tool": "web", "builtIn": True}
    ]
    node = agent([], usageMetadata=counts(1, 1), availableTools=available, usedTools=used)
    assert [gap.why for gap in executed(node).gaps] == [
        agentflow.SUB_FLOW,
        agentflow.RETRIEVAL,
        agentflow.BUILT_IN,
    ]
    node["data"]["input"]["agentKnowledgeDocumentStores"] = [{}]
    assert [gap.why for gap in executed(node).gaps].count(agentflow.RETRIEVAL) == 2


def test_sub_flows_retrievers_and_written_questions_are_gaps() -> None:
    question = item("humanInputAgentflow", status="STOPPED")
    reading = executed(item("executeFlowAgentflow"), item("retrieverAgentflow"), question)
    assert [gap.why for gap in reading.gaps] == [
        agentflow.SUB_FLOW,
        agentflow.RETRIEVAL,
        agentflow.HUMAN_INPUT,
    ]
    assert executed(question, flow=FlowDefinition(kind=FlowKind.AGENTFLOW)).complete
    dynamic = FlowDefinition(
        model_nodes=(ModelNode("humanInputAgentflow_0", "Ask", "chatOpenAI", "m"),),
        dynamic_human_input_nodes=("humanInputAgentflow",),
    )
    assert executed(question, flow=dynamic).gaps == (
        Gap("humanInputAgentflow", "chatOpenAI", "m", agentflow.HUMAN_INPUT),
    )


def test_a_condition_agent_takes_its_model_from_the_definition_or_the_answer() -> None:
    output = {
        "usageMetadata": counts(3, 4),
        "responseMetadata": {"model_name": "gpt-4o-2024-08-06", "model_provider": "openai"},
    }
    node = item("conditionAgentAgentflow", input={"messages": []}, output=output)
    (call,) = executed(node).usages
    assert (call.provider, call.model, call.input_tokens) == ("openai", "gpt-4o-2024-08-06", 3)
    defined = ModelNode("conditionAgentAgentflow_0", "C", "azureChatOpenAI", "deployment")
    flow = FlowDefinition(model_nodes=(defined,), summary_memory_nodes=("conditionAgentAgentflow",))
    reading = executed(node, flow=flow)
    (call,) = reading.usages
    assert (call.provider, call.model) == ("azureChatOpenAI", "gpt-4o-2024-08-06")
    assert [gap.why for gap in reading.gaps] == [agentflow.SUMMARY]


@pytest.mark.parametrize(
    ("memory", "enabled", "content", "gap"),
    [
        ("conversationSummary", True, "", True),
        ("conversationSummary", False, "", False),
        ("conversationSummaryBuffer", True, "hello", False),
        ("conversationSummaryBuffer", True, "Previous conversation summary: x", True),
        ("allMessages", True, "", False),
    ],
)
def test_summary_memory_is_known_by_its_setting_and_its_trace(
    memory: str, enabled: bool, content: str, gap: bool
) -> None:
    node = llm((1, 1))
    node["data"]["input"] |= {
        "llmMemoryType": memory,
        "llmEnableMemory": enabled,
        "messages": [{"role": "system", "content": content}],
    }
    assert [g.why for g in executed(node).gaps] == ([agentflow.SUMMARY] if gap else [])


@pytest.mark.parametrize(
    ("node", "error", "gap"),
    [
        ("llmAgentflow", "Error in LLM node: 400 bad", False),
        ("llmAgentflow", "Error in LLM node: 429 slow", False),
        ("llmAgentflow", "Error in LLM node: 500 sorry", True),
        ("llmAgentflow", "Error in LLM node: timed out after 400 ms", True),
        ("llmAgentflow", {"status": 400}, True),
        ("agentAgentflow", "Error in Agent node: 401 key", False),
        ("agentAgentflow", "Error in Agent node: 400 bad", True),
        ("conditionAgentAgentflow", "Error in Condition Agent node: Failed to parse", True),
        ("toolAgentflow", "boom", False),
    ],
)
def test_a_failed_node_is_a_gap_unless_its_provider_refused(node: str, error: Any, gap: bool) -> None:
    failed = item(node, status="ERROR", error=error)
    assert [g.why for g in executed(failed).gaps] == ([agentflow.FAILED] if gap else [])


def test_a_refused_node_with_summary_memory_may_have_called_before() -> None:
    flow = FlowDefinition(summary_memory_nodes=("llmAgentflow",))
    failed = item("llmAgentflow", status="ERROR", error="Error in LLM node: 400 bad")
    assert [gap.why for gap in executed(failed, flow=flow).gaps] == [agentflow.FAILED]


def test_an_item_that_cannot_be_read_is_a_gap() -> None:
    nameless = {"nodeId": "llmAgentflow_3", "data": {"output": {"usageMetadata": counts(1, 2)}}}
    assert booked(executed(nameless)) == [["", 1, 2]]
    assert [gap.why for gap in executed(None, 5, {}).gaps] == [agentflow.BROKEN_ITEM] * 3
    for broken in (None, "text", {"a": 1}):
        assert read_usage({"agentFlowExecutedData": broken}, None).gaps
    assert read_usage({"executionId": "x"}, FlowDefinition()).gaps
    assert executed().complete  # a flow without model nodes costs nothing


# --- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "flow", "gaps"),
    [
        (Problem(ProblemKind.UNAUTHORIZED, 500), None, 0),
        (Problem(ProblemKind.RATE_LIMITED, 429), None, 0),
        (Problem(ProblemKind.MODEL_FAILED, 500, 401), None, 1),
        (Problem(ProblemKind.MODEL_FAILED, 500, 401), "conv_chain", 0),
        (Problem(ProblemKind.MODEL_FAILED, 500, 401), "tool_agent", 0),
        (Problem(ProblemKind.MODEL_FAILED, 500, 404, "LLM"), "agentflow1", 0),
        (Problem(ProblemKind.MODEL_FAILED, 500, 404, "LLM"), "agentflow2", 2),
        (Problem(ProblemKind.MODEL_FAILED, 500, 400), None, 1),
        (Problem(ProblemKind.MODEL_FAILED, 500, 400), "conv_chain", 0),
        (Problem(ProblemKind.MODEL_FAILED, 500, 400), "llm_chain", 0),
        (Problem(ProblemKind.MODEL_FAILED, 500, 400), "tool_agent", 1),
        (Problem(ProblemKind.MODEL_FAILED, 500, 400, "LLM"), "agentflow1", 0),
        (Problem(ProblemKind.MODEL_FAILED, 500, 400, "LLM"), "agentflow2", 2),
        (Problem(ProblemKind.MODEL_FAILED, 500, 400, "LLM"), "agentflow_summary", 1),
        (Problem(ProblemKind.MODEL_FAILED, 500, 400, "Agent"), "agentflow_agent", 1),
        (Problem(ProblemKind.MODEL_FAILED, 500, 500), "conv_chain", 1),
        (Problem(ProblemKind.SERVER_ERROR, 502), "conv_chain", 1),
        (Problem(ProblemKind.MALFORMED, 200), "conv_chain", 1),
    ],
)
def test_a_failure_is_free_only_where_that_is_certain(problem: Problem, flow: str | None, gaps: int) -> None:
    assert len(read_failure(problem, definition(flow) if flow else None).gaps) == gaps


# --- streams ---------------------------------------------------------------------------------------


def test_a_stream_tells_its_ids_and_text() -> None:
    reader = streamed("agentflow2_stream")
    assert reader.text == PREDICTIONS["agentflow2_nonstream"]["json"]["text"]
    assert reader.ended
    assert reader.chat_id == reader.session_id == "844225d1-87eb-4e6e-a334-f8fdb0711af1"
    assert reader.chat_message_id == "93b83de7-8019-4974-ad64-c96895d3003f"
    assert "Stub" not in repr(reader)


def test_a_stream_that_failed_part_way_keeps_what_finished() -> None:
    reading = read("agentflow2_partial_failure_stream")
    assert booked(reading) == PREDICTIONS["agentflow2_partial_failure_stream"]["billed"]
    assert reading.complete  # the second node was refused with 400


def test_an_error_after_work_was_seen_is_not_free() -> None:
    for before in (Event("token", "some"), Event("usedTools", [])):
        reader = StreamReader(definition("conv_chain"))
        for event in (before, Event("error", "400 bad"), Event("end", "[DONE]")):
            reader.feed(event)
        assert len(reader.finish().gaps) == 1


@pytest.mark.parametrize("flow", [None, "agentflow2"])
def test_an_agentflow_stream_cut_anywhere_is_never_complete(flow: str | None) -> None:
    whole = body("agentflow2_stream")
    known = definition(flow) if flow else None
    frames = whole.split(b"\n\n")
    for kept in range(1, len(frames) - 2):
        reader = StreamReader(known)
        for event in EventDecoder().feed(b"\n\n".join(frames[:kept]) + b"\n\n"):
            reader.feed(event)
        reading = reader.finish()
        assert usage.TRUNCATED in reading.flags
        finished = {call.node for call in reading.usages}
        missed = {gap.node for gap in reading.gaps}
        if known:
            assert finished | missed == {"Drafter", "Reviewer"}
        else:
            assert missed or "Reviewer" in finished


def test_an_aborted_stream_says_so() -> None:
    reader = StreamReader(None)
    for event in (Event("agentFlowEvent", "INPROGRESS"), Event("abort", "[DONE]")):
        reader.feed(event)
    assert reader.finish() == Reading(gaps=(Gap("", "", "", usage.CUT_SHORT),), flags=(usage.ABORTED,))


def test_the_text_kept_for_estimates_is_bounded() -> None:
    reader = StreamReader(None)
    for _ in range(5):
        reader.feed(Event("token", "x" * 1_000_000))
    assert len(reader.text) == 4_000_000


# --- hostile input ---------------------------------------------------------------------------------

KEYS = [
    "agentFlowExecutedData",
    "metrics",
    "data",
    "name",
    "nodeId",
    "nodeLabel",
    "status",
    "error",
    "input",
    "output",
    "messages",
    "usageMetadata",
    "usage_metadata",
    "responseMetadata",
    "model_name",
    "llmModel",
    "llmModelConfig",
    "agentModelConfig",
    "modelName",
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "tool_call_tokens",
    "input_token_details",
    "output_token_details",
    "cache_read",
    "cache_creation",
    "reasoning",
    "audio",
    "usage",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "usedTools",
    "availableTools",
    "promptTokens",
    "completionTokens",
    "provider",
    "event",
    "followUpPrompts",
    "iterationIndex",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["llmAgentflow", "agentAgentflow", "chatAnthropic", "STOPPED", "ERROR", "llmAgentflow_0"]
    )
)
JSONISH = st.recursive(
    SCALARS,
    lambda s: st.lists(s, max_size=4) | st.dictionaries(st.sampled_from(KEYS), s, max_size=6),
    max_leaves=40,
)


def sane(reading: Reading) -> None:
    for call in reading.usages:
        assert 0 <= call.input_tokens <= 3 * 10**8
        assert 0 <= call.output_tokens <= 3 * 10**8
        assert call.total_tokens > 0


@given(JSONISH, JSONISH, JSONISH)
def test_hostile_answers_never_raise_and_never_book_nonsense(a: Any, b: Any, c: Any) -> None:
    for flow in (None, definition("agentflow2")):
        sane(read_usage(a, flow))
        sane(read_usage({"agentFlowExecutedData": a, "metrics": b, "followUpPrompts": c}, flow))
        sane(read_usage({"metrics": [a, b, c]}, flow))
        node = llm((1, 1))
        node["data"]["output"]["usageMetadata"] = a
        node["data"]["output"]["responseMetadata"] = b
        node["data"]["input"]["llmModelConfig"] = c
        sane(executed(node, agent([{"usage_metadata": a}, b, c], usageMetadata=b), flow=flow))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["token", "agentFlowExecutedData", "nextAgentFlow", "metadata", "error", "end", "x"]
            ),
            JSONISH,
        )
    )
)
def test_hostile_streams_never_raise(events: list[tuple[str, Any]]) -> None:
    reader = StreamReader(definition("agentflow2"))
    for name, data in events:
        reader.feed(Event(name, data))
    sane(reader.finish())
    assert isinstance(reader.text + reader.chat_id, str)


@pytest.mark.parametrize("bad", [None, -1, 1.0, "5", True, 10**9, [], {}, float("nan")])
def test_a_count_that_cannot_be_believed_is_a_gap(bad: Any) -> None:
    for key in ("input_tokens", "output_tokens"):
        node = llm((5, 5))
        node["data"]["output"]["usageMetadata"][key] = bad
        assert executed(node) == Reading(gaps=(Gap("llmAgentflow", "chatOpenAI", "m", agentflow.UNREADABLE),))
