"""``genops-ctx demo``: a governed workflow on screen, against the stand-in or a Flowise of one's own."""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..core.errors import ConfigurationError, GovernanceError
from ..core.money import format_dollars, nanos_up
from ..core.records import CostSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from decimal import Decimal

    from ..core.context import GovernanceContext
    from ..core.errors import BudgetExceeded
    from ..providers.answers import FlowiseAnswer
    from ..providers.flowise import GenOpsFlowiseAdapter
    from ..testing.flowise import FlowiseStandIn

__all__ = ["demo"]

STAND_IN_FLOWS = ("customer-support-v1", "translation-flow-v1", "summary-generator-v1")
LONGEST_QUESTION = 70
SOURCES = {
    CostSource.REPORTED: "as the answer reports",
    CostSource.ESTIMATED: "counted from the texts",
}


@click.command()
@click.option("--flow", "flows", multiple=True, metavar="FLOW", help="Id or name; up to three times.")
@click.option("--budget", default="0.05", show_default=True, metavar="USD", help="Of the whole workflow.")
@click.option("--stand-in", "built_in", is_flag=True, help="Run the stand-in though FLOWISE_BASE_URL is set.")
@click.option("--yes", is_flag=True, help="Do not ask before a Flowise of your own is called.")
def demo(flows: tuple[str, ...], budget: str, built_in: bool, yes: bool) -> None:
    """Run a governed workflow of three flows under a budget.

    It calls the built-in stand-in, which costs nothing; or the Flowise at FLOWISE_BASE_URL where that is
    set. Nothing is written: no settings file, ledger or store of yours is read or changed.
    """
    from ..ledger.memory import MemoryLedger
    from ..runtime import Runtime, reset_runtime
    from ..settings import Settings
    from ..stores.memory import MemoryStore

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe may not take the branches of the tree
    url = os.environ.get("FLOWISE_BASE_URL", "").strip()
    console = Console(highlight=False, emoji=False)
    with ExitStack() as stack:
        before = reset_runtime(Runtime(Settings(), store=MemoryStore(), ledger=MemoryLedger()))
        stack.callback(reset_runtime, before)
        try:
            if built_in or not url:
                _on_stand_in(console, stack, flows, budget)
            else:
                _on_flowise(console, stack, url, flows, budget, yes)
        except GovernanceError:
            if url and not built_in:
                click.echo("`genops-ctx demo --stand-in` runs without a Flowise.", err=True)
            raise


def _on_stand_in(console: Console, stack: ExitStack, flows: Sequence[str], budget: str) -> None:
    from ..providers.flowise import instrument_flowise
    from ..testing.flowise import FlowiseStandIn
    from .flow_choice import choose_flows

    stand_in = stack.enter_context(FlowiseStandIn())
    # A key of its own, so that none of the environment is sent.
    flowise = instrument_flowise(stand_in.url, "stand-in", project="demo")
    console.print("Flowise: the built-in stand-in. Its models are stubs: nothing is paid.")
    _run(
        console,
        stack,
        flowise,
        choose_flows(flowise, flows or STAND_IN_FLOWS),
        budget,
        lambda: len(stand_in.requests),
        stand_in,
    )


def _on_flowise(
    console: Console, stack: ExitStack, url: str, flows: Sequence[str], budget: str, yes: bool
) -> None:
    from ..providers.flowise import instrument_flowise
    from .flow_choice import choose_flows

    flowise = instrument_flowise(url, project="demo")
    sent: list[object] = []
    flowise.session.hooks["response"].append(lambda response, **_: sent.append(response.request.method))
    chosen = choose_flows(flowise, flows)
    console.print(
        f"Flowise: {flowise.base_url}. The demo asks 3 questions of {_listed(chosen)}. Their models are "
        f"called and paid, and their tools run; the budget is {_usd(budget)}.",
        markup=False,
    )
    if not yes and sys.stdin.isatty() and sys.stdout.isatty():
        click.confirm("Go on?", abort=True)
    _run(console, stack, flowise, chosen, budget, lambda: sent.count("POST"), None)


