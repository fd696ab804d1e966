"""What a price must do, whatever the model: the oracle is rational arithmetic on the given prices."""

from __future__ import annotations

import decimal
import locale
import threading
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import ROUND_DOWN, Decimal, Inexact
from fractions import Fraction
from functools import cache
from math import ceil, nan
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.records import Usage
from genops_ctx.pricing.catalogue import Catalogue
from genops_ctx.pricing.data import PriceData
from genops_ctx.pricing.overrides import PriceOverride, PriceTier

from .strategies import amounts, counts, moments, sizes, usage

NOW = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
PARTS = ("cache_read", "cache_write", "cache_write_1h", "reasoning", "input_audio", "output_audio")


@cache
def catalogue() -> Catalogue:
    return Catalogue()


@st.composite
def priced(draw: st.DrawFn, optional: bool = True) -> dict[str, Decimal]:
    """Prices by kind; input and output always, the others sometimes."""
    rates = {"input": draw(amounts), "output": draw(amounts)}
    for kind in PARTS:
        if not optional or draw(st.booleans()):
            rates[kind] = draw(amounts)
    return rates


def custom(rates: dict[str, Decimal], **rest: Any) -> Catalogue:
    return Catalogue([PriceOverride("acme", "m", **rates, **rest)])


def rational(rates: dict[str, Decimal], tokens: dict[str, int], request: Decimal = Decimal(0)) -> Fraction:
    """The price by hand: every token once, at the price of the narrowest kind that has one."""
    rate = {kind: Fraction(amount) for kind, amount in rates.items()}
    get = lambda kind: tokens.get(f"{kind}_tokens", 0)  # noqa: E731
    read, write, hour = get("cache_read"), get("cache_write"), get("cache_write_1h")
    heard, thought, spoken = get("input_audio"), get("reasoning"), get("output_audio")
    whole_input, whole_output = tokens["input_tokens"], tokens["output_tokens"]
    total = (
        (whole_input - read - write - hour - heard) * rate["input"]
        + read * rate.get("cache_read", rate["input"])
        + write * rate.get("cache_write", rate["input"])
        + hour * rate.get("cache_write_1h", rate.get("cache_write", rate["input"]))
        + heard * rate.get("input_audio", rate["input"])
        + (whole_output - thought - spoken) * rate["output"]
        + thought * rate.get("reasoning", rate["output"])
        + spoken * rate.get("output_audio", rate["output"])
    )
    return total / 1_000_000 + Fraction(request)


def apart(tokens: dict[str, int]) -> dict[str, int]:
    """Without audio where there is cached input: whether the two overlap is not said."""
    return tokens | {"input_audio_tokens": 0} if tokens.get("cache_read_tokens") else tokens


# 1, 9: the exact rational price, and no cache price means the input price
@given(rates=priced(), tokens=counts().map(apart), request=amounts)
def test_the_price_is_the_rational_sum_rounded_up_once(
    rates: dict[str, Decimal], tokens: dict[str, int], request: Decimal
) -> None:
    prices = custom(rates, per_request=request)
    exact = rational(rates, tokens, request)
    call = usage("acme", "m", tokens)
    found = prices.exact(call, NOW)
    assert found is not None
    assert Fraction(found) == exact
    assert prices.quote(call, NOW).nanos == prices.nanos(call, NOW) == ceil(exact * 10**9)


def test_by_hand() -> None:
    """1,000 in at $0.15 and 500 out at $0.60 per million: $0.00015 + $0.0003."""
    prices = custom({"input": Decimal("0.15"), "output": Decimal("0.60")})
    call = Usage("acme", "m", input_tokens=1_000, output_tokens=500)
    assert prices.exact(call, NOW) == Decimal("0.00045")
    assert prices.quote(call, NOW).nanos == 450_000


def test_a_fraction_of_a_nano_dollar_is_rounded_up() -> None:
    """3 tokens at $0.0001 per million are 0.3 nano-dollars."""
    prices = custom({"input": Decimal("0.0001"), "output": Decimal(0)})
    assert prices.quote(Usage("acme", "m", input_tokens=3), NOW).nanos == 1
    assert prices.exact(Usage("acme", "m", input_tokens=3), NOW) == Decimal("3E-10")


