"""What the documents claim, where a block of Python cannot prove it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import genops_ctx
from genops_ctx.core.attribution import ATTRIBUTION_KEYS
from genops_ctx.core.errors import GovernanceError
from genops_ctx.core.outcomes import BOOKINGS
from genops_ctx.core.records import CostSource, Exactness
from genops_ctx.environment import SECRETS
from genops_ctx.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def section(title: str, text: str = REFERENCE) -> str:
    """A section of the reference with those below it."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found is not None, title
    return found[1]


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


def test_every_public_name_is_in_the_reference() -> None:
    names = section("Names in `genops_ctx`")
    listed = set(re.findall(r"^\| `(\w+)", names, re.M)) | set(re.findall(r", `(\w+)` \|", names))
    assert set(genops_ctx.__all__) <= listed


def test_every_parameter_of_a_budget_is_in_the_reference() -> None:
    parameters = [name for name, item in genops_ctx.Budget.__dataclass_fields__.items() if item.init]
    assert re.findall(r"^\| `(\w+)` \|", section("Budgets"), re.M) == parameters


def test_every_variable_that_is_read_is_in_the_reference() -> None:
    """Those read by name; the attribution keys make the rest."""
    source = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("genops_ctx/**/*.py"))
    named = set(re.findall(r'"((?:GENOPS|FLOWISE|REDIS)_[A-Z_]+)"', source))
    constants = {name for name in named if re.search(rf"^{name}\b", source, re.M)}
    wire = {"FLOWISE_CREDENTIAL_ID"}  # a key of Flowise's own, in its flow data
    read = named - constants - wire | {f"GENOPS_{key.upper()}" for key in ATTRIBUTION_KEYS}
    assert set(re.findall(r"`((?:GENOPS|FLOWISE|REDIS)_[A-Z_]+)`", section("Environment"))) == read


def test_every_secret_that_may_be_in_a_file_is_in_the_reference() -> None:
    sentence = re.search(r"It is there for (.*?):", section("Environment"), re.S)
    assert sentence is not None
    assert sorted(re.findall(r"`(\w+)`", sentence[1])) == sorted(SECRETS)


def test_the_settings_file_of_the_reference_is_one(tmp_path: Path) -> None:
    shown = re.search(r"```toml\n(.*?)```", section("Settings file"), re.S)
    assert shown is not None
    (tmp_path / "genops.toml").write_text(shown[1], encoding="utf-8")
    settings = load_settings({}, tmp_path)
    assert settings.base_url == "https://flowise.example.com"
    assert settings.attribution == {"team": "help", "environment": "production"}
    (budget,) = settings.budgets
    assert (budget.limit, str(budget.window), budget.by) == (100, "month", ("team",))


def test_the_tree_of_errors_is_the_one_there_is() -> None:
    shown = re.search(r"```text\n(.*?)```", section("Errors"), re.S)
    assert shown is not None
    parents: list[str] = []
    drawn = set()
    for line in shown[1].splitlines():
        found = re.match(r"([│├└─ ]*)(\w+)", line)
        assert found is not None, line
        depth = len(found[1]) // 4
        parents[depth:] = [found[2]]
        drawn.add((found[2], parents[depth - 1] if depth else ""))

    homes = ("genops_ctx.core.errors", "genops_ctx.providers.errors")
    for module in homes:
        importlib.import_module(module)

    def below(kind: type[Exception], parent: str) -> set[tuple[str, str]]:
        ours = [child for child in kind.__subclasses__() if child.__module__ in homes]
        return {(kind.__name__, parent)}.union(*(below(child, kind.__name__) for child in ours))

    assert drawn == below(GovernanceError, "")


def test_the_table_of_outcomes_is_the_one_that_is_booked_by() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\w+)[^|]*\|$", section("What is booked"), re.M)
    assert dict(rows) == {str(outcome): str(booking) for outcome, booking in BOOKINGS.items()}


def test_every_exactness_and_source_is_explained() -> None:
    named = set(re.findall(r"`(\w+)`", section("Exactness and source")))
    assert {*map(str, Exactness), *map(str, CostSource)} <= named


def test_the_test_file_of_the_how_to_passes(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "how-to.md").read_text(encoding="utf-8")
    shown = re.search(r"```python\n(# test_support\.py\n.*?)```", text, re.S)
    assert shown is not None
    (tmp_path / "test_support.py").write_text(shown[1], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if not key.startswith(("GENOPS_", "FLOWISE_"))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_the_readme_gives_two_commands_for_a_fresh_machine() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^```\n(.*?)\n```$", section("Set up", text), re.M | re.S) == [
        "pip install -e . && genops-ctx demo",
        "pip install -e '.[test]' && pytest",
    ]


def test_the_changelog_has_a_place_for_the_next_line() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[Unreleased\]$", text, re.M)
