"""The breaker as a rule: when it opens, who may probe, what is no longer heard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.breaker import (
    NEW_CIRCUIT,
    BreakerRule,
    Circuit,
    CircuitState,
    Denied,
    Outcome,
    Permit,
    admit,
    force_open,
    record,
    reset,
    retry_after,
    state_at,
)
from genops_ctx.core.errors import ConfigurationError

S = 1_000_000
T = 1_000 * S
"""when the tests begin"""
RULE = BreakerRule(failures=3, window=60.0, recovery_timeout=30.0, probe_timeout=10.0)
OK, BAD, NONE = Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORED


def call(circuit: Circuit, outcome: Outcome, at: int, rule: BreakerRule = RULE, name: str = "p") -> Circuit:
    """Admitted, and over at once."""
    circuit, permit = admit(circuit, rule, name, at + 10 * S, at)
    assert isinstance(permit, Permit)
    return record(circuit, rule, permit, outcome, at)


def after(*outcomes: Outcome, rule: BreakerRule = RULE, gap: int = S) -> Circuit:
    circuit = NEW_CIRCUIT
    for number, outcome in enumerate(outcomes):
        circuit = call(circuit, outcome, T + number * gap, rule)
    return circuit


def opened(rule: BreakerRule = RULE) -> Circuit:
    """At T + 2 s."""
    return after(BAD, BAD, BAD, rule=rule)


def half_open(rule: BreakerRule = RULE, name: str = "first") -> tuple[Circuit, Permit]:
    """At T + 32 s, with one probe."""
    circuit, permit = admit(opened(rule), rule, name, T + 42 * S, T + 32 * S)
    assert isinstance(permit, Permit)
    return circuit, permit


def test_three_failures_in_a_row_open_it_and_a_success_in_between_does_not() -> None:
    assert after(BAD, BAD).state is CircuitState.CLOSED
    assert opened().state is CircuitState.OPEN
    assert after(BAD, BAD, OK, BAD, BAD).state is CircuitState.CLOSED
    assert after(BAD, BAD, NONE, BAD).state is CircuitState.OPEN, "what says nothing interrupts nothing"


def test_failures_decay() -> None:
    """One every 31 s: never three within 60."""
    assert after(*[BAD] * 50, gap=31 * S).state is CircuitState.CLOSED
    assert after(*[BAD] * 3, gap=29 * S).state is CircuitState.OPEN


def test_a_rate_counts_only_from_the_minimum_of_calls_on() -> None:
    rule = BreakerRule(failures=None, rate=0.5, minimum_calls=4, window=60.0)
    assert after(BAD, BAD, BAD, rule=rule).state is CircuitState.CLOSED
    assert after(BAD, BAD, BAD, BAD, rule=rule).state is CircuitState.OPEN
    assert after(OK, OK, OK, BAD, BAD, rule=rule).state is CircuitState.CLOSED, "2 of 5"
    assert after(OK, OK, OK, BAD, BAD, BAD, rule=rule).state is CircuitState.OPEN, "3 of 6"
    assert after(BAD, BAD, OK, OK, rule=rule).state is CircuitState.OPEN, "2 of 4, seen at the fourth"


def test_a_rate_forgets_what_has_left_its_window() -> None:
    rule = BreakerRule(failures=None, rate=0.5, minimum_calls=4, window=60.0)
    circuit = after(BAD, BAD, BAD, rule=rule)
    assert call(circuit, BAD, T + 70 * S, rule).state is CircuitState.CLOSED


def test_a_success_of_a_clean_breaker_changes_nothing() -> None:
    """So a store need not write."""
    assert call(NEW_CIRCUIT, OK, T) is NEW_CIRCUIT


def test_open_says_how_long_and_lets_a_probe_through_at_that_moment() -> None:
    circuit = opened()
    assert circuit.since == T + 2 * S
    same, denied = admit(circuit, RULE, "x", 0, T + 12 * S)
    assert denied == Denied(CircuitState.OPEN, circuit.version, 20.0)
    assert same == circuit
    _, denied = admit(circuit, RULE, "x", 0, T + 32 * S - 1)
    assert denied == Denied(CircuitState.OPEN, circuit.version, 0.000001)
    assert state_at(circuit, RULE, T + 32 * S - 1) is CircuitState.OPEN
    assert state_at(circuit, RULE, T + 32 * S) is CircuitState.HALF_OPEN
    assert retry_after(circuit, RULE, T + 12 * S) == 20.0
    assert retry_after(NEW_CIRCUIT, RULE, T) == 0.0
    probing, permit = half_open()
    assert probing.state is CircuitState.HALF_OPEN
    assert permit.version == probing.version > circuit.version


@pytest.mark.parametrize("probes", [1, 3])
def test_half_open_lets_exactly_so_many_through(probes: int) -> None:
    rule = BreakerRule(failures=3, recovery_timeout=30.0, probes=probes)
    circuit = opened(rule)
    permits = []
    for number in range(50):
        circuit, decision = admit(circuit, rule, f"p{number}", T + 200 * S, T + 32 * S)
        if isinstance(decision, Permit):
            permits.append(decision)
        else:
            assert decision == Denied(CircuitState.HALF_OPEN, circuit.version, 168.0)
    assert len(permits) == probes
    for permit in permits[:-1]:
        circuit = record(circuit, rule, permit, OK, T + 33 * S)
        assert circuit.state is CircuitState.HALF_OPEN
        assert isinstance(admit(circuit, rule, "more", T + 200 * S, T + 33 * S)[1], Denied)
    assert record(circuit, rule, permits[-1], OK, T + 33 * S).state is CircuitState.CLOSED


def test_a_probe_that_fails_opens_it_again_for_the_whole_time() -> None:
    circuit, permit = half_open()
    circuit = record(circuit, RULE, permit, BAD, T + 35 * S)
    assert (circuit.state, circuit.since) == (CircuitState.OPEN, T + 35 * S)


def test_a_probe_that_says_nothing_leaves_its_place_to_another() -> None:
    circuit, permit = half_open()
    circuit = record(circuit, RULE, permit, NONE, T + 33 * S)
    assert circuit.state is CircuitState.HALF_OPEN
    assert isinstance(admit(circuit, RULE, "second", T + 50 * S, T + 33 * S)[1], Permit)


def test_a_killed_prober_does_not_block_recovery() -> None:
    circuit, dead = half_open()
    circuit, denied = admit(circuit, RULE, "second", T + 52 * S, T + 42 * S - 1)
    assert denied == Denied(CircuitState.HALF_OPEN, circuit.version, 0.000001)
    circuit, permit = admit(circuit, RULE, "second", T + 52 * S, T + 42 * S)
    assert isinstance(permit, Permit)
    assert record(circuit, RULE, dead, OK, T + 43 * S) == circuit, "its permit is void"
    assert record(circuit, RULE, permit, OK, T + 43 * S).state is CircuitState.CLOSED


def test_the_same_id_is_given_the_same_permit() -> None:
    circuit, permit = half_open()
    again, same = admit(circuit, RULE, "first", T + 60 * S, T + 33 * S)
    assert (again, same) == (circuit, permit)


def test_what_an_earlier_version_admitted_is_not_heard() -> None:
    late = admit(NEW_CIRCUIT, RULE, "late", 0, T)[1]
    assert isinstance(late, Permit)
    circuit, permit = half_open()
    for outcome in (OK, BAD):
        assert record(circuit, RULE, late, outcome, T + 33 * S) == circuit
        assert record(opened(), RULE, late, outcome, T + 10 * S) == opened()
    closed = record(circuit, RULE, permit, OK, T + 33 * S)
    for _ in range(5):
        closed = record(closed, RULE, late, BAD, T + 34 * S)
    assert closed.state is CircuitState.CLOSED
    assert closed.failures == 0


def test_forced_open_stays_so_until_it_is_reset() -> None:
    circuit = force_open(NEW_CIRCUIT, T)
    _, denied = admit(circuit, RULE, "x", 0, T + 86_400 * S)
    assert denied == Denied(CircuitState.OPEN, circuit.version, None)
    assert retry_after(circuit, RULE, T + 86_400 * S) is None
    assert state_at(circuit, RULE, T + 86_400 * S) is CircuitState.OPEN
    again = reset(circuit, T + S)
    assert isinstance(admit(again, RULE, "x", 0, T + S)[1], Permit)
    assert again.version > circuit.version


def test_reset_forgets_what_was_counted() -> None:
    circuit = call(reset(after(BAD, BAD), T + 5 * S), BAD, T + 6 * S)
    assert (circuit.state, circuit.failures) == (CircuitState.CLOSED, 1)


def test_a_clock_that_is_set_back_does_not_keep_it_open() -> None:
    circuit, denied = admit(opened(), RULE, "x", 0, T - 3600 * S)
    assert denied == Denied(CircuitState.OPEN, opened().version, 30.0)
    assert isinstance(admit(circuit, RULE, "x", 0, T - 3570 * S)[1], Permit)


def test_versions_go_on_where_a_store_forgot_them() -> None:
    before, _ = half_open()
    forgotten = NEW_CIRCUIT
    for number in range(3):
        forgotten = call(forgotten, BAD, T + (100 + number) * S)
    assert forgotten.version > before.version


def test_states_are_understood_in_either_case() -> None:
    assert CircuitState("HALF_OPEN") is CircuitState("half-open") is CircuitState.HALF_OPEN
    assert CircuitState("CLOSED").value == "closed"
    for wrong in ("ajar", 3):
        with pytest.raises(ValueError):
            CircuitState(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"failures": None},
        {"failures": 0},
        {"rate": 0.0},
        {"rate": 1.1},
        {"minimum_calls": 0},
        {"probes": 0},
        {"window": 0.0},
        {"recovery_timeout": -1.0},
        {"probe_timeout": 1e9},
        {"failures": 2.5},
        {"failures": True},
        {"probes": 1.5},
        {"minimum_calls": None},
        {"window": float("nan")},
    ],
)
def test_a_rule_that_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        BreakerRule(**wrong)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.sampled_from([OK, BAD, NONE]), st.integers(0, 20 * S)), max_size=60),
    st.integers(1, 4),
)
def test_an_open_breaker_always_recovers(history: list[tuple[Outcome, int]], probes: int) -> None:
    """Whatever happened: after the recovery time, and the life of forgotten permits, it can be closed."""
    rule = BreakerRule(failures=2, rate=0.5, minimum_calls=3, recovery_timeout=5.0, probes=probes)
    circuit, now, versions = NEW_CIRCUIT, T, [0]
    for number, (outcome, gap) in enumerate(history):
        now += gap
        circuit, decision = admit(circuit, rule, f"p{number}", now + 10 * S, now)
        assert len(circuit.permits) + circuit.passed <= probes
        if isinstance(decision, Permit) and number % 3:
            circuit = record(circuit, rule, decision, outcome, now)
        versions.append(circuit.version)
    assert versions == sorted(versions)
    now += 15 * S
    for number in range(probes):
        circuit, decision = admit(circuit, rule, f"last{number}", now + 10 * S, now)
        if isinstance(decision, Permit):
            circuit = record(circuit, rule, decision, OK, now)
    assert circuit.state is CircuitState.CLOSED


def counted(circuit: Circuit) -> tuple[int, int]:
    return circuit.failures, circuit.last_failure


def test_an_open_circuit_still_says_how_often_and_when_it_failed() -> None:
    assert counted(NEW_CIRCUIT) == (0, 0)
    assert counted(after(BAD, BAD)) == (2, T + S)
    assert counted(after(BAD, BAD, OK)) == (0, T + S), "a success ends the row, not the history"
    assert counted(after(BAD, BAD, NONE)) == (2, T + S)
    assert counted(opened()) == (3, T + 2 * S)
    circuit, permit = half_open()
    assert counted(circuit) == (3, T + 2 * S)
    assert counted(record(circuit, RULE, permit, BAD, T + 33 * S)) == (4, T + 33 * S)
    assert counted(record(circuit, RULE, permit, NONE, T + 33 * S)) == (3, T + 2 * S)
    assert counted(record(circuit, RULE, permit, OK, T + 33 * S)) == (0, T + 2 * S)
    assert counted(force_open(opened(), T + 9 * S)) == (3, T + 2 * S)
    assert counted(reset(opened(), T + 9 * S)) == (0, 0)


def test_failures_are_counted_as_the_rule_counts_them() -> None:
    """Those older than the window do not count; by a rate alone, all in a row do."""
    assert counted(after(BAD, BAD, BAD, gap=40 * S)) == (2, T + 80 * S)
    rate = BreakerRule(failures=None, rate=1.0, minimum_calls=100)
    assert counted(after(*[BAD] * 7, rule=rate)) == (7, T + 6 * S)
