"""Users' code against the types of the public names: tests/typing/api.py, by mypy --strict and by pyright."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import genops_ctx

HERE = Path(__file__).parent


@pytest.mark.slow
def test_the_public_names_are_typed_as_they_are_used(tmp_path):
    api = pytest.importorskip("mypy.api")
    out, err, status = api.run(
        [
            "--strict",
            "--follow-imports=silent",
            "--no-error-summary",
            f"--config-file={HERE.parent / 'pyproject.toml'}",
            str(HERE / "typing" / "api.py"),
        ]
    )
    assert (out, err, status) == ("", "", 0)


@pytest.mark.slow
def test_pyright_reads_them_alike(tmp_path):
    """By basedpyright, which brings pyright's node; its own stricter rules are left out."""
    program = shutil.which("basedpyright", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("basedpyright is not here: pip install basedpyright")
    settings = {
        "include": [str(HERE / "typing" / "api.py")],
        "extraPaths": [str(HERE.parent)],
        "pythonVersion": "3.11",
        "typeCheckingMode": "standard",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [program, "--project", str(tmp_path), "--pythonpath", sys.executable, "--outputjson"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    told = json.loads(done.stdout)
    assert [item["message"] for item in told["generalDiagnostics"]] == []
    assert told["summary"]["filesAnalyzed"] == 1


def test_every_public_name_is_used_there():
    tree = ast.parse((HERE / "typing" / "api.py").read_text())
    imported = {
        name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "genops_ctx"
        for name in node.names
    }
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert imported == set(genops_ctx.__all__)
    assert imported <= used
