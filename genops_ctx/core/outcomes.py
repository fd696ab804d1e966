"""How an attempt can end, and what is booked for it. One table, tested row by row.

The rows follow what Flowise was measured to do: a refusal of its own calls no model; any other
failure may come after a model call that the provider bills.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType

__all__ = ["BOOKINGS", "FAILURES", "Booking", "Outcome"]


class Outcome(StrEnum):
    """How one attempt ended."""

    COMPLETED = "completed"
    NOT_SENT = "not_sent"
    """connection refused, name not found, TLS failure: before the request left"""
    REFUSED = "refused"
    """Flowise refused it before calling a model: 400, 401, 402, 403, 404, 413, its own 429,
    ``Unauthorized`` as 500 or as a stream's error, or an HTML page instead of an answer"""
    FAILED = "failed"
    """any other error that Flowise answered: a model may have been called"""
    TIMED_OUT = "timed_out"
    DISCONNECTED = "disconnected"
    """the connection broke after the request had left"""
    TRUNCATED = "truncated"
    """the stream ended without its end"""
    ABANDONED = "abandoned"
    """the caller closed or dropped the stream before its end; Flowise runs on"""
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    """nobody finished it in time: the process died"""


FAILURES = (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.DISCONNECTED, Outcome.TRUNCATED)
"""What says that the other side is failing."""


class Booking(StrEnum):
    """What is booked."""

    RELEASE = "release"
    """nothing was sent: the reservation goes back, no charge"""
    NOTHING = "nothing"
    """a charge of $0"""
    USAGE = "usage"
    """the usage that was reported; an estimate for what was not"""
    INPUT = "input"
    """the usage that is proved; else the estimate of the input"""
    ESTIMATE = "estimate"
    """the usage that is proved; else the estimate of the whole call. Never exact."""
    RESERVED = "reserved"
    """all that was set aside"""


BOOKINGS = MappingProxyType(
    {
        Outcome.COMPLETED: Booking.USAGE,
        Outcome.NOT_SENT: Booking.RELEASE,
        Outcome.REFUSED: Booking.NOTHING,
        Outcome.FAILED: Booking.INPUT,
        Outcome.TIMED_OUT: Booking.ESTIMATE,
        Outcome.DISCONNECTED: Booking.ESTIMATE,
        Outcome.TRUNCATED: Booking.ESTIMATE,
        Outcome.ABANDONED: Booking.ESTIMATE,
        Outcome.CANCELLED: Booking.ESTIMATE,
        Outcome.EXPIRED: Booking.RESERVED,
    }
)
