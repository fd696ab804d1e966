"""Retry: how often, how long, after what; and that its tries are attempts of one operation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import stamina

from genops_ctx.core.errors import BudgetExceeded, ConfigurationError, RateLimitExceeded
from genops_ctx.core.operations import named
from genops_ctx.resilience import RetryConfig, execute_flow_with_retry, execute_with_retry
from genops_ctx.resilience.retry import retry_of, retrying, retrying_async

FAST = {"base_delay": 0.0, "jitter": 0.0}


class Flaky:
    """Fails with each of these errors in turn, then answers."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls: list[tuple[str, int]] = []

    def __call__(self, question: str = "", **options: object) -> str:
        self.calls.append(named(None)[:2])
        if self.errors:
            raise self.errors.pop(0)
        return f"{question}{len(self.calls)}"

    async def run(self, question: str, **options: object) -> str:
        await asyncio.sleep(0)
        return self(question)


@pytest.fixture(params=["sync", "async"])
def retried(request: pytest.FixtureRequest) -> Any:
    def run(config: RetryConfig, call: Flaky) -> str:
        if request.param == "sync":
            for attempt in retrying(config):
                with attempt:
                    return call()
            raise AssertionError

        async def main() -> str:
            async for attempt in retrying_async(config):
                with attempt:
                    return call()
            raise AssertionError

        return asyncio.run(main())

    return run


def test_it_tries_until_a_try_does_not_fail(retried: Any) -> None:
    call = Flaky(TimeoutError(), ConnectionResetError())
    assert retried(RetryConfig(**FAST), call) == "3"


def test_it_gives_up_after_so_many_retries_and_raises_the_last_error(retried: Any) -> None:
    last = TimeoutError("third")
    call = Flaky(TimeoutError("first"), TimeoutError("second"), last, TimeoutError())
    with pytest.raises(TimeoutError) as raised:
        retried(RetryConfig(max_retries=2, **FAST), call)
    assert raised.value is last
    assert len(call.calls) == 3


def test_no_retries_is_one_try(retried: Any) -> None:
    call = Flaky(TimeoutError())
    with pytest.raises(TimeoutError):
        retried(RetryConfig(max_retries=0, **FAST), call)
    assert len(call.calls) == 1


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a bug"),
        RateLimitExceeded("mine", "", 0.0),
        ConfigurationError("mine"),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_will_not_help_is_not_tried_again(error: BaseException) -> None:
    call = Flaky(error)
    with pytest.raises(type(error)):
        for attempt in retrying(RetryConfig(**FAST)):
            with attempt:
                call()
    assert len(call.calls) == 1


def test_each_try_is_an_attempt_of_one_operation(retried: Any) -> None:
    call = Flaky(TimeoutError(), TimeoutError())
    retried(RetryConfig(**FAST), call)
    assert len({operation for operation, _ in call.calls}) == 1
    assert [attempt for _, attempt in call.calls] == [1, 2, 3]


def test_retry_after_is_waited_instead_of_the_backoff(retried: Any) -> None:
    response = requests.Response()
    response.status_code = 429
    response.headers["Retry-After"] = "0.3"
    call = Flaky(requests.HTTPError(response=response))
    began = time.monotonic()
    retried(RetryConfig(base_delay=20.0), call)
    assert 0.3 <= time.monotonic() - began < 18


def test_a_retry_after_that_does_not_fit_raises_at_once(retried: Any) -> None:
    response = requests.Response()
    response.status_code = 429
    response.headers["Retry-After"] = "3600"
    call = Flaky(requests.HTTPError(response=response))
    began = time.monotonic()
    with pytest.raises(requests.HTTPError):
        retried(RetryConfig(max_elapsed=60.0), call)
    assert time.monotonic() - began < 30
    assert len(call.calls) == 1


def test_no_try_begins_after_the_total_time(retried: Any) -> None:
    class Slow(Flaky):
        def __call__(self, question: str = "", **options: object) -> str:
            time.sleep(0.06)
            return super().__call__(question)

    call = Slow(*[TimeoutError() for _ in range(50)])
    with pytest.raises(TimeoutError):
        retried(RetryConfig(max_retries=100, max_elapsed=0.2, **FAST), call)
    # 0.06 s a try: the fourth begins at 0.18 s, and a fifth would begin at 0.24 s
    assert 1 <= len(call.calls) <= 4


