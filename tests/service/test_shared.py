"""What one worker of four learns is so in all, and in one started later: breakers, limits, cache, budgets.

A connection that is kept alive stays with its worker, so each worker has a client of its own here.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
import requests

from genops_ctx.ledger import open_ledger
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.service.conftest import FLOWISE_KEY
from tests.service.served import Served
from tests.stores.redis_server import RedisServer

pytestmark = pytest.mark.slow

SETTINGS = """
[[budget]]
name = "daily"
limit = "1/day"
by = "team"
limits = { little = "0.00001", "*" = 1 }

[service]
breaker = 3

[[service.rate_limit]]
rate = "5/hour"
by = "customer_id"

[service.cache]
flows = ["*"]
"""


@pytest.fixture(scope="module")
def flowise() -> Iterator[FlowiseStandIn]:
    flows = [Flow(name, "agentflow") for name in ("failing", "limited", "kept", "once", "paid")]
    with FlowiseStandIn(flows, api_key=FLOWISE_KEY) as server:
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, flowise: FlowiseStandIn) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("shared")
    redis = tmp_path_factory.mktemp("redis")
    with (
        RedisServer(redis) as server,
        Served(
            folder,
            flowise.url,
            workers=4,
            settings=SETTINGS,
            FLOWISE_API_KEY=FLOWISE_KEY,
            GENOPS_STORE=server.url,
        ) as service,
    ):
        yield service


def secret(service: Served, name: str, role: str = "client", **owner: str) -> dict[str, str]:
    store = open_keys(service.environment["GENOPS_LEDGER"])
    key, text = new_key(name, now=time.time(), role=role, attribution=owner)
    store.put(key)
    store.close()
    return {"Authorization": f"Bearer {text}"}


def clients(
    service: Served, headers: dict[str, str], but: frozenset[int] = frozenset()
) -> dict[int, requests.Session]:
    """A connection to each of the four workers, by process id; those of ``but`` are over."""
    found: dict[int, requests.Session] = {}
    deadline = time.monotonic() + 60
    while len(found) < 4:
        assert time.monotonic() < deadline, sorted(found)
        session = requests.Session()
        session.headers.update(headers)
        try:
            worker = session.get(f"{service.url}/health/live", timeout=60).json()["worker_id"]
        except requests.ConnectionError:
            continue
        if worker in found or worker in but:
            session.close()
        else:
            found[worker] = session
    return found


def predict(service: Served, session: requests.Session, flow: str, **headers: str) -> requests.Response:
    url = f"{service.url}/api/v1/prediction/{flow}"
    return session.post(url, json={"question": "hi"}, headers=headers, timeout=60)


def test_a_breaker_that_one_worker_opens_is_open_in_all_until_one_closes_it(
    service: Served, flowise: FlowiseStandIn
) -> None:
    flow = flowise.flow_id("failing")
    workers = clients(service, secret(service, "breaker", "operator"))
    first, *others = workers.values()
    flowise.fail_next(500, times=3)
    assert [predict(service, first, flow).status_code for _ in range(3)] == [500] * 3
    before = len(flowise.requests)
    assert [predict(service, one, flow).status_code for one in others] == [503] * 3
    seen = [one.get(f"{service.url}/flows/{flow}/breaker", timeout=60).json() for one in others]
    assert [one.get("state") for one in seen] == ["open"] * 3, seen
    asked = [seen for seen in flowise.requests[before:] if "/prediction/" in seen.path]
    assert not asked
    # One that is started later agrees.
    victim = next(iter(workers))
    os.kill(victim, signal.SIGKILL)
    again = clients(service, dict(others[0].headers), frozenset({victim}))
    (late,) = (session for worker, session in again.items() if worker not in workers)
    assert predict(service, late, flow).status_code == 503
    closed = late.post(f"{service.url}/flows/{flow}/breaker/reset", timeout=60)
    assert closed.json()["state"] == "closed"
    assert [predict(service, one, flow).status_code for one in others] == [200] * 3


def test_a_rate_limit_is_one_for_all_workers(service: Served, flowise: FlowiseStandIn) -> None:
    flow = flowise.flow_id("limited")
    # What is counted per customer is so whichever of its keys is used.
    sessions = [
        session
        for name in ("one", "two")
        for session in clients(service, secret(service, name, customer_id="acme")).values()
    ]
    statuses = [
        predict(service, session, flow, **{"Idempotency-Key": str(number)}).status_code
        for number, session in enumerate(sessions)
    ]
    assert statuses == [200] * 5 + [429] * 3


def test_an_answer_that_one_worker_got_is_kept_for_all(service: Served, flowise: FlowiseStandIn) -> None:
    flow = flowise.flow_id("kept")
    workers = clients(service, secret(service, "kept", customer_id="kept"))
    before = len(flowise.model.calls)
    hits = [predict(service, one, flow).headers.get("X-GenOps-Cache") for one in workers.values()]
    assert hits == [None, "hit", "hit", "hit"]
    assert len(flowise.model.calls) == before + 1


def test_no_worker_gives_a_kept_answer_to_an_owner_that_was_frozen_through_one(
    service: Served, flowise: FlowiseStandIn
) -> None:
    flow = flowise.flow_id("kept")
    workers = clients(service, secret(service, "cold", "operator", team="cold", customer_id="cold"))
    first, *others = workers.values()
    predict(service, first, flow)
    before = len(flowise.model.calls)
    assert [predict(service, one, flow).headers["X-GenOps-Cache"] for one in others] == ["hit"] * 3
    for frozen, expected in ((True, [402] * 4), (False, [200] * 4)):
        done = first.post(f"{service.url}/budgets/team=cold/freeze", json={"frozen": frozen}, timeout=60)
        assert done.status_code == 200, done.text
        assert [predict(service, one, flow).status_code for one in workers.values()] == expected
    assert len(flowise.model.calls) == before


def test_a_call_with_a_key_is_made_once_by_all_workers(service: Served, flowise: FlowiseStandIn) -> None:
    flow = flowise.flow_id("once")
    workers = clients(service, secret(service, "once", customer_id="once"))
    before = len(flowise.model.calls)
    once = {"Idempotency-Key": "order-7"}
    statuses = [predict(service, one, flow, **once).status_code for one in workers.values()]
    assert statuses == [200, 409, 409, 409]
    assert len(flowise.model.calls) == before + 1


def test_what_is_spent_through_one_worker_is_spent_in_all(service: Served, flowise: FlowiseStandIn) -> None:
    flow = flowise.flow_id("paid")
    workers = clients(service, secret(service, "paid", team="little", customer_id="paid"))
    before = len(flowise.model.calls)
    first, *others = workers.values()
    predict(service, first, flow, **{"Idempotency-Key": "paid-1"})
    left = [one.get(f"{service.url}/budgets/me", timeout=60).json()[0]["remaining"] for one in others]
    billed = sum(150 * one.input_tokens + 600 * one.output_tokens for one in flowise.model.calls[before:])
    assert 0 < billed < 10_000
    assert left == [f"0.{10_000 - billed:09d}"] * 3
    # What a call is likely to cost, 1,024 tokens of output, is left in none.
    statuses = {
        predict(service, one, flow, **{"X-GenOps-Max-Cost": "1", "Idempotency-Key": f"n{number}"}).status_code
        for number, one in enumerate(workers.values())
    }
    assert statuses == {402}
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    paid = [charge for charge in ledger.charges() if charge.attribution.get("customer_id") == "paid"]
    ledger.close()
    assert sum(charge.nanos for charge in paid) == billed
