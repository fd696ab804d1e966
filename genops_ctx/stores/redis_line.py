"""The line to a server: what its silence costs, and what its failures are called."""

from __future__ import annotations

import time

from ..core.errors import GovernanceError, StoreError

__all__ = ["Line"]


class Line:
    """After one call has waited in vain, those that follow are told so at once, for a moment."""

    def __init__(self, server: str, timeout: float) -> None:
        self.server = server
        """for people, without credentials"""
        self._timeout = timeout
        self._silent_until = 0.0

    def check(self) -> None:
        """Raises :class:`StoreError` where the server was silent a moment ago."""
        if self._silent_until and time.monotonic() < self._silent_until:
            raise StoreError(f"Redis at {self.server} did not answer a moment ago")

    def answered(self) -> None:
        if self._silent_until:
            self._silent_until = 0.0

    def failed(self, error: Exception, begun: float) -> Exception:
        """What to raise for an error of a question that was begun then (monotonic seconds)."""
        if isinstance(error, GovernanceError):
            return error
        from redis.exceptions import RedisError, TimeoutError

        if not isinstance(error, RedisError | OSError):
            return error
        now = time.monotonic()
        waited = now - begun
        if isinstance(error, TimeoutError) or waited > self._timeout:
            self._silent_until = now + 2 * max(waited, self._timeout)
            return StoreError(f"Redis at {self.server} did not answer within {waited:.3f} s")
        return StoreError(f"Redis at {self.server} failed ({type(error).__name__}: {error})")
