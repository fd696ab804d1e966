"""docker-compose.yml: valid by the specification, and true of the service, of Flowise and of itself."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genops_ctx.cli.serve import serve
from genops_ctx.environment import SECRETS
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.settings import load_settings
from tests.real.flowise_install import VERSION

from .files import FOLDER, ROOT, read_yaml

COMPOSE = read_yaml("docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
GENOPS = SERVICES["genops"]


def seconds(text: str) -> int:
    found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", text)
    assert found is not None, text
    return 60 * int(found[1] or 0) + int(found[2] or 0)


def variables_of_the_reference() -> set[str]:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    environment = text.partition("\n## Environment\n")[2].partition("\n## ")[0]
    return set(re.findall(r"`((?:GENOPS|FLOWISE|REDIS|OTEL)_[A-Z_]+)`", environment)) | {
        f"{name}_FILE" for name in SECRETS
    }


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.admin.yml"])
def test_it_is_valid_by_the_compose_specification(name: str) -> None:
    """The specification's own schema, which check-jsonschema carries."""
    words = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FOLDER / name)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout


def test_only_the_service_is_published_and_only_here() -> None:
    published = {name: one["ports"] for name, one in SERVICES.items() if "ports" in one}
    assert published == {"genops": ["127.0.0.1:8000:8000"]}
    assert COMPOSE["networks"]["back"]["internal"] is True
    assert SERVICES["redis"]["networks"] == SERVICES["postgres"]["networks"] == ["back"]
    assert "front" not in SERVICES["flowise"]["networks"]
    assert {network for one in SERVICES.values() for network in one["networks"]} == set(COMPOSE["networks"])
    admin = read_yaml("docker-compose.admin.yml")["services"]
    assert admin == {"flowise": {"ports": ["127.0.0.1:3000:3000"]}}


