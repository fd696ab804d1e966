"""Stores and ledgers that wait for a moment only, used on a machine that may be busy for longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from genops_ctx.core.errors import StoreError, StoreUnavailable

T = TypeVar("T")


def once_it_answers(use: Callable[[], T], seconds: float = 120.0) -> T:
    """What ``use`` gives once its server answers it; what it raised where that takes longer."""
    until = time.monotonic() + seconds
    while True:
        try:
            return use()
        except (StoreError, StoreUnavailable):
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
