"""``genops-ctx backfill``: book what Flowise ran without being governed, and say how much that is."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from ..core.money import dollars, format_dollars
from ..core.records import CostSource
from .times import back

if TYPE_CHECKING:
    from ..providers.backfill import Found

__all__ = ["backfill", "governed_share", "share_line"]


@click.command()
@click.option(
    "--since",
    metavar="TIME",
    help="30d, a day, or an ISO time; where the last backfill of the flow ended, else 30d, unless given.",
)
@click.option(
    "--flow", "names", multiple=True, metavar="FLOW", help="Only this one (id or name); repeatable."
)
@click.option("--dry-run", is_flag=True, help="Read and report, and book nothing.")
@click.option("--team", metavar="NAME", help="Attribution of what is booked.")
@click.option(
    "--attr", "custom", metavar="KEY=VALUE", multiple=True, help="Attribution of your own; repeatable."
)
@click.option("--url", metavar="URL", help="Flowise's address; FLOWISE_BASE_URL unless given.")
@click.option("--key", metavar="KEY", help="API key; FLOWISE_API_KEY unless given.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def backfill(
    since: str | None,
    names: tuple[str, ...],
    dry_run: bool,
    team: str | None,
    custom: tuple[str, ...],
    url: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Book calls that were never governed: UI test chats, webhooks, schedules, MCP, embeds.

    AgentFlows are read from their execution records, classic flows estimated from their stored messages.
    Nothing is booked twice. Runs of the last ten minutes are left to the next time.
    """
    from ..providers.backfill import DAY, Backfill
    from ..providers.errors import FlowiseError
    from ..providers.flowise import GenOpsFlowiseAdapter
    from ..runtime import get_runtime
    from .run import custom_attribution

    runtime = get_runtime()
    given = {**({"team": team} if team else {}), **custom_attribution(custom)}
    begin = None if since is None else back(since, option="--since")
    first = begin if begin is not None else time.time()
    found: list[Found] = []
    failed: list[str] = []
    adapter = GenOpsFlowiseAdapter(url, key)
    with adapter.session:
        reader = Backfill(adapter, runtime, attribution=given)
        for flow in reader.flows(names):
            start = begin
            if start is None:
                resumed = reader.resumes(flow)
                start = back("30d", option="--since") if resumed is None else resumed - DAY
            first = min(first, start)
            try:
                found.append(reader.read(flow, start, dry_run=dry_run))
            except FlowiseError as error:
                failed.append(str(error))
    share = governed_share(runtime.books.ledger, first, time.time())
    if as_json:
        click.echo(json.dumps(_as_json(found, failed, share, dry_run), indent=2))
    else:
        _show(found, share, dry_run)
        for line in failed:
            click.echo(f"not read: {line}", err=True)
    if failed:
        raise SystemExit(1)


def governed_share(ledger: Any, since: float, until: float) -> tuple[int, int]:
    """Nano-dollars that were governed, and all, of what the ledger has between two times (epoch seconds)."""
    totals = ledger.totals(since, until, by=("source",))
    spent = sum(total.nanos for total in totals)
    found = sum(total.nanos for total in totals if total.key == (CostSource.BACKFILLED,))
    return spent - found, spent


def share_line(governed: int, spent: int) -> str:
    """How much of what was spent was governed, in words."""
    share = f"{100 * governed / spent:.1f} %" if spent > 0 else "nothing"
    return f"governed: {format_dollars(governed)} of {format_dollars(spent)} ({share})"


def _show(found: list[Found], share: tuple[int, int], dry_run: bool) -> None:
    for one in found:
        if not (one.charges or one.governed or one.unsure or one.running):
            continue
        inexact = sum(charge.exactness != "exact" for charge in one.charges)
        parts = [
            f"{len(one.charges)} not governed, {format_dollars(one.nanos)}"
            + (f" ({inexact} not exact)" if inexact else ""),
            f"{one.booked} new" if not dry_run else "",
            f"{one.governed} governed",
            f"{one.unsure} cannot be told" if one.unsure else "",
            f"{one.running} still running" if one.running else "",
        ]
        click.echo(f"{one.flow_name}: {' | '.join(part for part in parts if part)}")
    if not any(one.charges for one in found):
        click.echo("No call was found that is not governed.")
    if dry_run:
        click.echo("Nothing was booked (--dry-run).")
    else:
        click.echo(share_line(*share))


def _as_json(found: list[Found], failed: list[str], share: tuple[int, int], dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "flows": [
            {
                "id": one.flow_id,
                "name": one.flow_name,
                "ungoverned": len(one.charges),
                "cost": f"{dollars(one.nanos):f}",
                "not_exact": sum(charge.exactness != "exact" for charge in one.charges),
                "booked": one.booked,
                "governed": one.governed,
                "unsure": one.unsure,
                "running": one.running,
            }
            for one in found
        ],
        "failed": failed,
        "governed": f"{dollars(share[0]):f}",
        "spent": f"{dollars(share[1]):f}",
    }
