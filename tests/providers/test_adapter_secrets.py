"""Nothing leaks: no question, answer or key in a log, an error, a span or a repr."""

from __future__ import annotations

import logging
import traceback

import pytest

from genops_ctx import BudgetExceeded, GovernanceError, configure, governance_context, instrument_flowise
from genops_ctx.providers.http_effects import Post
from genops_ctx.runtime import get_runtime, reset_runtime
from genops_ctx.settings import load_settings
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode, capture

from .raw_server import RawServer, whole

QUESTION = "zq7-question"
ANSWER = "zq7-answer"
KEY = "zq7-key-of-flowise"
FLOW_KEY = "zq7-key-of-a-flow"
SYSTEM = "zq7-system-prompt"
MARK = "zq7"

FLOWS = (
    Flow("chain", "llm_chain", template=f"{SYSTEM} {{question}}"),
    Flow("graph", "agentflow", (ModelNode(system=SYSTEM),)),
    Flow("locked", "llm_chain", api_key=FLOW_KEY),
)


def whole_text_of(error: BaseException) -> str:
    """All that a person or an error tracker is shown of it."""
    shown = []
    chain: BaseException | None = error
    while chain is not None:
        shown += [str(chain), repr(chain), repr(chain.args)]
        shown += [repr(getattr(chain, name, "")) for name in ("problem", "charge", "response", "outcome")]
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    shown += traceback.format_exception(error)
    # the source lines of this file hold no mark but in its constants
    return "\n".join(shown)


@pytest.fixture
def spans():
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    configure(tracer_provider=provider)
    return exporter


def ways(server):
    """Ways for a call to end: what is switched on, and the options of the call."""
    yield "fine", lambda: None, {}
    yield "streamed", lambda: None, {"stream": True}
    yield "evaluation", lambda: None, {"metering": "evaluation"}
    yield "history", lambda: None, {"history": [{"role": "user", "message": f"{QUESTION} before"}]}
    for status in (400, 401, 402, 403, 404, 413, 429, 500, 502):
        said = f"{QUESTION} {ANSWER} {KEY}"
        yield f"{status}", lambda status=status, said=said: server.fail_next(status, said), {}
        yield f"{status} html", lambda status=status, said=said: server.fail_next(status, said, html=True), {}
    yield "page", lambda: server.fail_next(200, f"<p>{ANSWER}", html=True), {}
    redirect = {"Location": f"/{QUESTION}"}
    yield "redirect", lambda: server.fail_next(302, headers=redirect), {}
    yield "hang", lambda: server.hang_next(after_model=True), {"timeout": 0.15}
    yield "hang streamed", lambda: server.hang_next(), {"timeout": 0.15, "stream": True}
    yield "drop", lambda: server.drop_next(after_model=True), {}
    yield "cut", lambda: server.truncate_next_answer(40), {}
    yield "cut stream", lambda: server.truncate_next_stream(3), {"stream": True}
    yield "bad override", lambda: None, {"overrideConfig": {QUESTION: object()}}
    yield "no money", lambda: None, {"max_cost": 50}
    yield "bad session", lambda: None, {"sessionId": "s", "overrideConfig": {"sessionId": QUESTION}}
    yield "model fails", lambda: None, {"fail": "[[fail:400]]"}
    yield "model fails, streamed", lambda: None, {"fail": "[[fail:400]]", "stream": True}
    yield "model fails late", lambda: None, {"fail": "[[fail:500]]"}


