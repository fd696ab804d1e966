"""The sums that monitoring reads: by hand, and the same from every ledger as from an independent count."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.records import Charge, LineKind
from genops_ctx.database import Database
from genops_ctx.ledger import open_ledger, sqlite_tallies, tallies
from genops_ctx.ledger.location import DefaultLedger
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.ledger.schema import MIGRATIONS, PART
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.ledger.tallies import Batch, Counts, Labels, Slot, TallyKeeper, tallied
from tests.ledger.charges import charges
from tests.strategies import charge, line

FLOW = "3f1c5f0e-0000-4000-8000-000000000001"


def call(*lines: object, outcome: str = "completed", seconds: float = 1.0, **rest: object) -> Charge:
    made = charge(*lines, attribution={"team": "help", "project": "shop"})  # type: ignore[arg-type]
    return replace(made, flow=FLOW, outcome=outcome, ended_at=seconds, **rest)  # type: ignore[arg-type]


def mine(provider: str) -> Labels:
    return Labels(FLOW, "help", "shop", provider)


# -- the rule ------------------------------------------------------------------------------------


def test_a_call_counts_once_whatever_it_used() -> None:
    added = tallied(call(line(5), line(7, provider="anthropic"), line(None), line(3), seconds=2.25))
    assert added == {
        (mine("openai"), Slot("success", 2_500)): Counts(1, 2_250_000, 8, 0, 2, 1, 0),
        (mine("anthropic"), Slot("", 0)): Counts(0, 0, 7, 0, 1, 0, 0),
    }


@pytest.mark.parametrize(
    ("seconds", "within"),
    [(0.0, 100), (0.1, 100), (0.100001, 250), (103.2, 120_000), (600.0, 600_000), (600.1, -1), (-1.0, 100)],
)
def test_a_duration_is_within_its_bound(seconds: float, within: int) -> None:
    ((_, slot),) = tallied(call(seconds=seconds))
    assert slot == Slot("success", within)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ("completed", "success"),
        ("refused", "error"),
        ("failed", "error"),
        ("timed_out", "error"),
        ("disconnected", "error"),
        ("truncated", "error"),
        ("not_sent", "error"),
        ("abandoned", "abandoned"),
        ("cancelled", "abandoned"),
        ("expired", "lost"),
        ("of a later version", "error"),
    ],
)
def test_every_outcome_has_a_status(outcome: str, status: str) -> None:
    ((_, slot),) = tallied(call(outcome=outcome))
    assert slot.status == status


def test_nobody_saw_when_a_lost_or_a_backfilled_call_ended() -> None:
    for one in (call(outcome="expired", seconds=630.0), call(seconds=4.0, flags=("backfilled",))):
        ((slot, counts),) = ((key[1], counts) for key, counts in tallied(one).items())
        assert slot.within == 0
        assert (counts.requests, counts.micros) == (1, 0)


def test_a_correction_adds_or_takes_back_the_difference_of_each_provider() -> None:
    taken = [
        replace(line(-10), kind=LineKind.REVERSAL),
        replace(line(-4, provider="google"), kind=LineKind.REVERSAL),
        replace(line(None, provider="mistral"), kind=LineKind.REVERSAL),
    ]
    told = [line(12), line(1, provider="google"), line(6, provider="mistral")]
    assert tallied(call(*taken, *told, adjustment_of="op#1")) == {
        (mine("openai"), Slot("", 0)): Counts(0, 0, 2, 0, 1, 0, 0),
        (mine("google"), Slot("", 0)): Counts(0, 0, 0, 3, 1, 0, 0),
        (mine("mistral"), Slot("", 0)): Counts(0, 0, 6, 0, 1, 0, 1),
    }


def test_an_id_that_flowise_has_refused_makes_no_labels() -> None:
    refused = call(outcome="refused", name=FLOW)
    assert [labels.flow for labels, _ in tallied(refused)] == [""]
    # Of these somebody knows that the flow is there, or something was booked for it.
    for known in (
        replace(refused, name="support"),
        replace(refused, outcome="failed"),
        call(line(1), outcome="refused", name=FLOW),
        call(line(1), outcome="refused", name=FLOW, adjustment_of="op#1"),
    ):
        assert [labels.flow for labels, _ in tallied(known)] == [FLOW]


def test_labels_can_be_shown_anywhere() -> None:
    odd = replace(
        call(line(1, provider='a"\\\n')), flow="\ud800x\x00", attribution={"team": "\U0001f600" * 300}
    )
    assert [labels for labels, _ in tallied(odd)] == [
        Labels("\ufffdx\ufffd", "\U0001f600" * 200, "", 'a"\\\ufffd')
    ]


# -- the ledgers ---------------------------------------------------------------------------------

View = tuple[dict[object, int], dict[object, int], dict[object, tuple[int, int]]]


def shown(ledger: TallyKeeper) -> View:
    """Requests; requests by bound, and microseconds; what is booked and unpriced: all by their labels."""
    requests: Counter[object] = Counter()
    timed: Counter[object] = Counter()
    money: Counter[object] = Counter()
    unpriced: Counter[object] = Counter()
    assert ledger.count_on(60)
    for labels, slot, counts in ledger.tallies():
        assert min(counts) >= 0
        requests[labels[:3], slot.status] += counts.requests
        timed[labels[:3], slot.within] += counts.requests
        timed[labels[:3], "micros"] += counts.micros
        money[labels] += counts.gross - counts.back
        unpriced[labels] += counts.unpriced - counts.unpriced_back
    both = {labels: (money[labels], unpriced[labels]) for labels in (*money, *unpriced)}
    return (
        {key: number for key, number in requests.items() if number},
        {key: number for key, number in timed.items() if number and key[1]},  # type: ignore[index]
        {labels: found for labels, found in both.items() if any(found)},
    )


def printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)[:200]


def counted(booked: Iterable[Charge], batches: Iterable[Batch] = ()) -> View:
    """The same of charges and batches, counted one by one as the documentation has it."""
    requests: Counter[object] = Counter()
    timed: Counter[object] = Counter()
    money: dict[object, tuple[int, int]] = {}
    for one in booked:
        owner = printable(one.attribution.get("team", "")), printable(one.attribution.get("project", ""))
        made_up = one.outcome == "refused" and one.name == one.flow and not one.lines
        flow = "" if made_up and not one.adjustment_of else printable(one.flow)
        if not one.adjustment_of:
            ends = {"completed": "success", "abandoned": "abandoned", "cancelled": "abandoned"}
            status = "lost" if one.outcome == "expired" else ends.get(one.outcome, "error")
            requests[(flow, *owner), status] += 1
            if one.outcome != "expired" and "backfilled" not in one.flags:
                micros = max(round((one.ended_at - one.started_at) * 1_000_000), 0)
                bounds = [bound for bound in tallies.BOUNDS if micros <= bound * 1000]
                timed[(flow, *owner), bounds[0] if bounds else -1] += 1
                timed[(flow, *owner), "micros"] += micros
        for item in one.lines:
            labels = (flow, *owner, printable(item.usage.provider) if item.usage else "")
            nanos, unpriced = money.get(labels, (0, 0))
            sign = -1 if item.kind == "reversal" else 1
            money[labels] = (
                nanos + (item.nanos or 0),
                unpriced + (sign if item.nanos is None else 0),
            )
    for batch in batches:
        for (whose, slot), counts in batch.added.items():
            requests[whose[:3], slot.status] += counts.requests
    return (
        dict(requests),
        {key: number for key, number in timed.items() if number},
        {labels: found for labels, found in money.items() if any(found)},
    )


def unlike(booked: list[Charge]) -> list[Charge]:
    return list({one.id: one for one in booked}.values())


batches = st.lists(
    st.builds(
        lambda number, team, requests: Batch(
            "worker",
            number,
            {(Labels("", team, "", ""), Slot("refused", 0)): Counts(requests)},
        ),
        st.just(0),
        st.sampled_from(["a", "help"]),
        st.integers(1, 9),
    ),
    max_size=3,
).map(lambda found: [replace(one, number=number) for number, one in enumerate(found, 1)])


def book_all(ledger: MemoryLedger | SQLiteLedger, booked: list[Charge], said: list[Batch], seen: int) -> None:
    """Half of it before somebody looks, and half after it."""
    for one in booked[:seen]:
        ledger.append(one)
    assert ledger.count_on(60)
    for one in booked[seen:]:
        ledger.append(one)
        ledger.append(one)  # again: it is not counted again
    for batch in said:
        ledger.tally(batch)


@given(st.lists(charges, max_size=8).map(unlike), batches, st.integers(0, 8))
def test_it_counts_as_a_plain_count_does(booked: list[Charge], said: list[Batch], seen: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger = SQLiteLedger(Path(folder) / "ledger.sqlite3", synchronous="OFF")
        memory, small = MemoryLedger(), MemoryLedger(kept=3)
        for one in (ledger, memory, small):
            book_all(one, booked, said, seen)
        expected = counted(booked, said)
        assert shown(memory) == expected
        assert shown(small) == expected  # charges that were dropped stay counted
        assert shown(ledger) == expected
        ledger.close()
        assert shown(SQLiteLedger(Path(folder) / "ledger.sqlite3", synchronous="OFF")) == expected


@given(st.lists(charges, max_size=8).map(unlike))
def test_what_is_left_of_the_dollars_is_what_reports_say(booked: list[Charge]) -> None:
    memory = MemoryLedger()
    for one in booked:
        memory.append(one)
    memory.count_on(60)
    left = sum(counts.gross - counts.back for _, _, counts in memory.tallies())
    unpriced = sum(counts.unpriced - counts.unpriced_back for _, _, counts in memory.tallies())
    calls = sum(counts.requests for _, _, counts in memory.tallies())
    (total,) = memory.totals()
    assert (left, unpriced, calls) == (total.nanos, total.unpriced, total.calls)


@pytest.fixture(params=["memory", "sqlite", "default"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryLedger | SQLiteLedger | DefaultLedger:
    path = tmp_path / "ledger.sqlite3"
    made = {
        "memory": MemoryLedger,
        "sqlite": lambda: SQLiteLedger(path),
        "default": lambda: DefaultLedger(path),
    }
    opened: MemoryLedger | SQLiteLedger | DefaultLedger = made[request.param]()
    assert isinstance(opened, TallyKeeper)
    return opened


def test_conversations_with_a_call_since_then(ledger: MemoryLedger | SQLiteLedger | DefaultLedger) -> None:
    def begun(at: float, chat: str = "", session: str = "", flow: str = FLOW) -> None:
        said = {"session_id": session} if session else {}
        one = replace(
            charge(operation=f"{at}{chat}{session}"), flow=flow, started_at=at, ended_at=at + 9, chat_id=chat
        )
        ledger.append(replace(one, attribution=said))

    assert ledger.active_sessions(0) == 0
    begun(1000.0, chat="old")
    begun(2000.0, chat="one")
    begun(2100.0, chat="one", session="one")
    begun(2200.0, chat="x1", session="two")
    begun(2300.0, chat="x2", session="two")
    begun(2400.0, chat="\ud800")
    begun(2500.0)  # of no conversation
    begun(2600.0, session="none of Flowise's", flow="")
    assert ledger.count_on(60)
    assert ledger.active_sessions(2000.0) == 3
    assert ledger.active_sessions(2100.5) == 2
    begun(2700.0, chat="old")
    assert ledger.count_on(60)
    assert ledger.active_sessions(2400.0) == 2
    assert ledger.active_sessions(2701.0) == 0


def test_labels_beyond_a_number_are_counted_together(
    ledger: MemoryLedger | SQLiteLedger | DefaultLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "MOST_LABELS", 2)
    if isinstance(ledger, MemoryLedger):
        ledger = MemoryLedger()
    for number in range(6):
        ledger.append(replace(charge(line(1), operation=f"op{number}"), flow=f"flow {number % 4}"))
        ledger.count_on(60)
    requests = {labels.flow: counts.requests for labels, _, counts in ledger.tallies()}
    assert requests == {"flow 0": 2, "flow 1": 2, "other": 2}
    assert sum(counts.gross for _, _, counts in ledger.tallies()) == 6


def test_sums_pass_sixty_four_bits(ledger: MemoryLedger | SQLiteLedger | DefaultLedger) -> None:
    for number in range(4):
        ledger.append(charge(line(2**63 - 1), operation=f"op{number}"))
        ledger.append(replace(charge(line(1 - 2**63), operation=f"op{number}", attempt=2), adjustment_of="x"))
    ledger.count_on(60)
    assert sum(counts.gross for _, _, counts in ledger.tallies()) == 4 * (2**63 - 1)
    assert sum(counts.back for _, _, counts in ledger.tallies()) == 4 * (2**63 - 1)


def test_an_older_ledger_is_counted_from_its_first_charge(tmp_path: Path) -> None:
    """2,501 charges, of a version that kept no sums."""
    path = tmp_path / "ledger.sqlite3"
    before = Database(path)
    before.add_part(PART, MIGRATIONS[:4])
    with before as connection:
        for number in range(1, 2502):
            connection.execute(
                "INSERT INTO charges VALUES (?, ?, ?, 1, 'support', 'f1', 'completed', '{\"team\":\"a\"}', "
                "'[]', 5.0, 6.0, 9, '[]', '[]', '', '', 'chat', '')",
                (number, f"op{number}#1", f"op{number}"),
            )
            connection.execute(
                "INSERT INTO lines (charge, position, kind, nanos, source, exactness, price_version, note) "
                "VALUES (?, 0, 'model', ?, 'reported', 'exact', 'v', '')",
                (number, number),
            )
    before.close()
    ledger = SQLiteLedger(path)
    assert ledger.tallies() == ()
    assert ledger.count_on(60)
    assert ledger.tallies() == (
        (Labels("f1", "a", "", ""), Slot("success", 1_000), Counts(2501, 2_501_000_000, 3_128_751, 0, 2501)),
    )
    assert ledger.active_sessions(5.0) == 1
    ledger.close()


def test_what_takes_too_long_goes_on_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_tallies, "BATCH", 2)
    ledger = SQLiteLedger(tmp_path / "ledger.sqlite3")
    for number in range(5):
        ledger.append(charge(line(1), operation=f"op{number}"))
    looks = [ledger.count_on(-1) for _ in range(3)]
    assert looks == [False, False, False]
    assert ledger.count_on(60)
    assert sum(counts.requests for _, _, counts in ledger.tallies()) == 5


def test_an_outcome_of_every_kind_has_its_row_above() -> None:
    marks = test_every_outcome_has_a_status.pytestmark  # type: ignore[attr-defined]
    assert set(Outcome) <= {row[0] for row in marks[0].args[1]}


def test_any_ledger_by_its_url(tmp_path: Path) -> None:
    for url in ("memory://", f"sqlite:///{tmp_path}/l.sqlite3"):
        assert isinstance(open_ledger(url), TallyKeeper)
