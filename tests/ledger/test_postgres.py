"""``postgresql://`` ledger, on a real server: what goes in comes out, once, whatever happens to it."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genops_ctx import configure, metered_call
from genops_ctx.core.errors import ConfigurationError, StoreError
from genops_ctx.core.money import MAX_NANOS
from genops_ctx.core.ports import AuditEvent
from genops_ctx.core.records import Charge
from genops_ctx.group_commit import append_each
from genops_ctx.ledger import open_ledger, postgres, postgres_connection
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.ledger.postgres import PostgresLedger
from tests.ledger.charges import charges, times
from tests.ledger.postgres_server import PostgresServer
from tests.ledger.test_totals import NAMES, unlike
from tests.patience import once_it_answers
from tests.strategies import charge, line

pytestmark = pytest.mark.slow
on_one_server = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def url(postgres_server: PostgresServer) -> str:
    return postgres_server.new_database()


@pytest.fixture
def ledger(url: str) -> Iterator[PostgresLedger]:
    ledger = open_ledger(url)
    assert isinstance(ledger, PostgresLedger)
    yield ledger
    ledger.close()


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """One that the test may pause and stop."""
    with PostgresServer() as server:
        yield server


def emptied(url: str) -> PostgresLedger:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET client_min_messages = warning")
        connection.execute("DROP SCHEMA IF EXISTS genops CASCADE")
    return PostgresLedger(url)


@on_one_server
@given(st.lists(charges, max_size=6))
def test_what_goes_in_comes_out(url: str, booked: list[Charge]) -> None:
    ledger = emptied(url)
    kept: dict[str, Charge] = {}
    for one in booked:
        assert ledger.append(one, settled=False) == (one.id not in kept)
        kept.setdefault(one.id, one)
    ledger.close()  # and as another process would see it
    ledger = PostgresLedger(url)
    everything = list(kept.values())
    assert list(ledger.charges()) == everything
    assert list(ledger.unsettled(limit=1000)) == everything
    for operation in {one.operation for one in booked}:
        assert list(ledger.charges(operation)) == [one for one in everything if one.operation == operation]
    ledger.mark_settled([one.id for one in everything[:3]])
    assert list(ledger.unsettled(limit=1000)) == everything[3:]
    assert list(ledger.unsettled(limit=1)) == everything[3:4]
    ledger.close()


@on_one_server
@given(
    st.lists(charges, max_size=8).map(unlike),
    st.one_of(st.none(), times),
    st.one_of(st.none(), times),
    st.lists(st.sampled_from(NAMES), max_size=3, unique=True).map(tuple),
    st.dictionaries(
        st.sampled_from(NAMES), st.sampled_from(["a", "<none>", "openai", "support"]), max_size=1
    ),
)
def test_it_counts_as_a_plain_scan_does(
    url: str,
    booked: list[Charge],
    since: float | None,
    until: float | None,
    by: tuple[str, ...],
    where: dict[str, str],
) -> None:
    ledger, memory = emptied(url), MemoryLedger()
    for one in booked:
        ledger.append(one)
        memory.append(one)
    assert ledger.totals(since, until, by, where) == memory.totals(since, until, by, where)
    ledger.close()


@on_one_server
@given(st.lists(st.tuples(charges, st.booleans()), max_size=8), st.integers(1, 8))
def test_several_at_once_are_booked_as_one_after_the_other(
    url: str, booked: list[tuple[Charge, bool]], size: int
) -> None:
    ledger, memory = emptied(url), MemoryLedger()
    for first in range(0, len(booked), size):
        some = booked[first : first + size]
        fresh = [memory.append(one, settled=settled) for one, settled in some]
        assert ledger.append_all(some) == fresh
    assert list(ledger.charges()) == list(memory.charges())
    assert list(ledger.unsettled(1000)) == list(memory.unsettled(1000))
    assert ledger.totals(by=("flow", "model")) == memory.totals(by=("flow", "model"))
    ledger.close()


def test_of_several_at_once_all_are_booked_or_none(ledger: PostgresLedger) -> None:
    ledger.append(charge(line(1), operation="before"))
    good = [(charge(line(2), operation=f"op{number}"), False) for number in range(3)]
    too_long = charge(line(3), operation="".join(map(chr, range(0x4E00, 0x4E00 + 9000))))
    with pytest.raises(StoreError):
        ledger.append_all([*good, (too_long, False)])
    assert [one.operation for one in ledger.charges()] == ["before"]
    assert ledger.totals()[0].nanos == 1
    assert append_each(ledger, [good[0], (too_long, False), *good[1:]])[0] is True
    assert [one.operation for one in ledger.charges()] == ["before", "op0", "op1", "op2"]
    assert ledger.totals()[0].nanos == 7


def _book_batches(url: str, worker: int) -> int:
    """Batches over the same days and series, each process in another order; half of it is the same."""
    ledger = PostgresLedger(url)
    order = random.Random(worker)
    fresh = 0
    for number in range(40):
        names = [f"{worker}-{number}-{place}" for place in range(6)] + [f"all-{number}-{n}" for n in range(6)]
        order.shuffle(names)
        batch = [
            (charge(*[line(1, model=f"m{n}") for n in order.sample(range(9), 4)], operation=name), False)
            for name in names
        ]
        fresh += sum(outcome is True for outcome in append_each(ledger, batch))
    ledger.close()
    return fresh


def test_batches_of_several_processes_do_not_stand_in_each_others_way(url: str) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        fresh = pool.starmap(_book_batches, [(url, worker) for worker in range(3)])
    assert sum(fresh) == 3 * 240 + 240
    ledger = PostgresLedger(url)
    assert len({one.id for one in ledger.charges()}) == sum(fresh)
    assert ledger.totals()[0].nanos == 4 * sum(fresh)
    ledger.close()


def test_an_amount_no_ledger_can_hold_is_refused_whole(ledger: PostgresLedger) -> None:
    with pytest.raises(StoreError, match="9223372036854775808"):
        ledger.append(charge(line(1), line(MAX_NANOS + 1)))
    assert list(ledger.charges()) == []
    for number in range(4):  # their sum is more than 64 bits hold
        assert ledger.append(charge(line(MAX_NANOS), operation=f"op{number}"))
    (total,) = ledger.totals()
    assert total.nanos == 4 * (2**63 - 1)


def test_what_is_booked_is_never_changed_or_deleted(ledger: PostgresLedger, url: str) -> None:
    import psycopg

    ledger.append(charge(line(5)))
    with psycopg.connect(url, autocommit=True) as other:
        for statement in (
            "UPDATE genops.charges SET name = 'x'",
            "DELETE FROM genops.lines",
            "TRUNCATE genops.charges CASCADE",
        ):
            with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
                other.execute(statement)


def test_audits_are_kept_in_order(ledger: PostgresLedger) -> None:
    events = (
        AuditEvent(1.5, "grant", "team=\u202e\U0001f600", "ada", "launch", nanos=5 * 10**9, until=9.25),
        AuditEvent(0.5, "freeze", "team=\ud800\x00"),
    )
    for event in events:
        ledger.audit(event)
    assert ledger.audits() == events
    assert ledger.audits("freeze") == events[1:]


def test_a_charge_that_is_seen_late_is_read_too(
    ledger: PostgresLedger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers are given before the commit: a lower one may appear after a higher one was read."""
    import psycopg

    monkeypatch.setattr(postgres, "PAGE", 2)
    ledger.append(charge(line(1), operation="first"))
    with psycopg.connect(url) as slow:
        slow.execute(
            "INSERT INTO genops.charges OVERRIDING SYSTEM VALUE "
            "SELECT nextval('genops.charges_seq_seq'), 'late#1', 'late', 1, name, flow, outcome, "
            "attribution, context_path, started_at, ended_at, 0, accounts, flags, '', '' FROM genops.charges"
        )
        for number in range(4):
            ledger.append(charge(line(1), operation=f"op{number}"))
        reading = iter(ledger.charges())
        begun = [next(reading).operation for _ in range(2)]
        slow.commit()
    found = begun + [one.operation for one in reading]
    assert sorted(found) == ["first", "late", "op0", "op1", "op2", "op3"]


