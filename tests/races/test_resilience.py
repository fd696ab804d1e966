"""Breakers and limits of several processes, on a real Redis and on SQLite: never one too many or too few."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from genops_ctx.core.breaker import BreakerRule, CircuitState, Denied, Outcome, Permit
from genops_ctx.core.cache import CacheRule, Hit, Lease
from genops_ctx.core.errors import StoreError
from genops_ctx.core.ratelimit import Admitted, RateLimit
from genops_ctx.core.resilience_ports import ResilienceStore
from tests.stores.redis_server import RedisServer

pytestmark = pytest.mark.slow

spawn = multiprocessing.get_context("spawn")

RULE = BreakerRule(failures=3, recovery_timeout=0.5, probe_timeout=2.0)
DAY = RateLimit(500, 30 * 86_400.0)
"""refilled every 5184 s: nothing comes back during the test"""
REFILLED = RateLimit(200, 1.0, burst=50)
CACHE = CacheRule(lease=30.0)


@dataclass(frozen=True)
class Place:
    """Where the store is; opened in each process."""

    kind: str
    where: str
    away: str = "refuse"

    def open(self) -> ResilienceStore:
        if self.kind == "sqlite":
            from genops_ctx.stores.sqlite_resilience import SQLiteResilience

            return SQLiteResilience(self.where, timeout=30.0)
        from genops_ctx.stores.resilience import open_resilience

        return open_resilience(self.where, away=self.away, command_timeout=10.0, connect_timeout=5.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "no") as started:
        yield started


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return Place("sqlite", str(tmp_path / "rules.db"))
    return Place("redis", request.getfixturevalue("server").url)


def at_once(threads: int, one: Callable[[], object]) -> None:
    gate = threading.Barrier(threads)

    def begin() -> None:
        gate.wait()
        one()

    running = [threading.Thread(target=begin) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def nothing() -> None:
    """Nobody does anything meanwhile."""


def run(
    task: Callable[..., object],
    place: Place,
    processes: int,
    *arguments: Any,
    meanwhile: Callable[[], object] = nothing,
) -> list[Any]:
    """What each process answers; all begin at once."""
    ready, go, answers = spawn.Queue(), spawn.Event(), spawn.Queue()
    workers = [
        spawn.Process(target=_work, args=(task, place, ready, go, answers, arguments), daemon=True)
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.get(timeout=300)
    go.set()
    meanwhile()
    found = [answers.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join(60)
    wrong = [answer for answer in found if isinstance(answer, str)]
    assert not wrong, wrong
    return found


def _work(task: Any, place: Place, ready: Any, go: Any, answers: Any, arguments: tuple[Any, ...]) -> None:
    store = place.open()
    until = time.monotonic() + 240
    while not store.healthy:
        assert time.monotonic() < until
        time.sleep(0.05)
    ready.put(True)
    go.wait(300)
    try:
        answers.put(task(store, *arguments))
    except Exception as error:
        answers.put(f"{type(error).__name__}: {error}")
    store.close()


def fail(store: ResilienceStore, times: int = 3) -> None:
    for _ in range(times):
        permit = store.breakers.admit("flow", RULE, time.time())
        assert isinstance(permit, Permit)
        store.breakers.record("flow", RULE, permit, Outcome.FAILURE, time.time())
    assert store.breakers.look("flow").state is CircuitState.OPEN


def test_half_open_lets_one_of_fifty_threads_through(place: Place) -> None:
    store = place.open()
    fail(store)
    time.sleep(0.6)
    # Permits of RULE live for 2 s, and a busy machine may take as long to ask 50 times.
    assert probe_with_long_permits(store, 50) == 1
    store.close()


def test_half_open_lets_one_of_eight_processes_through(place: Place) -> None:
    store = place.open()
    fail(store)
    time.sleep(0.6)
    counts = run(probe_with_long_permits, place, 8, 16)
    assert sum(counts) == 1
    store.close()


LONG = BreakerRule(failures=3, recovery_timeout=0.5, probe_timeout=300.0)


def probe_with_long_permits(store: ResilienceStore, threads: int) -> int:
    """How many are let through at once."""
    admitted: list[Permit] = []

    def one() -> None:
        decision = store.breakers.admit("flow", LONG, time.time())
        if isinstance(decision, Permit):
            admitted.append(decision)

    at_once(threads, one)
    return len(admitted)


def recover(store: ResilienceStore, seconds: float) -> tuple[int, int]:
    """Calls that were made while it was not closed; and the state at the end."""
    probes, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        before = store.breakers.look("flow").state
        decision = store.breakers.admit("flow", RULE, time.time())
        if isinstance(decision, Permit):
            if before is CircuitState.CLOSED:
                break
            probes += 1
            time.sleep(0.02)
            store.breakers.record("flow", RULE, decision, Outcome.SUCCESS, time.time())
        time.sleep(0.01)
    return probes, int(store.breakers.look("flow").state is CircuitState.CLOSED)


def test_an_open_breaker_recovers_for_all_though_the_first_prober_dies(place: Place) -> None:
    store = place.open()
    fail(store)
    time.sleep(0.6)
    assert isinstance(store.breakers.admit("flow", RULE, time.time()), Permit), "and nothing is heard of it"
    answers = run(recover, place, 4, 60.0)
    assert [closed for _, closed in answers] == [1] * 4
    assert sum(probes for probes, _ in answers) >= 1
    store.close()


def take(store: ResilienceStore, threads: int, tries: int, rule: RateLimit) -> int:
    """How many of a process's requests are admitted."""
    admitted = Counter[str]()
    lock = threading.Lock()

    def one() -> None:
        for _ in range(tries):
            decision = store.limits.admit("team", rule, time.time())
            with lock:
                admitted[type(decision).__name__] += 1

    at_once(threads, one)
    return admitted["Admitted"]


