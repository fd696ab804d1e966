"""The command run in-process, with nothing of this machine's settings around it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from genops_ctx.cli import main
from genops_ctx.runtime import reset_runtime
from genops_ctx.testing import FlowiseStandIn

KEY = "key-that-nobody-may-see"


@pytest.fixture
def clean_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No variable and no file of the machine; a runtime that the command builds itself."""
    for name in list(os.environ):
        if name.startswith(("FLOWISE_", "GENOPS_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    before = reset_runtime(None)
    yield
    reset_runtime(before)


@pytest.fixture
def command(clean_machine: None) -> Callable[..., Result]:
    """Run ``genops-ctx`` with arguments; an error that is not shown as a message fails the test."""

    def invoke(*arguments: str, input: str | None = None) -> Result:
        result = CliRunner().invoke(main, list(arguments), input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def locked_flowise() -> Iterator[FlowiseStandIn]:
    """A stand-in that asks for a key."""
    with FlowiseStandIn(api_key=KEY) as flowise:
        yield flowise
