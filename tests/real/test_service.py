"""The service before a real Flowise: four workers, plain clients, books that are the bill."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import requests

from genops_ctx.core.records import Exactness
from genops_ctx.ledger import open_ledger
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from tests.service.served import Served

from .conftest import Held, RunningFlowise
from .test_booked import bill

QUESTION = "What is two plus three?"
EXACT = ("agentflow_llm", "agentflow_agent")


@pytest.fixture
def service(flowise: RunningFlowise, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("service")
    with Served(folder, flowise.url, workers=4, FLOWISE_API_KEY=flowise.api_key) as service:
        yield service


def key(service: Served, team: str) -> str:
    store = open_keys(service.environment["GENOPS_LEDGER"])
    made, secret = new_key(team, now=time.time(), attribution={"team": team})
    store.put(made)
    store.close()
    return secret


def ask(service: Served, secret: str, flow: str, *, stream: bool) -> requests.Response:
    body = {"question": QUESTION, "streaming": stream, "overrideConfig": {"sessionId": str(uuid.uuid4())}}
    answer = requests.post(
        f"{service.url}/api/v1/prediction/{flow}",
        json=body,
        headers={"Authorization": f"Bearer {secret}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return answer


def test_mixed_calls_of_two_clients_on_four_workers(flowise: RunningFlowise, service: Served) -> None:
    """60 calls at 8 at a time, half of them streamed: each on its owner, and together the bill."""
    flowise.model_stub.reset()
    secrets = {team: key(service, team) for team in ("search", "help")}
    calls = [
        (team, flowise.flows[name], stream)
        for _ in range(5)
        for team in secrets
        for name in (*EXACT, "conversation_chain")
        for stream in (False, True)
    ]

    def call(one: tuple[str, str, bool]) -> requests.Response:
        team, flow, stream = one
        return ask(service, secrets[team], flow, stream=stream)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(call, calls))
    for (_, _, stream), answer in zip(calls, answers, strict=True):
        if stream:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            assert '"event":"end"' in answer.text
        else:
            assert answer.json()["text"]
    assert service.stop() == 0
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    charges = list(ledger.charges())
    ledger.close()
    assert Counter(charge.attribution["team"] for charge in charges) == {"search": 30, "help": 30}
    assert {charge.outcome for charge in charges} == {"completed"}
    agents = [charge for charge in charges if charge.flow != flowise.flows["conversation_chain"]]
    assert {charge.exactness for charge in agents} == {Exactness.EXACT}
    # Classic flows report nothing, and their charges say so; the rest is exact, to the nano-dollar.
    classic = [charge for charge in charges if charge.flow == flowise.flows["conversation_chain"]]
    assert {charge.exactness for charge in classic} == {Exactness.ESTIMATED}
    billed = sum(charge.nanos for charge in agents)
    flowise.model_stub.reset()
    for team, flow, stream in calls:
        if flow != flowise.flows["conversation_chain"] and team == "search":
            requests.post(
                f"{flowise.url}/api/v1/prediction/{flow}",
                json={"question": QUESTION, "streaming": stream},
                headers={"Authorization": f"Bearer {flowise.api_key}"},
                timeout=60,
            )
    assert billed == 2 * bill(flowise.model_stub)


def test_the_official_client_calls_it_as_it_calls_flowise(flowise: RunningFlowise, service: Served) -> None:
    program = """
import json, sys
from flowise import Flowise, PredictionData
url, secret, flow = sys.argv[1:]
client = Flowise(url, secret)
for streaming in (False, True):
    data = PredictionData(chatflowId=flow, question="What is two plus three?", streaming=streaming)
    for part in client.create_prediction(data):
        print(json.dumps(part if isinstance(part, dict) else {"raw": part}))
