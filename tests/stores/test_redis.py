"""What only a Redis store can get wrong: silence, restarts, lost data, other clocks, large amounts."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from genops_ctx.core.accounts import Account, Control, Hold, HoldState, Refusal, Reserve, WrongWindow
from genops_ctx.core.errors import ConfigurationError, StoreDataLost, StoreError
from genops_ctx.core.ports import Held
from tests.patience import once_it_answers
from tests.strategies import watch

from .redis_server import RedisServer

pytest.importorskip("redis", reason="redis-py is not here: pip install 'genops_ctx[redis]'")

from genops_ctx.stores.redis import RedisStore

MOST = 2**63 - 1
BOUND = 0.25


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that keeps all it was told, also when it is killed; of a power cut nothing is asked here."""
    with RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "no") as started:
        yield started


@pytest.fixture
def client(server: RedisServer) -> Iterator[RedisStore]:
    store = RedisStore(server.url, command_timeout=20.0)
    yield store
    store.close()


def wish(name: str, amount: int = 5, limit: int = 100, life: float = 100.0, **more: object) -> Reserve:
    return Reserve(name, amount, (watch("a", limit),), time.time() + life, **more)  # type: ignore[arg-type]


def held(store: RedisStore, name: str, **more: object) -> Held:
    answer = store.reserve(wish(name, **more), time.time())  # type: ignore[arg-type]
    assert isinstance(answer, Held)
    return answer


def spent(store: RedisStore) -> Account:
    return store.accounts(["a"])["a"]


# -- its clock -------------------------------------------------------------------------------------


def test_windows_are_judged_by_the_servers_clock(client: RedisStore) -> None:
    now = time.time()
    current = watch("a", 100)._replace(starts_at=now - 60, ends_at=now + 60)
    hour_ahead, hour_behind = now + 3600, now - 3600
    for here in (now, hour_ahead, hour_behind):
        answer = client.reserve(Reserve(f"op{here}#1", 5, (current,), here + 30), here)
        assert isinstance(answer, Held)
    next_hour = watch("b", 100)._replace(starts_at=now + 3000, ends_at=now + 6600)
    answer = client.reserve(Reserve("op#1", 5, (next_hour,), hour_ahead + 30), hour_ahead)
    assert isinstance(answer, WrongWindow)
    assert now <= answer.now <= time.time()


def test_a_reservation_lives_as_long_as_its_caller_meant_whatever_its_clock_says(client: RedisStore) -> None:
    wrong = time.time() + 3600
    client.reserve(Reserve("short#1", 5, (watch("a", 100),), wrong + 6), wrong)
    client.reserve(Reserve("long#1", 7, (watch("a", 100),), wrong + 6), wrong)
    client.extend("long#1", wrong + 100, wrong)
    assert client.reap(wrong) == ()
    time.sleep(6.05)
    assert [lost.name for lost in client.reap(0.0)] == ["short#1"]
    assert spent(client) == Account(5, 7)


# -- amounts ---------------------------------------------------------------------------------------


def test_the_largest_amounts_are_exact_to_the_nano_dollar(client: RedisStore) -> None:
    assert held(client, "op#1", amount=MOST - 1, limit=MOST).amount == MOST - 1
    refused = client.reserve(wish("op#2", 2, MOST), 0.0)
    assert isinstance(refused, Refusal)
    assert (refused.account.reserved, refused.limit, refused.wanted) == (MOST - 1, MOST, 2)
    assert held(client, "op#3", amount=1, limit=MOST).amount == 1
    client.settle("op#1", 2**53 + 1, (), time.time(), True)
    assert spent(client) == Account(2**53 + 1, 1)
    client.settle("op#1", 2**53 - 10**9 - 1, (), time.time(), True)
    assert spent(client) == Account(2**53 - 10**9 - 1, 1)
    client.adjust("a", -(2**53))
    assert spent(client) == Account(-(10**9) - 1, 1)


# -- silence ---------------------------------------------------------------------------------------


def test_a_hung_server_costs_a_call_the_bound_and_the_calls_after_it_nothing(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStore(server.url, command_timeout=BOUND)
    once_it_answers(lambda: held(store, "op#1"))
    server.pause()
    begun = time.monotonic()
    with pytest.raises(StoreError, match="did not answer within"):
        held(store, "op#2")
    assert BOUND * 0.9 <= time.monotonic() - begun < BOUND + 15.0
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="a moment ago"):
        # However long this process stood still, not a moment has passed.
        patch.setattr("genops_ctx.stores.redis_line.time", SimpleNamespace(monotonic=lambda: begun))
        store.release("op#2", time.time())
    server.resume()
    time.sleep(3 * BOUND)
    # Nothing that was given up is done later.
    assert once_it_answers(lambda: spent(store)) == Account(0, 5)
    assert RedisStore(server.url, command_timeout=20.0).reserve(wish("op#2"), time.time()).fresh  # type: ignore[union-attr]


