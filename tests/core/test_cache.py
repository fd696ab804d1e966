"""What a cache may be told."""

from __future__ import annotations

import pytest

from genops_ctx.core.cache import CacheRule
from genops_ctx.core.errors import ConfigurationError


@pytest.mark.parametrize(
    "wrong",
    [{"ttl": 0.0}, {"ttl": 1e9}, {"lease": 0.0}, {"lease": 1e6}, {"max_entries": 0}, {"max_entries": 10**8}],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        CacheRule(**wrong)  # type: ignore[arg-type]
    assert CacheRule().max_entries == 1000


def test_a_cache_keeps_a_whole_number_of_entries() -> None:
    with pytest.raises(ConfigurationError, match="whole number"):
        CacheRule(max_entries=2.5)  # type: ignore[arg-type]
