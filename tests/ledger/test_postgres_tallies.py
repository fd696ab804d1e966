"""The sums that monitoring reads, on a real PostgreSQL: exact whoever counts, and whatever appears late."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genops_ctx.core.records import Charge
from genops_ctx.ledger import postgres_tallies, tallies
from genops_ctx.ledger.postgres import PostgresLedger
from genops_ctx.ledger.postgres_schema import MIGRATIONS
from genops_ctx.ledger.tallies import Batch, Counts, Labels, Slot, TallyKeeper
from tests.ledger.charges import charges
from tests.ledger.postgres_server import PostgresServer
from tests.ledger.test_postgres import emptied
from tests.ledger.test_tallies import batches, counted, shown, unlike
from tests.strategies import charge, line

pytestmark = pytest.mark.slow


@pytest.fixture
def url(postgres_server: PostgresServer) -> str:
    return postgres_server.new_database()


@pytest.fixture
def ledger(url: str) -> Iterator[PostgresLedger]:
    ledger = PostgresLedger(url)
    yield ledger
    ledger.close()


def one(operation: str) -> Charge:
    return charge(line(3), line(2, provider="anthropic"), operation=operation)


def requests_of(ledger: TallyKeeper) -> int:
    return sum(counts.requests for _, _, counts in ledger.tallies())


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(charges, max_size=8).map(unlike), batches, st.integers(0, 8))
def test_it_counts_as_a_plain_count_does(
    url: str, booked: list[Charge], said: list[Batch], seen: int
) -> None:
    ledger = emptied(url)
    for each in booked[:seen]:
        ledger.append(each)
    assert ledger.count_on(60)
    for each in booked[seen:]:
        ledger.append(each)
        ledger.append(each)
    for batch in said:
        ledger.tally(batch)
        ledger.tally(batch)  # the answer to the first was lost
    assert shown(ledger) == counted(booked, said)
    ledger.close()
    assert shown(PostgresLedger(url)) == counted(booked, said)


def test_a_charge_that_is_seen_late_is_counted_once(ledger: PostgresLedger, url: str) -> None:
    """Numbers are given before the commit: a lower one may appear after a higher one was counted."""
    import psycopg

    ledger.append(one("first"))
    with psycopg.connect(url) as slow:
        slow.execute(
            "INSERT INTO genops.charges OVERRIDING SYSTEM VALUE "
            "SELECT nextval('genops.charges_seq_seq'), 'late#1', 'late', 1, name, flow, outcome, "
            "attribution, context_path, started_at, ended_at, 0, accounts, flags, '', '' FROM genops.charges"
        )
        for number in range(4):
            ledger.append(one(f"op{number}"))
        assert ledger.count_on(60)
        assert requests_of(ledger) == 5
        slow.commit()
    for _ in range(2):
        assert ledger.count_on(60)
        assert requests_of(ledger) == 6


def test_conversations_and_labels_beyond_a_number(
    ledger: PostgresLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "MOST_LABELS", 2)
    for number in range(6):
        named = charge(line(1), operation=f"op{number}", attribution={"session_id": f"s{number // 2}"})
        at = 1000.0 * number
        ledger.append(replace(named, flow=f"flow {number % 4}", started_at=at, ended_at=at + 1))
        assert ledger.count_on(60)
    requests = {labels.flow: counts.requests for labels, _, counts in ledger.tallies()}
    assert requests == {"flow 0": 2, "flow 1": 2, "other": 2}
    assert ledger.active_sessions(1000.0) == 3
    assert ledger.active_sessions(1001.0) == 2


def test_an_older_ledger_is_counted_from_its_first_charge(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from genops_ctx.ledger import postgres

    monkeypatch.setattr(postgres_tallies, "BATCH", 10)
    monkeypatch.setattr(postgres, "MIGRATIONS", MIGRATIONS[:3])
    before = PostgresLedger(url)
    for number in range(25):
        before.append(one(f"op{number}"))
        before.append(one(f"op{number}"))  # takes a number that no charge will ever have
    monkeypatch.setattr(postgres, "MIGRATIONS", MIGRATIONS)
    after = PostgresLedger(url)
    assert not after.count_on(-1)
    assert after.count_on(60)
    before.append(one("booked by an old process"))
    assert after.count_on(60)
    by_provider = {labels.provider: (counts.requests, counts.gross) for labels, _, counts in after.tallies()}
    assert by_provider == {"openai": (26, 78), "anthropic": (0, 52)}
    before.close()
    after.close()


def _book_and_count(url: str, worker: int, charges: int) -> None:
    ledger = PostgresLedger(url, answer_seconds=20)
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            ledger.count_on(5)

    looking = threading.Thread(target=look)
    looking.start()
    with ThreadPoolExecutor(3) as pool:
        for number in range(charges):
            pool.submit(ledger.append, one(f"{worker}-{number}"))
            refused = {(Labels("", f"team {number % 3}", "", ""), Slot("refused", 0)): Counts(1)}
            if number % 4 == 0:
                ledger.tally(Batch(f"worker {worker}", number + 1, refused))
    done.set()
    looking.join()
    ledger.close()


def test_processes_that_book_and_count_at_once(url: str) -> None:
    """Four, each with several threads, all of them counting all the time; 30 refusals each."""
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.starmap(_book_and_count, [(url, worker, 120) for worker in range(4)])
    ledger = PostgresLedger(url)
    assert ledger.count_on(60)
    found = {
        (labels.provider, slot.status): (counts.requests, counts.gross)
        for labels, slot, counts in ledger.tallies()
        if slot.status != "refused"
    }
    assert found == {("openai", "success"): (480, 1440), ("anthropic", ""): (0, 960)}
    assert requests_of(ledger) == 480 + 120
    ledger.close()
