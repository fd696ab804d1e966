"""The pytest plugin: fixtures for tests of code that calls Flowise.

It is loaded by every pytest run of every project that has this package installed, so nothing but
pytest is imported here; each fixture imports what it gives.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..runtime import Runtime
    from .clock import FixedClock
    from .flowise import FlowiseStandIn
    from .model_stub import ModelStub


@pytest.fixture
def genops_runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """A fresh runtime in memory: no charge, account, budget or price of another test, no file, no setting.

    Environment variables and TOML files are not read for it. ``configure()`` in a test reads them as
    ever, but keeps to memory too unless it is told another store or ledger: nothing is written. Prices
    are the shipped ones, whatever the person who runs the tests has set or fetched. The runtime before
    it comes back afterwards. For every test of a project, in its conftest.py::

        @pytest.fixture(autouse=True)
        def governed_in_memory(genops_runtime): ...
    """
    from ..core.current import _current
    from ..pricing import catalogue
    from ..runtime import Runtime, reset_runtime
    from ..settings import Settings

    for variable in ("GENOPS_STORE", "GENOPS_LEDGER"):
        monkeypatch.setenv(variable, "memory://")
        monkeypatch.delenv(f"{variable}_FILE", raising=False)
    for variable in ("GENOPS_PRICES", "GENOPS_PRICE_DATA"):
        monkeypatch.setenv(variable, os.path.join(os.devnull, "none"))
    monkeypatch.setattr(catalogue, "_default", None)
    runtime = Runtime(Settings())
    before = reset_runtime(runtime)
    # A context that a failed test left open would pay for the calls of the next.
    _current.set(None)
    flows = sys.modules.get("genops_ctx.providers.flows")
    if flows is not None:
        flows.forget_directories()
    yield runtime
    reset_runtime(before)
    _current.set(None)


@pytest.fixture
def model_stub() -> Iterator[ModelStub]:
    """A running stub of a model provider (OpenAI and Anthropic) that counts what it bills."""
    from .model_stub import ModelStub

    with ModelStub() as stub:
        yield stub


@pytest.fixture
def flowise_stand_in() -> Iterator[FlowiseStandIn]:
    """A running stand-in for Flowise with the flows of the documentation, without API keys."""
    from .flowise import FlowiseStandIn

    with FlowiseStandIn() as flowise:
        yield flowise


@pytest.fixture
def fixed_clock() -> FixedClock:
    """A clock that stands at 2026-01-01T00:00:00Z until the test moves it."""
    from .clock import FixedClock

    return FixedClock()
