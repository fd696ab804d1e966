"""Flows by id and by name, what a key may see, and the rest of Flowise's API."""

from __future__ import annotations

import json

import pytest
import requests

from genops_ctx import governance_context, instrument_flowise
from genops_ctx.core.effects import drive
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.providers import errors
from genops_ctx.providers.flows import FlowDirectory
from genops_ctx.providers.transport import Limits, Transport
from genops_ctx.testing import Flow, FlowiseStandIn

from .raw_server import RawServer, whole

TWIN = "99999999-3333-4444-8555-666666666666"
FLOWS = (
    Flow("support-v1", "agentflow"),
    Flow("support-v2", "agentflow"),
    Flow("twin", "llm_chain"),
    Flow("twin", "llm_chain", id=TWIN),
    Flow("Überraschung 🎁", "agentflow"),
)


@pytest.fixture
def server():
    with FlowiseStandIn(FLOWS) as running:
        yield running


@pytest.fixture
def adapter(server):
    return instrument_flowise(server.url, timeout=60, metering="estimate")


def gets(server):
    return [seen.path for seen in server.requests if seen.method == "GET"]


@pytest.mark.parametrize("name", ["support-v1", " support-v1 ", "Überraschung 🎁"])
def test_a_flow_by_its_name(server, adapter, name):
    charge = adapter.predict_flow(name, "How many?").charge
    assert charge.name == name.strip()
    assert charge.flow == server.flow_id(name.strip())


def test_a_flow_by_its_id_goes_by_its_name_in_the_books(server, adapter):
    flow = server.flow_id("support-v1")
    assert adapter.predict_flow(flow, "How many?").charge.name in ("support-v1", flow)
    # by now its definition was read
    assert adapter.predict_flow(flow.upper(), "How many?").charge.name == "support-v1"
    assert adapter.predict_flow(flow_id=flow, question="How many?").charge.flow == flow


def test_a_name_that_two_flows_have(server, adapter):
    with pytest.raises(ConfigurationError) as caught:
        adapter.predict_flow("twin", "How many?")
    assert TWIN in str(caught.value)
    assert adapter.predict_flow(TWIN, "How many?").charge.flow == TWIN
    assert all("prediction" not in path for path in gets(server))


def test_a_name_that_nearly_exists(adapter):
    with pytest.raises(errors.FlowiseNotFoundError, match="did you mean 'support-v1'"):
        adapter.predict_flow("suport-v1", "How many?")
    with pytest.raises(errors.FlowiseNotFoundError) as caught:
        adapter.predict_flow("x" * 5_000, "How many?")
    assert len(str(caught.value)) < 500
    assert "get_chatflows" in str(caught.value)


@pytest.mark.parametrize("bad", ["", "  ", 7, b"x", ["x"]])
def test_a_bad_reference(server, adapter, bad):
    with pytest.raises(ConfigurationError):
        adapter.predict_flow(bad, "How many?")
    assert server.requests == []


def test_no_reference_or_two(server, adapter):
    with pytest.raises(ConfigurationError, match="chatflow_id"):
        adapter.predict_flow(question="How many?")
    with pytest.raises(ConfigurationError, match="pass one of them"):
        adapter.predict_flow("support-v1", "How many?", flow_id="support-v2")


@pytest.mark.parametrize("path", ["../../admin", "a/b", "..", "%2e%2e", "x?y=1", "x#y"])
def test_a_reference_is_never_a_path(server, adapter, path):
    with pytest.raises(errors.FlowiseNotFoundError):
        adapter.predict_flow(path, "How many?")
    assert all(seen.path.startswith("/api/v1/chatflows") for seen in server.requests)


def test_look_ups_are_remembered(server, adapter):
    for _ in range(5):
        adapter.predict_flow("support-v1", "How many?")
    flow = server.flow_id("support-v1")
    assert gets(server) == ["/api/v1/chatflows", f"/api/v1/chatflows/{flow}"]


def test_a_flow_that_is_new_is_found(server, adapter):
    adapter.predict_flow("support-v1", "How many?")
    new = Flow("brand-new", "agentflow")
    server.flows += (new,)
    server._by_id[new.id] = new
    assert adapter.predict_flow("brand-new", "How many?")["text"]


