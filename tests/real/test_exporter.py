"""Flowise's own exporter in a Node that is idle, then busy: no span of it is lost."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from genops_ctx.receivers import Receivers

from .flowise_install import Installation

EXPORTER = Path(__file__).with_name("exporter.cjs")
IDLE_MS = 5_200
"""uvicorn closes a connection that is unused for 5 s; Node hears of it once it is not busy."""


@pytest.mark.slow
def test_what_is_exported_after_a_pause_comes(flowise_installation: Installation) -> None:
    with Receivers() as receivers:
        words = (flowise_installation.modules, receivers.url, receivers.key, 16, 2, IDLE_MS)
        done = subprocess.run(
            [str(flowise_installation.node), str(EXPORTER), *map(str, words)],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"taken": 32, "lost": {}}
