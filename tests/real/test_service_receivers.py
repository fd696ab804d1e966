"""Receivers and model proxy in a service of four workers: booked equals billed, whoever received what."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from genops_ctx import governance_context, instrument_flowise
from genops_ctx.core.records import Exactness
from genops_ctx.evidence.shared import SharedCorrections
from genops_ctx.ledger import open_ledger
from genops_ctx.providers.flow_editor import FlowEditor
from genops_ctx.providers.metering_setup import Receiver
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from genops_ctx.settings import Settings
from genops_ctx.stores import open_store
from tests.ledger.postgres_server import PostgresServer
from tests.service.served import Served
from tests.stores.redis_server import RedisServer

from .conftest import RunningFlowise
from .test_traced import CLASSIC, price

if TYPE_CHECKING:
    from genops_ctx.core.records import Charge
    from genops_ctx.testing.model_answers import BilledCall, ModelAnswer
    from genops_ctx.testing.model_stub import ModelStub

KEY = "the-key-that-all-receivers-know"
FLOWS = (*CLASSIC, "agentflow_llm", "agentflow_agent")

SETTINGS = """
[[budget]]
limit = "5/day"
by = "team"

[service.receivers]
key_env = "KEY_OF_THE_RECEIVERS"

[service.receivers.upstreams]
stub = {{ url = "{url}/v1", provider = "openai" }}
"""


@pytest.fixture
def service(flowise: RunningFlowise, tmp_path: Path) -> Iterator[Served]:
    settings = SETTINGS.format(url=flowise.model_stub.url)
    environment = {"FLOWISE_API_KEY": flowise.api_key, "KEY_OF_THE_RECEIVERS": KEY}
    with Served(tmp_path, flowise.url, workers=4, settings=settings, **environment) as service:
        yield service


@pytest.fixture
def on_servers(flowise: RunningFlowise, tmp_path: Path) -> Iterator[Served]:
    """As on several machines: budgets on Redis, and the ledger on PostgreSQL."""
    (tmp_path / "redis").mkdir()
    with PostgresServer() as postgres, RedisServer(tmp_path / "redis") as redis:
        environment = {
            "FLOWISE_API_KEY": flowise.api_key,
            "KEY_OF_THE_RECEIVERS": KEY,
            "GENOPS_STORE": redis.url,
            "GENOPS_LEDGER": postgres.new_database(),
        }
        settings = SETTINGS.format(url=flowise.model_stub.url)
        with Served(tmp_path, flowise.url, workers=4, settings=settings, **environment) as service:
            yield service


@pytest.fixture(params=["files", "servers"])
def either(request: pytest.FixtureRequest) -> Served:
    name = {"files": "service", "servers": "on_servers"}[request.param]
    service: Served = request.getfixturevalue(name)
    return service


@contextlib.contextmanager
def exported(flowise: RunningFlowise, service: Served) -> Iterator[None]:
    credential = flowise.builder.langfuse_credential(f"{service.url}/receive", KEY)
    for flow in FLOWS:
        flowise.builder.export_to(flowise.flows[flow], "langFuse", credential)
    yield
    for flow in FLOWS:
        flowise.builder.export_nowhere(flowise.flows[flow])


@pytest.fixture
def exporting(flowise: RunningFlowise, service: Served) -> Iterator[None]:
    with exported(flowise, service):
        yield


class Judge:
    """The model behind Flowise, which notes what it billed for each numbered question."""

    def __init__(self, model: ModelStub, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = model
        self.billed: dict[str, list[BilledCall]] = defaultdict(list)
        self._respond = model.respond
        model.reset()
        monkeypatch.setattr(model, "respond", self.respond)

    def respond(self, provider: Any, body: dict[str, object], headers: Any = None) -> ModelAnswer:
        given = self._respond(provider, body, headers)
        number = json.dumps(body).rpartition("number-")[2].split()[0]
        self.billed[number].append(given.billed)
        return given


@pytest.fixture
def judge(flowise_model: ModelStub, monkeypatch: pytest.MonkeyPatch) -> Judge:
    return Judge(flowise_model, monkeypatch)


class Clients:
    """Two customers, each with a key of its own, and the same ids for their chats."""

    def __init__(self, service: Served) -> None:
        self._url = service.url
        self._secrets = []
        store = open_keys(service.environment["GENOPS_LEDGER"])
        for team in ("search", "help"):
            key, secret = new_key(team, now=time.time(), attribution={"team": team})
            store.put(key)
            self._secrets.append(secret)
        store.close()

    def ask(self, number: int, flow: str, *, stream: bool, chat: str | None = None) -> bool:
        """Whether an answer came."""
        body = {"question": f"number-{number} " + "word " * number, "streaming": stream}
        secret = self._secrets[number % len(self._secrets)]
        try:
            answer = requests.post(
                f"{self._url}/api/v1/prediction/{flow}",
                json=body if chat is None else {**body, "chatId": chat},
                headers={"Authorization": f"Bearer {secret}", "X-GenOps-User-Id": str(number)},
                timeout=60,
            )
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            return False
        assert answer.status_code == 200, answer.text
        return not stream or '"event":"end"' in answer.text


def last_of(service: Served) -> dict[str, Charge]:
    """By the number of the question: what was booked for it in the end."""
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    last = {charge.attribution["user_id"]: charge for charge in ledger.charges()}
    ledger.close()
    return last


def wait_exact(service: Served, numbers: Iterable[int], seconds: float = 180) -> dict[str, Charge]:
    """Until these are; what is not by then, the caller sees."""
    awaited, until = {str(number) for number in numbers}, time.monotonic() + seconds
    while True:
        last = last_of(service)
        exact = {number for number, one in last.items() if one.exactness is Exactness.EXACT}
        if awaited <= exact or time.monotonic() > until:
            return last
        time.sleep(0.25)


def total(service: Served) -> int:
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    nanos = sum(charge.nanos for charge in ledger.charges())
    ledger.close()
    return nanos


def in_accounts(service: Served) -> tuple[int, int]:
    store = open_store(service.environment["GENOPS_STORE"], callers_clock=True)
    found = list(store.accounts().values())
    store.close()
    return sum(one.spent for one in found), sum(one.reserved for one in found)


def check(service: Served, last: dict[str, Charge], judge: Judge, lost: Collection[str] = ()) -> None:
    """Each charge has what the model billed for its own question; the ``lost`` may be flagged, and dearer."""
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    net = Counter[str]()
    for charge in ledger.charges():
        net[charge.attribution["user_id"]] += charge.nanos
    ledger.close()
    for number, charge in last.items():
        cost = price(judge.billed[number])
        if number in lost and charge.exactness is not Exactness.EXACT:
            assert net[number] >= cost, charge
            continue
        booked = [(usage.model, usage.input_tokens, usage.output_tokens) for usage in charge.usage]
        billed = [(one.model, one.input_tokens, one.output_tokens) for one in judge.billed[number]]
        assert sorted(booked) == sorted(billed), (number, charge)
        assert (charge.exactness, net[number]) == (Exactness.EXACT, cost), charge


def leader(folder: Path) -> int:
    with sqlite3.connect(folder / "costs.sqlite3") as file:
        (who,) = file.execute("SELECT who FROM evidence_reader").fetchone()
    return int(who.split(":")[1])


def jobs_of(count: int) -> list[tuple[int, str]]:
    jobs = [(number, FLOWS[number % len(FLOWS)]) for number in range(count)]
    random.Random(8).shuffle(jobs)
    return jobs


def test_100_calls_at_16_at_a_time_on_four_workers_are_exact(
    flowise: RunningFlowise, either: Served, judge: Judge
) -> None:
    """Five flows, JSON and streamed, two customers, chats shared by calls at one time."""
    service = either
    clients = Clients(service)

    def one(job: tuple[int, str]) -> bool:
        number, flow = job
        shared = flow == "llm_chain"  # without a memory; streams of one chat Flowise mixes up
        stream = number % 3 == 0 and not shared
        chat = f"chat-{number % 4}" if shared else None
        return clients.ask(number, flowise.flows[flow], stream=stream, chat=chat)

    with exported(flowise, service), ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, jobs_of(100)))
        last = wait_exact(service, range(100))
    assert len(last) == 100
    check(service, last, judge)
    assert Counter(one.attribution["team"] for one in last.values()) == {"search": 50, "help": 50}
    assert service.stop() == 0
    assert total(service) == price(judge.model.calls) == in_accounts(service)[0]


def test_workers_that_are_killed_lose_no_evidence(
    flowise: RunningFlowise, service: Served, exporting: None, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of who collects evidence, and of another; then the service is started anew.

    What Langfuse is told of an AgentFlow is less than its answer says, so a lost one stays flagged.
    """
    clients, jobs = Clients(service), jobs_of(100)
    done, victims = threading.Lock(), list[int]()
    begun = 0

    def one(job: tuple[int, str]) -> bool:
        nonlocal begun
        with done:
            begun += 1
            if begun in (40, 60):
                victim = leader(service.folder) if begun == 40 else service.pids()[0]
                os.kill(victim, signal.SIGKILL)
                victims.append(victim)
            if begun == 80:
                time.sleep(1)
        number, flow = job
        return clients.ask(number, flowise.flows[flow], stream=number % 3 == 0)

    with ThreadPoolExecutor(12) as pool:
        answered = list(pool.map(one, jobs))
    answers = [number for (number, _), came in zip(jobs, answered, strict=True) if came]
    time.sleep(4)  # Flowise exports half a second later, and once more after three where a worker was killed
    wait_exact(service, answers)  # Flowise tries for ten seconds: a restart may take longer
    assert service.stop() == 0
    service.start()
    wait_exact(service, answers)
    time.sleep(3)
    assert service.stop() == 0
    booked_before, billed = total(service), price(judge.model.calls)
    assert len(victims) == 2
    # What the killed were calling stays reserved until its time is over; then it is booked as lost.
    settings = Settings(
        ledger=service.environment["GENOPS_LEDGER"],
        store=service.environment["GENOPS_STORE"],
        evidence="shared",
    )
    runtime = Runtime(settings, clock=lambda: time.time() + 700)
    before = reset_runtime(runtime)
    try:
        assert isinstance(runtime.corrections, SharedCorrections)
        runtime.books.catch_up(runtime.clock())
        for _ in range(20):
            runtime.corrections.collector.step()
            time.sleep(0.2)
    finally:
        reset_runtime(before)
        runtime.close()
    last = last_of(service)
    print("lost and corrected:", billed - booked_before, "of", billed, Counter(answered))
    lost = {str(number) for (number, _), came in zip(jobs, answered, strict=True) if not came}
    check(service, last, judge, lost)
    assert judge.billed.keys() <= last.keys()
    assert in_accounts(service) == (total(service), 0)


