"""The stand-in as a tool for tests: sessions, keys, faults on request, what it remembers and bills."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from recorded import frames

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.testing import (
    GUIDE_FLOWS,
    BilledCall,
    Flow,
    FlowiseStandIn,
    ModelNode,
    ModelStub,
)

AGENT = Flow("agent", "agentflow", (ModelNode("gpt-4o", tools=("calculator",)),))


@pytest.fixture(scope="module")
def server():
    flows = [
        Flow("chat"),
        Flow("llm", "agentflow"),
        AGENT,
        Flow("two", "agentflow", (ModelNode(label="A"), ModelNode(label="B"))),
        Flow("spent", predictions_used_up=True),
        Flow("protected", api_key="flow-key"),
        Flow("embedded", allowed_origins=("https://ours.example",)),
    ]
    with FlowiseStandIn(flows) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(server):
    server.reset()


def url_of(server, flow):
    return f"{server.url}/api/v1/prediction/{server.flow_id(flow)}"


def ask(server, flow, question="What is two plus three?", timeout=30, headers=None, stream=False, **body):
    body = {"question": question, **body}
    return requests.post(url_of(server, flow), json=body, timeout=timeout, headers=headers, stream=stream)


def no_new_threads(before, within=30.0):
    deadline = time.monotonic() + within
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


# Sessions


@pytest.mark.parametrize("flow, first, second", [("chat", 46, 57), ("llm", 3, 14)])
def test_a_session_remembers_what_was_said(server, flow, first, second):
    # The conversation chain's system prompt is 43 words. "I am Ada" is 3; the reply to it
    # "Stub reply from gpt-4o-mini to: I am Ada" 8; "Who am I?" 3: 43 + 3 + 8 + 3 = 57.
    session = {"overrideConfig": {"sessionId": "s-1"}}
    answer = ask(server, flow, "I am Ada", **session).json()
    assert (answer["sessionId"], answer["chatId"]) == ("s-1", "s-1")
    ask(server, flow, "Who am I?", **session)
    ask(server, flow, "I am Ada", overrideConfig={"sessionId": "s-2"})
    assert [call.input_tokens for call in server.billed] == [first, second, first]


def test_deleted_messages_are_forgotten_by_the_memory_too(server):
    session = {"overrideConfig": {"sessionId": "s-1"}}
    ask(server, "chat", "I am Ada", **session)
    path = f"{server.url}/api/v1/chatmessage/{server.flow_id('chat')}"
    assert requests.delete(path, params={"sessionId": "s-1"}, timeout=30).json()["affected"] == 2
    ask(server, "chat", "I am Ada", **session)
    assert [call.input_tokens for call in server.billed] == [46, 46]


def test_messages_of_an_evaluation_are_marked(server):
    ask(server, "chat", evaluation=True, evaluationRunId="r")
    path = f"{server.url}/api/v1/chatmessage/{server.flow_id('chat')}"
    found = requests.get(path, params={"chatType": "EVALUATION", "order": "DESC"}, timeout=30).json()
    assert [message["role"] for message in found] == ["apiMessage", "userMessage"]
    assert requests.get(path, params={"chatType": "EXTERNAL"}, timeout=30).json() == []


# What is billed, against what is reported


def test_an_agent_node_reports_wrong_totals_and_its_messages_hold_the_rest(server):
    data = ask(server, "agent").json()["agentFlowExecutedData"][1]["data"]
    reported = data["output"]["usageMetadata"]
    assert (reported["input_tokens"], reported["output_tokens"], reported["total_tokens"]) == (16, 13, 90)
    between = [m["usage_metadata"] for m in data["input"]["messages"] if "usage_metadata" in m]
    assert [(usage["input_tokens"], usage["output_tokens"]) for usage in between] == [(15, 17)]
    assert server.billed == [
        BilledCall("openai", "gpt-4o", 15, 17, streamed=True),
        BilledCall("openai", "gpt-4o", 16, 13, streamed=True),
    ]


def test_an_anthropic_node_reports_one_token_too_many_while_it_streams():
    nodes = [
        ModelNode("claude-haiku-4-5", "Streams"),
        ModelNode("claude-haiku-4-5", "Does not", streaming=False),
    ]
    flows = [Flow(node.label, "agentflow", (node,)) for node in nodes]
    with FlowiseStandIn(flows) as server:
        for name, extra in (("Streams", 1), ("Does not", 0)):
            server.reset()
            data = ask(server, name).json()["agentFlowExecutedData"][1]["data"]
            reported = data["output"]["usageMetadata"]["output_tokens"]
            assert reported - server.billed[0].output_tokens == extra


def test_cached_and_reasoning_tokens_are_reported():
    flow = Flow("f", "agentflow", (ModelNode("gpt-cached-reason"),))
    with FlowiseStandIn([flow]) as server:
        data = ask(server, "f").json()["agentFlowExecutedData"][1]["data"]
        usage = data["output"]["usageMetadata"]
        assert usage["input_token_details"] == {"cache_read": 4}
        assert usage["output_token_details"] == {"reasoning": 5}
        billed = server.billed[0]
        assert (billed.input_tokens, billed.cache_read_tokens) == (5, 4)
        assert (billed.output_tokens, billed.reasoning_tokens) == (usage["output_tokens"], 5)


def test_a_nodes_ceiling_holds():
    flow = Flow("f", "agentflow", (ModelNode(max_tokens=20),))
    with FlowiseStandIn([flow]) as server:
        answer = ask(server, "f", "[[long:200]] go").json()
        assert len(answer["text"].split()) == 17
        assert server.billed[0].output_tokens == 20
        record = requests.get(f"{server.url}/api/v1/chatflows/{flow.id}", timeout=30).json()
        node = json.loads(record["flowData"])["nodes"][1]
        assert node["data"]["inputs"]["llmModelConfig"]["maxTokens"] == "20"


def test_a_shared_stub_shares_the_bill():
    stub = ModelStub()
    with FlowiseStandIn([Flow("f")], model_stub=stub) as server:
        ask(server, "f")
        assert server.billed == stub.calls == [BilledCall("openai", "gpt-4o-mini", 48, 13, streamed=True)]
        assert server.model is stub


def test_a_client_that_leaves_a_stream_stops_no_model(server):
    with ask(server, "two", "[[sleep:0.1]] go", streaming=True, stream=True) as response:
        next(response.iter_content(16))
    assert len(server.model.wait_for(2)) == 2


# Keys and refusals


def test_without_keys_every_request_is_let_in(server):
    listed = requests.get(f"{server.url}/api/v1/chatflows", timeout=30)
    assert [flow["name"] for flow in listed.json()] == [flow.name for flow in server.flows]
    assert requests.get(f"{server.url}/api/v1/executions", timeout=30).json() == {"data": [], "total": 0}


def test_keys_hold_permissions():
    with FlowiseStandIn(api_key="admin") as server:
        server.add_key("reader", ["agentflows:view"])

        def status(path, key, method="GET"):
            headers = {"Authorization": f"Bearer {key}"}
            return requests.request(
                method, f"{server.url}/api/v1/{path}", headers=headers, timeout=30
            ).status_code

        messages = f"chatmessage/{server.flow_id('customer-support-v1')}"
        assert [status("chatflows", key) for key in ("admin", "reader", "wrong")] == [200, 200, 401]
        assert [status("executions", key) for key in ("admin", "reader", "wrong")] == [200, 403, 401]
        assert [status(messages, key, "DELETE") for key in ("reader", "wrong")] == [200, 401]
        assert ask(server, "customer-support-v1").status_code == 200


def test_a_flows_own_key_is_the_only_one_it_takes(server):
    assert ask(server, "protected", headers={"Authorization": "Bearer other"}).status_code == 500
    assert server.billed == []
    assert ask(server, "protected", headers={"Authorization": "Bearer flow-key"}).status_code == 200


def test_an_allowed_or_absent_origin_passes(server):
    assert ask(server, "embedded", headers={"Origin": "https://ours.example"}).status_code == 200
    assert ask(server, "embedded").status_code == 200
    assert ask(server, "embedded", headers={"Origin": "https://x.example"}).status_code == 403


def test_a_spent_plan_answers_402(server):
    assert ask(server, "spent").status_code == 402
    assert [event["event"] for event in frames(ask(server, "spent", streaming=True).text)] == ["error", "end"]
    assert server.billed == []


def test_the_flow_list_can_be_paged_and_chosen_by_type():
    with FlowiseStandIn() as server:

        def listed(**query):
            return requests.get(f"{server.url}/api/v1/chatflows", params=query, timeout=30).json()

        page = listed(page=2, limit=4)
        assert page["total"] == len(GUIDE_FLOWS) == 9
        assert [flow["name"] for flow in page["data"]] == [flow.name for flow in GUIDE_FLOWS[4:8]]
        assert {flow["type"] for flow in listed(type="CHATFLOW")} == {"CHATFLOW"}
        assert len(listed(type="AGENTFLOW")) + len(listed(type="CHATFLOW")) == 9


@pytest.mark.parametrize("flow", [flow.name for flow in GUIDE_FLOWS])
def test_every_flow_of_the_documentation_answers_and_is_billed(flow):
    with FlowiseStandIn() as server:
        answer = ask(server, flow, "Where is my order?").json()
        assert answer["text"].startswith("Stub reply from")
        assert server.billed
        streamed = frames(ask(server, flow, "Where is my order?", streaming=True).text)
        assert streamed[-1] == {"event": "end", "data": "[DONE]"}
        assert "".join(e["data"] for e in streamed if e["event"] == "token") == answer["text"]


# Silence and faults


@pytest.mark.parametrize("flow_id", ["c29ad7a0-bf93-4465-9a2f-0ce79aef7667", "not-a-uuid"])
def test_an_unknown_flow_is_never_answered_when_streaming(server, flow_id):
    before = set(threading.enumerate())
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            f"{server.url}/api/v1/prediction/{flow_id}",
            json={"question": "hi", "streaming": True},
            timeout=(5, 0.2),
        )
    assert no_new_threads(before) == set()


@pytest.mark.parametrize("after_model", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_hanging_answer_is_held_until_the_client_leaves(server, after_model, streaming):
    server.hang_next(after_model=after_model)
    with pytest.raises(requests.ReadTimeout):
        ask(server, "chat", timeout=(5, 0.2), streaming=streaming)
    assert len(server.billed) == int(after_model)
    assert ask(server, "chat").status_code == 200


@pytest.mark.parametrize("after_model", [False, True])
def test_a_dropped_connection_has_no_answer(server, after_model):
    server.drop_next(after_model=after_model)
    with pytest.raises(requests.ConnectionError):
        ask(server, "chat")
    assert len(server.billed) == int(after_model)
    assert ask(server, "chat").status_code == 200


def test_a_failure_can_be_asked_for_several_times(server):
    server.fail_next(503, "down", times=2, headers={"Retry-After": "1"})
    first = ask(server, "chat")
    assert (first.status_code, first.headers["Retry-After"]) == (503, "1")
    assert first.json() == {"statusCode": 503, "success": False, "message": "down", "stack": {}}
    assert [ask(server, "chat").status_code for _ in range(2)] == [503, 200]
    assert len(server.billed) == 1


def test_a_failure_may_be_html_and_wait_for_another_path(server):
    server.fail_next(502, "<h1>Bad gateway</h1>", html=True, on="/ping")
    assert ask(server, "chat").status_code == 200
    reply = requests.get(f"{server.url}/api/v1/ping", timeout=30)
    assert (reply.status_code, reply.headers["Content-Type"]) == (502, "text/html; charset=utf-8")
    assert requests.get(f"{server.url}/api/v1/ping", timeout=30).text == "pong"


def test_a_truncated_stream_ends_in_the_middle_and_spares_json_answers(server):
    server.truncate_next_stream(after=3)
    assert ask(server, "chat").status_code == 200
    received = b""
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        for chunk in ask(server, "chat", streaming=True, stream=True).iter_content(None):
            received += chunk
    assert [event["event"] for event in frames(received.decode())] == ["start", "token", "token"]
    assert len(server.billed) == 2


def test_a_truncated_answer_is_shorter_than_promised(server):
    server.truncate_next_answer(after=10)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        ask(server, "chat")


@pytest.mark.parametrize("streaming, interval", [(False, 0.001), (True, 0.02)])
def test_a_dripping_answer_takes_long(server, streaming, interval):
    server.drip_next(interval)
    began = time.monotonic()
    response = ask(server, "chat", timeout=60, streaming=streaming)
    assert response.status_code == 200
    # 13 frames (start, 10 tokens, metadata, end) at 20 ms, or more than 250 bytes at 1 ms.
    assert time.monotonic() - began >= 0.25


def test_faults_can_be_cleared(server):
    server.fail_next(500)
    server.clear_faults()
    assert ask(server, "chat").status_code == 200


def test_latency_and_sleep_delay_an_answer():
    with FlowiseStandIn([Flow("f")], latency=0.1) as server:
        began = time.monotonic()
        ask(server, "f", "[[sleep:0.1]] go")
        assert time.monotonic() - began >= 0.2


def test_flowise_asks_a_failing_model_seven_times():
    with FlowiseStandIn([Flow("f")], retry_pause=0.02) as server:
        began = time.monotonic()
        assert ask(server, "f", "[[fail:500]] go").status_code == 500
        assert time.monotonic() - began >= 0.12
        assert [call.status for call in server.billed] == [500] * 7


# What it remembers, and its life


def test_requests_are_remembered_by_their_ids_only(server):
    ask(server, "chat", "my secret", streaming=True, overrideConfig={"sessionId": "s-1"}, chatId="c-1")
    seen = server.requests[0]
    assert (seen.method, seen.path) == ("POST", f"/api/v1/prediction/{server.flow_id('chat')}")
    assert (seen.flow_id, seen.session_id, seen.chat_id) == (server.flow_id("chat"), "s-1", "c-1")
    assert seen.streaming
    assert "secret" not in repr(server.requests) + repr(server.billed)


def test_a_flows_id_is_the_same_in_every_run():
    assert Flow("customer-support-v1").id == Flow("customer-support-v1", "agentflow").id
    assert FlowiseStandIn().flow_id("customer-support-v1") == GUIDE_FLOWS[0].id


def test_an_unknown_or_shared_name_is_refused():
    twins = FlowiseStandIn([Flow("f"), Flow("f", id="11111111-1111-4111-8111-111111111111")])
    with pytest.raises(KeyError, match="2 flows are called 'f'"):
        twins.flow_id("f")
    with pytest.raises(KeyError, match="0 flows are called 'g'"):
        twins.flow_id("g")
    with pytest.raises(ConfigurationError, match="same id"):
        FlowiseStandIn([Flow("f"), Flow("f")])


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Flow("f", nodes=()),
        lambda: Flow("f", nodes=(ModelNode(), ModelNode())),
        lambda: Flow("f", nodes=(ModelNode("claude-haiku-4-5"),)),
        lambda: Flow("f", nodes=(ModelNode(tools=("calculator",)),)),
        lambda: Flow("f", "tool_agent", (ModelNode(structured=("a",)),)),
    ],
)
def test_a_flow_that_does_not_fit_together_is_refused(bad):
    with pytest.raises(ConfigurationError, match="flow 'f'"):
        bad()


def test_two_hundred_requests_at_sixteen_threads_mix_nothing(server):
    local = threading.local()

    def one(number):
        session = local.__dict__.setdefault("session", requests.Session())
        flow = ("chat", "llm", "agent", "two")[number % 4]
        body = {"question": f"number{number} [[long:{number}]]", "streaming": number % 3 == 0}
        answer = session.post(url_of(server, flow), json=body, timeout=60)
        assert answer.status_code == 200
        if body["streaming"]:
            events = frames(answer.text)
            assert events[-2]["data"]["question"] == body["question"]
            return "".join(event["data"] for event in events if event["event"] == "token")
        assert answer.json()["question"] == body["question"]
        return answer.json()["text"]

    before = set(threading.enumerate())
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(one, range(1, 201)))
    # In a flow of two nodes the second reads the first one's reply, not the question.
    lengths = [len(text.split()) for number, text in enumerate(texts, 1) if number % 4 != 3]
    assert lengths == [number for number in range(1, 201) if number % 4 != 3]
    # 50 flows of each kind: one call, except two for the agent and two for the flow of two nodes.
    assert len(server.billed) == 300
    assert len(server.requests) == 200
    assert all(call.status == 200 for call in server.billed)
    # Idle connections keep their threads until the server stops: no more than one for each client.
    assert len(set(threading.enumerate()) - before) <= 16


def test_stop_ends_held_streams_and_leaves_no_thread():
    before = set(threading.enumerate())
    server = FlowiseStandIn([Flow("f")]).start()
    idle = requests.Session()
    idle.get(f"{server.url}/api/v1/ping", timeout=30)
    server.hang_next()
    server.drip_next(60)
    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(ask, server, "f", timeout=60) for _ in range(2)]
        while len(server.requests) < 3:
            time.sleep(0.01)
        began = time.monotonic()
        server.stop()
        for each in held:
            assert isinstance(each.exception(60), requests.RequestException)
        assert time.monotonic() - began < 30
    assert set(threading.enumerate()) - before == set()
    idle.close()
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{server.url}/api/v1/ping", timeout=1)