def test_who_looks_after_the_data_asks_also_where_the_server_was_silent(server: RedisServer) -> None:
    """Others are told at once that it was; who tells new data of calls in flight may not come too late."""
    store = RedisStore(server.url, command_timeout=BOUND)
    once_it_answers(lambda: held(store, "op#1"))
    store._line.failed(TimeoutError("by 600 s"), time.monotonic() - 600)
    with pytest.raises(StoreError, match="a moment ago"):
        spent(store)
    once_it_answers(store.probe)
    assert once_it_answers(lambda: spent(store)) == Account(0, 5)
    store.close()


def test_a_server_that_comes_back_does_nothing_stale(server: RedisServer) -> None:
    store = RedisStore(server.url, command_timeout=BOUND)
    once_it_answers(lambda: held(store, "op#1"))
    for number in range(3):
        server.pause()
        with pytest.raises(StoreError):
            store.adjust("a", 1000)
        if number % 2:
            time.sleep(2 * BOUND)
        server.resume()
        time.sleep(3 * BOUND)
        assert once_it_answers(lambda: spent(store)) == Account(0, 5)


def test_it_finds_its_server_again_after_a_restart(server: RedisServer, client: RedisStore) -> None:
    held(client, "op#1")
    server.kill()
    with pytest.raises(StoreError):
        held(client, "op#2")
    server.start()
    assert not held(client, "op#1").fresh
    assert held(client, "op#2").fresh
    assert spent(client) == Account(0, 10)


def test_a_server_that_forgot_the_scripts_is_told_them_again(server: RedisServer, client: RedisStore) -> None:
    held(client, "op#1")
    server.cli("SCRIPT", "FLUSH")
    assert held(client, "op#2").fresh


def test_no_server_is_a_store_error_that_keeps_the_password_to_itself(server: RedisServer) -> None:
    store = RedisStore(f"redis://me:hunter2@127.0.0.1:{server.port}/0")
    server.kill()
    with pytest.raises(StoreError) as caught:
        held(store, "op#1")
    assert "hunter2" not in f"{caught.value!r} {caught.value} {store!r}"


