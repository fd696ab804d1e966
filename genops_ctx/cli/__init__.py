"""The ``genops-ctx`` command. Each subcommand is a module of its own, loaded when it is called."""

from __future__ import annotations

from importlib import import_module

import click

__all__ = ["main"]

COMMANDS = {
    "demo": ("demo", "A governed workflow of three flows under a budget, on screen in a minute."),
    "check": ("check", "Check the set-up: Flowise, key, flows, attribution, prices."),
    "run": ("run", "Run one flow and show what it cost."),
    "init": ("init", "Write a configuration file for this project."),
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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="genops_ctx", prog_name="genops-ctx")
def main() -> None:
    """Govern Flowise: an owner, a limit and an exact price on every prediction."""
