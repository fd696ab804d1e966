"""Execution records of AgentFlows: ``GET /api/v1/executions``, shape ``{"data": [...], "total": N}``.

A prediction that fails part-way answers 500 without usage, but its record keeps the usage of the
nodes that finished. ``executionData`` is a JSON string of the same items as an answer's
``agentFlowExecutedData``. Needs the permission ``executions:view``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .agentflow import read_executed
from .readings import Gap, Reading
from .shapes import decoded, items_of, label_of, object_of

if TYPE_CHECKING:
    from .flows import FlowDefinition

__all__ = ["Execution", "read_executions", "usage_of_execution"]

UNREADABLE_RECORD = "the execution record cannot be read"
STILL_RUNNING = "the execution has not ended; later nodes are not in its record yet"


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of an AgentFlow."""

    id: str
    flow_id: str
    session_id: str
    state: str
    """``INPROGRESS``, ``FINISHED``, ``ERROR``, ``TERMINATED``, ``TIMEOUT`` or ``STOPPED``"""
    created: str
    """ISO 8601, as Flowise writes it; empty where it is missing"""
    items: tuple[Any, ...] | None = field(repr=False)
    """the executed nodes (they hold prompts and answers); None where they cannot be read"""


def read_executions(raw: object, *, session_id: str | None = None) -> list[Execution]:
    """The records of a page, in the server's order; only those of ``session_id`` where it is given.

    Rows without an id are left out. Never raises for what a server sends.
    """
    rows = raw if isinstance(raw, list) else items_of(object_of(raw).get("data"))
    executions = []
    for row in map(object_of, rows):
        execution_id, session = label_of(row.get("id")), label_of(row.get("sessionId"))
        if not execution_id or (session_id is not None and session != session_id):
            continue
        items = decoded(row.get("executionData"))
        executions.append(
            Execution(
                id=execution_id,
                flow_id=label_of(row.get("agentflowId")),
                session_id=session,
                state=label_of(row.get("state")),
                created=label_of(row.get("createdDate")),
                items=tuple(items) if isinstance(items, list) else None,
            )
        )
    return executions


def usage_of_execution(
    execution: Execution, flow: FlowDefinition | None = None, *, whole: bool = False
) -> Reading:
    """Usage of the nodes that finished; a gap for one that failed, unless its provider refused it.

    A run that waited for approval was several predictions in one record: the last one is read, or
    all of them with ``whole``.
    """
    if execution.items is None:
        return Reading(gaps=(Gap("", "", "", UNREADABLE_RECORD),))
    found = read_executed(list(execution.items), flow, whole=whole)
    if execution.state == "INPROGRESS":
        return found + Reading(gaps=(Gap("", "", "", STILL_RUNNING),))
    return found
