"""The pytest plugin: its fixtures, and that loading it costs a stranger's test run nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import requests

from genops_ctx import testing


def test_the_fixtures_are_ready_to_use(flowise_stand_in, model_stub, fixed_clock):
    url = f"{flowise_stand_in.url}/api/v1/prediction/{flowise_stand_in.flow_id('customer-support-v1')}"
    assert requests.post(url, json={"question": "Hello"}, timeout=60).status_code == 200
    assert len(flowise_stand_in.billed) == 1
    assert requests.get(f"{model_stub.url}/v1/models", timeout=60).status_code == 200
    assert fixed_clock() == 1_767_225_600.0


def test_a_fixture_starts_afresh(flowise_stand_in):
    assert flowise_stand_in.billed == []


def test_loading_the_plugin_imports_nothing_but_pytest():
    code = (
        "import sys, pytest\n"
        "before = set(sys.modules)\n"
        "import genops_ctx.testing.plugin\n"
        "new = {name for name in set(sys.modules) - before}\n"
        "print(sorted(name for name in new if not name.startswith('genops_ctx')))\n"
        "print(sorted(name for name in new if name.startswith('genops_ctx.testing.')))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["[]", "['genops_ctx.testing.plugin']"]


def test_every_public_name_loads():
    assert sorted(testing.__all__, key=str.lower) == sorted(set(testing.__all__), key=str.lower)
    for name in testing.__all__:
        assert getattr(testing, name) is not None
        assert name in dir(testing)


def test_a_developer_s_own_prices_reach_no_test(tmp_path):
    """A price file, fetched data that is broken, and a catalogue that has read them already."""
    prices, data = tmp_path / "prices.toml", tmp_path / "prices.json"
    prices.write_text('[[price]]\nprovider = "openai"\nmodel = "*"\ninput = 999\noutput = 999\n')
    data.write_text("{")
    (tmp_path / "test_it.py").write_text(
        "from genops_ctx import Usage\n"
        "from genops_ctx.pricing.catalogue import default_catalogue\n"
        "CALL = Usage('openai', 'gpt-4o-mini', input_tokens=1)\n"
        "assert default_catalogue().nanos(CALL, 1.79e9) > 150\n"
        "def test_it(genops_runtime):\n"
        "    assert genops_runtime.prices.quote(CALL, 1.79e9).nanos == 150\n"
        "    assert default_catalogue().nanos(CALL, 1.79e9) == 150\n"
    )
    environment = os.environ | {"GENOPS_PRICES": str(prices), "GENOPS_PRICE_DATA": str(data)}
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    out = subprocess.run(run, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "1 passed" in out.stdout, out.stdout + out.stderr
