"""How long a store remembers an attempt that is over."""

from __future__ import annotations

__all__ = ["TOMBSTONE_SECONDS", "UNNAMED_SECONDS", "remembered_for"]

TOMBSTONE_SECONDS = 86_400.0
"""The end of a named operation, so that a replay of it is not sent again; and of a lost attempt, so
that late evidence corrects it."""
UNNAMED_SECONDS = 600.0
"""The end of any other: only the process that made it can ask for it again."""


def remembered_for(named: bool, lost: bool) -> float:
    """Seconds from its end on."""
    return TOMBSTONE_SECONDS if named or lost else UNNAMED_SECONDS
