"""``genops-ctx serve`` with stores that wait as long as a busy machine takes.

A store that does not answer within a second or two is away, and calls are refused or go by what one worker
knows. On a machine that gives a process nothing for seconds that happens to any test; those whose subject it
is do without this. uvicorn's workers import this module again, as their main one.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from genops_ctx.ledger import postgres_connection
from genops_ctx.ledger.postgres import PostgresLedger
from genops_ctx.ledger.postgres_connection import PostgresConnections
from genops_ctx.stores.redis import RedisStore
from genops_ctx.stores.redis_rules import RedisRules
from genops_ctx.stores.sqlite import SQLiteStore
from genops_ctx.stores.sqlite_resilience import SQLiteResilience

PATIENCE = 30.0
"""seconds"""
IMPATIENT = "TESTS_IMPATIENT"
"""set where stores are to be waited for as long as the product waits"""
KEYS_KNOWN = "TESTS_KEYS_KNOWN_SECONDS"
"""where a test needs its clients' keys to be known while the ledger is away, however long that takes"""
BOUNDS: dict[type[Any], tuple[str, ...]] = {
    PostgresLedger: ("answer_seconds",),
    PostgresConnections: ("answer_seconds",),
    RedisStore: ("command_timeout", "connect_timeout"),
    RedisRules: ("command_timeout", "connect_timeout"),
    SQLiteStore: ("timeout",),
    SQLiteResilience: ("timeout",),
}


def wait_longer() -> None:
    """Have each store that is made from now on be waited for."""
    for made, names in BOUNDS.items():
        for name in names:
            assert name in made.__init__.__kwdefaults__
            made.__init__.__kwdefaults__[name] = PATIENCE
    postgres_connection.CONNECT_SECONDS = int(PATIENCE)


def look_longer() -> None:
    """Have a worker's own looks at its stores last as long; and a key be known for as long as a test says."""
    from genops_ctx.service import access, health, metrics

    health.SECONDS = metrics.SECONDS = PATIENCE
    access.REMEMBERED_SECONDS = float(os.environ.get(KEYS_KNOWN, access.REMEMBERED_SECONDS))


if __name__ in ("__main__", "__mp_main__") and not os.environ.get(IMPATIENT):
    wait_longer()
    if __name__ == "__mp_main__" or sys.argv[-1] == "1":
        look_longer()
if __name__ == "__main__":
    import uvicorn

    from genops_ctx.cli import main

    # A client that stood still for 5 s would send into a connection that is being closed.
    assert uvicorn.run.__kwdefaults__["timeout_keep_alive"] == 5
    uvicorn.run.__kwdefaults__["timeout_keep_alive"] = 75
    main(prog_name="genops-ctx")
