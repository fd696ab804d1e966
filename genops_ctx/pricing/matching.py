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
    r"(?:[-_@:./]?"
    r"(?:latest|preview|experimental|exp|beta|stable|instruct|chat|it|thinking|tuning|highspeed"
    r"|v\d+|e?\d+b|a\d+b|\d+(?:\.\d+)*k?))*"
)
"""``-20240620``, ``@20240620``, ``-v1:0``, ``-001``, ``-latest``, ``-preview-05-20``, ``-27b-it``"""

_BEFORE = re.compile(
    r"(?:(?:global|us-gov|us|eu|jp|au|apac|in|ca|sa|me|af)\.)?(?:[a-z0-9]+\.)?(?:[a-z0-9-]+[/:])?"
)
"""``us.``, ``us.anthropic.``, ``anthropic/``"""


def find_model(name: str, provider: Provider, others: dict[str, Provider]) -> ModelInfo | None:
    """The row for a name in lower case: by id, then by the data's own clauses, in its own order.

    Where the provider resells models (Azure those of OpenAI), the providers it names are asked next.
    """
    for spelling in dict.fromkeys((name, _dashed_date(name))):
        for seller in (provider, *(others[other] for other in provider.fallback_model_providers or ())):
            for model in seller.models:
                if model.id.lower() == spelling:
                    return model
            for model in seller.models:
                if model.is_match(spelling):
                    # The first match decides, as in the data: its order is part of its meaning.
                    if is_decorated(model.match, spelling):
                        return model
                    break
    return None


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
            return bool(_BEFORE.fullmatch(before)) and bool(_AFTER.fullmatch(after))
    regex = getattr(clause, "regex", None)
    return regex is None or (regex.startswith("^") and "(?!" not in regex)


_COMPACT_DATE = re.compile(r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")


def _dashed_date(name: str) -> str:
    """``gpt-5.2-20251211`` as ``gpt-5.2-2025-12-11``; gateways write the first, the data the second."""
    return _COMPACT_DATE.sub(r"-\1-\2-\3", name)
