"""Validation of a set-up: is Flowise there, does the key work, which flows, what will be metered how.

>>> from genops_ctx.providers.flowise_validation import validate_flowise_setup, print_validation_result
>>> print_validation_result(validate_flowise_setup())       # doctest: +SKIP

Nothing here raises for a server that is down or a setting that is wrong: both become issues.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigurationError, GovernanceError
from ..environment import variable
from .client import check_api_key
from .flowise import GenOpsFlowiseAdapter
from .metering_outlook import FlowOutlook
from .server_checks import ServerInspection
from .setup_checks import ValidationIssue, process_issues, telemetry_issues, usable_runtime
from .transport import TOTAL_TIMEOUT, Limits, check_base_url, new_session

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "ValidationIssue",
    "ValidationResult",
    "print_validation_result",
    "quick_test_flow",
    "validate_flowise_setup",
]

DEFAULT_TIMEOUT = 10.0
"""Seconds for all checks together."""


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """What the checks found. Holds no key."""

    flowise_url: str = ""
    """the address that was checked; empty where it is not a valid one"""
    issues: tuple[ValidationIssue, ...] = ()
    available_chatflows: tuple[str, ...] = ()
    """names of the flows that the key may see; empty too where it may not list them (see issues)"""
    flows: tuple[FlowOutlook, ...] = ()
    """the same flows, with models, prices and metering"""
    flowise_version: str | None = None
    api_key_set: bool = False
    permissions: tuple[str, ...] = ()
    """permissions that the key was seen to have"""

    @property
    def is_valid(self) -> bool:
        """Whether no issue is an error."""
        return not any(issue.severity == "error" for issue in self.issues)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: every field, and ``is_valid``."""
        flows = [{**asdict(flow), "exact": flow.exact, "summary": flow.summary} for flow in self.flows]
        return {"is_valid": self.is_valid, **asdict(self), "flows": flows}


