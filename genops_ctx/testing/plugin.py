"""The pytest plugin: fixtures for tests of code that calls Flowise.

It is loaded by every pytest run of every project that has this package installed, so nothing but
pytest is imported here; each fixture imports what it gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .model_stub import ModelStub


@pytest.fixture
def model_stub() -> Iterator[ModelStub]:
    """A running stub of a model provider (OpenAI and Anthropic) that counts what it bills."""
    from .model_stub import ModelStub

    with ModelStub() as stub:
        yield stub
