"""deploy/: linted, valid for Kubernetes, and true to the service: its routes, its commands, its time to drain."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rgalign.config import load_config
from rgalign.recommender import RecommenderConfig
from rgalign.service.app import ROUTES
from rgalign.service.settings import ServiceSettings

DEPLOY = Path(__file__).parents[1] / "deploy"
KUBERNETES = "1.33"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [each for each in documents("kubernetes.yaml") if each["kind"] == kind]
    return found


def test_the_dockerfile_is_linted() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("needs hadolint (the extra `dev`)")
    done = subprocess.run(["hadolint", str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert "\nUSER 10001\n" in text


def test_kubernetes_takes_every_object() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate (the extra `dev`)").validate
    kinds = [each["kind"] for each in documents("kubernetes.yaml") if validate(each, KUBERNETES, strict=True)]
    assert kinds == ["Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"]
    broken = of_kind("Deployment")
    broken["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(Exception, match="livenesProbe"):
        validate(broken, KUBERNETES, strict=True)


def test_pods_are_probed_drained_and_confined() -> None:
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    bundle, *options = container["args"]
    given = options[1::2]
    assert options[::2] == ["--set"] * len(given)
    of_recommender = [each.removeprefix("recommender.") for each in given if each.startswith("recommender.")]
    recommender = load_config(RecommenderConfig, None, of_recommender)
    service = load_config(ServiceSettings, None, [each for each in given if not each.startswith("recommender.")])
    assert str(recommender.threads) == container["resources"]["limits"]["cpu"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in ROUTES
    assert "ready" in container["readinessProbe"]["httpGet"]["path"]
    assert "live" in container["livenessProbe"]["httpGet"]["path"]  # degraded or not ready is no reason to restart
    before_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > before_s + service.drain_s + 2
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    (mount,) = [each for each in container["volumeMounts"] if bundle.startswith(each["mountPath"] + "/")]
    assert mount["readOnly"]
    (port,) = of_kind("Service")["spec"]["ports"]  # the public listener alone
    assert port["targetPort"] == container["ports"][0]["name"]
    assert service.admin_port is None


def test_ray_takes_the_application() -> None:
    pytest.importorskip("grpc_reflection", reason="Ray Serve is not installed (the extra `ray-serve`)")
    from ray.serve.schema import ServeDeploySchema

    from rgalign.service import ray_serve

    (service,) = documents("kuberay.yaml")
    schema = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = schema.applications
    assert application.import_path == f"{ray_serve.__name__}:{ray_serve.application.__name__}"
    settings = ray_serve.RayServeSettings.model_validate(application.args)
    (deployment,) = application.deployments
    assert deployment.name == ray_serve.NAME
    assert deployment.user_config == {"bundle": str(settings.bundle)}
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) == settings.gpus
    assert workers["maxReplicas"] == settings.max_replicas
