"""The PostgreSQL of the ledger's tests, for a ledger that several machines share."""

from __future__ import annotations

from tests.ledger.conftest import postgres_server

__all__ = ["postgres_server"]
