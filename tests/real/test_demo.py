"""The demo against a real Flowise: what it shows is what the model billed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from genops_ctx import instrument_flowise

if TYPE_CHECKING:
    from genops_ctx.testing import ModelStub

from .conftest import RunningFlowise


def demo(flowise: RunningFlowise, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "genops_ctx", "demo", *arguments],
        env={**os.environ, "FLOWISE_BASE_URL": flowise.url, "FLOWISE_API_KEY": flowise.readonly_key},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert flowise.readonly_key not in done.stdout
    return done.stdout


def test_what_it_books_is_what_was_billed(flowise: RunningFlowise, flowise_model: ModelStub) -> None:
    flows = ("agentflow_llm", "agentflow_two_providers_unstreamed", "agentflow_agent")
    shown = demo(flowise, *(part for flow in flows for part in ("--flow", flow)))
    billed = flowise_model.calls
    assert len(billed) == 5  # one node, two nodes, an agent before and after its tool
    tokens = sum(call.total_tokens for call in billed)
    assert re.search(rf"^support desk .* · 3 calls · {tokens} tokens · exact$", shown, re.MULTILINE)
    assert "refused the call before it was sent" in " ".join(shown.split())
    assert "Predictions sent: 3 before the call, 3 after it." in shown


def test_it_chooses_flows_that_report_what_they_use(
    flowise: RunningFlowise, flowise_model: ModelStub
) -> None:
    adapter = instrument_flowise(flowise.url, flowise.api_key)
    shown = demo(flowise)
    assert len(flowise_model.calls) >= 3
    asked = re.findall(r"^   -> (\S+)$", shown, re.MULTILINE)
    assert len(asked) == 3
    # Other tests make flows too, under names of their own.
    reporting = {flow["name"] for flow in adapter.get_chatflows() if flow["type"] == "AGENTFLOW"}
    assert set(asked) <= reporting
