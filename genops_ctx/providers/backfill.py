"""Finding what Flowise ran without us, and booking it: UI test chats, webhooks, schedules, MCP, embeds.

AgentFlows are read from their execution records (usage, failures too), classic flows from their stored
messages (estimated: they hold no usage, and a call that failed stores none). What is found is booked
with the source ``backfilled`` under the default attribution, in the ledger only: budgets keep calls from
being sent, and these were. Each has an id made of Flowise's own, so that reading twice books once.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from ..core.backfill import BACKFILLED, Run, ungoverned
from ..core.booking import Report, book, hold_id
from ..core.outcomes import Outcome
from ..core.ports import AuditEvent
from ..core.records import Charge, CostSource
from ..core.stages import Admitted
from ..runtime import Runtime, get_runtime
from ..wire.executions import Execution, read_executions, usage_of_execution
from ..wire.flows import FlowDefinition, FlowKind, parse_flow
from ..wire.messages import Turn, TurnReader, moment_of
from ..wire.readings import Reading
from ..wire.usage import read_usage
from .estimates import Texts
from .flowise import GenOpsFlowiseAdapter
from .flows import Flow
from .prediction import Prediction

if TYPE_CHECKING:
    from ..core.ports import Prices

__all__ = ["ACTION", "SETTLING_SECONDS", "Backfill", "Found"]

log = logging.getLogger("genops_ctx")

ACTION: Final = "backfill"
"""Of the audit, once a flow is read to its end; ``until`` says up to when."""

SETTLING_SECONDS: Final = 600.0
"""Runs that began later may be governed and not booked yet: they are left to the next time."""

RUNNING_SECONDS: Final = 86_400.0
"""A run that is still running after so long has died with its server."""

DAY: Final = 86_400.0
SECOND: Final = 1.0
PAGE: Final = 50
"""Execution records read at a time; each holds all that its nodes said."""

_FAILED: Final = frozenset({"ERROR", "TIMEOUT", "TERMINATED"})


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of one flow. ``charges`` are those of runs that nobody governed."""

    flow_id: str
    flow_name: str
    charges: tuple[Charge, ...] = field(repr=False)
    booked: int
    """how many of them were new"""
    governed: int
    unsure: int
    running: int
    """still running: left to the next time"""

    @property
    def nanos(self) -> int:
        return sum(charge.nanos for charge in self.charges)


@dataclass(frozen=True, slots=True)
class _Record:
    """A run with what is known of what it used."""

    run: Run
    outcome: Outcome
    ended_at: float
    reading: Reading
    texts: Texts
    answer: str
    channel: str


