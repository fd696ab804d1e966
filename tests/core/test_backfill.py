"""Which runs nobody governed, told by hand-made charges."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.backfill import BACKFILLED, Run, ungoverned
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.records import Charge


def charge(
    at: float,
    chat: str = "",
    message: str = "",
    outcome: str = Outcome.COMPLETED,
    operation: str = "op",
    **rest: object,
) -> Charge:
    return Charge(
        id=f"{operation}#1",
        operation=operation,
        attempt=1,
        name="flow",
        flow="f",
        outcome=outcome,
        lines=(),
        attribution={},
        context_path=(),
        started_at=at,
        ended_at=at + 1,
        chat_id=chat,
        message_id=message,
        **rest,  # type: ignore[arg-type]
    )


def run(name: str, at: float, chat: str = "c", message: str = "") -> Run:
    return Run(name, "f", (chat,), (message,) if message else (), at)


def names(runs: tuple[Run, ...]) -> list[str]:
    return [one.id for one in runs]


def test_a_message_tells_whose_run_it_is() -> None:
    found = ungoverned([run("a", 1, message="m1"), run("b", 2, message="m2")], [charge(2, "c", "m2")])
    assert (names(found.ungoverned), found.governed, found.unsure) == (["a"], 1, 0)


def test_without_a_message_the_nearest_run_of_the_chat_is_taken_once() -> None:
    runs = [run("early", 0), run("mine", 100), run("late", 200), run("elsewhere", 100, chat="other")]
    timed_out = charge(101, "c", outcome=Outcome.TIMED_OUT)
    found = ungoverned(runs, [timed_out])
    assert names(found.ungoverned) == ["early", "late", "elsewhere"]
    found = ungoverned(runs, [timed_out, charge(102, "c", operation="two")])
    assert len(found.ungoverned) == 2
    assert found.governed == 2


def test_a_session_counts_as_a_chat() -> None:
    one = Run("a", "f", ("chat", "session"), (), 5)
    assert ungoverned([one], [charge(5, "session", outcome=Outcome.FAILED)]).governed == 1


def test_what_never_ran_takes_no_run_away() -> None:
    refused = charge(1, "c", outcome=Outcome.REFUSED)
    assert names(ungoverned([run("a", 1)], [refused]).ungoverned) == ["a"]


def test_an_adjustment_and_an_earlier_backfill_govern_nothing() -> None:
    again = charge(1, "c", "m", adjustment_of="op#1")
    ours = charge(1, "c", "m", flags=(BACKFILLED,))
    assert names(ungoverned([run("a", 1, message="m")], [again, ours]).ungoverned) == ["a"]


def test_a_call_whose_process_died_leaves_the_runs_of_its_time_unsure() -> None:
    lost = charge(1000, outcome=Outcome.EXPIRED)
    runs = [run("before", 900), run("at", 1000), run("during", 1800), run("after", 2000)]
    found = ungoverned(runs, [lost])
    assert (names(found.ungoverned), found.unsure) == (["before", "after"], 2)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from("abc"), st.booleans(), st.booleans()), max_size=12)
)
def test_every_run_is_told_once_and_governed_calls_are_never_booked(
    calls: list[tuple[int, str, bool, bool]],
) -> None:
    """In chats of one governed call each, whatever else runs beside it in chats of its own."""
    runs, charges = [], []
    for number, (at, chat, governed, answered) in enumerate(calls):
        own = f"{chat}{number}"
        runs.append(run(f"r{number}", at, own, f"m{number}" if answered else ""))
        if governed:
            charges.append(charge(at, own, f"m{number}" if answered else "", operation=f"op{number}"))
    found = ungoverned(runs, charges)
    expected = [f"r{number}" for number, call in enumerate(calls) if not call[2]]
    assert names(found.ungoverned) == expected
    assert found.governed == len(calls) - len(expected)
