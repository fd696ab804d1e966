"""The installer believes only what works, and removes only what it made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .flowise_install import Installation, InstallError, _clear, _lock, default_home, find

PROJECT = Path(__file__).parents[2]


def half_finished(home: Path) -> Installation:
    """npm was cut short: packages without the file that npm writes last, and no Node that runs."""
    installation = Installation(home)
    (installation.modules / "flowise").mkdir(parents=True)
    (installation.app / "package.json").write_text(json.dumps({"dependencies": {"flowise": "3.1.4"}}))
    installation.node.parent.mkdir(parents=True)
    installation.node.symlink_to(sys.executable)
    return installation


def test_the_home_is_configurable(tmp_path: Path) -> None:
    assert default_home({"FLOWISE_HOME": str(tmp_path)}) == tmp_path
    assert default_home({}).name == "flowise-3.1.4"
    assert default_home({"FLOWISE_HOME": ""}) == default_home({})


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    assert find(tmp_path / "absent") is None
    assert not (tmp_path / "absent").exists()


def test_a_half_finished_installation_is_not_believed_and_is_cleared(tmp_path: Path) -> None:
    installation = half_finished(tmp_path)
    assert find(tmp_path) is None
    _clear(installation)
    assert not installation.app.exists()
    assert not installation.node.exists()


def test_a_package_that_does_not_run_is_not_believed(tmp_path: Path) -> None:
    installation = half_finished(tmp_path)
    (installation.modules / ".package-lock.json").write_text("{}")
    assert find(tmp_path) is None  # the "node" here is a Python, which rejects the probe


def test_the_marker_of_another_release_is_not_believed(tmp_path: Path) -> None:
    installation = half_finished(tmp_path)
    installation.marker.write_text(json.dumps({"flowise": "2.0.0"}))
    assert find(tmp_path) is None


@pytest.mark.parametrize("damaged", ["", "[]", "{"])
def test_a_damaged_marker_is_not_believed(tmp_path: Path, damaged: str) -> None:
    half_finished(tmp_path).marker.write_text(damaged)
    assert find(tmp_path) is None


def test_somebody_elses_files_are_refused_and_kept(tmp_path: Path) -> None:
    theirs = tmp_path / "app" / "package.json"
    theirs.parent.mkdir()
    theirs.write_text(json.dumps({"dependencies": {"express": "5"}}))
    with pytest.raises(InstallError, match="FLOWISE_HOME"):
        _clear(Installation(tmp_path))
    assert theirs.exists()


def test_a_second_installer_waits_for_the_first(tmp_path: Path) -> None:
    home = tmp_path / "flowise"
    script = (
        "from pathlib import Path; import sys; from tests.real.flowise_install import _lock\n"
        "with _lock(Path(sys.argv[1])): print('in')"
    )
    command = [sys.executable, "-c", script, str(home)]
    with _lock(home):
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(1)
    printed, _ = second.communicate(timeout=120)
    assert (printed, second.returncode) == ("in\n", 0)