"""
    flowise.model_stub.reset()
    told: Any = subprocess.run(
        [sys.executable, "-c", program, service.url, key(service, "sdk"), flowise.flows["agentflow_llm"]],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    parts = [json.loads(line) for line in told.splitlines()]
    assert parts[0]["text"]
    assert any("token" in part.get("raw", "") for part in parts[1:])
    service.stop()
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    assert sum(charge.nanos for charge in ledger.charges()) == bill(flowise.model_stub)
    ledger.close()


def test_a_stream_of_a_flow_that_flowise_does_not_know_is_answered(
    flowise: RunningFlowise, service: Served
) -> None:
    begun = time.monotonic()
    answer = requests.post(
        f"{service.url}/api/v1/prediction/{uuid.uuid4()}",
        json={"question": QUESTION, "streaming": True},
        headers={"Authorization": f"Bearer {key(service, 'lost')}"},
        timeout=60,
    )
    assert answer.status_code == 404
    assert time.monotonic() - begun < 45


def charges_of(service: Served) -> list[Any]:
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    try:
        return list(ledger.charges())
    finally:
        ledger.close()


def wait_charges(service: Served, number: int) -> list[Any]:
    deadline = time.monotonic() + 90
    while len(charges := charges_of(service)) < number and time.monotonic() < deadline:
        time.sleep(0.1)
    return charges


def test_what_a_client_that_leaves_had_begun_is_booked(
    flowise: RunningFlowise, service: Served, held: Held
) -> None:
    """Flowise runs on, and is billed for it."""
    headers = {"Authorization": f"Bearer {key(service, 'left')}", "Content-Type": "application/json"}
    path = f"/api/v1/prediction/{flowise.flows['agentflow_llm']}"
    body = {"question": QUESTION}
    client = HTTPConnection("127.0.0.1", service.port, timeout=90)
    client.request("POST", path, json.dumps(body), headers)
    held.wait_for(1)
    client.close()
    time.sleep(0.5)  # the worker sees that nobody listens, before it has an answer
    held.let_go()
    # The worker waits for the answer all the same: it is booked as it was billed.
    (whole,) = wait_charges(service, 1)
    assert (whole.outcome, whole.exactness) == ("completed", Exactness.EXACT)
    assert whole.nanos == bill(flowise.model_stub) > 0

    flowise.model_stub.reset()
    held.keep_back()
    client.request("POST", path, json.dumps({**body, "streaming": True}), headers)
    assert len(client.getresponse().read(16)) == 16
    held.wait_for(1)
    client.close()
    _, cut = wait_charges(service, 2)
    assert (cut.outcome, cut.exactness) == ("abandoned", Exactness.ESTIMATED)
    held.let_go()
    assert len(flowise.model_stub.calls) == 1
    # Nothing of an answer was seen: a usual one is taken for it, and that is not less.
    assert cut.nanos >= bill(flowise.model_stub) > 0


def test_failover_cache_and_highest_costs_are_booked_as_billed(
    flowise: RunningFlowise, tmp_path: Path
) -> None:
    """A flow that fails is stood in for, its failed calls included; a kept answer costs nothing."""
    failing, other = flowise.flows["agentflow_two_providers"], flowise.flows["agentflow_llm"]
    settings = f"""
[[budget]]
name = "daily"
limit = "1/day"
by = "team"

[service]
breaker = 3

[service.cache]
flows = ["{other}"]

