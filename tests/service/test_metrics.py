"""``GET /metrics`` of one worker: who may read it, what is counted, and what it says of what is silent."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from genops_ctx import Budget
from genops_ctx.core.errors import StoreError
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.ledger.tallies import Batch
from genops_ctx.runtime import Runtime, get_runtime, reset_runtime
from genops_ctx.service import metrics, unsent
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.service.turns import Turns
from genops_ctx.service.unsent import Unsent
from genops_ctx.settings import Settings
from genops_ctx.testing import FlowiseStandIn
from tests.service.conftest import NewClient, Serve
from tests.service.test_exposition import Samples, of, samples
from tests.service.test_gateway import HI, predict

NOBODYS_FLOW = "22222222-3333-4444-8555-666666666666"


def scraped(service: str, headers: dict[str, str]) -> Samples:
    answer = requests.get(f"{service}/metrics", headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return samples(answer.text)


def requests_of(found: Samples) -> dict[tuple[str, str, str, str], float]:
    """By flow, status, team and project."""
    return {
        tuple(dict(labels)[name] for name in ("chatflow_id", "status", "team", "project")): value  # type: ignore[misc]
        for (name, labels), value in found.items()
        if name == "flowise_requests_total"
    }


# -- who -----------------------------------------------------------------------------------------


def test_a_key_for_monitoring_reads_metrics_and_nothing_else(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    service = serve(flowise.url)
    monitor = client("prometheus", role="monitor")
    assert requests.get(f"{service}/metrics", timeout=60).status_code == 401
    assert requests.get(f"{service}/metrics", headers=client(), timeout=60).status_code == 403
    for headers in (monitor, client(role="operator"), client(role="admin")):
        answer = requests.get(f"{service}/metrics", headers=headers, timeout=60)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert predict(service, flowise.flow_id("graph"), monitor).status_code == 401
    for path in ("/budgets", "/budgets/me", "/keys", "/audits", "/providers"):
        assert requests.get(service + path, headers=monitor, timeout=60).status_code == 403
    assert flowise.model.calls == []


def test_they_can_be_open_to_all(serve: Serve, flowise: FlowiseStandIn) -> None:
    service = serve(flowise.url, options=ServiceSettings.of({"metrics": "open"}))
    answer = requests.get(
        f"{service}/metrics", headers={"Accept": "application/openmetrics-text;version=1.x"}, timeout=20
    )
    assert answer.status_code == 200
    assert answer.text.endswith("# EOF\n")


# -- what is counted -----------------------------------------------------------------------------


def test_every_request_is_counted_once_by_how_it_ended(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    budgets = (Budget("0.00005/day", by="team", name="daily"),)
    options = ServiceSettings.of({"cache": {"seconds": 60, "flows": ["*"]}})
    service = serve(flowise.url, settings=Settings(budgets=budgets), options=options)
    ours = client("web", attribution={"team": "help", "project": "shop"})
    flow, monitor = flowise.flow_id("graph"), client("prometheus", role="monitor")
    assert predict(service, flow, ours, question="one").status_code == 200
    assert predict(service, flow, ours, question="one").headers["X-GenOps-Cache"] == "hit"
    streamed = predict(service, flow, ours, question="two", streaming=True)
    assert "event" in streamed.text
    flowise.fail_next(500)
    assert predict(service, flow, ours, question="three").status_code == 500
    assert predict(service, NOBODYS_FLOW, ours).status_code == 404  # Flowise's own word
    assert predict(service, NOBODYS_FLOW, ours, streaming=True).status_code == 404  # ours
    assert predict(service, flow, {"Authorization": "Bearer nobody"}).status_code == 401
    flows_only = client("other", flows=(NOBODYS_FLOW,))
    assert predict(service, flow, flows_only).status_code == 403
    url = f"{service}/api/v1/prediction/{flow}"
    assert requests.post(url, json=[1], headers=ours, timeout=60).status_code == 400
    assert requests.post(url, json=[1], headers=ours, timeout=60).status_code == 400
    spent = 0
    while predict(service, flow, ours, question=f"more {spent}").status_code == 200:
        spent += 1
    # Not passed on: no prediction.
    assert requests.get(f"{service}/api/v1/chatflows", headers=ours, timeout=60).status_code == 404
    found = scraped(service, monitor)
    assert requests_of(found) == {
        (flow, "success", "help", "shop"): 2 + spent,
        (flow, "cached", "help", "shop"): 1,
        (flow, "error", "help", "shop"): 1,
        ("unknown", "error", "help", "shop"): 1,
        ("unknown", "refused", "help", "shop"): 1,
        (flow, "refused", "help", "shop"): 3,  # two bodies, and the budget
        (flow, "refused", "unknown", "unknown"): 2,  # nobody's key, and one for another flow
    }
    (account,) = [one for key, one in get_runtime().books.store.accounts().items() if "help" in key]
    team = {"budget": "daily", "scope": "team=help", "window": "day"}
    assert of(found, "genops_budget_limit_usd", **team) == 0.00005
    assert of(found, "genops_budget_spent_usd", **team) == account.spent / 1e9
    billed = sum(150 * one.input_tokens + 600 * one.output_tokens for one in flowise.model.calls)
    ours_of = {"chatflow_id": flow, "provider": "openai", "team": "help", "project": "shop"}
    cost = of(found, "flowise_cost_usd_total", **ours_of)
    assert cost is not None
    assert cost >= billed / 1e9  # an estimate of the call that failed may be in it
    assert of(found, "genops_scrape_error", source="ledger") == 0


def test_refused_chats_and_uploads_count_too(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    service = serve(flowise.url)
    ours = client(attribution={"team": "help"})
    for headers, status in ((ours, 404), ({}, 401)):
        chat = requests.post(f"{service}/chat/direct", json={"message": "hi"}, headers=headers, timeout=60)
        assert chat.status_code == status
    upsert = requests.post(f"{service}/api/v1/vector/upsert/{NOBODYS_FLOW}", json={}, timeout=60)
    assert upsert.status_code == 401
    found = requests_of(scraped(service, client(role="monitor")))
    assert found == {
        ("unknown", "refused", "help", "unknown"): 1,
        ("unknown", "refused", "unknown", "unknown"): 2,
    }


def test_what_cannot_be_sent_is_an_error(serve: Serve, client: NewClient) -> None:
    service = serve("http://127.0.0.1:1")
    assert predict(service, NOBODYS_FLOW, client(attribution={"team": "help"})).status_code == 502
    found = requests_of(scraped(service, client(role="monitor")))
    assert found == {("unknown", "error", "help", "unknown"): 1}


def test_made_up_flows_make_no_series(serve: Serve, flowise: FlowiseStandIn, client: NewClient) -> None:
    service = serve(flowise.url)
    ours = client(attribution={"team": "help", "project": "shop"})
    for number in range(12):
        predict(service, f"22222222-3333-4444-8555-{number:012d}", ours, streaming=number % 2 == 0)
        predict(service, f"made-up-{number}", ours)
        predict(service, f"made-up-{number}", {})
    found = requests_of(scraped(service, client(role="monitor")))
    assert {flow for flow, _, _, _ in found} == {"unknown"}
    assert sum(found.values()) == 36


# -- a ledger or a store that is silent ----------------------------------------------------------


class Silent(MemoryLedger):
    """One that can be told to fail, or to hang."""

    def __init__(self) -> None:
        super().__init__()
        self.failing = False
        self.hanging = threading.Event()
        self.hanging.set()
        self.written: list[Batch] = []

    def count_on(self, seconds: float) -> bool:
        self.hanging.wait(60)
        if self.failing:
            raise StoreError("the disk is gone")
        return super().count_on(seconds)

    def tally(self, batch: Batch) -> None:
        if self.failing:
            raise StoreError("the disk is gone")
        self.written.append(batch)
        super().tally(batch)


@pytest.fixture
def silent() -> Iterator[Silent]:
    ledger = Silent()
    before = reset_runtime(Runtime(Settings(), ledger=ledger))
    yield ledger
    ledger.hanging.set()
    reset_runtime(before)


@pytest.fixture
def silent_service(serve: Serve, flowise: FlowiseStandIn, silent: Silent) -> str:
    service = serve(flowise.url)
    reset_runtime(Runtime(Settings(), ledger=silent))
    return service


def test_a_ledger_that_fails_or_hangs_is_left_out(
    silent_service: str, silent: Silent, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "SECONDS", 4.0)
    headers = client(role="monitor")
    silent.failing = True
    for _ in range(2):
        begun = time.monotonic()
        found = scraped(silent_service, headers)
        assert of(found, "genops_scrape_error", source="ledger") == 1
        assert of(found, "genops_scrape_error", source="store") == 0
        assert not any(name.startswith("flowise_") for name, _ in found)
        assert time.monotonic() - begun < 30
        silent.failing = False
        silent.hanging.clear()
    silent.hanging.set()
    deadline = time.monotonic() + 60
    while of(found := scraped(silent_service, headers), "genops_scrape_error", source="ledger"):
        assert time.monotonic() < deadline
    assert of(found, "flowise_active_sessions") == 0


def test_refusals_are_counted_once_the_ledger_is_back(
    silent_service: str, silent: Silent, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsent, "AGAIN_SECONDS", 0.05)
    silent.failing = True
    url = f"{silent_service}/api/v1/prediction/{NOBODYS_FLOW}"
    for _ in range(3):
        assert requests.post(url, json=HI, timeout=60).status_code == 401
    silent.failing = False
    headers, deadline = client(role="monitor"), time.monotonic() + 60
    while sum(requests_of(found := scraped(silent_service, headers)).values()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert requests_of(found) == {("unknown", "refused", "unknown", "unknown"): 3}
    # The one that failed was written again as it was, then what had come meanwhile.
    assert [one.number for one in silent.written] == [1, 2]


def test_a_ledger_that_is_behind_is_counted_without_being_asked_again(
    silent_service: str, silent: Silent, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def count_on(seconds: float) -> bool:
        looks.append(seconds)
        return len(looks) > 3

    monkeypatch.setattr(silent, "count_on", count_on)
    found = scraped(silent_service, client(role="monitor"))
    assert of(found, "genops_scrape_error", source="ledger") == 1
    deadline = time.monotonic() + 60
    while len(looks) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(looks) == 4


# -- one at a time -------------------------------------------------------------------------------


def test_a_storm_of_refusals_is_no_storm_of_transactions(silent: Silent) -> None:
    def slowly(batch: Batch) -> None:
        time.sleep(0.02)
        silent.written.append(batch)

    silent.tally = slowly  # type: ignore[method-assign]

    async def storm() -> int:
        counting = Unsent()
        await asyncio.gather(*(counting.count("refused", "", {"team": "a"}) for _ in range(500)))
        at_once = len(silent.written)
        await counting.count("refused", "", {"team": "b"})
        await counting.close()
        return at_once

    assert asyncio.run(storm()) <= 2
    counted: Counter[str] = Counter()
    for batch in silent.written:
        for (labels, slot), counts in batch.added.items():
            counted[labels.team, slot.status] += counts.requests  # type: ignore[index]
    assert counted == {("a", "refused"): 500, ("b", "refused"): 1}


def test_an_answer_waits_for_its_count_no_longer_than_its_bound(
    silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsent, "WAIT_SECONDS", 0.05)
    release = threading.Event()
    silent.tally = lambda batch: silent.written.append(batch) if release.wait(60) else None  # type: ignore[method-assign]

    async def ask() -> float:
        counting = Unsent()
        begun = time.monotonic()
        await counting.count("refused", "", {})
        waited = time.monotonic() - begun
        release.set()
        await counting.close()
        await counting._turns.next()
        return waited

    assert 0.04 < asyncio.run(ask()) < 20
    assert len(silent.written) == 1


def test_who_comes_while_one_runs_is_given_a_later_run() -> None:
    async def story() -> tuple[list[int], Any]:
        begun: list[int] = []
        state = 0

        async def look() -> int:
            begun.append(state)
            await asyncio.sleep(0.01)
            return begun[-1]

        turns = Turns(look)
        first = turns.next()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        state = 1
        second, third = turns.next(), turns.next()
        assert second is third is not first
        return begun, await asyncio.gather(first, second)

    assert asyncio.run(story()) == ([0, 1], [0, 1])


def test_workers_that_a_server_forked_do_not_write_under_one_name() -> None:
    """Else the batches of one would be taken for those that another had written already."""
    made = Unsent()
    workers = [copy.copy(made) for _ in range(2)]
    assert workers[0]._taken().writer != workers[1]._taken().writer
    assert workers[0]._taken().writer == workers[0]._taken().writer