def test_of_a_limit_of_five_hundred_exactly_so_many_are_admitted(place: Place) -> None:
    counts = run(take, place, 4, 4, 60, DAY)
    assert sum(counts) == 500, "of 960"


def take_and_give_back(store: ResilienceStore, threads: int, tries: int, rule: RateLimit) -> int:
    """Every third admitted request is not made after all, and given back at once."""
    kept = Counter[str]()
    lock = threading.Lock()

    def one() -> None:
        for number in range(tries):
            decision = store.limits.admit("team", rule, time.time())
            if not isinstance(decision, Admitted):
                continue
            if number % 3 == 0:
                store.limits.give_back("team", rule, decision, time.time())
                continue
            with lock:
                kept["kept"] += 1

    at_once(threads, one)
    return kept["kept"]


def test_what_is_given_back_is_used_by_another_and_no_more(place: Place) -> None:
    counts = run(take_and_give_back, place, 4, 4, 60, DAY)
    store = place.open()
    rest = take(store, 1, 200, DAY)
    assert sum(counts) + rest == 500
    assert rest < 100
    store.close()


def drain(store: ResilienceStore, seconds: float, rule: RateLimit) -> tuple[int, float, float, float]:
    """How many were admitted, from when to when (epoch s), and how long one was to wait at most."""
    admitted, wait, begun = 0, 0.0, time.time()
    while time.time() < begun + seconds:
        decision = store.limits.admit("team", rule, time.time())
        if isinstance(decision, Admitted):
            admitted += 1
        else:
            wait = max(wait, decision.retry_after)
    return admitted, begun, time.time(), wait


def test_while_it_is_refilled_no_more_are_admitted_than_time_has_passed(server: RedisServer) -> None:
    """By the server's clock: the burst, and one each 5 ms from the first request to the last."""
    place = Place("redis", server.url)
    found = run(drain, place, 4, 2.0, REFILLED)
    admitted = sum(number for number, _, _, _ in found)
    took = max(ended for _, _, ended, _ in found) - min(begun for _, begun, _, _ in found)
    assert 50 < admitted <= 50 + 200 * (took + 0.1)
    assert max(wait for _, _, _, wait in found) <= 0.005, "nobody is refused while one is left"