# 2
@given(rates=priced(), one=counts().map(apart), other=counts().map(apart))
def test_costs_add_up_below_tiers(
    rates: dict[str, Decimal], one: dict[str, int], other: dict[str, int]
) -> None:
    both = {kind: one[kind] + other[kind] for kind in one}
    assume(not (both["cache_read_tokens"] and both["input_audio_tokens"]))
    prices = custom(rates)
    parts = [prices.exact(usage("acme", "m", tokens), NOW) for tokens in (one, other, both)]
    assert None not in parts
    first, second, together = map(Fraction, parts)  # type: ignore[arg-type]
    assert first + second == together


# 3
def rows_with_cheaper_cache() -> list[tuple[str, str]]:
    found = []
    for provider, model in catalogue().data.rows():
        price = catalogue().exact(Usage(provider, model.id, input_tokens=1_000_000), NOW)
        cached = catalogue().exact(
            Usage(provider, model.id, input_tokens=1_000_000, cache_read_tokens=1_000_000), NOW
        )
        if price is not None and cached is not None:
            assert cached >= 0
            if cached > price:
                assert (provider, model.id) == ("openrouter", "~deepseek/deepseek-pro-latest"), model.id
            else:
                found.append((provider, model.id))
    return found


@given(tokens=counts(audio=False), data=st.data())
def test_cached_input_costs_no_more_than_fresh_input(tokens: dict[str, int], data: st.DataObject) -> None:
    """Of every row but one, whose own data says otherwise."""
    provider, model = data.draw(st.sampled_from(_cheaper()))
    tokens = tokens | {"cache_write_tokens": 0, "cache_write_1h_tokens": 0}
    fresh = tokens | {"cache_read_tokens": 0}
    cached, plain = (catalogue().exact(usage(provider, model, t), NOW) for t in (tokens, fresh))
    assert cached is not None
    assert plain is not None
    assert 0 <= cached <= plain


@cache
def _cheaper() -> list[tuple[str, str]]:
    return rows_with_cheaper_cache()


# 4
@given(tokens=counts(), data=st.data(), by=st.integers(1, 10**6))
def test_parts_over_the_whole_are_refused(tokens: dict[str, int], data: st.DataObject, by: int) -> None:
    whole = {
        "cache_read_tokens": "input_tokens",
        "cache_write_tokens": "input_tokens",
        "cache_write_1h_tokens": "input_tokens",
        "input_audio_tokens": "input_tokens",
        "reasoning_tokens": "output_tokens",
        "output_audio_tokens": "output_tokens",
    }
    part = data.draw(st.sampled_from(sorted(whole)))
    with pytest.raises(ConfigurationError, match="part of"):
        usage("acme", "m", tokens | {part: tokens[whole[part]] + by})


# 5
@given(
    count=st.integers(max_value=-1)
    | st.sampled_from([nan, True, False, 1.0, 0.5, "7", None, Decimal(3), 10**12 + 1]),
    data=st.data(),
)
def test_counts_that_are_not_whole_numbers_are_refused(count: Any, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(["input_tokens", "output_tokens", "reasoning_tokens"]))
    with pytest.raises(ConfigurationError, match=field):
        usage("acme", "m", {field: count})


# 6
@given(rates=priced(), tokens=counts(audio=False))
def test_both_shapes_of_one_call_cost_the_same(rates: dict[str, Decimal], tokens: dict[str, int]) -> None:
    """Anthropic reports cached tokens beside the input, OpenAI within it."""
    inside = usage("acme", "m", tokens)
    cached = {
        kind: tokens[kind] for kind in ("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens")
    }
    beside = Usage.from_exclusive(
        "acme",
        "m",
        input_tokens=tokens["input_tokens"] - sum(cached.values()),
        output_tokens=tokens["output_tokens"],
        reasoning_tokens=tokens["reasoning_tokens"],
        **cached,
    )
    prices = custom(rates)
    assert prices.exact(inside, NOW) == prices.exact(beside, NOW)


