"""What is governed in this process: base URLs with their rules, and what was seen beside them."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from ..runtime import get_runtime
from ..sending import is_being_sent
from .addresses import Address, Addresses

if TYPE_CHECKING:
    from .governor import Governor

__all__ = ["addresses"]

log = logging.getLogger("genops_ctx")


def _by_an_adapter(flow: str) -> bool:
    return is_being_sent("", flow)


def _first_seen(address: Address) -> None:
    """Say it once, and have it recorded for ``genops-ctx check``, by a thread that may wait."""
    try:
        runtime = get_runtime()
        runtime.say_once(
            "predictions go to %s and are not governed: no base URL of auto_instrument() matches. "
            "If that is a Flowise of yours, call auto_instrument(%r) too",
            address,
            str(address),
        )
        runtime.abandoned.watch()
        runtime.abandoned.put(partial(runtime.decisions.not_governed, str(address), runtime.clock()))
    except Exception:
        # Somebody else's call is on its way: it must not notice.
        log.debug("an address could not be recorded", exc_info=True)


addresses: Addresses[Governor] = Addresses(ignore=_by_an_adapter, first_seen=_first_seen)
