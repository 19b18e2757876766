"""The part of kustomize that deploy/kuberay uses, so that its tests need no kubectl.

In: a folder with a kustomization.yaml. Out: the objects that `kubectl kustomize` writes; a test compares the two where there
is one. Anything else in a kustomization is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
KNOWN = {"apiVersion", "kind", "resources", "components", "patches", "images", "replacements"}
LOCAL = "config.kubernetes.io/local-config"


def render(folder: Path) -> list[Object]:
    """Objects of a kustomization, in the order of its resources."""
    return _render(folder, [])


def _render(folder: Path, before: list[Object]) -> list[Object]:
    about = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := about.keys() - KNOWN:
        raise NotImplementedError(f"{folder}: {sorted(unknown)}; teach it to tests/deploy/kustomize.py")
    objects = list(before)
    for name in about.get("resources", []):
        path = folder / name
        objects += _render(path, []) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for name in about.get("components", []):
        objects = _render(folder / name, objects)
    for patch in about.get("patches", []):
        (target,) = _select(objects, patch["target"])
        for operation in yaml.safe_load(patch["patch"]):
            _apply(target, operation)
    for image in about.get("images", []):
        _name_images(objects, image)
    for replacement in about.get("replacements", []):
        _replace(objects, replacement)
    return [item for item in objects if item["metadata"].get("annotations", {}).get(LOCAL) != "true"]


def _name_images(objects: list[Object], image: Object) -> None:
    for container in (c for item in objects for c in containers(item)):
        name, _, _ = container["image"].rpartition(":")
        if name == image["name"]:
            container["image"] = f"{image.get('newName', name)}:{image['newTag']}"


def _replace(objects: list[Object], replacement: Object) -> None:
    (source,) = _select(objects, replacement["source"])
    for wanted in replacement["targets"]:
        (target,) = _select(objects, wanted["select"])
        for path in wanted["fieldPaths"]:
            parent, key = _walk(target, path.split("."))
            parent[key] = copy.deepcopy(source[replacement["source"]["fieldPath"]])


def containers(tree: Any) -> Iterator[Object]:
    """All containers of an object, wherever their pods are."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in {"containers", "initContainers"}:
                yield from value
            else:
                yield from containers(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from containers(value)


def _select(objects: list[Object], wanted: Object) -> list[Object]:
    found = [
        item
        for item in objects
        if item["kind"] == wanted["kind"] and item["metadata"]["name"] == wanted["name"]
    ]
    assert len(found) == 1, f"{wanted} selects {len(found)} objects"
    return found


def _walk(tree: Any, path: list[str]) -> tuple[Any, Any]:
    for part in path[:-1]:
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    return tree, int(path[-1]) if isinstance(tree, list) else path[-1]


def _apply(target: Object, operation: Object) -> None:
    """One operation of RFC 6902."""
    parent, key = _walk(target, operation["path"].removeprefix("/").split("/"))
    kind, value = operation["op"], copy.deepcopy(operation["value"])
    if kind == "test":
        assert parent[key] == value, f"{operation['path']} is {parent[key]!r}"
        return
    if kind not in {"add", "replace"} or (
        kind == "replace" and key not in parent and isinstance(parent, dict)
    ):
        raise NotImplementedError(f"{operation}")
    parent[key] = value
