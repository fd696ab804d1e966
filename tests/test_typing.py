"""Users' code against the types of the public names: tests/typing/api.py, by mypy --strict."""

from __future__ import annotations

import ast
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
