"""Vector upserts through the gateway: who pays, what is set aside, what is booked where little is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from genops_ctx import Budget
from genops_ctx.core.admission import Forecast
from genops_ctx.core.policy import Policy
from genops_ctx.runtime import get_runtime
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.settings import Settings
from genops_ctx.testing.loopback import Loopback, Reply, Request, json_reply
from tests.service.conftest import NewClient, Serve

Charges = Callable[[], list[Any]]
FLOW = "22222222-3333-4444-8555-666666666666"
DAILY = Settings(budgets=(Budget("1/day", name="daily", default_reservation="0.10"),))


def node(name: str, category: str, **inputs: Any) -> dict[str, Any]:
    data = {"id": f"{name}_0", "name": name, "label": name, "category": category, "inputs": inputs}
    return {"id": data["id"], "data": data}


def flow(*nodes: dict[str, Any], edges: list[tuple[str, str]], overrides: bool = False) -> dict[str, Any]:
    data = {
        "nodes": list(nodes),
        "edges": [{"source": f"{source}_0", "target": f"{target}_0"} for source, target in edges],
    }
    api = {"overrideConfig": {"status": overrides}}
    return {
        "id": FLOW,
        "name": "library",
        "type": "CHATFLOW",
        "flowData": json.dumps(data),
        "apiConfig": json.dumps(api),
    }


CHAT = node("chatOpenAI", "Chat Models", modelName="gpt-4o")
EMBEDDINGS = node("openAIEmbeddings", "Embeddings", modelName="text-embedding-3-small")
OTHERS = node("cohereEmbeddings", "Embeddings", modelName="embed-v4.0")
STORE = node("memoryVectorStore", "Vector Stores")
CHAIN = node("conversationalRetrievalQAChain", "Chains")
EDGES = [
    ("openAIEmbeddings", "memoryVectorStore"),
    ("memoryVectorStore", "conversationalRetrievalQAChain"),
    ("chatOpenAI", "conversationalRetrievalQAChain"),
]


class Library:
    """A Flowise with one flow, and the answer that a test wants."""

    def __init__(self) -> None:
        self.definition: dict[str, Any] | None = flow(CHAT, EMBEDDINGS, STORE, CHAIN, edges=EDGES)
        self.reply = json_reply({"numAdded": 1, "addedDocs": [{"pageContent": "alpha beta gamma"}]})
        self.upserts: list[Request] = []
        self.url = ""

    def __call__(self, request: Request) -> Reply:
        if "/vector/upsert/" in request.path:
            self.upserts.append(request)
            return self.reply
        if request.path.endswith(f"/chatflows/{FLOW}") and self.definition is not None:
            return json_reply(self.definition)
        return json_reply({"message": "no"}, 404)


@pytest.fixture
def library() -> Iterator[Library]:
    made = Library()
    with Loopback(made) as server:
        made.url = server.url
        yield made


def upsert(service: str, headers: dict[str, str], **given: Any) -> requests.Response:
    return requests.post(f"{service}/api/v1/vector/upsert/{FLOW}", headers=headers, timeout=60, **given)


def test_an_upsert_has_an_owner_and_a_price(
    serve: Serve, library: Library, client: NewClient, charges: Charges
) -> None:
    words = " ".join(["alpha"] * 1000)
    library.reply = json_reply({"numAdded": 2, "addedDocs": [{"pageContent": words}, {"pageContent": words}]})
    service = serve(library.url, settings=DAILY)
    given = {"json": {"overrideConfig": {"text": words}}}
    answer = upsert(service, client(attribution={"team": "help"}), **given)
    assert answer.content == library.reply.body
    (charge,) = charges()
    # "alpha" with the space before it is one token; text-embedding-3-small costs $0.02 a million.
    assert charge.lines[0].usage.input_tokens == pytest.approx(2000, rel=0.15)
    assert charge.nanos == 20 * charge.lines[0].usage.input_tokens
    assert charge.reserved_nanos == pytest.approx(20 * 1000, rel=0.15)
    assert dict(charge.attribution) == {"team": "help"}
    assert (str(charge.exactness), charge.flags, charge.name) == ("estimated", ("upsert",), "library")
    assert answer.headers["X-GenOps-Cost"] == f"{charge.cost:f}"
    assert answer.headers["X-GenOps-Exactness"] == "estimated"


@pytest.mark.parametrize(
    "change",
    [
        {"reply": json_reply({"result": "Successfully Upserted"})},
        {"reply": json_reply({"numAdded": 2, "addedDocs": [{"pageContent": "alpha"}]})},
        {"reply": json_reply({"numAdded": 1, "addedDocs": [{"content": "alpha"}]})},
        {"definition": None},
        {"definition": flow(CHAT, STORE, CHAIN, edges=EDGES)},
        {
            "definition": flow(
                EMBEDDINGS, OTHERS, STORE, edges=[*EDGES, ("cohereEmbeddings", "memoryVectorStore")]
            )
        },
        {
            "definition": flow(
                CHAT, EMBEDDINGS, STORE, CHAIN, edges=[*EDGES, ("chatOpenAI", "memoryVectorStore")]
            )
        },
        {"definition": flow(node("openAIEmbeddings", "Embeddings"), STORE, edges=EDGES)},
    ],
    ids=["no texts", "fewer", "other shape", "no flow", "no model", "two models", "a chat model", "no name"],
)
def test_what_is_not_known_is_never_nothing(
    serve: Serve, library: Library, client: NewClient, charges: Charges, change: dict[str, Any]
) -> None:
    for name, value in change.items():
        setattr(library, name, value)
    answer = upsert(serve(library.url, settings=DAILY), client(), json={})
    assert answer.status_code == 200
    (charge,) = charges()
    assert str(charge.exactness) == "unknown"
    assert charge.nanos == charge.reserved_nanos == 100_000_000


@pytest.mark.parametrize(("allowed", "exactness"), [(True, "unknown"), (False, "estimated")])
def test_a_model_that_overrides_may_change_is_not_known(
    serve: Serve, library: Library, client: NewClient, charges: Charges, allowed: bool, exactness: str
) -> None:
    library.definition = flow(CHAT, EMBEDDINGS, STORE, CHAIN, edges=EDGES, overrides=allowed)
    other = {"modelName": "text-embedding-3-large"}
    service = serve(library.url, settings=DAILY)
    upsert(service, client(), json={"overrideConfig": other})
    # With a file, Flowise takes the fields themselves for overrides.
    upsert(service, client(), data=other, files={"files": ("a.txt", b"alpha", "text/plain")})
    assert [str(charge.exactness) for charge in charges()] == [exactness] * 2


@pytest.mark.parametrize(
    "body",
    [{"question": "hi"}, {"overrideConfig": {"sessionId": "s", "x": "a"}}, {"overrideConfig": {"text": ""}}],
)
def test_what_is_not_embedded_does_not_make_it_cheap(
    serve: Serve, library: Library, client: NewClient, charges: Charges, body: dict[str, Any]
) -> None:
    """The flow's own loaders are at work: what they read is not known."""
    upsert(serve(library.url, settings=DAILY), client(), json=body)
    (charge,) = charges()
    assert charge.reserved_nanos == 100_000_000


