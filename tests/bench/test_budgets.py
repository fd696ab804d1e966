"""Fifty calls at once on a budget for ten, and what an admission costs: ours beside the peers that are here.

``pip install litellm agentbudget shekel cascadeflow`` brings the peers; one that is missing is a row that
says so. Each is used as its own documentation says, with its check before the call where it has one, over
a provider in this process: nothing is sent. Asserted is what ours bills; times never are.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context
from decimal import Decimal
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from genops_ctx import Budget, BudgetExceeded, governance_context, metered_call
from genops_ctx.core.accounts import Reserve
from genops_ctx.core.ports import AccountStore, Ledger
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.stores.memory import MemoryStore
from genops_ctx.stores.sqlite import SQLiteStore

from ..stores.redis_server import REQUIRED, RedisServer
from .timing import Row, best, show

# The peers warn of many things.
pytestmark = pytest.mark.filterwarnings("ignore")

LIMIT = 0.10
AT_ONCE = 50
ANSWERS_AFTER = 0.2  # seconds
CENT = 10_000_000  # nano-dollars
MODEL = "gpt-4o"
INPUT_TOKENS, OUTPUT_TOKENS = 2_000, 500  # at $2.50 and $10 for a million: one cent
MESSAGES: Any = [{"role": "user", "content": "hello"}]
COMPLETION: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_795_000_000,
    "model": MODEL,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    "usage": {
        "prompt_tokens": INPUT_TOKENS,
        "completion_tokens": OUTPUT_TOKENS,
        "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
    },
}


class Provider:
    """Takes its time to answer, and counts what it bills: one cent for each answer."""

    def __init__(self, answers_after: float = ANSWERS_AFTER) -> None:
        self.billed = 0
        self._answers_after = answers_after
        self._lock = threading.Lock()

    def answer(self) -> None:
        with self._lock:
            self.billed += 1
        time.sleep(self._answers_after)

    def openai(self) -> Any:
        """A client of OpenAI's own library whose requests end here."""
        import httpx
        import openai

        def handle(_: httpx.Request) -> httpx.Response:
            self.answer()
            return httpx.Response(200, json=COMPLETION)

        http = httpx.Client(transport=httpx.MockTransport(handle))
        return openai.OpenAI(api_key="none", base_url="http://provider.invalid/v1", http_client=http)


class Contender(NamedTuple):
    call: Callable[[], object]
    """one call; it raises where it is refused"""
    ledger: Callable[[], Decimal | float]
    """dollars that its books say are spent"""


class Result(NamedTuple):
    billed: int
    ledger: Decimal | float
    raised: Counter[str]


def race(contender: Contender, provider: Provider) -> Result:
    """Fifty threads, each in a copy of this context, so that budgets kept in one are seen there."""
    ready = threading.Barrier(AT_ONCE, timeout=30)

    def one() -> str:
        ready.wait()
        try:
            contender.call()
        except Exception as error:
            return type(error).__name__
        return ""

    with ThreadPoolExecutor(AT_ONCE) as threads:
        ends = [threads.submit(copy_context().run, one) for _ in range(AT_ONCE)]
        raised = Counter(end.result() for end in ends)
    del raised[""]
    return Result(provider.billed, contender.ledger(), raised)


def report(system: str, result: Result | str) -> None:
    if isinstance(result, str):
        print(f"  {system:<44}{result}")
        return
    raised = ", ".join(f"{number} {name}" for name, number in result.raised.most_common())
    print(f"  {system:<44}{result.billed:>6} of {AT_ONCE}   ${result.ledger:.2f}   {raised}")


# -- ours -------------------------------------------------------------------------------------------


@contextmanager
def ours(store: AccountStore, ledger: Ledger, budgets: tuple[Budget, ...]) -> Iterator[Runtime]:
    runtime = Runtime(Settings(budgets=budgets), store=store, ledger=ledger)
    before = reset_runtime(runtime)
    try:
        yield runtime
    finally:
        reset_runtime(before)
        runtime.books.close()


BackEnd = tuple[str, AccountStore, Ledger]


