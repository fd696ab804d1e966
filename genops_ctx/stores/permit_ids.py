"""Ids that no other process gives: that of the process, and a count."""

from __future__ import annotations

import itertools

from ..core.process import process_id

__all__ = ["permit_id"]

_numbers = itertools.count()


def permit_id() -> str:
    """A new id."""
    return f"{process_id()}.{next(_numbers):x}"
