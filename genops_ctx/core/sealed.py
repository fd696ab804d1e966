"""Values that go through other hands and come back: readable by all, made by whoever has the key."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from typing import Any

from .errors import ConfigurationError

__all__ = ["MAX_SEALED", "seal", "unseal"]

VERSION = "genops1"

MAX_SEALED = 16_384
"""Characters of the longest text that is unsealed."""


def seal(value: dict[str, Any], key: str, purpose: str) -> str:
    """A printable text of a JSON object, signed by HMAC-SHA256; ``purpose`` keeps kinds apart.

    Raises :class:`ConfigurationError` where it would be too long to be read again.
    """
    data = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    body = base64.urlsafe_b64encode(data).decode()
    sealed = f"{VERSION}.{body}.{_signature(body, key, purpose)}"
    if len(sealed) > MAX_SEALED:
        raise ConfigurationError(f"a context of {len(sealed)} characters is too long to be sent elsewhere")
    return sealed


def unseal(text: object, key: str, purpose: str) -> dict[str, Any]:
    """What was sealed with this key. Raises :class:`ConfigurationError` for anything else."""
    if isinstance(text, str) and len(text) <= MAX_SEALED and text.isascii():
        version, _, rest = text.partition(".")
        body, _, signature = rest.partition(".")
        if version == VERSION and hmac.compare_digest(signature, _signature(body, key, purpose)):
            try:
                value = json.loads(base64.urlsafe_b64decode(body))
            except (ValueError, binascii.Error):
                value = None
            if isinstance(value, dict):
                return value
    raise ConfigurationError(
        "what should be an exported context was not signed with this process's key: "
        "give both processes the same GENOPS_SIGNING_KEY"
    )


def _signature(body: str, key: str, purpose: str) -> str:
    signed = f"{VERSION}.{purpose}.{body}".encode()
    return base64.urlsafe_b64encode(hmac.digest(key.encode(), signed, hashlib.sha256)).decode()
