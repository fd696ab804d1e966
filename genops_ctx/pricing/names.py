"""Names: which provider and which model a name from Flowise, a tracer or a user means.

Flowise names a model node by its component (``chatOpenAI``), its evaluation metrics by a class
(``ChatOpenAI``), tracers by a convention (``gcp.gemini``), people by a brand (``gemini``). All of
them lead to one provider id. Comparisons are of whole names, case and punctuation aside; a name
that merely contains a known one is a different name.
"""

from __future__ import annotations

import re
from functools import cache

from ..core.errors import ConfigurationError

__all__ = ["LOCAL_PROVIDERS", "UNPRICED_PROVIDERS", "bedrock_model", "model_names", "provider_of"]

_PUNCTUATION = re.compile(r"[\W_]+")

LOCAL_PROVIDERS = frozenset({"ollama", "localai", "llamacpp", "lmstudio", "vllm"})
"""Models on the user's own machines: no provider bills their tokens."""

UNPRICED_PROVIDERS = {
    "openai-custom": "a custom OpenAI-compatible endpoint has no public price",
    "litellm": "a LiteLLM proxy forwards to models it does not name",
    "cometapi": "CometAPI is not in the price data",
    "nvidia-nim": "NVIDIA NIM is billed by the machine, not by the token",
    "nemo-guardrails": "NeMo Guardrails forwards to models it does not name",
    "watsonx": "IBM watsonx is not in the price data",
    "huggingface": "Hugging Face bills by the inference provider behind it",
    "replicate": "Replicate bills by the second",
    "alibaba-tongyi": "Alibaba Tongyi is not in the price data",
    "baidu-wenxin": "Baidu Wenxin is not in the price data",
    "jina": "Jina is not in the price data",
}
"""Providers whose price only the user knows, and why."""

_LOCATIONS = (
    "models/",
    "publishers/google/models/",
    "publishers/anthropic/models/",
    "accounts/fireworks/models/",
)
"""What some interfaces put before the model id; it says where, not which."""

_BEDROCK_GEOGRAPHIES = {
    "us-gov": "us-gov",
    "us": "us",
    "eu": "eu",
    "ap-northeast": "jp",
    "ap-southeast-2": "au",
    "ap-southeast-4": "au",
    "ap": "apac",
}


@cache
def _providers() -> dict[str, str]:
    """Squeezed name -> provider id."""
    import json
    from importlib.resources import files  # here: 7 ms to import

    table = json.loads(files(__package__).joinpath("providers.json").read_text("utf-8"))
    return {_squeeze(name): provider for provider, names in table.items() for name in (provider, *names)}


def _squeeze(name: str) -> str:
    return _PUNCTUATION.sub("", name.lower())


def provider_of(name: str) -> str:
    """The provider id of a Flowise node, an evaluation's class, a tracer's or a person's name.

    A name that is none of these comes back lower-cased and stripped.

    >>> provider_of("chatOpenAI"), provider_of("AzureChatOpenAI"), provider_of("Gemini"), provider_of("acme")
    ('openai', 'azure', 'google', 'acme')
    """
    return _providers().get(_squeeze(name)) or name.strip().lower()


def model_names(provider: str, model: str) -> tuple[str, ...]:
    """The names a model may be listed under, most literal first; all lower case.

    A vendor prefix is dropped only where it names the provider itself (``openai/gpt-4o`` at OpenAI),
    so that the ids of OpenRouter and Groq, which begin with the maker of the model, stay whole.
    """
    name = model.strip().lower()
    names = [name]
    if name.startswith(("arn:aws:bedrock:", "arn:aws-us-gov:bedrock:")):
        name = name.rpartition("/")[2]
        names.append(name)
    for location in _LOCATIONS:
        at = name.find(location)
        if at == 0 or (at > 0 and name.startswith("projects/")):
            name = name[at + len(location) :]
            names.append(name)
            break
    vendor, slash, rest = name.partition("/")
    if slash and rest and provider_of(vendor) == provider:
        names.append(rest)
    return tuple(dict.fromkeys(names))


def bedrock_model(model: str, region: str = "", *, global_endpoint: bool = False) -> str:
    """The Bedrock id that says where a model is called, for nodes that keep the region beside it.

    Flowise's Bedrock nodes hold ``region`` and ``useGlobalEndpoint``; a bare id is priced at the
    regional rate, which is 10 % above the global one for newer models.

    >>> bedrock_model("anthropic.claude-sonnet-4-5-20250929-v1:0", "eu-central-1")
    'eu.anthropic.claude-sonnet-4-5-20250929-v1:0'
    """
    name = model.strip()
    prefix = name.partition(".")[0].lower()
    if prefix in {"global", "in", "ca", *_BEDROCK_GEOGRAPHIES.values()} or name.startswith("arn:"):
        return name
    if global_endpoint:
        return f"global.{name}"
    if not region:
        return name
    for start, geography in _BEDROCK_GEOGRAPHIES.items():
        if region.lower().startswith(f"{start}-") or region.lower() == start:
            return f"{geography}.{name}"
    if re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", region.lower()):
        return name
    raise ConfigurationError(f"{region!r} is not an AWS region; write it like 'eu-central-1'")
