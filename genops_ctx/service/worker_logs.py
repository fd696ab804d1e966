"""Which worker wrote a line of the log."""

from __future__ import annotations

import logging

__all__ = ["FORMAT", "show_worker_logs"]

FORMAT = "%(asctime)s - %(name)s - %(levelname)s - [Worker:%(process)d] - %(message)s"


def show_worker_logs() -> None:
    """Write what the package logs to stderr, each line with its worker, where nobody has set logging up.

    uvicorn by itself shows its own lines only; ``genops-ctx serve`` and ``--log-config`` set it up.
    """
    log = logging.getLogger("genops_ctx")
    if log.hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
