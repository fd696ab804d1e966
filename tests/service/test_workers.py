"""The service with four workers, as it is deployed: uvicorn, processes, signals."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from genops_ctx.ledger import open_ledger
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from genops_ctx.stores import open_store
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.service.conftest import FLOWISE_KEY
from tests.service.served import Served

pytestmark = pytest.mark.slow


@pytest.fixture
def flowise() -> Iterator[FlowiseStandIn]:
    with FlowiseStandIn([Flow("graph", "agentflow")], api_key=FLOWISE_KEY) as server:
        yield server


def served(folder: Path, flowise: FlowiseStandIn, settings: str = "") -> tuple[Served, dict[str, str]]:
    service = Served(folder, flowise.url, workers=4, settings=settings, FLOWISE_API_KEY=FLOWISE_KEY)
    store = open_keys(service.environment["GENOPS_LEDGER"])
    key, secret = new_key("web", now=time.time(), attribution={"team": "help"})
    store.put(key)
    store.close()
    return service, {"Authorization": f"Bearer {secret}"}


def test_a_budget_of_four_workers_and_books_that_are_the_bill(
    tmp_path: Path, flowise: FlowiseStandIn
) -> None:
    """Calls of 5,550 nano-dollars each, on a budget of forty: never passed, and all of it is used.

    Nobody says what a call costs at most, so the first ones set aside all that is left, and those that
    come meanwhile are refused and come again.
    """
    settings = '[[budget]]\nname = "daily"\nlimit = "0.000222/day"\nby = "team"\n'
    service, headers = served(tmp_path, flowise, settings)
    with service:
        url = f"{service.url}/api/v1/prediction/{flowise.flow_id('graph')}"

        def call_until_nothing_is_left(number: int) -> list[int]:
            statuses: list[int] = []
            while statuses[-10:].count(402) < 10:
                answer = requests.post(url, json={"question": "hi"}, headers=headers, timeout=60)
                statuses.append(answer.status_code)
                time.sleep(0.02 if answer.status_code == 402 else 0)
            return statuses

        with ThreadPoolExecutor(16) as pool:
            statuses = [one for some in pool.map(call_until_nothing_is_left, range(16)) for one in some]
        workers = service.pids()
        assert service.stop() == 0
    assert set(statuses) == {200, 402}
    billed = sum(150 * one.input_tokens + 600 * one.output_tokens for one in flowise.model.calls)
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    assert sum(charge.nanos for charge in ledger.charges()) == billed
    assert 0.95 * 222_000 <= billed <= 222_000
    assert statuses.count(200) == len(flowise.model.calls)
    store = open_store(service.environment["GENOPS_STORE"])
    (account,) = [one for key, one in store.accounts().items() if "team=help" in key]
    assert (account.spent, account.reserved) == (billed, 0)
    assert len(workers) == 4
    store.close()
    ledger.close()


def test_a_worker_that_is_told_to_stop_ends_its_streams_first(
    tmp_path: Path, flowise: FlowiseStandIn
) -> None:
    service, headers = served(tmp_path, flowise)
    with service:
        url = f"{service.url}/api/v1/prediction/{flowise.flow_id('graph')}"
        body = {"question": "[[sleep:2]] Take your time", "streaming": True}
        answer = requests.post(url, json=body, headers=headers, stream=True, timeout=60)
        stopping = threading.Thread(target=service.stop)
        stopping.start()
        text = answer.content.decode()
        stopping.join()
    events = [json.loads(line[5:])["event"] for line in text.split("\n") if line.startswith("data:")]
    assert events[-1] == "end"
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    (charge,) = ledger.charges()
    assert (charge.outcome, str(charge.exactness)) == ("completed", "exact")
    ledger.close()


def test_a_killed_worker_loses_no_reservation_and_the_others_go_on(
    tmp_path: Path, flowise: FlowiseStandIn
) -> None:
    service, headers = served(tmp_path, flowise, '[[budget]]\nlimit = "1/day"\nby = "team"\n')
    with service:
        url = f"{service.url}/api/v1/prediction/{flowise.flow_id('graph')}"

        def call(sleep: float) -> int:
            question = f"[[sleep:{sleep}]] Take your time"
            try:
                return requests.post(
                    url, json={"question": question}, headers=headers, timeout=60
                ).status_code
            except requests.ConnectionError:
                return 0

        with ThreadPoolExecutor(8) as pool:
            slow = [pool.submit(call, 3) for _ in range(8)]
            flowise.model.wait_for(8, 60)
            victims = service.pids()[:3]
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            lost = [one.result() for one in slow].count(0)
        deadline = time.monotonic() + 60
        while call(0) != 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert call(0) == 200
        service.stop()
    store = open_store(service.environment["GENOPS_STORE"], callers_clock=True)
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    booked = {charge.operation for charge in ledger.charges()}
    (account,) = [one for key, one in store.accounts().items() if "team=help" in key]
    # What the killed had reserved stays reserved until it expires, and is booked as lost then.
    losses = store.reap(time.time() + 3600)
    assert (account.reserved > 0) == bool(losses)
    # One whose connection was not taken yet had nothing reserved; all that reached a model is accounted for.
    assert len(losses) <= lost
    assert len(booked) + len(losses) >= len(flowise.model.calls)
    assert not booked & {one.name.rpartition("#")[0] for one in losses}
    (account,) = [one for key, one in store.accounts().items() if "team=help" in key]
    assert account.reserved == 0
    store.close()
    ledger.close()