@pytest.mark.parametrize("name", SERVICES)
def test_each_is_contained_and_of_one_version(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is (name != "flowise")
    assert service["restart"] == "unless-stopped"
    assert "privileged" not in service
    if "build" not in service:
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+(\.\d+)?(-\w+)?", service["image"])


def test_flowise_is_the_one_that_the_tests_run() -> None:
    assert SERVICES["flowise"]["image"] == f"flowiseai/flowise:{VERSION}"


def test_the_dockerfile_is_found_from_the_context() -> None:
    build = GENOPS["build"]
    assert ((FOLDER / build["context"]).resolve() / build["dockerfile"]).samefile(FOLDER / "Dockerfile")


def test_what_waits_waits_for_a_healthcheck() -> None:
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[other]
    assert set(GENOPS["depends_on"]) == {"redis", "postgres", "flowise"}
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert "HEALTHCHECK" in dockerfile  # its own: of the image


def test_the_command_is_one_that_serve_takes() -> None:
    assert GENOPS["command"][0] == "serve"
    with serve.make_context("serve", list(GENOPS["command"][1:])) as context:
        assert context.params["workers"] == 4
        assert context.params["host"] == "0.0.0.0"
        assert context.params["port"] == 8000


def test_every_variable_is_one_that_the_service_reads() -> None:
    assert set(GENOPS["environment"]) <= variables_of_the_reference()
    assert (
        GENOPS["environment"]["FLOWISE_BASE_URL"]
        == f"http://flowise:{SERVICES['flowise']['environment']['PORT']}"
    )


def test_secrets_are_in_files_and_nowhere_else() -> None:
    for name, service in SERVICES.items():
        files = {value for value in service.get("environment", {}).values() if "/run/secrets/" in value}
        text = (
            str(service.get("command", ""))
            + str(service.get("healthcheck", ""))
            + ((FOLDER / f"{name}.conf").read_text() if (FOLDER / f"{name}.conf").exists() else "")
        )
        files |= set(re.findall(r"/run/secrets/\w+", text))
        assert files == {f"/run/secrets/{secret}" for secret in service.get("secrets", ())}, name
        for variable, value in service.get("environment", {}).items():
            if re.search("KEY|PASSWORD|SECRET|TOKEN|_STORE|_LEDGER$", variable):
                assert variable.endswith("_FILE"), variable
                assert value.startswith("/run/secrets/")
    used = {secret for one in SERVICES.values() for secret in one.get("secrets", ())}
    assert used == set(COMPOSE["secrets"])
    assert all(one == {"file": f"./secrets/{name}"} for name, one in COMPOSE["secrets"].items())
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "examples/deploy/secrets/" in ignored


def test_the_script_makes_every_secret_but_the_one_of_flowise(tmp_path: Path) -> None:
    script = tmp_path / "secrets.sh"
    shutil.copy(FOLDER / "secrets.sh", script)

    def made() -> dict[str, str]:
        subprocess.run(["sh", script], check=True, timeout=120, cwd="/")
        return {path.name: path.read_text().strip() for path in (tmp_path / "secrets").iterdir()}

    first = made()
    assert set(first) == set(COMPOSE["secrets"]) - {"flowise_api_key"}
    assert made() == first  # what is there is kept
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    # 24 random bytes each, and each password in the two files that need it
    redis, postgres = first["redis_auth"].removeprefix("requirepass "), first["postgres_password"]
    assert first["genops_store"] == f"redis://:{redis}@redis:6379/0"
    database = SERVICES["postgres"]["environment"]
    assert first["genops_ledger"] == (
        f"postgresql://{database['POSTGRES_USER']}:{postgres}@postgres:5432/{database['POSTGRES_DB']}"
    )
    random = [redis, postgres, first["genops_signing_key"], first["genops_receiver_key"]]
    assert all(re.fullmatch("[0-9a-f]{48}", one) for one in random)
    assert len(set(random)) == 4
    shutil.rmtree(tmp_path / "secrets")
    assert made() != first


def test_files_that_are_mounted_are_there() -> None:
    mounted = {config["source"] for one in SERVICES.values() for config in one.get("configs", ())}
    assert mounted == set(COMPOSE["configs"])
    assert all((FOLDER / one["file"]).is_file() for one in COMPOSE["configs"].values())
    named = {volume.partition(":")[0] for one in SERVICES.values() for volume in one.get("volumes", ())}
    assert named == set(COMPOSE["volumes"])


def test_stops_wait_longer_than_the_calls_in_flight() -> None:
    """Flowise tries a model that fails for as long as 103 s."""
    drain = ServiceSettings.of(
        load_settings({"GENOPS_CONFIG": str(FOLDER / "genops.toml")}).service
    ).drain_seconds
    assert drain >= 103
    assert seconds(GENOPS["stop_grace_period"]) >= drain + 15
    assert seconds(SERVICES["flowise"]["stop_grace_period"]) >= seconds(GENOPS["stop_grace_period"])


# Of otelcol, the distribution that the image has: what its manifest of 0.159 lists, of each kind.
COLLECTOR = {
    "receivers": {"otlp", "hostmetrics", "jaeger", "kafka", "prometheus", "zipkin", "nop"},
    "processors": {
        *("batch", "memory_limiter", "attributes", "resource", "span", "probabilistic_sampler", "filter"),
    },
    "exporters": {
        *(
            "debug",
            "nop",
            "otlp",
            "otlphttp",
            "file",
            "kafka",
            "prometheus",
            "prometheusremotewrite",
            "zipkin",
        ),
    },
    "extensions": {"health_check", "pprof", "zpages"},
}


def test_the_collector_is_made_of_parts_that_its_image_has() -> None:
    config = read_yaml("collector.yaml")
    assert set(config) <= {*COLLECTOR, "connectors", "service"}
    for kind, known in COLLECTOR.items():
        assert {name.partition("/")[0] for name in config.get(kind, {})} <= known
    pipelines = config["service"]["pipelines"]
    assert set(pipelines) == {"traces", "metrics"}
    for pipeline in pipelines.values():
        assert set(pipeline) == {"receivers", "processors", "exporters"}
        for kind, names in pipeline.items():
            assert set(names) <= set(config[kind])
        assert pipeline["processors"][0] == "memory_limiter"  # it refuses before anything is held
    protocols = config["receivers"]["otlp"]["protocols"]
    # 4317 is gRPC, 4318 is HTTP; not loopback, which in a container is nobody else's.
    assert protocols == {"grpc": {"endpoint": "0.0.0.0:4317"}, "http": {"endpoint": "0.0.0.0:4318"}}
