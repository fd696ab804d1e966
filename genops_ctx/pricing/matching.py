"""Whether a model name is a row of the price data, or only looks like one.

The data says which names a row stands for by clauses: equals, starts with, ends with, contains,
a regular expression. Read as they are, "contains ``gemini-1.5-flash``" also takes
``gemini-1.5-flash-8b``, a model at half the price. Here a clause that names a part of a name counts
only where the rest of it is decoration that does not change the model: a date, a version, a region.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genai_prices.types import MatchLogic, ModelInfo, Provider

__all__ = ["find_model"]

_AFTER = re.compile(
    r"(?:[-_@:./](?:latest|preview|experimental|exp|beta|stable|instruct|chat|it|thinking|tuning|e\d+b"
    r"|20\d\d-\d\d-\d\d|\d\d-\d\d(?:\d\d)?|\d{3,8})"
    r"|[-_]v\d+:\d(?::\d+k)?|[-_]v1|:\d(?::\d+k)?)*"
)
"""``-20240620``, ``@20240620``, ``-v1:0``, ``-001``, ``-latest``, ``-preview-05-20``, ``-it``

A number of one or two digits is no date: it makes another version, ``claude-opus-4-1`` and ``-10``.
"""

_BEFORE = re.compile(
    r"(?:(?:global|us-gov|us|eu|jp|au|apac|in|ca|sa|me|af)\.)?"
    r"(?:(?:ai21|amazon|anthropic|cohere|deepseek|google|meta|mistral|moonshotai|nvidia|openai|qwen|writer"
    r"|xai|zai)[./:])?"
)
"""``us.``, ``us.anthropic.``, ``anthropic/``"""


def find_model(name: str, provider: Provider, others: dict[str, Provider]) -> ModelInfo | None:
    """The row for a name in lower case: by id, then by the data's own clauses, in its own order.

    Where the provider resells models (Azure those of OpenAI), the providers it names are asked next.
    """
    for spelling in dict.fromkeys((name, _dashed_date(name))):
        for seller in (provider, *(others[other] for other in provider.fallback_model_providers or ())):
            model = _row(spelling, seller)
            if model is not None:
                # Night rates are the maker's own; what a reseller asks is then not in the data.
                return None if seller is not provider and _changes_by_the_hour(model) else model
    return None


def _row(name: str, seller: Provider) -> ModelInfo | None:
    for model in seller.models:
        if model.id.lower() == name:
            return model
    for model in seller.models:
        if model.is_match(name):
            # The first match decides, as in the data: its order is part of its meaning.
            return model if is_decorated(model.match, name) else None
    return None


def _changes_by_the_hour(model: ModelInfo) -> bool:
    return isinstance(model.prices, list) and any(
        hasattr(part.constraint, "start_time") for part in model.prices
    )


def is_decorated(clause: MatchLogic, name: str) -> bool:
    """True where the clause takes the name, and takes all of it but for decoration."""
    parts = getattr(clause, "or_", None)
    if parts is not None:
        return any(is_decorated(part, name) for part in parts)
    parts = getattr(clause, "and_", None)
    if parts is not None:
        return clause.is_match(name) and any(is_decorated(part, name) for part in parts)
    if not clause.is_match(name):
        return False
    for kind in ("starts_with", "ends_with", "contains"):
        literal = getattr(clause, kind, None)
        if literal is not None:
            literal = literal.lower()
            if literal.startswith("ft:") or literal.endswith(".ft-"):
                return True  # a fine-tune's own name follows
            at = name.rfind(literal) if kind == "ends_with" else name.find(literal)
            before, after = name[:at], name[at + len(literal) :]
            return bool(_BEFORE.fullmatch(before)) and _is_after(literal, after)
    regex = getattr(clause, "regex", None)
    if regex is None:
        return True
    taken = re.search(regex, name)
    if taken is None or not taken[0] or taken.start():
        return False
    return _is_after(taken[0], name[taken.end() :])


def _is_after(literal: str, after: str) -> bool:
    """True where what follows a literal is decoration; a number that it cuts in two counts whole."""
    if not after:
        return True
    if not literal[-1].isalnum():
        return bool(
            _AFTER.fullmatch("-" + re.sub(r"^\d+b(?:-|$)", "", after)) or re.fullmatch(r"\d+b", after)
        )
    if after[0].isalnum():
        digits = re.search(r"\d+$", literal)
        return digits is not None and bool(_AFTER.fullmatch(f"-{digits[0]}{after}"))
    return bool(_AFTER.fullmatch(after))


_COMPACT_DATE = re.compile(r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")


def _dashed_date(name: str) -> str:
    """``gpt-5.2-20251211`` as ``gpt-5.2-2025-12-11``; gateways write the first, the data the second."""
    return _COMPACT_DATE.sub(r"-\1-\2-\3", name)
