"""Real servers as they are run: evicting, over TLS, behind Sentinels, in a cluster."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genops_ctx.core.accounts import Account, Refusal, Reserve
from genops_ctx.core.errors import StoreDataLost, StoreError
from genops_ctx.core.ports import Held
from tests.strategies import watch

from .redis_sentinels import Sentinels, until
from .redis_server import REQUIRED, RedisServer, free_port

redis = pytest.importorskip("redis", reason="redis-py is not here: pip install 'genops_ctx[redis]'")

from genops_ctx.stores.redis import RedisStore  # noqa: E402

pytestmark = pytest.mark.slow


def missing(what: str, how: str) -> None:
    text = f"{what} is not here: {how}; GENOPS_TEST_REDIS=require makes this a failure"
    if REQUIRED:
        pytest.fail(text)
    pytest.skip(text)


def hold(store: RedisStore, name: str, amount: int = 5, limit: int = 100) -> Held | Refusal:
    wish = Reserve(name, amount, (watch("a", limit),), time.time() + 60)
    answer = store.reserve(wish, time.time())
    assert isinstance(answer, Held | Refusal)
    return answer


def account(store: RedisStore) -> Account:
    return store.accounts(["a"])["a"]


# -- eviction --------------------------------------------------------------------------------------


def test_a_cache_that_evicts_is_noticed_and_never_read_as_nothing_spent(tmp_path: Path) -> None:
    options = ("--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru", "--maxmemory-samples", "20")
    with RedisServer(tmp_path, *options) as server:
        store = RedisStore(server.url, command_timeout=20.0)
        assert isinstance(hold(store, "op#1"), Held)
        store.settle("op#1", 5, (), time.time(), True)
        problem = " ".join(store.check_health().problems)
        assert "allkeys-lru" in problem
        assert "noeviction" in problem
        with redis.Redis.from_url(server.url) as other:
            number = 0
            while other.exists(*store.keys) == len(store.keys):
                other.set(f"cached{number}", "x" * 1000)
                number += 1
                assert number < 100_000
        newcomer = RedisStore(server.url, command_timeout=20.0, generation=store.generation)
        for client in (store, newcomer):
            with pytest.raises(StoreDataLost):
                account(client)
            with pytest.raises(StoreDataLost):
                hold(client, "op#2")
        assert store.check_health().lost


def test_a_server_that_may_evict_nothing_refuses_instead(tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--maxmemory-policy", "noeviction") as server:
        store = RedisStore(server.url, command_timeout=20.0)
        assert isinstance(hold(store, "op#1"), Held)
        server.cli("CONFIG", "SET", "maxmemory", "500kb")
        with pytest.raises(StoreError, match="OutOfMemory"):
            hold(store, "op#2")
        assert account(store) == Account(0, 5)
        server.cli("CONFIG", "SET", "maxmemory", "0")
        assert isinstance(hold(store, "op#2"), Held)
        assert account(store) == Account(0, 10)


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Any:
    return pytest.importorskip("trustme", reason="pip install trustme").CA()


@pytest.fixture
def tls_port(tmp_path: Path, authority: Any) -> Iterator[int]:
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    port = free_port()
    files = [str(tmp_path / name) for name in ("cert.pem", "key.pem", "ca.pem")]
    options = ("--tls-port", str(port), "--tls-cert-file", files[0], "--tls-key-file", files[1])
    server = RedisServer(tmp_path, *options, "--tls-ca-cert-file", files[2], "--tls-auth-clients", "no")
    try:
        server.start()
    except RuntimeError as error:
        if "tls" not in str(error).lower():
            raise
        missing("a redis-server with TLS", "that of Debian has it")
    yield port
    server.kill()


def test_tls_with_an_authority_of_ones_own(tmp_path: Path, tls_port: int) -> None:
    url = f"rediss://127.0.0.1:{tls_port}/0?ssl_ca_certs={tmp_path / 'ca.pem'}"
    store = RedisStore(url, command_timeout=20.0, connect_timeout=20.0)
    assert isinstance(hold(store, "op#1"), Held)
    store.settle("op#1", 3, (), time.time(), True)
    assert account(store) == Account(3, 0)
    assert str(tmp_path) not in repr(store)
    store.close()


def test_a_server_that_another_authority_vouches_for_is_refused(tmp_path: Path, tls_port: int) -> None:
    import trustme

    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    for trusted in (f"?ssl_ca_certs={tmp_path / 'other.pem'}", ""):
        url = f"rediss://127.0.0.1:{tls_port}/0{trusted}"
        store = RedisStore(url, command_timeout=20.0, connect_timeout=20.0)
        with pytest.raises(StoreError, match=r"(?i)certificate"):
            hold(store, "op#1")
        store.close()


def test_plain_words_to_a_tls_port_are_an_error_and_not_a_wait(tls_port: int) -> None:
    store = RedisStore(f"redis://127.0.0.1:{tls_port}/0", command_timeout=0.5)
    begun = time.monotonic()
    with pytest.raises(StoreError):
        hold(store, "op#1")
    assert time.monotonic() - begun < 15.0
    store.close()


# -- Sentinel --------------------------------------------------------------------------------------


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    with Sentinels(tmp_path) as running:
        yield running


def test_a_failover_to_a_replica_that_has_all_goes_on(sentinels: Sentinels) -> None:
    store = RedisStore(sentinels.url, command_timeout=20.0, connect_timeout=20.0)
    assert isinstance(hold(store, "op#1", 60), Held)
    store.settle("op#1", 50, (), time.time(), True)
    assert isinstance(hold(store, "op#2", 30), Held)
    sentinels.catch_up()
    sentinels.fail_over()
    until(lambda: account(store) == Account(50, 30))
    assert isinstance(hold(store, "op#3", 30), Refusal)
    assert isinstance(hold(store, "op#4", 20), Held)
    store.close()


def test_a_store_that_is_closed_has_no_connections_to_its_sentinels_either(sentinels: Sentinels) -> None:
    def connections() -> int:
        return sentinels.sentinel.cli("CLIENT", "LIST", "TYPE", "normal").count("addr=127.0.0.1:")

    before = connections()
    store = RedisStore(sentinels.url, command_timeout=20.0, connect_timeout=20.0)
    account(store)
    assert connections() > before
    store.close()
    until(lambda: connections() == before)
    assert account(store) == Account(0, 0), "it is connected again"
    store.close()


def test_a_failover_to_a_replica_that_was_behind_is_noticed(sentinels: Sentinels) -> None:
    """Redis replicates after it has answered, so a failover may lose what was answered last."""
    store = RedisStore(sentinels.url, command_timeout=20.0, connect_timeout=20.0)
    store.settle("op#1", 50, ("a",), time.time(), True)
    sentinels.cut_off()
    store.settle("op#2", 40, ("a",), time.time(), True)
    told = ("op#2", time.time())
    sentinels.fail_over()
    later = RedisStore(sentinels.url, command_timeout=20.0, connect_timeout=20.0)
    assert store.generation is not None
    later.expect(store.generation, told)
    noticed = 0
    for client in (later, store):
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            try:
                assert account(client) == Account(90, 0), "what it lost is read as not spent"
            except StoreDataLost:
                noticed += 1
                break
            except StoreError:
                time.sleep(0.1)
        client.close()
    assert noticed == 2


# -- Cluster ---------------------------------------------------------------------------------------


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[RedisServer]]:
    program = shutil.which("redis-cli")
    if program is None:
        missing("redis-cli", "install redis-tools")
    with contextlib.ExitStack() as stack:
        started = []
        for number in range(3):
            folder = tmp_path / f"node{number}"
            folder.mkdir()
            started.append(stack.enter_context(RedisServer(folder, "--cluster-enabled", "yes")))
        places = [f"127.0.0.1:{node.port}" for node in started]
        made = subprocess.run(
            [str(program), "--cluster", "create", *places, "--cluster-yes"],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
        until(lambda: all("cluster_state:ok" in node.cli("CLUSTER", "INFO") for node in started))
        yield started


def move_slot(nodes: list[RedisServer], slot: int, keys: tuple[str, ...]) -> None:
    """To the node after the one that has it."""
    clients = [redis.Redis.from_url(node.url, decode_responses=True) for node in nodes]
    names = [client.execute_command("CLUSTER", "MYID") for client in clients]
    owner = next(
        i for i, client in enumerate(clients) if client.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot)
    )
    target = (owner + 1) % len(nodes)
    clients[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[owner])
    clients[owner].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
    clients[owner].execute_command("MIGRATE", "127.0.0.1", nodes[target].port, "", 0, 5000, "KEYS", *keys)
    for index in (target, owner, *range(len(nodes))):
        clients[index].execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[target])
    for client in clients:
        client.close()


def test_a_cluster_of_three_keeps_a_namespace_in_one_slot_that_may_move(nodes: list[RedisServer]) -> None:
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    store = RedisStore(url, command_timeout=20.0, connect_timeout=20.0)
    assert isinstance(hold(store, "op#1", 60), Held)
    with redis.Redis.from_url(nodes[0].url) as client:
        slots = {int(client.execute_command("CLUSTER", "KEYSLOT", key)) for key in store.keys}
    assert len(slots) == 1
    other = RedisStore(url, command_timeout=20.0, connect_timeout=20.0)
    assert account(other) == Account(0, 60)
    move_slot(nodes, *slots, store.keys)
    store.settle("op#1", 50, (), time.time(), True)  # its node answers MOVED, which is followed
    assert isinstance(hold(other, "op#2", 60), Refusal)
    assert isinstance(hold(other, "op#3", 50), Held)
    assert account(store) == Account(50, 50)
    assert store.check_health().role == "master"
    store.close()
    other.close()
