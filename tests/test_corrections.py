"""Evidence finds its attempt, early or late, by whatever says whose it is, and corrects it once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from genops_ctx import governance_context
from genops_ctx.attempt import Attempt, begin
from genops_ctx.booked import booked_now
from genops_ctx.core.booking import Report
from genops_ctx.core.budget import Budget
from genops_ctx.core.context import GovernanceContext
from genops_ctx.core.errors import StoreError
from genops_ctx.core.evidence import Evidence, ModelCall, Shown
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.ports import Quote
from genops_ctx.core.records import Charge, CostSource, Exactness, Line, LineKind, Usage
from genops_ctx.ledger import open_ledger
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.stores.memory import MemoryStore
from genops_ctx.stores.sqlite import SQLiteStore

GUESS = Usage("openai", "small", 100, source=CostSource.ESTIMATED, exactness=Exactness.ESTIMATED)


class Tariff:
    """10 nano-dollars a token."""

    def quote(self, usage: Usage, at: float) -> Quote:
        return Quote(10 * usage.total_tokens)

    def provider_of(self, name: str) -> str:
        return name


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def new_runtime(path: Path, clock: Clock) -> Runtime:
    """As another process would have it: the same files, nothing remembered."""
    settings = Settings(budgets=(Budget("5/day", by="team"),))
    return Runtime(
        settings,
        store=SQLiteStore(path, timeout=60.0),  # on a busy machine too
        ledger=open_ledger(f"sqlite:///{path}"),
        prices=Tariff(),
        clock=clock,
    )


@pytest.fixture
def runtime(tmp_path: Path, clock: Clock) -> Iterator[Runtime]:
    runtime = new_runtime(tmp_path / "books.sqlite3", clock)
    before = reset_runtime(runtime)
    yield runtime
    reset_runtime(before)
    runtime.books.close()


def send(runtime: Runtime, *sessions: str) -> Attempt:
    attempt = begin("support", attribution={"team": "a"}, deadline=60.0)
    runtime.corrections.expect(attempt.admitted.hold, attempt.context, sessions, runtime.clock())
    return attempt


def answer(attempt: Attempt, outcome: Outcome = Outcome.COMPLETED) -> Charge:
    charge = attempt.finish(Report(outcome, attempt.runtime.clock(), estimates=(GUESS,)))
    assert charge is not None
    return charge


def proof(tokens: int, name: str = "langfuse:t", complete: bool = True) -> Evidence:
    usage = Usage("openai", "small", tokens, source=CostSource.TRACED)
    return Evidence(name, (ModelCall(f"{name}/1", usage),), complete)


def in_ledger(runtime: Runtime) -> list[int]:
    return [charge.nanos for charge in runtime.books.ledger.charges()]


def in_accounts(runtime: Runtime) -> int:
    return sum(account.spent for account in runtime.books.store.accounts().values())


def test_evidence_after_the_answer_corrects_everything(runtime: Runtime) -> None:
    with governance_context("outer") as outer, governance_context("inner") as inner:
        attempt = send(runtime)
        charge = answer(attempt)
    assert outer.pending == inner.pending == (charge,)
    assert outer.inexact_cost == Decimal("0.000001")
    shown = Shown(proof(7), request=charge.id)
    runtime.corrections.take(shown)
    runtime.corrections.take(shown)
    assert in_ledger(runtime) == [1000, -930]
    assert in_accounts(runtime) == 70
    for context in (outer, inner):
        assert (context.total_cost, context.total_tokens, context.calls) == (Decimal("0.00000007"), 7, 1)
        assert (context.pending, context.inexact_cost) == ((), 0)
        assert context.cost_by("source") == {"traced": Decimal("0.00000007"), "estimated": 0}
        assert context.wait(0)


def test_what_is_booked_now_is_told_of_the_charge_that_an_answer_carries(
    runtime: Runtime, tmp_path: Path, clock: Clock
) -> None:
    attempt = send(runtime)
    fee = Line(LineKind.FEE, 5, CostSource.REPORTED, Exactness.EXACT)
    report = Report(Outcome.COMPLETED, runtime.clock(), estimates=(GUESS,), costs=(fee,))
    charge = attempt.finish(report)
    assert charge is not None
    assert booked_now(charge) == charge
    runtime.corrections.take(Shown(proof(7, "langfuse:1", complete=False), request=charge.id))
    runtime.corrections.take(Shown(proof(9, "langfuse:1"), request=charge.id))
    now = booked_now(charge)
    assert (charge.nanos, now.nanos) == (1005, 95) == (1005, sum(in_ledger(runtime)))
    assert (now.id, now.exactness, now.total_tokens) == (charge.id, "exact", 9)
    assert [usage.input_tokens for usage in now.usage] == [9]
    assert booked_now(now) == booked_now(list(runtime.books.ledger.charges())[-1]) == now
    other = new_runtime(tmp_path / "books.sqlite3", clock)
    reset_runtime(other)
    assert booked_now(charge) == now, "another process knows it too"
    reset_runtime(runtime)
    other.books.close()


def test_what_was_lost_and_ended_after_all_is_booked_as_it_ended(runtime: Runtime, clock: Clock) -> None:
    # The store of a file goes by the machine's clock, so a loss is waited for in one of memory.
    books = {"store": MemoryStore(), "ledger": MemoryLedger()}
    runtime = Runtime(runtime.settings, **books, prices=Tariff(), clock=clock)  # type: ignore[arg-type]
    reset_runtime(runtime)
    attempt = send(runtime)
    clock.now += 91.0
    runtime.books.catch_up(clock())
    (lost,) = runtime.books.ledger.charges()
    assert booked_now(lost).outcome == "expired"
    answer(attempt)
    now = booked_now(lost)
    assert (now.id, now.outcome, now.nanos) == (lost.id, "completed", 1000)


def test_evidence_before_the_answer_waits_for_it(runtime: Runtime) -> None:
    with governance_context("a") as context:
        attempt = send(runtime)
        runtime.corrections.take(Shown(proof(7), request=attempt.admitted.hold))
        assert in_ledger(runtime) == []
        answer(attempt)
    assert in_ledger(runtime) == [1000, -930]
    assert context.pending == ()


def test_evidence_that_is_there_before_the_ledger_has_the_charge_is_not_forgotten(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger on a server is written to by a thread, and one that does not answer later."""

    def away(*args: object, **named: object) -> bool:
        raise StoreError("the ledger does not answer")

    with governance_context("a") as context, monkeypatch.context() as meanwhile:
        meanwhile.setattr(runtime.books, "_book_together", away)
        attempt = send(runtime)
        runtime.corrections.take(Shown(proof(7), request=attempt.admitted.hold))
        answer(attempt)
        assert in_ledger(runtime) == []
    runtime.books.catch_up(runtime.clock())
    runtime.corrections.tidy()
    assert in_ledger(runtime) == [1000, -930]
    assert in_accounts(runtime) == 70
    assert context.pending == ()