def test_nothing_leaks(spans, caplog):
    caplog.set_level(logging.DEBUG, logger="genops_ctx")
    ended = set()
    with FlowiseStandIn(FLOWS, api_key=KEY) as server, capture() as charges:
        adapter = instrument_flowise(server.url, KEY, team="help", timeout=60)
        shown = [repr(adapter)]
        for flow in ("chain", "graph", "locked"):
            for name, switch, options in ways(server):
                options = dict(options)
                switch()
                question = f"{options.pop('fail', '')} {QUESTION} about {name}"
                with governance_context("test", budget=1) as context:
                    try:
                        answer = adapter.predict_flow(flow, question, **options)
                        for _ in answer:
                            pass
                        shown += [repr(answer.charge), str(answer.charge), repr(answer.usage)]
                        if options.get("stream"):
                            shown.append(repr(answer))
                        ended.add("answered")
                    except GovernanceError as error:
                        shown.append(whole_text_of(error))
                        ended.add(type(error).__name__)
                    shown += [repr(context), str(context.tree()), context._repr_html_()]
                server.clear_faults()
        shown += [repr(get_runtime()), repr(get_runtime().settings), repr(get_runtime().__dict__)]
    shown += [repr(charges), *map(str, charges)]
    assert len(ended) >= 12, ended
    for text in shown:
        leaked = [line for line in text.splitlines() if MARK in line and "QUESTION" not in line]
        assert leaked == []
    told = [record.getMessage() + str(record.exc_text or "") for record in caplog.records]
    assert told, "nothing was logged: this proves nothing"
    assert not [text for text in told if MARK in text]
    finished = spans.get_finished_spans()
    assert len(finished) > 100
    for span in finished:
        assert MARK not in span.to_json()


def test_an_answer_of_a_strange_server_is_not_quoted(caplog):
    caplog.set_level(logging.DEBUG, logger="genops_ctx")
    flow = "22222222-3333-4444-8555-666666666666"
    bodies = [
        whole(f'{{"text": "{ANSWER}"'.encode()),
        whole(f'"{ANSWER}"'.encode()),
        whole(ANSWER.encode(), kind=f"text/{ANSWER}"),
        whole(b"{}", f"Retry-After: {ANSWER}", status=f"429 {ANSWER}"),
        whole(f'{{"message": "{ANSWER}"}}'.encode(), status=f"500 {ANSWER}"),
        f"HTTP/1.1 2{ANSWER} OK\r\n\r\n".encode(),
        f"{ANSWER}\r\n\r\n".encode(),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        + f'data:{{"event":"error","data":"{ANSWER}"}}\n\n'.encode(),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        + f'data:{{"event":"token","data":"{ANSWER}'.encode(),
    ]
    for body in bodies:
        with RawServer(lambda got, body=body: [body]) as raw:
            adapter = instrument_flowise(raw.url, timeout=60)
            with pytest.raises(GovernanceError) as caught:
                for _ in adapter.predict_flow(flow, QUESTION, stream=True):
                    pass
        error: BaseException | None = caught.value
        assert ANSWER not in f"{error} {error!r}"
    assert not [record for record in caplog.records if MARK in record.getMessage()]


def test_settings_and_refusals_hold_no_key(monkeypatch, empty_directory):
    monkeypatch.setenv("FLOWISE_API_KEY", KEY)
    settings = load_settings()
    assert settings.api_key == KEY
    assert MARK not in f"{settings} {settings!r}"
    with governance_context("test", budget=0), pytest.raises(BudgetExceeded) as caught:
        instrument_flowise("http://127.0.0.1:9", timeout=1).predict_flow(
            "22222222-3333-4444-8555-666666666666", QUESTION, max_cost=1
        )
    assert MARK not in f"{caught.value} {caught.value!r}"


@pytest.mark.parametrize("variable", ["GENOPS_STORE", "GENOPS_LEDGER", "FLOWISE_BASE_URL"])
def test_a_bad_setting_is_told_without_its_password(monkeypatch, empty_directory, variable):
    monkeypatch.setenv(variable, f"redis2://user:{KEY}@localhost:6379/0")
    reset_runtime()
    with pytest.raises(GovernanceError) as caught:
        instrument_flowise()
    assert MARK not in str(caught.value)


def test_a_request_in_flight_does_not_show_its_question():
    post = Post(None, "/api/v1/prediction/1", QUESTION.encode(), None, None, "prediction of flow 'chat'")
    assert repr(post) == "<Post: prediction of flow 'chat'>"