# 7
@given(rates=priced(), output=st.integers(0, 10**6), thought=st.integers(0, 10**6))
def test_reasoning_is_paid_once(rates: dict[str, Decimal], output: int, thought: int) -> None:
    rates.pop("reasoning", None)
    prices = custom(rates)
    without = prices.exact(Usage("acme", "m", output_tokens=output + thought), NOW)
    assert (
        prices.exact(Usage("acme", "m", output_tokens=output + thought, reasoning_tokens=thought), NOW)
        == without
    )
    apart_ = custom(rates | {"reasoning": Decimal(2)})
    found = apart_.exact(Usage("acme", "m", output_tokens=output + thought, reasoning_tokens=thought), NOW)
    assert found is not None
    assert Fraction(found) == (output * Fraction(rates["output"]) + 2 * thought) / 10**6


# 8
@given(
    base=priced(),
    higher=priced(),
    highest=priced(),
    threshold=st.integers(1, 10**6),
    gap=st.integers(1, 10**6),
    output=st.integers(0, 10**5),
)
def test_a_tier_takes_every_token_just_past_its_threshold(
    base: dict[str, Decimal],
    higher: dict[str, Decimal],
    highest: dict[str, Decimal],
    threshold: int,
    gap: int,
    output: int,
) -> None:
    """Input of exactly T pays the base rate; T + 1 pays the tier's, for all of it and the output too."""
    tiers = (PriceTier(threshold + gap, **highest), PriceTier(threshold, **higher))  # given out of order
    prices = custom(base, tiers=tiers)
    second = base | higher
    for size, rates in (
        (threshold - 1, base),
        (threshold, base),
        (threshold + 1, second),
        (threshold + gap, second),
        (threshold + gap + 1, second | highest),
    ):
        call = Usage("acme", "m", input_tokens=size, output_tokens=output)
        found, expected = (
            prices.exact(call, NOW),
            rational(rates, {"input_tokens": size, "output_tokens": output}),
        )
        assert found is not None
        assert Fraction(found) == expected
        assert prices.nanos(call, NOW) == ceil(expected * 10**9)


def test_a_tier_by_hand() -> None:
    """gemini-2.5-pro: $1.25 in and $10 out up to 200,000 tokens of input, $2.50 and $15 above."""
    at_, over = (
        Usage("gemini", "gemini-2.5-pro", input_tokens=size, output_tokens=1_000)
        for size in (200_000, 200_001)
    )
    assert catalogue().exact(at_, NOW) == Decimal("0.26")
    assert catalogue().exact(over, NOW) == Decimal("0.5150025")


# 10
@given(name=st.text(min_size=1, max_size=30))
def test_a_name_nobody_knows_has_no_price(name: str) -> None:
    """Whatever surrounds it: the known name inside counts for nothing."""
    for model in (f"x{name}gpt-4o-mini", f"gpt-4o-mini-{name}-extra", f"{name}qqq"):
        quote = catalogue().quote(Usage("openai", model, input_tokens=10), NOW)
        assert quote.nanos is None
        assert quote.note
        assert catalogue().exact(Usage("openai", model, input_tokens=10), NOW) is None
        assert not catalogue().is_priced("openai", model, NOW)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o-mini-evil"),
        ("openai", "my-gpt-4o-mini"),
        ("openai", "gpt-4"[:-1]),
        ("openai", ""),
        ("openаi", "gpt-4o-mini"),  # a Cyrillic letter
        ("openai中", "gpt-4o-mini"),
        ("google", "gemini-1.5-flash-8b-exp-0924"),  # half the price of the row that contains its name
        ("google", "gemini-2.5-pro-2"),
        ("google", "gemini-3.5-flash-8b"),
        ("google", "acme/gemini-1.5-flash"),
        ("google", "acme.gemini-1.5-flash"),
        ("anthropic", "claude-opus-4-10"),
        ("anthropic", "claude-opus-4-9"),
        ("deepseek", "deepseek-chat-v9"),
        ("deepseek", "deepseek-v4-pro-2"),
        ("aws", "eu-west-3/mistral.mistral-large-2402-v1:0"),  # other regions cost more
        ("aws", "arn:aws:bedrock:us-east-1:1:application-inference-profile/abc"),
        ("azure", "my-gpt-4o"),
        ("azure", "eu/o4-mini"),
        ("azure", "deepseek-r1"),  # DeepSeek's night rates are not Azure's
        ("azure", "DeepSeek-V4-Flash"),
        ("openrouter", "gpt-4o"),
        ("openrouter", "openai/gpt-4o:free"),
        ("groq", "gpt-oss-120b"),
        ("ollama", "gpt-oss:120b-cloud"),  # not on the user's machine
        ("ollama", "minimax-m2:cloud"),
        ("google", "gemini-1.5-flash-nano"),
        ("google", "acme-gemini-1.5-flash"),
        ("google", "gemini-2.5-pro-music"),
        ("anthropic", "claude-3-5-sonnet-turbo"),
        ("anthropic", "not-claude-v2"),
        ("deepseek", "deepseek-chat-evil"),  # its row has exact names beside a prefix
        ("openai", "gpt-5-nano-evil"),
        ("aws", "acme.anthropic.claude-3-opus-20240229-v1:0-fork"),
        ("openai-proxy", "gpt-4o-mini"),
        ("myopenai", "gpt-4o-mini"),
        ("chatOpenAICustom", "gpt-4o-mini"),
        ("chatHuggingFace", "meta-llama/Llama-3-8B"),
        ("openai", "whisper-1"),  # listed, but billed by the hour
        ("mistral", "mistral-ocr-latest"),  # by the page
    ],
)
def test_a_name_that_only_looks_like_a_known_one_has_no_price(provider: str, model: str) -> None:
    quote = catalogue().quote(Usage(provider, model, input_tokens=1_000, output_tokens=10), NOW)
    assert quote.nanos is None
    assert not catalogue().is_priced(provider, model, NOW)


