"""kubernetes/: valid by the schemas of Kubernetes, and true of the service and of one another."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from genops_ctx.cli.serve import serve
from genops_ctx.service import create_app
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.service.health import SECONDS
from genops_ctx.service.key_store import MemoryKeys
from genops_ctx.settings import load_settings

from .files import FOLDER
from .test_compose import variables_of_the_reference
from .test_dockerfile import last

FILES = sorted((FOLDER / "kubernetes").glob("*.yaml"))
ALL = [one for path in FILES for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
VERSIONS = ("1.32", "1.34", "1.37")
NAMES = [f"{one['kind']}/{one['metadata']['name']}" for one in ALL]


def one_of(kind: str, name: str = "genops") -> dict[str, Any]:
    (found,) = [one for one in ALL if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return dict(found)


DEPLOYMENT = one_of("Deployment")["spec"]
POD = DEPLOYMENT["template"]["spec"]
(CONTAINER,) = POD["containers"]
ENVIRONMENT = one_of("ConfigMap", "genops-environment")["data"]
SECRETS = one_of("Secret")["stringData"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", ALL, ids=NAMES)
def test_each_is_valid_and_has_no_field_that_there_is_not(manifest: dict[str, Any], version: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_would_tell() -> None:
    wrong = one_of("Service") | {"spec": {"selectors": {}}}
    with pytest.raises(kubernetes_validate.ValidationError, match="selectors"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_there_is_everything_once() -> None:
    assert sorted(NAMES) == [
        "ConfigMap/genops-environment",
        "ConfigMap/genops-settings",
        "Deployment/genops",
        "HorizontalPodAutoscaler/genops",
        "NetworkPolicy/genops",
        "PodDisruptionBudget/genops",
        "Secret/genops",
        "Service/genops",
    ]


def test_selectors_find_the_pods() -> None:
    labels = DEPLOYMENT["template"]["metadata"]["labels"]
    assert DEPLOYMENT["selector"]["matchLabels"] == labels
    assert one_of("Service")["spec"]["selector"] == labels
    assert one_of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert one_of("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    for constraint in POD["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"] == labels
    target = one_of("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    deployment = one_of("Deployment")
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }


def test_ports_are_those_of_the_service() -> None:
    with serve.make_context("serve", list(CONTAINER["args"][1:])) as context:
        params = context.params
    assert (CONTAINER["args"][0], params["host"], params["workers"]) == ("serve", "0.0.0.0", 2)
    assert "command" not in CONTAINER  # the image's entry point
    assert CONTAINER["ports"] == [{"name": "http", "containerPort": params["port"]}]
    assert [port["targetPort"] for port in one_of("Service")["spec"]["ports"]] == ["http"]
    (way_in,) = one_of("NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for port in way_in["ports"]] == ["http"]
    # Flowise sends the receivers what its runs used.
    flowise = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "flowise"}}}
    assert flowise in way_in["from"]


def test_probes_ask_what_the_service_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENOPS_STORE", "memory://")
    paths = set(create_app(base_url="http://flowise:3000", keys=MemoryKeys()).openapi()["paths"])
    probes = {name: CONTAINER[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    asked = {name: probe["httpGet"] for name, probe in probes.items()}
    assert all(probe["port"] == "http" for probe in asked.values())
    assert {probe["path"] for probe in asked.values()} <= paths
    # What it stands on may be away: that is no reason to restart it.
    assert asked["liveness"]["path"] == asked["startup"]["path"] == "/health/live"
    assert asked["readiness"]["path"] == "/health/ready"
    assert all(probe["timeoutSeconds"] > SECONDS for probe in probes.values())


def test_a_pod_has_the_time_to_end_its_calls() -> None:
    settings = one_of("ConfigMap", "genops-settings")["data"]["genops.toml"]
    assert settings == (FOLDER / "genops.toml").read_text(encoding="utf-8")
    drain = ServiceSettings.of(
        load_settings({"GENOPS_CONFIG": str(FOLDER / "genops.toml")}).service
    ).drain_seconds
    program, pause = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"  # which a slim image has
    # Long enough for a failed readiness to be seen, and for routes to be taken away.
    assert int(pause) >= 5
    assert drain >= 103
    assert POD["terminationGracePeriodSeconds"] >= int(pause) + drain + 15
    update = DEPLOYMENT["strategy"]["rollingUpdate"]
    assert (update["maxUnavailable"], update["maxSurge"]) == (0, 1)
    assert "replicas" not in DEPLOYMENT  # to apply it again must not undo the autoscaler


def test_it_is_scaled_by_the_figures_that_are_promised() -> None:
    spec = one_of("HorizontalPodAutoscaler")["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 10)
    targets = {one["resource"]["name"]: one["resource"]["target"] for one in spec["metrics"]}
    assert targets == {
        "cpu": {"type": "Utilization", "averageUtilization": 70},
        "memory": {"type": "Utilization", "averageUtilization": 80},
    }
    # A utilization is one of what is requested.
    assert set(CONTAINER["resources"]["requests"]) == {"cpu", "memory"}
    # One pod may always go, or no node could be emptied.
    assert one_of("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1 < spec["minReplicas"]


def test_it_may_do_nothing_that_it_need_not() -> None:
    pod, container = POD["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert f"{pod['runAsUser']}:{pod['runAsGroup']}" == last("USER")
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
    assert POD["enableServiceLinks"] is False


def test_volumes_are_where_the_settings_say() -> None:
    mounts = {one["name"]: one for one in CONTAINER["volumeMounts"]}
    volumes = {one["name"]: one for one in POD["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert volumes["secrets"]["secret"] == {"secretName": "genops", "defaultMode": 0o440}
    assert pod_group_reads(volumes["secrets"]["secret"]["defaultMode"])
    files = {name: value for name, value in ENVIRONMENT.items() if name.endswith("_FILE")}
    folder = mounts["secrets"]["mountPath"]
    assert set(files.values()) == {f"{folder}/{key}" for key in SECRETS}
    assert all(value == f"{folder}/{name.removesuffix('_FILE').lower()}" for name, value in files.items())
    assert mounts["settings"]["mountPath"] == last("WORKDIR")
    assert volumes["settings"]["configMap"]["name"] == "genops-settings"
    assert CONTAINER["envFrom"] == [{"configMapRef": {"name": "genops-environment"}}]
    assert mounts["tmp"]["mountPath"] == "/tmp"


def pod_group_reads(mode: int) -> bool:
    """Files of a secret are root's; the pod's group reads them, others do not."""
    return bool(mode & 0o040) and not mode & 0o007 and POD["securityContext"]["fsGroup"] == 10001


def test_every_variable_is_one_that_the_service_reads() -> None:
    assert set(ENVIRONMENT) <= variables_of_the_reference()
    assert all(isinstance(value, str) for value in ENVIRONMENT.values())


FILLED = {
    "flowise_api_key": "a-key-of-flowise",
    "genops_store": "redis://redis:6379/0",
    "genops_ledger": "postgresql://genops@postgres:5432/costs",
    "genops_signing_key": "sixteen-characters-at-least",
    "genops_receiver_key": "sixteen-characters-at-least",
}


@pytest.mark.parametrize("name", FILLED)
def test_a_secret_that_is_not_filled_in_is_told_of_at_once(name: str, tmp_path: Path) -> None:
    assert set(SECRETS) == set(FILLED)
    assert set(SECRETS.values()) == {""}  # nothing in the file works
    for key, value in FILLED.items():
        (tmp_path / key).write_text(SECRETS[key] if key == name else value)
    environment = {
        variable: value.replace("/run/secrets/genops", str(tmp_path))
        for variable, value in ENVIRONMENT.items()
    }
    settings = tmp_path / "genops.toml"
    settings.write_text(one_of("ConfigMap", "genops-settings")["data"]["genops.toml"])
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("GENOPS_", "FLOWISE_"))}
    done = subprocess.run(
        [sys.executable, "-m", "genops_ctx", *CONTAINER["args"]],
        env={**clean, **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert f"{name.upper()}_FILE names '{tmp_path}/{name}', which is empty" in done.stderr
