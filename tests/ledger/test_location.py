"""Which ledger a URL means, and where the default one is."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest

from genops_ctx.books import Books
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.ledger import open_ledger
from genops_ctx.ledger.location import DefaultLedger, default_ledger_path
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.stores.memory import MemoryStore
from tests.strategies import charge, line


@pytest.mark.parametrize(
    ("platform", "environ", "expected"),
    [
        ("linux", {"XDG_STATE_HOME": "/state"}, "/state/genops_ctx/ledger.sqlite3"),
        ("linux", {"XDG_STATE_HOME": "relative"}, "~/.local/state/genops_ctx/ledger.sqlite3"),
        ("linux", {}, "~/.local/state/genops_ctx/ledger.sqlite3"),
        ("darwin", {}, "~/Library/Application Support/genops_ctx/ledger.sqlite3"),
        ("win32", {"LOCALAPPDATA": "/Local"}, "/Local/genops_ctx/ledger.sqlite3"),
    ],
)
def test_the_default_is_in_the_users_state_directory(
    platform: str, environ: dict[str, str], expected: str
) -> None:
    assert default_ledger_path(environ, platform) == Path(expected).expanduser()


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert isinstance(open_ledger("memory://"), MemoryLedger)
    assert isinstance(open_ledger("default://"), DefaultLedger)
    paths = {
        "sqlite:///costs.sqlite3": tmp_path / "costs.sqlite3",
        f"sqlite:///{tmp_path}/a%20b.sqlite3?synchronous=full": tmp_path / "a b.sqlite3",
        "sqlite:///~/costs.sqlite3": Path("~/costs.sqlite3").expanduser(),
    }
    for url, path in paths.items():
        ledger = open_ledger(url)
        assert isinstance(ledger, SQLiteLedger)
        assert ledger.database.path == path
        assert ledger.database.synchronous == ("FULL" if "?" in url else "NORMAL")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "mysql://ada:secret@db/costs",
        "secret",
        "sqlite:secret.db",
        "sqlite://secret",
        "sqlite:///",
        "sqlite:///x?synchronous=odd",
        "sqlite:///x?timeout=secret",
        "memory://secret",
        "se:cret://x",
        "",
    ],
)
def test_other_urls_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_ledger(url)
    assert "secret" not in str(refused.value).lower()
    assert "cret" not in str(refused.value)


def test_the_default_is_made_by_the_first_charge(tmp_path: Path) -> None:
    path = tmp_path / "state" / "genops_ctx" / "ledger.sqlite3"
    ledger = DefaultLedger(path)
    books = Books(MemoryStore(), ledger)
    books.catch_up(0.0)
    assert (list(ledger.charges()), ledger.totals(by=("team",)), list(ledger.audits())) == ([], (), [])
    assert not path.parent.parent.exists()
    books.book(charge(line(5)), settles=True)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    books.close()
    assert list(SQLiteLedger(path).charges()) == [charge(line(5))]


def test_a_default_that_cannot_be_made_is_memory_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    ledger = DefaultLedger(tmp_path / "file" / "ledger.sqlite3")
    for number in range(3):
        assert ledger.append(charge(line(5), operation=f"op{number}"))
    assert len(list(ledger.charges())) == 3
    assert ledger.totals()[0].nanos == 15
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "GENOPS_LEDGER" in warnings[0].getMessage()
    ledger.close()
