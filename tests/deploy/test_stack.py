"""What docker-compose.yml starts, started without containers: real Redis and PostgreSQL by their parts of it.

Only addresses differ: everything listens on loopback, at a free port, and a stand-in takes Flowise's place.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from genops_ctx.ledger import open_ledger
from genops_ctx.ledger.postgres_connection import KEPT
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from genops_ctx.stores import open_store
from genops_ctx.stores.redis import RedisStore
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.ledger.postgres_server import PostgresServer
from tests.service.conftest import patient_stores as patient_stores
from tests.service.served import Served
from tests.stores.redis_server import RedisServer

from .files import FOLDER, read_yaml
from .needs import program

SERVICES: dict[str, dict[str, Any]] = read_yaml("docker-compose.yml")["services"]
FLOWISE_KEY = "flowise-key-that-no-client-may-see"


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A folder of secrets as secrets.sh makes it."""
    shutil.copy(FOLDER / "secrets.sh", tmp_path / "secrets.sh")
    subprocess.run(["sh", tmp_path / "secrets.sh"], check=True, timeout=120)
    return tmp_path / "secrets"


def redis_of(folder: Path, secrets: Path) -> RedisServer:
    """By redis.conf; what is given besides is where it listens and where its data is."""
    config = folder / "redis.conf"
    text = (FOLDER / "redis.conf").read_text().replace("/run/secrets", str(secrets))
    assert "redis:/data" in SERVICES["redis"]["volumes"]
    config.write_text(text.replace("\ndir /data\n", f"\ndir {folder}\n"))
    assert SERVICES["redis"]["command"] == ["redis-server", "/etc/redis/redis.conf"]
    return RedisServer(folder, config=config)


def password_in(secrets: Path) -> str:
    return (secrets / "redis_auth").read_text().split()[1]


