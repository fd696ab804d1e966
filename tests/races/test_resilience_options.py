"""Options of adapters in four processes on one real Redis: what is billed is booked, nothing stays taken."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import pytest

from genops_ctx import Budget, BudgetExceeded, instrument_flowise
from genops_ctx.core.errors import CircuitOpen, RateLimitExceeded
from genops_ctx.core.resilience_ports import ResilienceStore
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.providers.errors import FlowiseError
from genops_ctx.resilience import CircuitBreaker, CircuitState, QueryCache, RateLimiter, RetryConfig
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.stores.redis import RedisStore
from genops_ctx.stores.resilience import open_resilience
from genops_ctx.testing import Flow, FlowiseStandIn
from genops_ctx.testing.model_stub import BilledCall
from tests.stores.redis_server import RedisServer

from .test_event_loop import OneCent
from .workers import CENT, account_of

pytestmark = pytest.mark.slow

spawn = multiprocessing.get_context("spawn")
PROCESSES, THREADS = 4, 4
DAY = 86_400.0
RECOVERY = 3.0

_gate: Any = None
_url = ""
_store: Any = None


def _begin(gate: Any, url: str, redis: str, ledger: str, budget: str) -> None:
    """A process of its own, that waits for a busy machine where it would go on without the store."""
    global _gate, _url, _store
    _gate, _url = gate, url
    _store = patient(redis)
    assert _store.healthy
    runtime = Runtime(
        Settings(budgets=(Budget(budget, name="all"),)),
        store=RedisStore(redis, command_timeout=20.0),
        ledger=SQLiteLedger(ledger),
        prices=OneCent(),
    )
    reset_runtime(runtime)


def patient(redis: str) -> ResilienceStore:
    return open_resilience(redis, away="refuse", command_timeout=20.0, connect_timeout=20.0)


def ask(job: tuple[str, tuple[str, ...], int, int]) -> Counter[str]:
    """What came of the questions that each thread of this process asked, all beginning at once."""
    kind, questions, threads, rate = job
    options: dict[str, Any] = {
        "breaker": {"breaker": CircuitBreaker(3, recovery_timeout=RECOVERY, name="flow", store=_store)},
        "limit": {"rate_limit": RateLimiter(rate, per=DAY, name="of the day", store=_store)},
        "cache": {"cache": QueryCache(name="answers", store=_store)},
        "all": {
            "retry": RetryConfig(max_retries=6, base_delay=0.01),
            "breaker": CircuitBreaker(1000, name="flow", store=_store),
            "rate_limit": RateLimiter(rate, per=DAY, name="of the day", store=_store),
            "cache": QueryCache(name="answers", store=_store),
        },
    }[kind]
    adapter = instrument_flowise(_url, **options)
    adapter.get_chatflows()  # is there, so that what is timed is what is tested
    seen: Counter[str] = Counter()
    lock = threading.Lock()
    here = threading.Barrier(threads)

    def one() -> None:
        for question in questions:
            here.wait(60)
            try:
                answer = adapter.predict_flow("graph", question, max_cost="0.01")
                what = "hit" if answer.cached else "served"
            except (BudgetExceeded, CircuitOpen, RateLimitExceeded, FlowiseError) as error:
                what = type(error).__name__
            with lock:
                seen[what] += 1

    _gate.wait(60)
    running = [threading.Thread(target=one) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return seen


class World:
    """Four processes, one Redis, one ledger, one Flowise."""

    def __init__(self, pool: Pool, server: RedisServer, flowise: FlowiseStandIn, ledger: Path) -> None:
        self.pool, self.server, self.flowise, self.ledger = pool, server, flowise, ledger

    def ask(self, kind: str, *questions: str, threads: int = THREADS, rate: int = 1000) -> Counter[str]:
        """In all processes at once, what came of it in all of them."""
        jobs = [(kind, questions, threads, rate)] * PROCESSES
        return sum(self.pool.map(ask, jobs, chunksize=1), Counter())

    def account(self) -> tuple[int, int]:
        store = RedisStore(self.server.url, command_timeout=20.0)
        try:
            return account_of(store)
        finally:
            store.close()

    def booked(self) -> int:
        ledger = SQLiteLedger(self.ledger)
        try:
            assert list(ledger.unsettled()) == []
            return sum(charge.nanos for charge in ledger.charges())
        finally:
            ledger.close()

    @property
    def answered(self) -> list[BilledCall]:
        return [call for call in self.flowise.billed if call.status == 200]

    @property
    def billed(self) -> int:
        return len(self.answered) * CENT


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[[str], World]]:
    ledger = tmp_path / "ledger.db"
    with (
        RedisServer(tmp_path) as server,
        FlowiseStandIn([Flow("graph", "agentflow")]) as flowise,
    ):
        pools: list[Pool] = []

        def make(budget: str) -> World:
            gate = spawn.Barrier(PROCESSES)
            pools.append(spawn.Pool(PROCESSES, _begin, (gate, flowise.url, server.url, str(ledger), budget)))
            return World(pools[-1], server, flowise, ledger)

        yield make
        for pool in pools:
            pool.terminate()
            pool.join()


def test_a_breaker_that_some_opened_refuses_all_and_recovers_by_one_probe(
    world: Callable[[str], World],
) -> None:
    here = world("100/total")
    first = here.ask("breaker", "[[fail:500]] why?", threads=1)
    # three failures open it; the fourth call was on its way by then, or was refused
    assert first["FlowiseModelError"] in (3, 4)
    assert first["FlowiseModelError"] + first["CircuitOpen"] == 4
    assert here.ask("breaker", "and now?") == {"CircuitOpen": 16}
    assert len(here.answered) == 0, "nothing more was sent"

    time.sleep(RECOVERY + 0.2)
    probed = here.ask("breaker", "[[sleep:2]] are you there?")
    assert probed == {"served": 1, "CircuitOpen": 15}
    assert len(here.answered) == 1
    store = patient(here.server.url)
    assert CircuitBreaker(3, name="flow", store=store).state is CircuitState.CLOSED
    store.close()
    assert here.ask("breaker", "thanks") == {"served": 16}
    # What a failed call cost is told by nobody: it is booked at the cent that was reserved.
    assert here.billed == 17 * CENT
    assert here.account() == (here.billed + first["FlowiseModelError"] * CENT, 0)
    assert here.booked() == here.account()[0]


def test_a_limit_shared_by_four_processes_admits_exactly_its_number(world: Callable[[str], World]) -> None:
    here = world("100/total")
    seen = here.ask("limit", *(f"question {number}" for number in range(6)), rate=50)
    assert seen == {"served": 50, "RateLimitExceeded": 4 * 4 * 6 - 50}
    assert here.account() == (50 * CENT, 0)
    assert here.booked() == here.billed == 50 * CENT


def test_one_process_computes_and_the_others_have_it_for_nothing(world: Callable[[str], World]) -> None:
    here = world("100/total")
    assert here.ask("cache", "[[sleep:0.5]] the same question") == {"served": 1, "hit": 15}
    assert here.account() == (CENT, 0)
    assert here.booked() == here.billed == CENT


def test_what_a_budget_refuses_gives_back_its_turn_and_its_lease(world: Callable[[str], World]) -> None:
    """Ten cents pay for ten of the forty different questions; sixteen ask each of them."""
    here = world("0.10/total")
    seen = here.ask("all", *(f"question {number}" for number in range(40)))
    assert seen["served"] == 10
    assert seen["hit"] == 10 * 15
    assert seen["BudgetExceeded"] == 30 * 16
    assert here.account() == (10 * CENT, 0)
    assert here.booked() == here.billed == 10 * CENT
    store = patient(here.server.url)
    assert RateLimiter(1000, per=DAY, name="of the day", store=store).allowance() == 1000 - 10
    store.close()


def test_failures_that_were_paid_are_booked_once_each_over_all_tries(world: Callable[[str], World]) -> None:
    here = world("100/total")
    here.flowise.fail_next(500, times=5, after_model=True)
    seen = here.ask("all", *(f"question {number}" for number in range(3)))
    assert (seen["served"], seen["hit"]) == (3, 3 * 15)
    # three answers, and five that the model gave and Flowise did not pass on
    assert here.account() == (8 * CENT, 0)
    assert here.booked() == here.billed == 8 * CENT
