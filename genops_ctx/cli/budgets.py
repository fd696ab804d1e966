"""``genops-ctx budgets``: see and steer the budgets of the configured store.

What is done to accounts is recorded in the ledger, with who did it and why.
"""

from __future__ import annotations

import difflib
import getpass
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import ConfigurationError
from ..core.money import dollars, format_dollars, nanos_down, parse_dollars
from .times import ahead

if TYPE_CHECKING:
    from ..controls import Controls, Row
    from ..settings import Settings

__all__ = ["budgets"]

json_option = click.option("--json", "as_json", is_flag=True, help="As JSON; amounts are strings of dollars.")
reason_option = click.option("--reason", default="", help="Why, for the audit record.")


@click.group()
def budgets() -> None:
    """See and steer budgets.

    SCOPE is whom an account belongs to, as `list` shows it: "all", team=search,
    team=search,customer_id=acme, "function module.name", "context name".
    """


@budgets.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Show the accounts of the windows that are open now, with the budgets of the settings file.

    Budgets that code declares are not known here: their accounts are shown without a limit.
    """
    with _controls() as (controls, settings):
        rows = controls.rows(settings.budgets)
    if as_json:
        _print([_row(row) for row in rows])
        return
    if not rows:
        click.echo("No budget is configured, and nothing is booked in a window that is open now.")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("budget", "scope", "window"):
        table.add_column(column, overflow="fold")
    for column in ("spent", "reserved", "limit", "remaining"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("resets at")
    for row in rows:
        table.add_row(
            row.budget or "(in code)",
            row.scope + (" FROZEN" if row.frozen else ""),
            row.window,
            format_dollars(row.spent),
            format_dollars(row.reserved),
            "" if row.limit is None else format_dollars(row.limit),
            "" if row.remaining is None else format_dollars(row.remaining),
            _time(row.resets_at) or "never",
        )
    width = None if os.isatty(1) else 200
    Console(width=width, highlight=False, markup=False).print(table)


@budgets.command("set")
@click.argument("name")
@click.argument("limit")
@click.option("--by", multiple=True, metavar="KEY", help="An account for each value of an attribution key.")
@click.option("--limit-of", multiple=True, metavar="VALUE=USD", help="Another limit for a value of --by.")
@click.option("--time-zone", help="IANA zone of days, weeks and months.")
@click.option("--admission", type=click.Choice(["expected", "strict"]))
@click.option("--on-exceeded", type=click.Choice(["block", "warn", "degrade"]))
@click.option("--fallback", metavar="FLOW", help="The cheaper flow of --on-exceeded degrade.")
@click.option("--alert-at", multiple=True, metavar="PART", help="0.8 for an alert at 80 %.")
@click.option("--file", "path", type=click.Path(dir_okay=False, path_type=Path), help="The settings file.")
@click.option("--yes", is_flag=True, help="Write without asking.")
@json_option
def set_budget(
    name: str,
    limit: str,
    by: tuple[str, ...],
    limit_of: tuple[str, ...],
    alert_at: tuple[str, ...],
    path: Path | None,
    yes: bool,
    as_json: bool,
    **options: str | None,
) -> None:
    """Write budget NAME of LIMIT ("100/month") into the settings file.

    A budget of that name is replaced as a whole. The change is shown first.
    """
    from ..core.budget import Budget
    from ..settings import CONFIG_NAME
    from .budget_file import replaced, write_file

    table: dict[str, Any] = {"name": name, "limit": limit}
    table |= {"by": list(by)} if by else {}
    table |= {"limits": dict(_pair(item) for item in limit_of)} if limit_of else {}
    table |= {key: value for key, value in options.items() if value is not None}
    table |= {"alert_thresholds": list(alert_at)} if alert_at else {}
    budget = Budget(**{**table, "by": by, "alert_thresholds": alert_at or (0.5, 0.8, 1.0)})
    if budget.window is None:
        raise ConfigurationError('a budget of the settings needs a window: "100/month"')
    target = path or Path(os.environ.get("GENOPS_CONFIG", "").strip() or CONFIG_NAME)
    before = target.read_text(encoding="utf-8") if target.exists() else ""
    after = replaced(before, table)
    change = "".join(
        difflib.unified_diff(before.splitlines(True), after.splitlines(True), str(target), str(target))
    )
    written = False
    if not as_json:
        click.echo(change or f"{target} says so already.", nl=not change)
    if change and (yes or (not as_json and click.confirm(f"Write {target}?"))):
        write_file(target, after)
        written = True
    if as_json:
        _print({"file": str(target), "budget": table, "change": change, "written": written})
    elif written:
        click.echo(f"Written. Processes read it when they start: {target}")


@budgets.command()
@click.argument("scope")
@click.argument("amount")
@click.option("--until", required=True, metavar="TIME", help="2h, 3d, a day, or an ISO time with an offset.")
@reason_option
@json_option
def grant(scope: str, amount: str, until: str, reason: str, as_json: bool) -> None:
    """Add AMOUNT dollars to every limit on SCOPE for a while; it takes the place of an earlier grant."""
    nanos = nanos_down(parse_dollars(amount, what="AMOUNT"))
    end = ahead(until, option="--until")
    with _controls() as (controls, _):
        controls.grant(scope, nanos, end, reason=reason)
    if as_json:
        _print({"scope": scope, "granted": _usd(nanos), "until": _time(end)})
    else:
        click.echo(f"{scope}: {format_dollars(nanos)} more until {_time(end)}.")


@budgets.command()
@click.argument("scope")
@click.option("--window", help="Only of this window: day, month, 24h …")
@reason_option
@json_option
def reset(scope: str, window: str | None, reason: str, as_json: bool) -> None:
    """Take what SCOPE has spent in the windows open now back to zero. The charges stay in the ledger."""
    with _controls() as (controls, _):
        taken = controls.reset(scope, window, reason=reason)
    if as_json:
        _print({"scope": scope, "reset": {key: _usd(nanos) for key, nanos in taken.items()}})
        return
    for key, nanos in taken.items():
        click.echo(f"{key}: {format_dollars(nanos)} taken back")
    if not taken:
        click.echo(f"{scope}: nothing is spent in the windows open now.")


@budgets.command()
@click.argument("scope")
@click.option("--off", is_flag=True, help="Let its calls in again.")
@reason_option
@json_option
def freeze(scope: str, off: bool, reason: str, as_json: bool) -> None:
    """Refuse every call of SCOPE at once, whatever is left of its budgets (those that only warn, warn)."""
    with _controls() as (controls, settings):
        control = controls.freeze(scope, frozen=not off, reason=reason)
        known = _known(controls, settings, scope)
    if as_json:
        _print({"scope": scope, "frozen": control.frozen, "known": known})
        return
    click.echo(f"{scope}: {'frozen' if control.frozen else 'open again'}.")
    if not known:
        click.echo("No account of this scope has been used yet; `genops-ctx budgets list` shows the scopes.")


@budgets.command()
@click.option("--yes", is_flag=True, help="The ledger is complete and the workers are stopped: go on.")
@click.option("--only-machine", is_flag=True, help="Nobody but this machine has used the Redis store.")
@reason_option
@json_option
def rebuild(yes: bool, only_machine: bool, reason: str, as_json: bool) -> None:
    """Make the accounts of the store what the ledger says.

    Only where the ledger holds every charge of the store, and no call is in flight. A store that several
    machines share needs a ledger that they share too; --only-machine says that no other one used it.
    """
    with _controls() as (controls, settings):
        if settings.ledger.startswith("memory"):
            raise ConfigurationError(
                "the ledger is memory://, which knows of no charge of other processes. Name the one that the "
                "workers write, by GENOPS_LEDGER or in the settings file"
            )
        if not (only_machine or settings.ledger_complete or _is_local(settings.store)):
            raise ConfigurationError(
                "the store is shared by machines and the ledger is of this machine only, so it cannot say "
                "what all of them spent. If no other machine has used the store, say so with --only-machine; "
                "otherwise stop the workers and begin with accounts of their own, under another database "
                "number of GENOPS_STORE, whose limits then count from zero"
            )
        if not yes:
            raise click.UsageError(
                "this writes every account anew. If the ledger holds every charge of the store, and the "
                "workers are stopped, say so with --yes"
            )
        changed = controls.rebuild(reason=reason)
    if as_json:
        _print({key: [_usd(was), _usd(now)] for key, (was, now) in changed.items()})
        return
    for key, (was, now) in changed.items():
        click.echo(f"{key}: {format_dollars(was)} -> {format_dollars(now)}")
    click.echo(f"{len(changed)} account(s) changed.")


@budgets.command("alert-test")
@click.option("--webhook", metavar="URL", help="GENOPS_ALERT_WEBHOOK, or the settings', where left out.")
@json_option
def alert_test(webhook: str | None, as_json: bool) -> None:
    """Post a test alert to a webhook (Slack, Mattermost, Discord's /slack)."""
    from ..settings import load_settings
    from ..telemetry.webhook import Webhook

    url = webhook or load_settings().alert_webhook
    if not url:
        raise ConfigurationError("name a webhook: --webhook URL, or GENOPS_ALERT_WEBHOOK")
    sink = Webhook(url)
    status = sink.post("genops_ctx: this is a test alert. Budget alerts will look like this.")
    if as_json:
        _print({"host": sink.host, "status": status})
    else:
        click.echo(f"{sink.host} took the test alert (status {status}).")


@contextmanager
def _controls() -> Iterator[tuple[Controls, Settings]]:
    from ..controls import Controls
    from ..ledger import open_ledger
    from ..settings import load_settings
    from ..stores import open_store

    settings = load_settings()
    if settings.store.startswith("memory:"):
        raise ConfigurationError(
            "the store is memory://: its accounts are within each process, so there is nothing shared to act "
            "on. Name one by GENOPS_STORE or in the settings file, sqlite:////path or redis://host"
        )
    store, ledger = open_store(settings.store), open_ledger(settings.ledger)
    try:
        yield Controls(store, ledger, time.time, _actor()), settings
    finally:
        store.close()
        ledger.close()


def _actor() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _is_local(store: str) -> bool:
    return store.startswith(("sqlite", "memory", "default"))


def _known(controls: Controls, settings: Settings, scope: str) -> bool:
    from ..controls import scope_key, scope_name

    return scope_name(scope_key(scope)) in {row.scope for row in controls.rows(settings.budgets)}


def _pair(text: str) -> tuple[str, str]:
    value, equals, amount = text.rpartition("=")
    if not equals or not value:
        raise click.BadParameter(f"write {text!r} as VALUE=USD", param_hint="--limit-of")
    return value, amount


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _usd(nanos: int) -> str:
    return f"{dollars(nanos):f}"


def _row(row: Row) -> dict[str, Any]:
    amounts = ("limit", "spent", "reserved", "granted")
    shown: dict[str, Any] = {item.name: getattr(row, item.name) for item in fields(row)}
    for name in amounts:
        shown[name] = None if shown[name] is None else _usd(shown[name])
    shown["remaining"] = None if row.remaining is None else _usd(row.remaining)
    shown["resets_at"] = _time(row.resets_at)
    return shown


def _print(value: object) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))
