"""Attribution in the W3C ``baggage`` header (https://www.w3.org/TR/baggage/): ``genops.team=search,…``.

Other members are passed over. One that is ours and hostile (twice, too long, not printable, no
identifier) takes all of ours with it: half of an attribution would be somebody else's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

from .attribution import Attribution, check_attribution
from .errors import ConfigurationError

__all__ = ["MAX_BAGGAGE", "MAX_MEMBERS", "baggage_of", "read_baggage"]

MAX_BAGGAGE = 8192
"""Bytes of a whole header, by the specification."""

MAX_MEMBERS = 64
"""Members of a header, by the specification."""

PREFIX = "genops."

_VALUE = re.compile(r"(?:[\x21\x23-\x24\x26-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]|%[0-9A-Fa-f]{2})*\Z")


def baggage_of(attribution: Mapping[str, str]) -> str:
    """The header's value; empty where there is no attribution, or too much for a header."""
    members = [f"{PREFIX}{key}={quote(value, safe='')}" for key, value in attribution.items()]
    text = ",".join(members)
    return text if len(text) <= MAX_BAGGAGE and len(members) <= MAX_MEMBERS else ""


def read_baggage(text: str) -> Attribution:
    """Our members of a header. Raises :class:`ConfigurationError` for a hostile one."""
    if len(text) > MAX_BAGGAGE or not text.isascii():
        raise ConfigurationError(f"a baggage header has at most {MAX_BAGGAGE} ASCII characters")
    members = text.split(",")
    if len(members) > MAX_MEMBERS:
        raise ConfigurationError(f"a baggage header has at most {MAX_MEMBERS} members")
    found: dict[str, object] = {}
    for member in members:
        name, separator, value = member.partition(";")[0].partition("=")
        name, value = name.strip(), value.strip()
        if not name.startswith(PREFIX):
            continue
        key = name.removeprefix(PREFIX)
        if not separator or key in found or not _VALUE.match(value):
            raise ConfigurationError("a baggage member of genops is not one key and one value")
        try:
            found[key] = unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise ConfigurationError("a baggage value of genops is not UTF-8") from None
    return check_attribution(found, where="baggage")
