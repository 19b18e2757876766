"""Preflight of a run (`python -m videostr.launch --config X --check`): everything that can be found out without an engine.

In: a config, and the cluster of RAY_ADDRESS or this machine. Out: a `Finding` for each thing that was looked at; nothing is
raised for what is found, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

from actors.check import Cluster, check_placement, find_cluster
from actors.placement import JOIN_REMEDY
from actors.remote_reward import RemoteRewardPool
from rewards import Rubric
from videostr.config.schema import Config
from videostr.errors import ConfigError, PlacementError, RewardError
from videostr.grpo.losses import check_custom, staleness_warning
from videostr.models.base import Shapes, shapes_of
from videostr.models.memory import estimate
from videostr.parity import compare_inputs, make_cases
from videostr.preflight.data import check_data
from videostr.preflight.disk import check_disk, check_run
from videostr.preflight.findings import Context, Finding, fail, from_error, ok, warn
from videostr.preflight.machine import check_machine
from videostr.preflight.model import check_policy

SERVICE_S = 5.0
"""Longest wait for a reward service."""


def check(config: Config, *, cluster: Cluster | None = None, inputs: bool = False) -> list[Finding]:
    """Return what would not work, and what would.

    Call it outside an event loop. Joins the Ray cluster of RAY_ADDRESS for as long as it takes.

    Args:
        config: validated by `videostr.config.load`.
        cluster: in place of the one that is found.
        inputs: also compare what engine and learner make of prompts, which takes half a minute for vLLM's import.
    """
    context = Context()
    findings = [*check_policy(config, context), *check_data(config, context), check_run(config)]
    if inputs and context.processor is not None:
        findings += check_inputs(config, context)
    findings += [*check_disk(config, context), *check_loss(config), *check_rewards(config)]
    try:
        cluster = cluster or find_cluster(config)
    except PlacementError as error:
        return [*findings, fail("ray", str(error), JOIN_REMEDY)]
    findings.append(check_placement(config, cluster))
    if not cluster.machines:
        findings.append(
            warn(
                "nodes",
                "no node is up that could be inspected: nothing is known of GPUs, NCCL, codecs and shared paths",
                "start a development cluster of the same image with one node of each kind, and check there",
            )
        )
    for machine in cluster.machines:
        findings += check_machine(config, machine, len(cluster.machines))
    if context.shapes is not None:
        findings += [*check_adapters(config, context.shapes), *check_memory(config, cluster)]
    return findings


def check_inputs(config: Config, context: Context) -> Iterator[Finding]:
    """Check whether engine and learner make the same token ids, positions and pixels of clips of several shapes."""
    with tempfile.TemporaryDirectory(prefix="videostr-check-") as scratch:
        folder = Path(scratch)
        cases = make_cases(folder, context.processor)
        rows = compare_inputs(config.model.path, config.model.dtype, context.processor, cases, folder)
    differing = [row.what for row in rows if not row.agrees]
    if differing:
        yield fail(
            "inputs",
            f"engine and learner make different {', '.join(differing)} of one prompt",
            f"see python -m videostr.parity --model {config.model.path}; use the locked versions of vLLM and transformers",
        )
        return
    yield ok(
        "inputs",
        f"token ids, positions and pixels of engine and learner agree for {len(cases)} shapes of video",
    )


def check_loss(config: Config) -> Iterator[Finding]:
    """Check whether a loss of the user's works on five tokens, and the correction suits the staleness."""
    if warning := staleness_warning(config):
        yield warn("loss", warning.message, warning.remedy)
    if not config.loss.custom:
        return
    try:
        check_custom(config.loss)
    except ConfigError as error:
        yield from_error("loss", error)
        return
    yield ok("loss", f"{config.loss.custom}: five tokens tried")


def check_rewards(config: Config) -> Iterator[Finding]:
    """Check whether the reward can be imported, and its service scores as this run does."""
    try:
        rubric = Rubric.from_config(config.reward, config.sampling.max_tokens)
    except ConfigError as error:
        yield from_error("reward", error)
        return
    yield ok("reward", f"rubric {config.reward.rubric}" + (f" and {rubric.custom}" if rubric.custom else ""))
    if not config.reward.endpoint:
        return
    try:
        asyncio.run(_ask_service(config, rubric))
    except (ConfigError, RewardError) as error:
        yield fail(
            "reward service",
            f"{error}",
            "start it (python -m rewards.service), or clear reward.endpoint to score by workers of the run",
        )
    else:
        yield ok("reward service", f"{config.reward.endpoint} scores the same")


async def _ask_service(config: Config, rubric: Rubric) -> None:
    pool = await RemoteRewardPool.connect(config.reward, rubric, timeout_s=SERVICE_S)
    await pool.close()


def check_adapters(config: Config, shapes: Shapes) -> Iterator[Finding]:
    """Check whether the model has the layers that shall get adapters."""
    lora = config.model.lora
    if not lora.rank:
        return
    if missing := sorted(set(lora.targets) - shapes.linear_ends.keys()):
        yield fail(
            "adapters",
            f"model.lora.targets: the model has no linear layer called {', '.join(missing)}",
            f"choose among {', '.join(sorted(shapes.linear_ends))}",
        )
        return
    count = shapes.adapter_parameters(lora.rank, lora.targets)
    yield ok(
        "adapters", f"{count:,} weights of rank {lora.rank}, {count / shapes.parameters:.2%} of the model's"
    )


def check_memory(config: Config, cluster: Cluster) -> list[Finding]:
    """Return whether a learner rank and an engine fit the smallest GPU."""
    sizes = [gpu.total_gib for machine in cluster.machines for gpu in machine.gpus]
    on_gpu = config.rollout.num_gpus > 0
    if on_gpu and not sizes:
        return []
    memory = estimate(config, shapes_of(config.model.path), min(sizes) if on_gpu else None)
    words = (
        f"a rank takes {memory.learner.total:.1f} GiB and {memory.host.total:.1f} GiB of host memory, the cache of an engine has "
        f"{memory.engine.kv_cache:.1f} GiB"
    )
    return [fail("memory", problem, words) for problem in memory.problems] or [ok("memory", words)]