class Backfill:
    """Reads one Flowise's records and books what nobody governed."""

    def __init__(
        self,
        adapter: GenOpsFlowiseAdapter,
        runtime: Runtime | None = None,
        *,
        attribution: Mapping[str, str] | None = None,
        settling: float = SETTLING_SECONDS,
    ) -> None:
        self._adapter = adapter
        self._runtime = runtime if runtime is not None else get_runtime()
        own = adapter._own_attribution()
        self._attribution = {**self._runtime.settings.attribution, **own, **(attribution or {})}
        self._settling = settling

    def flows(self, wanted: Iterable[str] = ()) -> list[FlowDefinition]:
        """The definitions of all flows that the key may see, or of those named.

        Raises :class:`FlowiseError`; :class:`ConfigurationError` for a name that is not unique.
        """
        names = list(wanted)
        rows = (
            [self._adapter.get_chatflow(name) for name in names] if names else self._adapter.get_chatflows()
        )
        return [
            parse_flow(row if isinstance(row.get("flowData"), str) else self._adapter.get_chatflow(row["id"]))
            for row in rows
        ]

    def resumes(self, flow: FlowDefinition) -> float | None:
        """Up to when a flow was read by an earlier backfill (epoch seconds); None for never."""
        subject = self._subject(flow)
        found = [
            event.until for event in self._runtime.books.ledger.audits(ACTION) if event.subject == subject
        ]
        return max((at for at in found if at is not None), default=None)

    def read(self, flow: FlowDefinition, since: float, *, dry_run: bool = False) -> Found:
        """Find a flow's ungoverned runs since a time (epoch seconds), and book them unless ``dry_run``.

        Raises :class:`FlowiseError` where Flowise does not answer, and :class:`StoreError` where the
        ledger does not; what was booked until then stays, and the next time goes on.
        """
        until = self._runtime.clock() - self._settling
        running: list[str] = []
        records = {record.run.id: record for record in self._records(flow, since, until, running)}
        ledger = self._runtime.books.ledger
        near = [charge for charge in ledger.between(since - DAY, until + DAY) if charge.flow == flow.id]
        coverage = ungoverned([record.run for record in records.values()], near)
        charges = []
        booked = 0
        for run in coverage.ungoverned:
            charge = self._charge(flow, records[run.id])
            if charge is None:
                continue
            charges.append(charge)
            if not dry_run:
                booked += ledger.append(charge) is not False
        if not dry_run:
            now = self._runtime.clock()
            ledger.audit(AuditEvent(now, ACTION, self._subject(flow), "genops-ctx backfill", until=until))
        return Found(
            flow.id, flow.name, tuple(charges), booked, coverage.governed, coverage.unsure, len(running)
        )

    # -- what Flowise remembers ---------------------------------------------------------------------

    def _records(
        self, flow: FlowDefinition, since: float, until: float, running: list[str]
    ) -> Iterator[_Record]:
        turns = list(self._turns(flow, since, until))
        if flow.kind is not FlowKind.AGENTFLOW:
            yield from (_of_turn(turn, flow) for turn in turns if not turn.execution_id)
            return
        of_run: defaultdict[str, list[Turn]] = defaultdict(list)
        for turn in turns:
            of_run[turn.execution_id].append(turn)
        now = self._runtime.clock()
        for execution, began in self._executions(flow, since, until):
            if execution.state == "INPROGRESS" and now - began < RUNNING_SECONDS:
                running.append(execution.id)
            else:
                yield _of_execution(execution, began, of_run[execution.id], flow)

    def _turns(self, flow: FlowDefinition, since: float, until: float) -> Iterator[Turn]:
        """Day by day: this list knows no pages."""
        reader = TurnReader()
        while since < until:
            end = min(since + DAY, until)
            params = {"startDate": _iso(since), "endDate": _iso(end), "order": "ASC"}
            what = f"reading the messages of flow {flow.name!r}"
            yield from reader.feed(self._fetch(f"chatmessage/{flow.id}", params, what))
            since = end + 0.001  # both ends of a range belong to it

    def _executions(
        self, flow: FlowDefinition, since: float, until: float
    ) -> Iterator[tuple[Execution, float]]:
        """Those that began in [``since``, ``until``), by windows of time that fit an answer.

        Not page by page: Flowise sorts by a time of whole seconds, and runs of one second change places
        between one page and the next.
        """
        windows = [(since, until)]
        while windows:
            begin, end = windows.pop()
            raw = self._execution_window(flow, begin, end, PAGE)
            total = raw.get("total") if isinstance(raw, dict) else None
            if type(total) is int and total > PAGE:
                if end - begin > 2 * SECOND:
                    middle = (begin + end) / 2
                    windows += [(middle, end), (begin, middle)]
                    continue
                raw = self._execution_window(flow, begin, end, total)
            for execution in read_executions(raw):
                began = moment_of(execution.created)
                if began is not None and begin <= began < end and execution.flow_id == flow.id:
                    yield execution, began

    def _execution_window(self, flow: FlowDefinition, begin: float, end: float, limit: int) -> Any:
        params = {
            "agentflowId": flow.id,
            # Its database compares texts: a whole second comes before the same second with .000
            "startDate": _iso(begin - SECOND),
            "endDate": _iso(end),
            "page": "1",
            "limit": str(limit),
        }
        return self._fetch("executions", params, f"reading the executions of flow {flow.name!r}")

    def _fetch(self, path: str, params: Mapping[str, str], what: str) -> Any:
        adapter = self._adapter
        return adapter._link().get_json(
            "GET",
            f"/api/v1/{path}",
            adapter._limits(None),
            what=f"{what} at {adapter.base_url}",
            params=params,
        )

    # -- what is booked -----------------------------------------------------------------------------

    def _charge(self, flow: FlowDefinition, record: _Record) -> Charge | None:
        """The charge of a run; of one that went on since it was booked, of what came; None for nothing."""
        operation = f"{ACTION}:{record.run.id}"
        before = tuple(self._runtime.books.ledger.charges(operation))
        reading = record.reading
        if before:
            known = sum(_is_proved(line.usage) for charge in before for line in charge.lines)
            if len(reading.usages) <= known:
                return before[0] if len(before) == 1 else None
            reading = Reading(reading.usages[known:])
        prices = self._runtime.prices
        prediction = Prediction(
            Flow(flow.id, flow.name), flow, record.texts, record.run.chat_ids[0], True, False
        )
        report = prediction.remembered(record.outcome, reading, record.answer, prices, record.ended_at)
        return self._booked(flow, record, report, operation, len(before) + 1, prices)

    def _booked(
        self,
        flow: FlowDefinition,
        record: _Record,
        report: Report,
        operation: str,
        attempt: int,
        prices: Prices,
    ) -> Charge:
        run = record.run
        channel = {"channel": record.channel} if record.channel else {}
        admitted = Admitted(
            name=flow.name or flow.id,
            operation=operation,
            attempt=attempt,
            flow=flow.id,
            attribution={**channel, **self._attribution},
            context_path=(),
            started_at=run.started_at,
            reserved=0,
            held_here=0,
            accounts=(),
            stored=False,
            because="",
            books_unpriced=False,
            flags=(BACKFILLED,),
        )
        charge = book(admitted, report, prices)
        lines = tuple(replace(line, source=CostSource.BACKFILLED) for line in charge.lines)
        message = run.message_ids[-1] if run.message_ids else ""
        return replace(
            charge,
            id=hold_id(operation, attempt),
            lines=lines,
            chat_id=run.chat_ids[0],
            message_id=message,
        )

    def _subject(self, flow: FlowDefinition) -> str:
        return f"{self._adapter.base_url} {flow.id}"