def back_ends(folder: Path, redis: RedisServer | None) -> Iterator[BackEnd]:
    yield "memory store and ledger", MemoryStore(), MemoryLedger()
    file = folder / "one.sqlite3"
    yield "SQLite store and ledger, one file", SQLiteStore(file, timeout=20.0), SQLiteLedger(file)
    if redis is not None:
        from genops_ctx.stores.redis import RedisStore

        store = RedisStore(redis.url, command_timeout=5.0, connect_timeout=5.0)
        yield "Redis store, memory ledger", store, MemoryLedger()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer | None]:
    """A server of its own, or None where that or its client is not here."""
    if not REQUIRED and (shutil.which("redis-server") is None or find_spec("redis") is None):
        yield None
        return
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as server:
        yield server


# -- the peers --------------------------------------------------------------------------------------


@contextmanager
def litellm_manager(provider: Provider, limit: float = LIMIT) -> Iterator[Contender]:
    """https://docs.litellm.ai/docs/budget_manager: ask whether it is spent, complete, update the cost."""
    import litellm

    manager, client = litellm.BudgetManager(project_name="bench"), provider.openai()
    manager.create_budget(total_budget=limit, user="user")

    def call() -> None:
        if manager.get_current_cost(user="user") >= manager.get_total_budget("user"):
            raise litellm.BudgetExceededError(manager.get_current_cost(user="user"), limit)
        answer = litellm.completion(model=MODEL, messages=MESSAGES, client=client, api_key="none")
        manager.update_cost(completion_obj=answer, user="user")

    yield Contender(call, lambda: float(manager.get_current_cost("user")))


@contextmanager
def litellm_max_budget(provider: Provider, limit: float = LIMIT) -> Iterator[Contender]:
    """``litellm.max_budget``: the process's own limit, which completion() looks at."""
    import litellm

    client = provider.openai()

    def ledger() -> float:
        time.sleep(0.5)  # it books in threads of its own, after the answer
        return float(litellm._current_cost)

    litellm.max_budget, litellm._current_cost = limit, 0.0
    try:
        yield Contender(
            lambda: litellm.completion(model=MODEL, messages=MESSAGES, client=client, api_key="none"), ledger
        )
    finally:
        litellm.max_budget, litellm._current_cost = 0.0, 0.0


@contextmanager
def agentbudget_session(provider: Provider, limit: float = LIMIT) -> Iterator[Contender]:
    """A session asked by would_exceed() before and told by wrap() after; its loop detector is widened."""
    from agentbudget import AgentBudget, BudgetExhausted

    client = provider.openai()
    with AgentBudget(max_spend=limit, max_repeated_calls=10**6).session() as session:

        def call() -> None:
            if session.would_exceed(0.01):
                raise BudgetExhausted(budget=limit, spent=session.spent)
            session.wrap(client.chat.completions.create(model=MODEL, messages=MESSAGES))

        yield Contender(call, lambda: float(session.spent))


@contextmanager
def shekel_budget(provider: Provider, limit: float = LIMIT) -> Iterator[Contender]:
    """``with budget(max_usd=…)`` around calls of the client that it patches."""
    import shekel

    client = provider.openai()
    budget = shekel.budget(max_usd=limit)
    with budget:
        yield Contender(
            lambda: client.chat.completions.create(model=MODEL, messages=MESSAGES),
            lambda: float(budget.spent),
        )


@contextmanager
def cascadeflow_run(provider: Provider, limit: float = LIMIT) -> Iterator[Contender]:
    """``init(mode="enforce")``, then ``with run(budget=…)`` around calls of the client that it patches."""
    import cascadeflow
    from cascadeflow.harness import reset

    client = provider.openai()
    cascadeflow.init(mode="enforce")
    try:
        with cascadeflow.run(budget=limit) as session:
            yield Contender(
                lambda: client.chat.completions.create(model=MODEL, messages=MESSAGES),
                lambda: float(session.cost),
            )
    finally:
        reset()


class Peer(NamedTuple):
    system: str
    needs: tuple[str, ...]
    open: Callable[..., AbstractContextManager[Contender]]

    @property
    def missing(self) -> str:
        lacking = [name for name in self.needs if find_spec(name) is None]
        return f"not installed ({', '.join(lacking)})" if lacking else ""


