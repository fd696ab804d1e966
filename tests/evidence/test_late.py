"""What comes late, or is gone by the time that another reads: no call is corrected by a part of the story."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from genops_ctx import governance_context
from genops_ctx.core.errors import StoreError
from genops_ctx.core.evidence import Evidence, ModelCall, Shown
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.records import Charge, Exactness
from genops_ctx.corrections import Corrections
from genops_ctx.evidence import entries
from genops_ctx.ledger import open_ledger
from genops_ctx.wire.otlp import spans_of_json
from tests.ledger.postgres_server import PostgresServer
from tests.test_corrections import Clock, in_accounts, in_ledger, proof
from tests.wire.test_otlp import call, export, run

from .test_log import clock_of, last_usage, processes
from .test_shared import Process

__all__ = ["processes"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def start(path: Path, clock: Clock, number: int) -> list[Process]:
    url = f"sqlite:///{path}/books.sqlite3"
    return [Process(url, url, clock) for _ in range(number)]


def test_spans_that_the_ledger_had_after_the_end_of_their_run_are_booked(processes: list[Process]) -> None:
    """It was away: each worker writes what it has kept when it finds it again, one after the other."""
    leader = processes[0]
    clock = clock_of(leader)
    leader.answer(leader.send("chat"))
    came = clock()
    clock.now += 10
    log = leader.corrections.log

    def write(*groups: dict[str, object]) -> None:
        log.add(came, [(entries.OTLP, entries.spans_text(spans_of_json(export(*groups)), "k"))])

    write(
        *run("r", "chat", 51, 90, read="the summary"), call("d", 62, 80, read="the summary", tokens=(22, 8))
    )
    leader.collect()
    clock.now += 0.9
    leader.collect()
    assert last_usage(leader)[0] is Exactness.ESTIMATED  # as long after it was read as after it came
    for _ in range(3):
        clock.now += 1
        leader.collect()
    assert last_usage(leader) == (Exactness.EXACT, [(22, 8)])
    write(call("c", 55, 60, wrote="the summary", tokens=(73, 25)))
    for _ in range(3):
        clock.now += 1
        leader.collect()
    assert last_usage(leader) == (Exactness.EXACT, [(22, 8), (73, 25)])
    assert in_accounts(leader.runtime) == sum(in_ledger(leader.runtime)) == 10 * (73 + 25 + 22 + 8)


def test_a_call_that_broke_off_does_not_take_what_the_next_in_its_chat_used(
    tmp_path: Path, clock: Clock
) -> None:
    """The id of the next one's answer comes with that: until then it may be whose evidence it is."""
    one, other, leader = start(tmp_path, clock, 3)
    one.answer(one.send("chat"), Outcome.ABANDONED)
    clock.now += 10
    again = other.send("chat")
    leader.corrections.take(Shown(proof(7, "gateway:m2"), "", ("m2", "chat"), clock.now, "m2"))
    for _ in range(5):
        leader.collect()
        clock.now += 1
    assert in_ledger(one.runtime) == [1000]
    other.corrections.know(again.admitted.hold, "m2")
    charge = other.answer(again)
    leader.collect()
    assert in_ledger(one.runtime) == [1000, 1000, -930]
    assert list(one.runtime.books.ledger.charges())[-1].adjustment_of == charge.id
    # what Flowise went on to do for the one that broke off is its own
    leader.corrections.take(Shown(proof(5, "gateway:m1"), "", ("m1", "chat"), clock.now - 14, "m1"))
    for _ in range(3):
        leader.collect()
        clock.now += 1
    assert in_ledger(one.runtime) == [1000, 1000, -930, -950]