def _reserve_in_child(store: RedisStore, answers: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    answers.put([held(store, f"child{number}#1", limit=10**6).fresh for number in range(50)])


def test_a_store_works_on_both_sides_of_a_fork(client: RedisStore) -> None:
    held(client, "op#1")
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    child = fork.Process(target=_reserve_in_child, args=(client, answers))
    child.start()
    assert all(held(client, f"parent{number}#1", limit=10**6).fresh for number in range(50))
    assert answers.get(timeout=60) == [True] * 50
    child.join(20)
    assert spent(client) == Account(0, 5 + 100 * 5)


# -- lost data -------------------------------------------------------------------------------------


def test_a_flushed_server_is_not_one_that_has_spent_nothing(server: RedisServer, client: RedisStore) -> None:
    held(client, "op#1")
    server.cli("FLUSHALL")
    for use in (lambda: held(client, "op#2"), lambda: spent(client), lambda: client.controls(["team=a"])):
        with pytest.raises(StoreDataLost, match="it was emptied"):
            use()
    newcomer = RedisStore(server.url, command_timeout=20.0)
    with pytest.raises(StoreDataLost):  # it was not there before, and learns it all the same
        held(newcomer, "op#3")


def test_a_newcomer_that_begins_anew_does_not_hide_a_flush(server: RedisServer, client: RedisStore) -> None:
    held(client, "op#1")
    server.cli("FLUSHALL")
    newcomer = RedisStore(server.url, command_timeout=20.0)
    held(newcomer, "op#2")
    assert newcomer.made_it
    with pytest.raises(StoreDataLost, match="begun anew"):
        held(client, "op#3")
    with pytest.raises(StoreDataLost):
        held(newcomer, "op#4")


def test_a_client_that_knows_the_generation_begins_nothing_anew(
    server: RedisServer, client: RedisStore
) -> None:
    held(client, "op#1")
    known = client.generation
    assert known
    server.cli("FLUSHALL")
    later = RedisStore(server.url, command_timeout=20.0, generation=known)
    with pytest.raises(StoreDataLost):
        held(later, "op#2")


@pytest.mark.parametrize("part", ["accounts", "holds", "controls", "due", "sweep", "losses", "marks", "meta"])
def test_one_evicted_key_is_noticed(server: RedisServer, client: RedisStore, part: str) -> None:
    held(client, "op#1")
    server.cli("DEL", f"{{genops}}:{part}")
    with pytest.raises(StoreDataLost):
        held(client, "op#2")


def test_a_restart_without_persistence_is_noticed(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        store = RedisStore(server.url, command_timeout=20.0)
        held(store, "op#1")
        server.kill()
        server.start()
        with pytest.raises(StoreDataLost):
            held(store, "op#2")


def test_an_old_snapshot_is_noticed(tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--dbfilename", "old.rdb") as server:
        store = RedisStore(server.url, command_timeout=20.0)
        held(store, "op#1")
        server.cli("SAVE")
        store.settle("op#1", 5, (), time.time(), True)
        server.kill()
        server.start()
        with pytest.raises(StoreDataLost, match="earlier state"):
            spent(store)


def test_restored_accounts_are_used_by_everybody(server: RedisServer, client: RedisStore) -> None:
    other = RedisStore(server.url, command_timeout=20.0)
    held(client, "op#1")
    held(other, "op#2")
    server.cli("FLUSHALL")
    with pytest.raises(StoreDataLost):
        spent(client)
    assert client.claim_restore()
    assert not other.claim_restore()
    holds = {
        "op#2": Hold(HoldState.HELD, 5, 0, ("a",), time.time() + 60),
        "op#0": Hold(HoldState.SETTLED, 9, 8, ("a",), time.time() + 60),
    }
    assert client.restore({"a": Account(30, 999)}, holds, {"team=a": Control(frozen=True)})
    assert spent(client) == Account(30, 10), "it tells of its own call in flight, which no ledger knows"
    assert spent(other) == Account(30, 10)
    assert client.generation == other.generation
    assert not other.restore({"a": Account(0, 0)}), "it was done already"
    assert not held(other, "op#2").fresh
    assert held(other, "op#0").state is HoldState.SETTLED
    assert other.controls(["team=a"])["team=a"].frozen
    other.settle("op#2", 7, (), time.time(), True)
    other.settle("op#0", 10, (), time.time(), True)
    client.release("op#1", time.time())
    assert spent(client) == Account(30 + 7 + 2, 0)


def test_a_call_that_was_admitted_just_before_the_loss_is_told_of(
    server: RedisServer, client: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread of its process goes over to the new data before the call is known to be in flight."""
    other = RedisStore(server.url, command_timeout=20.0)
    held(client, "op#1")
    begin = client.session.in_flight.begin

    def late(wish: Reserve, amount: int, now: float) -> None:
        server.cli("FLUSHALL")
        with pytest.raises(StoreDataLost):
            client.probe()
        assert other.restore({"a": Account(30, 0)})
        client.probe()
        begin(wish, amount, now)

    assert spent(other) == Account(0, 5)
    monkeypatch.setattr(client.session.in_flight, "begin", late)
    held(client, "op#2", amount=7)
    client.probe()
    assert spent(other) == Account(30, 5 + 7)


def test_who_comes_when_all_is_restored_restores_nothing(server: RedisServer, client: RedisStore) -> None:
    held(client, "op#1")
    client.settle("op#1", 5, (), time.time(), True)
    newcomer = RedisStore(server.url, command_timeout=20.0)
    assert not newcomer.restore({"a": Account(0, 0)}), "its ledger was read before the settlement"
    assert spent(client) == spent(newcomer) == Account(5, 0)


def test_what_was_reserved_after_the_loss_stays_reserved(server: RedisServer, client: RedisStore) -> None:
    held(client, "op#1")
    server.cli("FLUSHALL")
    newcomer = RedisStore(server.url, command_timeout=20.0)
    held(newcomer, "new#1", amount=7)
    with pytest.raises(StoreDataLost):
        spent(client)
    assert client.restore({"a": Account(30, 0)})
    assert spent(newcomer) == Account(30, 7)
    newcomer.settle("new#1", 6, (), time.time(), True)
    assert spent(client) == Account(36, 5), "op#1 is in flight still"


# -- what other versions have written ----------------------------------------------------------------

WITHOUT_TOKENS = """
for _, key in ipairs({"holds", "losses"}) do
  local kept = redis.call("HGETALL", "{genops}:" .. key)
  for index = 1, #kept, 2 do
    if kept[index] ~= "" then
      local hold = cmsgpack.unpack(kept[index + 1])
      if not (hold[10] or ""):find("|", 1, true) then
        table.remove(hold, 10)
      end
      redis.call("HSET", "{genops}:" .. key, kept[index], cmsgpack.pack(hold))
    end
  end
end
"""
"""Makes reservations what the version before tokens kept: state, amount, booked, expiry, named, end,
memo, and then at once the accounts."""


def test_reservations_of_before_there_were_tokens_are_read_right(
    server: RedisServer, client: RedisStore
) -> None:
    day, month = "team=a|day:2026-11-21@UTC", "team=a|month:2026-11@UTC"

    def reserve(name: str, amount: int, life: float = 100.0) -> object:
        watches = (watch(day, 1000), watch(month, 1000))
        return client.reserve(Reserve(name, amount, watches, time.time() + life, keyed=True), time.time())

    for name, amount in (("settled#1", 5), ("given back#1", 7), ("in flight#1", 11)):
        reserve(name, amount)
    reserve("lost#1", 13, life=-1.0)
    reserve("told#1", 17, life=-2.0)
    client.reserve(Reserve("nowhere#1", 0, (), time.time() + 100, keyed=True), time.time())
    assert len(client.reap(time.time())) == 2
    reserve("late#1", 19, life=-1.0)
    server.cli("EVAL", WITHOUT_TOKENS, "0")

    client.settle("settled#1", 4, (), time.time(), True)
    assert client.release("given back#1", time.time())
    assert not client.release("in flight#1", time.time(), "another's token")
    losses = {lost.name: lost.hold.accounts for lost in client.reap(time.time())}
    assert losses == dict.fromkeys(("lost#1", "told#1", "late#1"), (day, month))
    client.settle("told#1", 16, (), time.time(), True)
    client.settle("nowhere#1", 0, (), time.time(), True)
    expected = Account(4 + 13 + 16 + 19, 11)
    assert client.accounts() == {day: expected, month: expected}

    server.cli("EVAL", WITHOUT_TOKENS, "0")
    assert client.restore({day: Account(16), month: Account(16)}, anyway=True)
    left = Account(16 + 13 + 19, 11)
    assert client.accounts() == {day: left, month: left}, "told#1 is settled, and so in what the ledger says"


def test_of_calls_inside_another_each_is_told_with_what_it_has_left(
    server: RedisServer, client: RedisStore
) -> None:
    """One of 60 around three: 4 are spent, 7 are in flight, 49 are left."""
    now = time.time()

    def begin(name: str, amount: int, *within: str) -> None:
        answer = client.reserve(Reserve(name, amount, (watch("a", 100),), now + 600, within=within), now)
        assert isinstance(answer, Held)

    begin("outer#1", 60)
    begin("one#1", 10, "outer#1")
    client.settle("one#1", 4, ("a",), now, True)
    begin("two#1", 10, "outer#1")
    client.release("two#1", now)
    begin("three#1", 7, "outer#1")
    assert spent(client) == Account(4, 56)
    server.cli("FLUSHALL")
    with pytest.raises(StoreDataLost):
        spent(client)
    assert client.restore({"a": Account(4, 0)})
    assert spent(client) == Account(4, 56)
    client.settle("three#1", 5, ("a",), now, True)
    client.release("outer#1", now)
    assert spent(client) == Account(9, 0)


def test_accounts_of_a_newer_version_are_refused(server: RedisServer, client: RedisStore) -> None:
    """Also by those who had joined before a newer version wrote them anew."""
    held(client, "op#1")
    server.cli("HSET", "{genops}:meta", "schema", "2")
    newcomer = RedisStore(server.url, command_timeout=20.0)
    for one in (newcomer, client):
        for use in (
            lambda one=one: held(one, "op#2"),
            lambda one=one: one.settle("op#1", 5, ("a",), 1.0, True),
            lambda one=one: one.accounts(),
            lambda one=one: one.reap(1e12),
            lambda one=one: one.restore({}, anyway=True),
        ):
            with pytest.raises(
                StoreError, match="version 2, and this one knows 1 at most; update genops_ctx"
            ):
                use()
    server.cli("HSET", "{genops}:meta", "schema", "1")
    assert spent(client) == Account(0, 5), "nothing was changed"


# -- set up ----------------------------------------------------------------------------------------


def test_health_says_how_it_is_set_up(server: RedisServer, client: RedisStore) -> None:
    server.cli("CONFIG", "SET", "appendfsync", "always")
    held(client, "op#1")
    health = client.check_health()
    assert (health.persistence, health.eviction, health.problems) == ("aof always", "noeviction", ())
    assert health.generation == client.generation
    assert len(health.run_id) == 40
    server.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    (problem,) = client.check_health().problems
    assert "noeviction" in problem
    server.cli("FLUSHALL")
    with pytest.raises(StoreDataLost):
        spent(client)
    assert client.check_health().lost


def test_two_namespaces_on_one_server_have_nothing_in_common(server: RedisServer, client: RedisStore) -> None:
    other = RedisStore(server.url, namespace="staging", command_timeout=20.0)
    held(client, "op#1")
    assert other.accounts() == {}
    assert held(other, "op#1").fresh


def test_a_password_and_a_database_number(tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--requirepass", "p@ss/word") as server:
        store = RedisStore(f"redis://:p%40ss%2Fword@127.0.0.1:{server.port}/3", command_timeout=20.0)
        assert held(store, "op#1").fresh
        wrong = RedisStore(f"redis://:wrong@127.0.0.1:{server.port}/3", command_timeout=20.0)
        with pytest.raises(StoreError) as caught:
            held(wrong, "op#2")
        assert "wrong@" not in str(caught.value)


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with RedisServer(tmp_path, "--unixsocket", str(path)):
        assert held(RedisStore(f"unix://{path}", command_timeout=20.0), "op#1").fresh


def test_a_cluster_keeps_all_of_a_namespace_on_one_node(tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--cluster-enabled", "yes") as server:
        server.cli("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        deadline = time.monotonic() + 120
        while "cluster_state:ok" not in server.cli("CLUSTER", "INFO") and time.monotonic() < deadline:
            time.sleep(0.05)
        store = RedisStore(f"redis+cluster://127.0.0.1:{server.port}", command_timeout=20.0)
        assert held(store, "op#1").fresh
        store.settle("op#1", 3, (), time.time(), True)
        assert spent(store) == Account(3, 0)
        assert store.check_health().role == "master"
        store.close()


def test_sentinel_says_where_the_master_is(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        folder = tmp_path / "sentinel"
        folder.mkdir()
        settings = folder / "sentinel.conf"
        settings.write_text(f"sentinel monitor budgets 127.0.0.1 {server.port} 1\n")
        with RedisServer(folder, "--sentinel", config=settings) as sentinel:
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/budgets/0"
            store = RedisStore(url, command_timeout=20.0)
            assert held(store, "op#1").fresh
            assert "127.0.0.1" in repr(store)
            store.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://host:26379",  # no service
        "redis+sentinel://host:26379/service/0/more",
        "redis+cluster://host:6379/1",  # a cluster has one database
        "unix+sentinel://path",
        "redis+other://host",
        "http://host",
        "redis://",
    ],
)
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError):
        RedisStore(url)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel", "redis+cluster"])
@pytest.mark.parametrize("password", ["hun/ter2", "hun?ter2", "hun#ter2", "123/ter2"])
def test_a_password_that_is_not_encoded_is_shown_to_nobody(scheme: str, password: str) -> None:
    with pytest.raises(ConfigurationError, match="percent-encoded") as refused:
        RedisStore(f"{scheme}://genops:{password}@host:6379/0")
    told = "".join(traceback.format_exception(refused.value))
    assert "hun" not in told
    assert "123" not in told


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://genops:p%2Fw@[::1]:6379/0", "redis://[::1]:6379"),
        ("redis://:p@w@host", "redis://host"),
        ("unix://genops:pw@/run/a@b.sock?db=1", "unix://"),
        ("redis+sentinel://a:1,b:2/service?sentinel_password=p@w", "redis+sentinel://a:1,b:2"),
    ],
)
def test_what_is_shown_of_an_address_is_its_hosts(url: str, shown: str) -> None:
    assert repr(RedisStore(url)) == f"RedisStore({shown!r})"


@pytest.mark.parametrize(
    "more", [{"namespace": "a{b}"}, {"namespace": ""}, {"clock": "mine"}, {"command_timeout": 0}]
)
def test_bad_settings_are_refused_at_once(more: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        RedisStore("redis://localhost", **more)  # type: ignore[arg-type]
