"""Every Python block of README.md and docs/ runs as a test, in the order of its document.

Each document has a stand-in for Flowise of its own, at FLOWISE_BASE_URL, and a runtime in memory;
the names of one block are there in the next.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


def start(names: dict[str, Any]) -> None:
    """Before the first block of a document."""
    from genops_ctx.ledger.memory import MemoryLedger
    from genops_ctx.providers.flows import forget_directories
    from genops_ctx.runtime import Runtime, reset_runtime
    from genops_ctx.settings import Settings
    from genops_ctx.stores.memory import MemoryStore
    from genops_ctx.testing import FlowiseStandIn

    names["_open"] = stack = ExitStack()
    stand_in = stack.enter_context(FlowiseStandIn())
    home = stack.enter_context(tempfile.TemporaryDirectory())
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("FLOWISE_", "GENOPS_"))
    }
    environment |= {
        "FLOWISE_BASE_URL": stand_in.url,
        "GENOPS_LEDGER": "memory://",
        "GENOPS_STORE": "memory://",
        "HOME": home,
        "XDG_CONFIG_HOME": home,
        "XDG_STATE_HOME": home,
    }
    stack.enter_context(mock.patch.dict(os.environ, environment, clear=True))
    stack.callback(os.chdir, Path.cwd())
    os.chdir(home)
    forget_directories()
    before = reset_runtime(Runtime(Settings(), store=MemoryStore(), ledger=MemoryLedger()))
    stack.callback(reset_runtime, before)


def stop(names: dict[str, Any]) -> None:
    """After the last block of a document."""
    from genops_ctx.core.current import _current

    names["_open"].close()
    _current.set(None)  # a block that failed may have left a context open


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md"],
    setup=start,
    teardown=stop,
).pytest()
