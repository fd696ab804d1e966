"""A pytest plugin that governs a Flowise for as long as someone else's tests run.

Each call of theirs then goes through our hook; the run fails where it did not stay on.
"""

from __future__ import annotations

from unittest import mock

import pytest
import requests

from genops_ctx import auto_instrument
from genops_ctx.instrument.registry import addresses

auto_instrument("http://localhost:3000")
_seen = mock.Mock(wraps=addresses.match)
addresses.match = _seen  # type: ignore[method-assign]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(requests.Session.get_adapter, "__wrapped__") or _seen.call_count < 100:
        session.exitstatus = 70
        raise pytest.UsageError(f"our hook saw {_seen.call_count} calls only")
