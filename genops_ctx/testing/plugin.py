"""The pytest plugin: fixtures for tests of code that calls Flowise.

It is loaded by every pytest run of every project that has this package installed, so nothing but
pytest is imported here; each fixture imports what it gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .clock import FixedClock
    from .flowise import FlowiseStandIn
    from .model_stub import ModelStub


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