# 11
@settings(max_examples=30)
@given(rates=priced(), tokens=counts().map(apart), precision=st.integers(1, 5))
def test_the_caller_s_decimal_context_and_thread_change_nothing(
    rates: dict[str, Decimal], tokens: dict[str, int], precision: int
) -> None:
    prices, call = custom(rates), usage("acme", "m", tokens)
    expected = (prices.exact(call, NOW), prices.quote(call, NOW), prices.breakdown(call, NOW))
    found: list[object] = []

    def elsewhere() -> None:
        with decimal.localcontext() as context:
            context.prec, context.rounding = precision, ROUND_DOWN
            context.traps[Inexact] = True
            fresh = custom(rates)
            found.append((fresh.exact(call, NOW), fresh.quote(call, NOW), fresh.breakdown(call, NOW)))

    elsewhere()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [expected, expected]


def test_the_locale_changes_nothing() -> None:
    call = Usage("openai", "gpt-4o-mini", input_tokens=1_234_567, output_tokens=89)
    expected = Catalogue().quote(call, NOW)
    before = locale.setlocale(locale.LC_ALL)
    for name in ("de_DE.UTF-8", "tr_TR.UTF-8", "C"):
        try:
            locale.setlocale(locale.LC_ALL, name)
        except locale.Error:
            continue
        try:
            assert Catalogue().quote(call, NOW) == expected
        finally:
            locale.setlocale(locale.LC_ALL, before)


# 12
@given(
    days=st.lists(st.dates(date(2024, 1, 1), date(2027, 1, 1)), min_size=1, max_size=5, unique=True),
    at=moments,
    data=st.data(),
)
def test_the_price_is_that_of_the_last_start_before_the_call(
    days: list[date], at: float, data: st.DataObject
) -> None:
    """Piecewise constant: the n-th price from the n-th start on, and none before the first."""
    days.sort()
    given_ = [
        PriceOverride("acme", "m", input=number + 1, output=0, since=day) for number, day in enumerate(days)
    ]
    prices = Catalogue(data.draw(st.permutations(given_)))
    starts = [datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() for day in days]
    call = Usage("acme", "m", input_tokens=1_000_000)
    for moment in (
        at,
        *starts,
        *(start - 0.001 for start in starts),
        *(start + 86_399 for start in starts),
        at,
    ):
        in_force = sum(start <= moment for start in starts)
        assert prices.exact(call, moment) == (Decimal(in_force) if in_force else None)


