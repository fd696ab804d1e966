"""Newer price data than the installed genai-prices brings: fetched on request, kept in a file."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from ..core.errors import ConfigurationError
from .data import PriceData, read_providers

__all__ = ["data_path", "fetch_data", "load_data", "save_data"]

_MOST = 64 * 1024 * 1024
"""A data file is about 2 MB; more than this is something else."""


def data_path() -> Path:
    """The file of fetched data: ``GENOPS_PRICE_DATA``, else ``prices.json`` in the user's state directory."""
    given = os.environ.get("GENOPS_PRICE_DATA")
    if given:
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "genops_ctx" / "prices.json"


def fetch_data(url: str | None = None) -> bytes:
    """Fetch the data file that genai-prices publishes; ``url`` is another place of the same file.

    Raises ``OSError`` where it cannot be had, :class:`ConfigurationError` where it is not one.
    """
    import requests
    from genai_prices.update_prices import DEFAULT_UPDATE_URL

    with requests.get(url or DEFAULT_UPDATE_URL, timeout=(5, 30), stream=True) as answer:
        answer.raise_for_status()
        raw = bytearray()
        for block in answer.iter_content(1 << 16):
            raw += block
            if len(raw) > _MOST:
                raise ConfigurationError("the price file is larger than 64 MB; it was not read")
    return bytes(raw)


def save_data(raw: bytes) -> Path:
    """Keep a data file, at once or not at all; what genai-prices cannot read is refused."""
    read_providers(raw)
    path = data_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_bytes(raw)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def load_data() -> PriceData | None:
    """The data of the file, where there is one; :class:`ConfigurationError` where it cannot be read."""
    path = data_path()
    try:
        raw = path.read_bytes()
        fetched = datetime.fromtimestamp(path.stat().st_mtime, UTC).date()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as problem:
        raise ConfigurationError(f"the price data in {path} cannot be read: {problem}") from problem
    try:
        return PriceData(read_providers(raw), name=f"genai-prices data of {fetched}")
    except ConfigurationError as problem:
        raise ConfigurationError(f"{path}: {problem}, or remove the file") from problem
