"""Events on whatever span is the current one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

__all__ = ["add_event"]

log = logging.getLogger("genops_ctx")


def add_event(name: str, attributes: Mapping[str, str | int]) -> None:
    """Tell the current span; nothing where OpenTelemetry is not in use. Never raises."""
    if "opentelemetry.trace" not in sys.modules:
        return
    try:
        from opentelemetry import trace

        trace.get_current_span().add_event(name, dict(attributes))
    except Exception:
        log.debug("telemetry failed", exc_info=True)
