"""How long a store remembers an attempt that is over."""

from __future__ import annotations

__all__ = ["LOCAL_SECONDS", "TOMBSTONE_SECONDS"]

TOMBSTONE_SECONDS = 86_400.0
"""The end of an attempt: a replay of a named operation is not sent again, late evidence corrects a
loss, and a ledger that is behind settles nothing twice (it replays no older entries)."""
LOCAL_SECONDS = 1_800.0
"""The end of an unnamed attempt in a store of one process, which only that process can ask for."""
