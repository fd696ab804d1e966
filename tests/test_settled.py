"""That the ledger is told what the accounts have: at once where somebody waits, else together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from genops_ctx.core.errors import StoreError
from genops_ctx.core.ports import Witness
from genops_ctx.generations import Generations
from genops_ctx.handoff import HandOff
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.settled import Settled
from genops_ctx.stores.memory import MemoryStore
from tests.strategies import charge, line


class Told(MemoryLedger):
    """Remembers what it was told together, and lets the first telling take until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.tellings: list[list[str]] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.fails = False

    def mark_settled(self, charge_ids: Sequence[str], witness: Witness | None = None) -> None:
        self.tellings.append(list(charge_ids))
        self.begun.set()
        assert self.go.wait(60)
        if self.fails:
            raise StoreError("it is not there")
        super().mark_settled(charge_ids, witness)


class Remote(MemoryStore):
    remote = True


@pytest.fixture
def ledger() -> Told:
    return Told()


@pytest.fixture
def settled(ledger: Told) -> Settled:
    for number in range(6):
        ledger.append(charge(line(7), operation=f"op{number}"), settled=False)
    return Settled(ledger, Generations(MemoryStore(), ledger), HandOff(), lambda charges: charges)


def add(settled: Settled, number: int) -> Callable[[], None]:
    return lambda: settled.add(charge(line(7), operation=f"op{number}"))


def hand_off(*jobs: Callable[[], object]) -> HandOff:
    """Each by a thread that nobody waits for."""
    threads = HandOff(Remote())
    for job in jobs:
        threads._booking().submit(job)
    return threads


def waiting(ledger: Told) -> list[str]:
    return [one.id for one in ledger.unsettled()]


def test_where_somebody_waits_each_is_told_at_once(ledger: Told, settled: Settled) -> None:
    for number in range(3):
        add(settled, number)()
    assert ledger.tellings == [["op0#1"], ["op1#1"], ["op2#1"]]


def test_what_comes_while_the_ledger_is_told_is_told_together_next(ledger: Told, settled: Settled) -> None:
    ledger.go.clear()
    first = hand_off(add(settled, 0))
    assert ledger.begun.wait(60)
    hand_off(*[add(settled, number) for number in range(1, 5)]).close()  # none of them waits for the ledger
    assert ledger.tellings == [["op0#1"]]
    ledger.go.set()
    first.close()
    assert [sorted(ids) for ids in ledger.tellings] == [["op0#1"], ["op1#1", "op2#1", "op3#1", "op4#1"]]
    assert waiting(ledger) == ["op5#1"]


def test_many_threads_leave_none_untold(ledger: Told, settled: Settled) -> None:
    for number in range(6, 400):
        ledger.append(charge(line(7), operation=f"op{number}"), settled=False)
    hand_off(*[add(settled, number) for number in range(400)]).close()
    assert waiting(ledger) == []
    told = [one for ids in ledger.tellings for one in ids]
    assert sorted(told) == sorted(f"op{number}#1" for number in range(400))


def test_what_could_not_be_told_stays_for_a_replay_and_later_ones_are_told(
    ledger: Told, settled: Settled
) -> None:
    ledger.go.clear()
    ledger.fails = True
    first = hand_off(add(settled, 0))
    assert ledger.begun.wait(60)
    hand_off(add(settled, 1), add(settled, 2)).close()
    ledger.go.set()
    first.close()
    assert [sorted(ids) for ids in ledger.tellings] == [["op0#1"], ["op1#1", "op2#1"]]
    assert len(waiting(ledger)) == 6
    ledger.fails = False
    hand_off(add(settled, 3)).close()
    assert waiting(ledger) == ["op0#1", "op1#1", "op2#1", "op4#1", "op5#1"]


def test_an_interruption_keeps_nobody_from_settling_what_comes_next(ledger: Told) -> None:
    class Interrupted(MemoryLedger):
        def mark_settled(self, charge_ids: Sequence[str], witness: Witness | None = None) -> None:
            raise KeyboardInterrupt

    interrupted = Settled(
        Interrupted(), Generations(MemoryStore(), ledger), HandOff(), lambda charges: charges
    )
    first = HandOff(Remote())
    done = first._booking().submit(add(interrupted, 0))
    with pytest.raises(KeyboardInterrupt):
        done.result(30)
    interrupted._ledger = ledger
    ledger.append(charge(line(7), operation="op1"), settled=False)
    first._booking().submit(add(interrupted, 1)).result(30)
    first.close()
    assert ledger.tellings == [["op1#1"]]
