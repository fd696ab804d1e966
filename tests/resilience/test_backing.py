"""What is kept behind one URL is one store in a process."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from genops_ctx.resilience import CircuitBreaker, RateLimiter, RedisCache
from tests.stores.redis_server import RedisServer
from tests.stores.slow_proxy import SlowProxy


def test_breakers_of_one_name_and_url_are_one() -> None:
    one, other = (CircuitBreaker(1, name="b", store="memory://") for _ in range(2))
    with pytest.raises(TimeoutError):
        one.call(_fail)
    assert other.is_open()
    assert not CircuitBreaker(1, name="another", store="memory://").is_open()


def _fail() -> None:
    raise TimeoutError


def test_that_a_server_is_silent_is_learnt_once_for_all(tmp_path: Path) -> None:
    """A cache, a limit and a breaker on one Redis that hangs cost one wait together, not three."""
    server = RedisServer(tmp_path)
    server.start()
    try:
        cache = RedisCache(server.url)
        limit = RateLimiter(50, name="l", store=server.url)
        breaker = CircuitBreaker(name="b", store=server.url)
        cache.set("q", 1)
        assert limit.acquire()
        assert breaker.call(lambda: 7) == 7
        server.pause()
        ratios = []
        for _ in range(5):  # a busy machine may keep one from its turn, and hardly five
            time.sleep(1.1)  # what was heard of the breaker counts for a second
            begun = time.perf_counter()
            assert cache.get("q") is None
            alone = time.perf_counter() - begun
            assert limit.acquire()
            assert breaker.call(lambda: 7) == 7
            ratios.append((time.perf_counter() - begun) / alone)
            if ratios[-1] < 2.5:
                break
        assert min(ratios) < 2.5
    finally:
        server.resume()
        server.kill()


def test_a_server_that_takes_its_time_is_not_taken_for_one_that_is_away(tmp_path: Path) -> None:
    """A machine under load answers late too; each process that went alone then would have the whole limit."""
    with RedisServer(tmp_path) as server, SlowProxy(server.port, delay=0.06) as far:
        url = f"redis://127.0.0.1:{far.port}/0"
        until = time.monotonic() + 60
        for number in itertools.count():  # where this machine takes its time too, that is one too many
            name = f"l{number}"
            assert RateLimiter(2, 3600.0, name=name, store=url).acquire()
            if RateLimiter(2, 3600.0, name=name, store=server.url).allowance() == 1:
                break
            assert time.monotonic() < until
            time.sleep(0.2)  # and the limits of this process go alone for a while then
