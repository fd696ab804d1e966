"""``genops-ctx run``: one governed prediction, and what it cost."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..core.attribution import ATTRIBUTION_KEYS

if TYPE_CHECKING:
    from ..core.records import Charge
    from ..providers.answers import FlowiseAnswer, FlowiseStream

__all__ = ["custom_attribution", "run"]

F = TypeVar("F", bound=Callable[..., Any])

_OWNERS = tuple(key for key in ATTRIBUTION_KEYS if key != "session_id")
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""What an answer could steer a terminal with."""


def _attribution_options(command: F) -> F:
    for key in reversed(_OWNERS):
        option = click.option(f"--{key.replace('_', '-')}", key, metavar="NAME", help="Attribution.")
        command = option(command)
    return command


@click.command()
@click.argument("flow")
@click.argument("question")
@click.option("--url", metavar="URL", help="Flowise's address; FLOWISE_BASE_URL unless given.")
@click.option("--key", metavar="KEY", help="API key; FLOWISE_API_KEY unless given.")
@click.option("--session", metavar="ID", help="The conversation it belongs to.")
@click.option("--stream", is_flag=True, help="Print the answer as it comes.")
@click.option(
    "--metering",
    type=click.Choice(["auto", "evaluation", "langfuse", "otlp", "gateway", "estimate"]),
    help="Where a classic flow's usage comes from; evaluation is exact, without streaming.",
)
@click.option("--max-cost", metavar="USD", help="Dollars it can cost at most; set aside in the budget.")
@click.option("--budget", metavar="USD", multiple=True, help="Refuse the call where it would pass this.")
@click.option("--timeout", type=float, metavar="SECONDS", help="For the whole call; 120 unless given.")
@_attribution_options
@click.option(
    "--attr", "custom", metavar="KEY=VALUE", multiple=True, help="Attribution of your own; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def run(
    flow: str,
    question: str,
    url: str | None,
    key: str | None,
    session: str | None,
    stream: bool,
    metering: str | None,
    max_cost: str | None,
    budget: tuple[str, ...],
    timeout: float | None,
    custom: tuple[str, ...],
    as_json: bool,
    **owners: str | None,
) -> None:
    """Run FLOW (an id or unique name) with QUESTION, and print the answer and what it cost.

    Exit status: 0 answered; 1 failed; 2 used or set up wrongly; 3 refused before it was sent, by a
    budget or for want of a price.
    """
    from ..core.context import governance_context
    from ..providers.errors import FlowiseError
    from ..providers.flowise import GenOpsFlowiseAdapter

    attribution: dict[str, Any] = {**owners, **custom_attribution(custom)}
    printed = _Printed(as_json)
    with governance_context("genops-ctx run", budget=budget or None):
        adapter = GenOpsFlowiseAdapter(url, key)
        if (metering or adapter.metering) == "auto":
            metering = "estimate"  # the same, without the log line: the cost says it below
        try:
            with adapter.session:
                answer = adapter.predict_flow(
                    flow,
                    question,
                    session,
                    stream=stream,
                    metering=metering,
                    max_cost=max_cost,
                    timeout=timeout,
                    **attribution,
                )
                charge = printed.show(answer)
        except FlowiseError as error:
            printed.end_line()
            if error.charge is not None:
                printed.cost(error.charge, stream, err=True)
            raise
    if as_json:
        printed.as_json(flow, charge, stream)
    elif charge is not None:
        printed.cost(charge, stream)


class _Printed:
    """The answer as far as it was printed."""

    def __init__(self, quiet: bool) -> None:
        self.text: list[str] = []
        self.agentflow = False
        self._quiet = quiet

    def show(self, answer: FlowiseAnswer | FlowiseStream) -> Charge | None:
        """Print an answer, or a stream's tokens as they come."""
        if isinstance(answer, dict):
            self.agentflow = "executionId" in answer or "agentFlowExecutedData" in answer
            self._add(_text_of(answer))
        else:
            with answer:
                for event in answer:
                    name, data = event["event"], event["data"]
                    self.agentflow = self.agentflow or name in ("agentFlowEvent", "nextAgentFlow")
                    if name == "token" and isinstance(data, str):
                        self._add(data)
        self.end_line()
        return answer.charge

    def _add(self, text: str) -> None:
        self.text.append(text)
        if not self._quiet:
            click.echo(text.translate(_CONTROLS), nl=False)

    def end_line(self) -> None:
        if self.text and not self._quiet:
            click.echo()

    def cost(self, charge: Charge, streamed: bool, *, err: bool = False) -> None:
        from .charge_line import charge_line, exact_by

        advice = exact_by(charge, agentflow=self.agentflow, streamed=streamed)
        click.echo(charge_line(charge, advice), err=err)

    def as_json(self, flow: str, charge: Charge | None, streamed: bool) -> None:
        from .charge_line import charge_as_dict, exact_by

        document: dict[str, Any] = {"flow": flow, "answer": "".join(self.text)}
        if charge is not None:
            document |= charge_as_dict(charge)
            document["exact_by"] = exact_by(charge, agentflow=self.agentflow, streamed=streamed)
        click.echo(json.dumps(document, indent=2))


def _text_of(answer: Mapping[str, Any]) -> str:
    text = answer.get("text")
    if isinstance(text, str):
        return text
    return json.dumps(answer["json"], indent=2) if "json" in answer else ""


def custom_attribution(pairs: tuple[str, ...]) -> dict[str, str]:
    """Keys and values out of ``--attr``; none that has an option of its own."""
    from ..providers.flowise import GenOpsFlowiseAdapter

    taken = {*inspect.signature(GenOpsFlowiseAdapter.predict_flow).parameters, *_OWNERS, "session_id"}
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip()
        if not equals or not value.strip():
            raise click.BadParameter(f"write {pair!r} as KEY=VALUE", param_hint="--attr")
        if name in taken or name in found:
            raise click.BadParameter(
                f"{name!r} is given twice, or has an option of its own", param_hint="--attr"
            )
        found[name] = value
    return found
