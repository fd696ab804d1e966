"""The stand-in against exchanges recorded on a real Flowise 3.1.4: same answers, same bills."""

from __future__ import annotations

import json

import pytest
import requests
from recorded import FIXTURES, comparable, frames, load

from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode, RateLimit

FLOWS = (
    Flow("conv_chain"),
    Flow("llm_chain", "llm_chain", template="Answer briefly: {question}"),
    Flow("tool_agent", "tool_agent", (ModelNode(tools=("calculator",)),)),
    Flow("agentflow1", "agentflow"),
    Flow(
        "agentflow2",
        "agentflow",
        (ModelNode(label="Drafter"), ModelNode("claude-haiku-4-5", "Reviewer")),
    ),
    Flow("agentflow_agent", "agentflow", (ModelNode("gpt-4o", tools=("calculator",)),)),
    Flow("agentflow_structured", "agentflow", (ModelNode("gpt-4o", structured=("answer",)),)),
    Flow("agentflow_unpriced", "agentflow", (ModelNode("my-custom-model"),)),
    Flow("protected", "llm_chain", api_key="flow-key"),
    Flow("limited", rate_limit=RateLimit(2, 20, "Too many requests, slow down")),
    Flow("embedded", allowed_origins=("https://ours.example",), origin_error="no embedding here"),
)
NAMES = sorted((flow.name for flow in FLOWS), key=len, reverse=True)
JSON_TYPE = "application/json; charset=utf-8"


@pytest.fixture(scope="module")
def server():
    with FlowiseStandIn(FLOWS, api_key="admin-key") as running:
        running.add_key("noperm-key", ["tools:view"])
        yield running


@pytest.fixture(autouse=True)
def forget(server):
    server.reset()


def post(server, flow, body, **more):
    flow_id = server.flow_id(flow) if flow in NAMES else flow
    return requests.post(f"{server.url}/api/v1/prediction/{flow_id}", json=body, timeout=60, **more)


def get(server, path, key=None, **query):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return requests.get(f"{server.url}/api/v1/{path}", params=query, headers=headers, timeout=60)


def flow_of(name):
    short = name.removeprefix("prediction_").removeprefix("evaluation_")
    return next(flow for flow in NAMES if short == flow or short.startswith(flow + "_"))


def billed(server):
    return [
        [call.provider, call.model, call.input_tokens, call.output_tokens, call.status, call.streamed]
        for call in server.billed
    ]


def same_headers(response, recorded):
    assert response.status_code == recorded["status"]
    assert response.headers["Content-Type"] == recorded["content_type"]


PREDICTIONS = sorted(
    path.stem
    for path in FIXTURES.glob("prediction_*.json")
    if not path.stem.startswith(
        (
            "prediction_bad_id",
            "prediction_body",
            "prediction_origin",
            "prediction_protected",
            "prediction_rate",
        )
    )
)


def test_enough_was_recorded():
    assert len(PREDICTIONS) == 33


def test_the_comparison_sees_a_wrong_count_a_missing_key_and_a_frame_out_of_order():
    recorded = load("prediction_agentflow1_nonstream")["response"]["json"]
    wrong = json.loads(json.dumps(recorded).replace('"output_tokens": 13', '"output_tokens": 12'))
    assert comparable(wrong) != comparable(recorded)
    assert comparable({k: v for k, v in recorded.items() if k != "sessionId"}) != comparable(recorded)
    metrics = load("prediction_evaluation_conv_chain")["response"]["json"]
    wrong = json.loads(json.dumps(metrics).replace('promptTokens\\":48', 'promptTokens\\":47'))
    assert comparable(wrong) != comparable(metrics)
    stream = frames(load("prediction_agentflow1_stream")["response"]["text"])
    assert comparable(stream[::-1]) != comparable(stream)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_prediction_answers_and_bills_as_recorded(server, name):
    recorded = load(name)
    response = post(server, flow_of(name), recorded["request"]["body"])
    expected = recorded["response"]
    same_headers(response, expected)
    if "json" in expected:
        assert comparable(response.json()) == comparable(expected["json"])
        assert list(response.json()) == list(expected["json"])
    else:
        assert comparable(frames(response.content.decode())) == comparable(frames(expected["text"]))
        for header in ("Cache-Control", "X-Accel-Buffering"):
            assert response.headers[header] == expected["headers"][header]
    assert billed(server) == recorded["billed"]


