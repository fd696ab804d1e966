"""Which provider and model a name means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.pricing.names import (
    LOCAL_PROVIDERS,
    UNPRICED_PROVIDERS,
    bedrock_model,
    model_names,
    provider_of,
)

NODES = {
    "chatOpenAI": "openai",
    "openAIEmbedding_LlamaIndex": "openai",
    "azureOpenAIEmbeddingsLlamaIndex": "azure",
    "chatAnthropic_LlamaIndex": "anthropic",
    "awsChatBedrock": "aws",
    "AWSBedrockEmbeddings": "aws",
    "googlevertexaiEmbeddings": "google",
    "chatMistral_LlamaIndex": "mistral",
    "groqChat": "groq",
    "chatCohere": "cohere",
    "chatCerebras": "cerebras",
    "chatDeepseek": "deepseek",
    "chatPerplexity": "perplexity",
    "chatXAI": "x-ai",
    "chatOpenRouter": "openrouter",
    "togetherAIEmbedding": "together",
    "chatFireworks": "fireworks",
    "chatCloudflareWorkersAI": "cloudflare",
    "voyageAIEmbeddings": "voyageai",
    "sambanova": "huggingface_sambanova",
    "chatOllama_LlamaIndex": "ollama",
    "localAIEmbeddings": "localai",
    "chatOpenAICustom": "openai-custom",
    "chatLitellm": "litellm",
    "huggingFaceInference_LLMs": "huggingface",
    "ibmEmbedding": "watsonx",
    "baiduQianfanEmbeddings": "baidu-wenxin",
}
"""Nodes of Flowise 3.1.4."""


@pytest.mark.parametrize(("node", "provider"), NODES.items())
def test_a_node_names_its_provider_in_any_case(node: str, provider: str) -> None:
    assert {provider_of(name) for name in (node, node.upper(), node.lower(), f" {node}\n")} == {provider}


def test_providers_without_a_public_price_are_known_as_such() -> None:
    assert provider_of("chatNvidiaNIM") in UNPRICED_PROVIDERS
    assert {provider_of("chatOllama"), provider_of("chatLocalAI"), provider_of("vLLM")} <= LOCAL_PROVIDERS
    assert not LOCAL_PROVIDERS & UNPRICED_PROVIDERS.keys()


@given(st.text(max_size=40))
def test_a_provider_s_id_names_itself(name: str) -> None:
    assert provider_of(provider_of(name)) == provider_of(name)


@pytest.mark.parametrize(
    "name", ["acme", "my-openai", "openai2", "notgemini", "", "openaiö", "openai代理", "öpenai", "оpenai"]
)
def test_another_name_stays_what_it_is(name: str) -> None:
    assert provider_of(f" {name.upper()} ") == name


@pytest.mark.parametrize(
    ("provider", "model", "names"),
    [
        ("openai", " GPT-4o ", ("gpt-4o",)),
        ("openai", "openai/gpt-4o", ("openai/gpt-4o", "gpt-4o")),
        ("openai", "anthropic/claude-opus-4-5", ("anthropic/claude-opus-4-5",)),
        ("openai", "openai/", ("openai/",)),
        ("openrouter", "openai/gpt-4o", ("openai/gpt-4o",)),
        ("groq", "openai/gpt-oss-20b", ("openai/gpt-oss-20b",)),
        ("groq", "groq/openai/gpt-oss-20b", ("groq/openai/gpt-oss-20b", "openai/gpt-oss-20b")),
        ("openrouter", "openrouter/openai/gpt-4o", ("openrouter/openai/gpt-4o", "openai/gpt-4o")),
        ("google", "models/gemini-2.5-pro", ("models/gemini-2.5-pro", "gemini-2.5-pro")),
        ("google", "gemini/gemini-2.5-pro", ("gemini/gemini-2.5-pro", "gemini-2.5-pro")),
        (
            "google",
            "projects/p/locations/l/publishers/google/models/gemini-2.5-pro",
            ("projects/p/locations/l/publishers/google/models/gemini-2.5-pro", "gemini-2.5-pro"),
        ),
        ("google", "acme/publishers/google/models/x", ("acme/publishers/google/models/x",)),
        (
            "aws",
            "arn:aws:bedrock:us-east-1:1:inference-profile/us.anthropic.claude-opus-5",
            (
                "arn:aws:bedrock:us-east-1:1:inference-profile/us.anthropic.claude-opus-5",
                "us.anthropic.claude-opus-5",
            ),
        ),
    ],
)
def test_the_names_a_model_may_be_listed_under(provider: str, model: str, names: tuple[str, ...]) -> None:
    assert model_names(provider, model) == names


@pytest.mark.parametrize(
    ("region", "everywhere", "expected"),
    [
        ("", False, "anthropic.claude-opus-5"),
        ("us-west-2", False, "us.anthropic.claude-opus-5"),
        ("us-gov-west-1", False, "us-gov.anthropic.claude-opus-5"),
        ("EU-central-1", False, "eu.anthropic.claude-opus-5"),
        ("ap-northeast-1", False, "jp.anthropic.claude-opus-5"),
        ("ap-southeast-2", False, "au.anthropic.claude-opus-5"),
        ("ap-southeast-1", False, "apac.anthropic.claude-opus-5"),
        ("sa-east-1", False, "anthropic.claude-opus-5"),
        ("us-west-2", True, "global.anthropic.claude-opus-5"),
    ],
)
def test_bedrock_s_region_becomes_part_of_the_name(region: str, everywhere: bool, expected: str) -> None:
    assert bedrock_model(" anthropic.claude-opus-5 ", region, global_endpoint=everywhere) == expected


@pytest.mark.parametrize(
    "model", ["eu.anthropic.claude-opus-5", "global.x.y", "arn:aws:bedrock:eu-west-1:1:x/y"]
)
def test_a_name_that_says_where_is_kept(model: str) -> None:
    assert bedrock_model(model, "us-west-2", global_endpoint=True) == model


@pytest.mark.parametrize("region", ["narnia", "1", "us"[:1], "eu_central_1"])
def test_what_is_no_region_is_refused(region: str) -> None:
    with pytest.raises(ConfigurationError, match="AWS region"):
        bedrock_model("anthropic.claude-opus-5", region)
