"""What a RayJob or RayCluster of deploy/kuberay must keep, as sentences about what it does not keep.

In: rendered objects. Out: problems; none for what is shipped, one for each way of breaking it that the tests try.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from actors.placement import Role, plan
from tests.deploy.kustomize import Object, containers
from videostr import __version__
from videostr.config.load import load
from videostr.config.schema import Config

ROOT = Path(__file__).parents[2]
IMAGE_ROOT = "/opt/videostr/"
"""Where the image has the project."""
GPU = "nvidia.com/gpu"
PINNED = re.compile(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*")
SECRET = re.compile(r"token|secret|password|passwd|api_?key|credential", re.IGNORECASE)
UNITS = {"": 1.0, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(text: str | float) -> float:
    """A Kubernetes quantity such as 500m or 64Gi."""
    number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def cluster_spec(item: Object) -> Object:
    """The Ray cluster of a RayJob or RayCluster."""
    return item["spec"]["rayClusterSpec"] if item["kind"] == "RayJob" else item["spec"]


def config_of(job: Object, root: Path = ROOT) -> Config:
    """The config that a RayJob's entrypoint loads, overrides applied."""
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "videostr.launch", "--config"]
    assert words[4].startswith(IMAGE_ROOT), f"{words[4]}: the image has the project in {IMAGE_ROOT}"
    return load(root / words[4].removeprefix(IMAGE_ROOT), words[5:])


def group(item: Object, name: str) -> Object:
    """A worker group."""
    return next(g for g in cluster_spec(item)["workerGroupSpecs"] if g["groupName"] == name)


def room(pod: Object, bundle: dict[str, float], role: str) -> int:
    """Workers that a pod of a group holds, by its CPUs, its GPUs and the resource of its role."""
    requests = pod["template"]["spec"]["containers"][0]["resources"]["requests"]
    offers = {"CPU": quantity(requests["cpu"]), "GPU": quantity(requests.get(GPU, 0)), **custom(pod)}
    wanted = {**bundle, role: 1.0}
    return int(min(offers.get(name, 0) / amount + 1e-9 for name, amount in wanted.items()))


def custom(pod: Object) -> dict[str, float]:
    """Ray resources that a pod offers by `ray start --resources`; the value passes a shell, hence JSON in JSON."""
    text = pod.get("rayStartParams", {}).get("resources")
    return dict(json.loads(json.loads(text))) if text else {}


def too_small(item: Object, roles: Sequence[Role]) -> Iterator[str]:
    """Where the groups at their largest do not hold a plan."""
    groups = {g["groupName"]: g for g in cluster_spec(item)["workerGroupSpecs"]}
    for role in roles:
        if role.name not in groups:
            yield f"there is no worker group {role.name}, the config places {role.count} of them"
            continue
        pods = groups[role.name]
        holds, most = (
            room(pods, dict(role.bundle), role.name),
            pods["maxReplicas"] * pods.get("numOfHosts", 1),
        )
        if holds * most < role.count:
            yield (
                f"group {role.name}: {most} pods for {holds} workers each hold {holds * most}, the config places "
                f"{role.count} of {dict(role.bundle)}; raise maxReplicas or the pod's resources"
            )
        if not pods["minReplicas"] <= pods["replicas"] <= pods["maxReplicas"]:
            yield f"group {role.name}: replicas is not within minReplicas and maxReplicas"


def not_shared(item: Object, config: Config) -> Iterator[str]:
    """Paths of the config that some pod does not have on a volume."""
    paths = {
        "run.dir": config.run.dir,
        "data.train": config.data.train,
        "data.heldout": config.data.heldout,
        "data.frame_store": config.data.frame_store,
        "model.path": config.model.path,
    }
    spec = cluster_spec(item)
    for pods in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        name, pod = pods.get("groupName", "head"), pods["template"]["spec"]
        claims = {v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
        mounts = [m["mountPath"] for c in pod["containers"] for m in c["volumeMounts"] if m["name"] in claims]
        for key, path in paths.items():
            if not any(PurePosixPath(path).is_relative_to(mount) for mount in mounts):
                yield f"group {name}: {key} = {path} is on none of its volumes ({', '.join(mounts)})"


def unsafe(item: Object) -> Iterator[str]:
    """What a namespace of the level `restricted` refuses, and values that belong in a Secret."""
    for path, pod in pods_of(item):
        outer = pod.get("securityContext", {})
        if not outer.get("runAsNonRoot") or not outer.get("runAsUser"):
            yield f"{path}: may run as root; set runAsNonRoot and runAsUser"
        if outer.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{path}: seccompProfile is not RuntimeDefault"
        for container in pod["containers"]:
            yield from _unsafe_container(f"{path}/{container['name']}", container)
    auth = cluster_spec(item).get("authOptions", {})
    if auth.get("mode") != "token" or not auth.get("secretName"):
        yield "authOptions: must be mode token with secretName, or everyone in the network may submit jobs"


def _unsafe_container(path: str, container: Object) -> Iterator[str]:
    inner = container.get("securityContext", {})
    if inner.get("allowPrivilegeEscalation") is not False or inner.get("privileged"):
        yield f"{path}: may gain privileges"
    if inner.get("capabilities", {}).get("drop") != ["ALL"]:
        yield f"{path}: keeps capabilities"
    if not PINNED.fullmatch(container["image"]):
        yield f"{path}: image {container['image']} has no version as tag"
    for variable in container.get("env", []):
        if SECRET.search(variable["name"]) and "value" in variable:
            yield f"{path}: {variable['name']} has its value in the file; use secretKeyRef"
    resources = container["resources"]
    if resources["limits"].get(GPU, 0) != resources["requests"].get(GPU, 0):
        yield f"{path}: requests and limits of {GPU} differ"


def pods_of(item: Object) -> Iterator[tuple[str, Object]]:
    """Every pod template with its path."""
    spec = cluster_spec(item)
    yield "head", spec["headGroupSpec"]["template"]["spec"]
    for pods in spec["workerGroupSpecs"]:
        yield pods["groupName"], pods["template"]["spec"]
    if "submitterPodTemplate" in item["spec"]:
        yield "submitter", item["spec"]["submitterPodTemplate"]["spec"]


def wrong_version(item: Object) -> Iterator[str]:
    """Whether the cluster has another Ray than the image has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pin,) = [
        d.split("==")[1] for d in project["optional-dependencies"]["train"] if d.startswith("ray[default]==")
    ]
    if cluster_spec(item)["rayVersion"] != pin:
        yield f"rayVersion = {cluster_spec(item)['rayVersion']}, pyproject.toml pins {pin}"
    for container in containers(item):
        if not container["image"].rpartition(":")[2].startswith(f"{__version__}-"):
            yield f"{container['name']}: image {container['image']} is not of version {__version__}"


def problems(job: Object) -> list[str]:
    """All of the above for a RayJob."""
    config = config_of(job)
    return [
        *too_small(job, plan(config)),
        *not_shared(job, config),
        *unsafe(job),
        *wrong_version(job),
    ]


def strict(schema: Any) -> Any:
    """A CRD's openAPIV3Schema as JSON Schema that refuses unknown fields, as the API server does with strict validation."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("anyOf", None)
        found["type"] = ["integer", "string"]
    if isinstance(found.get("properties"), dict) and "type" in found:
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
        if not open_ended:
            found["additionalProperties"] = False
    return found


def crd_schema(path: Path) -> Any:
    """The schema of the stored version of a CRD."""
    crd = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [v for v in crd["spec"]["versions"] if v["storage"]]
    return strict(version["schema"]["openAPIV3Schema"])
