"""The user's prices: what is accepted, what a file holds, which one counts."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from math import ceil, inf, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.records import Usage
from genops_ctx.pricing.catalogue import Catalogue
from genops_ctx.pricing.overrides import (
    PriceOverride,
    PriceTier,
    add_override,
    load_overrides,
    moment,
    overrides_path,
    save_overrides,
)

from .strategies import amounts

NOW = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
MILLION = Usage("acme", "m", input_tokens=1_000_000)


def test_every_way_to_say_when() -> None:
    instant = datetime(2026, 1, 31, tzinfo=UTC)
    for when in (
        date(2026, 1, 31),
        instant,
        "2026-01-31",
        "2026-01-31T01:00:00+01:00",
        1769817600,
        1769817600.0,
    ):
        assert moment(when) == instant.timestamp()
    assert moment(None) == -inf


def test_an_error_of_a_time_says_which() -> None:
    for when in ("2026-01-31T00:00:00", "soon", 10**13, True):
        with pytest.raises(ConfigurationError, match=r"^the end "):
            moment(when, what="the end")


@pytest.mark.parametrize(
    "when",
    [
        "soon",
        1_767_225_600_000,
        -(10**12),
        10**400,
        -inf,
        1e300,
        "2026-13-01",
        "2026-01-31T00:00:00",
        datetime(2026, 1, 31),
        nan,
        inf,
        True,
        [],
        "2026-01-31Tx",
    ],
)
def test_what_is_not_a_time_is_refused(when: Any) -> None:
    with pytest.raises(ConfigurationError, match="since"):
        moment(when)


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"provider": "", "model": "m", "input": 1, "output": 1}, "needs a provider"),
        ({"provider": "p", "model": " ", "input": 1, "output": 1}, "needs a model"),
        ({"provider": "p", "model": 3, "input": 1, "output": 1}, "needs a model"),
        ({"input": 1}, "needs input and output"),
        ({"output": 1}, "needs input and output"),
        ({}, "needs input and output"),
        ({"input": -1, "output": 1}, "input of p/m must not be negative"),
        ({"input": "NaN", "output": 1}, "finite"),
        ({"input": True, "output": 1}, "not bool"),
        ({"input": 1, "output": "cheap"}, "output of p/m is not a number"),
        ({"input": 1, "output": 1, "per_request": "x"}, "per_request"),
        ({"input": 1, "output": 1, "since": "2026-02-01", "until": "2026-02-01"}, "must end after"),
        ({"input": 1, "output": 1, "priced_as": "other"}, "both priced_as and amounts"),
        ({"tiers": (PriceTier(5, input=1),), "priced_as": "other"}, "both priced_as and amounts"),
        ({"input": 1, "output": 1, "tiers": (PriceTier(0, input=1),)}, "whole number of tokens"),
        ({"input": 1, "output": 1, "tiers": (PriceTier(1.5, input=1),)}, "whole number of tokens"),  # type: ignore[arg-type]
        (
            {"input": 1, "output": 1, "tiers": (PriceTier(7, input=1), PriceTier(7, input=2))},
            "two tiers of p/m",
        ),
        ({"input": 1, "output": 1, "tiers": ({"above": 7},)}, "must be PriceTiers"),
        ({"input": 1, "output": 1, "tiers": 7}, "must be PriceTiers"),
        ({"input": 1, "output": 1, "source": 7}, "source of the price of p/m must be text"),
        ({"priced_as": 7}, "priced_as of the price of p/m must be text"),
        ({"input": Decimal("0." + "1" * 31), "output": 1}, "input of p/m has more than 30 digits"),
        ({"input": 1, "output": "1E-31"}, "output of p/m has more than 30 digits"),
        ({"input": 1, "output": 1, "per_request": "1E-999999"}, "per_request of p/m has more than 30"),
    ],
)
def test_a_price_that_is_none_is_refused(given_: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        PriceOverride(**{"provider": "p", "model": "m"} | given_)


def test_an_exact_name_goes_before_every_model() -> None:
    prices = Catalogue(
        [
            PriceOverride("acme", "m", input=1, output=0, since="2026-01-01"),
            PriceOverride("acme", "*", input=2, output=0, since="2026-06-01"),
        ]
    )
    assert prices.exact(MILLION, NOW) == 1
    assert prices.exact(Usage("Acme", "other", input_tokens=1_000_000), NOW) == 2
    before = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
    assert prices.exact(MILLION, before) is None


def test_a_price_may_end() -> None:
    until = datetime(2026, 6, 1, tzinfo=UTC)
    prices = Catalogue([PriceOverride("openai", "gpt-4o-mini", input=9, output=9, until=until)])
    call = Usage("openai", "gpt-4o-mini", input_tokens=1_000_000)
    assert prices.exact(call, until.timestamp() - 0.5) == 9
    assert prices.exact(call, until.timestamp()) == Decimal("0.15")
    assert prices.exact(call, until.timestamp() - 0.5) == 9


def test_the_last_given_counts_where_two_start_at_once() -> None:
    one, two = (PriceOverride("acme", "m", input=amount, output=0, since="2026-01-01") for amount in (1, 2))
    assert Catalogue([one, two]).exact(MILLION, NOW) == 2
    assert Catalogue([two, one]).exact(MILLION, NOW) == 1


def test_the_user_s_price_goes_before_a_correction_and_a_local_model() -> None:
    prices = Catalogue(
        [
            PriceOverride("deepseek", "deepseek-chat", input=1, output=0),
            PriceOverride("chatOllama", "*", input=3, output=0),
        ]
    )
    assert prices.exact(Usage("chatDeepseek", "deepseek-chat", input_tokens=1_000_000), NOW) == 1
    assert prices.exact(Usage("ollama", "llama3", input_tokens=1_000_000), NOW) == 3
    assert prices.quote(Usage("ollama", "llama3"), NOW).version == "override"


def test_a_price_may_be_that_of_another_model() -> None:
    prices = Catalogue([PriceOverride("azure", "my-deployment", priced_as="gpt-4o", since="2026-01-01")])
    call = Usage("azureChatOpenAI", "my-deployment", input_tokens=1_000_000)
    assert prices.exact(call, NOW) == Decimal("2.50")
    assert prices.quote(call, NOW).version.startswith("override 2026-01-01, as gpt-4o in genai-prices")
    missing = Catalogue([PriceOverride("azure", "my-deployment", priced_as="gpt-nothing")])
    assert missing.exact(call, NOW) is None


def test_a_kind_that_a_tier_leaves_out_costs_what_it_did_in_the_tier_below() -> None:
    tiers = (PriceTier(10, input=2, cache_read="0.5"), PriceTier(20, input=3))
    prices = Catalogue([PriceOverride("acme", "m", input=1, output=0, cache_read="0.1", tiers=tiers)])
    for size, cost in ((10, "0.1"), (20, "0.5"), (21, "0.5")):
        call = Usage("acme", "m", input_tokens=size, cache_read_tokens=size)
        assert prices.exact(call, NOW) == Decimal(cost) * size / 10**6


def test_a_list_of_tiers_will_do() -> None:
    price = PriceOverride("acme", "m", input=1, output=0, tiers=[PriceTier(5, input=2)])  # type: ignore[arg-type]
    assert Catalogue([price]).exact(Usage("acme", "m", input_tokens=10), NOW) == Decimal("0.00002")


def test_the_longest_price_is_exact() -> None:
    """30 digits, and 30 decimal places: the oracle is a fraction."""
    for price in ("1." + "7" * 29, "0." + "3" * 30, "1E-30"):
        prices = Catalogue([PriceOverride("acme", "m", input=price, output=0)])
        found = prices.exact(Usage("acme", "m", input_tokens=999_999_999_989), NOW)
        assert found is not None
        assert Fraction(found) == Fraction(price) * 999_999_999_989 / 10**6


@pytest.mark.parametrize("name", ["gpt-4o", "openai/gpt-4o", " OpenAI/GPT-4o "])
def test_a_price_may_be_given_by_any_name_of_the_model(name: str) -> None:
    prices = Catalogue([PriceOverride("openai", name, input=9, output=9)])
    for called in ("gpt-4o", "openai/gpt-4o"):
        assert prices.exact(Usage("openai", called, input_tokens=1_000_000), NOW) == 9
    for other in ("gpt-4o-mini", "azure/gpt-4o"):
        assert prices.exact(Usage("openai", other, input_tokens=1_000_000), NOW) != 9


def test_priced_as_takes_the_price_that_the_other_model_really_has() -> None:
    """Corrected or given, at the time of the call; never that of the stale row beneath."""
    day = datetime(2025, 10, 1, tzinfo=UTC).timestamp()
    mine = PriceOverride("deepseek", "mine", priced_as="deepseek-chat")
    call = Usage("deepseek", "mine", input_tokens=1_000_000)
    assert Catalogue([mine]).exact(call, day) == Decimal("0.28")  # V3.2-Exp, by the correction
    for at in (day, NOW, day - 20 * 86_400):
        chat = Catalogue().exact(Usage("deepseek", "deepseek-chat", input_tokens=1_000_000), at)
        assert Catalogue([mine]).exact(call, at) == chat
    given_ = PriceOverride("deepseek", "deepseek-chat", input=7, output=0, since="2026-01-01")
    both = Catalogue([mine, given_])
    assert both.exact(call, NOW) == 7
    assert both.exact(call, day) == Decimal("0.28")
    assert both.exact(call, NOW) == 7
    assert both.quote(call, NOW).version == "override, as deepseek-chat in override 2026-01-01"


def test_two_models_priced_as_each_other_have_the_prices_of_the_data() -> None:
    prices = Catalogue(
        [
            PriceOverride("openai", "gpt-4o", priced_as="gpt-4o-mini"),
            PriceOverride("openai", "gpt-4o-mini", priced_as="openai/gpt-4o"),
        ]
    )
    calls = [Usage("openai", name, input_tokens=1_000_000) for name in ("gpt-4o", "gpt-4o-mini")]
    assert [prices.exact(call, NOW) for call in calls] == [Decimal("0.15"), Decimal("2.50")]


def test_a_price_is_added_and_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    written = (
        '# ours, by contract 7\n[[price]]\nprovider = "acme"\nmodel = ["m", "n"]\ninput = 1\noutput = 2\n'
    )
    path.write_text(written)
    add_override(path, PriceOverride("acme", "o", input=3, output=4))
    assert path.read_text().startswith(written)
    assert [(one.model, one.input) for one in load_overrides(path)] == [("m", 1), ("n", 1), ("o", "3")]
    # One that is replaced has to go, and comments with it.
    add_override(path, PriceOverride("ACME", "M", input=5, output=6))
    assert [(one.model.lower(), one.input) for one in load_overrides(path)] == [
        ("n", "1"),
        ("o", "3"),
        ("m", "5"),
    ]


def test_a_price_is_added_to_an_array_and_to_no_file(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    add_override(path, PriceOverride("acme", "m", input=1, output=2))
    assert [one.model for one in load_overrides(path)] == ["m"]
    path.write_text('price = [{ provider = "acme", model = "m", input = 1, output = 2 }]\n')
    add_override(path, PriceOverride("acme", "o", input=3, output=4))
    assert [one.model for one in load_overrides(path)] == ["m", "o"]


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    with pytest.raises(UnicodeError):
        save_overrides(path, [PriceOverride("acme", "\ud800", input=1, output=1)])
    assert list(tmp_path.iterdir()) == []


def test_a_byte_order_mark_is_no_price(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_bytes(b'\xef\xbb\xbf[[price]]\nprovider = "a"\nmodel = "m"\ninput = 1\noutput = 1\n')
    assert [one.model for one in load_overrides(path)] == ["m"]


def test_a_file_that_is_no_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path, tmp_path / "latin.toml"):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            load_overrides(path)


def test_per_request_fees_are_added_once_per_call() -> None:
    prices = Catalogue([PriceOverride("acme", "m", input=0, output=0, per_request="0.012")])
    assert prices.exact(Usage("acme", "m"), NOW) == Decimal("0.012")
    listed = Catalogue().exact(Usage("perplexity", "sonar"), NOW)
    assert listed == Decimal("0.012")  # $12 per 1,000 requests


optional = st.none() | amounts
tiers = st.builds(PriceTier, above=st.integers(1, 10**9), input=amounts, output=amounts, reasoning=optional)
overrides = st.builds(
    PriceOverride,
    provider=st.text(min_size=1, max_size=12).filter(str.strip),
    model=st.text(min_size=1, max_size=12).filter(str.strip),
    input=amounts,
    output=amounts,
    cache_read=optional,
    cache_write_1h=optional,
    per_request=optional,
    tiers=st.lists(tiers, max_size=3, unique_by=lambda tier: tier.above).map(tuple),
    since=st.none() | st.dates(date(2000, 1, 1), date(2100, 1, 1)),
    source=st.text(max_size=20),
)


@given(st.lists(overrides, max_size=4))
def test_a_file_keeps_prices_exactly(
    tmp_path_factory: pytest.TempPathFactory, prices: list[PriceOverride]
) -> None:
    path = tmp_path_factory.mktemp("prices") / "deep" / "prices.toml"
    save_overrides(path, prices)
    read = load_overrides(path)
    assert [(p.provider, p.model, p.source, p.start, p.end) for p in read] == [
        (p.provider, p.model, p.source, p.start, p.end) for p in prices
    ]
    for old, new in zip(prices, read, strict=True):
        assert old.compiled().rates() == new.compiled().rates()
    assert [child.name for child in path.parent.iterdir()] == ["prices.toml"]


def test_a_file_that_is_not_there_holds_no_price(tmp_path: Path) -> None:
    assert load_overrides(tmp_path / "none.toml") == []
    assert load_overrides(Path(__file__) / "none.toml") == []


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(
        '[[price]]\nprovider = "acme"\nmodel = ["m", "n"]\nsince = 2026-01-01\ninput = 0.1\noutput = 3\n'
        'tiers = [{ above = 100, input = "0.2", output = "6" }]\nchecked = 2026-01-02\n'
        '[[price]]\nprovider = "acme"\nmodel = "o"\nsince = 2026-01-01T00:00:00+02:00\npriced_as = "m"\n'
    )
    first, second, third = load_overrides(path)
    assert (first.model, second.model, first.input) == ("m", "n", Decimal("0.1"))
    assert first.start - third.start == 2 * 3600
    prices = Catalogue([first])
    assert prices.exact(Usage("acme", "m", input_tokens=100), NOW) == Decimal("0.00001")
    assert prices.exact(Usage("acme", "m", input_tokens=101, output_tokens=1), NOW) == Decimal("0.0000262")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("price = [", "is not TOML"),
        ("price = 3", r"\[\[price\]\] tables"),
        ("price = [1]", r"\[\[price\]\] tables"),
        ("[[price]]\nprovidr = 'x'", "price 1: unknown key 'providr'"),
        ("[[price]]\nmodel = 'x'\ninput = 1\noutput = 1", "price 1: a price needs provider"),
        ("[[price]]\nprovider = 'x'\ninput = 1\noutput = 1", "price 1: a price needs a model"),
        (
            "[[price]]\nprovider = 'x'\nmodel = 'y'\ninput = 1\noutput = 1\ntiers = [{ abov = 1 }]",
            "tiers are tables",
        ),
        ("[[price]]\nprovider = 'x'\nmodel = 'y'\ninput = 1\noutput = 1\ntiers = 7", "tiers are tables"),
        ("[[price]]\nprovider = 'x'\nmodel = 'y'\ninput = 1\noutput = 1\ntiers = [1]", "tiers are tables"),
        (
            "[[price]]\nprovider = 'x'\nmodel = 'y'\ninput = 1\noutput = 1\ntiers = [{ input = 1 }]",
            "a tier needs above",
        ),
        (
            "[[price]]\nprovider = 'x'\nmodel = 'y'\ninput = 'x'\noutput = 1",
            "prices.toml, price 1: input of x/y",
        ),
    ],
)
def test_a_file_that_cannot_be_read_says_where(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        load_overrides(path)


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GENOPS_PRICES", str(tmp_path / "mine.toml"))
    assert overrides_path() == tmp_path / "mine.toml"
    monkeypatch.delenv("GENOPS_PRICES")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert overrides_path() == tmp_path / "genops_ctx" / "prices.toml"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert overrides_path() == Path.home() / ".config" / "genops_ctx" / "prices.toml"


def test_rates_of_every_kind_by_tier() -> None:
    """Kinds that cost what their whole costs are left out."""
    prices = Catalogue(
        [
            PriceOverride(
                "acme", "m", input=1, output=2, cache_read=3, cache_write=4, cache_write_1h=5, reasoning=6,
                input_audio=7, output_audio=8, per_request=9,
                tiers=(PriceTier(10, input=11, output=12, reasoning=12, cache_read=11),),
            ),
        ]
    )  # fmt: skip
    common = {"cache_write": 4, "cache_write_1h": 5, "input_audio": 7, "output_audio": 8, "request": 9}
    assert prices.rates("acme", "m", NOW) == (
        (0, {"input": 1, "output": 2, "cache_read": 3, "reasoning": 6, **common}),
        (10, {"input": 11, "output": 12, **common}),
    )


def test_a_breakdown_by_hand() -> None:
    """10 of each kind, of 100 in and 100 out; what is left of the wholes pays the whole's price."""
    prices = Catalogue(
        [
            PriceOverride(
                "acme", "m", input=1, output=2, cache_read=3, cache_write=4, cache_write_1h=5, reasoning=6,
                input_audio=7, output_audio=8, per_request=9,
            ),
        ]
    )  # fmt: skip
    call = Usage(
        "acme", "m", input_tokens=100, output_tokens=100, cache_write_tokens=10, cache_write_1h_tokens=10,
        reasoning_tokens=10, input_audio_tokens=10, output_audio_tokens=10,
    )  # fmt: skip
    micro = Decimal("0.000001")
    assert prices.breakdown(call, NOW) == {
        "input": 70 * micro,
        "cache_write": 40 * micro,
        "cache_write_1h": 50 * micro,
        "input_audio": 70 * micro,
        "output": 160 * micro,
        "reasoning": 60 * micro,
        "output_audio": 80 * micro,
        "request": 9,
    }
    # All of 10 tokens are both cached and audio: they cost what audio costs.
    both = Usage("acme", "m", input_tokens=10, cache_read_tokens=10, input_audio_tokens=10)
    assert prices.breakdown(both, NOW) == {"cached_audio": 70 * micro, "request": 9}


def test_the_largest_call_is_exact_to_the_last_nano_dollar() -> None:
    """Far past what a float can hold: the oracle is a fraction."""
    for tokens, price in ((10**12 - 1, "999.999999"), (10**12, "0.333333333333"), (999_999_999_999, "1E-12")):
        prices = Catalogue([PriceOverride("acme", "m", input=price, output=0)])
        call = Usage("acme", "m", input_tokens=tokens)
        expected = ceil(Fraction(price) * tokens * 1000)
        assert prices.nanos(call, NOW) == prices.quote(call, NOW).nanos == expected


def test_a_small_fee_and_a_round_price_stay_whole_numbers() -> None:
    small = Catalogue([PriceOverride("acme", "m", input=0, output=0, per_request="1.5E-12")])
    assert small.exact(Usage("acme", "m"), NOW) == Decimal("1.5E-12")
    assert small.nanos(Usage("acme", "m"), NOW) == 1
    whole = Catalogue([PriceOverride("acme", "m", input=10, output=100)])
    nanos = whole.nanos(Usage("acme", "m", input_tokens=10**12, output_tokens=10**12), NOW)
    assert type(nanos) is int
    assert nanos == 110_000_000 * 10**9