def test_what_was_known_is_gone_by_while_flowise_cannot_be_asked():
    """So a call of a Flowise that has died is sent, fails, and is seen by a breaker."""
    now = [0.0]
    directory = FlowDirectory(lambda: now[0])
    told = {
        "/api/v1/chatflows": [{"id": TWIN, "name": "support-v1", "type": "CHATFLOW"}],
        f"/api/v1/chatflows/{TWIN}": {"id": TWIN, "name": "support-v1", "type": "CHATFLOW"},
    }
    asked, alive = [], [True]

    def fetch(effect):
        asked.append(effect.path)
        if not alive[0]:
            raise errors.FlowiseConnectionError("gone")
        return told[effect.path]

    def known():
        flow = drive(directory.resolve("support-v1", "http://x", Limits()), fetch)
        return flow.id, drive(directory.definition(flow.id, "http://x", Limits()), fetch).name

    assert known() == (TWIN, "support-v1")
    alive[0] = False
    now[0] = 301.0
    assert known() == known() == (TWIN, "support-v1")
    assert len(asked) == 4, "it is asked again after 30 seconds, not with each call"
    now[0] = 332.0
    alive[0] = True
    told[f"/api/v1/chatflows/{TWIN}"]["name"] = "support-v2"
    assert known() == (TWIN, "support-v2")


def test_what_is_remembered_is_forgotten_in_time(server):
    now = [0.0]
    directory = FlowDirectory(lambda: now[0])
    session = requests.Session()
    transport = Transport(server.url, None, lambda: session)

    def fetch(effect):
        return transport.get_json(effect.method, effect.path, effect.limits, what=effect.what)

    def resolve():
        assert drive(directory.resolve("support-v1", server.url, Limits()), fetch).name == "support-v1"

    def define():
        flow = server.flow_id("support-v1")
        assert drive(directory.definition(flow, server.url, Limits()), fetch).name == "support-v1"

    for _ in range(3):
        resolve()
        define()
    assert len(gets(server)) == 2
    now[0] = 61.0
    resolve()
    assert len(gets(server)) == 3
    now[0] = 301.0
    define()
    assert len(gets(server)) == 4


# -- keys --------------------------------------------------------------------------------------------


def test_a_key_without_the_permission_to_read_flows(server):
    """Predictions need no permission: by its id a flow runs, unpriced before and estimated after."""
    server.add_key("writes-only")
    adapter = instrument_flowise(server.url, "writes-only", metering="estimate")
    flow = server.flow_id("support-v1")
    with governance_context("test", budget=1) as context:
        answer = adapter.predict_flow(flow, "How many?")
        assert answer.charge.exactness == "exact"  # an AgentFlow's answer says all
        twin = adapter.predict_flow(TWIN, "How many?")
        assert twin.charge.exactness == "unknown"
        assert context.reserved == 0
    with pytest.raises(errors.FlowisePermissionError, match="its id works without"):
        adapter.predict_flow("support-v1", "How many?")
    with pytest.raises(errors.FlowisePermissionError, match="chatflows:view"):
        adapter.get_chatflows()
    streamed = adapter.predict_flow(flow, "How many?", stream=True)
    assert list(streamed)[-1]["event"] == "end"


def test_no_key_and_a_wrong_one(server):
    server.add_key("right", ("chatflows:view",))
    for key in (None, "wrong"):
        adapter = instrument_flowise(server.url, key)
        with pytest.raises(errors.FlowiseAuthenticationError, match="FLOWISE_API_KEY"):
            adapter.get_chatflows()
        with pytest.raises(errors.FlowiseAuthenticationError):
            adapter.predict_flow("support-v1", "How many?")
        with pytest.raises(errors.FlowiseAuthenticationError):
            adapter.get_chat_messages(TWIN)


def test_two_keys_see_flows_of_their_own(server):
    server.add_key("sees", ("chatflows:view",))
    server.add_key("blind")
    assert instrument_flowise(server.url, "sees").get_chatflow("support-v1")["name"] == "support-v1"
    with pytest.raises(errors.FlowisePermissionError):
        instrument_flowise(server.url, "blind").get_chatflow("support-v1")


