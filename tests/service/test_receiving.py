"""The receivers within the service: their settings, who may send, and that nothing is passed on elsewhere."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.evidence.shared import SharedCorrections
from genops_ctx.receivers.upstreams import Upstream
from genops_ctx.runtime import get_runtime
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.service.receiving import ReceiverSettings
from genops_ctx.service.secret_source import SecretSource
from genops_ctx.settings import Settings
from genops_ctx.testing import FlowiseStandIn
from genops_ctx.testing.model_stub import ModelStub

from .conftest import Serve

KEY = "a-key-of-many-characters"


def test_the_table_of_the_settings_file() -> None:
    table = {
        "receivers": {
            "key_env": "A_VARIABLE",
            "upstreams": {
                "openai": "https://api.openai.com/v1/",
                "eu": {"url": "https://eu.api.openai.com/v1", "provider": "openai"},
            },
        }
    }
    assert ServiceSettings.of(table).receivers == ReceiverSettings(
        SecretSource(variable="A_VARIABLE"),
        (
            Upstream("openai", "https://api.openai.com/v1", "openai"),
            Upstream("eu", "https://eu.api.openai.com/v1", "openai"),
        ),
    )
    assert ServiceSettings.of({"receivers": {}}).receivers == ReceiverSettings()
    assert ServiceSettings.of({}).receivers is None


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (True, "must be a table"),
        ({"kye_env": "X"}, "did you mean 'key_env'"),
        ({"key": "written-here-for-all-to-see"}, "must not be in the settings file"),
        ({"key_env": "X", "key_file": "/x"}, "not both"),
        ({"upstreams": ["https://api.openai.com/v1"]}, "must be a table"),
        ({"upstreams": {"openai": 7}}, "must be a URL"),
        ({"upstreams": {"openai": {"uri": "https://api.openai.com/v1"}}}, "no key 'uri'"),
        ({"upstreams": {"openai": "file:///etc/passwd"}}, "must be like https"),
        ({"upstreams": {"a/b": "https://api.openai.com/v1"}}, "an upstream's name"),
    ],
)
def test_bad_tables_are_told(table: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        ServiceSettings.of({"receivers": table})


def test_the_key_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GENOPS_RECEIVER_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="set GENOPS_RECEIVER_KEY"):
        ReceiverSettings().read_key()
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    monkeypatch.setenv("GENOPS_RECEIVER_KEY_FILE", str(file))
    assert ReceiverSettings().read_key() == KEY
    assert ReceiverSettings(SecretSource(file=str(file))).read_key() == KEY


Received = Callable[..., requests.Response]


@pytest.fixture
def receiving(
    serve: Serve, flowise: FlowiseStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., str]:
    monkeypatch.setenv("GENOPS_RECEIVER_KEY", KEY)

    def start(**upstreams: str) -> str:
        options = ServiceSettings.of({"receivers": {"upstreams": upstreams}})
        books = Settings(ledger=f"sqlite:///{tmp_path}/books.sqlite3")
        return serve(flowise.url, settings=books, options=options)

    return start


def test_exports_are_taken_from_who_has_the_key(receiving: Callable[..., str]) -> None:
    url = f"{receiving()}/receive/api/public/ingestion"
    batch = {"batch": [{"id": "e", "type": "trace-create", "body": {"id": "t", "input": "Hello"}}]}
    assert requests.post(url, json=batch, auth=("pk", "wrong"), timeout=60).status_code == 401
    assert requests.post(url, json=batch, timeout=60).status_code == 401
    answer = requests.post(url, json=batch, auth=("pk", KEY), timeout=60)
    assert answer.status_code == 207
    assert answer.json()["successes"] == [{"id": "e", "status": 201}]
    corrections = get_runtime().corrections
    assert isinstance(corrections, SharedCorrections)
    kept = [entry for entry in corrections.log.after(0) if entry.kind == "langfuse"]
    assert [json.loads(entry.content) for entry in kept] == [
        {"batch": [{"type": "trace-create", "body": {"id": "t"}}]}
    ]


def test_traces_are_taken_and_nothing_else(receiving: Callable[..., str]) -> None:
    url = f"{receiving()}/receive"
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    assert requests.post(f"{url}/v1/traces", data="{}", headers=headers, timeout=60).status_code == 200
    for path in ("/", "/v1/metrics", "/api/public/projects", "/models/openai/models"):
        assert requests.post(url + path, data="{}", headers=headers, timeout=60).status_code == 404


def test_exports_may_be_compressed_and_nothing_else(
    receiving: Callable[..., str], model_stub: ModelStub
) -> None:
    """A collector between Flowise and the service compresses unless it is told not to."""
    url = f"{receiving(openai=f'{model_stub.url}/v1')}/receive"
    headers = {
        "Authorization": f"Bearer {KEY}",
        "Content-Type": "application/json",
        "Content-Encoding": "gzip",
    }
    small, large = gzip.compress(b"{}"), gzip.compress(bytes(40 * 2**20))
    answers = [
        requests.post(f"{url}/v1/traces", data=data, headers=headers, timeout=60) for data in (small, large)
    ]
    assert [answer.status_code for answer in answers] == [200, 413]
    batch = gzip.compress(b'{"batch": []}')
    ingestion = f"{url}/api/public/ingestion"
    assert requests.post(ingestion, data=batch, headers=headers, timeout=60).status_code == 207
    asked = {**headers, "x-fw-key": KEY}
    answer = requests.post(f"{url}/models/openai/chat/completions", data=small, headers=asked, timeout=60)
    assert (answer.status_code, model_stub.calls) == (415, [])


def test_without_the_table_there_is_nothing(serve: Serve, flowise: FlowiseStandIn) -> None:
    url = f"{serve(flowise.url)}/receive/api/public/ingestion"
    assert requests.post(url, json={}, auth=("pk", KEY), timeout=60).status_code == 404


def test_a_model_is_called_through_it_and_nothing_else(receiving: Callable[..., str]) -> None:
    with ModelStub() as model:
        url = f"{receiving(stub=f'{model.url}/v1')}/receive/models"
        ask = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
        headers = {"x-fw-key": KEY, "x-fw-msg": "m1", "x-fw-chat": "c1", "x-fw-flow": "f1"}
        path = f"{url}/stub/chat/completions"
        assert requests.post(path, json=ask, timeout=60).status_code == 401
        assert requests.post(path, json=ask, headers={"x-fw-key": "wrong"}, timeout=60).status_code == 401
        answer = requests.post(path, json=ask, headers=headers, timeout=60)
        assert answer.status_code == 200
        for other in ("/openai/chat/completions", "/stub/../../etc", "/http://169.254.169.254/"):
            assert requests.post(url + other, json=ask, headers=headers, timeout=60).status_code == 404
        (billed,) = model.calls
    corrections = get_runtime().corrections
    assert isinstance(corrections, SharedCorrections)
    deadline = time.monotonic() + 60
    # What does not get there at once, on a busy machine, gets there later.
    while len(shown := [one.content for one in corrections.log.after(0) if one.kind == "shown"]) < 2:
        assert time.monotonic() < deadline, shown
        time.sleep(0.05)
    (begun, said) = sorted(map(json.loads, shown), key=lambda one: one["calls"][0][1] is not None)
    assert (said["answer"], said["sessions"], said["flow"]) == ("m1", ["m1", "c1"], "f1")
    name, usage, _ = said["calls"][0]
    assert begun == {**said, "calls": [[name, None, True, False]]}
    assert (usage["input_tokens"], usage["output_tokens"]) == (billed.input_tokens, billed.output_tokens)
    assert "Hello" not in "".join(shown)
