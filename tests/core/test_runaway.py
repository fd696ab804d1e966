"""The guard: what it counts, that it counts in one step, and that it forgets within bounds."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from genops_ctx.core import runaway
from genops_ctx.core.policy import Facts, Policy
from genops_ctx.core.runaway import Guard


def facts(
    guard: Guard, session: str = "s", question: str | None = None, at: float = 0.0, **owner: str
) -> Facts:
    return Facts("f", "", owner, at, None, session, guard.hash_of(question))


def allowed(guard: Guard, *args: object, **options: object) -> bool:
    return not any(decision.reason for decision in guard.decide(facts(guard, *args, **options)))  # type: ignore[arg-type]


def test_calls_of_a_session() -> None:
    guard = Guard([Policy("p", max_calls_per_session=2)])
    assert [allowed(guard, "a") for _ in range(4)] == [True, True, False, False]
    assert allowed(guard, "b")
    assert all(allowed(guard, "") for _ in range(5)), "calls without a session are not counted"


def test_of_many_calls_at_once_no_more_than_the_limit_are_allowed() -> None:
    guard = Guard([Policy("p", max_calls_per_session=10)])
    barrier = threading.Barrier(16)

    def ask(_: int) -> int:
        barrier.wait()
        return sum(allowed(guard) for _ in range(5))

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(ask, range(16))) == 10


def test_identical_questions_are_known_by_a_keyed_hash_only() -> None:
    guard = Guard([Policy("p", max_identical_questions=2)])
    asked = [allowed(guard, "s", question) for question in ("a", "b", "a", "a", "b", "b")]
    assert asked == [True, True, True, False, True, False]
    assert allowed(guard, "t", "a")
    assert allowed(guard, "s", None)
    other = Guard([Policy("p", max_identical_questions=2)])
    assert guard.hash_of("a") == guard.hash_of("a") != other.hash_of("a")
    assert len(guard.hash_of("a very secret question")) == 16
    assert guard.hash_of("\ud800"), "half a pair can be asked too"


def test_a_refused_call_and_one_that_was_undone_do_not_count() -> None:
    guard = Guard(
        [Policy("p", max_calls_per_session=1), Policy("q", where={"team": "x"}, required="project")]
    )
    assert not allowed(guard, team="x")
    once = facts(guard)
    assert not any(decision.reason for decision in guard.decide(once))
    guard.undo(once)
    assert allowed(guard)
    assert not allowed(guard)
    guard.undo(facts(guard, "never seen"))


def test_observing_counts_what_it_lets_through() -> None:
    guard = Guard([Policy("p", max_calls_per_session=1)])
    reasons = [bool(guard.decide(facts(guard), enforced=False)[0].reason) for _ in range(3)]
    assert reasons == [False, True, True]


def test_cost_of_a_minute_slides_and_is_apart_for_each_owner() -> None:
    guard = Guard([Policy("p", max_cost_per_minute="0.10", by="team")])
    guard.book({"team": "a"}, 60_000_000, 100.0)
    guard.book({"team": "a"}, 39_999_999, 130.0)
    assert allowed(guard, at=130.5, team="a")
    guard.book({"team": "a"}, 1, 130.9)
    assert not allowed(guard, at=131.0, team="a")
    assert allowed(guard, at=131.0, team="b")
    assert not allowed(guard, at=159.9, team="a")
    assert allowed(guard, at=160.0, team="a"), "the first cost is a minute old"


def test_costs_of_before_the_clock_was_set_back_stop_nothing() -> None:
    guard = Guard([Policy("p", max_cost_per_minute="0.10")])
    guard.book({}, 100_000_000, 7_300.0)
    assert not allowed(guard, at=7_300.0)
    assert allowed(guard, at=3_700.0)
    guard.book({}, 60_000_000, 3_700.0)
    assert allowed(guard, at=3_701.0)
    guard.book({}, 40_000_000, 3_702.0)
    assert not allowed(guard, at=3_702.0)
    assert allowed(guard, at=3_761.0)
    guard.book({"team": "a"}, 0, 161.0)
    assert not guard.decide(facts(guard, at=161.0, team="a"))[0].reason


def test_policies_that_do_not_apply_say_nothing() -> None:
    guard = Guard([Policy("p", where={"team": "x"}, required="project", max_cost_per_minute=0)])
    assert guard.decide(facts(guard, team="y")) == ()
    guard.book({"team": "y"}, 5, 0.0)
    assert allowed(guard, team="y")


def test_it_forgets_the_oldest_within_bounds(monkeypatch) -> None:
    monkeypatch.setattr(runaway, "KEPT_SESSIONS", 2)
    monkeypatch.setattr(runaway, "KEPT_QUESTIONS", 2)
    monkeypatch.setattr(runaway, "KEPT_GROUPS", 2)
    limits = Policy(
        "p", max_calls_per_session=3, max_identical_questions=1, max_cost_per_minute="0.000000005", by="team"
    )
    guard = Guard([limits])
    assert allowed(guard, "a", "1")
    assert allowed(guard, "a", "2")
    assert allowed(guard, "a", "3"), "the third question pushes the first out"
    assert not allowed(guard, "a", "4"), "three calls are three calls"
    assert allowed(guard, "b", "1")
    assert allowed(guard, "c", "1")
    assert allowed(guard, "a", "1"), "its session was the oldest of three"
    for team in ("x", "y", "z"):
        guard.book({"team": team}, 5, 1.0)
    assert allowed(guard, "d", at=2.0, team="x")
    assert not allowed(guard, "d", at=2.0, team="z")
