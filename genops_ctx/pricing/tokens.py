"""How many tokens a text probably is, for calls whose usage nobody reports.

No vocabulary and no download: the text is cut the way byte-pair tokenizers cut it first (words,
digits by three, runs of punctuation, white space), and each piece costs what pieces of its script and
length cost on average. With the extra ``tokens`` installed, OpenAI's models are counted exactly
(:func:`count_tokens`).

The error bands (:data:`ERROR_BANDS`) are measured on the texts under ``tests/pricing/texts`` against
OpenAI's two vocabularies, ``o200k_base`` (GPT-4o and later) and ``cl100k_base`` (GPT-4, GPT-3.5,
embeddings). Other makers do not publish theirs; their models are estimated as ``o200k_base`` and have
no measured band.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ERROR_BANDS", "count_tokens", "estimate_tokens", "vocabulary_of"]

_PIECES = re.compile(
    r"(?P<accented>[A-Za-z]*[\u00c0-\u024f][A-Za-z\u00c0-\u024f]*)"
    r"|(?P<word>[A-Z]?[a-z]+|[A-Z]+)"
    r"|(?P<digits>[0-9]{1,3})"
    r"|(?P<newlines>\n\s*)"
    r"|(?P<spaces>[^\S\n]{2,})"
    r"|(?P<cyrillic>[\u0400-\u052f]+)"
    r"|(?P<greek>[\u0370-\u03ff\u1f00-\u1fff]+)"
    r"|(?P<hebrew>[\u0590-\u05ff]+)"
    r"|(?P<arabic>[\u0600-\u06ff\u0750-\u077f]+)"
    r"|(?P<indic>[\u0900-\u0dff]+)"
    r"|(?P<thai>[\u0e00-\u0eff]+)"
    r"|(?P<hangul>[\u1100-\u11ff\uac00-\ud7af]+)"
    r"|(?P<kana>[\u3040-\u30ff]+)"
    r"|(?P<han>[\u3400-\u9fff\uf900-\ufaff]+)"
    r"|(?P<wide_marks>[\u3000-\u303f\uff00-\uffef]+)"
    r"|(?P<joined>[!-/:-@\[-`{-~](?=[A-Za-z]))"
    r"|(?P<marks>[!-/:-@\[-`{-~]+\n*)"
    r"|(?P<other>[^\s])"
)

_PER_CHARACTER = {
    "o200k_base": {
        "cyrillic": 33,
        "greek": 44,
        "hebrew": 44,
        "arabic": 35,
        "indic": 37,
        "thai": 41,
        "hangul": 72,
        "kana": 76,
        "han": 77,
    },
    "cl100k_base": {
        "cyrillic": 60,
        "greek": 108,
        "hebrew": 119,
        "arabic": 87,
        "indic": 127,
        "thai": 94,
        "hangul": 122,
        "kana": 96,
        "han": 115,
    },
}
"""Hundredths of a token per character, by vocabulary and script."""

_ACCENTED = {"o200k_base": (80, 28), "cl100k_base": (80, 38)}
"""A word with accents: hundredths of a token for the word, and for each of its characters."""

_WORD = (0, 100, 100, 102, 102, 105, 110, 119, 123, 140, 130, 145, 152, 155, 158, 160)
"""A plain word by its length; hundredths of a token. Longer ones cost :data:`_LONG` per character more."""

_LONG = 35

ERROR_BANDS: Mapping[str, tuple[float, float]] = {
    "english": (0.85, 1.2),
    "other latin script": (0.7, 1.2),
    "cyrillic": (0.8, 1.25),
    "greek, hebrew, arabic, indic, thai": (0.85, 1.2),
    "chinese, japanese, korean": (0.85, 1.2),
    "code, markup": (0.85, 1.25),
    "json, logs, tables": (0.85, 1.15),
    "encoded data": (0.7, 1.3),
}
"""Kind of text -> (least, most) of estimate ÷ true count, over both vocabularies."""


class _Counter(Protocol):
    def count(self, text: str) -> int: ...


_WHOLE = 300_000
"""Characters that are all looked at; of a longer text, so many parts of so many characters."""
_PARTS, _PART = 64, 4096


def estimate_tokens(text: str, model: str = "") -> int:
    """Estimate the tokens of a text for a model; 0 for an empty text.

    Without a model the newer vocabulary is assumed. About 0.1 µs per character, at worst 1 µs; of more than
    300,000 characters parts are counted, so that no text takes half a second. See
    :data:`ERROR_BANDS` for how far it may be off.
    """
    if len(text) > _WHOLE:
        parts = [text[at : at + _PART] for at in range(0, len(text), len(text) // _PARTS)][:_PARTS]
        counted = sum(estimate_tokens(part, model) for part in parts)
        return -(-counted * len(text) // sum(map(len, parts)))
    vocabulary = vocabulary_of(model)
    per_character = _PER_CHARACTER[vocabulary]
    per_accented, per_accented_character = _ACCENTED[vocabulary]
    words, longest = _WORD, len(_WORD) - 1
    total = 0
    for piece in _PIECES.finditer(text):
        kind = piece.lastgroup
        start, end = piece.span()
        length = end - start
        if kind == "word":
            total += words[length] if length <= longest else words[longest] + _LONG * (length - longest)
        elif kind == "marks":
            total += 100 if length < 4 else 45 * length
        elif kind == "digits" or kind == "spaces":
            total += 100
        elif kind == "joined":
            total += 70
        elif kind == "newlines":
            total += 100 if length < 4 else 200
        elif kind == "accented":
            total += per_accented + per_accented_character * length
        else:
            total += per_character.get(kind or "", 100) * length
    return -(-total // 100)


def vocabulary_of(model: str) -> str:
    """Which of the two measured vocabularies a model is estimated by."""
    name = model.lower().rpartition("/")[2]
    if name.startswith(("gpt-4o", "gpt-4.1", "gpt-4.5")):
        return "o200k_base"
    return (
        "cl100k_base" if name.startswith(("gpt-4", "gpt-3.5", "gpt-35", "text-embedding-")) else "o200k_base"
    )


def count_tokens(text: str, model: str = "") -> int:
    """Count by the vocabulary itself where the extra ``tokens`` is installed; else estimate.

    Exact for OpenAI's models; for others it is as good as their likeness to ``o200k_base``.
    """
    counter = _counter(vocabulary_of(model))
    return estimate_tokens(text, model) if counter is None else counter.count(text)


@cache
def _counter(vocabulary: str) -> _Counter | None:
    """The tokenizer with its vocabulary in the package (rs-bpe), or None where it is not installed."""
    try:
        vocabularies = import_module("rs_bpe.bpe")
    except ImportError:
        return None
    return cast("_Counter", getattr(vocabularies.openai, vocabulary)())
