"""``genops-ctx flows``: which flows there are and how they are metered; setting that up, and undoing it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..environment import variable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..providers.flowise import GenOpsFlowiseAdapter
    from ..providers.metering_setup import Step

__all__ = ["flows"]

F = TypeVar("F", bound=Callable[..., Any])


def _address(command: F) -> F:
    for option in (
        click.option("--key", metavar="KEY", help="API key; FLOWISE_API_KEY unless given."),
        click.option("--url", metavar="URL", help="Flowise's address; FLOWISE_BASE_URL unless given."),
    ):
        command = option(command)
    return command


@click.group()
def flows() -> None:
    """List flows with how exactly they are metered, and set up how."""


@flows.command("list")
@_address
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def list_flows(url: str | None, key: str | None, as_json: bool) -> None:
    """List every flow: kind, models, what is metered by which route, and what is set up now."""
    from ..providers.flowise import GenOpsFlowiseAdapter

    adapter = GenOpsFlowiseAdapter(url, key)
    with adapter.session:
        rows = list(_rows(adapter))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']}  ({row['kind']}, {row['id']})")
        click.echo(f"  models    {', '.join(row['models']) or 'none was found'}")
        if row["unpriced"]:
            click.echo(f"  no price  {', '.join(row['unpriced'])}")
        click.echo(f"  now       {row['now']}{' | ' + ', '.join(row['set_up']) if row['set_up'] else ''}")
        if row["gaps"]:
            click.echo(f"  missing   {', '.join(row['gaps'])}")
        click.echo(f"  possible  {', '.join(row['possible']) or 'nothing more'}")
    if not rows:
        click.echo("The key may see no flow.")


def _rows(adapter: GenOpsFlowiseAdapter) -> Iterator[dict[str, Any]]:
    from ..providers.metering_outlook import flow_outlook
    from ..providers.metering_setup import ROUTES, refusal, set_up_now
    from ..runtime import get_runtime
    from ..wire.flow_changes import gateway_nodes
    from ..wire.flows import parse_flow

    runtime = get_runtime()
    at = runtime.clock()
    for listed in adapter.get_chatflows():
        raw = listed if isinstance(listed.get("flowData"), str) else adapter.get_chatflow(str(listed["id"]))
        definition = parse_flow(raw)
        outlook = flow_outlook(definition, runtime.prices, at, adapter.metering)
        nodes = gateway_nodes(raw.get("flowData") or "{}", [node.id for node in definition.model_nodes])
        through = bool(nodes) and all(node.possible for node in nodes)
        yield {
            "id": definition.id,
            "name": definition.name,
            "kind": str(definition.kind),
            "models": list(outlook.models),
            "unpriced": list(outlook.unpriced),
            "now": outlook.summary,
            "exact": outlook.exact,
            "gaps": list(outlook.gaps),
            "possible": [
                route
                for route in ROUTES
                if not refusal(definition, route) and (through or route != "gateway")
            ],
            "set_up": list(set_up_now(raw)),
            "protected": outlook.protected,
        }


@flows.command()
@click.argument("flow")
@click.option(
    "--via",
    "route",
    type=click.Choice(["langfuse", "otlp", "gateway", "evaluation"]),
    required=True,
    help="How its usage is to arrive.",
)
@click.option("--undo", is_flag=True, help="Put the flow back as it was before.")
@click.option(
    "--receiver",
    metavar="URL",
    envvar="GENOPS_RECEIVER_URL",
    help="Where Flowise reaches the receivers; GENOPS_RECEIVER_URL unless given.",
)
@click.option(
    "--receiver-key",
    metavar="KEY",
    default=lambda: variable("GENOPS_RECEIVER_KEY") or None,
    help="The key that the receivers ask for; GENOPS_RECEIVER_KEY unless given.",
)
@click.option(
    "--upstream", default="openai", show_default=True, help="The proxy's name of the model API; for gateway."
)
@click.option("--dry-run", is_flag=True, help="Show what would be changed, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_address
def meter(
    flow: str,
    route: str,
    undo: bool,
    receiver: str | None,
    receiver_key: str | None,
    upstream: str,
    dry_run: bool,
    yes: bool,
    url: str | None,
    key: str | None,
) -> None:
    """Set FLOW (an id or unique name) up so that its usage arrives.

    What is changed in Flowise is shown first. What was there before is kept in the ledger, so that
    --undo puts it back to the byte.
    """
    from ..providers.flow_editor import FlowEditor
    from ..providers.flowise import GenOpsFlowiseAdapter
    from ..providers.metering_setup import Receiver

    adapter = GenOpsFlowiseAdapter(url, key)
    with adapter.session:
        editor = FlowEditor(adapter)
        if undo:
            step = editor.plan_undo(flow, route)
        else:
            to = Receiver.checked(receiver, receiver_key or "") if receiver else None
            step = editor.plan(flow, route, to, upstream)
        _show(step)
        if step.nothing or dry_run:
            return
        if not yes:
            click.confirm(f"Change flow {step.flow_name!r} at {adapter.base_url}?", abort=True)
        if undo:
            for line in editor.undo(step):
                click.echo(line)
            click.echo(f"Flow {step.flow_name!r} is no longer metered by {route}.")
        else:
            editor.set_up(step)
            click.echo(f"Flow {step.flow_name!r} is metered by {route}. To undo it: --undo")


def _show(step: Step) -> None:
    click.echo(f"{step.flow_name} ({step.flow_id}), {step.route}")
    for line in step.shown:
        click.echo(line)
    for note in step.notes:
        click.echo(f"  {note}")
