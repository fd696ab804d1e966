"""What the user of a ledger may do where another has made its tables: as much as the guide says."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from genops_ctx.core.errors import StoreError
from genops_ctx.core.ports import Witness
from genops_ctx.ledger.postgres import PostgresLedger
from genops_ctx.ledger.tallies import Batch, Counts, Labels, Slot
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from tests.ledger.postgres_server import PostgresServer
from tests.strategies import charge, line

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "how-to.md"


def test_the_rights_that_the_guide_names_are_enough(postgres_server: PostgresServer) -> None:
    import psycopg

    owner = postgres_server.new_database()
    now = time.time()
    made, (key, _) = PostgresLedger(owner), new_key("shop", now=now)
    made.append(charge(line(1), operation="first"))
    made.evidence_log().newest()
    open_keys(owner).put(key)
    made.close()
    rights = re.findall(r"`((?:USAGE|SELECT)\b[^`]*)`", GUIDE.read_text(encoding="utf-8"))
    assert len(rights) == 2
    user = f"app_{time.monotonic_ns()}"
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'a-password'")
        for right in rights:
            connection.execute(f"GRANT {right} TO {user}")
    url = re.sub(r"//.*@", f"//{user}:a-password@", owner)
    ledger = PostgresLedger(url)
    assert ledger.append(charge(line(2), operation="second"), settled=False)
    ledger.mark_settled(["second#1"], Witness("a store", "second#1", now))
    assert ledger.unsettled() == ()
    ledger.tally(Batch("writer", 1, {(Labels("f", "t", "p", ""), Slot("refused", 0)): Counts(requests=1)}))
    assert ledger.count_on(10.0)
    assert sum(tally.counts.requests for tally in ledger.tallies()) == 3
    assert ledger.totals()[0].nanos == 3
    log = ledger.evidence_log()
    log.add(now - 10, [("shown", "{}")])
    assert log.lead("me", 5.0) is not None
    assert log.forget(now, 10)
    assert log.newest() == 0
    log.resign("me")
    others = open_keys(url)
    others.put(key)
    assert others.keys() == (key,)
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute(f"REVOKE UPDATE ON ALL TABLES IN SCHEMA genops FROM {user}")
    with pytest.raises(StoreError, match="permission denied"):
        ledger.append(charge(line(3), operation="third"))
    for one in (ledger, others):
        one.close()
