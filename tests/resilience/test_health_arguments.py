"""What a health monitor may be told."""

from __future__ import annotations

import pytest

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.resilience import HealthMonitor


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_a_latency_that_is_none_is_refused_and_not_counted(wrong: float) -> None:
    """One NaN would be every percentile."""
    monitor = HealthMonitor()
    with pytest.raises(ConfigurationError, match="latency_ms"):
        monitor.record_request(wrong, "0.001")
    assert monitor.get_health()["status"] == "unknown"
