"""`genops-ctx serve` as a process: what uvicorn is told."""

from __future__ import annotations

from pathlib import Path

import pytest

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
