"""Times on the command line: a span (``2h``, ``30d``), a day, or an ISO time with an offset."""

from __future__ import annotations

import re
import time
from datetime import timedelta

__all__ = ["back", "ahead"]

_SPAN = re.compile(r"([1-9][0-9]{0,4})([mhdw])\Z")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def ahead(text: str, *, option: str) -> float:
    """Epoch seconds of a time, a span counted from now on. Raises :class:`ConfigurationError`."""
    return _read(text, 1, option)


def back(text: str, *, option: str) -> float:
    """Epoch seconds of a time, a span counted back from now. Raises :class:`ConfigurationError`."""
    return _read(text, -1, option)


def _read(text: str, sign: int, option: str) -> float:
    if span := _SPAN.match(text.strip()):
        return time.time() + sign * timedelta(**{_UNITS[span[2]]: int(span[1])}).total_seconds()
    from ..pricing.overrides import moment

    return moment(text, what=option)
