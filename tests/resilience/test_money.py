"""Whatever happens, booked is what was billed: over random histories of failing, trying again, and hits."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from genops_ctx import governance_context, governed
from genops_ctx.core.money import dollars
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.metered import metered_call
from genops_ctx.resilience import RetryConfig, resilient
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.stores.memory import MemoryStore

FAST = RetryConfig(max_retries=2, base_delay=0.0, jitter=0.0)
CENT = 10_000_000


class Provider:
    """A model that bills a cent for each answer, and for some failures too."""

    def __init__(self, history: list[str]) -> None:
        self.history = history
        self.billed = 0

    def __call__(self, question: str) -> str:
        what = self.history.pop(0) if self.history else "answer"
        if what == "refused":
            raise ConnectionRefusedError
        with metered_call("model") as call:
            self.billed += CENT
            call.record_cost(Decimal("0.01"))
            if what == "paid failure":
                raise TimeoutError
        return f"to {question}"


histories = st.lists(st.sampled_from(["answer", "refused", "paid failure"]), max_size=12)
questions = st.lists(st.sampled_from("ab"), max_size=5)


@given(histories, questions, st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_booked_is_billed(
    history: list[str], asked: list[str], cached: bool, retries: bool, falls_back: bool
) -> None:
    before = reset_runtime(Runtime(Settings(), store=MemoryStore(), ledger=MemoryLedger()))
    try:
        first, second = Provider(list(history)), Provider(list(reversed(history)))
        ask = resilient(
            retry=FAST if retries else None,
            cache=cached,
            fallback=[second, "sorry"] if falls_back else None,
            name=f"ask-{id(first)}",
        )(lambda question: first(question))
        with governance_context(budget=100) as context:
            for question in asked:
                try:
                    answer = ask(question)
                except (ConnectionRefusedError, TimeoutError):
                    assert not falls_back
                else:
                    assert answer in (f"to {question}", "sorry")
        assert context.total_cost == dollars(first.billed + second.billed)
        assert context.reserved == 0
        if not cached:
            assert context.cached_calls == 0
    finally:
        reset_runtime(before)


def test_metering_around_a_resilient_function_counts_each_try_and_no_hit() -> None:
    tries = []

    @governed(meter=lambda result: Decimal("0.01"))
    @resilient(retry=FAST, cache=60)
    def ask(question: str) -> str:
        tries.append(question)
        if len(tries) == 1:
            raise ConnectionRefusedError
        return question

    with governance_context() as context:
        assert ask("a") == ask("a") == "a"
    assert tries == ["a", "a"]
    assert (context.total_cost, context.cached_calls) == (Decimal("0.01"), 1)


def test_metering_below_it_does_too() -> None:
    tries = []

    @resilient(retry=FAST, cache=60)
    @governed(meter=lambda result: Decimal("0.01"))
    def ask(question: str) -> str:
        tries.append(question)
        if len(tries) == 1:
            raise ConnectionRefusedError
        return question

    with governance_context() as context:
        assert ask("a") == ask("a") == "a"
    assert (context.total_cost, context.cached_calls) == (Decimal("0.01"), 1)
