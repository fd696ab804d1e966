"""The house as the tests walk it: floors, circles, what an import loads, public names, sizes."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "genops_ctx"

FLOORS = {
    # 0: the rules
    "core": 0,
    "_version": 0,
    # 1: the outside world
    "database": 1,
    "stores": 1,
    "ledger": 1,
    "pricing": 1,
    "wire": 1,
    # 2: what is built once
    "abandoned": 2,
    "booked": 2,
    "books": 2,
    "generations": 2,
    "gathering": 2,
    "group_commit": 2,
    "handoff": 2,
    "holding": 2,
    "outbox": 2,
    "recovery": 2,
    "controls": 2,
    "corrections": 2,
    "decisions": 2,
    "evidence": 2,
    "inflight": 2,
    "runtime": 2,
    "settings": 2,
    "settled": 2,
    "environment": 2,
    "telemetry": 2,
    "unwritten": 2,
    # 3: options of entry points
    "resilience": 3,
    # 4: entry points; the front door names them
    "attempt": 4,
    "decorator": 4,
    "exporting": 4,
    "metered": 4,
    "nesting": 4,
    "result_metering": 4,
    "providers": 4,
    "receivers": 4,
    "sending": 4,
    "instrument": 4,
    "__init__": 4,
    # 5: applications
    "cli": 5,
    "service": 5,
    "testing": 5,
    "__main__": 5,
}
LONGEST_MODULE = 420
SLOW_IMPORTS = ("asyncio", "wrapt", "requests", "click", "rich", "opentelemetry", "genai_prices")


@dataclass(frozen=True)
class Import:
    """One import statement's target, as a full dotted name."""

    target: str
    line: int
    type_only: bool
    """under ``if TYPE_CHECKING``"""
    inside: bool
    """in a function, so run when that is called"""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    """The name of FLOORS that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(module: str, source: str, *, package: bool, known: set[str]) -> list[Import]:
    """Every import of a module, at any depth, relative ones resolved."""
    found: list[Import] = []
    home = module.split(".") if package else module.split(".")[:-1]

    def targets(node: ast.Import | ast.ImportFrom) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if node.level:
            base = home[: len(home) - (node.level - 1)]
            base = base + (node.module.split(".") if node.module else [])
        else:
            base = (node.module or "").split(".")
        name = ".".join(base)
        return [f"{name}.{alias.name}" if f"{name}.{alias.name}" in known else name for alias in node.names]

    def walk(node: ast.AST, type_only: bool, inside: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.extend(
                Import(name, node.lineno, type_only, inside) for name in dict.fromkeys(targets(node))
            )
            return
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                walk(child, True, inside)
            for child in node.orelse:
                walk(child, type_only, inside)
            return
        for child in ast.iter_child_nodes(node):
            walk(child, type_only, inside)

    walk(ast.parse(source), False, False)
    return found


def imports(module: str) -> list[Import]:
    path = MODULES[module]
    return imports_of(module, path.read_text(), package=path.name == "__init__.py", known=set(MODULES))


def circle(edges: dict[str, set[str]]) -> list[str] | None:
    """Some circle of a directed graph, or None."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str] | None:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return None
        for target in sorted(edges.get(node, ())):
            found = visit(target, [*trail, node])
            if found:
                return found
        done.add(node)
        return None

    for start in sorted(edges):
        found = visit(start, [])
        if found:
            return found
    return None


def test_the_walk_sees_every_kind_of_import() -> None:
    source = (
        "import a.b\n"
        "from . import sibling, name\n"
        "from ..other import thing\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from .types_only import T\n"
        "else:\n"
        "    import at_run_time\n"
        "class C:\n"
        "    def f(self):\n"
        "        from pkg.room.deep import x\n"
    )
    found = imports_of("pkg.room.mod", source, package=False, known={"pkg.room.sibling", "pkg.room"})
    assert [(i.target, i.type_only, i.inside) for i in found] == [
        ("a.b", False, False),
        ("pkg.room.sibling", False, False),
        ("pkg.room", False, False),
        ("pkg.other", False, False),
        ("typing", False, False),
        ("pkg.room.types_only", True, False),
        ("at_run_time", False, False),
        ("pkg.room.deep", False, True),
    ]
    package = imports_of("pkg.room", "from .mod import x\nfrom .. import y\n", package=True, known=set())
    assert [i.target for i in package] == ["pkg.room.mod", "pkg"]


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) is None


def test_every_module_has_a_floor() -> None:
    unlisted = sorted({room(module) for module in MODULES} - FLOORS.keys())
    assert not unlisted, (
        f"no floor is known for genops_ctx/{', genops_ctx/'.join(unlisted)}: "
        "give each its floor in tests/test_house.py, or move it into a room that has one"
    )


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_or_sideways(module: str) -> None:
    mine = FLOORS[room(module)]
    wrong = [
        f"line {found.line}: {found.target}"
        for found in imports(module)
        if found.target.split(".")[0] == "genops_ctx" and FLOORS[room(found.target)] > mine
    ]
    assert not wrong, f"{module} (floor {mine}) imports from a floor above it: {wrong}"