def test_who_leads_later_corrects_nothing_by_the_rest_of_what_was_dropped(
    tmp_path: Path, clock: Clock
) -> None:
    """A call of unknown use kept the charge at its estimate; its entry is older than an hour."""
    caller, leader, later = start(tmp_path, clock, 3)
    attempt = caller.send("chat")
    hidden = Evidence("langfuse:t", (ModelCall("langfuse:h"),))
    leader.corrections.take(Shown(hidden, request=attempt.admitted.hold))
    leader.collect()
    clock.now += 50
    charge = caller.answer(attempt)
    leader.corrections.take(Shown(proof(7, "langfuse:t"), request=charge.id))
    leader.collect()
    assert sum(in_ledger(caller.runtime)) == 1000
    clock.now += 3580
    leader.collect()
    kinds = [entry.kind for entry in leader.corrections.log.after(0)]
    assert kinds[:2] == ["ended", "shown"]
    leader.corrections.log.resign(str(leader.corrections.collector._who))
    for _ in range(3):
        assert later.collect()
        clock.now += 1
    assert sum(in_ledger(caller.runtime)) == in_accounts(caller.runtime) == 1000
    charge = caller.answer(caller.send())  # what begins from then on is corrected as ever
    later.corrections.take(Shown(proof(7, "langfuse:u"), request=charge.id))
    later.collect()
    assert in_ledger(caller.runtime)[-2:] == [1000, -930]


def test_a_number_before_the_first_that_is_seen_may_come_late_too(
    postgres_server: PostgresServer, tmp_path: Path, clock: Clock
) -> None:
    import psycopg

    url = postgres_server.new_database()
    caller, leader = (Process(url, f"sqlite:///{tmp_path}/store.sqlite3", clock) for _ in range(2))
    charge = caller.answer(caller.send())
    with psycopg.connect(url) as slow:
        slow.execute("DELETE FROM genops.evidence_log")
        slow.commit()
        slow.execute(
            "INSERT INTO genops.evidence_log (at, kind, content) VALUES (%s, %s, %s)",
            (clock.now, entries.SHOWN, entries.shown_text(Shown(proof(5), request=charge.id))),
        )
        caller.corrections.log.add(clock.now - 100, [("of a later version", "1")])
        leader.collect()
    leader.collect()
    assert in_ledger(caller.runtime) == [1000, -950]
    for process in (caller, leader):
        process.close()


