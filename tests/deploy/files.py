"""The deployment files, read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "deploy"


def read_yaml(name: str) -> Any:
    """The one document of a file."""
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
