"""What is said of a flow's metering before it runs, for flows whose nature is known."""

from __future__ import annotations

from typing import Any

import pytest

from genops_ctx.pricing.catalogue import Catalogue
from genops_ctx.providers.metering_outlook import FlowOutlook, flow_outlook
from genops_ctx.testing import Flow, ModelNode
from genops_ctx.testing.flow_data import chatflow_record
from genops_ctx.wire.flows import FlowDefinition, FlowKind, parse_flow
from genops_ctx.wire.flows import ModelNode as WireNode

AT = 1_767_225_600.0  # 2026-01-01
PRICES = Catalogue(())


def outlook(flow: Flow, metering: str = "auto", **changes: Any) -> FlowOutlook:
    return flow_outlook(parse_flow({**chatflow_record(flow), **changes}), PRICES, AT, metering)


def agentflow(*nodes: ModelNode) -> Flow:
    return Flow("agents", "agentflow", nodes or (ModelNode("gpt-4o-mini"),))


def test_an_agentflow_of_a_priced_model_is_exact_from_its_answer() -> None:
    found = outlook(agentflow())
    assert found.exact
    assert (found.kind, found.metering, found.models) == ("agentflow", "reported", ("openai/gpt-4o-mini",))
    assert found.summary == "exact, from the answer"


def test_a_classic_flow_is_estimated_until_evaluation_is_chosen() -> None:
    chain = Flow("chain")
    assert outlook(chain).summary == "estimated"
    assert not outlook(chain).exact
    evaluated = outlook(chain, "evaluation")
    assert evaluated.metering == "evaluation"
    assert evaluated.summary == "exact or an upper bound, from evaluation metrics"
    assert not evaluated.exact


def test_evaluation_changes_nothing_for_an_agentflow() -> None:
    assert outlook(agentflow(), "evaluation") == outlook(agentflow())


def test_a_model_without_a_price_is_named_and_not_exact() -> None:
    found = outlook(agentflow(ModelNode("gpt-4o-mini"), ModelNode("house-model-9")))
    assert found.models == ("openai/gpt-4o-mini", "openai/house-model-9")
    assert found.unpriced == ("openai/house-model-9",)
    assert not found.exact


def test_a_model_chosen_at_run_time_is_neither_priced_nor_missing() -> None:
    found = outlook(agentflow(ModelNode("{{$vars.model}}")))
    assert found.models == ("openai/?",)
    assert found.unpriced == ()
    assert not found.exact


@pytest.mark.parametrize("definition", [None, "{broken", '{"nodes":[]}'])
def test_nothing_exact_is_promised_of_a_definition_without_models(definition: str | None) -> None:
    found = outlook(agentflow(), flowData=definition)
    assert found.models == ()
    assert not found.exact
    assert found.summary == "from the answer, as far as it reports"


def test_calls_of_memory_questions_and_embeddings_are_gaps() -> None:
    parts = FlowDefinition(
        kind=FlowKind.AGENTFLOW,
        model_nodes=(
            WireNode("llm", "LLM", "chatOpenAI", "gpt-4o-mini"),
            WireNode("llm", "LLM", "openAIEmbeddings", "text-embedding-3-small", role="embedding"),
        ),
        summary_memory_nodes=("Writer",),
        dynamic_human_input_nodes=("Approval",),
    )
    found = flow_outlook(parts, PRICES, AT)
    assert found.gaps == ("summary memory of Writer", "question written by Approval", "embeddings")
    assert found.unpriced == ()


def test_structured_output_is_a_gap() -> None:
    found = outlook(agentflow(ModelNode("gpt-4o-mini", "Extractor", structured=("name",))))
    assert found.gaps == ("structured output of Extractor",)
    assert found.summary == "partly estimated, the rest from the answer"
    assert not found.exact


def test_an_anthropic_node_may_be_reported_too_high() -> None:
    found = outlook(agentflow(ModelNode("claude-haiku-4-5")))
    assert found.upper
    assert not found.exact
    assert found.summary == "exact or an upper bound, from the answer"


@pytest.mark.parametrize(
    ("changes", "gap"),
    [
        ({"followUpPrompts": '{"status":true,"selectedProvider":"chatOpenAI"}'}, "follow-up prompts"),
        ({"speechToText": '{"openAIWhisper":{"status":true}}'}, "speech to text"),
        ({"textToSpeech": '{"openai":{"status":true,"autoPlay":true}}'}, "text to speech"),
    ],
)
def test_calls_beside_the_flow_are_gaps(changes: dict[str, str], gap: str) -> None:
    found = outlook(agentflow(), **changes)
    assert found.gaps == (gap,)
    assert not found.exact


def test_a_flow_with_its_own_key_says_so() -> None:
    assert outlook(Flow("locked", api_key="own")).protected
    assert not outlook(Flow("open")).protected
