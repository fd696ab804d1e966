"""Among all tests the benchmarks only show that they run; alone (``-o addopts=``) they measure."""

from __future__ import annotations

import pytest

from . import timing


@pytest.fixture(autouse=True)
def as_long_as_it_takes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "measuring", not request.config.getoption("benchmark_disable"))
