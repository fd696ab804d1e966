"""What a contributor runs: ``nox`` for all of it, ``nox -s lint`` for one, ``nox -l`` for the list."""

from __future__ import annotations

import nox

PYTHONS = ["3.11", "3.12", "3.13"]

# floor 0 and the prices: every line and both ways of every branch
FULLY_COVERED = "genops_ctx/core/*,genops_ctx/pricing/*"

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "typing", "tests"]
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, on each Python that is here. Arguments after -- go to pytest."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and layout; ``nox -s lint -- --fix`` repairs what can be repaired."""
    session.install("ruff")
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]), ".")


@nox.session
def typing(session: nox.Session) -> None:
    """Types of the package, and of the examples of its use in tests/typing."""
    session.install("-e", ".[test]")
    session.run("mypy", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """What the tests reach; core and pricing must be reached wholly, branches too."""
    session.install("-e", ".[test]")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report", "--skip-covered")
    session.run("coverage", "report", f"--include={FULLY_COVERED}", "--fail-under=100")


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks alone, with their tables."""
    session.install("-e", ".[test]")
    session.run("pytest", "tests/bench", "-o", "addopts=", "-s", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Every code block of the README and of docs/, run as a test."""
    session.install("-e", ".[test]")
    session.run("pytest", "README.md", "docs", *session.posargs)