def test_the_backoff_doubles_up_to_its_cap() -> None:
    """1, 2, 4, 5 and 5 seconds, by stamina's own account of what it would wait."""
    waits: list[float] = []
    config = RetryConfig(max_retries=5, base_delay=1.0, max_delay=5.0, jitter=0.0, max_elapsed=None)
    with stamina.set_testing(True, attempts=5):
        call = Flaky(*[TimeoutError() for _ in range(5)])
        with pytest.raises(TimeoutError):
            for attempt in retrying(config):
                with attempt:
                    call()
    from genops_ctx.resilience.retry import _Loop

    for position, attempt in enumerate(_Loop(config).context):
        waits.append(attempt.next_wait)
        if position == 0:
            break
    waits += [attempt._next_wait_fn(number) for number in (2, 3, 4, 5)]  # type: ignore[misc]
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_which_errors_are_retried_can_be_said() -> None:
    assert RetryConfig(on=KeyError).wants(KeyError("x"))
    assert not RetryConfig(on=KeyError).wants(TimeoutError())
    assert RetryConfig(on=(KeyError, TimeoutError)).wants(TimeoutError())
    assert RetryConfig(on=lambda error: "again" in str(error)).wants(ValueError("again"))


def test_only_what_cost_nothing_can_be_retried() -> None:
    careful = RetryConfig(unpaid_only=True)
    assert careful.wants(ConnectionRefusedError())
    assert not careful.wants(TimeoutError())
    assert RetryConfig().wants(TimeoutError())


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_retries": -1},
        {"max_retries": True},
        {"max_retries": 1.5},
        {"base_delay": -1},
        {"max_delay": float("nan")},
        {"jitter": "1"},
        {"exponential_base": 0.5},
        {"max_elapsed": -1},
    ],
)
def test_bad_numbers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        RetryConfig(**wrong)


def test_the_short_forms() -> None:
    assert retry_of(None) is retry_of(False) is None
    assert retry_of(True) == RetryConfig()
    assert retry_of(5) == RetryConfig(max_retries=5)
    with pytest.raises(ConfigurationError, match="RetryConfig"):
        retry_of("often")


def test_a_budget_refusal_is_no_reason_to_try_again() -> None:
    from decimal import Decimal

    refusal = BudgetExceeded(
        budget="b",
        scope="s",
        limit=Decimal(1),
        spent=Decimal(1),
        reserved=Decimal(0),
        wanted=Decimal(1),
        wanted_because="max_cost",
    )
    assert not RetryConfig().wants(refusal)


# -- as the guides call them --------------------------------------------------------------------


class Adapter:
    def __init__(self, flaky: Flaky) -> None:
        self.flaky = flaky
        self.seen: list[tuple[str, dict[str, object]]] = []

    def predict_flow(self, chatflow_id: str, question: str, **options: object) -> dict[str, str]:
        self.seen.append((chatflow_id, options))
        return {"text": self.flaky(question)}


def test_a_flow_with_retry() -> None:
    adapter = Adapter(Flaky(requests.ConnectionError(), requests.ConnectTimeout()))
    with stamina.set_testing(True, attempts=10):
        answer = execute_flow_with_retry(adapter, "support", "why? ", max_retries=3, team="help")
    assert answer == {"text": "why? 3"}
    assert adapter.seen == [("support", {"team": "help"})] * 3


def test_an_agent_with_retry() -> None:
    flaky = Flaky(TimeoutError())
    assert asyncio.run(execute_with_retry(flaky, "why? ", RetryConfig(**FAST))) == "why? 2"
    assert asyncio.run(execute_with_retry(Flaky(), "a function: ")) == "a function: 1"
    with pytest.raises(ConfigurationError, match="run"):
        asyncio.run(execute_with_retry(object(), "x"))


@pytest.fixture(autouse=True)
def stamina_as_it_comes() -> Iterator[None]:
    """Without hooks: one of a test before would see errors of this one."""
    yield
    stamina.set_active(True)
