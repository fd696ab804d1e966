"""Every way a prediction can end: which error comes, what it says, what is booked.

The rows are those of the measured contract of Flowise 3.1.4; what is booked for each is the table in
genops_ctx/core/outcomes.py.
"""

from __future__ import annotations

import pickle
import socket
from dataclasses import dataclass, field

import pytest
import requests

from genops_ctx import GovernanceError, governance_context, instrument_flowise
from genops_ctx.providers import errors
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode, RateLimit

from .bills import nanos_of
from .raw_server import at_most

TWO = (ModelNode("gpt-4o", "First"), ModelNode("claude-haiku-4-5", "Second", streaming=False))
FLOWS = (
    Flow("chain", "llm_chain"),
    Flow("agent", "tool_agent", (ModelNode(tools=("calculator",)),)),
    Flow("two", "agentflow", TWO),
    Flow("locked", "llm_chain", api_key="the-key-of-the-flow"),
    Flow("origin", "llm_chain", allowed_origins=("https://ours.example",)),
    Flow("spent", "llm_chain", predictions_used_up=True),
    Flow("limited", "llm_chain", rate_limit=RateLimit(0, 30)),
)
QUESTION = "How many parcels are on their way?"


@pytest.fixture(scope="module")
def server():
    with FlowiseStandIn(FLOWS) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(server):
    server.reset()


@pytest.fixture
def adapter(server):
    return instrument_flowise(server.url, team="help", timeout=60)


@dataclass
class Ended:
    """A call that failed: its error and the books after it."""

    error: errors.FlowiseError
    context: object

    @property
    def charge(self):
        return self.error.charge


def fail(adapter, flow, question=QUESTION, *, stream=False, **options) -> Ended:
    """Call a flow that fails, under a budget of $1; whatever happens, nothing stays reserved."""
    with governance_context("test", budget=1) as context, pytest.raises(errors.FlowiseError) as caught:
        answer = adapter.predict_flow(flow, question, stream=stream, metering="estimate", **options)
        for _ in answer:
            pass
    assert context.reserved == 0
    error = caught.value
    assert isinstance(error, GovernanceError)
    assert isinstance(error, requests.RequestException)
    assert QUESTION not in f"{error} {error!r}"
    if error.charge is None:
        assert context.calls == 0
    else:
        assert context.calls == 1
        assert context.total_cost == error.charge.cost
        assert error.charge.attribution["team"] == "help"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.charge) == (type(error), str(error), error.charge)
    return Ended(error, context)


def assert_nothing_sent(ended: Ended) -> None:
    assert ended.charge is None
    assert ended.context.total_cost == 0
    assert ended.error.outcome == "not_sent"


def assert_nothing_billed(ended: Ended) -> None:
    assert ended.charge.outcome == "refused"
    assert ended.charge.lines == ()
    assert ended.charge.nanos == 0


def assert_estimated(ended: Ended, outcome: str, *, wrote: bool, model: str = "gpt-4o-mini") -> None:
    """One estimated line whose price is worked out here, from the tokens it says."""
    charge = ended.charge
    assert charge.outcome == outcome
    (line,) = charge.lines
    assert (line.source, line.exactness, line.usage.model) == ("estimated", "estimated", model)
    assert line.usage.input_tokens > 0
    assert (line.usage.output_tokens > 0) is wrote
    assert charge.nanos == line.usage.input_tokens * 150 + line.usage.output_tokens * 600


# -- before it is sent ----------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("stream", [False, True])
def test_nobody_listens(stream):
    port = closed_port()
    adapter = instrument_flowise(f"http://127.0.0.1:{port}", team="help")
    ended = fail(adapter, FLOWS[0].id, stream=stream)
    assert_nothing_sent(ended)
    assert type(ended.error) is errors.FlowiseConnectionError
    assert isinstance(ended.error, requests.ConnectionError)
    assert isinstance(ended.error, ConnectionError)
    assert ended.error.response is None
    assert f"127.0.0.1:{port}" in str(ended.error)
    assert "refused" in str(ended.error)
    assert "FLOWISE_BASE_URL" in str(ended.error)


def test_a_host_that_does_not_exist():
    ended = fail(instrument_flowise("http://flowise.invalid", team="help", timeout=10), FLOWS[0].id)
    assert_nothing_sent(ended)
    assert isinstance(ended.error, requests.ConnectionError)


def test_tls_that_fails(server):
    """HTTPS to a server that speaks plain HTTP: the request never leaves."""
    ended = fail(instrument_flowise(server.url.replace("http:", "https:"), team="help"), FLOWS[0].id)
    assert_nothing_sent(ended)
    assert isinstance(ended.error, requests.ConnectionError)
    assert "TLS" in str(ended.error)
    assert server.requests == []


