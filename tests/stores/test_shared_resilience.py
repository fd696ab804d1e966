"""What peers learn of each other on a real Redis, and what one does alone while it is away."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genops_ctx.core.adaptive import AdaptiveRate
from genops_ctx.core.breaker import BreakerRule, CircuitState, Denied, Outcome, Permit
from genops_ctx.core.cache import Busy, CacheRule, Hit, Lease
from genops_ctx.core.errors import ConfigurationError, StoreError
from genops_ctx.core.ratelimit import Admitted, Limited, RateLimit

from .redis_server import RedisServer, free_port

pytest.importorskip("redis")

from genops_ctx.stores import breaker_feed
from genops_ctx.stores.breaker_feed import Change, read_change
from genops_ctx.stores.redis_rules import RedisRules
from genops_ctx.stores.shared_resilience import SharedResilience

RULE = BreakerRule(failures=2, recovery_timeout=60.0, probe_timeout=30.0)
QUICK = BreakerRule(failures=2, recovery_timeout=0.3, probe_timeout=30.0)
LIMIT = RateLimit(3, 3600.0)
CACHE = CacheRule(ttl=60.0, lease=5.0)
BOUND = 0.25

NewPeer = Callable[..., SharedResilience]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "no") as started:
        yield started


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> Iterator[NewPeer]:
    made: list[SharedResilience] = []

    def make(
        away: str = "local", url: str = "", namespace: str = "genops", bound: float = 10.0
    ) -> SharedResilience:
        server_url = url or request.getfixturevalue("server").url
        rules = RedisRules(server_url, command_timeout=bound, connect_timeout=10.0, namespace=namespace)
        made.append(SharedResilience(rules, away=away))
        return made[-1]

    yield make
    for one in made:
        one.close()


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for it, less long than the views of these tests are gone by."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, "it never came"
        time.sleep(0.002)


def fail(store: SharedResilience, name: str = "flow", rule: BreakerRule = RULE) -> CircuitState:
    permit = store.breakers.admit(name, rule, time.time())
    assert isinstance(permit, Permit)
    return store.breakers.record(name, rule, permit, Outcome.FAILURE, time.time()).state


def open_it(store: SharedResilience, rule: BreakerRule = RULE) -> None:
    assert [fail(store, rule=rule) for _ in range(2)] == [CircuitState.CLOSED, CircuitState.OPEN]


def denied(store: SharedResilience, rule: BreakerRule = RULE) -> bool:
    return isinstance(store.breakers.admit("flow", rule, time.time()), Denied)


def listening(*stores: SharedResilience) -> None:
    for store in stores:
        until(lambda: store.listening)  # noqa: B023


def test_peers_learn_of_an_opening_and_of_a_reset_at_once(
    peer: NewPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With views that are gone by for a minute, nothing but the event can tell them."""
    monkeypatch.setattr("genops_ctx.stores.shared_breakers.VIEW_SECONDS", 60.0)
    one, two = peer(), peer()
    listening(one, two)
    assert not denied(two)
    open_it(one)
    until(lambda: denied(two))
    two.breakers.reset("flow", time.time())
    until(lambda: not denied(one))
    one.breakers.force_open("flow", time.time())
    until(lambda: denied(two))
    assert two.breakers.admit("flow", RULE, time.time()) == Denied(
        CircuitState.OPEN, two.breakers.look("flow").version, None
    )


def test_who_joins_late_is_right_from_the_first_call(peer: NewPeer) -> None:
    one = peer()
    open_it(one)
    late = peer()
    assert denied(late)
    assert late.breakers.look("flow").state is CircuitState.OPEN
    assert late.breakers.circuits().keys() == {"flow"}


