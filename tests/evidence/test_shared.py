"""Several processes share a ledger: whatever one of them receives corrects what any of them called, once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genops_ctx import governance_context
from genops_ctx.attempt import Attempt, begin
from genops_ctx.core.booking import Report
from genops_ctx.core.budget import Budget
from genops_ctx.core.errors import StoreError
from genops_ctx.core.evidence import Evidence, ModelCall, Shown
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.records import Charge, CostSource, Exactness, Usage
from genops_ctx.evidence import shared
from genops_ctx.evidence.shared import SharedCorrections
from genops_ctx.ledger import open_ledger
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.stores import open_store
from tests.test_corrections import GUESS, Clock, Tariff, in_accounts, in_ledger, proof

SECRET = "the-key-of-all-receivers"


class Process:
    """What one process has: a runtime of its own on the ledger of all."""

    def __init__(self, ledger: str, store: str, clock: Clock) -> None:
        self.runtime = Runtime(
            Settings(budgets=(Budget("5/day", by="team"),), evidence="shared"),
            store=open_store(store, callers_clock=True),
            ledger=open_ledger(ledger),
            prices=Tariff(),
            clock=clock,
        )
        assert isinstance(self.runtime.corrections, SharedCorrections)
        self.corrections: SharedCorrections = self.runtime.corrections
        self.sink = self.corrections.sink(SECRET)

    def send(self, *sessions: str, flow: str = "") -> Attempt:
        attempt = begin("support", attribution={"team": "a"}, deadline=60.0, runtime=self.runtime, flow=flow)
        attempt.expect_evidence(sessions)
        return attempt

    def answer(self, attempt: Attempt, outcome: Outcome = Outcome.COMPLETED) -> Charge:
        charge = attempt.finish(Report(outcome, self.runtime.clock(), estimates=(GUESS,)))
        assert charge is not None
        return charge

    def collect(self) -> bool:
        return self.corrections.collector.step()

    def close(self) -> None:
        self.runtime.books.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


Start = Callable[[], Process]


@pytest.fixture(params=["sqlite", "postgres"])
def start(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Start]:
    store = ledger = f"sqlite:///{tmp_path}/books.sqlite3"
    if request.param == "postgres":
        ledger = request.getfixturevalue("postgres_server").new_database()
    with ExitStack() as stack:

        def started() -> Process:
            process = Process(ledger, store, clock)
            stack.callback(process.close)
            return process

        before = reset_runtime(None)
        yield started
        reset_runtime(before)


def test_what_one_receives_corrects_what_another_booked(start: Start) -> None:
    caller, receiver, leader = start(), start(), start()
    charge = caller.answer(caller.send())
    receiver.corrections.take(Shown(proof(7), request=charge.id))
    assert leader.collect()
    assert not receiver.collect()
    assert in_ledger(caller.runtime) == [1000, -930]
    assert in_accounts(caller.runtime) == 70


def test_evidence_before_the_charge_waits_for_it_in_whatever_process(start: Start) -> None:
    caller, receiver, leader = start(), start(), start()
    attempt = caller.send()
    receiver.corrections.take(Shown(proof(7), request=attempt.admitted.hold))
    leader.collect()
    assert in_ledger(caller.runtime) == []
    caller.answer(attempt)
    leader.collect()
    assert in_ledger(caller.runtime) == [1000, -930]


def test_parts_that_come_to_several_and_twice_are_one(start: Start, clock: Clock) -> None:
    caller, *receivers = start(), start(), start()
    charge = caller.answer(caller.send())
    parts = [
        Evidence("langfuse:t", proof(7).calls, complete=False),
        Evidence("langfuse:t", (ModelCall("langfuse:t/2", replace(proof(5).calls[0].usage)),), True),  # type: ignore[type-var]
    ]
    for number, part in enumerate([*parts, *parts]):
        receivers[number % 2].corrections.take(Shown(part, request=charge.id))
        receivers[0].collect()
    assert sum(in_ledger(caller.runtime)) == 120
    assert in_accounts(caller.runtime) == 120


def test_another_goes_on_where_the_one_who_led_has_died(
    start: Start, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genops_ctx.evidence.collector.LEAD_SECONDS", 4.0)
    caller, first, second = start(), start(), start()
    charges = [caller.answer(caller.send()) for _ in range(3)]
    first.corrections.take(Shown(proof(7, "langfuse:a"), request=charges[0].id))
    first.corrections.take(Shown(replace(proof(7, "langfuse:b"), complete=False), request=charges[1].id))
    assert first.collect()
    assert in_ledger(caller.runtime) == [1000, 1000, 1000, -930]
    assert not second.collect()
    time.sleep(4.1)
    second.corrections.take(Shown(Evidence("langfuse:b", complete=True), request=charges[1].id))
    assert second.collect()
    # the part that the first had read is not lost, and nothing is corrected twice
    assert in_ledger(caller.runtime) == [1000, 1000, 1000, -930, -930]
    assert in_accounts(caller.runtime) == 70 + 70 + 1000
    assert not first.collect()


def test_one_who_stops_leaves_the_lead_to_others(start: Start) -> None:
    first, second = start(), start()
    first.corrections.begin()
    until = time.monotonic() + 60
    while not first.corrections.collector.leads and time.monotonic() < until:
        time.sleep(0.01)
    assert not second.collect()
    first.corrections.end()
    assert second.collect()


def test_a_call_whose_process_died_is_corrected_once_its_loss_is_booked(start: Start, clock: Clock) -> None:
    caller, leader = start(), start()
    with governance_context("a", budget=1):
        attempt = begin(
            "support", attribution={"team": "a"}, deadline=60.0, runtime=caller.runtime, max_nanos=5000
        )
        attempt.expect_evidence(("chat",))
    leader.corrections.take(Shown(proof(7), sessions=("chat",), started_at=clock.now))
    leader.collect()
    clock.now += 200
    leader.collect()
    leader.runtime.books.catch_up(clock.now)
    clock.now += 60
    leader.collect()
    leader.collect()
    assert in_ledger(caller.runtime) == [5000, -4930]
    assert in_accounts(caller.runtime) == 70


# -- whose it is ------------------------------------------------------------------------------------


def test_a_session_tells_whose_it_is_where_one_call_ran_in_it(start: Start, clock: Clock) -> None:
    one, other, leader = start(), start(), start()
    charge = one.answer(one.send("chat", "session"))
    other.answer(other.send("other"))
    leader.corrections.take(Shown(proof(7), sessions=("chat",), started_at=clock.now))
    leader.collect()
    clock.now += 1.5
    leader.collect()
    assert in_ledger(one.runtime) == [1000, 1000, -930]
    assert list(one.runtime.books.ledger.charges())[-1].adjustment_of == charge.id


def test_a_session_of_two_calls_of_two_processes_tells_nothing(start: Start, clock: Clock) -> None:
    one, other, leader = start(), start(), start()
    for process in (one, other):
        process.answer(process.send("chat"))
    leader.corrections.take(Shown(proof(7), sessions=("chat",), started_at=clock.now))
    for _ in range(3):
        leader.collect()
        clock.now += 5
    assert in_ledger(one.runtime) == [1000, 1000]


def test_evidence_waits_for_word_of_a_call_that_another_process_makes(start: Start, clock: Clock) -> None:
    """Else it would be taken for the call that was known first."""
    one, other, leader = start(), start(), start()
    one.answer(one.send("chat"))
    leader.corrections.take(Shown(proof(7), sessions=("chat",), started_at=clock.now))
    leader.collect()
    other.send("chat")
    for _ in range(3):
        leader.collect()
        clock.now += 5
    assert in_ledger(one.runtime) == [1000]


def test_the_id_of_the_answer_tells_calls_of_one_chat_apart(start: Start, clock: Clock) -> None:
    one, other, leader = start(), start(), start()
    first, second = one.send("chat"), other.send("chat")
    leader.corrections.take(Shown(proof(7), "", ("m2", "chat"), clock.now, "m2"))
    one.answer(first)
    other.corrections.know(second.admitted.hold, "m2")
    charge = other.answer(second)
    leader.collect()
    clock.now += 2
    leader.collect()
    assert in_ledger(one.runtime) == [1000, 1000, -930]
    assert list(one.runtime.books.ledger.charges())[-1].adjustment_of == charge.id


def test_what_another_flow_did_in_a_chat_of_the_same_name_is_not_taken(start: Start, clock: Clock) -> None:
    """Clients choose the ids of their chats, and two may choose the same."""
    one, leader = start(), start()
    one.answer(one.send("chat", flow="theirs"))
    leader.corrections.take(Shown(proof(7, "gateway:1"), "", ("chat",), clock.now, "", "ours"))
    for _ in range(3):
        leader.collect()
        clock.now += 5
    assert in_ledger(one.runtime) == [1000]
    leader.corrections.take(Shown(proof(7, "gateway:2"), "", ("chat",), clock.now - 15, "", "THEIRS"))
    leader.collect()
    clock.now += 2
    leader.collect()
    assert in_ledger(one.runtime) == [1000, -930]


# -- contexts elsewhere -----------------------------------------------------------------------------


def test_a_context_learns_what_another_process_corrected(start: Start) -> None:
    caller, leader = start(), start()
    with governance_context("a") as context:
        charge = caller.answer(caller.send())
    assert context.pending == (charge,)
    leader.corrections.take(Shown(proof(7), request=charge.id))
    leader.collect()
    caller.corrections.tidy()
    caller.corrections.tidy()
    assert context.pending == ()
    assert (context.total_cost, context.inexact_cost) == (Decimal("0.00000007"), 0)
    assert context.wait(0)


def test_a_process_that_was_idle_learns_of_its_next_correction_at_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was corrected of others' calls meanwhile: it is not read through first."""
    monkeypatch.setattr(shared, "FOLLOW_SECONDS", 300.0)  # only this thread looks
    one, other = start(), start()
    with governance_context("before") as before:
        first = one.send()
        one.answer(first)
    other.corrections.take(Shown(proof(7, "langfuse:t"), first.admitted.hold))
    other.collect()
    one.corrections.tidy()
    one.corrections.tidy()
    assert before.pending == ()
    of_others = [("corrected", f'["other {number}#1", true]') for number in range(9_000)]
    for begin_at in range(0, 9_000, 1_000):
        other.corrections.log.add(one.runtime.clock(), of_others[begin_at : begin_at + 1_000])
    with governance_context("after") as after:
        second = one.send()
        one.answer(second)
    one.corrections.tidy()  # not corrected yet
    other.corrections.take(Shown(proof(8, "langfuse:u"), second.admitted.hold))
    other.collect()
    one.corrections.tidy()
    assert after.total_cost == Decimal("0.00000008")
    assert after.pending == ()


