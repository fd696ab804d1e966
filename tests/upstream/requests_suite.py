"""The test suite of ``requests`` itself, from its source distribution, run with and without our hooks.

``python tests/upstream/requests_suite.py`` prints what differs. The distribution and an environment with
what its tests need are got by pip the first time (a minute), and kept in ``$GENOPS_TEST_CACHE``, else in
``~/.cache/genops_ctx-tests``; nothing of them is in the checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
NEEDED = ("pytest", "pytest-httpbin==2.1.0", "httpbin~=0.10.0", "pytest-mock", "trustme", "PySocks")

Outcomes = dict[str, str]


class Unavailable(Exception):
    """The suite cannot be got here; the message says why."""


class Suite:
    """The suite of one version of ``requests``, with an environment to run it in."""

    def __init__(self, folder: Path, wanted: str) -> None:
        self.folder = folder / f"requests-{wanted}-py{sys.version_info[0]}.{sys.version_info[1]}"
        self._wanted = wanted
        self._source = self.folder / f"requests-{wanted}"
        self._environment = self.folder / "environment"
        self._python = self._environment / "bin" / "python"

    def get(self) -> None:
        """Have it here. Raises :class:`Unavailable`, where there is no package index say."""
        if (self.folder / "complete").exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        _run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-binary",
                ":all:",
                "--no-deps",
                "--dest",
                ".",
                f"requests=={self._wanted}",
            ],
            self.folder,
        )
        with tarfile.open(next(self.folder.glob("requests-*.tar.gz"))) as archive:
            archive.extractall(self.folder, filter="data")
        _run([sys.executable, "-m", "venv", str(self._environment)], self.folder)
        ours = [Requirement(line) for line in requires("genops_ctx") or ()]
        plain = [str(one) for one in ours if one.marker is None or one.marker.evaluate({"extra": ""})]
        _run(
            [str(self._python), "-m", "pip", "install", *NEEDED, *plain, f"requests=={self._wanted}"],
            self.folder,
        )
        (self.folder / "complete").touch()

    def run(self, *, governed: bool) -> Outcomes:
        """Each test with how it ended."""
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            plugin = ["-p", "govern_all"] if governed else []
            environment = {
                "PATH": os.environ.get("PATH", ""),
                "HOME": folder,
                "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(HERE)]),
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "GENOPS_LEDGER": "memory://",
            }
            done = subprocess.run(
                [
                    str(self._python),
                    "-m",
                    "pytest",
                    "-q",
                    "-p",
                    "pytest_httpbin.plugin",
                    "-p",
                    "pytest_mock",
                    *plugin,
                    "-p",
                    "no:cacheprovider",
                    "tests",
                    f"--junitxml={report}",
                ],
                cwd=self._source,
                env=environment,
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
            if not report.exists():
                raise Unavailable(f"the suite did not run: {(done.stdout + done.stderr)[-2000:]}")
            return {_name(case): _ended(case) for case in ElementTree.parse(report).iter("testcase")}


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname')}::{case.get('name')}"


def _ended(case: ElementTree.Element) -> str:
    return next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise Unavailable(f"{command[1:4]} failed: {done.stderr.strip()[-500:]}")


def suite() -> Suite:
    """The suite of the version that is installed here, got where it is not there yet."""
    folder = os.environ.get("GENOPS_TEST_CACHE") or str(Path.home() / ".cache" / "genops_ctx-tests")
    found = Suite(Path(folder), version("requests"))
    found.get()
    return found


def both(theirs: Suite) -> tuple[Outcomes, Outcomes]:
    """How it ends without governance, and with it, at the same time."""
    with ThreadPoolExecutor(1) as pool:
        bare = pool.submit(theirs.run, governed=False)
        governed = theirs.run(governed=True)
        return bare.result(), governed


def changes(bare: Outcomes, governed: Outcomes) -> dict[str, tuple[str, str]]:
    """The tests that end otherwise; where they need a network that is not here, they fail in both."""
    ended = {name: (bare.get(name, "not run"), governed.get(name, "not run")) for name in bare | governed}
    return {name: pair for name, pair in ended.items() if pair[0] != pair[1]}


def main() -> int:
    bare, governed = both(suite())
    changed = changes(bare, governed)
    for name, (before, after) in changed.items():
        print(f"{name}: {before}, with governance {after}")
    passed = sum(ended == "passed" for ended in governed.values())
    print(f"{len(governed)} tests, {passed} passed, {len(changed)} changed by governance")
    return bool(changed)


if __name__ == "__main__":
    raise SystemExit(main())