@given(offset=st.integers(-14 * 60, 14 * 60), hours=st.integers(-30, 30))
def test_starts_may_have_an_offset(offset: int, hours: int) -> None:
    zone = timezone(timedelta(minutes=offset))
    since = datetime(2026, 3, 29, 2, 30, tzinfo=zone)
    prices = Catalogue([PriceOverride("acme", "m", input=1, output=0, since=since)])
    call, moment = (
        Usage("acme", "m", input_tokens=1_000_000),
        (since + timedelta(hours=hours)).astimezone(UTC),
    )
    assert prices.exact(call, moment.timestamp()) == (Decimal(1) if hours >= 0 else None)


def test_a_price_change_of_the_data_at_midnight_utc() -> None:
    """o3 fell from $10 to $2 per million tokens of input on 2025-06-10."""
    midnight = datetime(2025, 6, 10, tzinfo=UTC).timestamp()
    call = Usage("openai", "o3", input_tokens=1_000_000)
    prices = Catalogue()
    for moment, cost in (
        (midnight - 0.0001, 10),
        (midnight, 2),
        (midnight - 1, 10),
        (midnight + 86_400 * 300, 2),
    ):
        assert prices.exact(call, moment) == cost
    assert prices.quote(call, midnight).version.endswith("2025-06-10")
    assert "2025" not in prices.quote(call, midnight - 1).version


def test_a_price_that_changes_by_the_hour() -> None:
    """deepseek-v4-pro doubles from 01:00 to 04:00 and 06:00 to 10:00 UTC."""
    prices, call = Catalogue(), Usage("deepseek", "deepseek-v4-pro", input_tokens=1_000_000)
    for hour, cost in (
        (0, "0.66"),
        (1, "1.32"),
        (3, "1.32"),
        (4, "0.66"),
        (5, "0.66"),
        (6, "1.32"),
        (9, "1.32"),
        (10, "0.66"),
    ):
        start = datetime(2026, 11, 3, hour, tzinfo=UTC).timestamp()
        assert prices.exact(call, start) == Decimal(cost)
        assert prices.exact(call, start + 3599.999) == Decimal(cost)
    later = datetime(2026, 11, 3, 3, tzinfo=timezone(timedelta(hours=2))).timestamp()  # 01:00 UTC
    assert prices.exact(call, later) == Decimal("1.32")


# 13
@given(rates=priced(), calls=st.lists(counts().map(apart), max_size=8), data=st.data())
def test_lines_add_up_in_any_order_and_grouping(
    rates: dict[str, Decimal], calls: list[dict[str, int]], data: st.DataObject
) -> None:
    prices = custom(rates)
    nanos = [prices.quote(usage("acme", "m", tokens), NOW).nanos or 0 for tokens in calls]
    total = sum(nanos)
    assert sum(data.draw(st.permutations(nanos))) == total
    cut = data.draw(st.integers(0, len(nanos)))
    assert sum(nanos[:cut]) + sum(nanos[cut:]) == total
    assert total == sum(ceil(rational(rates, tokens) * 10**9) for tokens in calls)


@given(rates=priced(), tokens=counts())
def test_the_breakdown_by_kind_adds_up(rates: dict[str, Decimal], tokens: dict[str, int]) -> None:
    prices, call = custom(rates), usage("acme", "m", tokens)
    parts, exact = prices.breakdown(call, NOW), prices.exact(call, NOW)
    assert parts is not None
    assert exact is not None
    assert sum(map(Fraction, parts.values())) == Fraction(exact)


# 14
@pytest.mark.parametrize(
    ("names", "model"),
    [
        (
            ["openai", "chatOpenAI", "ChatOpenAI", "CHATOPENAI", " openai "],
            "gpt-4o-mini",
        ),
        (
            [
                "google",
                "gemini",
                "Gemini",
                "chatGoogleGenerativeAI",
                "ChatGoogleGenerativeAI",
                "gcp.vertex_ai",
            ],
            "gemini-2.5-flash",
        ),
        (["azure", "azureChatOpenAI", "AzureChatOpenAI", "azure.ai.openai"], "gpt-4o"),
        (["aws", "bedrock", "awsChatBedrock", "aws.bedrock"], "anthropic.claude-3-haiku-20240307-v1:0"),
        (["x-ai", "xai", "chatXAI", "X_AI"], "grok-3"),
        (["mistral", "mistralai", "chatMistralAI", "mistral_ai"], "mistral-small-latest"),
    ],
)
def test_every_name_of_a_provider_costs_the_same(names: list[str], model: str) -> None:
    costs = {
        catalogue().quote(Usage(name, spelling, input_tokens=1_000, output_tokens=100), NOW)
        for name in names
        for spelling in (model, model.upper(), f" {model} ")
    }
    assert len(costs) == 1
    assert costs.pop().nanos


