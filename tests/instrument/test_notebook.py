"""A context across the cells of a notebook, in a real IPython kernel."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parents[2]

CELLS = [
    "from genops_ctx import *\nfrom decimal import Decimal\nimport threading\n"
    "def spend():\n"
    "    with metered_call('model', max_cost='0.01') as call:\n"
    "        call.record_cost('0.01')\n"
    "current_context()",
    "analysis = governance_context('analysis', team='research', budget='0.05').open()",
    "assert current_context() is analysis\nspend()",
    "with governance_context('one cell') as below:\n    spend()\nassert current_context() is analysis",
    "thread = threading.Thread(target=spend); thread.start(); thread.join()",
    "import asyncio\nawait asyncio.gather(asyncio.to_thread(spend))\nassert current_context() is analysis",
    "inner = governance_context('inner').open()",
    "assert current_context() is inner and inner.parent is analysis\nspend()",
    "inner.close()",
    "assert current_context() is analysis\n"
    "try:\n    spend()\nexcept BudgetExceeded as refusal:\n    print('refused', refusal.spent)",
    "1 / 0",
    "analysis.close()",
    "assert current_context() is None\nspend()\n"
    "print(analysis.total_cost == Decimal('0.05'), analysis.calls)",
    "analysis",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_context_holds_over_cells(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    spec = tmp_path / "kernels" / "here"
    spec.mkdir(parents=True)
    command = f'["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
    (spec / "kernel.json").write_text(f'{{"argv": {command}, "display_name": "here", "language": "python"}}')
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    client = nbclient.NotebookClient(notebook, timeout=60, kernel_name="here", allow_errors=True)
    client.execute(cwd=os.fspath(tmp_path))
    failed = {
        index: [output["evalue"] for output in cell.outputs if output.output_type == "error"]
        for index, cell in enumerate(notebook.cells)
    }
    assert {index: told for index, told in failed.items() if told} == {10: ["division by zero"]}
    texts = [
        "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
        for cell in notebook.cells
    ]
    assert texts[9] == "refused 0.050000000\n"
    assert texts[12] == "True 5\n"
    shown = notebook.cells[-1].outputs[-1]["data"]["text/html"]
    assert "<b>analysis</b> $0.05 of $0.05" in shown
    assert "<b>inner</b> $0.01" in shown
