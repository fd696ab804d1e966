"""docs/deployment.md: its blocks are of the files, its figures of the code, and its backup comes back."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess

import pytest

from genops_ctx.ledger import open_ledger
from genops_ctx.ledger.postgres_connection import KEPT
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from genops_ctx.stores.redis_urls import parse_address
from genops_ctx.stores.tombstones import TOMBSTONE_SECONDS
from tests.ledger.postgres_server import PostgresServer
from tests.service.conftest import patient_stores as patient_stores
from tests.strategies import charge, line

from .files import FOLDER, ROOT, read_yaml

GUIDE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
BASH = "\n".join(re.findall(r"^```bash\n(.*?)^```", GUIDE, re.M | re.S))


def test_every_file_is_told_of() -> None:
    table = GUIDE.partition("\n## ")[0]
    told = set(re.findall(r"`([\w./-]+)`", "\n".join(re.findall(r"^\| (.*?) \|", table, re.M))))
    there = {
        path.name + ("/" if path.is_dir() else "") for path in FOLDER.iterdir() if path.name != "secrets"
    }
    assert told | {"Dockerfile.dockerignore"} == there


def test_blocks_of_yaml_are_parts_of_their_files() -> None:
    blocks = re.findall(r"^```yaml\n# (\S+)\n(.*?)^```", GUIDE, re.M | re.S)
    assert blocks
    assert len(blocks) == GUIDE.count("```yaml")
    for name, text in blocks:
        assert text in (ROOT / name).read_text(encoding="utf-8")


def test_its_commands_name_what_there_is() -> None:
    for name in re.findall(r"-f (docker-compose[\w.-]*\.yml)", BASH):
        assert (FOLDER / name).is_file()
    services = read_yaml("docker-compose.yml")["services"]
    named = re.findall(r"docker compose (?:exec(?: -T)?|stop|start) ([a-z]\w+)", BASH)
    assert len(named) == 5
    assert set(named) <= set(services)
    assert (FOLDER / "secrets.sh").is_file()


def test_its_addresses_are_read() -> None:
    kinds = {
        "rediss://:PASSWORD@redis.internal:6379/0?ssl_ca_certs=/run/secrets/ca.pem": "server",
        "redis+sentinel://:PASSWORD@a:26379,b:26379,c:26379/mymaster/0": "sentinel",
        "redis+cluster://:PASSWORD@a:6379,b:6379": "cluster",
    }
    for address, kind in kinds.items():
        assert f"`{address}`" in GUIDE
        assert parse_address(address).kind == kind


def test_its_figures_are_those_of_the_code() -> None:
    settings = ServiceSettings()
    assert (
        f"{settings.silent_seconds:g}, {settings.total_seconds:g} (`silent_seconds`, `total_seconds`)"
        in GUIDE
    )
    assert f"| {settings.drain_seconds:g} (`drain_seconds`)" in GUIDE
    nginx = (FOLDER / "nginx.conf").read_text()
    assert "| nginx waits for the service | 160 |" in GUIDE
    assert "proxy_read_timeout 160s;" in nginx
    grace = read_yaml("docker-compose.yml")["services"]["genops"]["stop_grace_period"]
    pod = read_yaml("kubernetes/deployment.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    pause = container["lifecycle"]["preStop"]["exec"]["command"][1]
    assert (
        f"{grace.removesuffix('s')}; on Kubernetes {pod['terminationGracePeriodSeconds']}, with {pause} "
        in GUIDE
    )
    assert (KEPT, TOMBSTONE_SECONDS) == (4, 86_400.0)
    assert "12 of a worker at most: 4 each for charges, keys and receivers" in GUIDE
    assert "The end of a call is remembered for a day" in GUIDE


@pytest.mark.slow
def test_a_backup_comes_back() -> None:
    """The guide's two commands, with PostgreSQL's own programs, over what was changed in between."""
    commands = re.findall(r"docker compose exec -T postgres (pg_\w+) (.*?) [<>] costs\.dump", BASH)
    assert [program for program, _ in commands] == ["pg_dump", "pg_restore"]
    with PostgresServer("genops") as server:
        import psycopg

        with psycopg.connect(server.url_of("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE costs")
        url = server.url_of("costs")

        def run(number: int, content: bytes | None = None) -> bytes:
            name, words = commands[number]
            program = shutil.which(name) or server.programs / name
            done = subprocess.run(
                [program, "-h", "127.0.0.1", "-p", str(server.port), *shlex.split(words)],
                env={**os.environ, "PGPASSWORD": server.password},
                input=content,
                capture_output=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stderr.decode()
            return done.stdout

        ledger, keys = open_ledger(url), open_keys(url)
        first, second = charge(line(1), operation="first"), charge(line(2), operation="second")
        ledger.append(first)
        keys.put(new_key("web", now=0.0)[0])
        dump = run(0)
        ledger.append(second)
        ledger.close()
        keys.close()
        run(1, dump)
        ledger, keys = open_ledger(url), open_keys(url)
        assert list(ledger.charges()) == [first]
        assert [key.name for key in keys.keys()]  # noqa: SIM118 (no dictionary) == ["web"]
        ledger.append(second)  # the schema's rules came back as well, and it goes on
        assert len(list(ledger.charges())) == 2
        ledger.close()
        keys.close()
