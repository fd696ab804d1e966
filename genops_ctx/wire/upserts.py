"""What ``POST /api/v1/vector/upsert/{id}`` of Flowise 3.1.4 answers: the texts that were embedded.

Its vector stores answer ``{"numAdded", "addedDocs": [{"pageContent", "metadata"}]}``, one item for each text
that went to the embedding model; with a record manager ``numUpdated`` and ``numSkipped`` too, and what was
skipped went to no model.
"""

from __future__ import annotations

from collections.abc import Mapping

from .shapes import object_of

__all__ = ["embedded_texts"]


def embedded_texts(answer: Mapping[str, object]) -> tuple[str, ...] | None:
    """The texts that were embedded; None where the answer does not say, or not of all."""
    added = answer.get("addedDocs")
    if not isinstance(added, list):
        return None
    texts = [object_of(item).get("pageContent") for item in added]
    found = tuple(text for text in texts if isinstance(text, str))
    said = [answer.get(name, 0) for name in ("numAdded", "numUpdated")]
    counts = [number for number in said if isinstance(number, int)]
    return found if len(counts) == 2 and len(found) == len(added) >= sum(counts) else None
