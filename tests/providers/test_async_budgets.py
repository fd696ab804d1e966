"""Budgets around awaited predictions."""

from __future__ import annotations

from . import test_adapter_budgets as sync
from .bridge import again

globals().update(
    again(
        sync,
        without=(
            # interrupts of a requests session; for tasks see test_async_cancellation.py
            "test_an_interrupt_while_sending",
            "test_an_interrupt_before_it_left",
        ),
    )
)
