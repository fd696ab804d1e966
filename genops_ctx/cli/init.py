"""``genops-ctx init``: ask a few questions, write the settings file, check the set-up."""

from __future__ import annotations

import os
import shlex
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core.errors import ConfigurationError
from ..environment import variable

if TYPE_CHECKING:
    from ..providers.flowise_validation import ValidationResult

__all__ = ["init"]

PRIVATE = 0o600
SHOWN_FLOWS = 20
_OF_THE_SERVER = ("connection", "api_key", "flows")


@click.command()
@click.option("--url", metavar="URL", help="Flowise's address.")
@click.option("--key", metavar="KEY", help="API key; not written unless --write-key is given or you say so.")
@click.option("--team", metavar="NAME", help="Who the costs belong to, where a call does not say.")
@click.option("--project", metavar="NAME")
@click.option(
    "--file",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default="genops.toml",
    show_default=True,
    help="The settings file; genops.toml is read from the working directory.",
)
@click.option("--write-key", is_flag=True, help="Write the key into the file, which only you can then read.")
@click.option(
    "--yes",
    is_flag=True,
    help="Ask nothing: options, environment and defaults. A file that exists is still kept.",
)
def init(
    url: str | None,
    key: str | None,
    team: str | None,
    project: str | None,
    path: Path,
    write_key: bool,
    yes: bool,
) -> None:
    """Write a settings file for this project, and check the set-up.

    Exit status: 0 written and valid; 1 not written, or the check found an error; 2 a bad value.
    """
    from ..core.attribution import check_attribution
    from ..providers.client import check_api_key
    from ..providers.flowise_validation import validate_flowise_setup
    from ..providers.transport import check_base_url

    _may_write(path, yes)
    environ = os.environ
    url = url or _ask("Flowise's address", environ.get("FLOWISE_BASE_URL") or "http://localhost:3000", yes)
    url = check_base_url(url)
    key = check_api_key(key or variable("FLOWISE_API_KEY", environ) or _ask_key(yes))
    _list_flows(validate_flowise_setup(url, key))
    team = team or _ask("Team that pays (empty for none)", environ.get("GENOPS_TEAM", ""), yes)
    project = project or _ask("Project (empty for none)", environ.get("GENOPS_PROJECT", ""), yes)
    owners = check_attribution({"team": team or None, "project": project or None}, where="init")
    if key and not write_key and not yes:
        write_key = click.confirm(f"Write the API key into {path}?", default=False)
    kept = key if write_key else None
    _write(path, _document(url, kept, owners), private=kept is not None)
    click.echo(f"Written: {path}")
    _say_next(path, url, key, kept)
    _check(path, key)


def _may_write(path: Path, yes: bool) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise click.BadParameter(
            f"{str(path)!r} is not a place for a file: its folder must exist", param_hint="--file"
        )
    if not path.exists():
        return
    if yes:
        raise click.ClickException(
            f"{path} exists and was left as it is; remove it, or write another with --file"
        )
    click.confirm(f"{path} exists. Replace all of it, budgets included?", default=False, abort=True)


def _ask(question: str, default: str, yes: bool) -> str:
    if yes:
        return default
    return str(click.prompt(question, default=default, show_default=bool(default))).strip()


def _ask_key(yes: bool) -> str | None:
    if yes:
        return None
    return str(click.prompt("API key (empty for none)", default="", hide_input=True, show_default=False))


def _list_flows(result: ValidationResult) -> None:
    for issue in result.issues:
        if issue.severity == "error" and issue.component in _OF_THE_SERVER:
            click.echo(f"No flows can be listed: {issue.message}")
            return
    names = result.available_chatflows
    click.echo(f"{len(names)} flow(s) at {result.flowise_url}")
    for name in names[:SHOWN_FLOWS]:
        click.echo(f"  {name}")
    if len(names) > SHOWN_FLOWS:
        click.echo(f"  and {len(names) - SHOWN_FLOWS} more")


def _document(url: str, key: str | None, owners: dict[str, str]) -> str:
    lines = [
        "# Settings of genops_ctx. Environment variables go before this file.",
        "",
        "[flowise]",
        f"base_url = {_quoted(url)}",
    ]
    if key is not None:
        lines += ["# Keep this file out of version control.", f"api_key = {_quoted(key)}"]
    if owners:
        lines += ["", "[attribution]"]
        lines += [f"{name} = {_quoted(value)}" for name, value in owners.items()]
    lines += [
        "",
        "# A budget that every call must keep, for example:",
        "# [[budget]]",
        '# limit = "100/month"',
        '# by = "team"',
        "",
    ]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """A TOML basic string; the values are printable, so only these two signs need care."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _write(path: Path, text: str, *, private: bool) -> None:
    """At once or not at all; a private file is never readable for others, not even for a moment."""
    tomllib.loads(text)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    mode = PRIVATE if private else 0o666
    try:
        opened = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(opened, "w", encoding="utf-8") as file:
                file.write(text)
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
    except OSError as problem:
        raise click.ClickException(
            f"{path} could not be written: {problem.strerror or type(problem).__name__}"
        ) from None


def _say_next(path: Path, url: str, key: str | None, kept: str | None) -> None:
    if kept is not None:
        click.echo("It holds the API key and only you can read it: keep it out of version control.")
    elif key is not None:
        click.echo("The API key was not written. Set it where the program runs:")
        click.echo("  export FLOWISE_API_KEY='your key'")
    if path.absolute() != Path.cwd() / "genops.toml":
        click.echo("To have this file read, set:")
        click.echo(f"  export GENOPS_CONFIG={shlex.quote(str(path.absolute()))}")
    if os.environ.get("FLOWISE_BASE_URL", url).strip().rstrip("/") != url:
        click.echo("FLOWISE_BASE_URL is set to another address, and goes before the file: unset it.")


def _check(path: Path, key: str | None) -> None:
    """Check with the file that was written, whatever is set up in this process."""
    from ..providers.flowise_validation import print_validation_result, validate_flowise_setup
    from ..runtime import Runtime, reset_runtime
    from ..settings import load_settings

    try:
        reset_runtime(Runtime(load_settings({**os.environ, "GENOPS_CONFIG": str(path)})))
    except ConfigurationError as problem:
        raise click.ClickException(f"{path} is written, but cannot be used: {problem}") from None
    result = validate_flowise_setup(api_key=key)
    print_validation_result(result)
    if not result.is_valid:
        raise SystemExit(1)
