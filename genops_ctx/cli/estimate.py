"""``genops-ctx estimate``: what a month will probably cost."""

from __future__ import annotations

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
    help="A provider's part of the predictions, such as openai/gpt-4o-mini=0.6; they add up to 1.",
)
@click.option("--tier", metavar="TIER", help="Flowise plan; FLOWISE_PRICING_TIER, else self_hosted.")
@click.option(
    "--output-share",
    default="0.25",
    show_default=True,
    metavar="PART",
    help="Part of the tokens that is output.",
)
def estimate(
    executions: int, tokens: int, shares: tuple[str, ...], tier: str | None, output_share: str
) -> None:
    """Estimate a month's spend from its predictions and their mix of models."""
    from ..core.money import format_dollars, nanos_up
    from ..providers.flowise_pricing import FlowiseCostCalculator

    distribution: dict[str, str] = {}
    models: dict[str, str] = {}
    for share in shares or ("openai=1",):
        name, equals, part = share.rpartition("=")
        provider, _, model = name.partition("/")
        if not equals or not provider or provider in distribution:
            raise click.BadParameter(
                f"write {share!r} as PROVIDER=PART or PROVIDER/MODEL=PART, each provider once",
                param_hint="--share",
            )
        distribution[provider] = part
        if model:
            models[provider] = model
    try:
        found = FlowiseCostCalculator(tier).estimate_monthly_spend(
            executions, tokens, distribution, models=models, output_share=output_share
        )
    except ConfigurationError as problem:
        raise click.ClickException(str(problem)) from None
    for provider, model in found["models"].items():
        cost = found["provider_cost_breakdown"].get(provider)
        shown = "no price is known" if cost is None else format_dollars(nanos_up(cost))
        click.echo(f"{f'{provider}/{model}':<40} {shown:>16}")
    platform = f"Flowise, {found['pricing_tier']}"
    click.echo(f"{platform:<40} {format_dollars(nanos_up(found['flowise_platform_cost'])):>16}")
    click.echo(f"{'a month':<40} {format_dollars(nanos_up(found['total_estimated_cost'])):>16}")
    if found["refused_executions"]:
        click.echo(f"Past the plan: {found['refused_executions']} predictions would be refused (HTTP 402).")
    if found["unpriced"]:
        click.echo(f"Not in the total, since no price is known: {', '.join(found['unpriced'])}")
        raise SystemExit(1)
