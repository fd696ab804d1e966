"""Sums over charges: the same from SQLite's rollups, its lines, memory, and an independent count."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.records import Charge, CostSource, Exactness, Line, LineKind, Usage
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.ledger.sqlite import SQLiteLedger
from tests.ledger.charges import DAY, FIRST_DAY, charges, times
from tests.strategies import charge, line

Ledgers = MemoryLedger | SQLiteLedger

NAMES = ("day", "flow", "flow_id", "provider", "model", "source", "exactness", "team", "tier", "session_id")


def value(one: Charge, item: Line | None, name: str) -> str:
    """What a reader of the documentation expects a line to be grouped under."""
    usage = item.usage if item else None
    known = {
        "day": (date(1970, 1, 1) + timedelta(days=one.started_at // 86_400)).isoformat(),
        "flow": one.name,
        "flow_id": one.flow,
        "provider": usage.provider if usage else "",
        "model": usage.model if usage else "",
        "source": str(item.source) if item else "",
        "exactness": str(item.exactness) if item else "exact",
    }
    return (known[name] if name in known else one.attribution.get(name, "")) or "<none>"


def counted(
    booked: list[Charge], since: float | None, until: float | None, by: tuple[str, ...], where: dict[str, str]
) -> dict[tuple[str, ...], tuple[Fraction, int, int, int, int]]:
    """Dollars, calls, lines, lines without a price, tokens of each group, counted one by one."""
    found: dict[tuple[str, ...], list[Fraction]] = defaultdict(lambda: [Fraction(0)] * 5)
    if not by:
        found[()]
    for one in booked:
        if (since is not None and one.started_at < since) or (until is not None and one.started_at >= until):
            continue
        for item in one.lines or [None]:
            if any(value(one, item, name) != wanted for name, wanted in where.items()):
                continue
            group = found[tuple(value(one, item, name) for name in by)]
            if item is not None:
                group[0] += Fraction(item.nanos or 0, 10**9)
                way = -1 if item.kind == "reversal" else 1  # what is taken back counts no more
                group[2] += way
                group[3] += way * (item.nanos is None)
                group[4] += way * (item.usage.input_tokens + item.usage.output_tokens if item.usage else 0)
            if not one.adjustment_of and (item is None or item is one.lines[0]):
                group[1] += 1
    return {key: (row[0], *map(int, row[1:])) for key, row in found.items()}  # type: ignore[misc]


def unlike(booked: list[Charge]) -> list[Charge]:
    """One charge an id; and no line twice in a charge, so that the first can be told from the others."""
    kept = {one.id: one for one in reversed(booked)}
    return [one for one in kept.values() if len({id(item) for item in one.lines}) == len(one.lines)]


@given(
    st.lists(charges, max_size=8).map(unlike),
    st.one_of(st.none(), times),
    st.one_of(st.none(), times),
    st.lists(st.sampled_from(NAMES), max_size=3, unique=True).map(tuple),
    st.dictionaries(
        st.sampled_from(NAMES), st.sampled_from(["a", "<none>", "openai", "support"]), max_size=1
    ),
)
def test_every_ledger_counts_the_same(
    booked: list[Charge],
    since: float | None,
    until: float | None,
    by: tuple[str, ...],
    where: dict[str, str],
) -> None:
    expected = counted(booked, since, until, by, where)
    with tempfile.TemporaryDirectory() as folder:
        stored, memory = SQLiteLedger(Path(folder) / "ledger.sqlite3", synchronous="OFF"), MemoryLedger()
        for one in booked:
            stored.append(one)
            memory.append(one)
        totals = stored.totals(since, until, by, where)
        assert totals == memory.totals(since, until, by, where)
        stored.close()
    assert {
        total.key: (Fraction(total.cost), total.calls, total.lines, total.unpriced, total.total_tokens)
        for total in totals
    } == expected
    assert len(totals) == len(expected)
    assert sorted(totals, key=lambda total: (-total.cost, total.key)) == list(totals)


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledgers]:
    ledger: Ledgers = MemoryLedger() if request.param == "memory" else SQLiteLedger(tmp_path / "l.sqlite3")
    yield ledger
    ledger.close()


def at(day: int, seconds: float, *lines: Line, operation: str, **attribution: str) -> Charge:
    """A charge that started so many seconds into a day since 2024-10-04."""
    start = (FIRST_DAY + day) * DAY + seconds
    return Charge(
        id=f"{operation}#1",
        operation=operation,
        attempt=1,
        name="support",
        flow="f1",
        outcome="completed",
        lines=lines,
        attribution=attribution,
        context_path=(),
        started_at=start,
        ended_at=start + 1,
    )


def test_a_week_of_two_teams(ledger: Ledgers) -> None:
    small = Usage("openai", "small", input_tokens=100, output_tokens=10, cache_read_tokens=40)
    large = Usage("openai", "large", input_tokens=7, output_tokens=3, cache_write_1h_tokens=2)
    model, reported, exact = LineKind.MODEL, CostSource.REPORTED, Exactness.EXACT
    ledger.append(
        at(
            0,
            0.0,
            Line(model, 1_500_000_000, reported, exact, small),
            Line(model, 2_000_000_000, reported, exact, large),
            operation="a",
            team="search",
            session_id="s1",
        )
    )
    ledger.append(at(0, 86_399.5, Line(model, 3, reported, exact, small), operation="b", team="help"))
    unknown = Line(model, None, reported, Exactness.UNKNOWN, large)
    ledger.append(at(1, 0.0, unknown, operation="c", team="search", session_id="s2"))
    ledger.append(at(1, 43_200.0, operation="d"))  # refused by Flowise: nothing was called

    (everything,) = ledger.totals()
    assert everything.cost == Decimal("3.500000003")
    assert (everything.calls, everything.lines, everything.unpriced) == (4, 4, 1)
    assert (everything.input_tokens, everything.output_tokens) == (214, 26)
    assert (everything.cache_read_tokens, everything.cache_write_tokens) == (80, 4)

    by_team = {total.key: (total.cost, total.calls) for total in ledger.totals(by="team")}
    assert by_team == {
        ("search",): (Decimal("3.5"), 2),
        ("help",): (Decimal("3E-9"), 1),
        ("<none>",): (Decimal(0), 1),
    }
    by_day = ledger.totals(by=("day", "model"), where={"team": ["search", "help"]})
    assert [(total.key, total.nanos) for total in by_day] == [
        (("2024-10-04", "large"), 2_000_000_000),
        (("2024-10-04", "small"), 1_500_000_003),
        (("2024-10-05", "large"), 0),
    ]
    sessions = {total.key[0]: total.lines for total in ledger.totals(by=("session_id",))}
    assert sessions == {"s1": 2, "s2": 1, "<none>": 1}

    noon = datetime(2024, 10, 4, 12, tzinfo=UTC)
    assert ledger.totals(since=noon)[0].calls == 3
    assert ledger.totals(until=noon)[0].calls == 1
    assert ledger.totals(noon, noon + timedelta(hours=12))[0].nanos == 3
    assert ledger.totals(noon, noon + timedelta(hours=12, seconds=1))[0].calls == 2
    # Two in the morning of the fifth in Berlin is midnight there and then of UTC.
    assert ledger.totals(datetime(2024, 10, 5, 2, tzinfo=timezone(timedelta(hours=2))))[0].calls == 2
    assert ledger.totals(noon, noon)[0].calls == 0
    assert ledger.totals(noon, noon - timedelta(days=2))[0].calls == 0


def test_a_correction_is_money_and_no_call(ledger: Ledgers) -> None:
    ledger.append(charge(line(50, tokens=5), operation="op"))
    before = charge(line(50))
    ledger.append(
        Charge(
            id="op#1~1",
            operation="op",
            attempt=1,
            name=before.name,
            flow=before.flow,
            outcome="completed",
            lines=(Line(LineKind.COST, -50, CostSource.LOST, Exactness.ESTIMATED), line(20)),
            attribution={},
            context_path=(),
            started_at=0.0,
            ended_at=1.0,
            adjustment_of="op#1",
        )
    )
    (total,) = ledger.totals()
    assert (total.nanos, total.calls, total.lines) == (20, 1, 3)


def test_bad_questions_are_refused(ledger: Ledgers) -> None:
    with pytest.raises(ConfigurationError, match="since needs a time zone"):
        ledger.totals(since=datetime(2024, 10, 4))
    with pytest.raises(ConfigurationError, match="'tem'; did you mean 'team'"):
        ledger.totals(by=("tem",))
    with pytest.raises(ConfigurationError, match="'modle'; did you mean 'model'"):
        ledger.totals(where={"modle": "x"})
    with pytest.raises(ConfigurationError, match="must be an identifier"):
        ledger.totals(by=("session_id", 'a"b'))
