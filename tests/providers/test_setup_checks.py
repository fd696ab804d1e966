"""Settings, attribution, budgets and telemetry of this process, as the checks see them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider

from genops_ctx import Budget, governance_context
from genops_ctx.providers import setup_checks
from genops_ctx.providers.metering_outlook import FlowOutlook
from genops_ctx.providers.setup_checks import (
    ValidationIssue,
    flow_issues,
    process_issues,
    telemetry_issues,
    usable_runtime,
)
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.testing.clock import FixedClock

OWNED = {"team": "search", "project": "docs"}


@pytest.fixture(autouse=True)
def clean_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("FLOWISE_", "GENOPS_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    before = reset_runtime(None)
    yield
    reset_runtime(before)


def found(settings: Settings) -> list[tuple[str, str]]:
    return [(issue.component, issue.severity) for issue in process_issues(Runtime(settings))]


def test_nothing_to_say_where_owner_is_set() -> None:
    assert found(Settings(attribution=OWNED)) == []


def test_each_missing_owner_is_named() -> None:
    (issue,) = process_issues(Runtime(Settings(attribution={"team": "search"})))
    assert (issue.component, issue.severity) == ("attribution", "warning")
    assert "project" in issue.message
    assert "team" not in issue.message
    assert "GENOPS_PROJECT" in issue.fix_suggestion


def test_addresses_that_were_seen_and_not_governed_are_named_for_a_week() -> None:
    clock = FixedClock()
    runtime = Runtime(Settings(attribution=OWNED), clock=clock)
    for _ in range(2):
        runtime.decisions.not_governed("https://flowise.example.com/app", clock())
    (issue,) = process_issues(runtime)
    assert (issue.component, issue.severity) == ("auto_instrument", "warning")
    assert "https://flowise.example.com/app" in issue.message
    assert "auto_instrument('https://flowise.example.com/app')" in issue.fix_suggestion
    clock.advance(8 * 86_400)
    assert list(process_issues(runtime)) == []


def test_owners_of_the_environment_and_of_an_open_context_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENOPS_TEAM", "search")
    with governance_context("job", project="docs"):
        assert found(Settings()) == []
    assert found(Settings()) == [("attribution", "warning")]


def test_a_bad_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENOPS_TEAM", "x" * 600)
    assert ("attribution", "error") in found(Settings())


@pytest.mark.parametrize(
    ("settings", "component"),
    [
        (Settings(attribution=OWNED, metering="guess"), "metering"),
        (Settings(attribution=OWNED, pricing_tier="cloud_gold"), "pricing_tier"),
        (Settings(attribution=OWNED, prices="no/such/file.toml"), "prices"),
    ],
)
def test_a_setting_that_cannot_be_used_is_an_error(settings: Settings, component: str) -> None:
    assert found(settings) == [(component, "error")]


def test_budgets_in_memory_are_per_process_and_observing_refuses_nothing() -> None:
    budgets = (Budget("5/day"),)
    assert found(Settings(attribution=OWNED, budgets=budgets)) == [("budgets", "warning")]
    watching = list(process_issues(Runtime(Settings(attribution=OWNED, budgets=budgets, mode="observe"))))
    assert ["memory" in issue.message for issue in watching] == [True, False]
    assert "'observe'" in watching[1].message


def test_a_file_that_cannot_be_read_gives_defaults_and_an_error(tmp_path: Path) -> None:
    (tmp_path / "genops.toml").write_text("[flowise]\nbase_ulr = 'http://localhost:3000'\n")
    runtime, issue = usable_runtime()
    assert runtime.settings == Settings()
    assert issue is not None
    assert (issue.component, issue.severity) == ("settings", "error")
    assert "base_url" in issue.message


def test_a_store_that_is_not_there_does_not_show_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENOPS_LEDGER", "nosuch://user:pass-word@host/0")
    _, issue = usable_runtime()
    assert issue is not None
    assert "pass-word" not in repr(issue)
    assert "nosuch" in issue.message


# -- telemetry ----------------------------------------------------------------------------------------


def said(environ: dict[str, str], runtime: Runtime | None = None) -> list[str]:
    return [issue.message for issue in telemetry_issues(runtime or Runtime(), environ)]


def installed(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    monkeypatch.setattr(setup_checks, "_installed", lambda module: module in modules)


SDK, HTTP, GRPC = (
    "opentelemetry.sdk",
    "opentelemetry.exporter.otlp.proto.http",
    "opentelemetry.exporter.otlp.proto.grpc",
)


def test_modules_are_looked_for_without_being_loaded() -> None:
    assert setup_checks._installed("opentelemetry.sdk")
    assert not setup_checks._installed("opentelemetry.no_such_part")
    assert not setup_checks._installed("no_such_package.at.all")


def test_no_sdk_is_said_and_weighs_more_where_an_endpoint_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    (issue,) = telemetry_issues(Runtime(), {})
    assert issue.severity == "info"
    (issue,) = telemetry_issues(Runtime(), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"})
    assert issue.severity == "warning"
    assert issue.fix_suggestion == "pip install opentelemetry-sdk"


def test_without_an_endpoint_nothing_is_said() -> None:
    assert said({}) == []


def test_an_endpoint_without_an_sdk_set_up_gets_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, SDK, HTTP)
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    (hint,) = said(environ, Runtime())
    assert "no OpenTelemetry SDK is set up in this process" in hint
    assert said(environ, Runtime(tracer_provider=TracerProvider())) == []


def test_port_4317_is_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(tracer_provider=TracerProvider())
    installed(monkeypatch, SDK, HTTP, GRPC)
    (hint,) = said({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, runtime)
    assert "gRPC" in hint
    grpc = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    assert said(grpc, runtime) == []
    installed(monkeypatch, SDK, HTTP)
    (issue,) = telemetry_issues(runtime, grpc)
    assert "opentelemetry-exporter-otlp-proto-grpc" in issue.fix_suggestion


def test_the_variables_for_traces_go_before_the_general_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, SDK, HTTP)
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318",
    }
    assert said(environ, Runtime(tracer_provider=TracerProvider())) == []


def test_a_missing_http_exporter_and_a_bad_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(tracer_provider=TracerProvider())
    installed(monkeypatch, SDK)
    (hint,) = said({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, runtime)
    assert "no exporter" in hint
    (hint,) = said({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:port"}, runtime)
    assert "not a URL" in hint


# -- flows --------------------------------------------------------------------------------------------


def outlook(name: str, **rest: object) -> FlowOutlook:
    parts = {"id": name, "kind": "agentflow", "models": ("openai/gpt-4o",), "metering": "reported", **rest}
    return FlowOutlook(name=name, **parts)  # type: ignore[arg-type]


def of(component: str, *flows: FlowOutlook) -> list[ValidationIssue]:
    return [issue for issue in flow_issues(flows) if issue.component == component]


def test_flows_that_are_exact_give_nothing_to_say() -> None:
    assert list(flow_issues([outlook("a"), outlook("b")])) == []


def test_no_flow_and_a_name_twice() -> None:
    assert ["no flow" in issue.message for issue in of("flows")] == [True]
    (issue,) = of("flows", outlook("a"), outlook("a"), outlook("b"))
    assert "2 flows have the name 'a'" in issue.message


def test_a_model_without_a_price_is_said_once_with_its_flows() -> None:
    dear = {"models": ("openai/x-1",), "unpriced": ("openai/x-1",)}
    (issue,) = of("prices", outlook("a", **dear), outlook("b", **dear), outlook("c"))
    assert issue.severity == "warning"
    assert "openai/x-1, used by a, b" in issue.message
    assert issue.fix_suggestion == "genops-ctx prices set openai x-1 --input USD --output USD"


def test_estimated_flows_are_said_together_and_long_lists_are_cut() -> None:
    (issue,) = of("metering", *(outlook(f"f{n}", metering="estimated") for n in range(8)))
    assert issue.severity == "info"
    assert issue.message.endswith("f0, f1, f2, f3, f4 and 3 more")
    assert 'metering="evaluation"' in issue.fix_suggestion
    assert "genops-ctx flows meter FLOW --via langfuse" in issue.fix_suggestion


def test_gaps_and_flows_without_a_model_are_warned_of() -> None:
    (issue,) = of("metering", outlook("a", gaps=("speech to text",)))
    assert (issue.severity, "speech to text" in issue.message) == ("warning", True)
    (issue,) = of("metering", outlook("b", models=()))
    assert "no model was found in b" in issue.message
