"""The ``genops-ctx`` command. Each subcommand is a module of its own, loaded when it is called.

Its exit status: 0 done; 1 failed, or something was found to be wrong; 2 used or set up wrongly; 3 the
call was refused before anything was sent (a budget, a price that is not known).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from ..core.errors import CallRefused, ConfigurationError, GovernanceError

__all__ = ["FAILED", "MISUSED", "REFUSED", "main"]

FAILED = 1
MISUSED = 2
REFUSED = 3
"""Exit statuses; see above."""

COMMANDS = {
    "demo": ("demo", "A governed workflow of three flows under a budget, on screen in a minute."),
    "check": ("check", "Check the set-up: Flowise, key, flows, attribution, prices."),
    "run": ("run", "Run one flow and show what it cost."),
    "backfill": ("backfill", "Book calls that Flowise ran without being governed."),
    "flows": ("flows", "List flows and how exactly they are metered; set that up, and undo it."),
    "verify": ("verify", "Probe a flow's metering routes: booked beside billed."),
    "init": ("init", "Write a configuration file for this project."),
    "report": ("report", "What was spent, by team, flow, model … and how exactly that is known."),
    "budgets": ("budgets", "List budgets; set, grant, reset, freeze, rebuild; try out alerts."),
    "serve": ("serve", "Serve Flowise's API to clients with keys, budgets and prices of their own."),
    "keys": ("keys", "Make, list, rotate and revoke the keys of the service's clients."),
    "prices": ("prices", "Show, set and update model prices."),
    "estimate": ("estimate", "Estimate a month's spend."),
}
"""name -> (module of this package, one line of help); the module holds a command of that name"""


class LazyGroup(click.Group):
    """Lists every command, imports only the one that runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = getattr(import_module(f"{__name__}.{COMMANDS[name][0]}"), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; an error of ours becomes its message and an exit status."""
        try:
            return super().invoke(ctx)
        except GovernanceError as error:
            raise _shown(error) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


class _Misuse(click.ClickException):
    exit_code = MISUSED


class _Refusal(click.ClickException):
    exit_code = REFUSED


def _shown(error: GovernanceError) -> click.ClickException:
    if isinstance(error, CallRefused):
        return _Refusal(str(error))
    return _Misuse(str(error)) if isinstance(error, ConfigurationError) else click.ClickException(str(error))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="genops_ctx", prog_name="genops-ctx")
def main() -> None:
    """Govern Flowise: an owner, a limit and an exact price on every prediction."""