def test_waiting_for_what_another_process_corrects(start: Start) -> None:
    caller, leader = start(), start()
    with governance_context("a") as context:
        charge = caller.answer(caller.send())
    leader.corrections.take(Shown(proof(7), request=charge.id))
    leader.collect()
    assert context.wait(20)
    assert context.total_tokens == 7


def test_after_the_horizon_nothing_is_pending(start: Start, clock: Clock) -> None:
    caller = start()
    with governance_context("a") as context:
        caller.answer(caller.send())
    clock.now += caller.corrections.horizon + 1
    caller.corrections.tidy()
    assert context.pending == ()


# -- what goes wrong --------------------------------------------------------------------------------


def test_evidence_waits_for_a_log_that_does_not_answer(
    start: Start, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, leader = start(), start()
    charge = caller.answer(caller.send())

    def away(*args: object) -> None:
        raise StoreError("no disk")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(leader.corrections.log, "add", away)
        leader.corrections.take(Shown(proof(7), request=charge.id))
    leader.corrections.tidy()
    leader.collect()
    assert in_ledger(caller.runtime) == [1000, -930]


def test_what_cannot_be_read_is_passed_over(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caller, leader = start(), start()
    charge = caller.answer(caller.send())
    leader.corrections.log.add(1.0, [("shown", "{"), ("ended", "[]"), ("of a later version", "1")])
    leader.corrections.take(Shown(proof(7), request=charge.id))
    leader.collect()
    assert in_ledger(caller.runtime) == [1000, -930]


def test_entries_are_dropped_after_an_hour(start: Start, clock: Clock) -> None:
    caller, leader = start(), start()
    caller.answer(caller.send())
    leader.collect()
    first = leader.corrections.log.newest()
    clock.now += 3700
    caller.send()
    leader.collect()
    left = leader.corrections.log.after(0)
    assert "expected" in {entry.kind for entry in left}
    assert min(entry.number for entry in left) > first


# -- the same as in one process ---------------------------------------------------------------------


def event(kind: str, **body: Any) -> dict[str, Any]:
    return {"id": "e", "type": kind, "body": body}


def trace(name: str, request: str, tokens: list[int]) -> list[dict[str, Any]]:
    """What Flowise exports of one call, event by event; of each part the tokens that it read."""
    stamp = "2026-11-21T00:35:29.891Z"
    events = [
        event("trace-create", id=name, sessionId="chat", metadata={"genops_request": request}, input="Hello"),
        event("span-create", id=name, traceId=name, name="Chain", input="Hello"),
        event("span-update", id=name, traceId=name, endTime=stamp, output="Bye"),
        event("trace-create", id=name, output="Bye"),
    ]
    for number, count in enumerate(tokens):
        said = {"id": f"{name}-{number}", "traceId": name}
        usage = {"input": count, "output": 0, "total": count}
        events += [
            event("generation-create", **said, name="ChatOpenAI", model="small", input="Hello"),
            event("generation-update", **said, endTime=stamp, model="small", usage=usage, output="Bye"),
        ]
    return events


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    calls=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=3), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
def test_any_order_any_split_and_any_repetition_end_in_the_same_books(
    tmp_path_factory: pytest.TempPathFactory, calls: list[list[int]], seed: int
) -> None:
    """Each call costs 10 nano-dollars a token; whoever leads dies twice on the way."""
    order = random.Random(seed)
    clock = Clock()
    url = f"sqlite:///{tmp_path_factory.mktemp('books')}/books.sqlite3"
    processes = [Process(url, url, clock) for _ in range(3)]
    attempts = [order.choice(processes).send("chat") for _ in calls]
    events = [
        one
        for number, (attempt, tokens) in enumerate(zip(attempts, calls, strict=True))
        for one in trace(f"t{number}", attempt.admitted.hold, tokens)
    ]
    jobs: list[Any] = [
        *events,
        *order.sample(events, len(events) // 2),
        *attempts,
        "collect",
        "collect",
        "die",
        "die",
    ]
    order.shuffle(jobs)
    with pytest.MonkeyPatch.context() as patch:
        begun, dead = time.time(), 0

        def now() -> float:
            return begun + 60 * dead

        patch.setattr("genops_ctx.ledger.evidence_log.time.time", now)
        while jobs:
            job = jobs.pop()
            process = order.choice(processes)
            if isinstance(job, Attempt):
                charge = job.finish(Report(Outcome.COMPLETED, clock(), estimates=(GUESS,)))
                assert charge is not None
            elif job == "collect":
                process.collect()
            elif job == "die":
                dead += 1
                processes.append(Process(url, url, clock))
                processes[-1].collect()
            else:
                some = [
                    job,
                    *(jobs.pop() for _ in range(order.randrange(4)) if jobs and isinstance(jobs[-1], dict)),
                ]
                process.sink.langfuse({"batch": some})
        dead += 1
        assert processes[0].collect()
    booked: dict[str, int] = {}
    last: dict[str, Charge] = {}
    for charge in processes[0].runtime.books.ledger.charges():
        hold = charge.adjustment_of or charge.id
        booked[hold] = booked.get(hold, 0) + charge.nanos
        last[hold] = charge
    wanted = {
        attempt.admitted.hold: 10 * sum(tokens) for attempt, tokens in zip(attempts, calls, strict=True)
    }
    assert booked == wanted
    assert {charge.exactness for charge in last.values()} == {Exactness.EXACT}
    assert in_accounts(processes[0].runtime) == sum(wanted.values())
    log = " ".join(entry.content for entry in processes[0].corrections.log.after(0, limit=10_000))
    assert "Hello" not in log
    assert "Bye" not in log
    for process in processes:
        process.close()


def test_usage_comes_back_as_it_was(start: Start, clock: Clock) -> None:
    caller, leader = start(), start()
    usage = Usage(
        *("azure", "small", 900, 80, 30, 20, 10, 7, 5, 3),
        source=CostSource.GATEWAY,
        exactness=Exactness.UPPER,
    )
    charge = caller.answer(caller.send())
    evidence = Evidence("gateway:m", (ModelCall("gateway:1", usage),), complete=True)
    leader.corrections.take(Shown(evidence, request=charge.id))
    leader.collect()
    corrected = list(caller.runtime.books.ledger.charges())[-1]
    (booked,) = corrected.usage
    assert replace(booked, provider="azure") == usage
