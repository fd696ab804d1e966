"""The prediction gateway: what passes, what does not, who pays, and what each is told."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import requests

from genops_ctx import Budget
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.service.key_store import MemoryKeys
from genops_ctx.settings import Settings
from genops_ctx.testing import FlowiseStandIn
from tests.providers.raw_server import RawServer, whole
from tests.service.conftest import FLOWISE_KEY, NewClient, Serve, last

Charges = Callable[[], list[Any]]
FLOW = "22222222-3333-4444-8555-666666666666"
HI = {"question": "hi"}


def predict(service: str, flow: str, headers: dict[str, str], **body: Any) -> requests.Response:
    url = f"{service}/api/v1/prediction/{flow}"
    return requests.post(url, json={**HI, **body}, headers=headers, timeout=60)


# -- what passes ----------------------------------------------------------------------------------------


def test_a_prediction_has_an_owner_and_a_price(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    service = serve(flowise.url)
    headers = client("shop", attribution={"team": "help", "project": "shop"})
    answer = predict(service, flowise.flow_id("graph"), {**headers, "X-GenOps-User-Id": "ana"})
    assert answer.status_code == 200
    assert answer.json()["text"] == "Stub reply from gpt-4o-mini to: hi"
    (charge,) = charges()
    (call,) = flowise.model.calls
    # gpt-4o-mini: $0.15 and $0.60 a million tokens
    assert charge.nanos == 150 * call.input_tokens + 600 * call.output_tokens
    assert answer.headers["X-GenOps-Cost"] == f"{charge.cost:f}"
    assert answer.headers["X-GenOps-Exactness"] == "exact"
    assert dict(charge.attribution) == {"team": "help", "project": "shop", "user_id": "ana"}


def test_a_stream_passes_byte_for_byte_and_is_booked_at_its_end(
    serve: Serve, client: NewClient, charges: Charges
) -> None:
    frames = [b'message:\ndata:{"event":"token","data":"He"}\n\n', b":heartbeat\n\nmessage:\nda"]
    frames += [
        b'ta:{"event":"token","data":"llo"}\n\n',
        b'message:\ndata:{"event":"end","data":"[DONE]"}\n\n',
    ]
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Powered-By: x\r\nConnection: close\r\n\r\n"
    )
    with RawServer(lambda got: [head, *[part for frame in frames for part in (frame, 0.05)]]) as raw:
        answer = predict(serve(raw.url), FLOW, client(), streaming=True)
    assert answer.content == b"".join(frames)
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert "X-Powered-By" not in answer.headers
    (charge,) = charges()
    assert charge.outcome == "completed"


def test_what_flowise_gets_and_what_the_client_gets(serve: Serve, client: NewClient) -> None:
    odd = "X-Name: ?\r\n"
    odd += "Location: http://flowise.internal:3000/\r\n"
    odd += "Set-Cookie: a=b\r\nServer: x\r\nAccess-Control-Allow-Origin: *\r\nX-Kept: 1\r\n"
    odd += "Connection: X-Hop\r\nX-Hop: 1"
    headers = client()
    told = whole(b'{"text":"Four."}', odd).replace(b"?", b"r\xc3\xa9sum\xc3\xa9 \xe9", 1)
    with RawServer(lambda got: [told]) as raw:
        answer = requests.post(
            f"{serve(raw.url)}/api/v1/prediction/{FLOW}?x=1",
            data=b'{ "question" : "hi" }',
            headers={
                **headers,
                "Content-Type": "application/json",
                "Cookie": "c=d",
                "X-Forwarded-Host": "evil",
                "X-GenOps-User-Id": "ana",
                "X-Request-From": "internal",
                "Flowise-Tool": "true",
                "Connection": "X-Secret-Hop, Content-Type",
                "X-Secret-Hop": "1",
                "X-Mine": "kept",
                "X-API-Key": "gok_ours",
            },
            timeout=60,
        )
        (got,) = raw.posts
    assert got.path == f"/api/v1/prediction/{FLOW}?x=1"
    assert got.body == b'{ "question" : "hi" }'
    sent = {name.lower(): value for name, value in got.headers.items()}
    assert sent["authorization"] == f"Bearer {FLOWISE_KEY}"
    assert sent["x-mine"] == "kept"
    assert sent["content-type"] == "application/json"
    assert not sent.keys() & {
        "cookie",
        "x-api-key",
        "x-forwarded-host",
        "x-genops-user-id",
        "x-request-from",
        "flowise-tool",
        "x-secret-hop",
    }
    assert headers["Authorization"] not in str(sent)
    assert answer.content == b'{"text":"Four."}'
    assert answer.headers["X-Kept"] == "1"
    assert answer.headers["X-Name"] == "r\xc3\xa9sum\xc3\xa9 \xe9"
    assert not answer.headers.keys() & {"location", "set-cookie", "x-hop", "access-control-allow-origin"}
    assert FLOWISE_KEY not in str(answer.headers) + answer.text


def test_a_form_with_a_file_is_sent_on_with_it(serve: Serve, client: NewClient) -> None:
    """Also where metering would change a body of JSON."""
    with RawServer(lambda got: [whole(b'{"text":"Four."}')]) as raw:
        service = serve(raw.url, settings=Settings(metering="evaluation"))
        requests.post(
            f"{service}/api/v1/prediction/{FLOW}",
            data={"question": "hi"},
            files={"files": ("a.txt", b"what the file says", "text/plain")},
            headers=client(),
            timeout=60,
        )
        (got,) = raw.posts
    sent = {name.lower(): value for name, value in got.headers.items()}
    assert sent["content-type"].startswith("multipart/form-data; boundary=")
    assert b"\r\n\r\nwhat the file says\r\n--" in got.body


def test_other_endpoints_of_flowises_clients_pass(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    service, headers = serve(flowise.url), client()
    assert requests.get(f"{service}/api/v1/ping", headers=headers, timeout=60).text == "pong"
    flow = flowise.flow_id("chain")
    streaming = requests.get(f"{service}/api/v1/chatflows-streaming/{flow}", headers=headers, timeout=60)
    assert streaming.json()["isStreaming"] in (True, False)


# -- what does not --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, path",
    [
        ("GET", "chatmessage/{flow}"),
        ("DELETE", "chatmessage/{flow}"),
        ("GET", "chatflows"),
        ("GET", "chatflows/{flow}"),
        ("POST", "prediction/../chatflows"),
        ("POST", "prediction/%2e%2e/chatflows"),
        ("POST", "prediction//evil.example/x"),
        ("POST", "prediction/{flow}/x"),
        ("POST", "prediction/http:%2f%2fevil.example"),
        ("POST", "prediction/{flow}%00"),
        ("PUT", "prediction/{flow}"),
        ("GET", "leads/{flow}"),
        ("GET", "get-upload-file"),
        ("GET", "get-upload-file?chatflowId={flow}&chatflowId[]={flow}&chatId=a&fileName=b"),
        ("POST", "text-to-speech/generate"),
        ("GET", "credentials"),
        ("GET", "apikey"),
    ],
)
def test_nothing_else_passes(serve: Serve, client: NewClient, method: str, path: str) -> None:
    with RawServer(lambda got: [whole(b'{"text":"Four."}')]) as raw:
        service, headers = serve(raw.url), client()
        with socket.create_connection(service.removeprefix("http://").split(":"), 5) as line:  # type: ignore[arg-type]
            target = f"/api/v1/{path.format(flow=FLOW)}"
            line.sendall(
                f"{method} {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {headers['Authorization']}\r\n"
                "Content-Type: application/json\r\nContent-Length: 17\r\nConnection: close\r\n\r\n"
                '{"question":"hi"}'.encode()
            )
            status = line.makefile("rb").readline().split()[1]
        assert status in (b"404", b"405", b"400")
        assert raw.requests == []


def test_who_has_no_good_key_gets_nothing(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, keys: MemoryKeys
) -> None:
    service, flow = serve(flowise.url), flowise.flow_id("graph")
    good = client("one")
    wrong = {"Authorization": good["Authorization"][:-4] + "AAAA"}
    client("revoked")
    keys.put(replace(last(keys), revoked_at=time.time()))
    revoked = client("two")
    keys.put(replace(last(keys), revoked_at=time.time()))
    elsewhere = client("elsewhere", flows=("another-flow",))
    assert predict(service, flow, good).status_code == 200
    for headers in ({}, wrong, revoked, {"Authorization": "Basic eDp5"}, {"Authorization": FLOWISE_KEY}):
        answer = predict(service, flow, headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert predict(service, flow, elsewhere).status_code == 403
    assert len(flowise.model.calls) == 1


def test_a_page_uses_a_key_in_its_address_from_its_own_origin(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    service, flow = serve(flowise.url), flowise.flow_id("graph")
    secret = client("page", origins=("https://www.example.com",))["Authorization"].removeprefix("Bearer ")
    url = f"{service}/k/{secret}/api/v1/prediction/{flow}"
    ours, other = {"Origin": "https://www.example.com"}, {"Origin": "https://evil.example"}
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    assert requests.options(url, headers={**ours, **preflight}, timeout=60).status_code == 204
    refused = requests.options(url, headers={**other, **preflight}, timeout=60)
    assert refused.status_code == 403
    assert "Access-Control-Allow-Origin" not in refused.headers
    answer = requests.post(url, json=HI, headers=ours, timeout=60)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "https://www.example.com"
    assert "X-GenOps-Cost" not in answer.headers
    elsewhere = requests.post(url, json=HI, headers=other, timeout=60)
    assert (elsewhere.status_code, elsewhere.json()["error"]["code"]) == (403, "origin")
    assert "Access-Control-Allow-Origin" not in elsewhere.headers
    assert len(flowise.model.calls) == 1


def test_a_file_of_a_chat_is_that_of_a_flow_of_the_key(serve: Serve, client: NewClient) -> None:
    with RawServer(lambda got: [whole(b"{}")]) as raw:
        service, headers = serve(raw.url), client(flows=(FLOW,))
        file = f"{service}/api/v1/get-upload-file?chatId=a&fileName=b.png&chatflowId="
        answer = requests.get(file + FLOW, headers=headers, timeout=60)
        assert answer.status_code == 404  # the server's own, which knows no file
        other = requests.get(file + FLOW.replace("2", "3"), headers=headers, timeout=60)
        assert other.status_code == 403
        assert [got.path for got in raw.requests] == [
            f"/api/v1/get-upload-file?chatId=a&fileName=b.png&chatflowId={FLOW}"
        ]


def test_one_who_accepts_events_only_is_refused_by_one(serve: Serve) -> None:
    answer = predict(serve("http://127.0.0.1:1"), FLOW, {"Accept": "text/event-stream"})
    assert answer.status_code == 200
    assert answer.headers["X-GenOps-Refused"] == "unauthorized"
    assert json.loads(answer.text.split("\n")[1].removeprefix("data:"))["event"] == "error"


# -- limits ---------------------------------------------------------------------------------------------


def test_a_budget_that_is_used_up_is_told_without_figures(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    budget = Budget("0.000000001/day", by="team", name="daily", default_reservation="0.000000001")
    service = serve(flowise.url, settings=Settings(budgets=(budget,)))
    headers, flow = client(attribution={"team": "help"}), flowise.flow_id("graph")
    assert predict(service, flow, headers).status_code == 200  # the last nano-dollar is reserved for it
    refused = predict(service, flow, headers)
    assert refused.status_code == 402
    body = refused.json()
    assert body["error"]["code"] == "budget_exceeded"
    assert body["error"]["budget"] == "daily"
    assert body["error"]["resets_at"].endswith("T00:00:00+00:00")
    assert 1 <= int(refused.headers["Retry-After"]) <= 86_400
    assert "$" not in refused.text
    assert "0.0000" not in refused.text
    streamed = predict(service, flow, headers, streaming=True)
    assert streamed.headers["Content-Type"].startswith("text/event-stream")
    events = [json.loads(line[5:]) for line in streamed.text.split("\n") if line.startswith("data:")]
    assert [event["event"] for event in events] == ["error", "end"]
    assert events[0]["data"] == body["message"] == body["error"]["message"]
    assert predict(service, flow, client(attribution={"team": "search"})).status_code == 200
    assert len(flowise.model.calls) == 2


def test_what_a_call_costs_at_least_is_told_to_programs_and_not_to_visitors_of_pages(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    flow = flowise.flow_id("graph")
    service = serve(
        flowise.url, settings=Settings(budgets=(Budget("0.00001", "day", by="team", limits={"rich": 1}),))
    )
    rich = client(attribution={"team": "rich"})
    for _ in range(10):
        assert predict(service, flow, rich).status_code == 200
    (cost,) = {150 * call.input_tokens + 600 * call.output_tokens for call in flowise.model.calls}
    assert 5_000 < cost < 10_000, "one fits, and a part of another"
    poor = client(attribution={"team": "poor"})
    assert predict(service, flow, poor).status_code == 200
    refused = predict(service, flow, poor)
    assert refused.status_code == 402
    error = refused.json()["error"]
    assert error["remaining"] == f"0.{10_000 - cost:09d}"
    assert error["floor"] == f"0.{cost:09d}"
    assert error["floor_because"] == "10th percentile of 11 earlier charges of this flow"
    assert not set("0123456789$") & set(error["message"].split(" Please")[0])
    assert "floor" not in predict(service, flow, poor, streaming=True).text
    page = client("page", origins=("https://www.example.com",), attribution={"team": "visitors"})
    page["Origin"] = "https://www.example.com"
    assert predict(service, flow, page).status_code == 200
    shown = predict(service, flow, page)
    assert (shown.status_code, sorted(shown.json()["error"])) == (
        402,
        ["budget", "code", "message", "resets_at"],
    )
    assert len(flowise.model.calls) == 12


def test_a_header_takes_nobody_elses_budget(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    headers = client(attribution={"team": "help", "user_id": "service"})
    told = {**headers, "X-GenOps-Team": "search", "X-GenOps-User-Id": "ana", "X-GenOps-Customer-Id": "acme"}
    assert predict(serve(flowise.url), flowise.flow_id("graph"), told).status_code == 200
    (charge,) = charges()
    assert dict(charge.attribution) == {"team": "help", "user_id": "service"}


# -- hostile and broken ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body, status",
    [
        (b"", 400),
        (b"[]", 400),
        (b'"hi"', 400),
        (b"{", 400),
        (b"\xff\xfe{}", 400),
        (b"[" * 200_000, 400),
        (b'{"question": "' + b"x" * 3000 + b'"}', 413),
    ],
)
def test_a_body_that_is_none_is_refused_unsent(
    serve: Serve, client: NewClient, body: bytes, status: int
) -> None:
    options = ServiceSettings(request_bytes=2000 if status == 413 else 2**20)
    with RawServer(lambda got: [whole(b'{"text":"Four."}')]) as raw:
        service = serve(raw.url, options=options)
        headers = {**client(), "Content-Type": "application/json"}
        answer = requests.post(f"{service}/api/v1/prediction/{FLOW}", data=body, headers=headers, timeout=60)
        assert answer.status_code == status
        assert answer.json()["success"] is False
        assert raw.posts == []


def test_a_body_without_a_length_is_counted_as_it_comes(serve: Serve, client: NewClient) -> None:
    with RawServer(lambda got: [whole(b'{"text":"Four."}')]) as raw:
        service = serve(raw.url, options=ServiceSettings(request_bytes=5000))
        chunks = (b"x" * 1000 for _ in range(100))
        answer = requests.post(
            f"{service}/api/v1/prediction/{FLOW}", data=chunks, headers=client(), timeout=20
        )
        assert answer.status_code == 413
        assert raw.posts == []


def test_a_body_that_comes_too_slowly(serve: Serve, client: NewClient) -> None:
    service = serve("http://127.0.0.1:1", options=ServiceSettings(request_seconds=0.3))
    headers = client()
    with socket.create_connection(service.removeprefix("http://").split(":"), 5) as line:  # type: ignore[arg-type]
        line.sendall(
            f"POST /api/v1/prediction/{FLOW} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
            f"Authorization: {headers['Authorization']}\r\n\r\n{{".encode()
        )
        assert b" 408 " in line.makefile("rb").readline()


def test_a_flow_that_flowise_does_not_know_is_answered_also_where_it_never_is(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    service, headers = serve(flowise.url), client()
    for streaming in (True, False):
        answer = predict(service, "00000000-0000-4000-8000-000000000000", headers, streaming=streaming)
        assert answer.status_code == 404
    assert sum(charge.nanos for charge in charges()) == 0


def test_a_flowise_that_says_nothing_costs_a_bounded_time_and_is_booked(
    serve: Serve, client: NewClient, charges: Charges
) -> None:
    with RawServer(lambda got: [60.0]) as raw:
        service = serve(raw.url, options=ServiceSettings(total_seconds=3.0))
        begun = time.monotonic()
        answer = predict(service, FLOW, client())
        assert answer.status_code == 504
        assert time.monotonic() - begun < 18
    (charge,) = charges()
    assert charge.outcome == "timed_out"
    assert charge.exactness != "exact"


def test_a_flowise_that_is_not_there_costs_nothing(serve: Serve, client: NewClient, charges: Charges) -> None:
    answer = predict(serve("http://127.0.0.1:1"), FLOW, client())
    assert answer.status_code == 502
    assert charges() == []


@pytest.mark.parametrize("streaming", [False, True])
def test_an_answer_that_was_packed_on_its_way_is_read_and_passed_on(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges, streaming: bool
) -> None:
    asked = {"question": "hi", "streaming": streaming}
    url = f"{flowise.url}/api/v1/prediction/{flowise.flow_id('graph')}"
    plain = requests.post(url, json=asked, timeout=60)
    call = flowise.model.calls[-1]
    packed = whole(gzip.compress(plain.content), "Content-Encoding: gzip", kind=plain.headers["Content-Type"])
    with RawServer(lambda got: [packed]) as proxy:
        options = ServiceSettings.of({"cache": {"flows": ["*"]}})
        answer = predict(serve(proxy.url, options=options), FLOW, client(), streaming=streaming)
    assert (answer.status_code, answer.content) == (200, plain.content)
    (charge,) = charges()
    assert (charge.outcome, charge.exactness) == ("completed", "exact")
    assert charge.nanos == 150 * call.input_tokens + 600 * call.output_tokens


@pytest.mark.parametrize("metering", ["auto", "langfuse"])
def test_what_is_kept_of_a_call_has_a_bound(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges, metering: str
) -> None:
    service = serve(flowise.url, settings=Settings(metering=metering))
    flowise.fail_next(500)
    long = "s" * 1_000_000
    answer = predict(
        service, flowise.flow_id("chain"), client(), chatId=long, overrideConfig={"sessionId": long}
    )
    assert answer.status_code == 500
    (charge,) = charges()
    assert charge.chat_id == "s" * 200
    assert "session_id" not in charge.attribution


def test_a_stream_that_its_reader_leaves_is_booked(serve: Serve, client: NewClient, charges: Charges) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    token = b'message:\ndata:{"event":"token","data":"He"}\n\n'
    with RawServer(lambda got: [head, token, *[0.05, token] * 200]) as raw:
        url = f"{serve(raw.url)}/api/v1/prediction/{FLOW}"
        answer = requests.post(url, json={**HI, "streaming": True}, headers=client(), stream=True, timeout=60)
        next(answer.iter_content(10))
        answer.close()
        deadline = time.monotonic() + 60
        while not charges() and time.monotonic() < deadline:
            time.sleep(0.02)
    (charge,) = charges()
    assert charge.outcome == "abandoned"


# -- health ---------------------------------------------------------------------------------------------


def test_health_tells_what_is_missing_and_liveness_asks_nobody(serve: Serve, flowise: FlowiseStandIn) -> None:
    service = serve(flowise.url)
    well = requests.get(f"{service}/health", timeout=60)
    assert (well.status_code, well.json()["status"], well.json()["reasons"]) == (200, "healthy", [])
    assert requests.get(f"{service}/health/ready", timeout=60).status_code == 200
    alone = serve("http://127.0.0.1:1")
    ill = requests.get(f"{alone}/health", timeout=60)
    assert (ill.status_code, ill.json()["status"]) == (503, "unhealthy")
    assert ill.json()["reasons"] == ["flowise does not answer"]
    assert requests.get(f"{alone}/health/ready", timeout=60).status_code == 503
    assert requests.get(f"{alone}/ready", timeout=60).status_code == 503
    assert requests.get(f"{alone}/health/live", timeout=60).status_code == 200


def test_a_flowise_that_hangs_up_is_an_answer_and_no_fault_of_ours(serve: Serve, client: NewClient) -> None:
    class HangsUp(RawServer):
        def _serve(self, connection: socket.socket) -> None:
            connection.recv(65536)
            connection.close()

    with HangsUp(lambda got: []) as raw:
        service, headers = serve(raw.url), client()
        assert requests.get(f"{service}/health", timeout=60).status_code == 503
        assert requests.get(f"{service}/health/ready", timeout=60).status_code == 503
        assert requests.get(f"{service}/api/v1/version", headers=headers, timeout=60).status_code == 502
        assert predict(service, FLOW, headers).status_code == 502
