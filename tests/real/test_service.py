"""The service before a real Flowise: four workers, plain clients, books that are the bill."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from genops_ctx.core.records import Exactness
from genops_ctx.ledger import open_ledger
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from tests.service.served import Served

from .conftest import RunningFlowise
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
        timeout=60,
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
    assert time.monotonic() - begun < 20