def test_an_open_view_refuses_without_asking_and_a_closed_one_admits(
    peer: NewPeer, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genops_ctx.stores.shared_breakers.VIEW_SECONDS", 60.0)
    one = peer()
    listening(one)
    assert not denied(one)

    def scripts_run() -> int:
        server.cli("CONFIG", "RESETSTAT")
        for _ in range(20):
            one.breakers.admit("flow", RULE, time.time())
        return server.cli("INFO", "commandstats").count("cmdstat_evalsha")

    assert scripts_run() == 0
    open_it(one)
    assert denied(one)
    assert scripts_run() == 0


def test_stale_and_foreign_events_are_refused(
    peer: NewPeer, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genops_ctx.stores.shared_breakers.VIEW_SECONDS", 60.0)
    one, two = peer(), peer()
    listening(one, two)
    open_it(one)
    assert denied(two)
    version = two.breakers.look("flow").version

    def tell(**changes: object) -> None:
        event = {
            "name": "flow",
            "namespace": "genops",
            "state": "closed",
            "version": version - 1,
            "since": 0,
            "forced": False,
        }
        assert server.cli("PUBLISH", "circuit_breaker:state:flow", json.dumps(event | changes)) == ":2\r\n"

    tell()
    tell(version=version)
    tell(version=version + 1, namespace="another")
    server.cli("PUBLISH", "circuit_breaker:state:flow", "not json")
    tell(version=version + 1, state="ajar")
    time.sleep(0.2)
    assert denied(two)
    tell(version=version + 1, state="CLOSED")
    until(lambda: not denied(two))  # a newer one is heard, in upper case too


def test_an_event_of_five_hours_ago_is_not_taken_by_who_knows_nothing_yet(
    peer: NewPeer, server: RedisServer
) -> None:
    one = peer()
    listening(one)
    event = {"name": "flow", "namespace": "genops", "state": "open", "since": 0, "forced": True}
    old = round((time.time() - 5 * 3600) * 1e6)
    server.cli("PUBLISH", "circuit_breaker:state:flow", json.dumps(event | {"version": old}))
    time.sleep(0.1)
    assert not denied(one)


def test_events_are_on_the_channel_of_the_breaker(peer: NewPeer, server: RedisServer) -> None:
    """``circuit_breaker:state:*``, in the words of other clients."""
    import redis

    listener = redis.Redis(port=server.port).pubsub()
    listener.psubscribe("circuit_breaker:state:*")
    listener.get_message(timeout=30.0)
    one = peer()
    open_it(one)
    message = listener.get_message(timeout=30.0)
    assert message is not None
    listener.close()
    assert message["channel"] == b"circuit_breaker:state:flow"
    said = json.loads(message["data"])
    circuit = one.breakers.look("flow")
    assert said == {
        "name": "flow",
        "namespace": "genops",
        "state": "open",
        "version": circuit.version,
        "since": circuit.since,
        "forced": False,
    }
    assert read_change(message["data"], "genops") == Change(
        "flow", CircuitState.OPEN, circuit.version, circuit.since, False
    )


def test_installations_on_one_server_do_not_meet(peer: NewPeer) -> None:
    one, other = peer(), peer(namespace="other")
    listening(one, other)
    assert not denied(other)
    open_it(one)
    time.sleep(0.1)
    assert not denied(other)


def test_a_flush_closes_and_a_restart_resyncs_by_itself(peer: NewPeer, server: RedisServer) -> None:
    one, two = peer(), peer()
    listening(one, two)
    open_it(one)
    until(lambda: denied(two))
    server.cli("FLUSHALL")
    until(lambda: not denied(one) and not denied(two))
    open_it(one)
    until(lambda: denied(two))
    server.kill()
    until(lambda: not one.healthy and not one.listening)
    server.start()
    until(lambda: one.healthy and one.listening and two.listening)
    assert denied(one), "it kept what it knew (appendonly)"
    two.breakers.reset("flow", time.time())
    until(lambda: not denied(one))


def test_while_it_is_away_each_goes_by_its_own_within_a_bound(peer: NewPeer, server: RedisServer) -> None:
    one = peer()
    listening(one)
    open_it(one)
    assert denied(one)
    server.kill()
    until(lambda: not one.listening)
    assert not one.healthy
    begun = time.monotonic()
    assert denied(one), "what was open stays so for its time"
    states = [fail(one, "another") for _ in range(2)]
    assert states == [CircuitState.CLOSED, CircuitState.OPEN], "a breaker of its own"
    assert isinstance(one.breakers.look("another").state, CircuitState)
    turns = [one.limits.admit("user", LIMIT, time.time()) for _ in range(4)]
    assert [type(turn) for turn in turns[3:]] == [Limited]
    assert isinstance(turns[0], Admitted)
    one.limits.give_back("user", LIMIT, turns[0], time.time())
    assert one.limits.remaining("user", LIMIT, time.time()) == 1
    assert one.limits.rate("flow", AdaptiveRate(base=4)) == 4
    assert one.limits.observe("flow", AdaptiveRate(base=4, sample=1), False, time.time()) == 5
    lease = one.cache.claim("c", "k", CACHE, time.time())
    assert isinstance(lease, Lease)
    assert isinstance(one.cache.claim("c", "k", CACHE, time.time()), Busy)
    assert one.cache.put("c", "k", b"alone", CACHE, time.time(), lease=lease)
    assert isinstance(one.cache.get("c", "k", time.time()), Hit)
    assert one.cache.size("c", time.time()) == 1
    assert one.breakers.circuits().keys() == {"another", "flow"}
    for refused in (
        lambda: one.breakers.reset("flow", time.time()),
        lambda: one.breakers.force_open("flow", time.time()),
        lambda: one.cache.delete("c", "k"),
        lambda: one.cache.clear("c"),
    ):
        with pytest.raises(StoreError):
            refused()
    assert time.monotonic() - begun < 20.0
    server.start()
    until(lambda: one.healthy)
    assert one.limits.remaining("user", LIMIT, time.time()) == 3, "what was decided alone is forgotten"
    assert one.cache.get("c", "k", time.time()) is None
    assert not isinstance(one.breakers.admit("another", RULE, time.time()), Denied)


def test_a_hung_redis_costs_a_bounded_time(peer: NewPeer, server: RedisServer) -> None:
    one = peer(bound=BOUND)
    listening(one)
    assert not denied(one)
    server.pause()
    begun = time.monotonic()
    for _ in range(200):
        one.limits.admit("user", LIMIT, time.time())
        one.breakers.admit("other", RULE, time.time())
    spent = time.monotonic() - begun
    # One call in 3 × BOUND waits; the others are told at once. All 400 would wait for 100 s.
    assert spent < 6 * BOUND + 10.0
    assert not one.healthy
    until(lambda: not one.listening)
    server.resume()
    until(lambda: one.healthy and one.listening)
    assert one.limits.remaining("user", LIMIT, time.time()) == 3, "nothing was done late"


def test_down_at_start(peer: NewPeer, tmp_path: Path) -> None:
    port = free_port()
    one = peer(url=f"redis://127.0.0.1:{port}/0")
    assert not one.healthy
    assert not one.listening
    assert not denied(one)
    assert isinstance(one.limits.admit("user", LIMIT, time.time()), Admitted)
    with RedisServer(tmp_path, port=port):
        until(lambda: one.healthy and one.listening)
        open_it(one)
        assert denied(peer(url=f"redis://127.0.0.1:{port}/0"))


def test_away_refuse_passes_the_error_on(peer: NewPeer, tmp_path: Path) -> None:
    one = peer("refuse", url=f"redis://127.0.0.1:{free_port()}/0")
    for question in (
        lambda: one.breakers.admit("flow", RULE, time.time()),
        lambda: one.limits.admit("user", LIMIT, time.time()),
        lambda: one.cache.get("c", "k", time.time()),
    ):
        with pytest.raises(StoreError):
            question()
    with pytest.raises(ConfigurationError):
        peer("sometimes", url="redis://localhost:1/0")


def test_outcomes_of_calls_from_before_and_after_an_absence_are_counted_where_they_can_be(
    peer: NewPeer, server: RedisServer
) -> None:
    one = peer()
    shared = [one.breakers.admit("flow", RULE, time.time()) for _ in range(2)]
    server.kill()
    for permit in shared:
        assert isinstance(permit, Permit)
        one.breakers.record("flow", RULE, permit, Outcome.FAILURE, time.time())
    assert denied(one), "the breaker of this process has seen two failures"
    alone = one.breakers.admit("other", RULE, time.time())
    server.start()
    until(lambda: one.healthy)
    assert not denied(one)
    assert isinstance(alone, Permit)
    one.breakers.record("other", RULE, alone, Outcome.FAILURE, time.time())
    assert one.breakers.look("other").failures == 0


def test_one_probe_of_fifty_threads(peer: NewPeer) -> None:
    one = peer("refuse", bound=20.0)
    listening(one)
    open_it(one, QUICK)
    time.sleep(0.35)
    admitted: list[Permit] = []
    gate = threading.Barrier(50)

    def caller() -> None:
        gate.wait()
        decision = one.breakers.admit("flow", QUICK, time.time())
        if isinstance(decision, Permit):
            admitted.append(decision)

    threads = [threading.Thread(target=caller) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 1
    closed = one.breakers.record("flow", QUICK, admitted[0], Outcome.SUCCESS, time.time())
    assert closed.state is CircuitState.CLOSED
    assert not denied(one, QUICK)


FORKS = """
import os, sys, time
from genops_ctx.core.breaker import BreakerRule, Denied
from genops_ctx.stores.resilience import open_resilience

rule = BreakerRule(failures=2)
store = open_resilience(sys.argv[1], command_timeout=20.0)
def wait(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
def denied():
    return isinstance(store.breakers.admit("flow", rule, time.time()), Denied)
wait(lambda: store.listening)
assert not denied()
ids = store.breakers.admit("other", rule, time.time()).id
child = os.fork()
if child == 0:
    try:
        assert store.breakers.admit("other", rule, time.time()).id != ids
        wait(lambda: store.listening)
        wait(denied)
    except BaseException:
        os._exit(1)
    os._exit(0)
time.sleep(0.3)
store.breakers.force_open("flow", time.time())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert denied()
print("both")
"""


def test_a_forked_process_listens_by_itself(server: RedisServer) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, server.url],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.stdout == "both\n", done.stderr


def test_the_feed_stops_and_starts_with_its_store(peer: NewPeer) -> None:
    def feeds() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "genops-breaker-feed"}

    before = feeds()  # of stores that other tests have left open
    one = peer()
    listening(one)
    own = feeds() - before
    assert own
    one.close()
    until(lambda: not own & feeds())
    listening(one)


def test_messages_that_are_none_are_none() -> None:
    good = {"name": "a", "namespace": "n", "state": "open", "version": 1, "since": 2, "forced": False}
    assert read_change(json.dumps(good).encode(), "n") == Change("a", CircuitState.OPEN, 1, 2, False)
    for wrong in ({"version": "x"}, {"state": None}, {"namespace": "m"}):
        assert read_change(json.dumps(good | wrong).encode(), "n") is None
    for wrong_text in (b"[]", b"3", b"", b"\xff", b'{"namespace": "n"}'):
        assert read_change(wrong_text, "n") is None
    assert breaker_feed.CHANNELS == "circuit_breaker:state:"
