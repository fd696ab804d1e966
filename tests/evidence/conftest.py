"""The PostgreSQL of the ledger's tests, for a ledger that several machines share."""

from __future__ import annotations

from tests.ledger.conftest import a_busy_server_is_waited_for, postgres_server

__all__ = ["a_busy_server_is_waited_for", "postgres_server"]