PEERS = (
    Peer("LiteLLM BudgetManager", ("litellm",), litellm_manager),
    Peer("LiteLLM max_budget", ("litellm",), litellm_max_budget),
    Peer("agentbudget session", ("agentbudget", "openai"), agentbudget_session),
    Peer("shekel budget()", ("shekel", "openai"), shekel_budget),
    Peer("cascadeflow run(budget=)", ("cascadeflow", "openai"), cascadeflow_run),
)


@pytest.fixture
def nothing_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteLLM reads its own price list, no .env, and writes its budgets to a folder of this test."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("LITELLM_MODE", "PRODUCTION")
    monkeypatch.chdir(tmp_path)


# -- the tables -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_leaves")
def test_fifty_at_once_on_a_budget_for_ten(tmp_path: Path, redis: RedisServer | None) -> None:
    print(
        f"\n${LIMIT:.2f}, {AT_ONCE} threads at once, $0.01 each, answered after {ANSWERS_AFTER * 1e3:.0f} ms"
    )
    print(f"  {'system':<44}{'billed':>12}   ledger  raised")
    results = []
    for system, store, ledger in back_ends(tmp_path, redis):
        provider = Provider()
        with ours(store, ledger, (Budget("0.10", "total"),)) as runtime:

            def call(provider: Provider = provider) -> None:
                with metered_call("bench", max_cost="0.01") as one:
                    provider.answer()
                    one.record_cost("0.01")

            def spent(runtime: Runtime = runtime) -> Decimal:
                return sum((charge.cost for charge in runtime.books.ledger.charges()), Decimal(0))

            result = race(Contender(call, spent), provider)
            accounts = [tuple(account) for account in store.accounts().values()]
        report(f"ours: {system}", result)
        results.append((result, accounts))
    if redis is None:
        report("ours: Redis store, memory ledger", "not installed (redis-server, redis)")
    for peer in PEERS:
        provider = Provider()
        if peer.missing:
            report(peer.system, peer.missing)
            continue
        with peer.open(provider) as contender:
            report(peer.system, race(contender, provider))
    for result, accounts in results:
        assert result == (10, Decimal("0.10"), Counter({BudgetExceeded.__name__: 40}))
        assert accounts == [(10 * CENT, 0)]


PLENTY = 10**6  # dollars
BUDGETS = tuple(Budget(PLENTY, window) for window in ("total", "month", "week", "day"))
TIMES: dict[str, Any] = {"calls": 40, "rounds": 25}  # short rounds: one of them is undisturbed


def alternately(*functions: Callable[[], object]) -> list[float]:
    """Microseconds of one call of each, timed by turns, so that what else runs disturbs all alike."""
    turns = [[best(function, calls=40, rounds=5) for function in functions] for _ in range(5)]
    return [min(times) for times in zip(*turns, strict=True)]


def attempt() -> None:
    with metered_call("bench", max_cost="0.01") as call:
        call.record_cost("0.01")