@pytest.mark.parametrize(
    "name, body, kind",
    [
        ("empty_body", b"", "application/json"),
        ("json_array", b'["hi"]', "application/json"),
        ("json_string", b'"hi"', "application/json"),
        ("malformed_json", b'{"question": "hi', "application/json"),
        ("missing_question", b"{}", "application/json"),
        ("no_content_type", b'{"question":"hi"}', None),
        ("form", b"question=hi+there", "application/x-www-form-urlencoded"),
        ("question_number", b'{"question":5}', "application/json"),
        ("empty_question", b'{"question":""}', "application/json"),
    ],
)
def test_an_odd_body_is_taken_as_recorded(server, name, body, kind):
    recorded = load(f"prediction_body_{name}")
    response = requests.post(
        f"{server.url}/api/v1/prediction/{server.flow_id('conv_chain')}",
        data=body,
        headers={"Content-Type": kind} if kind else {},
        timeout=60,
    )
    same_headers(response, recorded["response"])
    if response.status_code == 400:
        assert set(response.json()) == set(recorded["response"]["json"])
        assert billed(server) == []
    else:
        assert comparable(response.json()) == comparable(recorded["response"]["json"])
        assert len(server.billed) == 1
        assert billed(server) == recorded.get("billed", billed(server))


@pytest.mark.parametrize(
    "name, flow, body, headers",
    [
        ("bad_id_not_uuid", "not-a-uuid", {"question": "hi"}, {}),
        ("bad_id_unknown_uuid", "c29ad7a0-bf93-4465-9a2f-0ce79aef7667", {"question": "hi"}, {}),
        ("protected_no_key", "protected", {"question": "hi"}, {}),
        ("protected_no_key_stream", "protected", {"question": "hi", "streaming": True}, {}),
        ("origin_denied", "embedded", {"question": "hi"}, {"Origin": "https://other.example"}),
        (
            "origin_denied_stream",
            "embedded",
            {"question": "hi", "streaming": True},
            {"Origin": "https://other.example"},
        ),
    ],
)
def test_a_refusal_is_as_recorded_and_bills_nothing(server, name, flow, body, headers):
    expected = load(f"prediction_{name}")["response"]
    response = post(server, flow, body, headers=headers)
    same_headers(response, expected)
    if "json" in expected:
        assert comparable(response.json()) == comparable(expected["json"])
    else:
        assert response.text == expected["text"]
    assert server.billed == []


@pytest.mark.parametrize("streaming", [False, True])
def test_the_rate_limit_is_as_recorded(server, streaming):
    expected = load("prediction_ratelimit_" + ("stream_exceeded" if streaming else "3_of_2"))["response"]
    left = [post(server, "limited", {"question": "hi"}).headers["X-RateLimit-Remaining"] for _ in range(2)]
    assert left == ["1", "0"]
    response = post(server, "limited", {"question": "hi", "streaming": streaming})
    same_headers(response, expected)
    assert response.text == expected["text"]
    for header in ("X-RateLimit-Limit", "X-RateLimit-Remaining"):
        assert response.headers[header] == expected["headers"][header]
    assert 1 <= int(response.headers["Retry-After"]) <= 20
    assert int(response.headers["X-RateLimit-Reset"]) > 1_700_000_000
    assert len(server.billed) == 2


@pytest.mark.parametrize(
    "name, path, key",
    [
        ("chatflows_none", "chatflows", None),
        ("chatflows_noperm", "chatflows", "noperm-key"),
        ("chatflow_by_id_none", "chatflows/{conv_chain}", None),
        ("chatflow_by_id_noperm", "chatflows/{conv_chain}", "noperm-key"),
        ("chatflow_by_bad_id_admin", "chatflows/9f6c6b1e-0000-4000-8000-000000000000", "admin-key"),
        ("chatmessage_none", "chatmessage/{conv_chain}", None),
        ("executions_none", "executions", None),
        ("executions_noperm", "executions", "noperm-key"),
        ("execution_by_bad_id_admin", "executions/9f6c6b1e-0000-4000-8000-000000000000", "admin-key"),
        ("ping_none", "ping", None),
        ("version_none", "version", None),
        ("chatflows_streaming_none", "chatflows-streaming/{conv_chain}", None),
    ],
)
def test_an_endpoint_answers_as_recorded(server, name, path, key):
    expected = load(f"endpoint_{name}")["response"]
    response = get(server, path.format(conv_chain=server.flow_id("conv_chain")), key)
    same_headers(response, expected)
    if "json" in expected:
        assert comparable(response.json()) == comparable(expected["json"])
    else:
        assert response.text == expected["text"]


