"""Where a model proxy may send to, and which headers pass: nothing else leaves, and nothing of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from ..core.errors import ConfigurationError

__all__ = [
    "HOP_BY_HOP",
    "OUR_HEADERS",
    "Target",
    "Upstream",
    "forwarded",
    "request_headers",
    "target_of",
    "upstreams_of",
]

OUR_HEADERS: Final = b"x-fw-"
"""What the headers begin with that are between Flowise and the proxy; they never go further."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}\Z")
_PATH: Final = re.compile(r"[A-Za-z0-9_.:@,-]+(?:/[A-Za-z0-9_.:@,-]+)*\Z")
_QUERY: Final = re.compile(rb"[A-Za-z0-9_.:@,%&=+~/-]*\Z")

# RFC 9110 7.6.1, and what clients send out of habit
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_OF_THE_MESSAGE: Final = frozenset({b"host", b"content-length", b"accept-encoding", b"expect"})
"""Made anew for the request that is sent on. Compressed answers could not be read."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """One model API that may be called, by the name that stands first in the proxy's paths."""

    name: str
    url: str
    """up to and with the version, as an OpenAI client's base URL: ``https://api.openai.com/v1``"""
    provider: str
    """whose prices its calls have"""


@dataclass(frozen=True, slots=True)
class Target:
    """What one request asks for: an upstream, and a path below its URL."""

    upstream: Upstream
    path: str
    query: str

    @property
    def url(self) -> str:
        query = f"?{self.query}" if self.query else ""
        return f"{self.upstream.url}/{self.path}{query}"


def upstreams_of(given: Mapping[str, str] | Iterable[Upstream]) -> dict[str, Upstream]:
    """Upstreams by name, from ``{"openai": "https://api.openai.com/v1"}`` or ready-made ones.

    The name is taken for the provider's. Raises :class:`ConfigurationError` for a name or URL that
    cannot be one, and for none at all.
    """
    if isinstance(given, Mapping):
        given = [Upstream(name, url, name) for name, url in given.items()]
    found: dict[str, Upstream] = {}
    for upstream in given:
        if not _NAME.match(upstream.name):
            raise ConfigurationError(
                f"an upstream's name is lower-case letters, digits, - and _, not {upstream.name!r}"
            )
        found[upstream.name] = Upstream(upstream.name, _checked(upstream.url), upstream.provider)
    if not found:
        raise ConfigurationError("a model proxy needs an upstream: {'openai': 'https://api.openai.com/v1'}")
    return found


def _checked(url: str) -> str:
    text = url.strip().rstrip("/")
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        valid = False
        parts = urlsplit("")
    if not valid or any(sign.isspace() or not sign.isprintable() for sign in text):
        raise ConfigurationError("an upstream's URL must be like https://api.openai.com/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigurationError("an upstream's URL must have no user, password, query or fragment")
    return text


def target_of(path: str, query: bytes, upstreams: Mapping[str, Upstream]) -> Target | None:
    """What ``/openai/chat/completions`` means; None for anything but a plain path below a known name.

    ``path`` is taken as it came, before percent-decoding: what is encoded, climbs up (``..``) or holds
    an address of its own is none.
    """
    name, _, rest = path.removeprefix("/").partition("/")
    upstream = upstreams.get(name)
    if upstream is None or not _PATH.match(rest) or not _QUERY.match(query):
        return None
    if any(not part.strip(".") for part in rest.split("/")):
        return None
    return Target(upstream, rest, query.decode("ascii"))


def forwarded(
    headers: Iterable[tuple[bytes, bytes]], *, also_dropped: frozenset[bytes] = frozenset()
) -> list[tuple[bytes, bytes]]:
    """The headers that pass on; names in lower case. Those that ``Connection`` lists do not."""
    lowered = [(name.lower(), value) for name, value in headers]
    listed = {
        item.strip().lower() for name, value in lowered if name == b"connection" for item in value.split(b",")
    }
    dropped = HOP_BY_HOP | listed | also_dropped
    return [
        (name, value) for name, value in lowered if name not in dropped and not name.startswith(OUR_HEADERS)
    ]


def request_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of a request as they are sent on: an answer that can be read is asked for."""
    return [*forwarded(headers, also_dropped=_OF_THE_MESSAGE), (b"accept-encoding", b"identity")]
