"""What is particular about the log: numbers that come late, spans without texts, times without ears."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genops_ctx.core.evidence import Shown
from genops_ctx.core.records import Exactness, Usage
from genops_ctx.evidence import entries
from genops_ctx.wire.otlp import spans_of_json
from tests.ledger.postgres_server import PostgresServer
from tests.test_corrections import Clock, in_ledger, proof
from tests.wire.test_otlp import BEGIN, call, export, run

from .test_shared import Process

BEGUN = BEGIN / 1e9


def test_an_entry_whose_number_comes_late_is_read_all_the_same(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """PostgreSQL numbers a row before others see it; one with a higher number may be seen first."""
    import psycopg

    url, clock = postgres_server.new_database(), Clock()
    caller, leader = (Process(url, f"sqlite:///{tmp_path}/store.sqlite3", clock) for _ in range(2))
    first, second = (caller.answer(caller.send()) for _ in range(2))
    leader.collect()
    with psycopg.connect(url) as slow:
        slow.execute(
            "INSERT INTO genops.evidence_log (at, kind, content) VALUES (%s, %s, %s)",
            (clock.now, entries.SHOWN, entries.shown_text(Shown(proof(5, "langfuse:a"), request=first.id))),
        )
        leader.corrections.take(Shown(proof(7, "langfuse:b"), request=second.id))
        leader.collect()
        assert in_ledger(caller.runtime) == [1000, 1000, -930]
    leader.collect()
    assert in_ledger(caller.runtime) == [1000, 1000, -930, -950]
    for process in (caller, leader):
        process.close()


@pytest.fixture
def processes(tmp_path: Path) -> list[Process]:
    clock = Clock()
    clock.now = BEGUN
    url = f"sqlite:///{tmp_path}/books.sqlite3"
    started = [Process(url, url, clock) for _ in range(3)]
    started[0].collect()  # it listens before anything runs
    clock.now = BEGUN + 0.05
    return started


def last_usage(process: Process) -> tuple[Exactness, list[tuple[int, int]]]:
    charge = list(process.runtime.books.ledger.charges())[-1]

    def tokens(usage: Usage) -> tuple[int, int]:
        return usage.input_tokens, usage.output_tokens

    return charge.exactness, sorted(map(tokens, charge.usage))


def clock_of(process: Process) -> Clock:
    clock = process.runtime.clock
    assert isinstance(clock, Clock)
    return clock


@pytest.mark.parametrize("backwards", [False, True])
def test_spans_that_come_to_several_processes_are_put_together(
    processes: list[Process], backwards: bool
) -> None:
    """A node of the run read what a call wrote: by digests, since no text is kept."""
    leader, *others = processes
    leader.answer(leader.send("chat"))
    told = [
        call("c", 55, 60, read="Summarise the secret", wrote=" the summary", tokens=(73, 25)),
        call("d", 62, 80, read="the summary", wrote="An answer", tokens=(22, 8)),
        *run("r", "chat", 51, 90, read="the summary"),
    ]
    for number, group in enumerate(reversed(told) if backwards else told):
        others[number % 2].sink.otlp(spans_of_json(export(group)))
    for _ in range(4):
        leader.collect()
        clock_of(leader).now += 1
    assert last_usage(leader) == (Exactness.EXACT, [(22, 8), (73, 25)])
    kept = " ".join(entry.content for entry in leader.corrections.log.after(0))
    for text in ("summary", "secret", "An answer"):
        assert text not in kept


def test_equal_texts_have_equal_digests_only_under_one_key(processes: list[Process]) -> None:
    spans = spans_of_json(export(call("c", 55, 60, read="the same")))
    one, other = (json.loads(entries.spans_text(spans, key)) for key in ("a" * 16, "b" * 16))
    assert one[0]["read"] != other[0]["read"]
    assert entries.spans_of(entries.spans_text(spans, "a" * 16))[0].call == spans[0].call


@pytest.mark.parametrize(("deaf", "exactness"), [(-1.0, Exactness.ESTIMATED), (60.0, Exactness.EXACT)])
def test_of_runs_while_nobody_led_a_call_may_be_missing(
    processes: list[Process], monkeypatch: pytest.MonkeyPatch, deaf: float, exactness: Exactness
) -> None:
    """It may be that nobody received either: each span is sent once."""
    first, second, _ = processes
    clock = clock_of(first)
    first.answer(first.send("chat"))
    begun, *rest = run("r", "chat", 51, 5090)
    first.sink.otlp(spans_of_json(export(begun)))
    first.collect()
    clock.now += 5  # whoever led is dead
    monkeypatch.setattr("genops_ctx.evidence.collector.DEAF_SECONDS", deaf)
    first.corrections.log.resign(str(first.corrections.collector._who))
    second.collect()
    second.sink.otlp(spans_of_json(export(*rest, call("c", 60, 5080))))
    for _ in range(4):
        second.collect()
        clock.now += 1
    assert last_usage(first)[0] is exactness
