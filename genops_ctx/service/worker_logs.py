"""Which worker wrote a line of the log, and what of a request's address is in it: no query and no key."""

from __future__ import annotations

import logging
import os
import re

__all__ = ["FORMAT", "show_worker_logs"]

FORMAT = "%(asctime)s - %(name)s - %(levelname)s - [Worker:%(process)d] - %(message)s"

_KEYS = re.compile(r"(?<=/k/)[^/?]+|gok_[0-9a-f]{12}_[\w-]+", re.A)
_ACCESS = 5
"""Arguments of a line of uvicorn's access log: client, method, address, version, status."""


def show_worker_logs() -> None:
    """Write what the package logs to stderr, each line with its worker, where nobody has set logging up.

    uvicorn by itself shows its own lines only; ``genops-ctx serve`` and ``--log-config`` set it up. Lines of
    uvicorn have the worker too from here on, and those of requests neither a query nor a widget's key.
    """
    access, server = logging.getLogger("uvicorn.access"), logging.getLogger("uvicorn.error")
    for logger, kind in ((access, _OfRequests), (server, _OfServer)):
        if not any(isinstance(known, kind) for known in logger.filters):
            logger.addFilter(kind())
    log = logging.getLogger("genops_ctx")
    if log.hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


class _OfRequests(logging.Filter):
    """Takes out of an address what is nobody's to read: prompts in a query, the key of a widget."""

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args
        if isinstance(args, tuple) and len(args) == _ACCESS:
            client, method, address, *rest = args
            shown = _KEYS.sub("***", str(address).partition("?")[0])
            record.args = (f"{_worker(record)}{client}", method, shown, *rest)
        return True


class _OfServer(logging.Filter):
    """Says which worker it is."""

    def filter(self, record: logging.LogRecord) -> bool:
        worker = _worker(record)
        record.msg = f"{worker}{record.msg}"
        colored = getattr(record, "color_message", None)
        if colored is not None:
            record.color_message = f"{worker}{colored}"
        return True


def _worker(record: logging.LogRecord) -> str:
    """Empty where the format of a handler has the process already."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None:
        for handler in logger.handlers:
            if "%(process)" in (getattr(handler.formatter, "_fmt", None) or ""):
                return ""
        logger = logger.parent if logger.propagate else None
    return f"[Worker:{os.getpid()}] "