def compute(store: ResilienceStore, folder: str) -> bytes:
    """Ask until there is an answer; compute it where it is one's turn."""
    until = time.monotonic() + 240
    while time.monotonic() < until:
        found = store.cache.claim("answers", "question", CACHE, time.time())
        if isinstance(found, Hit):
            return found.value
        if isinstance(found, Lease):
            with (Path(folder) / "computed").open("a") as file:
                file.write("once\n")
            time.sleep(0.3)
            assert store.cache.put("answers", "question", b"42", CACHE, time.time(), lease=found)
            return b"42"
        time.sleep(0.01)
    raise AssertionError("no answer came")


def test_one_process_computes_and_all_have_the_answer(place: Place, tmp_path: Path) -> None:
    assert run(compute, place, 6, str(tmp_path)) == [b"42"] * 6
    assert (tmp_path / "computed").read_text() == "once\n"


def learn(store: ResilienceStore, seconds: float) -> float:
    """When this process was first refused (epoch seconds); it calls all the time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if isinstance(store.breakers.admit("flow", LONG, time.time()), Denied):
            return time.time()
        time.sleep(0.0005)
    return 0.0


def test_other_processes_learn_of_an_opening_at_once(server: RedisServer) -> None:
    place = Place("redis", server.url)
    at: list[float] = []

    def open_it() -> None:
        store = place.open()
        time.sleep(1.0)
        store.breakers.force_open("flow", time.time())
        at.append(time.time())
        store.close()

    times = run(learn, place, 3, 240.0, meanwhile=open_it)
    assert all(times)
    assert max(times) - at[0] < 15.0


def go_on(store: ResilienceStore, seconds: float, folder: str) -> Counter[str]:
    """Calls, whatever happens to the server, until it is back and refuses, or for so long at most.

    Says in the folder that it has called without the server.
    """
    seen = Counter[str]()
    longest, until = 0.0, time.monotonic() + seconds
    while time.monotonic() < until:
        begun = time.monotonic()
        try:
            permit = store.breakers.admit("flow", LONG, time.time())
            if isinstance(permit, Denied) and store.healthy:
                seen["in step at last"] = 1
                break
            if isinstance(permit, Permit):
                store.breakers.record("flow", LONG, permit, Outcome.SUCCESS, time.time())
            store.limits.admit("team", REFILLED, time.time())
            seen["calls"] += 1
        except StoreError:
            seen["errors"] += 1
        longest = max(longest, time.monotonic() - begun)
        if not store.healthy:
            (Path(folder) / str(os.getpid())).touch()
            seen["alone"] += 1
        time.sleep(0.01)
    seen["milliseconds"] = round(longest * 1000)
    return seen


@dataclass(frozen=True)
class Impatient(Place):
    def open(self) -> ResilienceStore:
        from genops_ctx.stores.resilience import open_resilience

        return open_resilience(self.where, away=self.away, command_timeout=0.2, connect_timeout=0.5)


def test_a_redis_that_is_paused_killed_restarted_and_flushed_costs_a_bounded_time(
    server: RedisServer, tmp_path: Path
) -> None:
    place = Impatient("redis", server.url, "local")
    alone = tmp_path / "alone"
    alone.mkdir()

    def trouble() -> None:
        time.sleep(1.0)
        server.pause()
        until = time.monotonic() + 120
        while len(list(alone.iterdir())) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1.0)
        server.resume()
        time.sleep(1.0)
        server.kill()
        time.sleep(1.5)
        server.start()
        time.sleep(1.0)
        server.cli("FLUSHALL")
        time.sleep(0.5)
        store = place.open()
        store.breakers.force_open("flow", time.time())
        store.close()

    answers = run(go_on, place, 3, 240.0, str(alone), meanwhile=trouble)
    for seen in answers:
        assert seen["errors"] == 0, "each went on by its own breaker and limiter"
        assert seen["calls"] >= seen["alone"] > 0, "health said so"
        assert seen["milliseconds"] < 15_000
        assert seen["in step at last"], "again"
