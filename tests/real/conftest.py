"""A real Flowise for the tests in this folder, with a model behind it that counts what it bills.

``GENOPS_TEST_FLOWISE`` says what to do about the installation:

=============  ===========================================================
(unset)        use it where it is installed, else skip these tests
``install``    install it first where it is missing (3 to 8 minutes, 2.8 GB)
``require``    fail where it is missing
``off``        skip these tests
=============  ===========================================================
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from genops_ctx.cli import main
from genops_ctx.instrument import governor
from genops_ctx.providers import flows, prediction_story
from genops_ctx.providers.transport import Limits
from genops_ctx.runtime import reset_runtime
from genops_ctx.testing.model_stub import ModelStub

from .flowise_account import MANAGE_FLOWS, READ_FLOWS, READ_NO_FLOWS, Owner
from .flowise_flows import UNPRICED_MODEL, FlowBuilder
from .flowise_install import VERSION, Installation, InstallError, default_home, find, install
from .flowise_server import FlowiseServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from genops_ctx.testing.model_answers import ModelAnswer

VARIABLE = "GENOPS_TEST_FLOWISE"
HERE = Path(__file__).parent

RECEIVER_KEY = "key-of-the-receivers"

RATE_LIMIT_MESSAGE = "Slow down, please"

PATIENT = Limits(connect=60.0, total=120.0)


@dataclass(frozen=True, slots=True)
class RunningFlowise:
    """A Flowise that is up, with flows in it."""

    url: str
    api_key: str
    """may read and change flows, read executions and make credentials"""
    readonly_key: str
    """may read flows and executions"""
    noperm_key: str
    """valid, but may read neither"""
    flow_key: str
    """the only key that runs the flow ``protected``"""
    flows: dict[str, str]
    """flow id by name"""
    model_stub: ModelStub
    builder: FlowBuilder
    log: Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def flowise_installation() -> Installation:
    mode = os.environ.get(VARIABLE, "")
    if mode == "off":
        pytest.skip(f"{VARIABLE}=off")
    if mode == "install":
        try:
            return install()
        except InstallError as error:
            pytest.fail(str(error), pytrace=False)
    if mode not in ("", "require"):
        pytest.fail(f"{VARIABLE}={mode} is none of install, require, off", pytrace=False)
    installation = find()
    if installation is not None:
        return installation
    missing = (
        f"no Flowise {VERSION} in {default_home()}; set {VARIABLE}=install to install it (3 to 8 minutes)"
    )
    if mode == "require":
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


@pytest.fixture(scope="session")
def flowise(
    flowise_installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningFlowise]:
    """One Flowise for the whole run: tests share its flows, and each uses session ids of its own."""
    data = tmp_path_factory.mktemp("flowise")
    with (
        ModelStub() as model_stub,
        FlowiseServer(flowise_installation, data, anthropic_url=model_stub.url) as server,
    ):
        owner = Owner(server.url)
        admin = owner.create_key("admin", MANAGE_FLOWS)
        readonly = owner.create_key("read flows", READ_FLOWS)
        noperm = owner.create_key("read no flows", READ_NO_FLOWS)
        guard = owner.create_key("run one flow", READ_NO_FLOWS)
        owner.close()

        builder = FlowBuilder(server.url, admin.secret, model_stub.url)
        built = _build(builder)
        builder.protect(built["protected"], guard.id)
        yield RunningFlowise(
            url=server.url,
            api_key=admin.secret,
            readonly_key=readonly.secret,
            noperm_key=noperm.secret,
            flow_key=guard.secret,
            flows=built,
            model_stub=model_stub,
            builder=builder,
            log=server.log,
        )
        builder.close()


def _build(builder: FlowBuilder) -> dict[str, str]:
    chain, agentflow = builder.llm_chain(), builder.agentflow_llm()
    return {
        "conversation_chain": builder.conversation_chain(),
        "llm_chain": chain,
        "tool_agent": builder.tool_agent(),
        "agentflow_llm": agentflow,
        "agentflow_two_providers": builder.agentflow_two_providers(),
        "agentflow_two_providers_unstreamed": builder.agentflow_two_providers(
            "agentflow_two_providers_unstreamed", streaming=False
        ),
        "agentflow_agent": builder.agentflow_agent(),
        "agentflow_structured": builder.agentflow_structured(),
        "agentflow_summary": builder.agentflow_summary(),
        "agentflow_unpriced": builder.agentflow_llm("agentflow_unpriced", UNPRICED_MODEL),
        "protected": builder.llm_chain("protected"),
        "retrieval_chain": builder.retrieval_chain(),
        "summary_chain": builder.summary_chain(),
        "follow_up_chain": builder.follow_up_chain(),
        "agentflow_iteration": builder.agentflow_iteration(),
        "agentflow_condition": builder.agentflow_condition(),
        "agentflow_runs_agentflow": builder.agentflow_sub_flow(agentflow, "agentflow_runs_agentflow"),
        "agentflow_runs_chain": builder.agentflow_sub_flow(chain, "agentflow_runs_chain"),
    }


@pytest.fixture
def flowise_model(flowise: RunningFlowise) -> ModelStub:
    """The model behind Flowise, with nothing billed yet."""
    flowise.model_stub.reset()
    return flowise.model_stub


class Held:
    """Answers that are kept back: the model has billed a call, and the test says when it is answered."""

    def __init__(self, model_stub: ModelStub) -> None:
        self._model_stub = model_stub
        self._let_go = threading.Event()

    def wait_for(self, number: int) -> None:
        """Until so many calls have come."""
        self._model_stub.wait_for(number, timeout=120)

    def let_go(self) -> None:
        """Have them answered, and those that come later."""
        self._let_go.set()

    def keep_back(self) -> None:
        """Those that come from now on, until the next are let go."""
        self._let_go.clear()

    def warm_up(self, call: Callable[[], object]) -> None:
        """Make a call that is answered and then forgotten: the next looks nothing up within its own time."""
        self.let_go()
        call()
        self._model_stub.reset()
        self.keep_back()

    def hold(self) -> None:
        """Until they are let go."""
        self._let_go.wait(120)


@pytest.fixture
def held(flowise_model: ModelStub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """No call of the model is answered until it is let go: what comes first is not left to the clock."""
    held, respond = Held(flowise_model), flowise_model.respond

    def kept_back(provider: Any, body: dict[str, object], headers: Any = None) -> ModelAnswer:
        given = respond(provider, body, headers)
        held.hold()
        return given

    monkeypatch.setattr(flowise_model, "respond", kept_back)
    yield held
    held.let_go()


@pytest.fixture(autouse=True)
def patient_look_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a call waits to learn of its flow is tested elsewhere; here a busy Flowise is asked too."""
    monkeypatch.setattr(flows, "LOOK_UP_LIMITS", PATIENT)
    monkeypatch.setattr(governor, "LOOK_UP", PATIENT)
    monkeypatch.setattr(prediction_story, "EXECUTION_SECONDS", PATIENT.total)


