"""Checks of a set-up that need no server: settings, attribution, budgets, telemetry, flows as listed.

Each gives :class:`ValidationIssue` records that say what is wrong and what to do about it. No text of
an issue holds a key.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from ..core.context import current_context
from ..core.errors import ConfigurationError, StoreError
from ..decisions import NOT_GOVERNED
from ..pricing.plans import pricing_tier
from ..runtime import Runtime, get_runtime
from ..settings import environment_attribution
from .client import check_metering

if TYPE_CHECKING:
    from .metering_outlook import FlowOutlook

__all__ = [
    "Severity",
    "ValidationIssue",
    "flow_issues",
    "process_issues",
    "telemetry_issues",
    "usable_runtime",
]

Severity = Literal["error", "warning", "info"]

SHOWN_NAMES = 5
RECENT_SECONDS = 7 * 86_400.0
"""Older sightings are not told any more."""


@dataclass(frozen=True, slots=True)
class ValidationIssue:
    """One thing that a check found."""

    component: str
    """what was checked: ``connection``, ``api_key``, ``flows``, ``attribution`` …"""
    severity: Severity
    """``error``: calls will fail; ``warning``: they work, with less than is asked for; ``info``"""
    message: str
    fix_suggestion: str = ""


def usable_runtime() -> tuple[Runtime, ValidationIssue | None]:
    """This process's runtime; one with defaults, and why, where the settings cannot be read."""
    try:
        return get_runtime(), None
    except (ConfigurationError, OSError) as problem:
        return Runtime(), ValidationIssue(
            "settings",
            "error",
            f"the settings cannot be used: {problem}",
            "correct the file or the environment variable it names; `genops-ctx init` writes a new file",
        )


def process_issues(runtime: Runtime) -> Iterator[ValidationIssue]:
    """What is wrong with the settings, attribution and budgets of this process."""
    settings = runtime.settings
    for component, check in (
        ("metering", lambda: check_metering(settings.metering)),
        ("pricing_tier", lambda: pricing_tier(settings.pricing_tier)),
        ("prices", lambda: runtime.prices),
    ):
        try:
            check()
        except (ConfigurationError, OSError) as problem:
            yield ValidationIssue(component, "error", str(problem), "correct it in the settings")
    yield from _attribution_issues(runtime)
    yield from _store_issues(runtime)
    yield from _not_governed_issues(runtime)
    if settings.budgets and settings.mode != "enforce":
        yield ValidationIssue(
            "budgets",
            "warning",
            f"mode is {settings.mode!r}: budgets refuse nothing",
            "set mode to enforce (GENOPS_MODE, or mode in the settings file)",
        )


def _store_issues(runtime: Runtime) -> Iterator[ValidationIssue]:
    settings = runtime.settings
    if settings.store.startswith("memory:") and settings.budgets:
        yield ValidationIssue(
            "budgets",
            "warning",
            "the budgets that are set are kept in this process's memory: each process has its own, and a "
            "restart begins at zero",
            "set GENOPS_STORE to sqlite:////path for one machine, or redis://… for several",
        )
    elif settings.store.startswith(("sqlite:", "default:")) and settings.budgets:
        yield ValidationIssue(
            "budgets",
            "info",
            "the budgets that are set hold for this machine only",
            "set GENOPS_STORE=redis://… where several machines share them",
        )
    store = runtime.books.store
    health = getattr(store, "check_health", None)
    try:
        if health is None:
            store.accounts([])
        else:
            found = health()
            loses = bool(found.lost) or found.eviction.startswith("allkeys-")
            for problem in found.problems:
                severity: Severity = "error" if loses else "warning"
                yield ValidationIssue("store", severity, problem, "correct the configuration of Redis")
    except (StoreError, ConfigurationError) as error:
        yield ValidationIssue(
            "store", "error", f"the budget store cannot be used: {error}", "check GENOPS_STORE and its server"
        )


def _not_governed_issues(runtime: Runtime) -> Iterator[ValidationIssue]:
    """Where instrumented clients sent predictions of late that no base URL matches."""
    since = runtime.clock() - RECENT_SECONDS
    try:
        seen = [event.subject for event in runtime.books.ledger.audits(NOT_GOVERNED) if event.at >= since]
    except Exception:
        return  # another check says what is wrong with the ledger
    for address in sorted(set(seen)):
        yield ValidationIssue(
            "auto_instrument",
            "warning",
            f"predictions were sent to {address} and were not governed: no base URL matches",
            f"if that is a Flowise of yours, call auto_instrument({address!r}) too",
        )


def _attribution_issues(runtime: Runtime) -> Iterator[ValidationIssue]:
    attribution = dict(runtime.settings.attribution)
    try:
        attribution.update(environment_attribution())
    except ConfigurationError as problem:
        yield ValidationIssue(
            "attribution", "error", str(problem), "correct or unset the GENOPS_… environment variable"
        )
    context = current_context()
    if context is not None:
        attribution.update(context.inherited)
    missing = [key for key in ("team", "project") if key not in attribution]
    if missing:
        variables = " and ".join(f"GENOPS_{key.upper()}" for key in missing)
        yield ValidationIssue(
            "attribution",
            "warning",
            f"no {' and no '.join(missing)} is set: costs of calls that name none show as unallocated",
            f"set {variables}, [attribution] in the settings file, or pass {missing[0]}= to the adapter",
        )