def sqlite_floor(folder: Path) -> Row:
    connection = sqlite3.connect(folder / "floor.sqlite3", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE charges (id INTEGER PRIMARY KEY, team TEXT, nanos INTEGER)")

    def insert() -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO charges (team, nanos) VALUES ('search', ?)", (CENT,))
        connection.execute("COMMIT")

    try:
        return Row("bare SQLite transaction of one INSERT", best(insert, **TIMES))
    finally:
        connection.close()


def redis_client(store: Any) -> Any:
    import redis

    return redis.Redis.from_url(store._address.url, protocol=2)


def redis_rows(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> tuple[Row, Row]:
    """Reserving and settling by the store, and the same two scripts sent by a bare client."""
    from genops_ctx.stores import redis_exchange

    store: Any = runtime.books.store
    watches = tuple(budget.watch({}, time.time(), "") for budget in BUDGETS)
    accounts = tuple(watch.account for watch in watches)
    numbers = count()

    def by_store() -> None:
        now, hold = time.time(), f"store-{next(numbers)}"
        store.reserve(Reserve(hold, CENT, watches, now + 150, memo="[]"), now)
        store.settle(hold, CENT, accounts, now, True)

    seen: list[Any] = []
    run = redis_exchange._run

    def watched(client: Any, keys: Any, request: Any) -> Any:
        seen.append(request)
        return run(client, keys, request)

    with monkeypatch.context() as patch:
        patch.setattr(redis_exchange, "_run", watched)
        by_store()
    (reserving, first), (settling, second) = seen
    assert first[6] == second[6] == "store-0"
    far = repr(time.time() + 3600)  # the first argument: until when a script may start
    client = redis_client(store)
    (before,) = {account.spent for account in store.accounts(accounts).values()}

    def bare() -> None:
        hold = f"bare-{next(numbers)}"
        for script, arguments in ((reserving, first), (settling, second)):
            changed = (far, *arguments[1:6], hold, *arguments[7:])
            reply = client.execute_command("EVALSHA", script.sha, len(store.keys), *store.keys, *changed)
            assert reply[0] == b"ok"

    try:
        bare()
        assert {account.spent - before for account in store.accounts(accounts).values()} == {CENT}
        through, raw = alternately(by_store, bare)
    finally:
        client.close()
    return Row("reserve and settle by the store", through), Row("raw EVALSHA of the same two scripts", raw)


def peer_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Row | tuple[str, str]]:
    """One call admitted and booked, with nothing behind it but an answer that is ready."""
    limit = float(PLENTY)
    missing_of = {peer.system: peer.missing for peer in PEERS}
    for system, missing in missing_of.items():
        if missing:
            yield system, missing
    if not missing_of["LiteLLM BudgetManager"]:
        import litellm

        answer = litellm.ModelResponse(**COMPLETION)
        manager = litellm.BudgetManager(project_name="bench")
        manager.create_budget(total_budget=limit, user="user")
        monkeypatch.setattr(manager, "save_data", lambda: None)  # the thread stays, its file does not

        def managed() -> None:
            assert manager.get_current_cost(user="user") <= manager.get_total_budget("user")
            manager.update_cost(completion_obj=answer, user="user")

        yield Row("LiteLLM BudgetManager: ask, update_cost", best(managed, **TIMES))
        complete = partial(litellm.completion, model=MODEL, messages=MESSAGES, mock_response=answer)
        monkeypatch.setattr(litellm, "max_budget", limit)
        yield Row("LiteLLM completion(), max_budget, mocked", best(complete, **TIMES))
        monkeypatch.setattr(litellm, "max_budget", 0.0)
    if find_spec("openai") is None:
        return
    from openai.resources.chat.completions import Completions
    from openai.types.chat import ChatCompletion

    ready = ChatCompletion.model_validate(COMPLETION)
    monkeypatch.setattr(Completions, "create", lambda *_, **__: ready)
    for system, opened in (
        ("agentbudget session", agentbudget_session),
        ("shekel budget()", shekel_budget),
        ("cascadeflow run(budget=)", cascadeflow_run),
    ):
        if missing_of[system]:
            continue
        with opened(Provider(0.0), limit) as contender:
            yield Row(f"{system}, create() empty", best(contender.call, **TIMES))


@pytest.mark.usefixtures("nothing_leaves")
def test_one_attempt_admitted_and_finished(
    tmp_path: Path, redis: RedisServer | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = list(peer_rows(monkeypatch))
    measured = [peer for peer in peers if isinstance(peer, Row)]
    with ours(MemoryStore(), MemoryLedger(), ()), governance_context("bench", budget=PLENTY):
        row = Row("admitted and finished, one budget in process", best(attempt, **TIMES))
    show("One attempt, one budget, memory, as the peers have it", row, measured)
    for system, store, ledger in back_ends(tmp_path, redis):
        with ours(store, ledger, BUDGETS) as runtime:
            row = Row("admitted and finished, 4 accounts", best(attempt, **TIMES))
            title = f"One attempt: {system} (the peers: memory)"
            if system.startswith("SQLite"):
                show(title, row, [sqlite_floor(tmp_path), *measured])
            elif system.startswith("Redis"):
                alone, raw = redis_rows(runtime, monkeypatch)
                show(title, row, [raw, *measured])
                show("Of it the store", alone, [raw])
            else:
                show(title, row, measured)
        assert row.microseconds > 0
    for peer in peers:
        if not isinstance(peer, Row):
            report(*peer)
    if redis is None:
        report("ours: Redis store, memory ledger", "not installed (redis-server, redis)")