[[service.fallback]]
flow = "{failing}"
to = ["{other}"]
"""
    with Served(
        tmp_path, flowise.url, workers=2, settings=settings, FLOWISE_API_KEY=flowise.api_key
    ) as service:
        headers = {"Authorization": f"Bearer {key(service, 'careful')}"}
        url = f"{service.url}/api/v1/prediction"
        flowise.model_stub.reset()
        # The provider does not know the flow's second model; the first has been paid by then.
        body = {"question": "[[fail:404@claude-haiku-4-5]] What is two plus three?"}
        answers = [
            requests.post(f"{url}/{failing}", json=body, headers=headers, timeout=60) for _ in range(2)
        ]
        assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
        assert {answer.headers["X-GenOps-Served-By"] for answer in answers} == {other}
        charges = charges_of(service)
        assert [charge.outcome for charge in charges] == ["failed", "completed"] * 2
        # What the failed ones cost no answer says, so it is estimated, and told so; the others are exact.
        calls = flowise.model_stub.calls
        assert [call.status for call in calls] == [200, 404, 200] * 2
        for failed, done, paid in zip(charges[::2], charges[1::2], calls[2::3], strict=True):
            assert failed.exactness is Exactness.ESTIMATED
            assert failed.nanos > 0
            assert done.exactness is Exactness.EXACT
            assert done.nanos == 150 * paid.input_tokens + 600 * paid.output_tokens
        assert {answer.headers["X-GenOps-Exactness"] for answer in answers} == {"estimated"}
        told = sum(Decimal(answer.headers["X-GenOps-Cost"]) for answer in answers)
        assert told == sum(charge.cost for charge in charges)

        flowise.model_stub.reset()
        kept = [
            requests.post(f"{url}/{other}", json={"question": QUESTION}, headers=headers, timeout=60)
            for _ in range(3)
        ]
        assert [answer.headers.get("X-GenOps-Cache") for answer in kept] == [None, "hit", "hit"]
        assert {answer.json()["text"] for answer in kept} == {kept[0].json()["text"]}
        assert len(flowise.model_stub.calls) == 1
        new = charges_of(service)[len(charges) :]
        assert sum(charge.nanos for charge in new) == bill(flowise.model_stub)

        cheap = {**headers, "X-GenOps-Max-Cost": "0.000001"}
        refused = requests.post(f"{url}/{other}", json={"question": "Why?"}, headers=cheap, timeout=60)
        assert (refused.status_code, refused.json()["error"]["code"]) == (402, "max_cost")
        assert len(flowise.model_stub.calls) == 1
        left = Decimal(kept[-1].headers["X-GenOps-Budget-Remaining"])
        assert left == 1 - sum(charge.cost for charge in charges_of(service))


def test_no_caller_has_another_call_s_usage_told_as_its_own(
    flowise: RunningFlowise, service: Served, flowise_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flowise keeps what a run of an evaluation has used by an id that callers choose, and hands it to
    whoever says that id next: a dear call would be booked at what a cheap one has used, as exact."""
    run = str(uuid.uuid4())
    slow = {"question": "hi", "evaluation": True, "evaluationRunId": run}
    dear = {"question": "[[long:500]] hi", "evaluationRunId": run}

    def predict(url: str, secret: str, flow: str, body: dict[str, Any]) -> requests.Response:
        headers = {"Authorization": f"Bearer {secret}"}
        where = f"{url}/api/v1/prediction/{flowise.flows[flow]}"
        return requests.post(where, json=body, headers=headers, timeout=60)

    used_once, taken_from_it = threading.Event(), threading.Event()
    respond = flowise_model.respond

    def with_a_pause(provider: Any, given: dict[str, Any], headers: Any = None) -> Any:
        if any(message["role"] == "tool" for message in given["messages"]):
            used_once.set()
            taken_from_it.wait(120)
        return respond(provider, given, headers)

    monkeypatch.setattr(flowise_model, "respond", with_a_pause)
    with ThreadPoolExecutor(1) as other:
        # Its agent has used its model once, and waits for it the second time.
        agent = other.submit(predict, flowise.url, flowise.api_key, "tool_agent", slow)
        assert used_once.wait(120)
        taken = predict(flowise.url, flowise.api_key, "llm_chain", dear)
        taken_from_it.set()
        assert agent.result().status_code == 200
    told = [json.loads(item) for item in taken.json()["metrics"] if isinstance(item, str)]
    assert [item["completionTokens"] for item in told if "completionTokens" in item] == [17]
    assert max(call.output_tokens for call in flowise_model.calls) > 400
    flowise_model.reset()
    for body in (slow, dear):
        assert predict(service.url, key(service, "shop"), "llm_chain", body).status_code == 400
    assert flowise_model.calls == []


def test_no_header_of_a_caller_hides_what_a_stream_has_used(
    flowise: RunningFlowise, service: Served, flowise_model: Any
) -> None:
    """Flowise streams what calls itself one of its tools neither words nor usage."""
    body = {"question": "[[long:3000]] hi", "streaming": True}
    answer = requests.post(
        f"{service.url}/api/v1/prediction/{flowise.flows['agentflow_llm']}",
        json=body,
        headers={"Authorization": f"Bearer {key(service, 'shop')}", "Flowise-Tool": "true"},
        timeout=60,
    )
    assert '"event":"end"' in answer.text
    assert service.stop() == 0
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    (charge,) = ledger.charges()
    ledger.close()
    assert charge.exactness is Exactness.EXACT
    assert Decimal(charge.nanos) == bill(flowise_model)
