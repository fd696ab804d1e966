"""Ids that no other process gives: a random beginning for each process, and a count."""

from __future__ import annotations

import itertools
import os

__all__ = ["permit_id"]

_own = ""
_numbers = itertools.count()


def permit_id() -> str:
    """A new id."""
    global _own
    if not _own:
        _own = os.urandom(8).hex()
    return f"{_own}{next(_numbers):x}"


def _forget() -> None:
    global _own
    _own = ""


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
