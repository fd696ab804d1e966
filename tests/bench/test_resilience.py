"""What a breaker, a limit and a cache cost beside the peers that are here, and how soon peers learn.

``pip install pybreaker purgatory limits cachetools`` brings the peers; one that is missing is a row less.
All run in this process, each as its own documentation says. Times are printed, never asserted.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from genops_ctx.core.breaker import BreakerRule, Denied, Outcome, Permit
from genops_ctx.core.cache import CacheRule, Hit
from genops_ctx.core.ratelimit import Admitted, RateLimit
from genops_ctx.core.resilience_ports import ResilienceStore
from genops_ctx.stores.resilience import MemoryResilience
from genops_ctx.stores.sqlite_resilience import SQLiteResilience

from ..stores.redis_server import REQUIRED, RedisServer
from .timing import Row, best, show

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RULE = BreakerRule(failures=5)
PLENTY = RateLimit(1_000_000, 1.0)
CACHE = CacheRule(max_entries=1000)
OPENINGS = 30


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer | None]:
    """A server of its own, or None where that or its client is not here."""
    if not REQUIRED and (shutil.which("redis-server") is None or find_spec("redis") is None):
        yield None
        return
    with RedisServer(tmp_path) as server:
        yield server


def opened(server: RedisServer) -> ResilienceStore:
    from genops_ctx.stores.resilience import open_resilience

    store = open_resilience(server.url, command_timeout=20.0, connect_timeout=20.0)
    wait(lambda: store.healthy and store.breakers.feed.live)  # type: ignore[attr-defined]
    return store


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def nothing() -> None:
    """The call that a breaker guards."""


def guarded(store: ResilienceStore) -> Callable[[], None]:
    def call() -> None:
        permit = store.breakers.admit("flow", RULE, time.time())
        assert isinstance(permit, Permit)
        nothing()
        store.breakers.record("flow", RULE, permit, Outcome.SUCCESS, time.time())

    return call


def test_what_a_guarded_call_costs(tmp_path: Path, redis: RedisServer | None) -> None:
    rows = []
    if find_spec("pybreaker"):
        import pybreaker

        peer = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=60)
        rows.append(Row("pybreaker, memory", best(lambda: peer.call(nothing))))
    if find_spec("purgatory"):
        from purgatory import SyncCircuitBreakerFactory

        factory = SyncCircuitBreakerFactory(default_threshold=5, default_ttl=60)

        def by_purgatory() -> None:
            with factory.get_breaker("flow"):
                nothing()

        rows.append(Row("purgatory, memory", best(by_purgatory)))
    show("A call through a closed breaker", Row("ours, memory", best(guarded(MemoryResilience()))), rows)
    file = SQLiteResilience(tmp_path / "rules.db")
    print(f"  {'ours, SQLite':<44}{best(guarded(file), calls=300):>12.2f} µs")
    file.close()
    if redis is None:
        return
    import redis as client

    raw, rows = client.Redis(port=redis.port), []
    if find_spec("pybreaker"):
        import pybreaker

        shared = pybreaker.CircuitBreaker(
            fail_max=5, state_storage=pybreaker.CircuitRedisStorage(pybreaker.STATE_CLOSED, raw)
        )
        rows.append(Row("pybreaker, Redis", best(lambda: shared.call(nothing), calls=300)))
    raw.close()
    store = opened(redis)
    show("The same on Redis", Row("ours, Redis", best(guarded(store), calls=300)), rows)
    store.breakers.force_open("flow", time.time())

    def refused() -> None:
        assert isinstance(store.breakers.admit("flow", RULE, time.time()), Denied)

    print(f"  {'ours, Redis, refused by an open one':<44}{best(refused):>12.2f} µs")
    store.close()


def limited(store: ResilienceStore) -> Callable[[], None]:
    def call() -> None:
        assert isinstance(store.limits.admit("user", PLENTY, time.time()), Admitted)

    return call


def test_what_a_limit_costs(tmp_path: Path, redis: RedisServer | None) -> None:
    def peers(storage: Callable[[], object]) -> list[Row]:
        if not find_spec("limits"):
            return []
        from limits import RateLimitItemPerSecond, strategies

        item = RateLimitItemPerSecond(1_000_000)
        found = []
        for kind in ("FixedWindow", "SlidingWindowCounter", "MovingWindow"):
            limiter = getattr(strategies, f"{kind}RateLimiter")(storage())
            calls = best(lambda: limiter.hit(item, kind), calls=300, rounds=5)  # noqa: B023
            found.append(Row(f"limits, {kind}", calls))
        return found

    def in_memory() -> object:
        from limits.storage import MemoryStorage

        return MemoryStorage()

    ours = Row("ours, memory", best(limited(MemoryResilience()), calls=300, rounds=5))
    show("A request admitted by a limit", ours, peers(in_memory))
    file = SQLiteResilience(tmp_path / "rules.db")
    print(f"  {'ours, SQLite':<44}{best(limited(file), calls=300):>12.2f} µs")
    file.close()
    if redis is None:
        return

    def on_redis() -> object:
        from limits.storage import storage_from_string

        return storage_from_string(redis.url)

    import redis as client

    store, raw = opened(redis), client.Redis(port=redis.port)
    empty = raw.script_load("return 1")
    floor = Row("EVALSHA of an empty script", best(lambda: raw.evalsha(empty, 1, "k"), calls=300, rounds=5))
    ours = Row("ours, Redis", best(limited(store), calls=300, rounds=5))
    show("The same on Redis", ours, [floor, *peers(on_redis)])
    store.close()
    raw.close()


def test_what_a_hit_costs(tmp_path: Path, redis: RedisServer | None) -> None:
    def hit(store: ResilienceStore) -> Callable[[], None]:
        store.cache.put("c", "k", b"an answer", CACHE, time.time())

        def call() -> None:
            assert isinstance(store.cache.get("c", "k", time.time()), Hit)

        return call

    rows = []
    if find_spec("cachetools"):
        import threading

        import cachetools

        lock = threading.Lock()
        caches = {
            "TTLCache": cachetools.TTLCache(1000, 3600),
            "LRUCache": cachetools.LRUCache(1000),
        }
        for name, cache in caches.items():
            cache["k"] = b"an answer"

            def get(cache: object = cache) -> None:
                with lock:
                    assert cache["k"]  # type: ignore[index]

            rows.append(Row(f"cachetools, {name}", best(get)))
    show("A hit in the cache", Row("ours, memory", best(hit(MemoryResilience()))), rows)
    file = SQLiteResilience(tmp_path / "rules.db")
    print(f"  {'ours, SQLite':<44}{best(hit(file), calls=300):>12.2f} µs")
    file.close()
    if redis is not None:
        import redis as client

        store, raw = opened(redis), client.Redis(port=redis.port)
        raw.set("plain", b"an answer")
        plain = Row("GET of redis-py", best(lambda: raw.get("plain"), calls=300))
        show("The same on Redis", Row("ours, Redis", best(hit(store), calls=300)), [plain])
        store.close()
        raw.close()


def test_how_soon_a_peer_learns_of_an_opening(redis: RedisServer | None) -> None:
    if redis is None:
        pytest.skip("there is no Redis here")
    one, two = opened(redis), opened(redis)
    took = []
    for _ in range(OPENINGS):
        one.breakers.reset("flow", time.time())
        wait(lambda: not isinstance(two.breakers.admit("flow", RULE, time.time()), Denied))
        begun = time.perf_counter()
        one.breakers.force_open("flow", time.time())
        while not isinstance(two.breakers.admit("flow", RULE, time.time()), Denied):
            time.sleep(0)
        took.append((time.perf_counter() - begun) * 1000)
    print("\nFrom an opening to the first call that a peer refuses, by an event")
    print(f"  median {statistics.median(took):.2f} ms, longest {max(took):.2f} ms of {OPENINGS}")
    assert len(took) == OPENINGS
    one.close()
    two.close()
