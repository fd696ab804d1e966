"""``genops-ctx estimate``: what a month will probably cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from ..core.errors import ConfigurationError

__all__ = ["estimate"]


@click.command()
@click.option("--executions", required=True, type=int, metavar="N", help="Predictions a month.")
@click.option(
    "--tokens",
    required=True,
    type=int,
    metavar="N",
    help="Tokens of an average prediction, input and output.",
)
@click.option(
    "--share",
    "shares",
    multiple=True,
    metavar="PROVIDER[/MODEL]=PART",
    help="A provider's or a model's part of the predictions, such as openai/gpt-4o-mini=0.6; "
    "they add up to 1.",
)
@click.option("--tier", metavar="TIER", help="Flowise plan; FLOWISE_PRICING_TIER, else self_hosted.")
@click.option(
    "--output-share",
    default="0.25",
    show_default=True,
    metavar="PART",
    help="Part of the tokens that is output.",
)
@click.option("--monthly-fee", metavar="USD", help="What was agreed with Flowise, for cloud_enterprise.")
@click.option("--users", type=int, metavar="N", help="People on the plan, where it charges for more of them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs; amounts are strings.")
def estimate(
    executions: int,
    tokens: int,
    shares: tuple[str, ...],
    tier: str | None,
    output_share: str,
    monthly_fee: str | None,
    users: int | None,
    as_json: bool,
) -> None:
    """Estimate a month's spend from its predictions and their mix of models.

    Ends with status 1 where the price of one of the models is not known.
    """
    from ..providers.flowise_pricing import FlowiseCostCalculator

    distribution: dict[str, str] = {}
    for share in shares or ("openai=1",):
        name, equals, part = share.rpartition("=")
        if not equals or not name.partition("/")[0] or name in distribution:
            raise click.BadParameter(
                f"write {share!r} as PROVIDER=PART or PROVIDER/MODEL=PART, each of them once",
                param_hint="--share",
            )
        distribution[name] = part
    try:
        found = FlowiseCostCalculator(tier, monthly_fee=monthly_fee, users=users).estimate_monthly_spend(
            executions, tokens, distribution, output_share=output_share
        )
    except ConfigurationError as problem:
        raise click.ClickException(_as_options(str(problem))) from None
    if as_json:
        click.echo(json.dumps(found, indent=2, default="{:f}".format))
    else:
        _show(found)
    if found["unpriced"]:
        raise SystemExit(1)


def _as_options(text: str) -> str:
    return text.replace("pass monthly_fee= and included_predictions=", "pass --monthly-fee")


def _show(found: Mapping[str, Any]) -> None:
    from ..core.money import format_dollars, nanos_up

    for name, model in found["models"].items():
        cost = found["provider_cost_breakdown"].get(name)
        shown = "no price is known" if cost is None else format_dollars(nanos_up(cost))
        click.echo(f"{name if '/' in name else f'{name}/{model}':<40} {shown:>16}")
    platform = f"Flowise, {found['pricing_tier']}"
    click.echo(f"{platform:<40} {format_dollars(nanos_up(found['flowise_platform_cost'])):>16}")
    click.echo(f"{'a month':<40} {format_dollars(nanos_up(found['total_estimated_cost'])):>16}")
    if found["refused_executions"]:
        click.echo(f"Past the plan: {found['refused_executions']} predictions would be refused (HTTP 402).")
    if found["unpriced"]:
        click.echo(f"Not in the total, since no price is known: {', '.join(found['unpriced'])}")
