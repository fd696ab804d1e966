"""The chat endpoints on four workers and a real Redis: one breaker, one count, one probe, bounded answers.

A connection that is kept alive stays with its worker, so each worker has a client of its own here.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from genops_ctx.ledger import open_ledger
from genops_ctx.stores import open_store
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.service.conftest import FLOWISE_KEY
from tests.service.served import Served
from tests.service.test_shared import clients, secret
from tests.stores.redis_server import RedisServer

pytestmark = pytest.mark.slow

SETTINGS = """
[[service.provider]]
name = "first"
flow = "shaky"
failure_threshold = 3
recovery_timeout = {recovery}

[[service.provider]]
name = "second"
flow = "solid"
priority = 2
"""
QUESTION = "What is the airspeed of an unladen swallow?"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def flowise() -> Iterator[FlowiseStandIn]:
    with FlowiseStandIn(
        [Flow("shaky", "agentflow"), Flow("solid", "agentflow")], api_key=FLOWISE_KEY
    ) as server:
        yield server


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as server:
        yield server


NewService = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path, flowise: FlowiseStandIn, redis: RedisServer) -> Iterator[NewService]:
    """Starts the service, as often as is asked, on the same Redis and ledger."""
    started: list[Served] = []

    def start(workers: int = 4, recovery: float = 3600.0, *, patient: bool = True) -> Served:
        folder = tmp_path / f"service{len(started)}"
        folder.mkdir()
        service = Served(
            folder,
            flowise.url,
            workers=workers,
            settings=SETTINGS.format(recovery=recovery),
            patient=patient,
            FLOWISE_API_KEY=FLOWISE_KEY,
            GENOPS_STORE=redis.url,
            GENOPS_LEDGER=f"sqlite:///{tmp_path}/costs.sqlite3",
        )
        started.append(service.__enter__())
        return service

    yield start
    for service in started:
        service.__exit__()


def chat(service: Served, session: requests.Session, way: str = "direct") -> requests.Response:
    return session.post(f"{service.url}/chat/{way}", json={"message": QUESTION}, timeout=60)


def told(service: Served, session: requests.Session) -> dict[str, Any]:
    answer = session.get(f"{service.url}/providers", timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def first(service: Served, session: requests.Session) -> dict[str, Any]:
    return dict(told(service, session)["providers"][0])


def sent(flowise: FlowiseStandIn, flow: str) -> int:
    return sum(f"/prediction/{flowise.flow_id(flow)}" in seen.path for seen in flowise.requests)


def shaky(flowise: FlowiseStandIn) -> str:
    return f"/prediction/{flowise.flow_id('shaky')}"


def test_what_one_worker_learns_of_a_provider_all_know(serve: NewService, flowise: FlowiseStandIn) -> None:
    service = serve()
    headers = secret(service, "ops", "operator")
    workers = clients(service, headers)
    one, *others = workers.values()
    began = time.time()
    flowise.fail_next(500, times=3, on=shaky(flowise))
    assert [chat(service, one, way).json()["provider"] for way in ("direct", "decorator", "direct")] == [
        "second"
    ] * 3
    before = sent(flowise, "shaky")
    assert before == 3
    # Open in all, with one count and one time, and nothing more is sent there through any.
    seen = [first(service, session) for session in workers.values()]
    assert len({str(state) for state in seen}) == 1
    assert (seen[0]["circuit_state"], seen[0]["available"], seen[0]["failure_count"]) == ("open", False, 3)
    at = time.mktime(time.strptime(seen[0]["last_failure_time"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    assert began - 2 <= at <= time.time() + 1
    assert [chat(service, session).json()["provider"] for session in others] == ["second"] * 3
    assert sent(flowise, "shaky") == before
    health = others[0].get(f"{service.url}/health", timeout=60)
    assert (health.status_code, health.json()["status"]) == (200, "degraded"), health.json()
    assert (health.json()["redis_connected"], health.json()["sync_enabled"]) == (True, True)

    # A worker that is started later, and another service on the same Redis, agree.
    victim = next(iter(workers))
    os.kill(victim, signal.SIGKILL)
    again = clients(service, headers, frozenset({victim}))
    (late,) = (session for worker, session in again.items() if worker not in workers)
    assert first(service, late) == seen[0]
    assert chat(service, late).json()["provider"] == "second"
    another = serve(workers=1)
    session = requests.Session()
    session.headers.update(headers)
    assert first(another, session) == seen[0]
    assert sent(flowise, "shaky") == before

    # Reset through the late one: closed in all, and used by all.
    reset = late.post(f"{service.url}/providers/first/reset", timeout=60)
    assert reset.json()["message"].endswith("for all workers.")
    for served, client in [*((service, one) for one in others), (another, session)]:
        assert first(served, client)["circuit_state"] == "closed"
        assert first(served, client)["failure_count"] == 0
        assert chat(served, client).json()["provider"] == "first"

    # The log says which worker asked which provider, and nothing of what was asked.
    lines = [line for line in service.log.splitlines() if "processed request with provider: " in line]
    assert {line.rpartition(" ")[2] for line in lines} == {"first", "second"}
    logged = {int(line.partition("[Worker:")[2].partition("]")[0]) for line in lines}
    assert logged == {worker for worker in (workers | again) if worker != victim} | {victim}
    assert "swallow" not in service.log


def test_an_open_breaker_recovers_by_itself_with_one_probe(
    serve: NewService, flowise: FlowiseStandIn
) -> None:
    recovery = 4.0
    service = serve(recovery=recovery)
    workers = list(clients(service, secret(service, "web")).values())
    flowise.fail_next(500, times=3, on=shaky(flowise))
    for session in workers[:2]:
        assert chat(service, session).json()["provider"] == "second"
    opened = time.monotonic()
    assert chat(service, workers[2]).json()["provider"] == "second"
    state = first(service, workers[3])["circuit_state"]
    assert state == "open" or time.monotonic() > opened + recovery
    before = sent(flowise, "shaky")

    # The first probe fails: one call of sixteen at once went there, and it is open again in all.
    time.sleep(recovery + 0.1)
    assert {first(service, session)["circuit_state"] for session in workers} == {"half_open"}
    flowise.fail_next(500, times=50, on=shaky(flowise))
    probing = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: chat(service, workers[number % 4]), range(16)))
    assert [answer.json()["provider"] for answer in answers] == ["second"] * 16
    probes = sent(flowise, "shaky") - before
    # A machine that took longer than it stays open has seen the next one too.
    assert 1 <= probes <= 1 + (time.monotonic() - probing) // recovery
    assert {first(service, session)["failure_count"] for session in workers} == {3 + probes}

    # The second succeeds: closed in all.
    flowise.clear_faults()
    time.sleep(recovery + 0.6)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: chat(service, workers[number % 4]), range(16)))
    assert {answer.status_code for answer in answers} == {200}
    assert {first(service, session)["circuit_state"] for session in workers} == {"closed"}
    assert {chat(service, session).json()["provider"] for session in workers} == {"first"}


@pytest.mark.parametrize("how", ["paused", "killed"])
def test_while_redis_is_away_answers_come_in_bounded_time_and_health_says_so(
    serve: NewService, flowise: FlowiseStandIn, redis: RedisServer, how: str
) -> None:
    service = serve(patient=False)
    operator = secret(service, "ops", "operator")
    workers = list(clients(service, operator).values())
    flowise.fail_next(500, times=1000, on=shaky(flowise))
    # A failure that Redis had no time to count, on a busy machine, is made up for by the next one.
    deadline = time.monotonic() + 60
    while [first(service, session)["circuit_state"] for session in workers] != ["open"] * 4:
        assert time.monotonic() < deadline
        chat(service, workers[0])
    flowise.clear_faults()
    redis.pause() if how == "paused" else redis.kill()
    try:
        longest = 0.0
        for session in workers:
            for look in ("providers", "health", "health/live"):
                begun = time.monotonic()
                answer = session.get(f"{service.url}/{look}", timeout=60)
                longest = max(longest, time.monotonic() - begun)
                if look == "health":
                    body = answer.json()
                    assert (answer.status_code, body["status"]) == (200, "degraded")
                    assert (body["redis_connected"], body["sync_enabled"]) == (False, False)
                    assert "store does not answer" in body["reasons"]
                elif look == "providers":
                    assert answer.json()["sync_enabled"] is False
                    # What each knew of it still holds.
                    assert answer.json()["providers"][0]["circuit_state"] == "open"
            begun = time.monotonic()
            assert chat(service, session).json()["provider"] == "second"
            longest = max(longest, time.monotonic() - begun)
        assert longest < 30.0
        # Nobody else would hear of it.
        reset = workers[0].post(f"{service.url}/providers/first/reset", timeout=60)
        assert reset.status_code == 503
    finally:
        redis.resume() if how == "paused" else redis.start()
    deadline = time.monotonic() + 60
    while not all(told(service, session)["sync_enabled"] for session in workers):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    while workers[0].post(f"{service.url}/providers/first/reset", timeout=60).status_code != 200:
        assert time.monotonic() < deadline
    while {first(service, session)["circuit_state"] for session in workers} != {"closed"}:
        assert time.monotonic() < deadline
    assert {chat(service, session).json()["provider"] for session in workers} == {"first"}


def test_books_are_the_bill_while_the_first_provider_comes_and_goes(
    serve: NewService, flowise: FlowiseStandIn
) -> None:
    """120 chats at 12 at a time of two owners through four workers; the first four calls of one flow fail."""
    service = serve(recovery=0.3)
    teams = {team: secret(service, team, team=team) for team in ("help", "shop")}
    sessions = {team: list(clients(service, headers).values()) for team, headers in teams.items()}
    flowise.fail_next(500, times=4, on=shaky(flowise))

    def one(number: int) -> tuple[str, requests.Response]:
        team = ("help", "shop")[number % 2]
        way = ("direct", "decorator")[number // 2 % 2]
        return team, chat(service, sessions[team][number % 4], way)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(one, range(120)))
    assert {answer.status_code for _, answer in answers} == {200}
    assert {answer.json()["provider"] for _, answer in answers} == {"first", "second"}
    assert service.stop() == 0
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    charges = list(ledger.charges())
    ledger.close()
    billed = sum(150 * one.input_tokens + 600 * one.output_tokens for one in flowise.model.calls)
    completed = [charge for charge in charges if charge.outcome == "completed"]
    assert sum(charge.nanos for charge in completed) == billed
    assert {str(charge.exactness) for charge in completed} == {"exact"}
    assert len(completed) == len(flowise.model.calls) == 120
    # What a Flowise that answers 500 has let a model do nobody knows, and those charges say so.
    failed = [charge for charge in charges if charge.outcome == "failed"]
    assert len(failed) == len(charges) - 120 == 4
    assert {str(charge.exactness) for charge in failed} == {"estimated"}
    for team in teams:
        own = sum(charge.nanos for charge in charges if charge.attribution["team"] == team)
        said = sum(round(float(answer.json()["cost"]) * 1e9) for whose, answer in answers if whose == team)
        assert own == said
    assert len({(charge.operation, charge.attempt) for charge in charges}) == len(charges)


def test_chats_end_and_are_booked_when_clients_leave_and_workers_are_told_to_stop(
    tmp_path: Path, flowise: FlowiseStandIn
) -> None:
    settings = f'[[budget]]\nlimit = "1/day"\nby = "team"\n{SETTINGS.format(recovery=60)}'
    body = {"message": "[[sleep:2]] Take your time"}
    with Served(tmp_path, flowise.url, workers=2, settings=settings, FLOWISE_API_KEY=FLOWISE_KEY) as service:
        headers = secret(service, "web", team="help")

        def ask(way: str) -> int:
            url = f"{service.url}/chat/{way}"
            return requests.post(url, json=body, headers=headers, timeout=60).status_code

        with ThreadPoolExecutor(2) as pool, ExitStack() as leaving:
            asked = [pool.submit(ask, way) for way in ("direct", "decorator")]
            for way in ("direct", "decorator"):
                line = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
                leaving.callback(line.close)
                line.request("POST", f"/chat/{way}", json.dumps(body), {**headers, **JSON})
            flowise.model.wait_for(4, 60)
            leaving.close()
            assert service.stop() == 0
            assert [one.result() for one in asked] == [200, 200]
    billed = sum(150 * one.input_tokens + 600 * one.output_tokens for one in flowise.model.calls)
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    charges = list(ledger.charges())
    ledger.close()
    assert [str(charge.exactness) for charge in charges] == ["exact"] * 4
    assert sum(charge.nanos for charge in charges) == billed
    store = open_store(service.environment["GENOPS_STORE"])
    (account,) = [one for key, one in store.accounts().items() if "team=help" in key]
    store.close()
    assert (account.spent, account.reserved) == (billed, 0)
