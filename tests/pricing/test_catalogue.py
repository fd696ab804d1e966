"""What the catalogue says beside the amount, what it loads and when, and its corrections."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TimeOfDateConstraint,
)

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.ports import Prices, Quote
from genops_ctx.core.records import Usage
from genops_ctx.pricing import catalogue as catalogue_module
from genops_ctx.pricing import updates
from genops_ctx.pricing.catalogue import Catalogue, default_catalogue
from genops_ctx.pricing.data import PriceData, read_providers
from genops_ctx.pricing.difference import changes
from genops_ctx.pricing.overrides import PriceOverride

NOW = datetime(2026, 11, 1, tzinfo=UTC).timestamp()


def at(*parts: int) -> float:
    return datetime(*parts, tzinfo=UTC).timestamp()  # type: ignore[arg-type,misc]


def only(model: ModelInfo) -> Catalogue:
    return Catalogue(data=PriceData([Provider("acme", "Acme", "x", models=[model])], name="test data"))


def model(prices: Any, name: str = "m") -> ModelInfo:
    return ModelInfo(name, ClauseEquals(name), prices=prices)


def test_it_is_what_the_core_asks_for() -> None:
    prices: Prices = Catalogue()
    assert prices.quote(Usage("ollama", "x"), NOW) == Quote(0, "local", "local model")


@pytest.mark.parametrize("when", [float("nan"), float("inf"), -1, 1e12, NOW * 1000, None, "now"])
def test_a_time_that_is_none_is_refused(when: Any) -> None:
    for prices in (Catalogue(), catalogue_with_answer()):
        with pytest.raises((ConfigurationError, TypeError), match=r"seconds since the epoch|not supported"):
            prices.quote(Usage("openai", "gpt-4o-mini"), when)


def catalogue_with_answer() -> Catalogue:
    prices = Catalogue()
    prices.quote(Usage("openai", "gpt-4o-mini"), NOW)
    return prices


CORRECTED = [
    # provider, model, when, what 1 M in + 1 M out cost, by the sources named in corrections.toml
    ("deepseek", "deepseek-chat", (2025, 9, 5, 15, 59), "1.37"),  # before: the data's day rate, 0.27 + 1.10
    ("deepseek", "deepseek-chat", (2025, 9, 5, 16, 0), "2.24"),  # 0.56 + 1.68
    ("deepseek", "deepseek-reasoner", (2025, 9, 28, 23, 59), "2.24"),
    ("deepseek", "deepseek-reasoner", (2025, 9, 29, 0, 0), "0.70"),  # 0.28 + 0.42
    ("deepseek", "deepseek-chat", (2026, 4, 23, 12, 0), "0.70"),
    ("deepseek", "deepseek-chat", (2026, 4, 24, 0, 0), "0.42"),  # V4 Flash: 0.14 + 0.28
    ("deepseek", "deepseek-chat", (2026, 9, 20, 0, 30), "0.75"),  # off-peak 0.15 + 0.60
    ("deepseek", "deepseek-chat", (2026, 9, 20, 1, 0), "1.5"),  # peak
    ("mistral", "mistral-large-latest", (2025, 12, 1), "8"),  # Large 2: 2 + 6
    ("mistral", "mistral-large-latest", (2025, 12, 2), "2"),  # Large 3: 0.5 + 1.5
    ("mistral", "mistral-large", (2026, 1, 1), "8"),  # only the moving name is corrected
]


@pytest.mark.parametrize(("provider", "name", "when", "cost"), CORRECTED)
def test_the_corrections(provider: str, name: str, when: tuple[int, ...], cost: str) -> None:
    call = Usage(provider, name, input_tokens=1_000_000, output_tokens=1_000_000)
    assert Catalogue().exact(call, at(*when)) == Decimal(cost)


def test_the_smaller_gemini_is_not_the_larger() -> None:
    """Half of Gemini 1.5 Flash: $0.0375 and $0.15 up to 128,000 tokens, twice that above."""
    prices = Catalogue()
    for size, cost in ((100_000, "0.00375"), (200_000, "0.015")):
        for name in ("gemini-1.5-flash-8b", "models/gemini-1.5-flash-8b-001"):
            assert prices.exact(Usage("gemini", name, input_tokens=size), NOW) == Decimal(cost)


def test_every_correction_says_where_it_comes_from() -> None:
    corrections = Catalogue().corrections
    assert {f"{row.provider}/{row.model}" for row in corrections} == {
        "deepseek/deepseek-chat",
        "deepseek/deepseek-reasoner",
        "mistral/mistral-large-latest",
        "google/gemini-1.5-flash-8b",
        "google/gemini-1.5-flash-8b-001",
        "google/gemini-1.5-flash-8b-latest",
    }
    assert all(row.source.startswith("https://") for row in corrections)
    quote = Catalogue().quote(Usage("deepseek", "deepseek-chat"), at(2025, 10, 1))
    assert quote.version == "correction 2025-09-29"


def test_the_version_says_which_price_was_used() -> None:
    prices = only(
        model(
            [
                ConditionalPrice(prices=ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(1))),
                ConditionalPrice(
                    StartDateConstraint(date(2026, 1, 1)),
                    prices=ModelPrice(input_mtok=Decimal(2), output_mtok=Decimal(1)),
                ),
            ]
        )
    )
    call = Usage("acme", "m", input_tokens=1_000_000)
    assert prices.quote(call, at(2025, 12, 31)) == Quote(10**9, "test data")
    assert prices.quote(call, at(2026, 1, 1)) == Quote(2 * 10**9, "test data 2026-01-01")


def test_a_daily_interval_may_pass_midnight_and_have_an_offset() -> None:
    """22:30 to 02:15 in a zone two hours east: 20:30 to 00:15 UTC."""
    from datetime import timedelta, timezone

    zone = timezone(timedelta(hours=2))
    night = TimeOfDateConstraint(time(22, 30, tzinfo=zone), time(2, 15, tzinfo=zone))
    prices = only(
        model(
            [
                ConditionalPrice(prices=ModelPrice(input_mtok=Decimal(2), output_mtok=Decimal(0))),
                ConditionalPrice(night, prices=ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(0))),
            ]
        )
    )
    call = Usage("acme", "m", input_tokens=1_000_000)
    for hour, minute, cost in (
        (20, 29, 2),
        (20, 30, 1),
        (23, 59, 1),
        (0, 0, 1),
        (0, 14, 1),
        (0, 15, 2),
        (12, 0, 2),
    ):
        start = at(2026, 3, 5, hour, minute)
        assert prices.exact(call, start) == cost
        assert prices.exact(call, start + 59.999) == cost


def test_what_cannot_be_compiled_is_asked_of_the_library() -> None:
    """A price key for text alone: 1,000 tokens of text at $3, 500 of audio at $7 per million."""
    prices = only(
        model(
            ModelPrice(
                input_mtok=Decimal(5),
                input_text_mtok=Decimal(3),
                input_audio_mtok=Decimal(7),
                output_mtok=Decimal(2),
            )
        )
    )
    call = Usage("acme", "m", input_tokens=1_000, output_tokens=10, input_audio_tokens=500)
    # the library counts text only where it is told; what is left of the input pays $5
    expected = Decimal(500 * 5 + 500 * 7 + 10 * 2) / 10**6
    assert prices.exact(call, NOW) == expected
    assert prices.nanos(call, NOW) == prices.quote(call, NOW).nanos == int(expected * 10**9)
    assert prices.quote(call, NOW).note == ""
    assert prices.breakdown(call, NOW) == {"total": expected}
    assert prices.rates("acme", "m", NOW) == ((0, {}),)
    # Parts that do not fit together are refused by the library: unknown, not an error.
    odd = Usage("acme", "m", input_tokens=10, output_tokens=1, reasoning_tokens=1, output_audio_tokens=1)
    assert prices.exact(odd, NOW) == Decimal("0.000052")


def test_the_library_is_told_every_count() -> None:
    """By hand, in millionths of a dollar; a price for text alone makes the library work it out."""
    rates = {
        "input": 1,
        "output": 2,
        "cache_read": 3,
        "cache_write": 4,
        "cache_write_1h": 5,
        "output_audio": 8,
    }
    row = ModelPrice(
        output_text_mtok=Decimal(9), **{f"{kind}_mtok": Decimal(rate) for kind, rate in rates.items()}
    )
    parts = {
        "cache_read_tokens": 10,
        "cache_write_tokens": 20,
        "cache_write_1h_tokens": 5,
        "output_audio_tokens": 3,
    }
    call = Usage("acme", "m", input_tokens=100, output_tokens=7, **parts)
    assert only(model(row)).exact(call, NOW) == Decimal(65 + 30 + 80 + 25 + 4 * 2 + 3 * 8) / 10**6
    row = ModelPrice(
        input_mtok=Decimal(1),
        input_text_mtok=Decimal(9),
        output_mtok=Decimal(2),
        output_reasoning_mtok=Decimal(6),
    )
    call = Usage("acme", "m", input_tokens=100, output_tokens=7, reasoning_tokens=5)
    assert only(model(row)).exact(call, NOW) == Decimal(100 + 2 * 2 + 5 * 6) / 10**6


def test_usage_the_library_wants_told_more_of_has_no_price() -> None:
    """Cached audio has a price of its own here, beside one for text: how many tokens were both?"""
    keys = ("input_mtok", "input_text_mtok", "input_audio_mtok", "cache_read_mtok", "output_mtok")
    more = ("cache_text_read_mtok", "cache_audio_read_mtok")
    prices = only(model(ModelPrice(**dict.fromkeys((*keys, *more), Decimal(1)))))
    call = Usage("acme", "m", input_tokens=10, cache_read_tokens=5, input_audio_tokens=5)
    assert prices.quote(call, NOW).nanos is None
    assert prices.exact(call, NOW) is None
    assert prices.breakdown(call, NOW) is None
    assert prices.nanos(call, NOW) is None


def test_a_row_without_prices_is_free_and_says_so() -> None:
    prices = only(model(ModelPrice()))
    assert prices.quote(Usage("acme", "m", input_tokens=5), NOW) == Quote(0, "test data", "free of charge")


def test_a_row_billed_by_the_hour_has_no_price_for_tokens() -> None:
    prices = only(model(ModelPrice(audio_hours=Decimal(1))))
    quote = prices.quote(Usage("acme", "m", input_tokens=5), NOW)
    assert quote == Quote(None, "test data", "this model is not billed by the token: audio_hours")
    assert prices.nanos(Usage("acme", "m", input_tokens=5), NOW) is None
    assert prices.breakdown(Usage("acme", "m"), NOW) is None
    assert prices.rates("acme", "m", NOW) is None


def test_rates_for_people() -> None:
    tiers = Catalogue().rates("gemini", "gemini-2.5-pro", NOW)
    assert tiers == (
        (0, {"input": Decimal("1.25"), "output": Decimal(10), "cache_read": Decimal("0.125")}),
        (200_000, {"input": Decimal("2.5"), "output": Decimal(15), "cache_read": Decimal("0.25")}),
    )
    sonar = Catalogue().rates("perplexity", "sonar", NOW)
    assert sonar == ((0, {"input": Decimal(1), "output": Decimal(1), "request": Decimal("0.012")}),)


def test_the_id_a_name_is_listed_under() -> None:
    assert Catalogue().listed_as("chatOpenAI", "GPT-4o-2024-08-06") == "gpt-4o"
    assert Catalogue().listed_as("openai", "Nothing") == "nothing"
    assert Catalogue().provider_of("chatAnthropic") == "anthropic"


def test_a_reseller_s_models_are_those_of_the_maker() -> None:
    """Azure's own rows come first, then OpenAI's."""
    assert Catalogue().exact(Usage("azure", "gpt-4.1", input_tokens=1_000_000), NOW) == 2


def test_compact_dates_are_read() -> None:
    assert Catalogue().listed_as("openai", "gpt-5.2-20251211") == "gpt-5.2"


def test_unknown_names_are_remembered_but_not_without_end() -> None:
    prices = Catalogue(data=PriceData([], name="none"))
    for number in range(catalogue_module._MISSES + 10):
        assert prices.quote(Usage("acme", f"m{number}"), NOW).nanos is None
    assert len(prices._entries) <= catalogue_module._MISSES


def test_a_name_never_makes_the_note_long() -> None:
    note = Catalogue().quote(Usage("openai", "x" * 10_000), NOW).note
    assert len(note) < 300


def test_many_threads_get_one_answer() -> None:
    prices, found = Catalogue(), []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        found.append(prices.quote(Usage("openai", "gpt-4o-mini", input_tokens=1_000_000), NOW).nanos)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [150_000_000] * 8


def test_an_override_counts_at_once_while_others_ask() -> None:
    """However the answers of other threads interleave with it, none of them outlives it."""
    prices, stop = Catalogue(), threading.Event()
    call = Usage("openai", "gpt-4o-mini", input_tokens=1_000_000)

    def ask() -> None:
        while not stop.is_set():
            prices.nanos(call, NOW)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for dollars in range(1, 200):
            prices.override(PriceOverride("openai", "gpt-4o-mini", input=dollars, output=0))
            assert prices.nanos(call, NOW) == prices.quote(call, NOW).nanos == dollars * 10**9
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_the_process_has_one_catalogue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text('[[price]]\nprovider = "acme"\nmodel = "m"\ninput = "7"\noutput = "0"\n')
    monkeypatch.setenv("GENOPS_PRICES", str(path))
    monkeypatch.setattr(catalogue_module, "_default", None)
    prices = default_catalogue()
    assert prices.exact(Usage("acme", "m", input_tokens=1_000_000), NOW) == 7
    assert default_catalogue() is prices


def test_nothing_is_loaded_before_it_is_needed() -> None:
    """Not for a local model or a price of one's own either: the data takes 0.2 s."""
    program = (
        "import sys, time\n"
        "from genops_ctx.core.records import Usage\n"
        "from genops_ctx.pricing.catalogue import Catalogue\n"
        "from genops_ctx.pricing.overrides import PriceOverride\n"
        "prices = Catalogue([PriceOverride('acme', 'm', input=1, output=1)])\n"
        "assert prices.quote(Usage('ollama', 'x'), 1e9).nanos == 0\n"
        "assert prices.quote(Usage('acme', 'm', input_tokens=1), 1e9).nanos == 1000\n"
        "assert 'genai_prices' not in sys.modules, 'loaded early'\n"
        "assert prices.is_priced('openai', 'gpt-4o-mini', 1.7e9)\n"
        "assert 'genai_prices' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


RAW = [
    {
        "id": "acme",
        "name": "Acme",
        "api_pattern": "x",
        "models": [
            {"id": "m", "match": {"equals": "m"}, "prices": {"input_mtok": "3", "output_mtok": "4"}},
            {"id": "heard", "match": {"equals": "heard"}, "prices": {"audio_hours": "3"}},
            {
                "id": "tall",
                "match": {"equals": "tall"},
                "prices": {
                    "input_mtok": {"base": "1", "tiers": [{"start": 10, "price": "2"}]},
                    "output_mtok": "4",
                },
            },
        ],
    }
]


def test_fetched_data_is_used_until_it_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GENOPS_PRICE_DATA", str(tmp_path / "deep" / "prices.json"))
    assert updates.load_data() is None
    path = updates.save_data(json.dumps(RAW).encode())
    os.utime(path, (NOW, NOW))
    call = Usage("acme", "m", input_tokens=1_000_000)
    assert Catalogue().quote(call, NOW) == Quote(3 * 10**9, "genai-prices data of 2026-11-01")
    assert Catalogue(updated=False).exact(call, NOW) is None
    path.unlink()
    assert Catalogue().exact(call, NOW) is None


def test_fetched_data_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not passed over: the prices would be older than the user believes."""
    path = tmp_path / "prices.json"
    monkeypatch.setenv("GENOPS_PRICE_DATA", str(path))
    path.write_text("{")
    with pytest.raises(ConfigurationError, match=r"prices\.json: .*prices update, or remove the file"):
        updates.load_data()
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        updates.load_data()
    monkeypatch.setenv("GENOPS_PRICE_DATA", __file__ + "/prices.json")
    assert updates.load_data() is None


def test_where_fetched_data_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GENOPS_PRICE_DATA", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert updates.data_path() == tmp_path / "genops_ctx" / "prices.json"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert updates.data_path() == Path.home() / ".local" / "state" / "genops_ctx" / "prices.json"


@pytest.mark.parametrize("raw", [b"", b"{", b"3", b'{"id": 1}', b'[{"id": "x"}]', b"\xff"])
def test_data_that_is_not_data_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raw: bytes
) -> None:
    monkeypatch.setenv("GENOPS_PRICE_DATA", str(tmp_path / "prices.json"))
    with pytest.raises(ConfigurationError, match="not a price file"):
        updates.save_data(raw)
    assert not (tmp_path / "prices.json").exists()


def test_data_is_fetched_from_where_it_is_published(httpserver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    httpserver.expect_request("/data.json").respond_with_json(RAW)
    assert json.loads(updates.fetch_data(httpserver.url_for("/data.json"))) == RAW
    httpserver.expect_request("/gone.json").respond_with_data("", status=404)
    with pytest.raises(OSError, match="404"):
        updates.fetch_data(httpserver.url_for("/gone.json"))
    size = len(updates.fetch_data(httpserver.url_for("/data.json")))
    monkeypatch.setattr(updates, "_MOST", size)
    assert len(updates.fetch_data(httpserver.url_for("/data.json"))) == size
    monkeypatch.setattr(updates, "_MOST", size - 1)
    with pytest.raises(ConfigurationError, match="larger"):
        updates.fetch_data(httpserver.url_for("/data.json"))


def test_what_changes_between_two_states_of_the_data() -> None:
    old = PriceData(read_providers(json.dumps(RAW).encode()), name="old")
    assert list(changes(old, list(old.providers.values()), NOW)) == []
    later = json.loads(json.dumps(RAW))
    later[0]["models"][0]["prices"]["input_mtok"] = "5"
    later[0]["models"][1]["id"] = "new"
    later[0]["models"][2]["prices"]["input_mtok"]["tiers"][0]["price"] = "9"
    found = [
        (change.model, change.text)
        for change in changes(old, read_providers(json.dumps(later).encode()), NOW)
    ]
    assert found == [
        ("heard", "gone, was not billed by the token"),
        ("m", "input $3, output $4 -> input $5, output $4"),
        ("new", "new, not billed by the token"),
        (
            "tall",
            "input $1, output $4; above 10: input $2, output $4 -> "
            "input $1, output $4; above 10: input $9, output $4",
        ),
    ]


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("ft:gpt-4o-mini-2024-07-18:acme::abc", "ft:gpt-4o-mini"),  # what follows is the fine-tune's own name
        ("gpt-4o-mini-2024-07-18.ft-abc", "gpt-4o-mini-2024-07-18.ft-"),
        ("gpt-4o-audio-preview-2025-06-03", "gpt-4o-audio-preview"),
        ("gpt-5.6-luna-2026-08-01", "gpt-5.6-luna"),
        ("gpt-4o-mini-audio-nonsense", "gpt-4o-mini-audio-nonsense"),
    ],
)
def test_what_may_surround_a_known_name(name: str, listed: str) -> None:
    assert Catalogue().listed_as("openai", name) == listed


@pytest.mark.parametrize(
    ("provider", "name", "listed"),
    [
        ("anthropic", "claude-3-5-sonnet-20241022", "claude-3-5-sonnet"),
        ("google", "claude-opus-4-5@20251101", "claude-opus-4-5"),
        ("google", "gemini-1.5-flash-002", "gemini-1.5-flash"),
        ("google", "gemini-2.0-flash-001", "gemini-2.0-flash"),  # the row ends within the number: "…-0"
        ("google", "gemini-3.5-flash-001", "gemini-3.5-flash"),
        ("google", "gemini-2.5-flash-lite-preview-09-2025", "gemini-2.5-flash-lite"),
        ("google", "gemma-3n-e4b-it", "gemma-3n"),
        ("google", "gemma-3-27b", "gemma-3"),
        ("anthropic", "claude-sonnet-4-20250514", "claude-sonnet-4-0"),
        ("azure", "gpt-4o-2024-11-20", "gpt-4o"),
        ("azure", "claude-sonnet-4-5", "claude-sonnet-4-5"),
        ("aws", "anthropic.claude-opus-4-6-v1", "regional.anthropic.claude-opus-4-6-v1:0"),
        ("aws", "amazon.nova-pro-v1:0:300k", "amazon.nova-pro-v1:0"),
        ("aws", "mistral.mistral-7b-instruct-v0:2", "mistral.mistral-7b-instruct-v0:2"),
        ("google", "gemini-2.5-pro-preview-05-06", "gemini-2.5-pro"),
        ("google", "gemma-3-27b-it", "gemma-3"),
        (
            "aws",
            "eu.anthropic.claude-3-haiku-20240307-v1:0",
            "regional.anthropic.claude-3-haiku-20240307-v1:0",
        ),
        ("aws", "global.anthropic.claude-opus-4-5-20251101-v1:0", "global.anthropic.claude-opus-4-5-v1:0"),
        ("aws", "apac.amazon.nova-pro-v1:0", "amazon.nova-pro-v1:0"),
        ("aws", "us.acme.nova.amazon.nova-pro-v1:0", "us.acme.nova.amazon.nova-pro-v1:0"),
    ],
)
def test_dates_versions_and_regions_do_not_change_the_model(provider: str, name: str, listed: str) -> None:
    assert Catalogue().listed_as(provider, name) == listed


def test_a_remembered_price_ends_where_its_period_ends() -> None:
    """Asked on both sides of a change in turn, by every way to ask; $10, then $2 per million."""
    change, prices = at(2025, 6, 10), Catalogue()
    call = Usage("openai", "o3", input_tokens=1_000_000)
    for when, cost in ((change - 1, 10), (change, 2), (change - 1, 10), (change + 1, 2), (change - 0.5, 10)):
        for _ in range(2):
            quote = prices.quote(call, when)
            assert (quote.nanos, prices.nanos(call, when), prices.exact(call, when)) == (
                cost * 10**9,
                cost * 10**9,
                cost,
            )
        prices.nanos(call, change if cost == 10 else change - 1)  # leave the other side remembered


def test_the_first_and_the_last_moment() -> None:
    call = Usage("openai", "gpt-4o-mini", input_tokens=1)
    assert Catalogue().quote(call, 0).nanos == 150
    last = at(9999, 1, 1)
    assert Catalogue().quote(call, last - 1).nanos == 150
    with pytest.raises(ConfigurationError, match="seconds since the epoch"):
        Catalogue().quote(call, last)


def test_a_price_of_one_s_own_is_for_its_provider_only() -> None:
    prices = Catalogue(
        [
            PriceOverride("acme", "gpt-4o-mini", input=9, output=9),
            PriceOverride("acme", "*", input=9, output=9),
        ]
    )
    assert prices.exact(Usage("openai", "gpt-4o-mini", input_tokens=1_000_000), NOW) == Decimal("0.15")
    assert prices.exact(Usage("nobody", "m", input_tokens=1_000_000), NOW) is None


def test_a_name_that_is_not_listed_stays_without_its_vendor() -> None:
    assert Catalogue().listed_as("openai", "openai/Nothing") == "nothing"