# 15
@settings(max_examples=60)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["quote", "override", "update"]), st.integers(0, 2), amounts), max_size=12
    ),
    ats=st.lists(moments, min_size=1, max_size=4),
)
def test_a_remembered_price_is_the_fresh_one(steps: list[tuple[str, int, Decimal]], ats: list[float]) -> None:
    """After any history of questions, overrides and data updates."""
    models = ["gpt-4o-mini", "o3", "unknown-model"]
    remembered = Catalogue()
    for step, number, amount in steps:
        if step == "override":
            since = date(2025, 1 + number, 1)
            remembered.override(PriceOverride("openai", models[number], input=amount, output=0, since=since))
        elif step == "update":
            remembered.update(
                PriceData([remembered.data.providers["openai"]], name="other") if number else PriceData()
            )
        for at in ats:
            call = Usage("openai", models[number], input_tokens=1_000_000, output_tokens=1)
            fresh = Catalogue(remembered.overrides, data=remembered.data)
            assert remembered.quote(call, at) == fresh.quote(call, at)
            assert remembered.nanos(call, at) == fresh.quote(call, at).nanos


# 17
@given(tokens=counts())
def test_a_price_of_nought_is_nought_and_known(tokens: dict[str, int]) -> None:
    for prices, call in (
        (custom({"input": Decimal(0), "output": Decimal(0)}), usage("acme", "m", tokens)),
        (catalogue(), usage("chatOllama", "llama3.3", tokens)),
        (catalogue(), usage("openrouter", "qwen/qwq-32b:free", tokens)),
    ):
        assert prices.quote(call, NOW).nanos == 0
        assert prices.exact(call, NOW) == 0
        assert prices.is_priced(call.provider, call.model, NOW)


# Cached audio: how many tokens are both is not reported, so the dearest possibility is taken.
@given(
    size=st.integers(1, 10**5),
    read=st.integers(0, 10**5),
    heard=st.integers(0, 10**5),
    rates=priced(),
)
def test_overlapping_parts_cost_at_most_what_is_quoted(
    size: int, read: int, heard: int, rates: dict[str, Decimal]
) -> None:
    """By trying the ends of what the overlap can be: the price is linear in it."""
    read, heard = min(read, size), min(heard, size)
    prices = custom(rates)
    call = Usage("acme", "m", input_tokens=size, cache_read_tokens=read, input_audio_tokens=heard)
    rate = {kind: Fraction(amount) for kind, amount in rates.items()}
    cached, audio = rate.get("cache_read", rate["input"]), rate.get("input_audio", rate["input"])

    def price(both: int) -> Fraction:
        fresh = size - read - heard + both
        return (
            fresh * rate["input"] + (read - both) * cached + (heard - both) * audio + both * audio
        ) / 10**6

    ends = [price(max(0, read + heard - size)), price(min(read, heard))]
    found = prices.exact(call, NOW)
    assert found is not None
    assert Fraction(found) == max(ends)
    assert prices.quote(call, NOW).note.startswith("upper bound") == (ends[0] != ends[1])


def test_cached_audio_by_hand() -> None:
    """gemini-2.5-flash-lite: text $0.10, audio $0.30, cached text $0.01, cached audio $0.03 per million.

    2 M of input, 1 M cached, 1 M audio: no overlap is dearest, $0.01 + $0.30; full overlap is $0.13.
    """
    call = Usage(
        "google",
        "gemini-2.5-flash-lite",
        input_tokens=2_000_000,
        cache_read_tokens=10**6,
        input_audio_tokens=10**6,
    )
    quote = catalogue().quote(call, NOW)
    assert quote.nanos == 310_000_000
    assert quote.note == "upper bound: cached audio is not reported apart"
    assert quote.upper
    assert catalogue().quote(replace(call, cache_read_tokens=0), NOW).note == ""
    whole = replace(call, input_tokens=10**6)  # every token is both
    assert catalogue().exact(whole, NOW) == Decimal("0.03")


