"""Restarts under load: of workers and of instances one by one, and a stop: no call fails, books are right."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from genops_ctx.ledger import open_ledger
from genops_ctx.service.connections import IDLE_SECONDS
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from genops_ctx.stores import open_store
from genops_ctx.stores.redis import RedisStore
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.ledger.postgres_server import PostgresServer
from tests.service.conftest import FLOWISE_KEY
from tests.service.served import Served
from tests.stores.redis_server import RedisServer

pytestmark = pytest.mark.slow

BUDGET = '[[budget]]\nlimit = "1/day"\nby = "team"\n'


@pytest.fixture
def flowise() -> Iterator[FlowiseStandIn]:
    with FlowiseStandIn([Flow("graph", "agentflow")], api_key=FLOWISE_KEY) as server:
        yield server


def key_of(service: Served) -> dict[str, str]:
    with closing(open_keys(service.environment["GENOPS_LEDGER"])) as store:
        key, secret = new_key("web", now=time.time(), attribution={"team": "help"})
        store.put(key)
    return {"Authorization": f"Bearer {secret}"}


@dataclass
class Load:
    """Clients that ask all the time, every other one for streams, each on a connection that it keeps."""

    urls: Callable[[], list[str]]
    """of the instances that requests may be sent to, at this moment"""
    flow: str
    headers: dict[str, str]
    clients: int = 8
    sleep: float = 0.2
    answered: int = 0
    failed: list[str] = field(default_factory=list)
    """what was not answered whole, though it was sent"""
    refused: int = 0
    """connections that were not taken"""
    chosen: dict[int, int] = field(default_factory=dict)
    """how often each client has chosen where to ask"""
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def _ask(self, number: int) -> None:
        chosen = random.Random(number)
        with requests.Session() as session:
            while not self._stopping.is_set():
                streams = chosen.random() < 0.5
                body = {"question": f"[[sleep:{self.sleep}]] Again", "streaming": streams}
                url = f"{chosen.choice(self.urls())}/api/v1/prediction/{self.flow}"
                self.chosen[number] = self.chosen.get(number, 0) + 1
                try:
                    answer = session.post(url, json=body, headers=self.headers, timeout=60)
                except requests.RequestException as error:
                    if "refused" in str(error):
                        self.refused += 1
                        time.sleep(0.05)
                    else:
                        self.failed.append(str(error))
                    continue
                if answer.status_code != 200 or not whole(answer, streams):
                    self.failed.append(f"{answer.status_code} {answer.text[-200:]}")
                self.answered += 1

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not done():
            assert time.monotonic() < deadline, (self.answered, self.refused, self.failed[-3:])
            time.sleep(0.05)

    def answers(self, more: int) -> None:
        """Wait for so many."""
        wanted = self.answered + more
        self.until(lambda: self.answered >= wanted)

    def each_chooses_anew(self) -> None:
        """Wait until no request is on its way to an instance that was taken out of rotation."""
        before = dict(self.chosen)
        self.until(lambda: all(self.chosen[one] > before.get(one, 0) for one in range(self.clients)))

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(120)

    def __exit__(self, *_: object) -> None:
        self.stop()


def whole(answer: requests.Response, streams: bool) -> bool:
    if not streams:
        return bool(answer.json()["text"])
    lines = [line for line in answer.text.split("\n") if line.startswith("data:")]
    return bool(lines) and json.loads(lines[-1].removeprefix("data:"))["event"] == "end"


def books_are_the_bill(service: Served, flowise: FlowiseStandIn, answered: int) -> None:
    billed = [150 * call.input_tokens + 600 * call.output_tokens for call in flowise.model.calls]
    with closing(open_ledger(service.environment["GENOPS_LEDGER"])) as ledger:
        charges = list(ledger.charges())
    assert [charge for charge in charges if str(charge.exactness) != "exact"] == [], service.log[-2000:]
    assert sum(charge.nanos for charge in charges) == sum(billed)
    assert len(charges) == len(billed) == answered
    assert {charge.outcome for charge in charges} == {"completed"}
    with closing(open_store(service.environment["GENOPS_STORE"])) as store:
        (account,) = [one for name, one in store.accounts().items() if "team=help" in name]
    assert (account.spent, account.reserved) == (sum(billed), 0)


def test_workers_are_replaced_one_by_one_and_no_call_fails(tmp_path: Path, flowise: FlowiseStandIn) -> None:
    """SIGHUP to a service of four workers, through connections that clients keep."""
    with Served(tmp_path, flowise.url, workers=4, settings=BUDGET, FLOWISE_API_KEY=FLOWISE_KEY) as service:
        before = set(service.pids())
        load = Load(lambda: [service.url], flowise.flow_id("graph"), key_of(service))
        with load:
            load.answers(25)
            assert service.process is not None
            service.process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 240
            while len(set(service.pids()) - before) < 4 or len(service.pids()) > 4:
                assert time.monotonic() < deadline, service.log[-2000:]
                time.sleep(0.2)
            load.answers(25)
        assert load.failed == []
        assert load.refused == 0
        assert not before & set(service.pids())
        assert service.stop() == 0
    assert "Traceback" not in service.log
    books_are_the_bill(service, flowise, load.answered)


def test_a_kept_connection_is_told_before_it_is_closed(tmp_path: Path, flowise: FlowiseStandIn) -> None:
    """A stream that had begun when the worker was told to stop could not say that it is the last answer."""
    with Served(tmp_path, flowise.url, settings=BUDGET, FLOWISE_API_KEY=FLOWISE_KEY) as service:
        headers = {**key_of(service), "Content-Type": "application/json"}
        path = f"/api/v1/prediction/{flowise.flow_id('graph')}"
        line = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        with closing(line):
            question = {"question": "[[sleep:1.5]] One", "streaming": True}
            line.request("POST", path, json.dumps(question), headers)
            stream = line.getresponse()
            assert stream.getheader("Connection") is None
            assert service.process is not None
            service.process.send_signal(signal.SIGTERM)
            assert b'"event":"end"' in stream.read()
            ended, answered = time.monotonic(), 2
            time.sleep(0.3)
            try:
                line.request("POST", path, json.dumps({"question": "Two"}), headers)
                answer = line.getresponse()
                assert (answer.status, answer.getheader("Connection")) == (200, "close")
                assert json.loads(answer.read())["text"]
            except OSError:
                # A client that stood still for longer than an unused connection is left open.
                assert time.monotonic() - ended > IDLE_SECONDS
                answered = 1
        service.process.wait(60)
    books_are_the_bill(service, flowise, answered)


def test_a_stop_under_load_loses_nothing_that_was_taken(tmp_path: Path, flowise: FlowiseStandIn) -> None:
    """SIGTERM to four workers: what they took, streams too, is answered whole; then nothing is taken."""
    with Served(tmp_path, flowise.url, workers=4, settings=BUDGET, FLOWISE_API_KEY=FLOWISE_KEY) as service:
        load = Load(lambda: [service.url], flowise.flow_id("graph"), key_of(service), sleep=0.8)
        with load:
            flowise.model.wait_for(8, 60)
            assert service.stop() == 0
            load.until(lambda: load.refused > 0)
        # A connection that no worker had taken yet is reset with the service; nothing was sent on for it.
        assert load.answered >= 8
        assert all("reset" in error or "without response" in error for error in load.failed), load.failed
    books_are_the_bill(service, flowise, load.answered)


def test_instances_are_replaced_one_by_one_and_no_call_fails(tmp_path: Path, flowise: FlowiseStandIn) -> None:
    """Two instances on one Redis and one PostgreSQL; each is taken out of rotation, stopped, and started."""
    with RedisServer(tmp_path) as redis, PostgresServer() as postgres:
        environment = {
            "FLOWISE_API_KEY": FLOWISE_KEY,
            "GENOPS_STORE": redis.url,
            "GENOPS_LEDGER": postgres.new_database(),
        }
        folders = [tmp_path / name for name in ("one", "two", "three", "four")]
        for folder in folders:
            folder.mkdir()
        instances = [
            Served(folder, flowise.url, workers=2, settings=BUDGET, **environment) for folder in folders
        ]
        first, second, *fresh = instances
        rotation = [first.url, second.url]
        try:
            first.start()
            headers = key_of(first)
            second.start()
            load = Load(lambda: list(rotation), flowise.flow_id("graph"), headers)
            with load:
                load.answers(25)
                for old, new in zip((first, second), fresh, strict=True):
                    new.start()
                    rotation.append(new.url)
                    rotation.remove(old.url)
                    load.each_chooses_anew()  # as a preStop hook waits for the balancer
                    assert old.stop() == 0
                load.answers(25)
            assert load.failed == []
            assert load.refused == 0
            assert [one.stop() for one in fresh] == [0, 0]
            books_are_the_bill(first, flowise, load.answered)
        finally:
            for instance in instances:
                instance.__exit__()


def test_killed_workers_of_redis_and_postgresql_leave_nothing_reserved(
    tmp_path: Path, flowise: FlowiseStandIn
) -> None:
    """kill -9 under load, three times: a call of a model is booked, or reserved until it is lost."""
    with RedisServer(tmp_path) as redis, PostgresServer() as postgres:
        service = Served(
            tmp_path,
            flowise.url,
            workers=4,
            settings=BUDGET,
            FLOWISE_API_KEY=FLOWISE_KEY,
            GENOPS_STORE=redis.url,
            GENOPS_LEDGER=postgres.new_database(),
        )
        with service:
            load = Load(lambda: [service.url], flowise.flow_id("graph"), key_of(service), sleep=0.5)
            with load:
                flowise.model.wait_for(8, 60)
                for _ in range(3):
                    os.kill(service.pids()[0], signal.SIGKILL)
                    load.answers(8)
                    time.sleep(1.0)
            assert service.stop() == 0
        assert len(load.failed) <= 3 * load.clients
        calls = flowise.model.calls
        each = 150 * calls[0].input_tokens + 600 * calls[0].output_tokens
        with closing(open_ledger(service.environment["GENOPS_LEDGER"])) as ledger:
            charges = list(ledger.charges())
        with closing(RedisStore(redis.url, clock="caller")) as store:
            losses = store.reap(time.time() + 3600)
            (account,) = [one for name, one in store.accounts().items() if "team=help" in name]
        assert account.reserved == 0
        assert {charge.nanos for charge in charges} == {each}
        # Every answer is booked; every call of a model is booked, or known to be lost by its reservation.
        assert load.answered <= len(charges) <= len(calls) <= len(charges) + len(losses)
        assert not {charge.operation for charge in charges} & {one.name.rpartition("#")[0] for one in losses}
