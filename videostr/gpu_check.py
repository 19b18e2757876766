"""Does all of it work on these GPUs? `make gpu-check`, or `python -m videostr.gpu_check`: ten minutes, before any real run.

Attention kernels against a dense mask, learner ranks against each other, engine against learner before and after a weight
sync, the speed of a learner, and a run on the tabletop that is killed and resumed. What needs more GPUs than are there is named.
Out: a `Finding` for each, on the terminal and as one page. Exit status: 0 all that could run is well, 1 it is not, 2 bad input.
`--cpu` runs the same checks over gloo on CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.learner.ray_learner import RayLearner
from actors.placement import start_ray, stop_ray
from videostr import kernel_check, parity
from videostr.command import command, run_main
from videostr.config.schema import Config
from videostr.console import log_to_console
from videostr.errors import PlacementError, VideoStrError, error_text, first_line
from videostr.files import make_folder, write_text
from videostr.groups import LearnerBatch, RolloutGroup, Sampled
from videostr.models.base import family_of
from videostr.models.checkpoint import open_checkpoint
from videostr.page import render_page
from videostr.preflight.findings import Finding, Severity, as_text, fail, from_error, ok, warn
from videostr.shipped import find
from videostr.tabletop.build import Split, build
from videostr.tabletop.world import Difficulty
from videostr.types import Completion, FinishReason

log = logging.getLogger("videostr.gpu_check")
RANKS_LIMIT = 1e-3
"""Largest difference of log-probabilities between ranks, nats, float32: a GPU convolves pixels in TF32."""
STEPS, KILLED_AT = 20, 8
MISMATCH = 0.01
"""Largest KL divergence of a step's engine and learner that passes, nats; bfloat16 gives about 1e-3."""
PRETRAINED = str(find("videostr/tabletop/pretrained"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the checks run."""

    gpus: int
    """0: on CPU, over gloo."""
    folder: Path
    """Scratch."""

    @property
    def device(self) -> torch.device:
        """Return the device of checks in this process."""
        return torch.device("cuda" if self.gpus else "cpu")

    def lacks(self, name: str, needed: int, why: str) -> list[Finding]:
        """Return a finding that a check cannot run on so few GPUs, or nothing."""
        if not self.gpus or self.gpus >= needed:
            return []
        return [
            warn(
                name,
                f"not run: {why} needs {needed} GPUs, here is {self.gpus}",
                "run it on a machine with more",
            )
        ]


Check = Callable[[Place], Iterator[Finding]]


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status, as in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m videostr.gpu_check", description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="check on CPU, over gloo")
    parser.add_argument(
        "--out", default="build/gpu-check.html", metavar="FILE", help="page (default build/gpu-check.html)"
    )
    options = parser.parse_args(arguments)
    log_to_console()
    gpus = 0 if options.cpu else torch.cuda.device_count()
    if not gpus and not options.cpu:
        raise PlacementError(
            f"torch {torch.__version__} sees no GPU",
            remedy="look at nvidia-smi and CUDA_VISIBLE_DEVICES, install the build for GPUs (EXTRA=gpu bash deploy/setup.sh), "
            "or check with --cpu",
        )
    with tempfile.TemporaryDirectory(prefix="videostr-gpu-check-") as scratch:
        place = Place(gpus=gpus, folder=Path(scratch))
        findings = run_checks(CHECKS, place)
    page = Path(options.out)
    make_folder(page.parent)
    write_text(page, render_page("videostr", "gpu_check.html", findings=findings, verdict=verdict(findings)))
    sys.stdout.write(f"{as_text(findings)}\n{verdict(findings)}\n{page}\n")
    return 1 if any(finding.severity is Severity.FAIL for finding in findings) else 0


def run_checks(checks: Sequence[Check], place: Place) -> list[Finding]:
    """Return the findings of all checks; one that ends by an exception is a finding, too."""
    findings: list[Finding] = []
    for check in checks:
        name = check.__name__.removeprefix("check_")
        log.info("%s", name.replace("_", " "))
        started = time.monotonic()
        try:
            findings += check(place)
        except VideoStrError as error:
            findings.append(from_error(name, error))
        except Exception as error:
            log.exception("%s", name)
            findings.append(
                fail(name, first_line(error_text(error)), "the traceback above says where; report it")
            )
        log.info("%s: %.0f s", name.replace("_", " "), time.monotonic() - started)
    return findings


def verdict(findings: Sequence[Finding]) -> str:
    """Return one sentence."""
    failed = [finding.name for finding in findings if finding.severity is Severity.FAIL]
    left = [finding.name for finding in findings if finding.severity is Severity.WARN]
    if failed:
        return f"Do not train here yet: {', '.join(failed)}."
    return f"What could be checked works; look at {', '.join(left)}." if left else "All of it works here."


# ------------------------------------------------------------------------------------------------------ devices


def check_devices(place: Place) -> Iterator[Finding]:
    """Name what is there."""
    versions = f"torch {torch.__version__}, Python {sys.version.split()[0]}"
    if place.gpus:
        for number in range(place.gpus):
            found = torch.cuda.get_device_properties(number)
            yield ok(f"GPU {number}", f"{found.name}, {found.total_memory / 2**30:.0f} GiB")
        if not torch.cuda.is_bf16_supported():
            yield fail("bfloat16", "these GPUs have none", "use GPUs of the Ampere generation or newer")
        yield ok("software", f"{versions}, CUDA {torch.version.cuda}, NCCL {_nccl_version()}")
    else:
        yield ok("software", f"{versions}, on CPU")


def _nccl_version() -> str:
    version: Any = torch.cuda.nccl.version()
    return ".".join(map(str, version))


def check_attention(place: Place) -> Iterator[Finding]:
    """Compare the kernel of learner ranks with a dense mask."""
    return kernel_check.check_attention(place.device)


def check_speed(place: Place) -> Iterator[Finding]:
    """Measure a packed row."""
    return kernel_check.check_speed(place.device, PRETRAINED)


# --------------------------------------------------------------------------------------------------------- ranks


def check_ranks(place: Place) -> Iterator[Finding]:
    """Compare log-probabilities and the gradient of a rank on CPU with those of ranks on GPUs, or of more ranks under ZeRO-3."""
    processor = open_checkpoint(PRETRAINED, cpu=True, dtype="float32")
    batch = _random_batch(parity.make_cases(place.folder, processor), processor)
    plain = asyncio.run(_learn(_config(gpus=0), batch, place.folder))
    others = {"a rank on a GPU": (1, 0, 1)} if place.gpus else {}
    missing = place.lacks("two ranks", 2, "ZeRO-3 over two ranks, and rows that two ranks share")
    if not missing:
        others |= {"two ranks of ZeRO-3": (2, 3, 1), "two ranks that share rows": (2, 3, 2)}
    for name, (ranks, stage, shared) in others.items():
        gpus = int(place.gpus > 0)
        config = _config(gpus=gpus, num_ranks=ranks, zero_stage=stage, sequence_parallel=shared)
        logprobs, norm = asyncio.run(_learn(config, batch, place.folder))
        worst = float(np.abs(logprobs - plain[0]).max())
        found = (
            f"against a rank on CPU: log-probabilities differ by {worst:.1e} nats at most, {RANKS_LIMIT:.0e} allowed; "
            f"gradient norm {norm:.4g}, there {plain[1]:.4g}"
        )
        if worst <= RANKS_LIMIT and abs(norm - plain[1]) <= 1e-2 * plain[1]:
            yield ok(name, found)
        else:
            yield fail(name, found, "use the locked versions of torch, deepspeed and transformers")
    yield from missing


async def _learn(config: Config, batch: LearnerBatch, folder: Path) -> tuple[np.ndarray, float]:
    """Return log-probabilities of all tokens of a batch, and the norm of the gradient of one update."""
    start_ray()
    learner = RayLearner(config, folder / "frames")
    try:
        await learner.restart()
        logprobs = await learner.logprobs(batch)
        update = await learner.update(batch)
        return np.concatenate([values for group in logprobs for values in group]), update.metrics["grad_norm"]
    finally:
        learner.close()
        stop_ray()


def _random_batch(cases: Sequence[parity.Case], processor: Any) -> LearnerBatch:
    """Return groups of random completions of the cases' prompts."""
    family, draw = family_of(PRETRAINED), np.random.default_rng(0)
    config = parity.model_config(PRETRAINED, "float32")
    prompts = [case.prompt for case in cases]
    groups = []
    for prompt, encoded in zip(
        prompts, family.encode(prompts, [case.frames for case in cases], processor, config), strict=True
    ):
        completions = tuple(
            Completion(
                text="",
                token_ids=draw.integers(10, 200, 32).astype(np.int32),
                logprobs=np.full(32, -5.0, np.float32),
                finish_reason=FinishReason.LENGTH,
                weight_versions=(),
            )
            for _ in range(parity.COMPLETIONS)
        )
        ids = encoded.input_ids.numpy().astype(np.int32)
        sampled = Sampled(prompt_token_ids=ids, completions=completions)
        groups.append(RolloutGroup(prompt=prompt, sampled=sampled, scores=()))
    return parity.batch_of(groups)


def _config(*, gpus: int, dtype: str = "float32", **learner: Any) -> Config:
    config = parity.engine_config(PRETRAINED, dtype, gpu=gpus > 0)
    return replace(config, learner=replace(config.learner, **learner))


# ------------------------------------------------------------------------------------------------------- engines


def check_engine(place: Place) -> Iterator[Finding]:
    """Compare engine and learner, before and after a weight sync whose every parameter is read back; see `videostr.parity`."""
    missing = place.lacks("engine", 2, "an engine beside a learner rank")
    if missing:
        yield from missing
        return
    for dtype in ("float32", "bfloat16") if place.gpus else ("float32",):
        yield from _parity(place, dtype, 1)


def check_tensor_parallel(place: Place) -> Iterator[Finding]:
    """Compare an engine of two GPUs, or of two processes on CPU, with the learner in the same way."""
    missing = place.lacks("tensor parallel", 3, "an engine of two GPUs beside a learner rank")
    yield from missing or _parity(place, "bfloat16" if place.gpus else "float32", 2)


def _parity(place: Place, dtype: str, size: int) -> Iterator[Finding]:
    name = f"engine, {dtype}" if size == 1 else f"tensor parallel, {size} ranks"
    config = _config(gpus=place.gpus, dtype=dtype)
    rollout = replace(config.rollout, tensor_parallel_size=size, num_gpus=float(size if place.gpus else 0))
    if place.gpus:
        rollout = replace(rollout, gpu_memory_utilization=0.3)
    config = replace(config, rollout=rollout)
    cases = parity.make_cases(place.folder, open_checkpoint(PRETRAINED, cpu=not place.gpus, dtype=dtype))
    rows = asyncio.run(parity.compare_computation(config, cases, place.folder))
    for row in rows:
        found = f"{row.what}{' ' + row.note if row.note else ''}: {row.worst:.2g}, {row.limit:.2g} allowed"
        if row.agrees:
            yield ok(name, found)
        else:
            yield fail(name, found, "use the locked versions of vllm, torch and transformers")


# ----------------------------------------------------------------------------------------------------------- run


def check_run(place: Place) -> Iterator[Finding]:
    """Train on the tabletop, kill the run, and resume it."""
    if missing := place.lacks("run", 2, "an engine beside a learner rank"):
        yield from missing
        return
    for split, scenes in ((Split.TRAIN, 64), (Split.HELDOUT, 8)):
        build(
            place.folder / split.name.lower(), scenes=scenes, seed=0, split=split, difficulty=Difficulty.EASY,
            questions=1, workers=2,
        )  # fmt: skip
    folder, output = place.folder / "runs" / "check", place.folder / "run.log"
    command = [sys.executable, "-m", "videostr.launch", *_run_arguments(place)]
    metrics = folder / "metrics.jsonl"
    with output.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        while process.poll() is None and _lines(metrics) < KILLED_AT:
            time.sleep(0.2)
        ended = process.poll()
        process.kill()
        process.wait()
        status = ended
        if ended is None:
            status = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
    said = output.read_text(encoding="utf-8", errors="replace")
    if status or _lines(metrics) < STEPS:
        last = "; ".join(said.splitlines()[-3:])
        yield fail(
            "run", f"{_lines(metrics)} of {STEPS} steps, exit status {status}: {last}", "see docs/failures.md"
        )
        return
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    sync, step = (statistics.median(row[name] for row in rows) for name in ("sync/seconds", "time/step"))
    kept = "resumed after step" in said
    found = f"{STEPS} steps, killed after {KILLED_AT} and resumed; {step:.2g} s a step, of which {sync:.2g} s weight sync"
    worst = max(abs(row["mismatch_kl"]) for row in rows)
    found += f"; KL of engine and learner {worst:.1e} at most"
    if not kept:
        yield fail(
            "run",
            f"{found}; it started from the beginning where it should have resumed",
            "see docs/failures.md",
        )
    elif worst > MISMATCH:
        yield fail("run", f"{found}, {MISMATCH:g} allowed", "compare with python -m videostr.parity")
    else:
        yield ok("run", found)


def _run_arguments(place: Place) -> list[str]:
    """Return the arguments of the run."""
    arguments = [
        "--config", "configs/tabletop_cpu.yaml", f"run.dir={place.folder / 'runs'}", "run.name=check",
        f"data.train={place.folder / 'train'}", f"data.heldout={place.folder / 'heldout'}", "evaluate.prompts=0",
        f"train.steps={STEPS}", "train.prompts_per_step=4", "train.checkpoint_every=2", "sampling.group_size=4",
        "sync.verify=true",
    ]  # fmt: skip
    if place.gpus:
        arguments += [
            "rollout.num_gpus=1", "rollout.gpu_memory_utilization=0.3", "learner.num_gpus=1", "model.dtype=bfloat16",
            "loss.correction=ratio",
        ]  # fmt: skip
    return arguments


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


CHECKS: tuple[Check, ...] = (
    check_devices,
    check_attention,
    check_ranks,
    check_speed,
    check_engine,
    check_tensor_parallel,
    check_run,
)
"""All checks, the quick ones first."""

if __name__ == "__main__":
    run_main(main)
