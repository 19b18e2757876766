"""deploy/kuberay: what is shipped is valid, holds its config's plan and keeps no secret; what is broken on purpose is found."""

from __future__ import annotations

import copy
import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml

from actors.placement import plan
from tests.deploy import manifests
from tests.deploy.kustomize import Object, render
from videostr.config.load import load
from videostr.errors import ConfigError

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
OVERLAYS = sorted(path.parent for path in KUBERAY.glob("overlays/*/kustomization.yaml"))
CLUSTERS = sorted(path.parent for path in KUBERAY.glob("clusters/*/kustomization.yaml"))
CRDS = Path(os.environ.get("VIDEOSTR_CRDS", ROOT.parent / "shared" / "data" / "kuberay"))
FITS = {
    "small": [
        "qwen2_5_vl_3b_8gpu.yaml",
        "qwen2_5_vl_7b_2gpu_lora.yaml",
        "qwen2_5_vl_7b_8gpu.yaml",
        "qwen3_vl_4b_8gpu.yaml",
        "qwen3_vl_8b_8gpu.yaml",
    ],
    "medium": [
        "qwen2_5_vl_3b_8gpu.yaml",
        "qwen2_5_vl_7b_2gpu_lora.yaml",
        "qwen2_5_vl_3b_8gpu_6_2.yaml",
        "qwen2_5_vl_7b_8gpu.yaml",
        "qwen2_5_vl_7b_2nodes.yaml",
        "qwen3_vl_4b_8gpu.yaml",
        "qwen3_vl_8b_8gpu.yaml",
    ],
    "large": [
        "qwen2_5_vl_3b_8gpu.yaml",
        "qwen2_5_vl_7b_2gpu_lora.yaml",
        "qwen2_5_vl_3b_8gpu_6_2.yaml",
        "qwen2_5_vl_7b_8gpu.yaml",
        "qwen2_5_vl_7b_2nodes.yaml",
        "qwen2_5_vl_7b_8nodes.yaml",
        "qwen3_vl_4b_8gpu.yaml",
        "qwen3_vl_8b_8gpu.yaml",
    ],
}
"""Which configs a size holds, as docs/cluster.md says."""


def ray_object(folder: Path) -> Object:
    (found,) = [item for item in render(folder) if item["apiVersion"] == "ray.io/v1"]
    return found


@pytest.fixture
def job() -> Object:
    return copy.deepcopy(ray_object(KUBERAY / "overlays" / "small"))


# ------------------------------------------------------------------------------------------------- what is shipped


@pytest.mark.parametrize("folder", [*OVERLAYS, *CLUSTERS], ids=lambda f: f"{f.parent.name}-{f.name}")
def test_renders_as_kubectl_does(folder: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=True)
    theirs = list(yaml.safe_load_all(done.stdout))

    def by_name(item: Object) -> tuple[str, str]:
        return item["kind"], item["metadata"]["name"]

    assert sorted(render(folder), key=by_name) == sorted(theirs, key=by_name)


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda f: f.name)
def test_a_job_is_sound(folder: Path) -> None:
    job = ray_object(folder)
    assert job["kind"] == "RayJob"
    assert manifests.problems(job) == []


@pytest.mark.parametrize("name", FITS)
def test_a_development_cluster_is_sound_and_has_the_shape_of_the_job(name: str) -> None:
    cluster = ray_object(KUBERAY / "clusters" / name)
    assert [*manifests.unsafe(cluster), *manifests.wrong_version(cluster)] == []
    job = ray_object(KUBERAY / "overlays" / name)
    assert cluster["spec"] == job["spec"]["rayClusterSpec"]