def test_a_newer_versions_tables_are_left_alone(ledger: PostgresLedger, url: str) -> None:
    import psycopg

    ledger.append(charge(line(5)))
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("UPDATE genops.parts SET version = 99")
    newer = PostgresLedger(url)
    with pytest.raises(ConfigurationError, match=r"version 99.*update genops_ctx"):
        newer.append(charge(line(6)))
    newer.close()


# -- threads, processes, forks --------------------------------------------------------------------------


def _book(url: str, worker: int, count: int) -> int:
    """Every charge twice over all workers; how many were new."""
    ledger = PostgresLedger(url)
    fresh = sum(
        ledger.append(charge(line(3), line(2, model="large"), operation=f"op{(worker // 2) * count + n}"))
        for n in range(count)
    )
    ledger.close()
    return fresh


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_book_each_charge_once(url: str, method: str) -> None:
    """The first of them makes the tables, all at the same time."""
    if method == "fork":
        PostgresLedger(url).append(charge(line(0), operation="before"))
    with multiprocessing.get_context(method).Pool(4) as pool:
        fresh = pool.starmap(_book, [(url, worker, 60) for worker in range(4)])
    assert sum(fresh) == 120
    ledger = PostgresLedger(url)
    booked = [one for one in ledger.charges() if one.operation != "before"]
    assert len({one.id for one in booked}) == len(booked) == 120
    by_model = {total.key[0]: total.nanos for total in ledger.totals(by="model")}
    assert by_model == {"small": 360, "large": 240}
    ledger.close()