def _run(
    console: Console,
    stack: ExitStack,
    flowise: GenOpsFlowiseAdapter,
    flows: tuple[str, str, str],
    budget: str,
    requests_sent: Callable[[], int],
    stand_in: FlowiseStandIn | None,
) -> None:
    from .support_desk import support_desk

    screen = DemoScreen(console, requests_sent, stand_in)
    log = logging.getLogger("genops_ctx")
    log.addHandler(screen.notes)
    stack.callback(log.removeHandler, screen.notes)
    console.rule("A support desk of three flows", align="left", characters="-")
    desk = support_desk(flowise, flows, budget, screen)
    screen.costs(desk)
    console.print(
        "\nSource of this workflow: genops_ctx/cli/support_desk.py. Next: docs/tutorial.md", markup=False
    )


class Notes(logging.Handler):
    """Keeps what the package logs until the step it belongs to is on screen."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def take(self) -> list[str]:
        taken, self.messages = self.messages, []
        return taken


class DemoScreen:
    """Prints the workflow as it goes; plain lines where the output is not a terminal."""

    def __init__(
        self, console: Console, requests_sent: Callable[[], int], stand_in: FlowiseStandIn | None
    ) -> None:
        self.notes = Notes()
        self._console = console
        self._requests_sent = requests_sent
        self._stand_in = stand_in
        self._steps = 0
        self._sent = 0
        self._billed = 0

    def asks(self, flow: str, question: str) -> None:
        self._steps += 1
        self._say(f"\n{self._steps}. {_short(question)}", "bold")
        self._say(f"   -> {flow}")

    def answered(self, answer: FlowiseAnswer) -> None:
        charge = answer.charge
        assert charge is not None
        sources = ", ".join(dict.fromkeys(SOURCES.get(line.source, line.source) for line in charge.lines))
        unknown = " + unknown" if charge.unpriced else ""
        self._say(
            f"   <- {format_dollars(charge.nanos)}{unknown} · {charge.total_tokens} tokens · "
            f"{charge.exactness}, {sources}{self._truth()}",
            "green" if charge.exactness == "exact" else "yellow",
        )
        for note in self.notes.take():
            self._console.print(Padding(Text(f"note: {note}", style="dim"), (0, 0, 0, 6), expand=False))

    def _truth(self) -> str:
        """What the stand-in's models billed for this step: known there, and nowhere else."""
        if self._stand_in is None:
            return ""
        billed = self._stand_in.billed
        tokens = sum(call.total_tokens for call in billed[self._billed :])
        self._billed = len(billed)
        return f" · {tokens} tokens billed"

    def tree(self, context: GovernanceContext) -> None:
        self._heading("What it cost, context by context")
        self._console.print(context.tree())
        self._sent = self._requests_sent()
        self._heading("A call that asks for a cent more than is left")

    def refused(self, refusal: BudgetExceeded) -> None:
        self._say(f"BudgetExceeded: {refusal}", "red")
        if self._sent:
            where = "Requests that Flowise has seen" if self._stand_in else "Predictions sent"
            self._say(f"{where}: {self._sent} before the call, {self._requests_sent()} after it.")

    def costs(self, context: GovernanceContext) -> None:
        self._heading("Who and what it was spent on")
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("by", "", "cost"):
            table.add_column(column, justify="right" if column == "cost" else "left", overflow="fold")
        for key in ("flow", "model", "feature", "exactness"):
            for index, (value, cost) in enumerate(context.cost_by(key).items()):
                table.add_row("" if index else key, Text(value), f"${cost:.9f}")
        table.add_row("total", "", f"${context.total_cost:.9f}", style="bold")
        self._console.print(table)

    def _heading(self, title: str) -> None:
        self._console.print()
        self._console.rule(title, align="left", characters="-")

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, markup=False)


def _short(question: str) -> str:
    line = " ".join(question.split())
    return line if len(line) <= LONGEST_QUESTION else line[: LONGEST_QUESTION - 1] + "…"


def _listed(flows: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(map(repr, flows)))


def _usd(budget: str | Decimal) -> str:
    from ..core.money import parse_dollars

    try:
        return format_dollars(nanos_up(parse_dollars(budget, what="--budget")))
    except ConfigurationError as problem:
        raise click.BadParameter(str(problem), param_hint="--budget") from None
