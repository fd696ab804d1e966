"""Posting alerts to a webhook, in the shape that Slack, Mattermost and Discord's /slack take."""

from __future__ import annotations

import json
import socket
import time
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ..core.errors import ConfigurationError, GovernanceError

if TYPE_CHECKING:
    from ..core.alerts import Alert

__all__ = ["Webhook", "WebhookError"]

DEADLINE = 5.0
"""Seconds for a whole post; looked at before each step, so a slow name server may add to it."""


class WebhookError(GovernanceError):
    """A post did not arrive. The message names the host only: the rest of the address is a secret."""


class Webhook:
    """A sink of alerts. Its address is as secret as a password, and is never shown.

    Raises :class:`ConfigurationError` for an address that is not one of http or https.
    """

    def __init__(self, url: str, *, deadline: float = DEADLINE) -> None:
        try:
            parts = urlsplit(url.strip())
            port = parts.port
        except (ValueError, AttributeError):
            raise ConfigurationError("a webhook is an address like https://hooks.example.com/…") from None
        printable = url.isascii() and url.strip().isprintable() and " " not in url.strip()
        if parts.scheme not in ("http", "https") or not parts.hostname or not printable:
            raise ConfigurationError("a webhook is an address like https://hooks.example.com/…")
        self._secure = parts.scheme == "https"
        self.host = parts.hostname
        self._port = port or (443 if self._secure else 80)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._deadline = deadline

    def __repr__(self) -> str:
        return f"<Webhook at {self.host}>"

    def __call__(self, alert: Alert) -> None:
        """Post an alert; raises :class:`WebhookError`."""
        self.post(alert.text)

    def post(self, text: str) -> int:
        """Post a text and return the status; raises :class:`WebhookError` for any but 2xx."""
        content = json.dumps({"text": _escaped(text)}).encode()
        try:
            status = self._post(content, time.monotonic() + self._deadline)
        except (OSError, ValueError, HTTPException) as error:
            raise WebhookError(f"the webhook at {self.host} cannot be reached: {_named(error)}") from None
        if not 200 <= status < 300:
            raise WebhookError(f"the webhook at {self.host} answered with status {status}")
        return status

    def _post(self, content: bytes, end: float) -> int:
        connection, path = self._connection(_left(end))
        try:
            connection.connect()
            wire = connection.sock
            assert isinstance(wire, socket.socket)
            wire.settimeout(_left(end))
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request("POST", path, body=content, headers=headers)
            return _status(wire, end)
        finally:
            connection.close()

    def _connection(self, timeout: float) -> tuple[HTTPConnection, str]:
        """To the host, or to the proxy that the environment names for it."""
        kind = HTTPSConnection if self._secure else HTTPConnection
        scheme = "https" if self._secure else "http"
        proxy = "" if proxy_bypass(self.host) else getproxies().get(scheme, "")
        if not proxy:
            return kind(self.host, self._port, timeout=timeout), self._path
        at = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if not at.hostname:
            raise ValueError(f"the {scheme} proxy of the environment has no host")
        connection = kind(at.hostname, at.port or 8080, timeout=timeout)
        if self._secure:
            connection.set_tunnel(self.host, self._port)
            return connection, self._path
        return connection, f"http://{self.host}:{self._port}{self._path}"


def _status(wire: socket.socket, end: float) -> int:
    """The status of an answer; what follows its first line is not read."""
    line = b""
    while b"\n" not in line and len(line) < 1000:
        wire.settimeout(_left(end))
        packet = wire.recv(1000)
        if not packet:
            break
        line += packet
    words = line.split(b"\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ValueError("it does not speak HTTP")
    return int(words[1])


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("it took too long")
    return left


def _named(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    # The texts of http.client may hold the path, which is the secret.
    return type(error).__name__ if isinstance(error, HTTPException) else f"{type(error).__name__}: {error}"


def _escaped(text: str) -> str:
    """Slack's control characters, so that no name in it can call a channel."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
