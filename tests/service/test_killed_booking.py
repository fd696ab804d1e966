"""A worker is killed while it books, on a real PostgreSQL: what was answered is in the books."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

from genops_ctx.books import Books
from genops_ctx.core.records import Charge
from genops_ctx.ledger import open_ledger
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from genops_ctx.stores.memory import MemoryStore
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode
from tests.ledger.postgres_server import PostgresServer
from tests.service.conftest import FLOWISE_KEY
from tests.service.patient_serve import KEYS_KNOWN
from tests.service.served import Served
from tests.stores.redis_server import RedisServer

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_users_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


CLIENTS = 16
BUDGET = '[[budget]]\nlimit = "100/total"\nby = "team"\n'


class Crowd:
    """Clients that go on asking, each time in another session, every second time for a stream."""

    def __init__(self, service: Served, url: str, secret: str) -> None:
        self._service = service
        self._url = url
        self._headers = {"Authorization": f"Bearer {secret}"}
        self._over = threading.Event()
        self.answered: list[str] = []

    def _go_on(self, number: int) -> None:
        connection = requests.Session()
        for count in range(10_000):
            if self._over.is_set():
                return
            session = f"session-{number}-{count}"
            if not self.ask(session, connection, stream=count % 2 == 0):
                connection = requests.Session()

    def ask(self, session: str, connection: requests.Session, *, stream: bool = False) -> bool:
        body = {"question": "hi", "streaming": stream, "overrideConfig": {"sessionId": session}}
        try:
            answer = connection.post(self._url, json=body, headers=self._headers, timeout=60)
        except requests.RequestException:
            return False
        if answer.status_code == 200:
            self.answered.append(session)
        return answer.status_code == 200

    @contextmanager
    def asking(self) -> Iterator[None]:
        with ThreadPoolExecutor(CLIENTS) as pool:
            for number in range(CLIENTS):
                pool.submit(self._go_on, number)
            try:
                yield
            finally:
                self._over.set()

    def until(self, answered: int) -> None:
        deadline = time.monotonic() + 240
        while len(self.answered) < answered:
            assert time.monotonic() < deadline, self._service.log[-2000:]
            time.sleep(0.01)

    def kill_the_busiest(self) -> None:
        os.kill(max(self._service.pids(), key=self._service.processor_seconds), signal.SIGKILL)


class Place:
    """The servers, and a service of two workers."""

    def __init__(self, folder: Path, stack: ExitStack, settings: str) -> None:
        (folder / "redis").mkdir()
        self.postgres = stack.enter_context(PostgresServer())
        redis = stack.enter_context(RedisServer(folder / "redis"))
        flows = [Flow("graph", "agentflow", (ModelNode(max_tokens=20),))]
        self.flowise = stack.enter_context(FlowiseStandIn(flows, api_key=FLOWISE_KEY, latency=0.01))
        self.ledger_url = self.postgres.new_database()
        keys = open_keys(self.ledger_url)
        key, secret = new_key("web", now=time.time(), attribution={"team": "help"})
        keys.put(key)
        keys.close()
        self.service = Served(
            folder,
            self.flowise.url,
            workers=2,
            settings=settings,
            FLOWISE_API_KEY=FLOWISE_KEY,
            GENOPS_STORE=redis.url,
            GENOPS_LEDGER=self.ledger_url,
            **{KEYS_KNOWN: "3600"},
        )
        stack.enter_context(self.service)
        url = f"{self.service.url}/api/v1/prediction/{self.flowise.flow_id('graph')}"
        self.crowd = Crowd(self.service, url, secret)

    def booked(self) -> list[Charge]:
        ledger = open_ledger(self.ledger_url)
        try:
            return list(ledger.charges())
        finally:
            ledger.close()

    def missing(self) -> set[str]:
        """Sessions that were answered, and of which there is no charge."""
        return set(self.crowd.answered) - {one.attribution["session_id"] for one in self.booked()}

    def book_the_rest(self) -> int:
        """What the ledger did not take in time, as the next process of this user does; how much that was."""
        books = Books(MemoryStore(), open_ledger(self.ledger_url))
        before = len(self.booked())
        try:
            deadline = time.monotonic() + 60
            while self.missing() and time.monotonic() < deadline:
                books._write_down()
                time.sleep(0.2)  # what the killed was about to book is its own for some seconds
            return len(self.booked()) - before
        finally:
            books.close()

    def check(self) -> None:
        """Each call that was answered is one charge, and nothing is booked that no model has served."""
        print(f"\n{len(self.crowd.answered)} answered, {self.book_the_rest()} of them booked later")
        sessions = Counter(one.attribution["session_id"] for one in self.booked())
        assert set(self.crowd.answered) <= set(sessions)
        assert set(sessions.values()) == {1}
        assert len(sessions) <= len(self.flowise.model.calls)


@pytest.mark.parametrize("settings", ["", BUDGET], ids=["without a budget", "with a budget"])
def test_all_that_was_answered_is_booked(tmp_path: Path, settings: str) -> None:
    with ExitStack() as stack:
        place = Place(tmp_path, stack, settings)
        crowd = place.crowd
        with crowd.asking():
            for part in (1, 2):
                crowd.until(150 * part)
                crowd.kill_the_busiest()
                time.sleep(0.5)  # the other goes on, and another begins
            crowd.until(400)
        assert place.service.stop() == 0
        place.check()


def test_what_is_answered_while_the_ledger_is_away_is_booked_by_those_who_are_left(tmp_path: Path) -> None:
    with ExitStack() as stack:
        place = Place(tmp_path, stack, BUDGET)
        crowd = place.crowd
        with crowd.asking():
            crowd.until(50)
            place.postgres.stop()
            crowd.until(len(crowd.answered) + CLIENTS + 20)
            time.sleep(1)
            crowd.kill_the_busiest()
            time.sleep(0.5)
            place.postgres.start()
            crowd.until(len(crowd.answered) + 50)
        assert place.service.stop() == 0
        place.check()
