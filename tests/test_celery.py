"""Contexts in Celery's workers: real ones over Redis, one in this process, and eager tasks."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from genops_ctx import configure, current_context, governance_context
from genops_ctx.core.errors import BudgetExceeded, ConfigurationError
from genops_ctx.instrument.celery import HEADER, instrument_celery, uninstrument_celery
from genops_ctx.ledger import open_ledger
from genops_ctx.testing import capture

from .stores.redis_server import RedisServer

KEY = "a key for these tests"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A worker in this process sets up logging for all of it."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def keyed(monkeypatch, empty_directory):
    monkeypatch.setenv("GENOPS_SIGNING_KEY", KEY)
    configure()


@pytest.fixture
def tasks():
    from . import celery_tasks

    instrument_celery()
    yield celery_tasks
    celery_tasks.app.conf.task_always_eager = False


def cents(charges):
    return int(sum(charge.cost for charge in charges) * 100)


# -- eager -----------------------------------------------------------------------------------------


def test_an_eager_task_runs_in_its_callers_context(tasks):
    tasks.app.conf.task_always_eager = True
    with governance_context("request", team="help", budget="0.05") as context:
        assert tasks.spend.delay(2).get() == {"team": "help"}
        assert current_context() is context
        with pytest.raises(BudgetExceeded):
            tasks.spend.delay(4).get()
    assert context.total_cost == Decimal("0.02")


# -- a worker in this process ----------------------------------------------------------------------


def test_a_worker_in_a_thread(tasks, keyed):
    from celery.contrib.testing.worker import start_worker

    with capture() as charges, start_worker(tasks.app, pool="solo", perform_ping_check=False):
        with governance_context("one", customer_id="one") as one:
            first = tasks.spend.delay(1)
        with governance_context("two", customer_id="two") as two:
            second = tasks.spend.delay(2)
        third = tasks.spend.delay(4)
        assert first.get(timeout=60) == {"customer_id": "one"}
        assert second.get(timeout=60) == {"customer_id": "two"}
        assert third.get(timeout=60) is None
    assert {charge.context_path[:1]: charge.cost for charge in charges} == {
        (one.id,): Decimal("0.01"),
        (two.id,): Decimal("0.02"),
        (): Decimal("0.04"),
    }
    assert current_context() is None


def test_a_forged_header_gives_no_context(tasks, keyed, caplog, monkeypatch):
    from celery.contrib.testing.worker import start_worker

    # A worker takes the root logger's handlers away.
    monkeypatch.setattr(logging.getLogger("genops_ctx"), "handlers", [caplog.handler])
    with start_worker(tasks.app, pool="solo", perform_ping_check=False), capture() as charges:
        forged = tasks.spend.apply_async(headers={HEADER: "genops1.eyJuYW1lIjoieCJ9.AAAA"})
        assert forged.get(timeout=60) is None
    assert "runs without the context" in caplog.text
    assert charges[0].context_path == ()


def test_what_cannot_go_elsewhere_is_told_before_it_is_sent(tasks, empty_directory, monkeypatch):
    with governance_context("x"), pytest.raises(ConfigurationError, match="GENOPS_SIGNING_KEY"):
        tasks.spend.delay()
    monkeypatch.setenv("GENOPS_SIGNING_KEY", KEY)
    configure()
    with governance_context("x", budget=5), pytest.raises(ConfigurationError, match="5/total"):
        tasks.spend.delay()


def test_off(tasks):
    assert not instrument_celery()
    assert uninstrument_celery()
    assert not uninstrument_celery()
    assert instrument_celery()


# -- real workers ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_over_redis(tmp_path):
    """Two processes of a worker, one budget, retries; and every cent once."""
    ledger = tmp_path / "ledger.sqlite3"
    with RedisServer(tmp_path) as redis, open(tmp_path / "worker.log", "wb") as log:
        environment = {
            **os.environ,
            "TEST_BROKER": f"redis://127.0.0.1:{redis.port}/1",
            "TEST_BACKEND": f"redis://127.0.0.1:{redis.port}/2",
            "GENOPS_STORE": f"redis://127.0.0.1:{redis.port}/0",
            "GENOPS_LEDGER": f"sqlite:///{ledger}",
            "GENOPS_SIGNING_KEY": KEY,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "celery", "-A", "tests.celery_tasks", "worker"]
        worker = subprocess.Popen(
            [*command, "--pool", "prefork", "-c", "2"],
            env=environment,
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            sender = subprocess.run(
                [sys.executable, "-m", "tests.celery_sender"],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        finally:
            worker.terminate()
            worker.wait(60)
    assert sender.returncode == 0, sender.stderr[-2000:] + (tmp_path / "worker.log").read_text()[-2000:]
    told = json.loads(sender.stdout)
    books = open_ledger(f"sqlite:///{ledger}")
    charges = list(books.charges())
    books.close()

    mine = {
        name: [charge for charge in charges if one in charge.context_path]
        for name, one in told["ids"].items()
    }
    assert told["states"] == {"SUCCESS": 10, "FAILURE": 6}
    assert cents(mine["batch"]) == 10
    assert {charge.attribution["team"] for charge in mine["batch"]} == {"help"}

    # Three runs: one call in each, and a second one in the last.
    retried, answer = told["retried"]
    assert answer == {"team": "retry"}
    name = f"celery-{retried}"
    assert sorted((charge.operation, charge.attempt, charge.nanos) for charge in mine["retrying"]) == [
        (name, 1, 10_000_000),
        (name, 2, 10_000_000),
        (name, 3, 10_000_000),
        (f"{name}.2", 3, 20_000_000),
    ]
    assert {charge.context_path[0] for charge in mine["retrying"]} == {told["ids"]["retrying"]}
    assert {len(charge.context_path) for charge in mine["retrying"]} == {2}

    assert told["below"] == [{"team": "spread", "feature": "spread"}] * 2
    assert cents(mine["spreading"]) == 3
    assert len(charges) == 10 + 4 + 2
