"""What passes between a client and Flowise, and what does not: paths, and headers in both directions.

Only what Flowise's public clients call is passed on, and only to the one Flowise of the settings: neither
a path nor a header can lead a request anywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from ..receivers.upstreams import HOP_BY_HOP

__all__ = ["Forwarded", "flow_in_query", "forwarded_path", "request_headers", "response_headers"]

_ID = r"(?P<flow>[0-9A-Za-z][0-9A-Za-z_-]{0,63})"
_PART = r"[0-9A-Za-z][0-9A-Za-z._@:-]{0,199}"


class Forwarded(NamedTuple):
    """A path below ``/api/v1/`` that is passed on."""

    kind: str
    """``prediction`` is governed; ``upsert`` may call embedding models; ``other`` costs nothing, nor does
    ``file``, whose flow is in its query; ``open`` needs no key either, of Flowise or of ours: the official
    SDK asks it without one"""
    path: str
    flow: str
    """the id that is in it, empty where there is none"""


# What the widget, the official SDKs and curl users of a flow call. Reading or deleting stored messages or
# leads is not among them: with Flowise's own key those are everybody's. Nor is speech, which is not metered.
_PASSED: tuple[tuple[str, str, re.Pattern[str]], ...] = tuple(
    (kind, method, re.compile(pattern + r"\Z"))
    for kind, method, pattern in (
        ("prediction", "POST", rf"prediction/{_ID}"),
        ("upsert", "POST", rf"vector/upsert/{_ID}"),
        ("open", "GET", rf"chatflows-streaming/{_ID}"),
        ("other", "GET", rf"public-chatbotConfig/{_ID}"),
        ("other", "GET", rf"public-chatflows/{_ID}"),
        ("other", "POST", rf"feedback/{_ID}"),
        ("other", "PUT", rf"feedback/{_PART}"),
        ("other", "POST", r"leads/?"),  # the widget asks with the slash
        ("other", "POST", rf"attachments/{_ID}/{_PART}"),
        ("other", "PUT", rf"chatmessage/abort/{_ID}/{_PART}"),
        ("file", "GET", r"get-upload-file"),
        ("other", "GET", rf"node-icon/{_PART}"),
        ("open", "GET", r"ping"),
        ("other", "GET", r"version"),
    )
)


# A quoted slash, dot, backslash or percent sign, and quoted bytes that are no ASCII characters.
_TRICK = re.compile(r"%(?:2[eEfF5]|5[cC]|[01][0-9a-fA-F]|7[fF]|[89a-fA-F]|(?![0-9a-fA-F]{2}))")


def forwarded_path(method: str, raw: str) -> Forwarded | None:
    """What a request below ``/api/v1/`` is, by its path as it came; None for what is not passed on."""
    if _TRICK.search(raw):
        return None  # read differently by each that stands between
    path = unquote(raw)
    for kind, allowed, pattern in _PASSED:
        found = pattern.match(path) if method == allowed else None
        if found is not None:
            return Forwarded(kind, path, found.groupdict().get("flow") or "")
    return None


def flow_in_query(query: str) -> str | None:
    """The flow that a stored file belongs to; None unless it is named once, in a form read one way only."""
    named = [(name, value) for name, value in parse_qsl(query) if name.lower().startswith("chatflowid")]
    if len(named) != 1 or named[0][0] != "chatflowId" or not re.fullmatch(_ID, named[0][1]):
        return None
    return named[0][1]


_HOP_BY_HOP = frozenset(name.decode() for name in HOP_BY_HOP)
_NOT_SENT = _HOP_BY_HOP | frozenset(
    {
        "host",
        "content-length",
        "authorization",
        "x-api-key",
        "cookie",
        "accept-encoding",
        "origin",
        "referer",
        "forwarded",
        "x-real-ip",
        "expect",
        # Who is told of owners and traces is GENOPS_PROPAGATE_TO's to say.
        "baggage",
        "traceparent",
        "tracestate",
        "idempotency-key",
        # A call that says it is one of Flowise's own tools is streamed no usage.
        "flowise-tool",
    }
)
_NOT_ANSWERED = _HOP_BY_HOP | frozenset(
    {
        "content-length",
        "set-cookie",
        "location",
        "server",
        "date",
        "x-powered-by",
        "strict-transport-security",
        "alt-svc",
    }
)


def request_headers(given: Iterable[tuple[str, str]], api_key: str | None) -> dict[str, str]:
    """What Flowise gets: the client's headers without its credentials and this hop's, and Flowise's key."""
    pairs = [(name.lower(), value) for name, value in given]
    # Without its type Flowise reads a body as an empty question, and pays for that.
    dropped = _NOT_SENT | (_named_by_connection(pairs) - {"content-type"})
    headers = {
        name: value
        for name, value in pairs
        if name not in dropped
        and not name.startswith(("x-forwarded-", "x-genops-", "sec-", "x-request-from"))
    }
    headers["accept-encoding"] = "identity"
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    return headers


def response_headers(given: Mapping[str, str] | Iterable[tuple[str, str]]) -> dict[str, str]:
    """What the client gets of Flowise's headers. Whose page may read the answer is this service's to say."""
    items = given.items() if isinstance(given, Mapping) else given
    pairs = [(name.lower(), value) for name, value in items]
    dropped = _NOT_ANSWERED | _named_by_connection(pairs)
    return {
        # aiohttp reads UTF-8, and what is none as surrogates; ASGI wants the bytes as they came.
        name: value.encode("utf-8", "surrogateescape").decode("latin-1")
        for name, value in pairs
        if name not in dropped and not name.startswith("access-control-")
    }


def _named_by_connection(pairs: list[tuple[str, str]]) -> set[str]:
    return {
        name.strip().lower() for header, value in pairs if header == "connection" for name in value.split(",")
    }
