"""``genops-ctx budgets`` on a real store and ledger, both in files."""

from __future__ import annotations

import json
import threading
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from genops_ctx import Budget, BudgetExceeded, configure, metered_call
from genops_ctx.cli.budget_file import replaced
from genops_ctx.controls import Controls, scope_key, scope_name
from genops_ctx.core.errors import ConfigurationError, StoreError
from genops_ctx.core.ports import AuditEvent
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.runtime import Runtime, get_runtime, reset_runtime
from genops_ctx.settings import Settings, load_settings
from genops_ctx.stores.memory import MemoryStore
from genops_ctx.testing import FixedClock

Run = Callable[..., Result]
SETTINGS = """\
mode = "enforce"  # the comment stays

[[budget]]
name = "daily"
limit = "1/day"
by = "team"
limits = { vip = 5 }
"""


@pytest.fixture
def run(command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Commands on a store and a ledger of their own, with one budget in the settings."""
    monkeypatch.setenv("GENOPS_STORE", f"sqlite:///{tmp_path}/store.sqlite3")
    monkeypatch.setenv("GENOPS_LEDGER", f"sqlite:///{tmp_path}/ledger.sqlite3")
    Path("genops.toml").write_text(SETTINGS)
    return command


def spend(amount: str, **attribution: str) -> None:
    with metered_call("job", max_cost=amount, **attribution) as call:
        call.record_cost(amount)


def rows(run: Run) -> dict[tuple[str, str, str], dict[str, Any]]:
    result = run("budgets", "list", "--json")
    assert result.exit_code == 0, result.output
    return {(row["budget"], row["scope"], row["window"]): row for row in json.loads(result.output)}


def audits() -> list[tuple[str, str, str, int | None]]:
    return [
        (event.action, event.subject, event.reason, event.nanos)
        for event in get_runtime().books.ledger.audits()
        if event.action != "refused"
    ]


def test_list_shows_budgets_of_the_settings_and_accounts_of_the_code(run: Run) -> None:
    configure(budgets=[*load_settings().budgets, Budget("9/month", name="code")])
    spend("0.25", team="a")
    found = rows(run)
    assert set(found) == {
        ("daily", "team=a", "day"),
        ("daily", "team=vip", "day"),
        ("", "all calls", "month"),
    }
    day = found["daily", "team=a", "day"]
    midnight = datetime.fromisoformat(day.pop("resets_at"))
    assert 0 < (midnight - datetime.now(UTC)).total_seconds() <= 86_400
    assert day == {
        "budget": "daily",
        "scope": "team=a",
        "window": "day",
        "limit": "1.000000000",
        "spent": "0.250000000",
        "reserved": "0.000000000",
        "remaining": "0.750000000",
        "frozen": False,
        "granted": "0.000000000",
    }
    assert found["daily", "team=vip", "day"]["limit"] == "5.000000000"
    assert found["", "all calls", "month"]["limit"] is None
    assert found["", "all calls", "month"]["spent"] == "0.250000000"
    shown = run("budgets", "list").output
    assert "team=a" in shown
    assert "$0.75" in shown


def test_freeze_stops_a_scope_at_once_and_off_opens_it(run: Run) -> None:
    configure()
    spend("0.10", team="a")
    assert "frozen" in run("budgets", "freeze", "team=a", "--reason", "runaway agent").output
    assert rows(run)["daily", "team=a", "day"]["frozen"] is True
    with pytest.raises(BudgetExceeded, match="frozen by an operator"):
        spend("0", team="a")
    spend("0.10", team="b")
    assert json.loads(run("budgets", "freeze", "team=a", "--off", "--json").output) == {
        "scope": "team=a",
        "frozen": False,
        "known": True,
    }
    spend("0.10", team="a")
    key = "team=a"
    assert audits() == [("freeze", key, "runaway agent", None), ("thaw", key, "", None)]
    assert "No account of this scope has been used yet" in run("budgets", "freeze", "team=z").output


def test_grant_raises_the_limit_for_a_while(run: Run) -> None:
    configure()
    spend("0.90", team="a")
    result = run("budgets", "grant", "team=a", "0.50", "--until", "2h", "--json")
    assert json.loads(result.output)["granted"] == "0.500000000"
    row = rows(run)["daily", "team=a", "day"]
    assert (row["limit"], row["granted"], row["remaining"]) == ("1.500000000", "0.500000000", "0.600000000")
    spend("0.60", team="a")
    with pytest.raises(BudgetExceeded):
        spend("0.01", team="a")
    (event,) = [event for event in get_runtime().books.ledger.audits() if event.action == "grant"]
    assert (event.subject, event.nanos) == ("team=a", 500_000_000)
    assert event.until is not None
    assert abs(event.until - event.at - 7200) < 1
    for until in ("soon", "2020-01-01"):
        assert run("budgets", "grant", "team=a", "1", "--until", until).exit_code == 2
    assert run("budgets", "grant", "team=a", "-1", "--until", "2h").exit_code == 2


def test_reset_takes_back_what_is_spent_and_leaves_the_charges(run: Run) -> None:
    configure(budgets=["1/day", "10/month", Budget("5/24h"), Budget("9/total", by="team")])
    spend("0.80", team="a")
    result = json.loads(run("budgets", "reset", "all", "--window", "daily", "--json").output)
    assert list(result["reset"].values()) == ["0.800000000"]
    assert rows(run)["", "all calls", "month"]["spent"] == "0.800000000"
    spend("0.90", team="a")
    assert "$0.90 taken back" in run("budgets", "reset", "all calls", "--reason", "new contract").output
    found = rows(run)
    assert {row["spent"] for key, row in found.items() if key[1] == "all calls"} == {"0.000000000"}
    assert found["", "team=a", "total"]["spent"] == "1.700000000"
    assert "nothing is spent" in run("budgets", "reset", "team=z").output
    assert [(action, nanos) for action, _, _, nanos in audits()] == [
        ("reset", 800_000_000),
        ("reset", 900_000_000),  # of the day
        ("reset", 1_700_000_000),  # of the last 24 hours
        ("reset", 1_700_000_000),  # of the month
    ]
    assert sum(charge.nanos for charge in get_runtime().books.ledger.charges()) == 1_700_000_000


def test_rebuild_makes_the_accounts_what_the_ledger_says(run: Run) -> None:
    configure(budgets=[Budget("9/total", by="team"), "9/month"])
    spend("0.80", team="a")
    spend("0.10", team="b")
    assert run("budgets", "reset", "all").exit_code == 0
    spend("0.05", team="a")
    store = get_runtime().books.store
    store.adjust("team=a|total", 3_000_000_000)
    store.adjust("team=ghost|total", 7)
    assert run("budgets", "rebuild").exit_code == 2
    assert "--yes" in run("budgets", "rebuild").output
    changed = json.loads(run("budgets", "rebuild", "--yes", "--json", "--reason", "restored").output)
    assert changed == {
        "team=a|total": ["3.850000000", "0.850000000"],
        "team=ghost|total": ["0.000000007", "0.000000000"],
    }
    month = rows(run)["", "all calls", "month"]
    assert month["spent"] == "0.050000000", "what was reset stays reset"
    assert audits()[-1][0] == "rebuild"
    again = run("budgets", "rebuild", "--yes")
    assert again.exit_code == 1
    assert "another rebuild" in again.output


def test_a_store_of_many_machines_is_not_rebuilt_from_one_machine_s_ledger(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENOPS_STORE", "redis://127.0.0.1:1/0")
    result = run("budgets", "rebuild", "--yes")
    assert result.exit_code == 2
    assert "shared by machines" in result.output
    alone = run("budgets", "rebuild", "--yes", "--only-machine")
    assert "shared by machines" not in alone.output
    assert "127.0.0.1:1" in alone.output, "it went on to the store, which does not answer"


def test_accounts_are_not_rebuilt_from_a_ledger_that_knows_of_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend("0.2", team="a")
    monkeypatch.setenv("GENOPS_LEDGER", "memory://")
    result = run("budgets", "rebuild", "--yes")
    assert result.exit_code == 2
    assert "memory://" in result.output
    assert rows(run)["daily", "team=a", "day"]["spent"] == "0.200000000"


@pytest.mark.parametrize(
    "arguments", [("list",), ("reset", "all"), ("freeze", "all"), ("rebuild", "--yes")], ids="-".join
)
def test_memory_has_nothing_to_act_on(
    command: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple
) -> None:
    monkeypatch.setenv("GENOPS_STORE", "memory://")
    result = command("budgets", *arguments)
    assert result.exit_code == 2
    assert "nothing shared to act on" in result.output


# -- set -------------------------------------------------------------------------------------------


def test_set_shows_the_change_and_asks(run: Run) -> None:
    refused = run("budgets", "set", "monthly", "100/month", input="n\n")
    assert '+limit = "100/month"' in refused.output
    assert Path("genops.toml").read_text() == SETTINGS
    done = run("budgets", "set", "monthly", "100/month", "--by", "team", "--limit-of", "vip=500", input="y\n")
    assert done.exit_code == 0, done.output
    text = Path("genops.toml").read_text()
    assert text.startswith(SETTINGS)
    daily, monthly = load_settings().budgets
    assert daily.name == "daily"
    assert monthly == Budget("100/month", name="monthly", by="team", limits={"vip": "500"})


def test_set_replaces_the_budget_of_its_name_and_nothing_else(run: Run) -> None:
    Path("genops.toml").write_text(SETTINGS + '\n# of the rest\n[attribution]\nteam = "x"\n')
    options = (
        "--on-exceeded",
        "degrade",
        "--fallback",
        "cheap",
        "--alert-at",
        "0.9",
        "--time-zone",
        "Asia/Tokyo",
    )
    result = run("budgets", "set", "daily", "2/day", *options, "--yes", "--json")
    assert json.loads(result.output)["written"] is True
    text = Path("genops.toml").read_text()
    assert "# the comment stays" in text
    assert "# of the rest\n[attribution]" in text
    settings = load_settings()
    assert settings.attribution == {"team": "x"}
    assert settings.budgets == (
        Budget(
            "2/day",
            name="daily",
            on_exceeded="degrade",
            fallback="cheap",
            alert_thresholds=("0.9",),
            time_zone="Asia/Tokyo",
        ),
    )
    again = run("budgets", "set", "daily", "2/day", *options, "--yes")
    assert "says so already" in again.output


def test_set_makes_the_file_where_there_is_none(run: Run, tmp_path: Path) -> None:
    assert run("budgets", "set", "all", "5/day", "--file", "new.toml", "--yes").exit_code == 0
    assert tomllib.loads(Path("new.toml").read_text()) == {"budget": [{"name": "all", "limit": "5/day"}]}
    assert Path("new.toml").stat().st_mode & 0o777 == 0o644
    assert not list(tmp_path.glob(".new.toml*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("x", "5"), "needs a window"),
        (("x", "lots/day"), "not a number of dollars"),
        (("x", "5/day", "--limit-of", "vip=1"), "exactly one by="),
        (("x", "5/day", "--by", "team", "--limit-of", "vip"), "VALUE=USD"),
        (("x", "5/day", "--on-exceeded", "degrade"), "needs fallback="),
        (("x", "5/day", "--alert-at", "80"), "a part of the limit"),
    ],
)
def test_set_writes_no_budget_that_is_none(run: Run, arguments: tuple[str, ...], says: str) -> None:
    result = run("budgets", "set", *arguments, "--yes")
    assert result.exit_code == 2
    assert says in result.output
    assert Path("genops.toml").read_text() == SETTINGS


NEW = {"name": "b", "limit": "1/day"}
BLOCK = '[[budget]]\nname = "b"\nlimit = "1/day"\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", BLOCK),
        ("a = 1", "a = 1\n\n" + BLOCK),
        ('[[budget]]\nlimit = 3\nname = "b"', BLOCK),
        ('[[ budget ]] # x\nname = "b"\n[budget.limits]\nq = 1\n\n[c]\nd = 1\n', BLOCK + "\n[c]\nd = 1\n"),
        (
            '[[budget]]\nname = "a"\n[[budget]]\nname = "b"\n[[policy]]\n',
            '[[budget]]\nname = "a"\n' + BLOCK + "\n[[policy]]\n",
        ),
        ('t = """\n[[budget]]\nname = "c"\n"""\n', 't = """\n[[budget]]\nname = "c"\n"""\n\n' + BLOCK),
    ],
)
def test_one_budget_in_a_text(before: str, after: str) -> None:
    assert replaced(before, NEW) == after


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = ", "not valid TOML"),
        ('[[budget]]\nname = "b"\n[[budget]]\nname = "b"\n', "several budgets"),
        ('t = """\n[[budget]]\nname = "b"\n[c]\n"""\n', "by hand"),
        ('budget = [{ name = "a", limit = 1 }]\n', "not valid TOML"),
    ],
)
def test_a_text_that_cannot_be_edited_safely(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        replaced(text, NEW)


def test_every_sign_of_a_name_survives() -> None:
    name = 'a "quoted"\\ \x7f\u2028 ü \t'
    text = replaced("", {"name": name, "limits": {"x.y=z": "1"}, "by": ["team"], "limit": "1/day"})
    (table,) = tomllib.loads(text)["budget"]
    assert (table["name"], table["limits"]) == (name, {"x.y=z": "1"})


# -- alert-test ------------------------------------------------------------------------------------


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[bytes]]]:
    seen: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(404 if "gone" in self.path else 200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_is_tried_out(command: Run, webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    url, seen = webhook
    result = command("budgets", "alert-test", "--webhook", f"{url}/the-secret", "--json")
    assert json.loads(result.output) == {"host": "127.0.0.1", "status": 200}
    monkeypatch.setenv("GENOPS_ALERT_WEBHOOK", f"{url}/the-secret")
    result = command("budgets", "alert-test")
    assert "took the test alert" in result.output
    assert "the-secret" not in result.output
    assert [list(json.loads(body)) for body in seen] == [["text"], ["text"]]
    failed = command("budgets", "alert-test", "--webhook", f"{url}/gone-secret")
    assert failed.exit_code == 1
    assert "status 404" in failed.output
    assert "secret" not in failed.output


def test_without_a_webhook_it_says_how_to_name_one(command: Run) -> None:
    result = command("budgets", "alert-test")
    assert result.exit_code == 2
    assert "GENOPS_ALERT_WEBHOOK" in result.output


# -- the controls beneath --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "key", "shown"),
    [
        ("all", "in:", "all calls"),
        ("all calls", "in:", "all calls"),
        ("team=R&D|x", "team=R%26D%7Cx", "team=R&D|x"),
        ("team=a,customer_id=b, c=d", "team=a&customer_id=b%2C%20c%3Dd", "team=a,customer_id=b, c=d"),
        ("function app.answer", "in:function%20app.answer", "function app.answer"),
        ("in:context%20x", "in:context%20x", "context x"),
    ],
)
def test_scopes_as_people_write_them(scope: str, key: str, shown: str) -> None:
    assert scope_key(scope) == key
    assert scope_name(key) == shown


def test_scope_keys_are_those_of_watches() -> None:
    attribution = {"team": "R&D|x", "customer_id": "50% = half, or so"}
    watch = Budget("5/day", by=("team", "customer_id")).watch(attribution, 0.0)
    assert scope_key("team=R&D|x,customer_id=50% = half, or so") == watch.control
    assert scope_key("context a&b") == Budget("5/day").watch({}, 0.0, "context a&b").control


def test_a_scope_needs_a_name() -> None:
    with pytest.raises(ConfigurationError):
        scope_key("  ")


def controls(clock: FixedClock, budgets: tuple[Budget, ...] = ()) -> Controls:
    runtime = Runtime(Settings(budgets=budgets), clock=clock)
    reset_runtime(runtime)
    return Controls(runtime.books.store, runtime.books.ledger, clock, "someone")


def test_windows_that_are_over_are_neither_shown_nor_reset() -> None:
    clock = FixedClock()
    budgets = (
        Budget("5/day", rollover=True, name="d"),
        Budget("7/24h", name="s"),
        Budget("9/total", name="t"),
    )
    desk = controls(clock, budgets)
    spend("2")
    clock.advance(5 * 3600)
    spend("1")
    shown = {row.budget: (row.limit, row.spent) for row in desk.rows(budgets)}
    day = 10**9
    assert shown == {"d": (10 * day, 3 * day), "s": (7 * day, 3 * day), "t": (9 * day, 3 * day)}
    clock.advance(86_400)
    shown = {row.budget: (row.limit, row.spent) for row in desk.rows(budgets)}
    assert shown == {"d": (7 * day, 0), "s": (7 * day, day), "t": (9 * day, 3 * day)}
    assert {row.scope: row.spent for row in desk.rows(()) if row.window == "1d"} == {"all calls": day}
    assert sorted(desk.reset("all").values()) == [day, 3 * day]
    assert {row.spent for row in desk.rows(budgets)} == {0}
    assert next(iter(get_runtime().books.ledger.audits())).actor == "someone"


def test_rebuild_waits_for_calls_and_charges_on_their_way() -> None:
    clock = FixedClock()
    desk = controls(clock, (Budget("5/day"),))
    with metered_call("job", max_cost=1) as call:
        with pytest.raises(StoreError, match="calls are in flight"):
            desk.rebuild()
        call.record_cost("1")
    clock.advance(61)

    class Behind(MemoryLedger):
        def unsettled(self, limit=100):
            return ("a charge",)

    with pytest.raises(StoreError, match="not in the accounts yet"):
        Controls(MemoryStore(), Behind(), clock).rebuild()
    assert desk.rebuild() == {}


def test_rebuild_forgets_windows_that_nobody_can_ask_for() -> None:
    clock = FixedClock()
    controls(clock, (Budget("5/day"), Budget("9/total")))
    spend("1")
    clock.advance(86_400)
    spend("2")
    ledger = get_runtime().books.ledger
    clock.advance(86_400)
    fresh = MemoryStore()
    rebuilt = Controls(fresh, ledger, clock).rebuild()
    assert {key.partition("|")[2]: now for key, (_, now) in rebuilt.items()} == {
        "day:2026-01-02": 2_000_000_000,
        "total": 3_000_000_000,
    }


def test_a_store_that_restores_gets_accounts_and_what_operators_said() -> None:
    clock = FixedClock()
    desk = controls(clock, (Budget("5/total"),))
    spend("1")
    desk.freeze("all")
    desk.freeze("team=a")
    desk.freeze("team=a", frozen=False)
    desk.grant("team=b", 5, clock() + 10)
    desk.grant("team=c", 7, clock() + 1000)
    clock.advance(100)
    seen: dict[str, Any] = {}

    class Lossy(MemoryStore):
        def claim_restore(self, seconds: float) -> str | None:
            return None if seen else "claim"

        def restore(self, accounts, holds, controls, *, now, anyway, claim) -> bool:
            assert claim == "claim"
            seen.update(accounts=accounts, holds=holds, controls=controls, now=now, anyway=anyway)
            return True

    lossy = Controls(Lossy(), get_runtime().books.ledger, clock)
    assert lossy.rebuild() == {"in:|total": (0, 1_000_000_000)}
    assert seen["accounts"]["in:|total"].spent == 1_000_000_000
    ((_, hold),) = seen["holds"].items()
    assert (hold.state, hold.booked, hold.accounts) == ("settled", 1_000_000_000, ("in:|total",))
    assert {key: (control.frozen, control.granted) for key, control in seen["controls"].items()} == {
        "in:": (True, 0),
        "team=c": (False, 7),
    }
    with pytest.raises(StoreError, match="another rebuild"):
        lossy.rebuild()
    assert Decimal(1) == sum(charge.cost for charge in get_runtime().books.ledger.charges())


def test_two_operators_who_reset_at_the_same_moment_take_it_once() -> None:
    clock = FixedClock()
    budgets = (Budget("9/total", name="t"),)
    first = controls(clock, budgets)
    books = get_runtime().books
    spend("3")

    class Slow(MemoryLedger):
        def audit(self, event: AuditEvent) -> None:
            assert Controls(books.store, books.ledger, clock, "second").reset("all") == {}
            super().audit(event)

    ledger = Slow()
    assert Controls(books.store, ledger, clock, "first").reset("all") == {"in:|total": 3 * 10**9}
    assert [event.nanos for event in ledger.audits("reset")] == [3 * 10**9]
    assert first.rows(budgets)[0].spent == 0


def test_a_reset_that_cannot_be_recorded_is_undone() -> None:
    clock = FixedClock()
    budgets = (Budget("9/total", name="t"),)
    desk = controls(clock, budgets)
    spend("3")

    class Full(MemoryLedger):
        def audit(self, event: AuditEvent) -> None:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        Controls(get_runtime().books.store, Full(), clock).reset("all")
    assert desk.rows(budgets)[0].spent == 3 * 10**9


def test_many_accounts_are_listed_by_asking_the_store_as_often_as_for_few() -> None:
    """On Redis each question is a round trip, and a budget by user has an account for each of them."""
    asked = []

    class Counting(MemoryStore):
        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("_"):
                asked.append(name)
            return super().__getattribute__(name)

    clock = FixedClock()
    store = Counting()
    budget = Budget("10/day", by="user_id", name="each")
    for number in range(300):
        store.adjust(budget.watch({"user_id": f"u{number}"}, clock()).account, 10**9)
    store.set_control("user_id=u7", frozen=True)
    store.set_control("user_id=u8", grant=(5 * 10**9, clock() + 60))
    looking = Controls(store, MemoryLedger(), clock)
    asked.clear()
    rows = {row.scope: row for row in looking.rows([budget])}
    assert len(asked) < 5
    assert len(rows) == 300
    assert [scope for scope, row in rows.items() if row.frozen] == ["user_id=u7"]
    assert {row.limit for scope, row in rows.items() if scope != "user_id=u8"} == {10 * 10**9}
    assert rows["user_id=u8"].limit == 15 * 10**9
