"""``genops-ctx verify``: one probe prediction per metering route, booked beside what was billed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import ConfigurationError
from ..core.money import dollars, format_dollars
from ..core.records import Exactness, Usage, least_exact

if TYPE_CHECKING:
    from ..core.ports import Prices
    from ..core.records import Charge
    from ..providers.flowise import GenOpsFlowiseAdapter
    from ..receivers.model_proxy import ProxiedCall
    from ..runtime import Runtime
    from ..wire.flows import FlowDefinition

__all__ = ["verify"]

LATER = ("langfuse", "otlp", "gateway")
WAIT_SECONDS = 30.0
"""How long usage that comes later is waited for; Flowise's exporters send after 10 s at the latest."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What one probe cost, as booked and as billed, in nano-dollars; None where no bill is known."""

    route: str
    booked: int
    exactness: Exactness
    tokens: int
    billed: int | None

    @property
    def wrong(self) -> bool:
        """It claims to be exact, or that it cannot be more, and is not."""
        if self.billed is None:
            return False
        if self.exactness is Exactness.EXACT:
            return self.booked != self.billed
        return self.exactness is Exactness.UPPER and self.booked < self.billed


@click.command()
@click.argument("flow")
@click.option(
    "--via",
    "routes",
    multiple=True,
    type=click.Choice(["answer", "evaluation", "estimate", *LATER]),
    help="A route to try; repeatable. Those that change nothing in Flowise, unless given.",
)
@click.option("--question", default="Reply with one word.", show_default=True, help="What is asked.")
@click.option(
    "--bill",
    metavar="URL",
    help="Answers a JSON array of all billed calls: model, provider, input_tokens, output_tokens …",
)
@click.option(
    "--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT", help="For receivers."
)
@click.option("--receiver", metavar="URL", help="How Flowise reaches that address, where it is another.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--url", metavar="URL", help="Flowise's address; FLOWISE_BASE_URL unless given.")
@click.option("--key", metavar="KEY", help="API key; FLOWISE_API_KEY unless given.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def verify(
    flow: str,
    routes: tuple[str, ...],
    question: str,
    bill: str | None,
    listen: str,
    receiver: str | None,
    yes: bool,
    url: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Send FLOW one prediction per metering route, and compare what is booked with what is billed.

    langfuse, otlp and gateway set the flow up for it, and put it back after. The bill is what the model
    proxy counts (gateway), or what --bill says. Ends with status 1 where a cost that is booked as exact
    is not what was billed.
    """
    from ..providers.flowise import GenOpsFlowiseAdapter
    from ..runtime import get_runtime
    from ..wire.flows import FlowKind, parse_flow

    runtime = get_runtime()
    adapter = GenOpsFlowiseAdapter(url, key)
    with adapter.session:
        raw = adapter.get_chatflow(flow)
        definition = parse_flow(raw)
        agentflow = definition.kind is FlowKind.AGENTFLOW
        chosen = routes or (("answer",) if agentflow else ("evaluation", "estimate"))
        _check(definition, chosen)
        if not yes:
            click.echo(_said_first(definition, chosen, question, runtime), err=as_json)
            click.confirm("Go on?", abort=True, err=as_json)
        probing = _Probing(adapter, runtime, definition, raw, question, bill, listen, receiver)
        probes = [probing.probe(route) for route in chosen]
    if as_json:
        click.echo(
            json.dumps({"flow": definition.name, "probes": [_as_dict(one) for one in probes]}, indent=2)
        )
    else:
        for one in probes:
            click.echo(_line(one))
    if any(one.wrong for one in probes):
        raise SystemExit(1)


def _check(definition: FlowDefinition, routes: Sequence[str]) -> None:
    from ..providers.metering_setup import refusal

    for route in routes:
        why = refusal(definition, route) if route not in ("answer", "estimate") else ""
        if why:
            raise ConfigurationError(f"flow {definition.name!r} cannot be metered by {route}: {why}")


def _said_first(definition: FlowDefinition, routes: Sequence[str], question: str, runtime: Runtime) -> str:
    """How many probes, what they will probably cost, and what is changed for them."""
    from ..providers.estimates import Texts, forecast

    found = forecast(definition, Texts(question), runtime.prices, runtime.clock())
    unknown = not definition.model_nodes or bool(found.unpriced)
    cost = format_dollars((found.estimate or 0) * len(routes)) + (
        " and what has no known price" if unknown else ""
    )
    changed = [route for route in routes if route in LATER]
    also = f" It is set up for {', '.join(changed)} meanwhile, and put back after." if changed else ""
    return f"{len(routes)} prediction(s) of flow {definition.name!r}, about {cost} in all.{also}"


class _Probing:
    def __init__(
        self,
        adapter: GenOpsFlowiseAdapter,
        runtime: Runtime,
        definition: FlowDefinition,
        raw: dict[str, Any],
        question: str,
        bill: str | None,
        listen: str,
        receiver: str | None,
    ) -> None:
        self._adapter = adapter
        self._runtime = runtime
        self._definition = definition
        self._raw = raw
        self._question = question
        self._bill = bill
        self._listen = listen
        self._receiver = receiver

    def probe(self, route: str) -> Probe:
        """One prediction. Raises :class:`FlowiseError`; the flow is put back whatever happens."""
        from ..core.context import governance_context

        passed: list[ProxiedCall] = []
        before = len(self._billed_calls())
        metering = "estimate" if route == "answer" else route
        with ExitStack() as stack:
            if route in LATER:
                stack.enter_context(self._set_up(route, passed))
            with governance_context("genops-ctx verify") as context:
                answer = self._adapter.predict_flow(self._definition.id, self._question, metering=metering)
                if route in LATER:
                    context.wait(WAIT_SECONDS)
            charge = answer.charge
        assert charge is not None
        lines = self._booked(charge)
        billed = None
        if self._bill is not None:
            billed = _cost_of(self._billed_calls()[before:], self._runtime.prices, charge.started_at)
        elif passed and all(call.usage is not None for call in passed):
            usages = [call.usage for call in passed if call.usage is not None]
            billed = _cost_of(usages, self._runtime.prices, charge.started_at)
        return Probe(
            route,
            sum(line.nanos or 0 for line in lines),
            least_exact(line.exactness for line in lines),
            context.total_tokens,
            billed,
        )

    def _booked(self, charge: Charge) -> Sequence[Any]:
        """The lines that stand for the attempt after its adjustments."""
        from ..core.evidence import booked_lines

        known = tuple(self._runtime.books.ledger.charges(charge.operation))
        return booked_lines(charge, [one for one in known if one.adjustment_of == charge.id])

    @contextmanager
    def _set_up(self, route: str, passed: list[ProxiedCall]) -> Iterator[None]:
        from ..providers.flow_editor import FlowEditor
        from ..providers.metering_setup import Receiver
        from ..receivers.model_proxy import ModelProxy, correcting
        from ..receivers.server import Receivers
        from ..receivers.upstreams import Upstream

        host, _, port = self._listen.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigurationError("--listen is like 127.0.0.1:8090; port 0 takes a free one")
        key = secrets.token_urlsafe(24)
        correct = correcting(self._runtime.corrections)

        def tell(call: ProxiedCall) -> None:
            passed.append(call)
            correct(call)

        upstream = Upstream("probe", self._upstream(), self._provider())
        proxy = ModelProxy([upstream], key=key, tell=tell)
        editor = FlowEditor(self._adapter, self._runtime)
        receivers = Receivers(key=key, host=host, port=int(port), apps={"/models": proxy})
        with receivers:
            step = editor.plan(
                self._definition.id, route, Receiver(self._receiver or receivers.url, key), "probe"
            )
            if step.nothing:
                raise ConfigurationError(
                    f"flow {self._definition.name!r} is set up for {route} already, for other receivers"
                )
            editor.set_up(step)
            try:
                yield
            finally:
                for left in editor.undo(editor.plan_undo(self._definition.id, route)):
                    click.echo(left, err=True)

    def _upstream(self) -> str:
        """What the flow's models call now. Raises :class:`ConfigurationError` for several."""
        from ..wire.flow_changes import gateway_nodes

        nodes = gateway_nodes(
            self._raw.get("flowData") or "{}", [node.id for node in self._definition.model_nodes]
        )
        places = {node.base_path or "https://api.openai.com/v1" for node in nodes}
        if len(places) > 1:
            raise ConfigurationError("the flow's models are at several addresses; verify them one by one")
        return next(iter(places), "https://api.openai.com/v1")

    def _provider(self) -> str:
        nodes = self._definition.model_nodes
        return self._runtime.prices.provider_of(nodes[0].node) if nodes else "openai"

    def _billed_calls(self) -> list[Usage]:
        if self._bill is None:
            return []
        import requests

        try:
            rows = requests.get(self._bill, timeout=10).json()
            return [
                Usage(
                    str(row["provider"]),
                    str(row["model"]),
                    input_tokens=row["input_tokens"],
                    output_tokens=row["output_tokens"],
                    cache_read_tokens=row.get("cache_read_tokens", 0),
                    reasoning_tokens=row.get("reasoning_tokens", 0),
                )
                for row in rows
            ]
        except (requests.RequestException, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"--bill does not answer a list of billed calls ({type(error).__name__}): each needs "
                "provider, model, input_tokens and output_tokens"
            ) from None


def _cost_of(usages: Sequence[Usage], prices: Prices, at: float) -> int | None:
    """Nano-dollars; None where a price is not known."""
    quotes = [prices.quote(usage, at).nanos for usage in usages]
    return None if None in quotes else sum(nanos for nanos in quotes if nanos is not None)


def _line(one: Probe) -> str:
    parts = [f"{one.route}: booked {format_dollars(one.booked)} ({one.exactness}, {one.tokens} tokens)"]
    if one.billed is None:
        parts.append("no bill is known")
    elif one.booked == one.billed:
        parts.append("billed the same")
    else:
        said = "WRONG" if one.wrong else "it is flagged"
        parts.append(f"billed {format_dollars(one.billed)}: {said}")
    return " | ".join(parts)


def _as_dict(one: Probe) -> dict[str, Any]:
    return {
        "route": one.route,
        "booked": f"{dollars(one.booked):f}",
        "exactness": str(one.exactness),
        "tokens": one.tokens,
        "billed": None if one.billed is None else f"{dollars(one.billed):f}",
        "wrong": one.wrong,
    }
