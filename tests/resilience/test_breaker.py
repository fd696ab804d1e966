"""Circuit breakers as programs use them: what counts, who is let through, sync and async."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import requests

from genops_ctx.core.errors import CircuitOpen, ConfigurationError, PolicyViolation
from genops_ctx.core.outcomes import Outcome
from genops_ctx.resilience import CircuitBreaker, CircuitState, FlowiseCircuitBreaker
from genops_ctx.resilience.breaker import breaker_of
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.testing import FixedClock


@pytest.fixture
def clock(genops_runtime: Runtime) -> FixedClock:
    clock = FixedClock()
    reset_runtime(Runtime(Settings(), clock=clock))
    return clock


def boom(error: BaseException) -> None:
    raise error


def fail(breaker: CircuitBreaker, error: BaseException, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(type(error)):
            breaker.call(boom, error)


def test_it_opens_after_so_many_failures_and_recovers(clock: FixedClock) -> None:
    breaker = FlowiseCircuitBreaker(failure_threshold=3, recovery_timeout=30.0)
    fail(breaker, requests.ConnectionError(), 2)
    assert breaker.call(lambda: 7) == 7  # a success ends the row
    assert breaker.failure_count == 0
    fail(breaker, requests.ConnectionError(), 3)
    assert (breaker.failure_count, breaker.last_failure_at) == (3, clock())
    assert breaker.state is CircuitState.OPEN
    assert breaker.state == "open"
    assert breaker.is_open()

    ran = []
    with pytest.raises(CircuitOpen) as raised:
        breaker.call(ran.append, 1)
    assert not ran
    assert (raised.value.state, raised.value.retry_after) == ("open", 30.0)
    assert "Try again in 30 s" in str(raised.value)

    clock.advance(30)
    assert breaker.state is CircuitState.HALF_OPEN
    assert not breaker.is_open()
    assert breaker.call(lambda: 8) == 8
    assert breaker.state is CircuitState.CLOSED


def test_a_failed_probe_opens_it_again(clock: FixedClock) -> None:
    breaker = CircuitBreaker(1, 10.0)
    fail(breaker, TimeoutError())
    clock.advance(10)
    fail(breaker, TimeoutError())
    assert breaker.is_open()
    assert breaker.retry_after == 10.0


def test_one_probe_of_fifty(clock: FixedClock) -> None:
    breaker = CircuitBreaker(1, 10.0)
    fail(breaker, TimeoutError())
    clock.advance(10)
    ran: list[int] = []

    async def probe() -> None:
        ran.append(1)
        await asyncio.sleep(0.01)

    async def main() -> list[object]:
        return await asyncio.gather(*(breaker.call(probe) for _ in range(50)), return_exceptions=True)

    answers = asyncio.run(main())
    assert len(ran) == 1
    refusals = [answer for answer in answers if isinstance(answer, CircuitOpen)]
    assert len(refusals) == 49
    assert {refusal.state for refusal in refusals} == {"half_open"}
    assert breaker.state is CircuitState.CLOSED


def test_coroutines_and_functions_that_give_them_are_awaited(clock: FixedClock) -> None:
    breaker = CircuitBreaker(2)

    async def fails() -> None:
        await asyncio.sleep(0)
        raise TimeoutError

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await breaker.call(fails)
        with pytest.raises(TimeoutError):
            await breaker.call(lambda: fails())

    asyncio.run(main())
    assert breaker.is_open()


# what the call raises, and whether that is a failure of what it called
COUNTS = [
    (requests.ConnectionError(), True),
    (TimeoutError(), True),
    (RuntimeError("anything"), True),
    (Exception("503 Service Unavailable"), True),
    (Exception("404 Not Found"), False),
    (PolicyViolation("p", "c", "no"), False),
    (ConfigurationError("a bad argument"), False),
    (KeyboardInterrupt(), False),
    (asyncio.CancelledError(), False),
]


@pytest.mark.parametrize(("error", "counts"), COUNTS, ids=lambda value: repr(value)[:30])
def test_what_counts_as_a_failure(clock: FixedClock, error: BaseException, counts: bool) -> None:
    breaker = CircuitBreaker(1)
    fail(breaker, error)
    assert breaker.is_open() is counts


def test_the_expected_exception_counts_as_it_stands(clock: FixedClock) -> None:
    breaker = CircuitBreaker(1, expected_exception=KeyError)
    fail(breaker, TimeoutError())
    assert not breaker.is_open()
    fail(breaker, KeyError("x"))
    assert breaker.is_open()


def test_a_probe_that_says_nothing_lets_another_try(clock: FixedClock) -> None:
    breaker = CircuitBreaker(1, 10.0)
    fail(breaker, TimeoutError())
    clock.advance(10)
    fail(breaker, PolicyViolation("p", "c", "no"))
    assert breaker.state is CircuitState.HALF_OPEN
    assert breaker.call(lambda: 1) == 1
    assert breaker.state is CircuitState.CLOSED


def test_breakers_of_one_name_are_one(clock: FixedClock) -> None:
    one, other = CircuitBreaker(2, name="models"), CircuitBreaker(2, name="models")
    fail(one, TimeoutError())
    fail(other, TimeoutError())
    assert one.is_open()
    assert other.is_open()
    other.reset()
    assert not one.is_open()
    assert not CircuitBreaker(2).is_open()


def test_a_circuit_for_each_target(clock: FixedClock) -> None:
    breaker = CircuitBreaker(1, name="flows", per_target=True)
    permit = breaker.enter("one", clock())
    breaker.leave(permit, Outcome.FAILED, TimeoutError(), clock())
    assert isinstance(breaker.enter("one", clock()), CircuitOpen)
    assert not isinstance(breaker.enter("two", clock()), CircuitOpen)


@pytest.mark.parametrize(
    ("outcome", "opens"),
    [
        (Outcome.FAILED, True),
        (Outcome.TIMED_OUT, True),
        (Outcome.TRUNCATED, True),
        (Outcome.NOT_SENT, False),
        (Outcome.REFUSED, False),
        (Outcome.ABANDONED, False),
        (Outcome.CANCELLED, False),
        (Outcome.COMPLETED, False),
    ],
)
def test_ends_without_an_error(clock: FixedClock, outcome: Outcome, opens: bool) -> None:
    breaker = CircuitBreaker(1)
    breaker.leave(breaker.enter("x", clock()), outcome, None, clock())
    assert breaker.is_open() is opens


def test_a_probe_counts_for_as_long_as_its_call_may_take(clock: FixedClock) -> None:
    """A flow that takes 150 s of the 300 that it may closes the breaker; its probe is not given up before."""
    breaker = CircuitBreaker(1, recovery_timeout=10.0)
    breaker.leave(breaker.enter("slow", clock()), Outcome.FAILED, TimeoutError(), clock())
    clock.advance(10)
    probe = breaker.enter("slow", clock(), 300.0)
    clock.advance(150)
    assert isinstance(breaker.enter("slow", clock(), 300.0), CircuitOpen)
    breaker.leave(probe, Outcome.COMPLETED, None, clock())
    assert breaker.state is CircuitState.CLOSED


def test_a_probe_of_a_function_counts_for_its_own_time(clock: FixedClock) -> None:
    breaker = CircuitBreaker(1, recovery_timeout=10.0, probe_timeout=20.0)
    breaker.leave(breaker.enter("f", clock()), Outcome.FAILED, TimeoutError(), clock())
    clock.advance(10)
    breaker.enter("f", clock())
    clock.advance(19.5)
    assert isinstance(breaker.enter("f", clock()), CircuitOpen)
    clock.advance(0.5)
    assert not isinstance(breaker.enter("f", clock()), CircuitOpen)


def test_an_operator_can_open_it(clock: FixedClock) -> None:
    breaker = CircuitBreaker(name="models")
    breaker.force_open()
    clock.advance(10_000)
    with pytest.raises(CircuitOpen) as raised:
        breaker.call(print)
    assert raised.value.retry_after is None
    assert "operator" in str(raised.value)
    breaker.reset()
    breaker.call(lambda: None)


def test_a_failure_rate_opens_it(clock: FixedClock) -> None:
    breaker = CircuitBreaker(None, failure_rate=0.5, minimum_calls=4)
    fail(breaker, TimeoutError())
    breaker.call(lambda: 1)
    fail(breaker, TimeoutError())
    assert not breaker.is_open()
    breaker.call(lambda: 1)
    assert breaker.is_open()  # 2 of 4 failed


@pytest.mark.parametrize(
    "wrong", [{"failure_threshold": 0}, {"recovery_timeout": 0}, {"name": " "}, {"failure_threshold": None}]
)
def test_bad_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        CircuitBreaker(**wrong)


def test_a_shared_store_needs_a_name() -> None:
    with pytest.raises(ConfigurationError, match="name"):
        CircuitBreaker(store="memory://")


def test_the_short_forms() -> None:
    assert breaker_of(None, "x", per_target=True) is breaker_of(False, "x", per_target=True) is None
    made = breaker_of(3, "x", per_target=True)
    assert made is not None
    assert (made.rule.failures, made.name, made.per_target) == (3, "x", True)
    assert breaker_of(made, "y", per_target=False) is made
    with pytest.raises(ConfigurationError):
        breaker_of("yes", "x", per_target=True)