def test_an_unknown_route_is_a_page_of_html(server):
    expected = load("unknown_route")["response"]
    response = get(server, "no-such-route", "admin-key")
    assert response.status_code == expected["status"] == 200
    assert response.headers["Content-Type"].lower() == expected["content_type"].lower()
    assert response.text.startswith("<!DOCTYPE html>")


def test_a_flow_record_has_the_recorded_keys_and_types(server):
    expected = load("endpoint_chatflow_by_id_admin")["response"]["json"]
    record = get(server, f"chatflows/{server.flow_id('conv_chain')}", "admin-key").json()
    assert list(record) == list(expected)
    nullable = {"analytic"}
    for key in set(record) - nullable:
        assert type(record[key]) is type(expected[key]), key


@pytest.mark.parametrize("name", ["conv_chain", "llm_chain", "tool_agent", "agentflow2", "agentflow_agent"])
def test_flow_data_is_built_like_the_recorded_graph(server, name):
    expected = load("flow_graphs")[name]
    graph = json.loads(get(server, f"chatflows/{server.flow_id(name)}", "admin-key").json()["flowData"])
    assert set(graph) == {"nodes", "edges", "viewport"}
    ours = {node["id"]: node for node in graph["nodes"]}
    assert set(ours) == {node["id"] for node in expected}
    for node in expected:
        mine = ours[node["id"]]
        assert sorted(mine) == node["keys"]
        assert {*node["data_keys"]} - {*mine["data"]} <= {"color", "credential", "hideInput"}
        assert mine["data"]["name"] == node["name"]
        assert mine["data"]["category"] == node["category"]
        assert set(mine["data"]["inputs"]) <= {*node["inputs"], "q"}
        for key, value in mine["data"]["inputs"].items():
            if key.endswith("Model") or key in ("modelName", "model", "maxTokens", "tools", "memory"):
                assert value == node["inputs"][key], key
            if key.endswith("ModelConfig"):
                recorded = {k: v for k, v in node["inputs"][key].items() if k != "basepath"}
                assert value | {"FLOWISE_CREDENTIAL_ID": ""} == recorded | {"FLOWISE_CREDENTIAL_ID": ""}
    for edge in graph["edges"]:
        assert {"id", "source", "sourceHandle", "target", "targetHandle", "type"} <= set(edge)
        assert edge["source"] in ours
        assert edge["target"] in ours


def test_messages_are_kept_as_recorded(server):
    body = {"question": "hello", "chatId": "ep-sess"}
    answer = post(server, "conv_chain", body).json()
    path = f"chatmessage/{server.flow_id('conv_chain')}"
    stored = get(server, path, "noperm-key", chatId="ep-sess", order="ASC").json()
    expected = load("endpoint_chatmessage_admin")["response"]["json"]
    assert comparable(stored) == comparable(expected)
    assert stored[1]["id"] == answer["chatMessageId"]
    response = requests.delete(
        f"{server.url}/api/v1/{path}",
        params={"sessionId": "ep-sess"},
        headers={"Authorization": "Bearer noperm-key"},
        timeout=60,
    )
    assert response.json() == {"raw": [], "affected": 2}
    assert set(response.json()) == set(
        load("endpoint_chatmessage_delete_sessionid_admin")["response"]["json"]
    )
    assert get(server, path, "noperm-key", chatId="ep-sess").json() == []


def test_an_execution_is_kept_as_recorded(server):
    body = {"question": "hello", "overrideConfig": {"sessionId": "ep-sess-a"}}
    execution_id = post(server, "agentflow2", body).json()["executionId"]
    stored = get(server, f"executions/{execution_id}", "admin-key").json()
    expected = load("endpoint_execution_by_id_admin")["response"]["json"]
    assert comparable(stored) == comparable(expected)


def test_a_failed_execution_still_tells_what_its_finished_nodes_used(server):
    body = {
        "question": "[[fail:400@claude-haiku-4-5]] go",
        "overrideConfig": {"sessionId": "partial-35e37e73"},
    }
    assert post(server, "agentflow2", body).status_code == 500
    found = get(server, "executions", "admin-key", sessionId="partial-35e37e73").json()
    expected = load("executions_after_partial_failure")["response"]["json"]
    found["data"][0]["agentflow"]["flowData"] = "{}"
    assert comparable(found) == comparable(expected)
    assert get(server, f"chatmessage/{server.flow_id('agentflow2')}", "admin-key").json() == []
