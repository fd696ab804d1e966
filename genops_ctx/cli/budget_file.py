"""Writing one budget into a settings file, and leaving the rest of the file as it is."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ConfigurationError

__all__ = ["replaced", "write_file"]

_HEADER = re.compile(r"^\s*\[")
_BUDGET = re.compile(r"^\s*\[\[\s*budget\s*\]\]\s*(#.*)?$")
_PART_OF_BUDGET = re.compile(r"^\s*\[\s*budget\s*\.")


def replaced(text: str, budget: Mapping[str, Any]) -> str:
    """The file's text with this budget in it: in the place of the one of its name, else at the end.

    Raises :class:`ConfigurationError` where the file cannot be edited without changing more than that.
    """
    block = _block(budget)
    before = _parsed(text)
    found = [span for span in _budgets(text) if _name(text[span[0] : span[1]]) == budget["name"]]
    if len(found) > 1:
        raise ConfigurationError(f"the file has several budgets of the name {budget['name']!r}")
    if found:
        start, end = found[0]
        rest = text[end:]
        after = text[:start] + block + ("\n" if rest and not rest.startswith("\n") else "") + rest
    else:
        after = text.rstrip("\n") + ("\n\n" if text.strip() else "") + block
    if _others(_parsed(after), budget["name"]) != _others(before, budget["name"]):
        raise ConfigurationError(f"the file cannot be edited safely; put this into it by hand:\n\n{block}")
    return after


def write_file(path: Path, text: str) -> None:
    """Write it in one step: whoever reads the file sees the old text or the new one."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _block(budget: Mapping[str, Any]) -> str:
    lines = [f"{key} = {_value(value)}" for key, value in budget.items()]
    return "[[budget]]\n" + "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    # A string of JSON is one of TOML, once no sign is left that only one of them escapes.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _budgets(text: str) -> list[tuple[int, int]]:
    """Where each ``[[budget]]`` begins and ends, tables of its own included."""
    spans: list[tuple[int, int]] = []
    begin: int | None = None
    at = 0
    for line in text.splitlines(keepends=True):
        if _HEADER.match(line) and not (begin is not None and _PART_OF_BUDGET.match(line)):
            if begin is not None:
                spans.append((begin, at))
            begin = at if _BUDGET.match(line.rstrip("\r\n")) else None
        at += len(line)
    if begin is not None:
        spans.append((begin, at))
    # Comments and empty lines before the next header belong to what follows them.
    return [(start, start + len(_own(text[start:end]))) for start, end in spans]


def _own(block: str) -> str:
    lines = block.splitlines(keepends=True)
    while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    return "".join(lines)


def _name(block: str) -> str | None:
    try:
        tables = tomllib.loads(block).get("budget", [])
    except tomllib.TOMLDecodeError:
        return None
    name = tables[0].get("name") if isinstance(tables, list) and tables else None
    return name if isinstance(name, str) else None


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"the file is not valid TOML: {error}") from None


def _others(document: dict[str, Any], name: str) -> dict[str, Any]:
    budgets = [table for table in document.get("budget", []) if table.get("name") != name]
    return {**document, "budget": budgets}
