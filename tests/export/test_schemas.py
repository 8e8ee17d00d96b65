"""The recorded files against the schemas that their readers publish."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

_FOLDER: Final = Path(__file__).parent / "goldens"
_KUBERNETES: Final = "1.34"

# What podman-container.unit(5), podman-systemd.unit(5) and systemd.service(5) list of what is used here.
_QUADLET_KEYS: Final = {
    "Unit": {"Description"},
    "Container": {
        *("AddDevice", "ContainerName", "Entrypoint", "Environment", "Exec", "GroupAdd", "HealthCmd", "HealthInterval"),
        *(
            "HealthRetries",
            "HealthStartPeriod",
            "HealthTimeout",
            "Image",
            "NoNewPrivileges",
            "PodmanArgs",
            "PublishPort",
        ),
        *("RunInit", "Secret", "SecurityLabelDisable", "ShmSize", "Volume"),
    },
    "Service": {"Restart", "TimeoutStartSec", "TimeoutStopSec"},
    "Install": {"WantedBy"},
}


@cache
def _compose_schema() -> Validator:
    text = files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text()
    return validator_for(schema := json.loads(text))(schema)


def _goldens(suffix: str) -> list[Path]:
    found = sorted(_FOLDER.glob(f"*{suffix}"))
    assert found
    return found


@pytest.mark.parametrize("path", _goldens(".compose.yaml"), ids=lambda path: path.name)
def test_compose(path: Path) -> None:
    """They keep to the Compose Specification's schema, which refuses unknown keys."""
    document = yaml.safe_load(path.read_text())
    _compose_schema().validate(document)
    document["services"]["engine"]["bogus"] = 1
    assert not _compose_schema().is_valid(document)


@pytest.mark.parametrize("path", _goldens(".rayservice.yaml"), ids=lambda path: path.name)
def test_pods_of_kuberay(path: Path) -> None:
    """Each pod template is a pod to Kubernetes, strictly; KubeRay's own schema is in no package."""
    spec = yaml.safe_load(path.read_text())["spec"]["rayClusterConfig"]
    templates: list[dict[str, Any]] = [
        group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]
    assert len(templates) > 1
    for template in templates:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        kubernetes_validate.validate(pod, _KUBERNETES, strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate({**pod, "spec": {**pod["spec"], "bogus": 1}}, _KUBERNETES, strict=True)


@pytest.mark.parametrize("path", _goldens(".rayservice.yaml"), ids=lambda path: path.name)
def test_service_of_kuberay(path: Path) -> None:
    """What is not a pod has the fields that KubeRay's reference names, and each mounted volume is there."""
    manifest = yaml.safe_load(path.read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    assert set(manifest["spec"]) == {"serveConfigV2", "rayClusterConfig"}
    cluster = manifest["spec"]["rayClusterConfig"]
    assert set(cluster) == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert set(cluster["headGroupSpec"]) == {"rayStartParams", "template"}
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("path", _goldens(".container"), ids=lambda path: path.name)
def test_quadlet(path: Path) -> None:
    """Each line is a comment, a section or a key that the manual lists for its section; the image is given once."""
    section, images = "", 0
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals
            assert value
            assert key in _QUADLET_KEYS[section]
            assert not line.endswith("\\")
            images += key == "Image"
    assert images == 1
