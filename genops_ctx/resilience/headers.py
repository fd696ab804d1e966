"""``Retry-After`` as clients carry it in their errors: seconds, milliseconds, or a date."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

__all__ = ["retry_after_of"]

WEEK = 604_800.0
"""Longer than any limit there is."""


def retry_after_of(error: BaseException) -> float | None:
    """Seconds that the other side asks to wait; None where it does not say."""
    for source in (getattr(error, "response", None), error):
        headers = getattr(source, "headers", None)
        if isinstance(headers, Mapping):
            found = _read(headers)
            if found is not None:
                return found
    return None


def _read(headers: Mapping[object, object]) -> float | None:
    said = {str(name).lower(): str(value).strip() for name, value in headers.items()}
    millis = _number(said.get("retry-after-ms"))
    if millis is not None:
        return min(millis / 1000, WEEK)
    text = said.get("retry-after")
    seconds = _number(text)
    if seconds is not None:
        return min(seconds, WEEK)
    return _until(text)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _until(text: str | None) -> float | None:
    try:
        moment = parsedate_to_datetime(text or "").timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(moment - time.time(), 0.0), WEEK)