def telemetry_issues(runtime: Runtime, environ: Mapping[str, str] | None = None) -> Iterator[ValidationIssue]:
    """Why spans of this process may reach nobody, where OpenTelemetry is meant to be used."""
    env = os.environ if environ is None else environ
    endpoint = (
        env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ""
    ).strip()
    if not _installed("opentelemetry.sdk"):
        yield ValidationIssue(
            "telemetry",
            "warning" if endpoint else "info",
            "the OpenTelemetry SDK is not installed: no spans are made",
            "pip install opentelemetry-sdk",
        )
        return
    if not endpoint:
        return
    if runtime.spans.tracer() is None:
        yield ValidationIssue(
            "telemetry",
            "info",
            "an OTLP endpoint is set, but no OpenTelemetry SDK is set up in this process: it makes no spans",
            "set a tracer provider at start, pass configure(tracer_provider=…), or run the program under "
            "opentelemetry-instrument",
        )
    yield from _exporter_issues(endpoint, env)


def _exporter_issues(endpoint: str, env: Mapping[str, str]) -> Iterator[ValidationIssue]:
    protocol = (
        env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL") or ""
    ).strip()
    try:
        port = urlsplit(endpoint).port
    except ValueError:
        yield ValidationIssue(
            "telemetry",
            "warning",
            "the OTLP endpoint is not a URL",
            "write it like http://localhost:4318",
        )
        return
    if protocol == "grpc":
        if not _installed("opentelemetry.exporter.otlp.proto.grpc"):
            yield ValidationIssue(
                "telemetry",
                "warning",
                "OTLP over gRPC is asked for, and its exporter is not installed",
                "pip install opentelemetry-exporter-otlp-proto-grpc, or use port 4318 and "
                "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
            )
    elif port == 4317:
        yield ValidationIssue(
            "telemetry",
            "warning",
            "the OTLP endpoint names port 4317, where collectors speak gRPC; an HTTP exporter gets no "
            "answer there",
            "use port 4318, or install opentelemetry-exporter-otlp-proto-grpc and set "
            "OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
        )
    elif not _installed("opentelemetry.exporter.otlp.proto.http"):
        yield ValidationIssue(
            "telemetry",
            "warning",
            "an OTLP endpoint is set, and no exporter for OTLP over HTTP is installed",
            "pip install opentelemetry-exporter-otlp-proto-http",
        )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def flow_issues(flows: Iterable[FlowOutlook]) -> Iterator[ValidationIssue]:
    """What to know of the flows that are listed, before they are called."""
    listed = list(flows)
    if not listed:
        yield ValidationIssue(
            "flows", "warning", "there is no flow that the key may see", "make one in Flowise"
        )
    for name, count in Counter(flow.name for flow in listed).items():
        if count > 1:
            yield ValidationIssue(
                "flows",
                "warning",
                f"{count} flows have the name {name!r}: calls cannot name them by it",
                "rename all but one, or call them by id",
            )
    yield from _price_issues(listed)
    estimated = [flow.name for flow in listed if flow.metering == "estimated"]
    if estimated:
        yield ValidationIssue(
            "metering",
            "info",
            f"{len(estimated)} flow(s) whose answers report no usage; their costs are estimated: "
            f"{_some(estimated)}",
            'exact without streaming by metering="evaluation" (Flowise then stores the messages as '
            "EVALUATION); streaming too by `genops-ctx flows meter FLOW --via langfuse` (or gateway)",
        )
    unclear = [flow.name for flow in listed if not flow.models]
    if unclear:
        yield ValidationIssue(
            "metering",
            "warning",
            f"no model was found in {_some(unclear)}: calls cannot be priced before they run, nor where "
            "their answers report no usage",
            "pass max_cost= with such calls",
        )
    for flow in listed:
        if flow.gaps:
            yield ValidationIssue(
                "metering",
                "warning",
                f"flow {flow.name!r} makes model calls that Flowise does not report: {', '.join(flow.gaps)}. "
                "They are estimated, flagged",
                "switch them off in the flow where its cost must be exact",
            )


def _price_issues(flows: list[FlowOutlook]) -> Iterator[ValidationIssue]:
    users: dict[str, list[str]] = {}
    for flow in flows:
        for model in flow.unpriced:
            users.setdefault(model, []).append(flow.name)
    for model, names in users.items():
        provider, _, name = model.partition("/")
        yield ValidationIssue(
            "prices",
            "warning",
            f"no price is known for {model}, used by {_some(names)}: its cost is booked as unknown",
            f"genops-ctx prices set {provider} {name} --input USD --output USD",
        )


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
