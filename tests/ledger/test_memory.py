"""``memory://`` ledger: append-only, idempotent, bounded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from genops_ctx.core.ports import AuditEvent
from genops_ctx.core.ports import Ledger as LedgerPort
from genops_ctx.ledger.memory import MemoryLedger
from tests.strategies import charge, line


def test_charges_come_back_in_the_order_they_were_booked() -> None:
    ledger = MemoryLedger()
    port: LedgerPort = ledger
    first, second = charge(line(5), operation="b"), charge(line(7), operation="a")
    port.append(first)
    port.append(second)
    assert list(port.charges()) == [first, second]
    assert list(port.charges("a")) == [second]
    assert list(port.charges("none such")) == []


def test_the_attempts_of_one_operation_are_all_found() -> None:
    ledger = MemoryLedger()
    tries = [charge(line(5), operation="op", attempt=number) for number in (1, 2, 3)]
    for one in tries:
        ledger.append(one)
    ledger.append(charge(line(9), operation="op2"))
    assert list(ledger.charges("op")) == tries


def test_appending_the_same_id_again_changes_nothing() -> None:
    ledger = MemoryLedger()
    ledger.append(charge(line(5)))
    ledger.append(charge(line(6)))
    (kept,) = ledger.charges()
    assert kept.nanos == 5


def test_the_oldest_are_dropped_and_counted() -> None:
    ledger = MemoryLedger(kept=3)
    for number in range(5):
        ledger.append(charge(line(number), operation=f"op{number}"))
    assert [one.operation for one in ledger.charges()] == ["op2", "op3", "op4"]
    assert ledger.dropped == 2


def test_what_the_accounts_do_not_have_yet_is_given_back_until_they_do() -> None:
    ledger = MemoryLedger()
    behind = [charge(line(n), operation=f"op{n}") for n in range(3)]
    ledger.append(charge(line(9), operation="settled"))
    for one in behind:
        ledger.append(one, settled=False)
        ledger.append(one, settled=True)  # again: changes nothing
    assert list(ledger.unsettled()) == behind
    assert list(ledger.unsettled(limit=2)) == behind[:2]
    ledger.mark_settled(["op1#1", "never heard of"])
    assert list(ledger.unsettled()) == [behind[0], behind[2]]
    ledger.mark_settled(["op0#1", "op2#1"])
    assert list(ledger.unsettled()) == []
    assert len(list(ledger.charges())) == 4


def test_audits_are_kept_in_order() -> None:
    ledger = MemoryLedger()
    events = [AuditEvent(float(n), "grant", "team=a", "ada", nanos=n) for n in range(3)]
    for event in events:
        ledger.audit(event)
    assert list(ledger.audits()) == events
    ledger.close()


def test_appends_of_many_threads_are_all_kept_once() -> None:
    ledger = MemoryLedger()
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda n: ledger.append(charge(line(1), operation=f"op{n % 200}")), range(1000)))
    assert sum(one.nanos for one in ledger.charges()) == 200
