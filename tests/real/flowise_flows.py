"""Build the test flows over HTTP, from the node definitions of the Flowise that will run them.

A flow is a JSON graph. Flowise's page makes its nodes out of ``GET /nodes/{name}``; so does
:class:`FlowBuilder`, and the flows fit whatever release is running.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import requests

TIMEOUT = 120.0

Node = dict[str, Any]
Edge = dict[str, Any]

OPENAI_MODEL = "gpt-4o-mini"
AGENT_MODEL = "gpt-4o"
ANTHROPIC_MODEL = "claude-haiku-4-5"
EMBEDDING_MODEL = "text-embedding-3-small"
UNPRICED_MODEL = "acme-custom-1"

_COPIED = ("baseClasses", "category", "color", "description", "hideInput", "label", "name", "type", "version")


class FlowBuilder:
    """Makes flows whose models are all served from `model_url`, an OpenAI-shaped API without ``/v1``.

    Anthropic's base URL is not part of a flow: the server takes it from its environment.
    """

    def __init__(self, url: str, api_key: str, model_url: str) -> None:
        self._url = f"{url}/api/v1"
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Bearer {api_key}"
        # Flowise closes a connection that was idle for 5 s, also when a request is on its way into it.
        self._session.headers["Connection"] = "close"
        self._model_url = model_url.rstrip("/")
        self._definitions: dict[str, dict[str, Any]] = {}
        self._openai = self._credential("openAIApi", {"openAIApiKey": "sk-not-a-real-key"})
        self._anthropic = self._credential("anthropicApi", {"anthropicApiKey": "sk-ant-not-a-real-key"})

    def close(self) -> None:
        self._session.close()

    # -- the flows ---------------------------------------------------------------------------------

    def conversation_chain(self, name: str = "conversation_chain") -> str:
        model, memory = self._chat_openai(), self._node("bufferMemory")
        chain = self._node("conversationChain")
        edges = [_plug(model, chain, "model"), _plug(memory, chain, "memory")]
        return self._chatflow(name, [model, memory, chain], edges)

    def llm_chain(self, name: str = "llm_chain", model: str = OPENAI_MODEL) -> str:
        chat, chain = self._chat_openai(model), self._node("llmChain")
        values = json.dumps({"text": "{{question}}"})
        prompt = self._node(
            "promptTemplate", {"template": "Answer in one line: {text}", "promptValues": values}
        )
        edges = [_plug(chat, chain, "model"), _plug(prompt, chain, "prompt")]
        return self._chatflow(name, [chat, prompt, chain], edges)

    def tool_agent(self, name: str = "tool_agent") -> str:
        model, memory = self._chat_openai(), self._node("bufferMemory")
        calculator, agent = self._node("calculator"), self._node("toolAgent")
        edges = [
            _plug(calculator, agent, "tools"),
            _plug(memory, agent, "memory"),
            _plug(model, agent, "model"),
        ]
        return self._chatflow(name, [model, memory, calculator, agent], edges)

    def agentflow_llm(self, name: str = "agentflow_llm", model: str = OPENAI_MODEL, **inputs: Any) -> str:
        """One LLM node; `inputs` replace what the node holds, such as its memory or output shape."""
        return self._agentflow(name, [self._llm(0, model=model, **inputs)])

    def agentflow_structured(self, name: str = "agentflow_structured") -> str:
        field = {
            "key": "answer",
            "type": "string",
            "enumValues": "",
            "jsonSchema": "",
            "description": "the answer",
        }
        return self.agentflow_llm(name, AGENT_MODEL, llmStructuredOutput=[field])

    def agentflow_summary(self, name: str = "agentflow_summary") -> str:
        """An LLM node whose memory asks the model for a summary: one more call than is reported."""
        return self.agentflow_llm(name, llmMemoryType="conversationSummary")

    def agentflow_two_providers(
        self, name: str = "agentflow_two_providers", *, streaming: bool = True
    ) -> str:
        """OpenAI drafts, Anthropic reviews; `streaming` is the nodes' own switch (Flowise: on).

        With it on, Flowise streams from the model even where the prediction is not streamed.
        """
        draft = self._llm(0, label="Draft")
        review = self._llm(1, "chatAnthropic", ANTHROPIC_MODEL, label="Review")
        for node in (draft, review):
            node["data"]["inputs"]["llmModelConfig"]["streaming"] = streaming
        return self._agentflow(name, [draft, review])

    def agentflow_agent(self, name: str = "agentflow_agent") -> str:
        """An Agent node with a calculator: it calls the model, the tool, and the model again."""
        tool = "agentSelectedTool"
        inputs = {
            **self._model_of("agent", "chatOpenAI", AGENT_MODEL),
            "agentMessages": [],
            "agentTools": [
                {tool: "calculator", f"{tool}RequiresHumanInput": "", f"{tool}Config": {tool: "calculator"}}
            ],
            "agentEnableMemory": True,
            "agentMemoryType": "allMessages",
            "agentReturnResponseAs": "userMessage",
        }
        return self._agentflow(name, [self._node("agentAgentflow", inputs)])

    def retrieval_chain(self, name: str = "retrieval_chain") -> str:
        """Question answering over a text in memory: embeddings of it and of the question, then the model."""
        model, embeddings = self._chat_openai(), self._embeddings()
        text = self._node("plainText", {"text": "Two plus three is five."})
        store, chain = self._node("memoryVectorStore"), self._node("conversationalRetrievalQAChain")
        edges = [
            _plug(text, store, "document"),
            _plug(embeddings, store, "embeddings"),
            _plug(model, chain, "model"),
            _plug(store, chain, "vectorStoreRetriever"),
        ]
        return self._chatflow(name, [model, embeddings, text, store, chain], edges)

    def document_chain(self, name: str = "document_chain") -> str:
        """As :meth:`retrieval_chain`, over a text file that upserts bring."""
        model, embeddings = self._chat_openai(), self._embeddings()
        text = self._node("textFile", {})
        store, chain = self._node("memoryVectorStore"), self._node("conversationalRetrievalQAChain")
        edges = [
            _plug(text, store, "document"),
            _plug(embeddings, store, "embeddings"),
            _plug(model, chain, "model"),
            _plug(store, chain, "vectorStoreRetriever"),
        ]
        flow_id = self._chatflow(name, [model, embeddings, text, store, chain], edges)
        self.allow_overrides(flow_id, {"Text File": ["txtFile"]})
        return flow_id

    def summary_chain(self, name: str = "summary_chain") -> str:
        """A conversation chain whose memory asks the model for a summary of what was said before."""
        model = self._chat_openai()
        memory, chain = self._node("conversationSummaryMemory"), self._node("conversationChain")
        edges = [
            _plug(model, chain, "model"),
            _plug(model, memory, "model"),
            _plug(memory, chain, "memory"),
        ]
        return self._chatflow(name, [model, memory, chain], edges)

    def follow_up_chain(self, name: str = "follow_up_chain") -> str:
        """An LLM chain after whose answer a model writes follow-up questions."""
        flow_id = self.llm_chain(name)
        chosen = {
            "credentialId": self._anthropic,  # of OpenAI the address cannot be set here
            "modelName": ANTHROPIC_MODEL,
            "prompt": "Questions that may follow: {history}",
            "temperature": "0.4",
        }
        settings = json.dumps({"status": True, "selectedProvider": "chatAnthropic", "chatAnthropic": chosen})
        self._call("PUT", f"chatflows/{flow_id}", {"followUpPrompts": settings})
        return flow_id

    def agentflow_iteration(self, name: str = "agentflow_iteration") -> str:
        """An LLM node inside an iteration of three rounds."""
        around = self._node("iterationAgentflow", {"iterationInput": '["one","two","three"]'})
        inside = self._llm(0, llmEnableMemory=False, llmUserMessage="{{ $iteration }}")
        inside |= {"parentNode": around["id"], "extent": "parent"}
        nodes = [self._node("startAgentflow", {"startInputType": "chatInput"}), around]
        return self._create(name, "AGENTFLOW", [*nodes, inside], [_follow(*nodes)])

    def agentflow_condition(self, name: str = "agentflow_condition") -> str:
        """A Condition Agent asks its model which of two LLM nodes is to answer."""
        inputs = {
            **self._model_of("conditionAgent", "chatOpenAI", AGENT_MODEL),
            "conditionAgentInstructions": "Is it a sum?",
            "conditionAgentInput": "{{ question }}",
            "conditionAgentScenarios": [{"scenario": "a sum"}, {"scenario": "no sum"}],
            "conditionAgentEnableMemory": False,
        }
        start = self._node("startAgentflow", {"startInputType": "chatInput"})
        choice = self._node("conditionAgentAgentflow", inputs)
        answers = [self._llm(0, label="A sum"), self._llm(1, label="No sum")]
        edges = [_follow(start, choice)]
        for index, node in enumerate(answers):
            handle = f"{choice['id']}-output-{index}"
            edges.append({**_follow(choice, node), "id": f"{handle}-{node['id']}", "sourceHandle": handle})
        return self._create(name, "AGENTFLOW", [start, choice, *answers], edges)

    def agentflow_sub_flow(self, flow_id: str, name: str = "agentflow_sub_flow") -> str:
        """An LLM node, and a node that runs another flow with what that said."""
        run = {
            "executeFlowSelectedFlow": flow_id,
            "executeFlowInput": "{{ question }}",
            "executeFlowBaseURL": self._url.removesuffix("/api/v1"),
            "executeFlowReturnResponseAs": "userMessage",
        }
        return self._agentflow(name, [self._llm(0), self._node("executeFlowAgentflow", run)])

    def export_to(self, flow_id: str, exporter: str, credential: str) -> None:
        """Switch a tracing exporter of a flow on, and let predictions say what goes along."""
        analytic = {exporter: {"credentialId": credential, "status": True}}
        api = {"overrideConfig": {"status": True, "model": {}, "memory": {}}}
        body = {"analytic": json.dumps(analytic), "apiConfig": json.dumps(api)}
        self._call("PUT", f"chatflows/{flow_id}", body)

    def export_nowhere(self, flow_id: str) -> None:
        self._call("PUT", f"chatflows/{flow_id}", {"analytic": "{}", "apiConfig": "{}"})

    def allow_overrides(self, flow_id: str, inputs: dict[str, list[str]]) -> None:
        """Let predictions override inputs, by the label of their node."""
        nodes = {
            label: [{"name": name, "label": name, "type": "string", "enabled": True} for name in names]
            for label, names in inputs.items()
        }
        api = {"overrideConfig": {"status": True, "nodes": nodes}}
        self._call("PUT", f"chatflows/{flow_id}", {"apiConfig": json.dumps(api)})

    def forbid_overrides(self, flow_id: str) -> None:
        self._call("PUT", f"chatflows/{flow_id}", {"apiConfig": "{}"})

    def langfuse_credential(self, url: str, key: str) -> str:
        secrets = {"langFuseSecretKey": key, "langFusePublicKey": "pk-genops", "langFuseEndpoint": url}
        return self._credential("langfuseApi", secrets)

    def phoenix_credential(self, url: str, key: str) -> str:
        return self._credential("phoenixApi", {"phoenixApiKey": key, "phoenixEndpoint": url})

    def protect(self, flow_id: str, key_id: str) -> None:
        """Let only the bearer of one API key run the flow."""
        self._call("PUT", f"chatflows/{flow_id}", {"apikeyid": key_id})

    def show_chat(self, flow_id: str, **config: object) -> None:
        """What the widget offers besides the chat: ``leads``, ``chatFeedback`` and so on."""
        self._call("PUT", f"chatflows/{flow_id}", {"chatbotConfig": json.dumps(config)})

    def limit_rate(self, flow_id: str, calls: int, seconds: int, message: str) -> None:
        """Let each client address run the flow `calls` times in `seconds`."""
        limit = {"status": True, "limitMax": calls, "limitDuration": seconds, "limitMsg": message}
        self._call("PUT", f"chatflows/{flow_id}", {"apiConfig": json.dumps({"rateLimit": limit})})

    # -- their parts -------------------------------------------------------------------------------

    def _chat_openai(self, model: str = OPENAI_MODEL) -> Node:
        inputs = {"modelName": model, "basepath": f"{self._model_url}/v1", "temperature": 0.2}
        return self._node("chatOpenAI", inputs, credential=self._openai)

    def _embeddings(self) -> Node:
        inputs = {"modelName": EMBEDDING_MODEL, "basepath": f"{self._model_url}/v1"}
        return self._node("openAIEmbeddings", inputs, credential=self._openai)

    def _model_of(self, prefix: str, provider: str, model: str) -> dict[str, Any]:
        """The choice of a model as LLM (``llm``) and Agent (``agent``) nodes hold it."""
        config = {
            "cache": "",
            "modelName": model,
            "temperature": 0.2,
            "streaming": True,
            f"{prefix}Model": provider,
        }
        if provider == "chatOpenAI":
            config |= {"basepath": f"{self._model_url}/v1", "FLOWISE_CREDENTIAL_ID": self._openai}
        else:
            config |= {"FLOWISE_CREDENTIAL_ID": self._anthropic}
        return {f"{prefix}Model": provider, f"{prefix}ModelConfig": config}

    def _llm(
        self,
        index: int,
        provider: str = "chatOpenAI",
        model: str = OPENAI_MODEL,
        label: str = "",
        **inputs: Any,
    ) -> Node:
        own = {
            **self._model_of("llm", provider, model),
            "llmMessages": [],
            "llmEnableMemory": True,
            "llmMemoryType": "allMessages",
            "llmReturnResponseAs": "userMessage",
            **inputs,
        }
        return self._node("llmAgentflow", own, index=index, label=label)

    def _node(
        self,
        name: str,
        inputs: dict[str, Any] | None = None,
        *,
        index: int = 0,
        label: str = "",
        credential: str = "",
    ) -> Node:
        definition = self._definition(name)
        node_id = f"{name}_{index}"
        declared = [
            {**declared, "id": f"{node_id}-input-{declared['name']}-{declared['type']}"}
            for declared in [definition.get("credential"), *definition.get("inputs", [])]
            if declared
        ]
        agentic = definition["category"] == "Agent Flows"
        data = {key: definition[key] for key in _COPIED if key in definition}
        data |= {
            "id": node_id,
            "label": label or definition["label"],
            "inputParams": [item for item in declared if not _is_socket(item)],
            "inputAnchors": [item for item in declared if _is_socket(item)],
            "inputs": {
                item["name"]: item.get("default", "") for item in declared if item["type"] != "credential"
            }
            | (inputs or {}),
            **_outputs(definition, node_id, agentic),
            "selected": False,
        }
        if credential:
            data["credential"] = credential
        position = {"x": 300 * index, "y": 0}
        return {
            "id": node_id,
            "type": "agentFlow" if agentic else "customNode",
            "position": position,
            "positionAbsolute": position,
            "width": 300,
            "height": 100,
            "data": data,
        }

    def _definition(self, name: str) -> dict[str, Any]:
        if name not in self._definitions:
            self._definitions[name] = self._call("GET", f"nodes/{name}")
        return self._definitions[name]

    # -- the wire ----------------------------------------------------------------------------------

    def _chatflow(self, name: str, nodes: list[Node], edges: list[Edge]) -> str:
        return self._create(name, "CHATFLOW", nodes, edges)

    def _agentflow(self, name: str, steps: list[Node]) -> str:
        nodes = [self._node("startAgentflow", {"startInputType": "chatInput"}), *steps]
        edges = [_follow(before, after) for before, after in pairwise(nodes)]
        return self._create(name, "AGENTFLOW", nodes, edges)

    def _create(self, name: str, kind: str, nodes: list[Node], edges: list[Edge]) -> str:
        graph = {"nodes": nodes, "edges": edges, "viewport": {"x": 0, "y": 0, "zoom": 1}}
        flow = self._call("POST", "chatflows", {"name": name, "type": kind, "flowData": json.dumps(graph)})
        return str(flow["id"])

    def _credential(self, kind: str, secrets: dict[str, str]) -> str:
        body = {"name": f"test-{kind}", "credentialName": kind, "plainDataObj": secrets}
        return str(self._call("POST", "credentials", body)["id"])

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        response = self._session.request(method, f"{self._url}/{path}", json=body, timeout=TIMEOUT)
        if not response.ok:
            raise AssertionError(f"{method} {path} -> {response.status_code}: {response.text[:500]}")
        return response.json()


def _is_socket(declared: dict[str, Any]) -> bool:
    """Whether an input takes another node; its type is then a class (``BaseMemory``), else ``string``."""
    return str(declared["type"])[:1].isupper()


def _outputs(definition: dict[str, Any], node_id: str, agentic: bool) -> dict[str, Any]:
    """The sockets on a node's other side, and which of several is in use: the first."""
    name = definition["name"]
    if agentic:
        hidden = definition.get("hideOutput")
        anchor = {"id": f"{node_id}-output-{name}", "label": definition["label"], "name": name}
        return {"outputAnchors": [] if hidden else [anchor], "outputs": {}}
    choices = [
        {
            "id": f"{node_id}-output-{output['name']}-{'|'.join(output['baseClasses'])}",
            "name": output["name"],
            "label": output["label"],
            "type": " | ".join(output["baseClasses"]),
        }
        for output in definition.get("outputs") or [{**definition, "label": definition["type"]}]
    ]
    if not definition.get("outputs"):
        return {"outputAnchors": choices, "outputs": {}}
    first = choices[0]["name"]
    anchor = {"name": "output", "label": "Output", "type": "options", "options": choices, "default": first}
    return {"outputAnchors": [anchor], "outputs": {"output": first}}


def _source_handle(node: Node) -> str:
    anchor = node["data"]["outputAnchors"][0]
    return str(anchor["options"][0]["id"] if "options" in anchor else anchor["id"])


def _plug(source: Node, target: Node, socket: str) -> Edge:
    """Chatflow: put `source` into a socket of `target`."""
    anchor = next(anchor for anchor in target["data"]["inputAnchors"] if anchor["name"] == socket)
    reference = f"{{{{{source['id']}.data.instance}}}}"
    target["data"]["inputs"][socket] = [reference] if anchor.get("list") else reference
    return _edge("buttonedge", source, target, anchor["id"])


def _follow(before: Node, after: Node) -> Edge:
    """AgentFlow: run `after` when `before` is done."""
    return {**_edge("agentFlow", before, after, after["id"]), "data": {"isHumanInput": False}}


def _edge(kind: str, source: Node, target: Node, target_handle: str) -> Edge:
    handle = _source_handle(source)
    return {
        "id": f"{source['id']}-{handle}-{target['id']}-{target_handle}",
        "type": kind,
        "source": source["id"],
        "sourceHandle": handle,
        "target": target["id"],
        "targetHandle": target_handle,
    }