@pytest.mark.parametrize("remote", [True, False])
def test_an_event_loop_waits_for_no_server_to_correct(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    books, adjust, threads = runtime.books, runtime.books.adjust, list[int]()

    def noted(*args: Any) -> Any:
        threads.append(threading.get_ident())
        return adjust(*args)

    monkeypatch.setattr(books, "adjust", noted)
    monkeypatch.setattr(books.hand_off, "needed", remote)

    async def main() -> None:
        attempt = send(runtime)
        runtime.corrections.take(Shown(proof(7), request=attempt.admitted.hold))
        answer(attempt)

    asyncio.run(main())
    books.hand_off.close()
    runtime.corrections.tidy()
    assert in_ledger(runtime) == [1000, -930]
    assert (threads[0] == threading.get_ident()) is not remote


def test_a_timeout_is_corrected(runtime: Runtime) -> None:
    charge = answer(send(runtime), Outcome.TIMED_OUT)
    runtime.corrections.take(Shown(proof(7), request=charge.id))
    assert in_ledger(runtime) == [1000, -930]


def test_an_attempt_that_was_not_sent_expects_nothing(runtime: Runtime) -> None:
    with governance_context("a") as context:
        attempt = send(runtime, "chat")
        attempt.finish(Report(Outcome.NOT_SENT, runtime.clock()))
    runtime.corrections.take(Shown(proof(7), sessions=("chat",)))
    assert (context.pending, in_ledger(runtime), in_accounts(runtime)) == ((), [], 0)


def test_a_session_tells_whose_it_is_where_one_call_ran_in_it(runtime: Runtime, clock: Clock) -> None:
    charge = answer(send(runtime, "chat", "session"))
    answer(send(runtime, "other"))
    runtime.corrections.take(Shown(proof(7), sessions=("chat",), started_at=clock.now))
    assert in_ledger(runtime) == [1000, 1000, -930]
    assert list(runtime.books.ledger.charges())[-1].adjustment_of == charge.id


def test_a_session_of_two_calls_at_a_time_tells_nothing(runtime: Runtime, clock: Clock) -> None:
    with governance_context("a") as context:
        charges = tuple(answer(send(runtime, "chat")) for _ in range(2))
    runtime.corrections.take(Shown(proof(7), sessions=("chat",), started_at=clock.now))
    assert in_ledger(runtime) == [1000, 1000]
    assert context.pending == charges


def test_calls_of_a_session_far_apart_are_told_by_their_times(runtime: Runtime, clock: Clock) -> None:
    answer(send(runtime, "chat"))
    clock.now += 300
    second = answer(send(runtime, "chat"))
    runtime.corrections.take(Shown(proof(7), sessions=("chat",), started_at=clock.now))
    assert list(runtime.books.ledger.charges())[-1].adjustment_of == second.id


def test_another_process_finds_the_charge_in_the_ledger(
    runtime: Runtime, clock: Clock, tmp_path: Path
) -> None:
    charge = answer(send(runtime))
    runtime.corrections.take(Shown(proof(7), request=charge.id))
    other = new_runtime(tmp_path / "books.sqlite3", clock)
    other.corrections.take(Shown(proof(7), request=charge.id))  # what is known already
    other.corrections.take(Shown(proof(5, "langfuse:u"), request=charge.id))
    assert in_ledger(runtime) == [1000, -930, 50]
    assert in_accounts(runtime) == 120
    other.books.close()


def test_evidence_of_a_call_that_another_process_is_still_sending(
    runtime: Runtime, clock: Clock, tmp_path: Path
) -> None:
    attempt = send(runtime)
    other = new_runtime(tmp_path / "books.sqlite3", clock)
    other.corrections.take(Shown(proof(7), request=attempt.admitted.hold))
    answer(attempt)
    clock.now += 2
    other.corrections.tidy()
    assert in_ledger(runtime) == [1000, -930]
    other.books.close()


def test_after_its_horizon_the_estimate_stands(runtime: Runtime, clock: Clock) -> None:
    with governance_context("a") as context:
        charge = answer(send(runtime))
    clock.now += runtime.corrections.horizon + 1
    runtime.corrections.tidy()
    assert context.pending == ()
    runtime.corrections.take(Shown(proof(7), request=charge.id))
    assert in_ledger(runtime) == [1000]


def test_a_trace_that_never_ends_is_the_least_that_is_booked(runtime: Runtime, clock: Clock) -> None:
    charge = answer(send(runtime))
    runtime.corrections.take(Shown(proof(700, complete=False), request=charge.id))
    assert in_ledger(runtime) == [1000]
    clock.now += runtime.corrections.horizon + 1
    runtime.corrections.tidy()
    assert in_ledger(runtime) == [1000, 6000]
    assert list(runtime.books.ledger.charges())[-1].exactness is Exactness.ESTIMATED


def test_a_call_that_began_after_the_correction_and_never_ended_may_have_been_billed(
    runtime: Runtime, clock: Clock
) -> None:
    attempt = send(runtime)
    answer(attempt)
    hold = attempt.admitted.hold
    runtime.corrections.take(Shown(proof(7, "gateway:m"), hold))
    begun = Evidence("gateway:m", (ModelCall("gateway:2", ended=False),), complete=True)
    runtime.corrections.take(Shown(begun, hold))
    assert sum(in_ledger(runtime)) == 70
    clock.now += 901
    runtime.corrections.tidy()
    assert sum(in_ledger(runtime)) == in_accounts(runtime) == 1000
    assert list(runtime.books.ledger.charges())[-1].exactness is Exactness.ESTIMATED


def test_evidence_of_nobody_is_forgotten(runtime: Runtime, clock: Clock) -> None:
    for request in ("op#1", "not a hold", "x" * 1000 + "#1", ""):
        runtime.corrections.take(Shown(proof(7, f"langfuse:{request[:9]}"), request=request))
    clock.now += runtime.corrections.horizon + 1
    runtime.corrections.tidy()
    assert (runtime.corrections.unmatched, in_ledger(runtime)) == (4, [])


def test_a_ledger_that_fails_is_asked_again(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    charge = answer(send(runtime))

    def broken(*args: object, **kwargs: object) -> bool:
        raise OSError("no disk")

    with monkeypatch.context() as patch:
        patch.setattr(runtime.books.ledger, "append", broken)
        runtime.corrections.take(Shown(proof(7), request=charge.id))
    assert in_ledger(runtime) == [1000]
    runtime.corrections.tidy()
    assert in_ledger(runtime) == [1000, -930]


def test_correcting_from_many_threads_books_once(runtime: Runtime) -> None:
    with governance_context("a") as context:
        charges = [answer(send(runtime)) for _ in range(8)]
    threads = [
        threading.Thread(target=runtime.corrections.take, args=(Shown(proof(7, f"langfuse:{c.id}"), c.id),))
        for c in charges
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(in_ledger(runtime)) == [-930] * 8 + [1000] * 8
    assert (in_accounts(runtime), context.total_tokens) == (560, 56)


def later(runtime: Runtime, context: GovernanceContext) -> threading.Timer:
    charge = context.pending[0]
    timer = threading.Timer(0.05, runtime.corrections.take, (Shown(proof(7), request=charge.id),))
    timer.start()
    return timer


def test_waiting_for_what_is_pending(runtime: Runtime) -> None:
    with governance_context("a") as context:
        assert context.wait()
        answer(send(runtime))
        assert not context.wait(0.01)
    started = time.monotonic()
    later(runtime, context)
    assert context.wait(30)
    assert time.monotonic() - started < 20
    assert context.total_tokens == 7


def test_waiting_in_a_coroutine(runtime: Runtime) -> None:
    async def main() -> None:
        async with governance_context("a") as context:
            assert await context.wait_async()
            answer(send(runtime))
            assert not await context.wait_async(0.01)
        later(runtime, context)
        assert await context.wait_async(30)
        assert context.total_tokens == 7

    asyncio.run(main())


def test_the_id_of_an_answer_tells_calls_of_one_chat_apart(runtime: Runtime, clock: Clock) -> None:
    first, second = send(runtime, "chat"), send(runtime, "chat")
    early = Shown(proof(7), sessions=("answer-2", "chat"), started_at=clock.now)
    runtime.corrections.take(early)  # before Flowise has answered with that id
    answer(first)
    runtime.corrections.know(second.admitted.hold, "answer-2")
    runtime.corrections.know(second.admitted.hold, "answer-2")
    charge = answer(second)
    assert in_ledger(runtime) == [1000, 1000, -930]
    assert list(runtime.books.ledger.charges())[-1].adjustment_of == charge.id


def test_the_call_of_another_answer_in_the_chat_is_not_taken_for_this_one(
    runtime: Runtime, clock: Clock
) -> None:
    """Somebody else's: of another process, or of nobody whom we govern."""
    attempt = send(runtime, "chat")
    theirs = Shown(proof(9, "gateway:m2"), "", ("m2", "chat"), clock.now, "m2")
    runtime.corrections.take(theirs)
    runtime.corrections.know(attempt.admitted.hold, "m1")
    answer(attempt)
    runtime.corrections.take(Shown(proof(7, "gateway:m1"), "", ("m1", "chat"), clock.now, "m1"))
    runtime.corrections.take(replace(theirs, evidence=proof(11, "gateway:m3"), answer="m3"))
    clock.now += 5
    runtime.corrections.tidy()
    assert in_ledger(runtime) == [1000, -930]


def test_a_call_whose_answer_never_came_is_told_by_the_chat(runtime: Runtime, clock: Clock) -> None:
    attempt = send(runtime, "chat")
    runtime.corrections.take(Shown(proof(7, "gateway:m1"), "", ("m1", "chat"), clock.now, "m1"))
    clock.now += 30
    runtime.corrections.tidy()
    assert in_ledger(runtime) == []
    answer(attempt, Outcome.TIMED_OUT)
    runtime.corrections.tidy()
    assert in_ledger(runtime) == [1000, -930]


def test_evidence_waits_for_a_ledger_that_cannot_say_whose_it_is(
    runtime: Runtime, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    charge = answer(send(runtime))
    other = new_runtime(tmp_path / "books.sqlite3", clock)
    try:
        with monkeypatch.context() as broken:
            broken.setattr(other.books.ledger, "charges", _fail)
            other.corrections.take(Shown(proof(7), request=charge.id))
            clock.now += 2
            other.corrections.tidy()
        clock.now += 60
        other.corrections.tidy()
        assert in_ledger(runtime) == [1000, -930]
    finally:
        other.books.close()


def _fail(*_: object) -> None:
    raise OSError("no ledger")
