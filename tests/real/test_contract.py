"""What the real Flowise does, as far as the package relies on it; asked without the package.

When Flowise changes, these tests say so before any other does. Token counts are worked out by hand
from the rules of the model behind it: words read plus 10 for each tool offered, words written plus 3,
and 17 for a turn that calls a tool.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import requests

from .conftest import RATE_LIMIT_MESSAGE, RunningFlowise
from .flowise_flows import AGENT_MODEL, ANTHROPIC_MODEL, OPENAI_MODEL, UNPRICED_MODEL

if TYPE_CHECKING:
    from collections.abc import Callable

    from genops_ctx.testing.model_stub import ModelStub

QUESTION = "What is two plus three?"
TIMEOUT = 60

# provider, model, tokens in, tokens out
Billed = tuple[str, str, int, int]

MINI = ("openai", OPENAI_MODEL)
AGENT = ("openai", AGENT_MODEL)
CLAUDE = ("anthropic", ANTHROPIC_MODEL)

# the question is 5 words; a reply is "Stub reply from MODEL to: …", 5 words more, and 3 tokens
BILLED: dict[str, list[Billed]] = {
    # 43 words of instructions around the question
    "conversation_chain": [(*MINI, 48, 13)],
    # "Answer in one line:" before the question, which the reply repeats
    "llm_chain": [(*MINI, 9, 17)],
    # 6 words of instructions, 10 tokens for the tool; then the tool's answer, one word
    "tool_agent": [(*MINI, 21, 17), (*MINI, 22, 13)],
    "agentflow_llm": [(*MINI, 5, 13)],
    # the second node reads the question and the first one's answer, and repeats the latter
    "agentflow_two_providers": [(*MINI, 5, 13), (*CLAUDE, 15, 18)],
    "agentflow_two_providers_unstreamed": [(*MINI, 5, 13), (*CLAUDE, 15, 18)],
    "agentflow_agent": [(*AGENT, 15, 17), (*AGENT, 16, 13)],
    # the wanted shape is offered as a tool
    "agentflow_structured": [(*AGENT, 15, 17)],
    # the first call is for the summary; Flowise's own instructions for it are 72 words
    "agentflow_summary": [(*MINI, 77, 25), (*MINI, 22, 8)],
    "agentflow_unpriced": [("openai", UNPRICED_MODEL, 5, 13)],
}
CLASSIC = ("conversation_chain", "llm_chain", "tool_agent")


def post(flowise: RunningFlowise, flow_id: str, key: str | None = None, **body: Any) -> requests.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    url = f"{flowise.url}/api/v1/prediction/{flow_id}"
    return requests.post(url, json={"question": QUESTION, **body}, headers=headers, timeout=TIMEOUT)


def predict(flowise: RunningFlowise, flow: str, **body: Any) -> dict[str, Any]:
    response = post(flowise, flowise.flows[flow], **body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def stream(flowise: RunningFlowise, flow: str) -> list[dict[str, Any]]:
    response = post(flowise, flowise.flows[flow], streaming=True)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")
    response.encoding = "utf-8"
    lines = [line.removeprefix("data:") for line in response.text.split("\n") if line.startswith("data:")]
    return [json.loads(line) for line in lines]


def billed(model: ModelStub) -> list[Billed]:
    assert all(call.status == 200 for call in model.calls)
    return [(call.provider, call.model, call.input_tokens, call.output_tokens) for call in model.calls]


def node(executed: list[dict[str, Any]], position: int = -1) -> dict[str, Any]:
    data: dict[str, Any] = executed[position]["data"]
    return data


def tokens(usage: dict[str, Any]) -> tuple[int, int]:
    return usage["input_tokens"], usage["output_tokens"]


@pytest.mark.parametrize("flow", BILLED)
def test_a_flow_answers_and_the_model_bills(
    flowise: RunningFlowise, flowise_model: ModelStub, flow: str
) -> None:
    answer = predict(flowise, flow)
    assert answer["question"] == QUESTION
    assert answer["text"]
    assert billed(flowise_model) == BILLED[flow]


@pytest.mark.parametrize("flow", BILLED)
def test_a_flow_streams_and_the_model_bills_the_same(
    flowise: RunningFlowise, flowise_model: ModelStub, flow: str
) -> None:
    events = stream(flowise, flow)
    assert events[-1] == {"event": "end", "data": "[DONE]"}
    assert billed(flowise_model) == BILLED[flow]


@pytest.mark.parametrize("flow", CLASSIC)
def test_a_classic_flow_reports_usage_only_when_evaluated(
    flowise: RunningFlowise, flowise_model: ModelStub, flow: str
) -> None:
    assert not {"metrics", "agentFlowExecutedData", "usage"} & predict(flowise, flow).keys()
    flowise_model.reset()
    answer = predict(flowise, flow, evaluation=True, evaluationRunId=str(uuid.uuid4()))
    metrics = [json.loads(item) for item in answer["metrics"] if isinstance(item, str)]
    reported = [
        ("openai", item["model"], item["promptTokens"], item["completionTokens"])
        for item in metrics
        if "promptTokens" in item
    ]
    assert reported == billed(flowise_model) == BILLED[flow]
    assert {"provider": "ChatOpenAI"} in metrics


def test_an_llm_node_reports_what_was_billed(flowise: RunningFlowise, flowise_model: ModelStub) -> None:
    llm = node(predict(flowise, "agentflow_llm")["agentFlowExecutedData"])
    assert (llm["name"], llm["input"]["llmModel"]) == ("llmAgentflow", "chatOpenAI")
    assert llm["input"]["llmModelConfig"]["modelName"] == OPENAI_MODEL
    assert tokens(llm["output"]["usageMetadata"]) == (5, 13)

    flowise_model.reset()
    executed = [
        event["data"]
        for event in stream(flowise, "agentflow_llm")
        if event["event"] == "agentFlowExecutedData"
    ]
    assert tokens(node(executed[-1])["output"]["usageMetadata"]) == (5, 13)
    assert billed(flowise_model) == [(*MINI, 5, 13)]


def test_anthropic_is_reported_one_token_over_where_the_node_streams(flowise: RunningFlowise) -> None:
    executed = predict(flowise, "agentflow_two_providers")["agentFlowExecutedData"]
    assert tokens(node(executed, 1)["output"]["usageMetadata"]) == (5, 13)
    assert node(executed, 2)["input"]["llmModel"] == "chatAnthropic"
    assert tokens(node(executed, 2)["output"]["usageMetadata"]) == (15, 18 + 1)


def test_two_providers_are_reported_as_billed_where_the_nodes_do_not_stream(
    flowise: RunningFlowise, flowise_model: ModelStub
) -> None:
    executed = predict(flowise, "agentflow_two_providers_unstreamed")["agentFlowExecutedData"]
    assert tokens(node(executed, 1)["output"]["usageMetadata"]) == (5, 13)
    assert tokens(node(executed, 2)["output"]["usageMetadata"]) == (15, 18)
    assert [call.streamed for call in flowise_model.calls] == [False, False]


def test_an_agent_with_a_tool_reports_wrong_totals_but_right_parts(flowise: RunningFlowise) -> None:
    agent = node(predict(flowise, "agentflow_agent")["agentFlowExecutedData"])
    assert agent["name"] == "agentAgentflow"
    usage = agent["output"]["usageMetadata"]
    # 15 + 17 + 16 + 13 = 61 were billed
    assert (usage["total_tokens"], usage["tool_call_tokens"]) == (90, 61)
    before = [
        tokens(message["usage_metadata"])
        for message in agent["input"]["messages"]
        if "usage_metadata" in message
    ]
    assert [*before, tokens(usage)] == [(15, 17), (16, 13)]


def test_structured_output_reports_no_usage(flowise: RunningFlowise) -> None:
    llm = node(predict(flowise, "agentflow_structured")["agentFlowExecutedData"])
    assert llm["output"]["answer"] == "2+3"
    assert "usageMetadata" not in llm["output"]


def test_a_summarising_memory_hides_its_own_call(flowise: RunningFlowise) -> None:
    llm = node(predict(flowise, "agentflow_summary")["agentFlowExecutedData"])
    assert llm["input"]["llmMemoryType"] == "conversationSummary"
    assert tokens(llm["output"]["usageMetadata"]) == (22, 8)
    assert "usage_metadata" not in json.dumps(llm["input"]["messages"])


def test_an_unpriced_model_has_tokens_and_no_cost(flowise: RunningFlowise) -> None:
    usage = node(predict(flowise, "agentflow_unpriced")["agentFlowExecutedData"])["output"]["usageMetadata"]
    assert tokens(usage) == (5, 13)
    assert "total_cost" not in usage


@pytest.mark.parametrize("streaming", [False, True])
def test_a_protected_flow_runs_for_its_own_key_only(
    flowise: RunningFlowise, flowise_model: ModelStub, streaming: bool
) -> None:
    flow = flowise.flows["protected"]
    for key in (None, "nonsense", flowise.api_key):
        response = post(flowise, flow, key, streaming=streaming)
        assert "Unauthorized" in response.text
        assert response.status_code == (200 if streaming else 500)
    assert flowise_model.calls == []
    assert post(flowise, flow, flowise.flow_key, streaming=streaming).status_code == 200
    assert billed(flowise_model) == [(*MINI, 9, 17)]


def test_a_rate_limited_flow_refuses_in_html(
    flowise: RunningFlowise, flowise_model: ModelStub, rate_limited_flow: Callable[[int], str]
) -> None:
    flow = rate_limited_flow(2)
    assert [post(flowise, flow).status_code for _ in range(2)] == [200, 200]
    refused = post(flowise, flow)
    assert refused.status_code == 429
    assert refused.headers["Content-Type"].startswith("text/html")
    assert refused.text == RATE_LIMIT_MESSAGE
    assert 0 < int(refused.headers["Retry-After"]) <= 600
    assert len(flowise_model.calls) == 2


@pytest.mark.parametrize(
    ("holder", "flows", "executions"),
    [("api_key", 200, 200), ("readonly_key", 200, 200), ("noperm_key", 403, 403), (None, 401, 401)],
)
def test_a_key_reads_what_it_may(
    flowise: RunningFlowise, holder: str | None, flows: int, executions: int
) -> None:
    headers = {"Authorization": f"Bearer {getattr(flowise, holder)}"} if holder else {}
    for path, status in (("chatflows", flows), ("executions", executions)):
        response = requests.get(f"{flowise.url}/api/v1/{path}", headers=headers, timeout=TIMEOUT)
        assert response.status_code == status, path


def test_the_list_of_flows_names_them_all(flowise: RunningFlowise) -> None:
    headers = {"Authorization": f"Bearer {flowise.readonly_key}"}
    listed = requests.get(f"{flowise.url}/api/v1/chatflows", headers=headers, timeout=TIMEOUT).json()
    assert flowise.flows.items() <= {flow["name"]: flow["id"] for flow in listed}.items()
    kinds = {flow["name"]: flow["type"] for flow in listed}
    assert (kinds["llm_chain"], kinds["agentflow_llm"]) == ("CHATFLOW", "AGENTFLOW")


def test_an_unknown_flow_is_not_found(flowise: RunningFlowise, flowise_model: ModelStub) -> None:
    assert post(flowise, str(uuid.uuid4())).status_code == 404
    assert post(flowise, "support-bot").status_code == 400
    assert flowise_model.calls == []
