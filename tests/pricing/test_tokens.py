"""How far the estimates are off, on the texts beside this file and on this project's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.pricing import tokens
from genops_ctx.pricing.tokens import ERROR_BANDS, count_tokens, estimate_tokens, vocabulary_of

TEXTS = Path(__file__).parent / "texts"
COUNTS = json.loads((TEXTS / "counts.json").read_text())
"""Counted by rs-bpe 0.1.0; a test below counts them again where it is installed."""

KIND = {
    "english": "english",
    "chat": "english",
    "german": "other latin script",
    "french": "other latin script",
    "spanish": "other latin script",
    "polish": "other latin script",
    "turkish": "other latin script",
    "russian": "cyrillic",
    "ukrainian": "cyrillic",
    "greek": "greek, hebrew, arabic, indic, thai",
    "hebrew": "greek, hebrew, arabic, indic, thai",
    "arabic": "greek, hebrew, arabic, indic, thai",
    "hindi": "greek, hebrew, arabic, indic, thai",
    "thai": "greek, hebrew, arabic, indic, thai",
    "chinese": "chinese, japanese, korean",
    "japanese": "chinese, japanese, korean",
    "korean": "chinese, japanese, korean",
    "python": "code, markup",
    "javascript": "code, markup",
    "html": "code, markup",
    "markdown": "code, markup",
    "sql": "code, markup",
    "json": "json, logs, tables",
    "json_compact": "json, logs, tables",
    "log": "json, logs, tables",
    "numbers": "json, logs, tables",
    "base64": "encoded data",
}

MODELS = {"o200k_base": "gpt-4o-mini", "cl100k_base": "gpt-4-turbo"}


def test_every_text_has_a_kind_with_a_band() -> None:
    assert KIND.keys() == COUNTS.keys() == {path.stem for path in TEXTS.glob("*.txt")}
    assert set(KIND.values()) == set(ERROR_BANDS)


@pytest.mark.parametrize("vocabulary", MODELS)
@pytest.mark.parametrize("name", COUNTS)
def test_the_estimate_is_within_its_band(name: str, vocabulary: str) -> None:
    text = (TEXTS / f"{name}.txt").read_text("utf-8")
    assert len(text) == COUNTS[name]["characters"]
    least, most = ERROR_BANDS[KIND[name]]
    assert least <= estimate_tokens(text, MODELS[vocabulary]) / COUNTS[name][vocabulary] <= most


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("a", 1),
        ("Hello world", 3),  # 2 words of 1.05: rounded up
        ("12345678", 3),  # three digits a token
        ("    ", 1),
        (" ", 0),  # a single space belongs to the word after it
        ("\n\n\n", 1),
        ("x\n        y", 4),  # a line break and its indentation are two
        ("!!!", 1),
        ("!!!!!!!!", 4),
        ("(a", 2),
        ("\U0001f600\U0001f600", 2),
        ("é", 2),
        ("a" * 15, 2),
        ("a" * 35, 9),  # 1.6, and 0.35 for each of 20 letters more
    ],
)
def test_small_texts_by_hand(text: str, count: int) -> None:
    assert estimate_tokens(text) == count


@given(st.text(max_size=300), st.text(max_size=300))
def test_it_counts_something_for_everything_and_never_more_than_bytes(one: str, other: str) -> None:
    """A byte-pair tokenizer never needs more tokens than bytes; ours rounds up once."""
    for text in (one, other, one + other):
        assert 0 <= estimate_tokens(text) <= 1.3 * len(text.encode("utf-8", "surrogatepass")) + 1
    assert estimate_tokens(one + "\n" + other) >= max(estimate_tokens(one), estimate_tokens(other)) - 2


def test_a_long_text_is_quick() -> None:
    """Linear in the length, whatever it holds."""
    import time

    for unit in ("word ", " " * 50, "\n", "a", "!", "漢", "\u0301", "( "):
        started = time.perf_counter()
        estimate_tokens(unit * (200_000 // len(unit)))
        assert time.perf_counter() - started < 20, unit


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [
        ("", "o200k_base"),
        ("gpt-4o", "o200k_base"),
        ("openai/gpt-4.1-mini", "o200k_base"),
        ("gpt-4.5-preview", "o200k_base"),
        ("o3", "o200k_base"),
        ("claude-opus-5", "o200k_base"),
        ("GPT-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-35-turbo", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
    ],
)
def test_which_vocabulary_a_model_has(model: str, vocabulary: str) -> None:
    assert vocabulary_of(model) == vocabulary


def test_without_the_tokenizer_it_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(tokens, "import_module", refuse)
    tokens._counter.cache_clear()
    try:
        assert count_tokens("Hello world") == estimate_tokens("Hello world")
    finally:
        tokens._counter.cache_clear()


def test_with_the_tokenizer_it_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Vocabularies:
        class openai:
            @staticmethod
            def cl100k_base() -> Any:
                return type("Counter", (), {"count": staticmethod(lambda text: 4711)})

    asked = []

    def provide(name: str) -> Any:
        asked.append(name)
        return Vocabularies

    monkeypatch.setattr(tokens, "import_module", provide)
    tokens._counter.cache_clear()
    try:
        assert count_tokens("Hello world", "gpt-4") == 4711
        assert asked == ["rs_bpe.bpe"]
    finally:
        tokens._counter.cache_clear()


@pytest.mark.parametrize("vocabulary", MODELS)
def test_the_stored_counts_are_those_of_the_tokenizer(vocabulary: str) -> None:
    pytest.importorskip("rs_bpe", reason="the tokenizer is not here: pip install 'genops_ctx[tokens]'")
    for name, counted in COUNTS.items():
        text = (TEXTS / f"{name}.txt").read_text("utf-8")
        assert count_tokens(text, MODELS[vocabulary]) == counted[vocabulary]


def test_this_project_s_own_texts_are_within_the_bands() -> None:
    """Nothing was fitted to them: sources of this package, where the tokenizer is installed."""
    pytest.importorskip("rs_bpe", reason="the tokenizer is not here: pip install 'genops_ctx[tokens]'")
    least, most = ERROR_BANDS["code, markup"]
    for path in sorted((Path(tokens.__file__).parent).glob("*.py")):
        text = path.read_text("utf-8")
        assert least <= estimate_tokens(text) / max(1, count_tokens(text)) <= most, path.name


def test_of_a_text_that_no_model_reads_parts_are_counted() -> None:
    """Eight times a text that is counted whole: eight times its tokens, within a hundredth."""
    paragraph = "The quick brown fox jumps over 13 lazy dogs, and doesn't look back; why should it?\n"
    whole = paragraph * 3000
    assert estimate_tokens(whole * 8) == pytest.approx(estimate_tokens(whole) * 8, rel=0.01)
    assert estimate_tokens("a" * 300_001) > 0