@pytest.mark.parametrize("name", FITS)
def test_a_size_holds_the_configs_that_the_docs_name(name: str) -> None:
    cluster = ray_object(KUBERAY / "clusters" / name)
    paths = (ROOT / "configs").glob("qwen*.yaml")
    configs = sorted(path.name for path in paths if "_sft" not in path.stem)  # these need no engine's pods
    fitting = [c for c in configs if not list(manifests.too_small(cluster, plan(load(ROOT / "configs" / c))))]
    assert fitting == sorted(FITS[name])
    text = (ROOT / "docs" / "cluster.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
    assert all(config.removesuffix(".yaml") in row for config in fitting)


@pytest.mark.parametrize("folder", [*OVERLAYS, *CLUSTERS], ids=lambda f: f"{f.parent.name}-{f.name}")
def test_claims_and_priorities_that_pods_name_are_there(folder: Path) -> None:
    items = render(folder)
    there = {(item["kind"], item["metadata"]["name"]) for item in items}
    (ray,) = [item for item in items if item["apiVersion"] == "ray.io/v1"]
    for _, pod in manifests.pods_of(ray):
        named = {("PriorityClass", pod[key]) for key in ["priorityClassName"] if key in pod}
        claims = {
            v["persistentVolumeClaim"]["claimName"] for v in pod.get("volumes", []) if "emptyDir" not in v
        }
        assert named | {("PersistentVolumeClaim", claim) for claim in claims} <= there


def test_no_file_of_deploy_holds_a_secret() -> None:
    for path in (p for p in (ROOT / "deploy").rglob("*.yaml") if p.is_file()):
        for item in yaml.safe_load_all(path.read_text()):
            assert item["kind"] != "Secret", f"{path} has a Secret; it is made by kubectl create secret"


# ------------------------------------------------------------------------------------------------- what is broken


def rollout(job: Object) -> Object:
    return manifests.group(job, "rollout")


def requests(job: Object, name: str) -> Object:
    return manifests.group(job, name)["template"]["spec"]["containers"][0]["resources"]["requests"]


def head(job: Object) -> Object:
    return manifests.cluster_spec(job)["headGroupSpec"]["template"]["spec"]


def entrypoint(job: Object, old: str, new: str) -> None:
    assert old in job["spec"]["entrypoint"]
    job["spec"]["entrypoint"] = job["spec"]["entrypoint"].replace(old, new)


BREAKS: dict[str, tuple[Callable[[Object], object], str]] = {
    "fewer GPUs than the config places": (
        lambda job: requests(job, "learner").update({manifests.GPU: 3}),
        "group learner: 1 pods for 3 workers each hold 3, the config places 4",
    ),
    "fewer CPUs than the config places": (
        lambda job: requests(job, "reward").update(cpu="3500m"),
        "group reward: 2 pods for 3 workers each hold 6, the config places 8",
    ),
    "fewer places of the role": (
        lambda job: rollout(job)["rayStartParams"].update(resources='"{\\"rollout\\": 2}"'),
        "group rollout: 1 pods for 2 workers each hold 2",
    ),
    "an engine that spans pods": (
        lambda job: entrypoint(
            job, "run.dir", "rollout.num_workers=1 rollout.tensor_parallel_size=8 rollout.num_gpus=8 run.dir"
        ),
        "group rollout: 1 pods for 0 workers each hold 0, the config places 1",
    ),
    "no group for a role": (
        lambda job: rollout(job).update(groupName="engines"),
        "there is no worker group rollout",
    ),
    "more replicas than allowed": (
        lambda job: rollout(job).update(replicas=2),
        "group rollout: replicas is not within",
    ),
    "a run folder on no volume": (
        lambda job: entrypoint(job, "run.dir=/mnt/runs", "run.dir=/mnt/other"),
        "group head: run.dir = /mnt/other is on none of its volumes (/mnt/data, /mnt/runs)",
    ),
    "a model in the image": (
        lambda job: entrypoint(job, "model.path=/mnt/data/", "model.path="),
        "group rollout: model.path = models/",
    ),
    "data that one group lacks": (
        lambda job: rollout(job)["template"]["spec"]["containers"][0]["volumeMounts"].pop(0),
        "group rollout: data.train = /mnt/data/tabletop_full/train is on none",
    ),
    "root": (
        lambda job: head(job)["securityContext"].pop("runAsNonRoot"),
        "head: may run as root",
    ),
    "root of the submitter": (
        lambda job: job["spec"]["submitterPodTemplate"]["spec"]["securityContext"].update(runAsUser=0),
        "submitter: may run as root",
    ),
    "no seccomp": (lambda job: head(job)["securityContext"].pop("seccompProfile"), "head: seccompProfile"),
    "privileges": (
        lambda job: head(job)["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
        "head/ray-head: may gain privileges",
    ),
    "capabilities": (
        lambda job: head(job)["containers"][0]["securityContext"].update(capabilities={"add": ["SYS_ADMIN"]}),
        "head/ray-head: keeps capabilities",
    ),
    "an image without a version": (
        lambda job: head(job)["containers"][0].update(image="videostr:latest"),
        "head/ray-head: image videostr:latest has no version",
    ),
    "an image of another version": (
        lambda job: head(job)["containers"][0].update(image="videostr:0.0.9-gpu"),
        "image videostr:0.0.9-gpu is not of version",
    ),
    "another Ray": (
        lambda job: manifests.cluster_spec(job).update(rayVersion="2.50.0"),
        "rayVersion = 2.50.0, pyproject.toml pins",
    ),
    "no token": (
        lambda job: manifests.cluster_spec(job).pop("authOptions"),
        "authOptions: must be mode token",
    ),
    "a token in the file": (
        lambda job: head(job)["containers"][0]["env"].append({"name": "RAY_AUTH_TOKEN", "value": "x"}),
        "head/ray-head: RAY_AUTH_TOKEN has its value in the file",
    ),
    "a GPU that is asked for and not granted": (
        lambda job: rollout(job)["template"]["spec"]["containers"][0]["resources"]["limits"].pop(
            manifests.GPU
        ),
        "rollout/ray-worker: requests and limits of nvidia.com/gpu differ",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_manifest_is_found(name: str, job: Object) -> None:
    breaks, message = BREAKS[name]
    breaks(job)
    found = manifests.problems(job)
    assert any(message in problem for problem in found), found


def test_a_config_that_is_not_there_is_found(job: Object) -> None:
    entrypoint(job, "qwen2_5_vl_7b_8gpu", "qwen2_5_vl_8b")
    with pytest.raises(ConfigError, match="no such config file"):
        manifests.problems(job)


def test_an_override_that_the_config_refuses_is_found(job: Object) -> None:
    entrypoint(job, "run.dir=", "run.folder=")
    with pytest.raises(ConfigError, match=r"run\.folder"):
        manifests.problems(job)


# ------------------------------------------------------------------------------------------------- KubeRay's schema


@functools.cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"{path} is not there; set VIDEOSTR_CRDS to KubeRay's helm-chart/kuberay-operator/crds")
    return jsonschema.Draft202012Validator(manifests.crd_schema(path))


def against_schema(item: Object) -> list[str]:
    return [f"{'/'.join(map(str, e.path))}: {e.message}" for e in validator(item["kind"]).iter_errors(item)]


@pytest.mark.parametrize("folder", [*OVERLAYS, *CLUSTERS], ids=lambda f: f"{f.parent.name}-{f.name}")
def test_keeps_the_schema_of_kuberay(folder: Path) -> None:
    assert against_schema(ray_object(folder)) == []


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (
            lambda job: job["spec"].update(entryPoint="x"),
            "spec: Additional properties are not allowed ('entryPoint'",
        ),
        (lambda job: rollout(job).update(maxReplicas="4"), "maxReplicas: '4' is not of type 'integer'"),
        (lambda job: rollout(job).pop("template"), "'template' is a required property"),
        (
            lambda job: rollout(job)["rayStartParams"].update({"num-cpus": 8}),
            "num-cpus: 8 is not of type 'string'",
        ),
        (
            lambda job: manifests.cluster_spec(job)["autoscalerOptions"].update(version="v3"),
            "version: 'v3' is not one of ['v1', 'v2']",
        ),
        (
            lambda job: head(job)["containers"][0].update(readynessProbe={}),
            "Additional properties are not allowed ('readynessProbe'",
        ),
    ],
)
def test_the_schema_refuses(job: Object, breaks: Callable[[Object], object], message: str) -> None:
    breaks(job)
    found = against_schema(job)
    assert any(message in problem for problem in found), found
