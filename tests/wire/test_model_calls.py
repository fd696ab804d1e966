from __future__ import annotations

from typing import Any

import pytest

from genops_ctx.core.records import Exactness
from genops_ctx.wire import model_calls
from genops_ctx.wire.model_calls import Caller, billed_model, read_call

OPENAI = Caller("N", "chatOpenAI", "gpt-4o", "gpt-4o")
ANTHROPIC = Caller("N", "chatAnthropic", "claude-haiku-4-5")
WHOLE = Caller("N", "chatAnthropic", "claude-haiku-4-5", streams=False)


def metadata(inputs: int, outputs: int, **details: Any) -> dict[str, Any]:
    return {"input_tokens": inputs, "output_tokens": outputs, "total_tokens": inputs + outputs, **details}


@pytest.mark.parametrize(
    ("provider", "configured", "answered", "expected"),
    [
        ("chatOpenAI", "gpt-4o", "", ("gpt-4o", True)),
        ("chatOpenAI", "gpt-4o", "gpt-4o", ("gpt-4o", True)),
        ("chatOpenAI", "gpt-4o", "gpt-4o-2024-05-13", ("gpt-4o-2024-05-13", True)),
        ("chatOpenAI", "gpt-4o", "gpt-4ogpt-4o", ("gpt-4o", True)),
        ("chatOpenAI", "gpt-4o", "gpt-4o-2024-05-13gpt-4o-2024-05-13", ("gpt-4o-2024-05-13", True)),
        ("chatOpenAI", "gpt-4o", "gpt-4o-mini", ("gpt-4o", False)),
        ("chatOpenAI", "gpt-4o-2024-05-13", "gpt-4o", ("gpt-4o-2024-05-13", True)),
        ("chatOpenAI", "", "gpt-4o", ("gpt-4o", True)),
        ("chatOpenAI", "", "", ("", True)),
        ("chatOpenRouter", "openai/gpt-4o", "gpt-4o", ("openai/gpt-4o", True)),
        (
            "chatAnthropic",
            "claude-3-5-sonnet-latest",
            "claude-3-5-sonnet-20241022",
            ("claude-3-5-sonnet-20241022", True),
        ),
        ("azureChatOpenAI", "my-deployment", "gpt-4o-2024-08-06", ("gpt-4o-2024-08-06", True)),
        ("azureChatOpenAI", "my-deployment", "", ("my-deployment", True)),
    ],
)
def test_which_model_is_billed(
    provider: str, configured: str, answered: str, expected: tuple[str, bool]
) -> None:
    assert billed_model(Caller("", provider, configured, answered)) == expected


def test_another_model_than_configured_is_flagged() -> None:
    usage, flags = read_call(metadata(5, 5), Caller("", "chatOpenAI", "gpt-4o", "llama-3"))
    assert usage is not None
    assert (usage.model, usage.exactness) == ("gpt-4o", Exactness.ESTIMATED)
    assert flags == (model_calls.OTHER_MODEL,)


def test_parts_are_within_their_whole() -> None:
    details = {
        "input_token_details": {"cache_read": 60, "audio": 5, "cache_creation": None},
        "output_token_details": {"reasoning": 8, "audio": 2},
    }
    usage, flags = read_call(metadata(100, 10, **details), OPENAI)
    assert usage is not None
    assert (usage.input_tokens, usage.cache_read_tokens, usage.input_audio_tokens) == (100, 60, 5)
    assert (usage.output_tokens, usage.reasoning_tokens, usage.output_audio_tokens) == (10, 8, 2)
    assert (usage.exactness, flags) == (Exactness.EXACT, ())


def test_parts_beside_their_whole_are_added() -> None:
    details = {"input_token_details": {"cache_read": 60}, "output_token_details": {"reasoning": 30}}
    usage, _ = read_call(metadata(5, 10, **details), OPENAI)
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (65, 40)


def test_thinking_that_only_the_total_knows_is_output_and_an_upper_bound() -> None:
    counts = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 215}
    usage, flags = read_call(counts, Caller("N", "chatGoogleGenerativeAI", "gemini-2.5-pro"))
    assert usage is not None
    assert (usage.output_tokens, usage.exactness, flags) == (205, Exactness.UPPER, (model_calls.BESIDE,))


@pytest.mark.parametrize("bad", ["5", -1, 2.5, True])
def test_a_part_that_cannot_be_read_makes_the_call_an_estimate(bad: Any) -> None:
    usage, flags = read_call(metadata(10, 5, input_token_details={"cache_read": bad}), OPENAI)
    assert usage is not None
    assert (usage.cache_read_tokens, usage.exactness) == (0, Exactness.ESTIMATED)
    assert flags == (model_calls.UNREADABLE_DETAILS,)


def test_parts_that_contradict_their_whole_are_not_booked() -> None:
    assert read_call(metadata(10, 5, input_token_details={"audio": 11}), OPENAI) == (None, ())


def test_anthropic_read_whole_is_exact_with_its_cache_kinds() -> None:
    billed = {
        "input_tokens": 7,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 50,
        "cache_creation": {"ephemeral_1h_input_tokens": 20, "ephemeral_5m_input_tokens": 30},
    }
    details = {"input_token_details": {"cache_read": 100, "cache_creation": 50}}
    # the version that includes cached tokens and the older one that leaves them out
    for inputs in (157, 7):
        usage, flags = read_call(metadata(inputs, 9, **details), WHOLE, billed=billed)
        assert usage is not None
        assert usage.input_tokens == 157
        assert (usage.cache_read_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens) == (
            100,
            30,
            20,
        )
        assert (usage.exactness, flags) == (Exactness.EXACT, ())


def test_anthropic_streamed_takes_cache_counts_from_the_provider_not_from_the_doubled_details() -> None:
    billed = {"cache_read_input_tokens": 100, "cache_creation_input_tokens": 0}
    doubled = {"input_token_details": {"cache_read": 200, "cache_creation": 0}}
    usage, flags = read_call(metadata(107, 10, **doubled), ANTHROPIC, billed=billed)
    assert usage is not None
    assert (usage.input_tokens, usage.cache_read_tokens) == (107, 100)
    assert (usage.exactness, flags) == (Exactness.UPPER, (model_calls.ANTHROPIC_STREAM,))


def test_anthropic_streamed_without_the_providers_counts_takes_the_dearer_reading() -> None:
    doubled = {"input_token_details": {"cache_read": 200, "cache_creation": 40}}
    usage, _ = read_call(metadata(127, 10, **doubled), ANTHROPIC)
    assert usage is not None  # really 100 read, 20 written, 7 fresh
    assert (usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens) == (127, 87, 40)
    assert usage.exactness is Exactness.UPPER


def test_anthropic_streamed_without_a_cache_is_only_too_high_in_output() -> None:
    usage, flags = read_call(metadata(15, 19), ANTHROPIC)
    assert usage is not None
    assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens) == (15, 0, 19)
    assert (usage.exactness, flags) == (Exactness.UPPER, (model_calls.ANTHROPIC_STREAM,))