def test_word_of_a_correction_is_said_again_where_the_log_did_not_take_it(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, leader = start(tmp_path, clock, 2)
    with governance_context("a") as context:
        charge = caller.answer(caller.send())
    caller.corrections.tidy()
    leader.corrections.take(Shown(proof(7), request=charge.id))
    log, add = leader.corrections.log, leader.corrections.log.add

    def full(at: float, said: list[tuple[str, str]]) -> None:
        if any(kind == entries.CORRECTED for kind, _ in said):
            raise StoreError("no disk")
        add(at, said)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(log, "add", full)
        with pytest.raises(StoreError):
            leader.collect()
    assert in_ledger(caller.runtime) == [1000, -930]
    leader.collect()
    caller.corrections.tidy()
    assert context.pending == ()


@pytest.mark.parametrize("server", ["sqlite", "postgres"])
def test_a_long_past_is_dropped_in_portions(
    server: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement for all of it might take longer than it is waited for, each time."""
    url = f"sqlite:///{tmp_path}/books.sqlite3"
    if server == "postgres":
        url = request.getfixturevalue("postgres_server").new_database()
    module = "evidence_log" if server == "sqlite" else "postgres_evidence_log"
    monkeypatch.setattr(f"genops_ctx.ledger.{module}.DROPPED_AT_ONCE", 3)
    ledger = open_ledger(url)
    log = ledger.evidence_log()  # type: ignore[attr-defined]
    for at in (1.0, 2.0, 3.0, 4.0, 5.0, 900.0, 901.0, 902.0):
        log.add(at, [("kind", "1")])
    assert not log.forget(500.0, 100)
    assert [entry.at for entry in log.after(0)] == [4.0, 5.0, 900.0, 901.0, 902.0]
    assert log.forget(500.0, 100)
    assert [entry.at for entry in log.after(0)] == [900.0, 901.0, 902.0]
    assert log.forget(500.0, 2)
    assert [entry.at for entry in log.after(0)] == [901.0, 902.0]
    ledger.close()


def test_where_nobody_receives_the_table_does_not_grow(tmp_path: Path, clock: Clock) -> None:
    (caller,) = start(tmp_path, clock, 1)
    for _ in range(5):
        caller.answer(caller.send())
        caller.corrections.tidy()
        clock.now += 2000
    assert {entry.at for entry in caller.corrections.log.after(0)} == {1_006_000.0, 1_008_000.0}


def test_what_is_too_much_at_once_is_read_in_parts(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, leader = start(tmp_path, clock, 2)
    charges = [caller.answer(caller.send()) for _ in range(20)]
    for charge in charges:
        leader.corrections.take(Shown(proof(7, f"langfuse:{charge.id}"), request=charge.id))
    log, after = leader.corrections.log, leader.corrections.log.after

    def slow(number: int, kind: str = "", limit: int = 1000) -> object:
        if limit > 20:
            raise StoreError("it did not answer within 2 s")
        return after(number, kind, limit)

    monkeypatch.setattr(log, "after", slow)
    for _ in range(20):
        try:
            leader.collect()
        except StoreError:
            continue
    assert in_ledger(caller.runtime) == [1000] * 20 + [-930] * 20


def test_a_run_while_a_worker_came_anew_may_lack_a_call(processes: list[Process]) -> None:
    """The one before may have been killed with a span that it had not written."""
    leader, other, _ = processes
    clock = clock_of(leader)
    leader.answer(leader.send("chat"))
    begun, *rest = run("r", "chat", 51, 90)
    leader.sink.otlp(spans_of_json(export(begun, call("c", 60, 70))))
    leader.collect()
    other.sink.listening_again()
    leader.sink.otlp(spans_of_json(export(*rest)))
    for _ in range(4):
        leader.collect()
        clock.now += 1
    assert last_usage(leader)[0] is Exactness.ESTIMATED


def test_a_call_that_died_unheard_does_not_keep_the_next_of_its_chat_from_being_told(
    tmp_path: Path, clock: Clock
) -> None:
    """It was in flight when its process was killed, and is booked as lost when its time is over."""
    caller, leader = start(tmp_path, clock, 2)
    caller.send("chat")
    leader.collect()
    clock.now += 200
    leader.runtime.books.catch_up(clock.now)
    lost = in_ledger(caller.runtime)
    leader.collect()
    clock.now += 200
    leader.collect()
    caller.answer(caller.send("chat"))
    leader.corrections.take(Shown(proof(7, "langfuse:t"), sessions=("chat",), started_at=clock.now))
    for _ in range(3):
        leader.collect()
        clock.now += 1
    assert in_ledger(caller.runtime) == [*lost, 1000, -930]


def test_traces_that_name_calls_of_nobody_do_not_hold_up_the_others(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, leader = start(tmp_path, clock, 2)
    charge = caller.answer(caller.send())
    for number in range(900):
        leader.corrections.take(Shown(proof(7, f"langfuse:{number}"), request=f"nobody-{number}#1"))
    leader.corrections.take(Shown(proof(7), request=charge.id))
    asked = []
    ledger, charges = leader.runtime.books.ledger, leader.runtime.books.ledger.charges

    def counted(operation: str | None = None) -> object:
        asked.append(operation)
        return charges(operation)

    monkeypatch.setattr(ledger, "charges", counted)
    leader.collect()
    assert in_ledger(caller.runtime) == [1000, -930]
    clock.now += 5
    asked.clear()
    leader.collect()
    assert 0 < len(asked) <= 500


def test_a_correction_that_was_written_though_its_answer_was_lost_is_told(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger on a server writes it again on a new connection, and finds that there is one."""
    (process,) = start(tmp_path, clock, 1)
    runtime = process.runtime
    corrections = Corrections(runtime.books, lambda: runtime.prices, clock, runtime.corrected)
    monkeypatch.setattr(runtime, "corrections", corrections)
    heard: list[Charge] = []
    monkeypatch.setattr(type(runtime), "listeners", [heard.append])
    append = runtime.books.ledger.append

    def twice(charge: Charge, *, settled: bool = True) -> bool | None:
        append(charge, settled=settled)
        return append(charge, settled=settled)

    with governance_context("a") as context:
        charge = process.answer(process.send())
    monkeypatch.setattr(runtime.books.ledger, "append", twice)
    corrections.take(Shown(proof(7), request=charge.id))
    assert in_ledger(runtime) == [1000, -930]
    assert in_accounts(runtime) == 70
    assert context.total_cost == Decimal("0.00000007")
    assert [one.nanos for one in heard] == [1000, -930]
