"""Rate limiters as programs use them: what an adaptive one learns of calls, and how many it lets through."""

from __future__ import annotations

import pytest

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.outcomes import Outcome
from genops_ctx.resilience import AdaptiveRateLimiter


@pytest.mark.parametrize(
    ("outcome", "rate"),
    [
        (Outcome.COMPLETED, 12),  # 10 * 1.2
        (Outcome.FAILED, 8),  # 10 * 0.8
        (Outcome.TIMED_OUT, 8),
        (Outcome.TRUNCATED, 8),
        (Outcome.NOT_SENT, 10),
        (Outcome.REFUSED, 10),
        (Outcome.ABANDONED, 10),
        (Outcome.CANCELLED, 10),
    ],
)
def test_an_adaptive_rate_learns_from_ends_without_an_error(outcome: Outcome, rate: int) -> None:
    limiter = AdaptiveRateLimiter(10, 1, 100, sample=1)
    limiter.leave(None, outcome, None, 0.0)
    assert limiter.current_rate == rate


def test_an_adaptive_rate_keeps_its_burst() -> None:
    limiter = AdaptiveRateLimiter(10, 1, 100, burst=2)
    assert [bool(limiter.acquire()) for _ in range(4)] == [True, True, False, False]
    with pytest.raises(ConfigurationError, match="ten years"):
        AdaptiveRateLimiter(1000, 1, 1000, 86_400.0, burst=10_000)
