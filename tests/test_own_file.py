"""Where nobody says where: charges and windowed budgets in one file of the user's own."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from genops_ctx import BudgetExceeded, configure, governance_context, metered_call
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.runtime import get_runtime
from genops_ctx.stores.sqlite import SQLiteStore


@pytest.fixture
def own_file(tmp_path, monkeypatch, empty_directory):
    """Settings as a newcomer has them, in a state directory that does not exist yet."""
    for variable in ("GENOPS_STORE", "GENOPS_LEDGER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "genops_ctx" / "ledger.sqlite3"


def spend(amount: str) -> None:
    with metered_call("own", max_cost=amount) as call:
        call.record_cost(amount)


def test_nothing_is_made_before_the_first_charge(own_file):
    configure(team="a")
    with governance_context("empty"):
        pass
    assert not own_file.exists()


def test_the_first_charge_makes_a_private_file(own_file):
    configure(team="a")
    spend("0.25")
    assert stat.S_IMODE(os.stat(own_file).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(own_file.parent).st_mode) == 0o700
    (charge,) = SQLiteLedger(own_file).charges()
    assert charge.cost == Decimal("0.25")
    assert charge.attribution == {"team": "a"}


def test_a_windowed_budget_holds_over_processes_and_is_in_the_same_file(own_file):
    code = (
        "from genops_ctx import configure, metered_call\n"
        "configure(budgets='1/total')\n"
        "with metered_call('own', max_cost='0.6') as call: call.record_cost('0.6')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ), cwd=Path.cwd())
    configure(budgets="1/total")
    with pytest.raises(BudgetExceeded) as refused:
        spend("0.5")
    assert refused.value.spent == Decimal("0.6")
    spend("0.4")
    ((_, account),) = SQLiteStore(own_file).accounts().items()
    assert (account.spent, account.reserved) == (1_000_000_000, 0)
    assert sum(charge.nanos for charge in SQLiteLedger(own_file).charges()) == account.spent
    assert list(SQLiteLedger(own_file).unsettled()) == []


@pytest.mark.skipif(os.name == "nt", reason="a file in the way of a directory is told otherwise there")
def test_where_nothing_can_be_written(own_file, caplog):
    own_file.parent.parent.write_text("a file where the directory should be")
    configure()
    with governance_context("capped", budget=1) as context:  # in this process: needs no file
        spend("0.25")
        spend("0.25")
    assert context.total_cost == Decimal("0.5")
    assert len(list(get_runtime().books.ledger.charges())) == 2
    said = [record.getMessage() for record in caplog.records if "kept in memory" in record.getMessage()]
    assert len(said) == 1
    configure(budgets="1/day")
    with pytest.raises(ConfigurationError, match="needs a place to be kept"):
        spend("0.25")