_numbers = count(1)


@pytest.fixture
def rate_limited_flow(flowise: RunningFlowise) -> Callable[[int], str]:
    """Makes a new LLM chain that answers so many calls and refuses the others with HTML 429."""

    def create(calls: int) -> str:
        flow_id = flowise.builder.llm_chain(f"rate_limited_{next(_numbers)}")
        flowise.builder.limit_rate(flow_id, calls, seconds=600, message=RATE_LIMIT_MESSAGE)
        return flow_id

    return create


@pytest.fixture
def command_with_a_ledger(
    flowise: RunningFlowise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Result]]:
    """The command, with a ledger of its own in a file."""
    monkeypatch.setenv("FLOWISE_BASE_URL", flowise.url)
    monkeypatch.setenv("FLOWISE_API_KEY", flowise.api_key)
    monkeypatch.setenv("GENOPS_LEDGER", f"sqlite:///{tmp_path}/ledger.sqlite3")
    monkeypatch.setenv("GENOPS_RECEIVER_KEY", RECEIVER_KEY)

    def call(*arguments: str, input: str | None = None) -> Result:
        before = reset_runtime(None)  # as a process of its own
        try:
            return CliRunner().invoke(main, arguments, input=input)
        finally:
            fresh = reset_runtime(before)
            if fresh is not None:
                fresh.books.close()

    yield call
    kept = tmp_path / "ledger.sqlite3"
    assert not kept.exists() or RECEIVER_KEY.encode() not in kept.read_bytes()