def test_an_upsert_keeps_budgets_policies_and_limits(
    serve: Serve, library: Library, client: NewClient
) -> None:
    given = {"json": {"overrideConfig": {"text": "word " * 10_000}}}
    small = Settings(budgets=(Budget("0.0001/day", name="small"),))
    assert upsert(serve(library.url, settings=small), client(), **given).status_code == 402
    denied = Settings(policies=(Policy("closed", deny_flows=("library",)),))
    assert upsert(serve(library.url, settings=denied), client(), **given).status_code == 403
    service = serve(library.url)
    cheap = {**client(), "X-GenOps-Max-Cost": "0.0001"}
    assert upsert(service, cheap, **given).json()["error"]["code"] == "max_cost"
    assert upsert(service, client(flows=("33333333-3333-4444-8555-666666666666",))).status_code == 403
    assert upsert(service, {}).status_code == 401
    assert not library.upserts
    limited = ServiceSettings.of({"rate_limit": [{"rate": "1/hour", "by": "key"}]})
    service, headers = serve(library.url, options=limited), client()
    assert [upsert(service, headers).status_code for _ in range(2)] == [200, 429]


def test_an_upsert_says_nothing_of_what_predictions_cost(
    serve: Serve, library: Library, client: NewClient
) -> None:
    service, headers = serve(library.url, settings=DAILY), client()
    for _ in range(25):
        assert upsert(service, headers).status_code == 200
    assert get_runtime().forecast("library", Forecast).typical is None


@pytest.mark.parametrize(
    ("message", "outcome", "exactness"),
    [
        ("Error: vectorsService.upsertVector - No vector node found", "refused", "exact"),
        (f"Error: vectorsService.upsertVector - Chatflow {FLOW} not found", "refused", "exact"),
        ("Error: vectorsService.upsertVector - Error: 401 Incorrect API key", "failed", "exact"),
        ("Error: vectorsService.upsertVector - Error: 429 Rate limit", "failed", "unknown"),
        ("Error: vectorsService.upsertVector - connection lost", "failed", "unknown"),
    ],
)
def test_an_upsert_that_fails(
    serve: Serve,
    library: Library,
    client: NewClient,
    charges: Charges,
    message: str,
    outcome: str,
    exactness: str,
) -> None:
    library.reply = json_reply({"statusCode": 500, "success": False, "message": message, "stack": {}}, 500)
    answer = upsert(serve(library.url, settings=DAILY), client(), json={})
    assert answer.json()["message"] == message
    (charge,) = charges()
    assert (charge.outcome, str(charge.exactness)) == (outcome, exactness)
    assert charge.nanos == (100_000_000 if exactness == "unknown" else 0)


def test_an_upsert_that_never_left_costs_nothing(serve: Serve, client: NewClient, charges: Charges) -> None:
    assert upsert(serve("http://127.0.0.1:1"), client()).status_code == 502
    assert not charges()


def test_a_file_is_text_where_it_says_so(
    serve: Serve, library: Library, client: NewClient, charges: Charges
) -> None:
    service, headers = serve(library.url, settings=DAILY), client()
    text = ("word " * 1000).encode()
    upsert(service, headers, files={"files": ("a.txt", text, "text/plain")})
    upsert(service, headers, files={"files": ("a.pdf", text, "application/pdf")})
    plain, unknown = charges()
    assert plain.reserved_nanos == pytest.approx(20 * 1000, rel=0.15)
    assert unknown.reserved_nanos == 100_000_000
