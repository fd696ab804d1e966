"""Keys of the service's clients: who a caller is, what it may call, and until when.

A key is random, 256 bits, and shown once. What is kept is its SHA-256: of a random key nothing can be
guessed, so a slow hash would protect nothing more. A key is found by the id that it begins with, and its
digest is compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from ..core.attribution import check_attribution
from ..core.context import PARAMETERS
from ..core.errors import ConfigurationError

__all__ = [
    "ClientKey",
    "KeyStore",
    "Role",
    "digest_of",
    "is_secret_of",
    "is_valid",
    "key_id_of",
    "new_key",
    "rotated",
]

_FORM = re.compile(r"gok_([0-9a-f]{12})_[A-Za-z0-9_-]{43}\Z")
NAME_LENGTH = 100


class Role(StrEnum):
    """What the holder of a key may do."""

    CLIENT = "client"
    """call flows"""
    MONITOR = "monitor"
    """read metrics, and nothing else"""
    OPERATOR = "operator"
    """see budgets, providers and audits too, and reset, freeze and grant"""
    ADMIN = "admin"
    """make and revoke keys too"""


@dataclass(frozen=True, slots=True)
class ClientKey:
    """One client of the service. Times are epoch seconds."""

    id: str
    name: str
    role: Role
    attribution: Mapping[str, str]
    """what every call of it belongs to; no header of the caller's changes it"""
    flows: tuple[str, ...]
    """ids or names of the only flows it may call; none: all"""
    origins: tuple[str, ...]
    """origins of the pages that may use it in a browser; none: it is for servers"""
    created_at: float
    expires_at: float | None
    digest: str = field(repr=False)
    earlier_digest: str = field(default="", repr=False)
    """of the key that it had before it was rotated"""
    earlier_until: float = 0.0
    revoked_at: float | None = None

    def allows(self, flow: str, name: str = "") -> bool:
        """Whether it may call the flow of this id and name."""
        return not self.flows or flow in self.flows or (bool(name) and name in self.flows)


class KeyStore(Protocol):
    """Where keys are kept. Raises :class:`~genops_ctx.core.errors.StoreError` where it does not answer."""

    def find(self, key_id: str) -> ClientKey | None: ...

    def put(self, key: ClientKey) -> None:
        """Add it, or take the place of the one with its id."""
        ...

    def keys(self) -> tuple[ClientKey, ...]:
        """All of them, also those that are over, in the order they were made."""
        ...

    def close(self) -> None: ...


def new_key(
    name: str,
    *,
    now: float,
    role: Role | str = Role.CLIENT,
    attribution: Mapping[str, object] | None = None,
    flows: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
    expires_at: float | None = None,
) -> tuple[ClientKey, str]:
    """A key, and its secret, which nobody can tell later. Raises :class:`ConfigurationError`."""
    if not isinstance(name, str) or not name.strip() or len(name) > NAME_LENGTH or not name.isprintable():
        raise ConfigurationError(f"a key needs a printable name of 1 to {NAME_LENGTH} characters")
    try:
        known = Role(role)
    except ValueError:
        raise ConfigurationError(f"a key's role is one of {', '.join(Role)}, not {role!r}") from None
    if expires_at is not None and expires_at <= now:
        raise ConfigurationError("a key cannot expire before it is made")
    for origin in origins:
        if not re.fullmatch(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?", origin):
            raise ConfigurationError(
                f"an origin is written https://www.example.com, without a path, not {origin[:80]!r}"
            )
    given = dict(attribution or {})
    for taken in PARAMETERS:
        if taken in given:
            raise ConfigurationError(
                f"a client's key cannot have {taken!r} as an owner; give it another name"
            )
    checked = check_attribution(given, known=PARAMETERS, where="a client's key")
    key_id, secret = _fresh(secrets.token_hex(6))
    return (
        ClientKey(key_id, name.strip(), known, checked, flows, origins, now, expires_at, digest_of(secret)),
        secret,
    )


def rotated(key: ClientKey, *, now: float, grace: float) -> tuple[ClientKey, str]:
    """The same client with a new secret; the old one is good for ``grace`` more seconds."""
    _, secret = _fresh(key.id)
    again = replace(
        key, digest=digest_of(secret), earlier_digest=key.digest, earlier_until=now + max(grace, 0.0)
    )
    return again, secret


def _fresh(key_id: str) -> tuple[str, str]:
    return key_id, f"gok_{key_id}_{secrets.token_urlsafe(32)}"


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def key_id_of(secret: str) -> str | None:
    """The id that a secret begins with; None for what is no key of this service."""
    form = _FORM.match(secret)
    return form[1] if form else None


def is_valid(key: ClientKey | None, secret: str, now: float) -> bool:
    """Whether the secret is this key's, and good at this time. As long for every wrong secret."""
    owns = is_secret_of(key, secret, now)
    if key is None or key.revoked_at is not None:
        return False
    return owns and (key.expires_at is None or now < key.expires_at)


def is_secret_of(key: ClientKey | None, secret: str, now: float) -> bool:
    """Whether the secret is this key's, though it may be over."""
    given = digest_of(secret)
    current = hmac.compare_digest(given, key.digest if key else _NOBODYS)
    earlier = hmac.compare_digest(given, (key.earlier_digest if key else "") or _NOBODYS)
    return key is not None and (current or (earlier and now < key.earlier_until))


_NOBODYS = "0" * 64