@pytest.fixture
def proxied(flowise: RunningFlowise, service: Served) -> Iterator[None]:
    runtime = Runtime(Settings(ledger=service.environment["GENOPS_LEDGER"]))
    editor = FlowEditor(instrument_flowise(flowise.url, flowise.api_key), runtime)
    receiver = Receiver(f"{service.url}/receive", KEY)
    for flow in CLASSIC:
        editor.set_up(editor.plan(flow, "gateway", receiver, "stub"))
    yield
    for flow in CLASSIC:
        editor.undo(editor.plan_undo(flow, "gateway"))
    runtime.close()


def test_96_calls_through_the_proxy_of_four_workers_are_exact(
    flowise: RunningFlowise, service: Served, proxied: None, judge: Judge
) -> None:
    clients = Clients(service)

    def one(number: int) -> bool:
        flow = ("llm_chain", "tool_agent")[number % 2]
        stream = number % 3 == 0
        chat = str(uuid.uuid4()) if stream else f"shared-{number % 4}"
        return clients.ask(number, flowise.flows[flow], stream=stream, chat=chat)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(96)))
    last = wait_exact(service, range(96))
    assert len(last) == 96
    check(service, last, judge)
    assert service.stop() == 0
    assert total(service) == price(judge.model.calls) == in_accounts(service)[0]


def test_a_client_elsewhere_learns_what_the_service_received(
    flowise: RunningFlowise, service: Served, exporting: None, judge: Judge
) -> None:
    """An application with the adapter, which receives nothing itself; it shares the ledger."""
    settings = Settings(
        ledger=service.environment["GENOPS_LEDGER"],
        store=service.environment["GENOPS_STORE"],
        evidence="shared",
    )
    runtime = Runtime(settings)
    before = reset_runtime(runtime)
    try:
        adapter = instrument_flowise(flowise.url, flowise.api_key, team="app", timeout=60)
        with governance_context("app") as context:
            for number, stream in enumerate((False, True)):
                answer = adapter.predict_flow(
                    "tool_agent", f"number-{number} ?", stream=stream, user_id=str(number)
                )
                if stream:
                    list(answer)
                assert answer.charge is not None
                assert answer.charge.exactness is not Exactness.EXACT
        assert context.wait(120)
        assert int(context.total_cost * 10**9) == price(judge.model.calls) > 0
        assert context.inexact_cost == 0
    finally:
        reset_runtime(before)
        runtime.close()