def test_no_circle_of_modules() -> None:
    edges = {
        module: {
            found.target
            for found in imports(module)
            if found.target in MODULES and not found.type_only and not found.inside
        }
        for module in MODULES
    }
    assert circle(edges) is None


def test_core_imports_the_standard_library_and_itself() -> None:
    wrong = [
        f"{module}:{found.line} {found.target}"
        for module in MODULES
        if room(module) == "core"
        for found in imports(module)
        if found.target.split(".")[0] not in sys.stdlib_module_names
        and not found.target.startswith("genops_ctx.core")
    ]
    assert not wrong


def test_core_has_no_clock_and_no_input_or_output() -> None:
    outside = {
        "time",
        "socket",
        "ssl",
        "subprocess",
        "pathlib",
        "sqlite3",
        "urllib.request",
        "http.client",
        "io",
    }
    wrong = [
        f"{module}:{found.line} {found.target}"
        for module in MODULES
        if room(module) == "core"
        for found in imports(module)
        if found.target in outside
    ]
    assert not wrong
    for module, path in MODULES.items():
        if room(module) == "core":
            clock_or_file = r"\bdatetime\.(now|utcnow|today)\(|(?<![.\w])(?<!def )open\("
            assert not re.search(clock_or_file, path.read_text()), module


def in_fresh_interpreter(code: str) -> object:
    """What ``code`` prints as JSON, run by an interpreter that has loaded nothing yet."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_the_package_loads_nothing_slow() -> None:
    loaded = in_fresh_interpreter("import sys, json, genops_ctx; print(json.dumps(sorted(sys.modules)))")
    assert isinstance(loaded, list)
    roots = {name.split(".")[0] for name in loaded}
    assert "genops_ctx" in roots
    assert not roots & set(SLOW_IMPORTS)


def test_opening_a_context_loads_nothing_slow() -> None:
    loaded = in_fresh_interpreter(
        "import sys, json\n"
        "from genops_ctx.core.context import governance_context\n"
        "with governance_context('job', team='a'): pass\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert isinstance(loaded, list)
    assert not {name.split(".")[0] for name in loaded} & set(SLOW_IMPORTS)


def test_public_names_resolve_and_are_listed() -> None:
    genops_ctx = importlib.import_module("genops_ctx")
    names = genops_ctx.__all__
    assert len(names) == len(set(names))
    assert {
        "governed",
        "governance_context",
        "current_context",
        "metered_call",
        "record_usage",
        "Budget",
        "configure",
        "Usage",
        "Charge",
        "GovernanceContext",
        "GovernanceError",
        "BudgetExceeded",
        "instrument_flowise",
    } <= set(names)
    for name in names:
        assert getattr(genops_ctx, name) is not None
        assert name in dir(genops_ctx)


def test_each_public_name_resolves_first() -> None:
    """None of them needs another to have been loaded before."""
    genops_ctx = importlib.import_module("genops_ctx")
    code = (
        "import json, sys\n"
        "import genops_ctx\n"
        "eager = set(vars(genops_ctx))\n"
        "for name in genops_ctx.__all__:\n"
        "    for key in [k for k in sys.modules if k.startswith('genops_ctx.')]: del sys.modules[key]\n"
        "    if name not in eager: vars(genops_ctx).pop(name, None)\n"
        "    assert getattr(genops_ctx, name) is not None, name\n"
        "print(json.dumps(len(genops_ctx.__all__)))"
    )
    assert in_fresh_interpreter(code) == len(genops_ctx.__all__)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    genops_ctx = importlib.import_module("genops_ctx")
    with pytest.raises(AttributeError, match="no_such_name"):
        genops_ctx.no_such_name
    with pytest.raises(ImportError, match="no_such_name"):
        exec("from genops_ctx import no_such_name", {})


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_names_in_all_exist(module: str) -> None:
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("genops_ctx"):
            raise
        pytest.skip(f"needs an extra: {missing.name}")
    for name in getattr(loaded, "__all__", ()):
        assert hasattr(loaded, name), f"{module}.__all__ names {name}, which it does not have"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_too_long(module: str) -> None:
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= LONGEST_MODULE, f"{module} has {lines} lines: it has more than one subject"


def project_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:  # an unpacked source archive
        paths = [path for path in ROOT.rglob("*") if "__pycache__" not in path.parts]
    return [path for path in paths if path.is_file()]


def test_nothing_names_a_path_of_the_machine_it_was_written_on() -> None:
    elsewhere = re.compile(rb"\bshar" + rb"ed/|(?<![\w.])/wor" + rb"k(?![\w-])")
    found = [
        f"{path.relative_to(ROOT)}: {match.group().decode()}"
        for path in project_files()
        if (match := elsewhere.search(path.read_bytes()))
    ]
    assert not found