def test_threads_share_few_connections(ledger: PostgresLedger, url: str) -> None:
    import psycopg

    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(lambda n: ledger.append(charge(line(1), operation=f"op{n}")), range(240)))
    assert ledger.totals()[0].nanos == 240
    with psycopg.connect(url) as other:
        row = other.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'genops_ctx' "
            "AND datname = current_database()"
        ).fetchone()
    assert row is not None
    assert 1 <= row[0] <= postgres_connection.KEPT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_leaves_its_parents_connection_alone(ledger: PostgresLedger) -> None:
    ledger.append(charge(line(1), operation="parent"))
    child = os.fork()
    if not child:
        try:
            ledger.append(charge(line(1), operation="child"))
            ledger.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    ledger.append(charge(line(1), operation="parent again"))
    assert [one.operation for one in ledger.charges()] == ["parent", "child", "parent again"]


# -- the server fails -----------------------------------------------------------------------------------


def test_a_restarted_server_is_found_again_at_once(own_server: PostgresServer) -> None:
    ledger = PostgresLedger(own_server.new_database())
    ledger.append(charge(line(1), operation="before"))
    own_server.stop()
    own_server.start()
    assert ledger.append(charge(line(1), operation="after"))
    assert [one.operation for one in ledger.charges()] == ["before", "after"]
    ledger.close()


def test_a_paused_server_costs_a_bounded_time(own_server: PostgresServer) -> None:
    url = own_server.new_database()
    first = PostgresLedger(url, answer_seconds=30)
    first.append(charge(line(1), operation="before"))
    first.close()
    ledger = PostgresLedger(url, answer_seconds=0.5)
    once_it_answers(lambda: list(ledger.charges()))
    own_server.pause()
    try:
        begun = time.monotonic()
        with pytest.raises(StoreError, match=r"did not answer within 0\.5 s") as caught:
            ledger.append(charge(line(1), operation="paused"))
        with pytest.raises(StoreError, match="a moment ago"):
            ledger.append(charge(line(1), operation="next"))
        assert time.monotonic() - begun < 15
    finally:
        own_server.resume()
    assert "hunter2" not in str(caught.value)
    after, paused = charge(line(1), operation="after"), charge(line(1), operation="paused")
    once_it_answers(lambda: ledger.append(after))
    # Whether the one that was given up is there is the server's secret, and booking it again is no harm.
    once_it_answers(lambda: ledger.append(paused))
    found = once_it_answers(lambda: list(ledger.charges()))
    assert sorted(one.operation for one in found) == ["after", "before", "paused"]
    ledger.close()


def test_calls_go_on_without_the_server_and_are_booked_once_it_is_back(own_server: PostgresServer) -> None:
    url = own_server.new_database()
    configure(store="memory://", ledger=url)
    from genops_ctx.runtime import get_runtime

    own_server.stop()
    with metered_call("summary") as call:
        call.record_cost("0.25")
    assert call.charge is not None
    own_server.start()
    books, until = get_runtime().books, time.monotonic() + 120
    while time.monotonic() < until and not once_it_answers(lambda: list(books.ledger.charges())):
        time.sleep(0.1)
        books.catch_up(time.time())
    assert [one.id for one in once_it_answers(lambda: list(books.ledger.charges()))] == [call.charge.id]
    books.ledger.close()


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="postgresql://user@host:5432/database"):
        open_ledger("postgresql://user:hunter2@host:5432/database?no_such_option=1")
    for password in ("hun/ter2", "hun%zzter2", "p@hunter2", "12/hunter2@"):
        with pytest.raises(ConfigurationError, match="percent-encoded") as refused:
            open_ledger(f"postgresql://user:{password}@host:5432/database")
        assert "hun" not in "".join(traceback.format_exception(refused.value))
    nowhere = open_ledger("postgresql://ada:hunter2@127.0.0.1:1/genops")
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:1/genops") as caught:
        nowhere.append(charge(line(1)))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["\ud800\udc00", "\x00", "\x01", "\x01\\u0041", "a\\n\x00\n", "\U0001f600\ud83d"]
)
def test_text_that_postgres_has_no_room_for(ledger: PostgresLedger, text: str) -> None:
    odd = charge(line(1, model=text or "x"), operation=text)
    ledger.append(odd)
    assert list(ledger.charges(text)) == [odd]
    assert [total.key for total in ledger.totals(by="model")] == [(text,)]
