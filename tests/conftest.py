"""What all tests share: how hard Hypothesis tries, and a runtime of their own for each.

``dev`` (the default) tries new examples each run and remembers failures; ``ci`` (chosen where the
variable CI is set) tries the same ones every time, so that a red run can be repeated. Another is
chosen with ``pytest --hypothesis-profile=NAME``.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# on a busy machine one slow example says nothing about the code, nor do many
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True, scope="session")
def strange_settings_removed(tmp_path_factory):
    """The variables and files that the package reads: a developer's own must not change what a test sees."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            patch.setenv(folder, str(tmp_path_factory.mktemp(folder.lower())))
        for name in tuple(os.environ):
            if name.startswith(("FLOWISE_", "GENOPS_")) and name not in KEPT:
                patch.delenv(name)
        yield


KEPT = frozenset({"FLOWISE_HOME"})
"""Where tests/real keep the Flowise that they install."""


@pytest.fixture(autouse=True)
def governed_in_memory(genops_runtime):
    """Nothing that one test books or configures is seen by the next."""
    return genops_runtime


@pytest.fixture
def empty_directory(tmp_path, monkeypatch):
    """Run where there is no settings file."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
