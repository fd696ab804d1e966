"""`genops-ctx serve` as a process: what uvicorn is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from genops_ctx.testing import FlowiseStandIn
from tests.service.served import Served

SLOW = """
import sys, time
if "--multiprocessing-fork" in sys.orig_argv:
    time.sleep(7)
"""


@pytest.mark.slow
def test_a_worker_that_starts_slowly_is_not_killed_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a container has little processor time; uvicorn itself gives a worker 5 s."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    with FlowiseStandIn() as flowise, Served(tmp_path, flowise.url, workers=2) as service:
        assert service.stop() == 0
    assert "died" not in service.log


SHARED = {
    "circuit breakers": "[service]\nbreaker = true",
    "rate limits": '[[service.rate_limit]]\nrate = "60/minute"',
    "a cache": '[service.cache]\nflows = ["*"]',
    "circuit breakers and rate limits": '[[service.provider]]\nname = "a"\nflow = "x"\n'
    '[[service.rate_limit]]\nrate = "60/minute"',
}


@pytest.mark.parametrize("what", SHARED)
def test_what_workers_share_needs_a_store_that_is_named(
    command: Callable[..., Result], tmp_path: Path, what: str
) -> None:
    """Else a limit of 60 would be one of 240, in silence."""
    (tmp_path / "genops.toml").write_text(SHARED[what])
    result = command("serve", "--workers", "4")
    assert result.exit_code == 2
    assert f"each of 4 workers would have {what} for itself" in result.output
    assert "GENOPS_STORE" in result.output
