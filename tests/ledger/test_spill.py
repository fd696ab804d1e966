"""A file of charges that wait for their ledger: all of each comes back, once, to one of those who ask."""

from __future__ import annotations

import multiprocessing
import stat
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genops_ctx.core.errors import StoreError
from genops_ctx.core.money import MAX_NANOS
from genops_ctx.core.records import Charge
from genops_ctx.ledger import spill as module
from genops_ctx.ledger.spill import Spill, spill_path
from genops_ctx.unwritten import Unwritten
from tests.ledger.charges import charges
from tests.strategies import charge, line


@pytest.fixture
def spill(tmp_path: Path) -> Spill:
    return Spill(tmp_path / "state" / "unbooked.sqlite3")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(charges, st.booleans()), max_size=5))
def test_what_goes_in_comes_out(tmp_path: Path, kept: list[tuple[Charge, bool]]) -> None:
    spill = Spill(tmp_path / uuid.uuid4().hex)
    spill.add(kept)
    first: dict[str, tuple[Charge, bool]] = {}
    for booking in kept:
        first.setdefault(booking[0].id, booking)
    found = spill.borrow(1000)
    assert found == list(first.values())
    spill.drop([charge for charge, _ in found])
    assert spill.waiting() == 0
    spill.close()


def test_what_is_borrowed_is_nobody_elses_for_a_while(spill: Spill, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000.0]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    first, second, third = (charge(line(1), operation=f"op{number}") for number in range(3))
    spill.add([(first, True), (second, False)])
    spill.add([(third, True), (first, False)])  # the first is there already
    assert spill.borrow(2) == [(first, True), (second, False)]
    assert spill.waiting() == 1
    assert spill.borrow(2) == [(third, True)]
    assert spill.borrow(2) == []
    spill.give_back([second])
    assert spill.borrow(2) == [(second, False)]
    spill.drop([second])
    now[0] += module.LENT_SECONDS + 1  # whoever had the others was killed
    assert spill.borrow(9) == [(first, True), (third, True)]
    now[0] -= 90 * 86_400  # the clock was wrong
    assert spill.borrow(9) == [(first, True), (third, True)]


def test_nothing_is_made_before_there_is_something_to_keep(spill: Spill) -> None:
    assert spill.borrow(9) == []
    assert spill.waiting() == 0
    assert not spill.path.parent.exists()
    spill.add([(charge(line(1)), True)])
    assert stat.S_IMODE(spill.path.stat().st_mode) == 0o600


def _borrow_all(path: Path) -> list[str]:
    spill, found = Spill(path), []
    while some := spill.borrow(7):
        found += [charge.operation for charge, _ in some]
        spill.drop([charge for charge, _ in some])
    return found


def test_processes_that_share_it_get_each_charge_once(spill: Spill) -> None:
    names = [f"op{number}" for number in range(100)]
    spill.add([(charge(line(1), operation=name), True) for name in names])
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(_borrow_all, [spill.path] * 3)
    assert sorted(name for some in found for name in some) == sorted(names)


def test_each_ledger_has_its_own() -> None:
    one, other = spill_path("PostgreSQL at a:5432/costs"), spill_path("PostgreSQL at b:5432/costs")
    assert one.parent == other.parent
    assert one != other
    assert "costs" not in one.name


class Away:
    """A ledger on a server, as far as this matters."""

    remote = True
    place = "nowhere"


def test_one_that_no_file_can_hold_takes_none_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    unwritten = Unwritten(Away())  # type: ignore[arg-type]
    good = [charge(line(1), operation="op0"), charge(line(2), operation="op1")]
    huge = charge(line(MAX_NANOS + 1), operation="huge")
    unwritten.keep([(good[0], True), (huge, True), (good[1], True)])
    assert len(unwritten) == 3
    assert Spill(spill_path("nowhere")).waiting() == 2
    assert "end with this process" in unwritten.where

    written: list[str] = []

    def write(bookings: object) -> list[object]:
        outcomes: list[object] = []
        for one, _ in bookings:  # type: ignore[attr-defined]
            written.append(one.operation)
            outcomes.append(StoreError("too much") if one.operation == "huge" else True)
        return outcomes

    assert str(unwritten.write_down(write, lambda: True)) == "too much"
    assert sorted(written) == ["huge", "op0", "op1"]
    assert len(unwritten) == 1