# -- the rest of the API -------------------------------------------------------------------------------


def test_flows_and_messages(server, adapter):
    assert [flow["name"] for flow in adapter.get_chatflows()] == [flow.name for flow in FLOWS]
    flow = adapter.get_chatflow("support-v1")
    assert json.loads(flow["flowData"])["nodes"]
    for session in ("a", "b"):
        adapter.predict_flow("support-v1", f"How many of {session}?", sessionId=session)
    assert len(adapter.get_chat_messages("support-v1")) == 4
    messages = adapter.get_chat_messages("support-v1", "a")
    assert [message["content"] for message in messages][0] == "How many of a?"
    assert adapter.get_chat_messages("support-v1", sessionId="a") == messages
    assert adapter.delete_chat_messages("support-v1", session_id="a")["affected"] == 2
    assert len(adapter.get_chat_messages("support-v1")) == 2
    assert adapter.delete_chat_messages("support-v1")["affected"] == 2


def test_nothing_but_predictions_is_booked(server, adapter):
    with governance_context("test", budget="0.0000001") as context:
        adapter.get_chatflows()
        adapter.get_chatflow("support-v1")
        adapter.get_chat_messages("support-v1")
        adapter.delete_chat_messages("support-v1")
        assert context.calls == 0
        with pytest.raises(errors.FlowiseNotFoundError):
            adapter.get_chatflow("11111111-2222-4333-8444-555555555555")
        with pytest.raises(ConfigurationError, match="session_id"):
            adapter.get_chatflows(sesion_id="x")
        with pytest.raises(ConfigurationError):
            adapter.get_chat_messages("support-v1", "a", sessionId="b")
        adapter.predict_flow("support-v1", "How many?")


@pytest.mark.parametrize(
    "body",
    [b"null", b"[]", b"{}", b'"x"', b"[1, null, []]", b'[{"id": null}]', b'{"data": 5}', b'{"data": [3]}'],
)
def test_strange_answers_of_the_flow_list(body):
    class Strange(RawServer):
        def _serve(self, connection):
            connection.recv(65536)
            connection.sendall(whole(body, "Connection: close"))
            connection.close()

    with Strange(lambda got: []) as raw:
        adapter = instrument_flowise(raw.url, timeout=60)
        assert adapter.get_chatflows() in ([], [{"id": None}])
        with pytest.raises(errors.FlowiseNotFoundError):
            adapter.predict_flow("by-name", "How many?")
        assert isinstance(adapter.get_chat_messages(TWIN), list)
        assert isinstance(adapter.delete_chat_messages(TWIN), dict)
        try:
            assert isinstance(adapter.get_chatflow(TWIN), dict)
        except errors.FlowiseAnswerError:
            assert body != b"{}"


# -- what is sent ---------------------------------------------------------------------------------------


def test_what_flowise_gets():
    with RawServer(lambda got: [whole(b'{"text": "Four."}')]) as raw:
        adapter = instrument_flowise(raw.url, metering="estimate")
        override = {"temperature": 0.1}
        adapter.predict_flow(
            TWIN,
            "How many?",
            sessionId="s1",
            overrideConfig=override,
            history=[{"role": "user", "message": "Hi"}, {"role": "assistant", "content": "Hello"}],
            chatId="c1",
            uploads=[{"type": "url", "data": "https://example.com/a.png"}],
        )
        adapter.predict_flow(TWIN, form={"a": 1})
        adapter.predict_flow(TWIN, "Streamed", stream=True).close()
    first, second, third = (json.loads(got.body) for got in raw.posts)
    assert override == {"temperature": 0.1}
    assert first == {
        "question": "How many?",
        "chatId": "c1",
        "overrideConfig": {"temperature": 0.1, "sessionId": "s1"},
        "history": [
            {"role": "userMessage", "content": "Hi"},
            {"role": "apiMessage", "content": "Hello"},
        ],
        "uploads": [{"type": "url", "data": "https://example.com/a.png"}],
    }
    assert (second["form"], "question" in second) == ({"a": 1}, False)
    assert third["streaming"] is True
    assert "stream" not in third
