"""Tests of prices use the shipped data, whatever the person who runs them has set up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def shipped_prices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    nowhere: Path = tmp_path_factory.mktemp("no_prices")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENOPS_PRICES", str(nowhere / "prices.toml"))
        patch.setenv("GENOPS_PRICE_DATA", str(nowhere / "prices.json"))
        yield