full = {"input_tokens": 10, "output_tokens": 10}


@pytest.mark.parametrize(
    ("parts", "cost"),
    [
        # per million: input 1, output 2, read 3, write 4, hour 5, reasoning 6, audio 7, spoken 8
        ({"cache_write_tokens": 10, "input_audio_tokens": 10}, 40 + 70 + 20),
        ({"cache_write_1h_tokens": 10, "input_audio_tokens": 10}, 50 + 70 + 20),
        ({"cache_write_tokens": 5, "input_audio_tokens": 5}, 20 + 35 + 20),  # need not overlap
        ({"cache_write_tokens": 5, "input_audio_tokens": 8}, 20 + 56 + 20),
        ({"cache_read_tokens": 4, "cache_write_tokens": 6, "input_audio_tokens": 6}, 12 + 24 + 42 + 20),
        ({"reasoning_tokens": 10, "output_audio_tokens": 10}, 10 + 60 + 80),
        ({"reasoning_tokens": 6, "output_audio_tokens": 6}, 10 + 36 + 48),
        ({"reasoning_tokens": 4, "output_audio_tokens": 6}, 10 + 24 + 48),
    ],
)
def test_parts_that_overlap_pay_both_prices(parts: dict[str, int], cost: int) -> None:
    """In millionths of a dollar. In the fifth, all audio may have been written, which is the dearest."""
    rates = dict(
        zip(
            ("input", "output", *PARTS[:3], "reasoning", "input_audio", "output_audio"),
            range(1, 9),
            strict=True,
        )
    )
    prices, call = (
        custom({kind: Decimal(rate) for kind, rate in rates.items()}),
        usage("acme", "m", full | parts),
    )
    assert prices.exact(call, NOW) == Decimal(cost) / 10**6
    kinds = prices.breakdown(call, NOW)
    assert kinds is not None
    assert min(kinds.values()) > 0
    assert sum(kinds.values()) == Decimal(cost) / 10**6


@given(tokens=counts(), rates=priced(), more=st.dictionaries(st.sampled_from(PARTS), st.integers(0, 10**6)))
def test_no_cost_is_below_nought(
    tokens: dict[str, int], rates: dict[str, Decimal], more: dict[str, int]
) -> None:
    """However the parts overlap."""
    for kind in ("input_audio", "reasoning", "output_audio"):
        whole = "input_tokens" if kind == "input_audio" else "output_tokens"
        tokens[f"{kind}_tokens"] = min(tokens[whole], more.get(kind, 0))
    prices, call = custom(rates), usage("acme", "m", tokens)
    exact, parts = prices.exact(call, NOW), prices.breakdown(call, NOW)
    assert exact is not None
    assert parts is not None
    assert exact >= 0
    assert sum(map(Fraction, parts.values())) == Fraction(exact)


def test_the_tier_is_chosen_by_the_input_everywhere() -> None:
    """1 token in, 100 out: the tier above 10 is not reached. 100 in: it is."""
    tier = PriceTier(10, input=5, output=5, cache_read=1)
    prices = custom({"input": Decimal(1), "output": Decimal(2)}, tiers=(tier,))
    low, high = (Usage("acme", "m", input_tokens=size, output_tokens=100) for size in (1, 100))
    micro = Decimal("0.000001")
    assert prices.breakdown(low, NOW) == {"input": micro, "output": 200 * micro}
    assert prices.breakdown(high, NOW) == {"input": 500 * micro, "output": 500 * micro}
    for size, noted in ((10, False), (11, True)):
        call = Usage(
            "acme", "m", input_tokens=size, output_tokens=5, cache_read_tokens=2, input_audio_tokens=2
        )
        assert bool(prices.quote(call, NOW).note) == noted


@given(size=sizes, at=moments)
def test_time_and_size_never_make_it_raise(size: int, at: float) -> None:
    for provider, model in (("openai", "gpt-4o-mini"), ("nobody", "nothing"), ("deepseek", "deepseek-chat")):
        quote = catalogue().quote(Usage(provider, model, input_tokens=size), at)
        assert (quote.nanos is None) == (provider == "nobody")
