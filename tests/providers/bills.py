"""What the model stub billed, in nano-dollars, by prices copied from the providers' price pages.

Independent of the package's catalogue: whole nano-dollars a token, so nothing is ever rounded.
"""

from __future__ import annotations

from collections.abc import Iterable

from genops_ctx.core.records import Charge
from genops_ctx.testing import BilledCall

# input, cached input, output
PRICES = {
    "gpt-4o-mini": (150, 75, 600),
    "gpt-4o": (2_500, 1_250, 10_000),
    "claude-haiku-4-5": (1_000, 100, 5_000),
}


def nanos_of(calls: Iterable[BilledCall]) -> int:
    """The bill of these calls."""
    total = 0
    for call in calls:
        plain, cached, written = PRICES[call.model]
        total += (call.input_tokens - call.cache_read_tokens) * plain
        total += call.cache_read_tokens * cached + call.output_tokens * written
    return total


def booked_tokens(charge: Charge) -> list[tuple[str, int, int]]:
    """Model, input and output tokens of each line."""
    return [(usage.model, usage.input_tokens, usage.output_tokens) for usage in charge.usage]


def billed_tokens(calls: Iterable[BilledCall]) -> list[tuple[str, int, int]]:
    """The same of the bill; calls that failed bill nothing."""
    return [(call.model, call.input_tokens, call.output_tokens) for call in calls if call.status == 200]