@pytest.fixture
def redis(tmp_path: Path, secrets: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_of(folder, secrets) as server:
        yield server


@pytest.fixture
def postgres(secrets: Path) -> Iterator[PostgresServer]:
    """Made with what its image's entry point is told to make it with, and started by the command."""
    service = SERVICES["postgres"]
    assert service["command"][0] == "postgres"
    with PostgresServer(
        service["environment"]["POSTGRES_USER"],
        (secrets / "postgres_password").read_text().strip(),
        service["environment"]["POSTGRES_INITDB_ARGS"].split(),
        service["command"][1:],
    ) as server:
        yield server


def test_redis_takes_its_configuration(redis: RedisServer, secrets: Path) -> None:
    from redis import AuthenticationError, Redis

    with Redis(port=redis.port, password=password_in(secrets), decode_responses=True) as client:
        said = {
            name: client.config_get(name)[name] for name in ("maxmemory-policy", "appendonly", "appendfsync")
        }
        assert said == {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec"}
        assert client.config_get("requirepass")["requirepass"] == password_in(secrets)
        assert int(client.config_get("maxmemory")["maxmemory"]) == 256 * 2**20
    for password in (None, "wrong"):
        with Redis(port=redis.port, password=password) as client, pytest.raises(AuthenticationError):
            client.ping()
    # No list of processes shows the password.
    command = Path(f"/proc/{redis.process.pid}/cmdline").read_bytes() if redis.process else b""
    assert command
    assert password_in(secrets).encode() not in command


def test_check_finds_nothing_wrong_with_that_redis(redis: RedisServer, secrets: Path) -> None:
    store = RedisStore(f"redis://:{password_in(secrets)}@127.0.0.1:{redis.port}/0")
    store.accounts(["any"])
    health = store.check_health()
    assert (health.eviction, health.persistence, health.problems) == ("noeviction", "aof everysec", ())
    store.close()


def test_the_healthcheck_of_redis(redis: RedisServer, secrets: Path) -> None:
    program("redis-cli", "apt-get install redis-tools")
    kind, text = SERVICES["redis"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"

    def healthy() -> bool:
        command = text.replace("$$", "$").replace("/run/secrets", str(secrets))
        command = command.replace("redis-cli", f"redis-cli -p {redis.port}")
        return subprocess.run(["/bin/sh", "-c", command], capture_output=True, timeout=300).returncode == 0

    assert healthy()
    (secrets / "redis_auth").chmod(0o600)
    (secrets / "redis_auth").write_text("requirepass wrong\n")
    assert not healthy()
    redis.kill()
    assert not healthy()


def test_postgres_takes_its_options_and_asks_for_the_password(postgres: PostgresServer) -> None:
    import psycopg

    with psycopg.connect(postgres.url_of("postgres")) as connection:
        said = {
            name: connection.execute(f"SHOW {name}").fetchone()
            for name in ("max_connections", "data_checksums", "password_encryption")
        }
    assert said == {
        "max_connections": ("100",),
        "data_checksums": ("on",),
        "password_encryption": ("scram-sha-256",),
    }
    wrong = postgres.url_of("postgres").replace(postgres.password, "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)


def test_the_healthcheck_of_flowise() -> None:
    """By the Node of the Flowise under test, where that is installed."""
    from tests.real.flowise_install import find

    from .needs import missing

    installed = find()
    if installed is None:
        missing("Flowise is not installed", "python tests/real/flowise_install.py")
    kind, node, *words = SERVICES["flowise"]["healthcheck"]["test"]
    assert (kind, node) == ("CMD", "node")

    def healthy(port: int) -> bool:
        command = [installed.node, *(word.replace(":3000/", f":{port}/") for word in words)]
        return subprocess.run(command, capture_output=True, timeout=120).returncode == 0

    with FlowiseStandIn() as flowise:
        port = int(flowise.url.rpartition(":")[2])
        assert healthy(port)
    assert not healthy(port)


@pytest.mark.slow
def test_the_stack(tmp_path: Path, secrets: Path, redis: RedisServer, postgres: PostgresServer) -> None:
    """Four workers on the secrets' files: budgets in Redis, charges in PostgreSQL, Redis restarted."""
    database = SERVICES["postgres"]["environment"]["POSTGRES_DB"]
    import psycopg

    with psycopg.connect(postgres.url_of("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")  # as the image's entry point does
    for name, there, here in (
        ("genops_store", "@redis:6379/", f"@127.0.0.1:{redis.port}/"),
        ("genops_ledger", "@postgres:5432/", f"@127.0.0.1:{postgres.port}/"),
    ):
        text = (secrets / name).read_text()
        assert there in text
        (secrets / name).chmod(0o600)
        (secrets / name).write_text(text.replace(there, here))
    (secrets / "flowise_api_key").write_text(FLOWISE_KEY)
    environment = {
        name: value.replace("/run/secrets", str(secrets))
        for name, value in SERVICES["genops"]["environment"].items()
        if name != "FLOWISE_BASE_URL"
    }
    folder = tmp_path / "service"
    folder.mkdir()
    ledger_url = (secrets / "genops_ledger").read_text().strip()
    with FlowiseStandIn([Flow("graph", "agentflow")], api_key=FLOWISE_KEY) as flowise:
        service = Served(
            folder,
            flowise.url,
            workers=4,
            settings=(FOLDER / "genops.toml").read_text(),
            GENOPS_STORE="",
            GENOPS_LEDGER="",
            **environment,
        )
        keys = open_keys(ledger_url)
        key, secret = new_key("web", now=time.time(), attribution={"team": "help"})
        keys.put(key)
        keys.close()
        with service:
            url = f"{service.url}/api/v1/prediction/{flowise.flow_id('graph')}"

            def call(_: int) -> int:
                headers = {"Authorization": f"Bearer {secret}"}
                return requests.post(url, json={"question": "hi"}, headers=headers, timeout=60).status_code

            with ThreadPoolExecutor(16) as pool:
                assert set(pool.map(call, range(200))) == {200}, service.log[-3000:]
            with psycopg.connect(postgres.url_of("postgres")) as connection:
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'genops_ctx'"
                ).fetchone()
            # docs/deployment.md: at most twelve connections of a worker.
            assert row is not None
            assert 4 <= row[0] <= 4 * 12
            assert requests.get(f"{service.url}/health", timeout=60).json()["status"] == "healthy"
            redis.kill()
            redis.start()
            deadline = time.monotonic() + 90
            while call(0) != 200:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            for path in (f"api/v1/prediction/{flowise.flow_id('graph')}", "api/v1/nothing", "nothing"):
                requests.post(f"{service.url}/k/{secret}/{path}", json={"question": "hi"}, timeout=60)
            # Keys are in PostgreSQL too: one that was not seen for five seconds cannot be checked.
            postgres.stop()
            deadline = time.monotonic() + 90
            while (status := call(0)) != 503:
                assert status == 200
                assert time.monotonic() < deadline
                time.sleep(0.2)
            away = f"{service.url}/k/{secret}/api/v1/prediction/{flowise.flow_id('graph')}"
            assert requests.post(away, json={"question": "hi"}, timeout=60).status_code == 503
            postgres.start()
            deadline = time.monotonic() + 90
            while (status := call(0)) != 200:
                assert status == 503
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert service.stop() == 0
        shown = (folder / "service.log").read_text()
        billed = sum(150 * one.input_tokens + 600 * one.output_tokens for one in flowise.model.calls)
    ledger = open_ledger(ledger_url)
    assert sum(charge.nanos for charge in ledger.charges()) == billed
    ledger.close()
    store = open_store((secrets / "genops_store").read_text().strip())
    accounts = store.accounts()
    store.close()
    assert [one.spent for one in accounts.values()] == [billed, billed]  # one of all, one of the team
    for path in secrets.iterdir():
        assert path.read_text().split()[-1] not in shown
    assert FLOWISE_KEY not in shown
    assert secret not in shown
    # It is told of once by each worker, not at each try.
    assert shown.count("evidence could not be read yet") <= 2 * 4


def test_the_arithmetic_of_connections() -> None:
    """Ledger, keys and receivers keep so many each; the workers of this file leave room for commands."""
    assert KEPT == 4
    workers = int(SERVICES["genops"]["command"][-1])
    limit = int(
        dict(word.split("=") for word in SERVICES["postgres"]["command"] if "=" in word)["max_connections"]
    )
    assert workers * 3 * KEPT <= limit / 2
