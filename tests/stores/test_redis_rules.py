"""How rules are asked of a real Redis: scripts that come back, rights, clusters, and nothing done late."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from genops_ctx.core.adaptive import AdaptiveRate
from genops_ctx.core.breaker import BreakerRule, CircuitState, Outcome, Permit
from genops_ctx.core.cache import CacheRule, Hit
from genops_ctx.core.errors import ConfigurationError, StoreError
from genops_ctx.core.ratelimit import Admitted, RateLimit
from genops_ctx.stores.redis_resilience import RedisResilience
from genops_ctx.stores.redis_rules import RedisRules
from genops_ctx.stores.resilience import open_resilience
from genops_ctx.stores.shared_resilience import SharedResilience

from .redis_server import RedisServer

RULE = BreakerRule(failures=1, recovery_timeout=60.0)
LIMIT = RateLimit(3, 3600.0)
CACHE = CacheRule()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as started:
        yield started


def all_three(store: RedisResilience | SharedResilience) -> None:
    permit = store.breakers.admit("flow", RULE, time.time())
    assert isinstance(permit, Permit)
    opened = store.breakers.record("flow", RULE, permit, Outcome.FAILURE, time.time())
    assert opened.state is CircuitState.OPEN
    assert store.breakers.circuits() == {"flow": opened}
    assert isinstance(store.limits.admit("user", LIMIT, time.time()), Admitted)
    assert store.limits.remaining("user", LIMIT, time.time()) == 2
    assert store.cache.put("c", "k", b"v", CACHE, time.time())
    assert isinstance(store.cache.get("c", "k", time.time()), Hit)


def test_scripts_that_the_server_has_forgotten_are_brought_again(server: RedisServer) -> None:
    store = RedisResilience(RedisRules(server.url, command_timeout=20.0))
    all_three(store)
    server.cli("SCRIPT", "FLUSH")
    assert store.limits.remaining("user", LIMIT, time.time()) == 2
    assert "cmdstat_eval:" in server.cli("INFO", "commandstats")
    store.close()


def test_the_server_s_clock_counts_not_the_caller_s(server: RedisServer) -> None:
    store = RedisResilience(RedisRules(server.url, command_timeout=20.0))
    for caller in (0.0, 4e9, time.time()):
        assert isinstance(store.limits.admit("user", LIMIT, caller), Admitted)
    assert not isinstance(store.limits.admit("user", LIMIT, 4e9), Admitted)
    store.close()


def test_what_comes_too_late_is_not_done(server: RedisServer) -> None:
    """The server hangs, the question waits in its socket, and is answered when nobody waits any more."""
    patient = RedisResilience(RedisRules(server.url, command_timeout=20.0))
    assert isinstance(patient.limits.admit("user", LIMIT, time.time()), Admitted)
    store = RedisResilience(RedisRules(server.url, command_timeout=0.5))
    deadline = time.monotonic() + 60
    while not store.healthy:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    server.pause()
    with pytest.raises(StoreError):
        store.limits.admit("user", LIMIT, time.time())
    time.sleep(0.2)
    server.resume()
    deadline = time.monotonic() + 60
    while not store.healthy:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert patient.limits.remaining("user", LIMIT, time.time()) == 2
    patient.close()
    store.close()


def test_a_user_who_may_not_publish_has_breakers_all_the_same(server: RedisServer) -> None:
    server.cli("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "resetchannels")
    url = server.url.replace("://", "://app:secret@")
    one, two = (open_resilience(url, command_timeout=20.0, connect_timeout=20.0) for _ in range(2))
    assert isinstance(one, SharedResilience)
    all_three(one)
    assert not one.listening
    assert two.breakers.look("flow").state is CircuitState.OPEN, "peers learn by asking"
    one.close()
    two.close()


def test_what_is_kept_goes_by_itself(server: RedisServer) -> None:
    import redis

    store = RedisResilience(RedisRules(server.url, command_timeout=20.0))
    all_three(store)
    store.limits.observe("user", AdaptiveRate(5), True, 0.0)
    raw = redis.Redis(port=server.port)
    without_end = {key for key in raw.scan_iter() if raw.ttl(key) < 0}
    assert without_end == {b"{genops}:breakers"}
    store.breakers.force_open("flow", time.time())
    assert raw.ttl("{genops}:breaker:flow") == -1, "an operator's word stays"
    assert all(key.startswith(b"{genops}:") for key in raw.scan_iter()), "one hash tag"
    raw.close()
    store.close()


def test_a_cluster(tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--cluster-enabled", "yes") as server:
        server.cli("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        deadline = time.monotonic() + 60
        while "cluster_state:ok" not in server.cli("CLUSTER", "INFO") and time.monotonic() < deadline:
            time.sleep(0.05)
        url = f"redis+cluster://127.0.0.1:{server.port}"
        store = SharedResilience(RedisRules(url, command_timeout=20.0, connect_timeout=20.0))
        assert store.healthy
        all_three(store)
        while not store.listening:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        store.close()


def test_a_sentinel(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        folder = tmp_path / "sentinel"
        folder.mkdir()
        settings = folder / "sentinel.conf"
        settings.write_text(f"sentinel monitor rules 127.0.0.1 {server.port} 1\n")
        with RedisServer(folder, "--sentinel", config=settings) as sentinel:
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/rules/0"
            store = RedisResilience(RedisRules(url, command_timeout=20.0, connect_timeout=20.0))
            all_three(store)
            store.close()


@pytest.mark.parametrize("more", [{"namespace": "a{b}"}, {"namespace": ""}, {"clock": "mine"}])
def test_what_cannot_work_is_refused_at_once(more: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        RedisRules("redis://localhost:1/0", **more)  # type: ignore[arg-type]


def test_nothing_shows_the_password() -> None:
    rules = RedisRules("redis://app:secret@localhost:1/0")
    with pytest.raises(StoreError) as failure:
        rules.ping()
    assert "secret" not in f"{rules!r} {rules.shown} {failure.value}"