def validate_flowise_setup(
    base_url: str | None = None, api_key: str | None = None, timeout: float = DEFAULT_TIMEOUT
) -> ValidationResult:
    """Check Flowise, the key, the flows, and this process's settings.

    Args:
        base_url: ``FLOWISE_BASE_URL``, the settings file, then ``http://localhost:3000``, unless given.
        api_key: ``FLOWISE_API_KEY``, then the settings file, unless given.
        timeout: seconds for everything together, also where Flowise never answers or a name cannot be
            looked up.
    """
    runtime, settings_issue = usable_runtime()
    issues = [] if settings_issue is None else [settings_issue]
    issues += process_issues(runtime)
    issues += telemetry_issues(runtime)
    settings = runtime.settings
    seconds = DEFAULT_TIMEOUT
    url, key, valid = "", None, True
    try:
        seconds = Limits.of(timeout).total
    except ConfigurationError as problem:
        issues.append(ValidationIssue("timeout", "error", str(problem), "pass seconds, such as timeout=10"))
    try:
        url = check_base_url(base_url or os.environ.get("FLOWISE_BASE_URL") or settings.base_url)
    except ConfigurationError as problem:
        valid = False
        issues.append(
            ValidationIssue("base_url", "error", str(problem), "correct base_url= or FLOWISE_BASE_URL")
        )
    try:
        key = check_api_key(api_key or variable("FLOWISE_API_KEY") or settings.api_key)
    except ConfigurationError as problem:
        valid = False
        issues.append(
            ValidationIssue("api_key", "error", str(problem), "copy the key from Flowise again (API Keys)")
        )
    if not valid:
        return ValidationResult(url, tuple(issues), api_key_set=key is not None)
    session = new_session()
    inspection = ServerInspection(url, key, session, seconds - min(0.5, seconds / 10), runtime)

    def inspect() -> None:
        with session:
            inspection.run()

    # In a thread, since the system's look-up of a host name and a TLS handshake have no deadline.
    thread = threading.Thread(target=inspect, name="genops_ctx-validation", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        issues.append(
            ValidationIssue(
                "connection",
                "error",
                f"the checks of {url} were not over within {seconds:g} s",
                "check the host's name and address; allow a longer timeout where it is only slow",
            )
        )
    flows = tuple(inspection.flows)
    return ValidationResult(
        flowise_url=url,
        issues=(*issues, *inspection.issues),
        available_chatflows=tuple(flow.name for flow in flows),
        flows=flows,
        flowise_version=inspection.version,
        api_key_set=key is not None,
        permissions=tuple(inspection.permissions),
    )


def quick_test_flow(
    chatflow_id: str,
    question: str = "Hello! This is a test: please answer in one short sentence.",
    base_url: str | None = None,
    api_key: str | None = None,
    timeout: float = TOTAL_TIMEOUT,
) -> dict[str, Any]:
    """Run a flow once, governed as any call, and say whether it works. The model is billed.

    Args:
        chatflow_id: the flow's id or unique name.
        question: what is asked.
        base_url, api_key: as for :func:`validate_flowise_setup`.
        timeout: seconds for the whole call; Flowise tries a failing model for up to 103 s.

    Returns:
        ``success``; ``response``, the answer's text (None where it failed); ``error``, None or what went
        wrong and what to do; ``cost``, a Decimal of dollars (None where nothing was booked);
        ``exactness`` of the cost (``exact``, ``upper``, ``estimated``, ``unknown``, or None).
    """
    response: object = None
    problem: str | None = None
    try:
        adapter = GenOpsFlowiseAdapter(base_url, api_key)
        with adapter.session:
            answer = adapter.predict_flow(chatflow_id, question, timeout=timeout)
    except GovernanceError as error:
        charge = getattr(error, "charge", None)
        problem = str(error)
    else:
        charge = answer.charge
        response = answer.get("text", answer.get("json"))
    return {
        "success": problem is None,
        "response": response,
        "error": problem,
        "cost": None if charge is None else charge.cost,
        "exactness": None if charge is None else str(charge.exactness),
    }


def print_validation_result(result: ValidationResult, *, console: Console | None = None) -> None:
    """Print the result: tables in a terminal, plain lines elsewhere."""
    from rich.console import Console

    console = console if console is not None else Console()
    if not console.is_terminal:
        console.file.write("\n".join(_plain(result)) + "\n")
        return
    from rich.table import Table
    from rich.text import Text

    # Text, not str: names may hold what rich takes for markup.
    style = "bold green" if result.is_valid else "bold red"
    console.print(Text(_headline(result), style=style))
    console.print(Text(_facts(result), style="dim"))
    if result.flows:
        table = Table("Flow", "Kind", "Models", "Price", "Cost")
        for row in map(_flow_row, result.flows):
            table.add_row(*map(Text, row))
        console.print(table)
    styles = {"error": "red", "warning": "yellow", "info": "cyan"}
    for issue in result.issues:
        console.print(Text.assemble((f"{issue.severity} ", styles[issue.severity]), _said(issue)))
        if issue.fix_suggestion:
            console.print(Text(f"  fix: {issue.fix_suggestion}", style="dim"))


def _plain(result: ValidationResult) -> Iterator[str]:
    yield _headline(result)
    yield _facts(result)
    for flow in result.flows:
        name, kind, models, price, cost = _flow_row(flow)
        yield f"flow {name}: {kind}; {models}; {price}; {cost}"
    for issue in result.issues:
        yield f"{issue.severity} {_said(issue)}"
        if issue.fix_suggestion:
            yield f"  fix: {issue.fix_suggestion}"


def _headline(result: ValidationResult) -> str:
    errors = sum(issue.severity == "error" for issue in result.issues)
    where = f"Flowise at {result.flowise_url}" if result.flowise_url else "Flowise"
    return f"{where}: ready" if not errors else f"{where}: {errors} error{'s' if errors > 1 else ''}"


def _facts(result: ValidationResult) -> str:
    permissions = f" ({', '.join(result.permissions)})" if result.permissions else ""
    return (
        f"version {result.flowise_version or 'unknown'}, "
        f"API key {'set' if result.api_key_set else 'not set'}{permissions}, "
        f"{len(result.available_chatflows)} flow(s)"
    )


def _flow_row(flow: FlowOutlook) -> tuple[str, str, str, str, str]:
    price = "no price: " + ", ".join(flow.unpriced) if flow.unpriced else "priced"
    return (
        flow.name or flow.id,
        flow.kind,
        ", ".join(flow.models) or "no model found",
        price if flow.models else "unknown",
        flow.summary,
    )


def _said(issue: ValidationIssue) -> str:
    return f"{issue.component}: {issue.message}"