def test_a_host_that_lets_no_connection_in():
    """A full backlog: the connection is never made, and the time for connecting is what counts."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        queue = [socket.socket() for _ in range(4)]
        for client in queue:
            client.setblocking(False)
            client.connect_ex(silent.getsockname())
        adapter = instrument_flowise(f"http://127.0.0.1:{silent.getsockname()[1]}", team="help")
        with at_most(15):
            ended = fail(adapter, FLOWS[0].id, timeout=(0.2, 60))
        for client in queue:
            client.close()
    assert_nothing_sent(ended)
    assert isinstance(ended.error, requests.Timeout)
    assert isinstance(ended.error, TimeoutError)


# -- refused by Flowise, nothing called ------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    status: int
    kind: type
    html: bool = False
    headers: dict = field(default_factory=dict)


REFUSALS = [
    Refusal(400, errors.FlowiseBadRequestError),
    Refusal(401, errors.FlowiseAuthenticationError),
    Refusal(402, errors.FlowisePlanExhaustedError),
    Refusal(403, errors.FlowisePermissionError),
    Refusal(403, errors.FlowisePermissionError, html=True),
    Refusal(404, errors.FlowiseNotFoundError),
    Refusal(405, errors.FlowiseBadRequestError),
    Refusal(413, errors.FlowiseBadRequestError),
    Refusal(422, errors.FlowiseBadRequestError),
    Refusal(429, errors.FlowiseRateLimitError, html=True, headers={"Retry-After": "17"}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("row", REFUSALS, ids=lambda row: f"{row.status}{'-html' if row.html else ''}")
def test_statuses_that_call_no_model(server, adapter, row, stream):
    server.fail_next(row.status, f"No: {QUESTION}", html=row.html, headers=row.headers)
    ended = fail(adapter, "chain", stream=stream)
    assert_nothing_billed(ended)
    assert server.billed == []
    assert type(ended.error) is row.kind
    assert isinstance(ended.error, requests.HTTPError)
    assert bool(ended.error.response) is True
    assert ended.error.response.status_code == row.status
    assert QUESTION in ended.error.response.text
    assert str(row.status) in str(ended.error)
    assert "'chain'" in str(ended.error)
    assert server.url in str(ended.error)


def test_a_rate_limit_says_when_to_try_again(server, adapter):
    ended = fail(adapter, "limited")
    assert_nothing_billed(ended)
    assert isinstance(ended.error, errors.FlowiseRateLimitError)
    assert 1 <= ended.error.retry_after <= 30
    assert f"try again in {ended.error.retry_after:g} s" in str(ended.error)


@pytest.mark.parametrize("stream", [False, True])
def test_a_flow_with_a_key_of_its_own(server, adapter, stream):
    ended = fail(adapter, "locked", stream=stream)
    assert_nothing_billed(ended)
    assert type(ended.error) is errors.FlowiseAuthenticationError
    assert ended.error.response.status_code == (200 if stream else 500)
    assert "key" in str(ended.error)
    adapter.api_key = "the-key-of-the-flow"
    assert adapter.predict_flow(FLOWS[3].id, "Now?")["text"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_origin_that_is_not_allowed(adapter, stream):
    adapter.session.headers["Origin"] = "https://theirs.example"
    ended = fail(adapter, "origin", stream=stream)
    assert_nothing_billed(ended)
    assert type(ended.error) is errors.FlowisePermissionError


@pytest.mark.parametrize("stream", [False, True])
def test_a_plan_that_is_used_up(adapter, stream):
    ended = fail(adapter, "spent", stream=stream)
    assert_nothing_billed(ended)
    assert type(ended.error) is errors.FlowisePlanExhaustedError


@pytest.mark.parametrize("stream", [False, True])
def test_a_page_instead_of_an_answer(server, adapter, stream):
    server.fail_next(200, "<html>Flowise</html>", html=True)
    ended = fail(adapter, "chain", stream=stream)
    assert_nothing_billed(ended)
    assert type(ended.error) is errors.FlowiseAnswerError
    assert isinstance(ended.error, requests.exceptions.InvalidJSONError)
    assert "base_url" in str(ended.error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server, adapter, status):
    server.fail_next(status, headers={"Location": f"{server.url}/api/v1/prediction/{FLOWS[2].id}"})
    ended = fail(adapter, "chain")
    assert_nothing_billed(ended)
    assert type(ended.error) is errors.FlowiseAnswerError
    assert server.billed == []
    assert sum(seen.method == "POST" for seen in server.requests) == 1


# -- unknown flows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_an_id_that_does_not_exist(server, adapter, stream):
    unknown = "11111111-2222-4333-8444-555555555555"
    with pytest.raises(errors.FlowiseNotFoundError, match=unknown) as caught:
        adapter.predict_flow(unknown, QUESTION, stream=stream)
    assert caught.value.charge is None or caught.value.charge.nanos == 0
    assert caught.value.response.status_code == 404
    if stream:
        # Flowise would never answer it.
        assert not any(seen.method == "POST" for seen in server.requests)


def test_an_unknown_id_streamed_without_the_permission_to_look(server):
    server.add_key("reads-nothing")
    adapter = instrument_flowise(server.url, "reads-nothing", team="help", timeout=4.0)
    with at_most(20):
        ended = fail(adapter, "11111111-2222-4333-8444-555555555555", stream=True)
    server._keys.clear()
    assert type(ended.error) is errors.FlowiseTimeoutError
    assert "does not exist" in str(ended.error)
    assert ended.charge.outcome == "timed_out"
    assert ended.charge.exactness == "unknown"


# -- failed inside Flowise --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_another_server_error_books_the_input(server, adapter, status):
    server.fail_next(status, "Something broke")
    ended = fail(adapter, "chain")
    assert_estimated(ended, "failed", wrote=False)
    assert type(ended.error) is errors.FlowiseServerError
    assert ended.error.response.status_code == status


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401])
def test_a_model_that_refuses_the_only_call_bills_nothing(server, adapter, status, stream):
    ended = fail(adapter, "chain", f"[[fail:{status}]] {QUESTION}", stream=stream)
    assert type(ended.error) is errors.FlowiseModelError
    assert str(status) in str(ended.error)
    assert ended.charge.outcome == "failed"
    assert ended.charge.nanos == 0 == nanos_of(call for call in server.billed if call.status == 200)
    assert ended.charge.exactness == "exact"


def test_a_model_that_fails_books_the_input(server, adapter):
    ended = fail(adapter, "chain", f"[[fail:500]] {QUESTION}")
    assert type(ended.error) is errors.FlowiseModelError
    assert_estimated(ended, "failed", wrote=False)
    assert [call.status for call in server.billed] == [500] * 7


def test_an_agentflow_that_fails_part_way_books_what_its_record_proves(server, adapter):
    ended = fail(adapter, "two", f"[[fail:400@claude-haiku-4-5]] {QUESTION}")
    assert type(ended.error) is errors.FlowiseModelError
    assert ended.charge.outcome == "failed"
    billed = [call for call in server.billed if call.status == 200]
    assert [call.model for call in billed] == ["gpt-4o"]
    proved = [line for line in ended.charge.lines if line.source == "reported"]
    assert sum(line.nanos for line in proved) == nanos_of(billed) > 0


def test_the_record_of_an_earlier_run_in_the_session_is_not_booked_again(server, adapter):
    """A failure that leaves no record of its own, in a session whose one record is paid for."""
    paid = adapter.predict_flow("two", QUESTION, sessionId="shared")
    server.fail_next(500, "Error: something else")
    ended = fail(adapter, "two", sessionId="shared")
    assert paid.charge.nanos == nanos_of(server.billed) > 0
    assert ended.charge.outcome == "failed"
    assert [str(line.source) for line in ended.charge.lines] == ["estimated", "estimated"]
    assert ended.charge.exactness == "estimated"


def test_an_agentflow_that_fails_while_streaming_books_at_least_what_was_billed(server, adapter):
    ended = fail(adapter, "two", f"[[fail:400@claude-haiku-4-5]] {QUESTION}", stream=True)
    billed = [call for call in server.billed if call.status == 200]
    assert ended.charge.outcome == "failed"
    assert ended.charge.nanos >= nanos_of(billed) > 0


# -- left, and no whole answer ---------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after_model", [False, True])
def test_a_silent_server(server, adapter, after_model, stream):
    server.hang_next(after_model=after_model)
    with at_most(10):
        ended = fail(adapter, "chain", stream=stream, timeout=1.0)
    assert type(ended.error) is errors.FlowiseTimeoutError
    assert isinstance(ended.error, requests.Timeout)
    assert isinstance(ended.error, TimeoutError)
    assert_estimated(ended, "timed_out", wrote=True)
    assert ended.charge.nanos >= nanos_of(server.billed)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after_model", [False, True])
def test_a_connection_that_is_dropped(server, adapter, after_model, stream):
    server.drop_next(after_model=after_model)
    ended = fail(adapter, "chain", stream=stream)
    assert type(ended.error) is errors.FlowiseConnectionError
    assert isinstance(ended.error, ConnectionError)
    assert_estimated(ended, "disconnected", wrote=True)


def test_an_answer_that_is_cut_off(server, adapter):
    server.truncate_next_answer(30)
    ended = fail(adapter, "chain")
    assert type(ended.error) is errors.FlowiseConnectionError
    assert_estimated(ended, "disconnected", wrote=True)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_stream_that_is_cut_off(server, adapter, after):
    server.truncate_next_stream(after)
    ended = fail(adapter, "chain", stream=True)
    assert isinstance(ended.error, (errors.FlowiseConnectionError, errors.FlowiseStreamError))
    assert ended.charge.outcome in ("disconnected", "truncated")
    assert "stream_truncated" in ended.charge.flags
    assert_estimated(ended, ended.charge.outcome, wrote=True)


def test_a_call_that_never_went_gives_the_budget_back():
    adapter = instrument_flowise(f"http://127.0.0.1:{closed_port()}")
    with governance_context("test", budget="0.01") as context:
        for _ in range(3):
            with pytest.raises(ConnectionError):
                adapter.predict_flow(FLOWS[0].id, QUESTION, max_cost="0.01")
        assert (context.reserved, context.total_cost, context.refused_calls) == (0, 0, 0)
