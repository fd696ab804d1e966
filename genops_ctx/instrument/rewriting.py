"""A prediction's URL with another flow in it, for a budget that degrades to a cheaper one."""

from __future__ import annotations

from urllib.parse import quote, urlsplit, urlunsplit

from .addresses import PREDICTION

__all__ = ["other_flow"]


def other_flow(url: str, flow: str) -> str:
    """The URL of a prediction, of another flow."""
    parts = urlsplit(url)
    at = parts.path.lower().rindex(PREDICTION) + len(PREDICTION)
    return urlunsplit(parts._replace(path=parts.path[:at] + quote(flow, safe="")))
