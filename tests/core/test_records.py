"""Usage, lines and charges: what is refused, what adds up."""

from __future__ import annotations

import dataclasses
import pickle
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.records import Charge, CostSource, Exactness, Line, LineKind, Usage, least_exact
from tests.strategies import charge, line, usages

COUNTS = [name for name in Usage.__dataclass_fields__ if name.endswith("_tokens")]


def test_there_are_eight_counts() -> None:
    assert len(COUNTS) == 8


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("bad", [-1, 10**12 + 1, 1.0, "5", None, True, Decimal(5), float("nan")])
def test_counts_are_whole_and_not_negative(name: str, bad: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Usage("openai", "small", **{name: bad})


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"input_tokens": 10, "cache_read_tokens": 11}, "from_exclusive"),
        ({"input_tokens": 10, "cache_write_tokens": 11}, "from_exclusive"),
        ({"input_tokens": 10, "cache_write_1h_tokens": 11}, "from_exclusive"),
        (
            {
                "input_tokens": 10,
                "cache_read_tokens": 4,
                "cache_write_tokens": 4,
                "cache_write_1h_tokens": 3,
            },
            r"\(11\)",
        ),
        ({"input_tokens": 10, "input_audio_tokens": 11}, "input_audio_tokens"),
        ({"output_tokens": 10, "reasoning_tokens": 11}, "reasoning_tokens"),
        ({"output_tokens": 10, "output_audio_tokens": 11}, "output_audio_tokens"),
    ],
)
def test_parts_are_never_more_than_their_whole(counts: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Usage("openai", "small", **counts)  # type: ignore[arg-type]


def test_parts_may_be_all_of_their_whole() -> None:
    usage = Usage(
        "openai",
        "small",
        input_tokens=10,
        output_tokens=7,
        cache_read_tokens=5,
        cache_write_tokens=3,
        cache_write_1h_tokens=2,
        input_audio_tokens=10,
        output_audio_tokens=7,
        reasoning_tokens=7,
    )
    assert usage.total_tokens == 17


@pytest.mark.parametrize(("provider", "model"), [(None, "m"), ("p", None), (b"p", "m"), ("p", 5)])
def test_provider_and_model_are_strings(provider: Any, model: Any) -> None:
    with pytest.raises(ConfigurationError, match="as strings"):
        Usage(provider, model)


def test_from_exclusive_counts_the_cached_tokens_in() -> None:
    usage = Usage.from_exclusive(
        "anthropic",
        "large",
        input_tokens=100,
        output_tokens=20,
        cache_read_tokens=1000,
        cache_write_tokens=200,
        cache_write_1h_tokens=30,
        node="Agent 1",
        source=CostSource.TRACED,
    )
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (1330, 20, 1350)
    assert (usage.cache_read_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens) == (1000, 200, 30)
    assert (usage.node, usage.source) == ("Agent 1", CostSource.TRACED)


@pytest.mark.parametrize("bad", [None, "5", 1.5, True, -1])
@pytest.mark.parametrize(
    "name", ["input_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens"]
)
def test_from_exclusive_refuses_what_is_no_count(name: str, bad: Any) -> None:
    counts = {"input_tokens": 100, name: bad}
    with pytest.raises(ConfigurationError, match="token"):
        Usage.from_exclusive("anthropic", "large", **counts)


@given(usages())
def test_usage_is_a_value(usage: Usage) -> None:
    assert pickle.loads(pickle.dumps(usage)) == usage
    assert hash(usage) == hash(dataclasses.replace(usage))
    with pytest.raises(dataclasses.FrozenInstanceError):
        usage.model = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "worst"),
    [
        ([], "exact"),
        (["exact", "exact"], "exact"),
        (["exact", "upper"], "upper"),
        (["estimated", "upper"], "estimated"),
        (["unknown", "exact", "estimated"], "unknown"),
    ],
)
def test_least_exact(values: list[str], worst: str) -> None:
    assert least_exact(Exactness(value) for value in values) is Exactness(worst)


def test_a_line_without_a_price_has_no_cost() -> None:
    assert Line(LineKind.COST, None, CostSource.ESTIMATED, Exactness.UNKNOWN).cost is None
    assert Line(LineKind.COST, 0, CostSource.REPORTED, Exactness.EXACT).cost == 0
    assert line(1).cost == Decimal("0.000000001")


def test_a_charge_by_hand() -> None:
    made = Charge(
        id="op#2",
        operation="op",
        attempt=2,
        name="support",
        flow="f1",
        outcome="completed",
        lines=(line(8_550, tokens=40), line(1_450, tokens=2, exactness=Exactness.UPPER)),
        attribution={"team": "a"},
        context_path=("x-1",),
        started_at=1_795_262_400.0,
        ended_at=1_795_262_401.5,
    )
    assert (made.nanos, made.cost, made.total_tokens) == (10_000, Decimal("0.000010000"), 42)
    assert f"{made.cost:.4f}" == "0.0000"
    assert [usage.input_tokens for usage in made.usage] == [40, 2]
    assert made.exactness is Exactness.UPPER
    assert not made.unpriced
    assert made.started == datetime(2026, 11, 21, 12, tzinfo=UTC)
    assert str(made) == "support: $0.00001 (upper, completed)"
    assert pickle.loads(pickle.dumps(made)) == made


def test_a_charge_with_an_unknown_line_says_that_there_is_more() -> None:
    made = charge(line(5_000_000), line(None, exactness=Exactness.UNKNOWN))
    assert made.cost == Decimal("0.005")
    assert made.unpriced
    assert str(made) == "flow: $0.005 + unknown (unknown, completed)"


def test_a_charge_without_lines_cost_nothing() -> None:
    made = charge()
    assert (made.nanos, made.total_tokens, made.usage, made.exactness) == (0, 0, (), Exactness.EXACT)


amounts = st.one_of(st.none(), st.integers(0, 2**60))


@given(st.lists(st.tuples(amounts, st.sampled_from(Exactness)), max_size=20))
def test_a_charge_is_the_sum_of_its_lines(parts: list[tuple[int | None, Exactness]]) -> None:
    made = charge(*[line(nanos, exactness=exactness) for nanos, exactness in parts])
    assert Fraction(made.cost) == sum((Fraction(n, 10**9) for n, _ in parts if n is not None), Fraction(0))
    assert made.unpriced == any(exactness == "unknown" for _, exactness in parts)
