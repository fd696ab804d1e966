"""``genops-ctx prices``: look prices up, give one's own, see what is missing, bring the data up to date."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..pricing.catalogue import Catalogue
    from ..pricing.difference import PriceChange

__all__ = ["prices"]


@click.group()
def prices() -> None:
    """Show, set and update model prices (dollars per million tokens)."""


@prices.command()
@click.argument("provider")
@click.argument("model", required=False)
@click.option("--at", "when", metavar="TIME", help="A day or an ISO time with an offset; now where left out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs; amounts are strings.")
def show(provider: str, model: str | None, when: str | None, as_json: bool) -> None:
    """Show the price of MODEL at PROVIDER, or list the provider's models.

    PROVIDER may be a Flowise node's name, such as chatOpenAI.
    """
    catalogue, at = _catalogue(), _moment(when)
    if model is None:
        _list_models(catalogue, provider, at, as_json)
        return
    rates = catalogue.rates(provider, model, at)
    from ..core.records import Usage

    quote = catalogue.quote(Usage(provider, model), at)
    if rates is None:
        raise click.ClickException(quote.note)
    name = f"{catalogue.provider_of(provider)}/{model.strip().lower()}"
    if as_json:
        tiers = [{"above": above, **kinds} for above, kinds in rates]
        _print_json({"model": name, "version": quote.version, "note": quote.note, "tiers": tiers})
        return
    click.echo(f"{name}  ({quote.version})")
    for above, kinds in rates:
        if above > 0:
            click.echo(f"  above {above:,} tokens of input:")
        for kind, amount in kinds.items():
            unit = "per request" if kind == "request" else "per million tokens"
            click.echo(f"  {kind:<15} ${amount:f} {unit}")
    if quote.note:
        click.echo(f"  {quote.note}")


@prices.command("set")
@click.argument("provider")
@click.argument("model")
@click.option("--input", "input_", metavar="USD", help="Dollars per million tokens of input.")
@click.option("--output", metavar="USD", help="Dollars per million tokens of output.")
@click.option("--cache-read", metavar="USD")
@click.option("--cache-write", metavar="USD", help="Written to a cache kept 5 minutes.")
@click.option("--cache-write-1h", metavar="USD")
@click.option("--reasoning", metavar="USD")
@click.option("--input-audio", metavar="USD")
@click.option("--output-audio", metavar="USD")
@click.option("--per-request", metavar="USD", help="Dollars per call.")
@click.option(
    "--as", "priced_as", metavar="MODEL", default="", help="What another model of the provider costs."
)
@click.option("--since", metavar="TIME", help="From this day on (midnight UTC); always where left out.")
@click.option("--source", metavar="TEXT", help="Where the price comes from.", default="")
def set_price(provider: str, model: str, input_: str | None, **rest: str | None) -> None:
    """Give the price of MODEL at PROVIDER; it goes before the catalogue's.

    MODEL is an exact name, or '*' for every model of the provider; an Azure deployment takes the price
    of its model by --as. Kinds that are left out cost what their whole costs: cached input what input
    costs, reasoning what output costs.
    """
    from ..pricing.names import provider_of
    from ..pricing.overrides import PriceOverride, add_override, overrides_path

    path = overrides_path()
    try:
        new = PriceOverride(provider_of(provider), model.strip().lower(), input=input_, **rest)  # type: ignore[arg-type]
        if new.priced_as and not _catalogue().is_priced(
            new.provider, new.priced_as, max(new.start, time.time())
        ):
            raise ConfigurationError(
                f"no price is known for {new.provider}/{new.priced_as}, so that nothing can be priced as it"
            )
        add_override(path, new)
    except (ConfigurationError, OSError, UnicodeError) as problem:
        raise click.ClickException(str(problem)) from None
    click.echo(f"{new.label}: written to {path}")


@prices.command()
@click.argument("names", nargs=-1, metavar="PROVIDER/MODEL…")
@click.option("--at", "when", metavar="TIME", help="A day or an ISO time with an offset; now where left out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def coverage(names: tuple[str, ...], when: str | None, as_json: bool) -> None:
    """Say which models have a price: those named, or how many of each provider.

    Ends with status 1 where a named model has none.
    """
    catalogue, at = _catalogue(), _moment(when)
    if not names:
        _count_rows(catalogue, at, as_json)
        return
    priced: dict[str, bool] = {}
    for name in names:
        provider, _, model = name.partition("/")
        if not provider or not model:
            raise click.BadParameter(f"write {name!r} as PROVIDER/MODEL", param_hint="PROVIDER/MODEL")
        priced[name] = catalogue.is_priced(provider, model, at)
    missing = list(priced.values()).count(False)
    if as_json:
        _print_json(priced)
    else:
        for name, known in priced.items():
            click.echo(f"{'priced ' if known else 'MISSING'}  {name}")
        if missing:
            click.echo(
                f"{missing} without a price; "
                "give one with: genops-ctx prices set PROVIDER MODEL --input USD --output USD"
            )
    if missing:
        raise SystemExit(1)


@prices.command()
@click.option(
    "--file",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A data file of genai-prices, instead of fetching it.",
)
@click.option("--yes", is_flag=True, help="Apply without asking.")
@click.option("--at", "when", metavar="TIME", help="Compare the prices in force then; now where left out.")
def update(source: Path | None, yes: bool, when: str | None) -> None:
    """Fetch newer price data, show what changes, and apply it when you agree."""
    from ..pricing.data import PriceData, read_providers
    from ..pricing.difference import changes
    from ..pricing.updates import fetch_data, load_data, save_data

    at = _moment(when)
    try:
        current = load_data()
        broken = False
    except ConfigurationError as problem:
        click.echo(f"{problem}\nIt is compared with the shipped prices instead.", err=True)
        current, broken = None, True
    try:
        raw = source.read_bytes() if source else fetch_data()
        new = read_providers(raw)
    except (ConfigurationError, OSError) as problem:
        raise click.ClickException(str(problem)) from None
    found = list(changes(current or PriceData(), new, at))
    _show_changes(found)
    if not found and not broken:
        return
    if not yes:
        click.confirm("Apply?", abort=True)
    try:
        path = save_data(raw)
    except OSError as problem:
        raise click.ClickException(str(problem)) from None
    click.echo(f"Applied: {path}. Remove the file to go back to the shipped data.")


def _list_models(catalogue: Catalogue, provider: str, at: float, as_json: bool) -> None:
    seller = catalogue.provider_of(provider)
    rows = [model.id for owner, model in catalogue.data.rows() if owner == seller]
    if not rows:
        raise click.ClickException(
            f"no models are listed for {seller!r}; known: {', '.join(catalogue.data.providers)}"
        )
    listed = {model: catalogue.rates(seller, model, at) for model in rows}
    if as_json:
        _print_json(
            {
                model: rates and [{"above": above, **kinds} for above, kinds in rates]
                for model, rates in listed.items()
            }
        )
        return
    for model, rates in listed.items():
        base = rates[0][1] if rates else {}
        shown = "  ".join(
            f"{kind} ${amount:f}" for kind, amount in base.items() if kind in {"input", "output"}
        )
        click.echo(f"{model:<50} {shown or 'not billed by the token'}")


def _count_rows(catalogue: Catalogue, at: float, as_json: bool) -> None:
    counts: dict[str, list[int]] = {}
    for provider, model in catalogue.data.rows():
        count = counts.setdefault(provider, [0, 0])
        count[0] += 1
        count[1] += catalogue.is_priced(provider, model.id, at)
    if as_json:
        _print_json({name: {"models": rows, "priced": priced} for name, (rows, priced) in counts.items()})
        return
    for provider, (rows, priced) in counts.items():
        click.echo(f"{provider:<28} {priced:>5} of {rows} models priced by the token")
    click.echo(
        f"{len(catalogue.overrides)} price(s) of your own, {len(catalogue.corrections)} correction(s) shipped"
    )


def _show_changes(found: Sequence[PriceChange]) -> None:
    for change in found:
        click.echo(f"{change.provider}/{change.model}: {change.text}")
    click.echo(f"{len(found)} change(s)" if found else "The prices in force are the same.")


def _print_json(found: object) -> None:
    click.echo(json.dumps(found, indent=2, default="{:f}".format))


def _catalogue() -> Catalogue:
    from ..pricing.catalogue import default_catalogue

    try:
        return default_catalogue()
    except ConfigurationError as problem:
        raise click.ClickException(str(problem)) from None


def _moment(when: str | None) -> float:
    from ..pricing.overrides import moment

    if when is None:
        return time.time()
    try:
        return moment(when, what="--at")
    except ConfigurationError as problem:
        raise click.BadParameter(str(problem), param_hint="--at") from None