def _of_turn(turn: Turn, flow: FlowDefinition) -> _Record:
    run = Run(turn.id, turn.flow_id, (turn.chat_id, turn.session_id), (turn.id,), turn.started_at)
    reading = read_usage({"text": turn.answer, "followUpPrompts": turn.follow_ups}, flow)
    texts = Texts(turn.question, turn.earlier)
    return _Record(run, Outcome.COMPLETED, turn.ended_at, reading, texts, turn.answer, turn.kind.lower())


def _of_execution(execution: Execution, began: float, turns: list[Turn], flow: FlowDefinition) -> _Record:
    chats = dict.fromkeys((execution.session_id, *(turn.chat_id for turn in turns)))
    messages = tuple(turn.id for turn in turns)
    run = Run(execution.id, execution.flow_id, tuple(chats), messages, began)
    reading = usage_of_execution(execution, flow, whole=True)
    for turn in turns:
        reading += read_usage({"agentFlowExecutedData": [], "followUpPrompts": turn.follow_ups}, flow)
    failed = execution.state in _FAILED or (execution.state == "INPROGRESS" and not turns)
    question = turns[0].question if turns else ""
    return _Record(
        run,
        Outcome.FAILED if failed else Outcome.COMPLETED,
        max([began, *(turn.ended_at for turn in turns)]),
        reading,
        Texts(question),
        turns[-1].answer if turns else "",
        turns[0].kind.lower() if turns else "",
    )


def _is_proved(usage: Any) -> bool:
    return usage is not None and usage.source is not CostSource.ESTIMATED


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
