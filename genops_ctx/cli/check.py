"""``genops-ctx check``: is everything set up, and what will be metered how."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ..core.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from ..providers.setup_checks import ValidationIssue

__all__ = ["check"]


@click.command()
@click.option(
    "--url", metavar="URL", help="Flowise's address; FLOWISE_BASE_URL, then the settings file, unless given."
)
@click.option("--key", metavar="KEY", help="API key; FLOWISE_API_KEY, then the settings file, unless given.")
@click.option(
    "--timeout",
    type=float,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="For all checks together.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def check(url: str | None, key: str | None, timeout: float, as_json: bool) -> None:
    """Check Flowise, the API key, the flows, attribution, budgets and telemetry.

    Nothing is sent to a model. Ends with status 0 where no error was found (warnings are no errors),
    else 1. The key is never printed.
    """
    from ..providers.flowise_validation import print_validation_result, validate_flowise_setup

    result = validate_flowise_setup(url, key, timeout)
    result = replace(result, issues=(*result.issues, *_owner_issues()))
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=2))
    else:
        print_validation_result(result)
    if not result.is_valid:
        raise SystemExit(1)


def _owner_issues() -> Iterator[ValidationIssue]:
    """Budgets that clients of the service can walk round."""
    from ..providers.setup_checks import ValidationIssue, usable_runtime
    from ..service.caller import CALLERS_KEYS
    from ..service.chosen_owners import walkable
    from ..service.key_store import open_keys

    runtime, _ = usable_runtime()
    if not any(name in CALLERS_KEYS for budget in runtime.settings.budgets for name in budget.by):
        return
    try:
        store = open_keys(runtime.settings.ledger)
        try:
            found = walkable(runtime.settings.budgets, store, runtime.clock())
        finally:
            store.close()
    except (ConfigurationError, StoreError):
        return  # the ledger has a check of its own
    for one in found:
        yield ValidationIssue("budgets", "warning", str(one), one.advice)
