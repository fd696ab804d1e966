"""What an exception of someone else's client says of the request: whether it had left, and how it ended."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..core.outcomes import Outcome
from ..providers.transport import causes_of

__all__ = ["Failure", "failure_of"]


class Failure(NamedTuple):
    """How a call ended that brought an exception; ``status`` where Flowise had answered."""

    outcome: Outcome
    status: int | None = None


_HTTPX = ("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "ProxyError", "InvalidURL")

NEVER_LEFT = {
    "urllib3.exceptions": (
        "NewConnectionError",
        "ConnectTimeoutError",
        "NameResolutionError",
        "ProxyError",
        "LocationParseError",
    ),
    "requests.exceptions": ("InvalidURL", "InvalidSchema", "InvalidHeader", "MissingSchema"),
    "httpx": _HTTPX,
    "httpx2": _HTTPX,
    "aiohttp": (
        "ClientConnectorError",
        "ClientSSLError",
        "ClientHttpProxyError",
        "ConnectionTimeoutError",
        "InvalidURL",
    ),
}
TIMED_OUT = {
    "urllib3.exceptions": ("TimeoutError",),
    "requests.exceptions": ("Timeout",),
    "httpx": ("TimeoutException",),
    "httpx2": ("TimeoutException",),
}


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception from sending or reading tells of.

    Only errors that come from before the connection stood prove that nothing was sent.
    """
    if not isinstance(error, Exception):
        return Failure(Outcome.CANCELLED)
    causes = tuple(causes_of(error))
    status = _status_of(error)
    if status is not None:
        return Failure(Outcome.FAILED, status)
    if any(isinstance(cause, (ConnectionRefusedError, socket.gaierror)) for cause in causes) or _among(
        causes, NEVER_LEFT
    ):
        return Failure(Outcome.NOT_SENT)
    if any(isinstance(cause, TimeoutError) for cause in causes) or _among(causes, TIMED_OUT):
        return Failure(Outcome.TIMED_OUT)
    return Failure(Outcome.DISCONNECTED)


def _status_of(error: Exception) -> int | None:
    """The status that ``raise_for_status`` told, in a hook or by a session's own setting."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) and 400 <= status < 600 else None


def _among(causes: Iterable[BaseException], names: Mapping[str, tuple[str, ...]]) -> bool:
    for module, classes in names.items():
        loaded = sys.modules.get(module)
        kinds = tuple(getattr(loaded, name) for name in classes if hasattr(loaded, name))
        if kinds and any(isinstance(cause, kinds) for cause in causes):
            return True
    return False
