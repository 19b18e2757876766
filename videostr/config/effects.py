"""Keys that have no effect with the values of others: a config that sets one is refused.

In: a config and which keys were written. Out: a `Problem` for each written key that would do nothing.

`Inert` names the keys, the reason and the remedy. Where its `switch` is given by an override, the file may keep the keys: so
one file serves `reward.endpoint=HOST:PORT`, `evaluate.prompts=0` and the like. The loss has no such switch: there nothing may
be silent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from videostr.config.schema import (
    AnyConfig,
    AskingMode,
    BenchmarkConfig,
    Config,
    EvaluationConfig,
    Mode,
    PlanConfig,
    RunConfig,
    SftConfig,
    prompts_of,
)
from videostr.config.sections import RewardConfig, RolloutConfig
from videostr.config.values import Problem

LOCAL_REWARDS = ("num_workers", "num_cpus", "memory_gib")
"""Keys of `reward` that are of workers of the run."""
SERVED_REWARDS = (*LOCAL_REWARDS, "deadline_s", "endpoint")
"""Keys of `reward` that an evaluation, which scores in its own process, has no use for."""
LENGTHS = {"default": "overlong", "answer_only": "overlong", "paper": "band", "spacer": "band"}
"""Length term of each preset of the rubric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Which keys the user wrote, dotted."""

    file: frozenset[str]
    overrides: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inert:
    """Keys that do nothing in a config."""

    keys: tuple[str, ...]
    """Dotted."""
    why: str
    """The values that make it so."""
    remedy: str = ""
    """What gives the keys an effect; leaving them out is always another remedy."""
    switch: tuple[str, ...] = ()
    """Keys whose override lets the file keep `keys`."""


def ratio_moves(config: Config) -> bool:
    """Return whether the ratio of the policy loss can differ from 1, so that clipping acts.

    Against the learner's own log-probabilities before the first update on a batch, it is 1 in that update.
    """
    return config.loss.name != "reinforce" and (
        config.loss.correction == "ratio" or config.train.updates_per_batch > 1
    )


def keys_without_effect(config: AnyConfig, values: Mapping[str, Any], written: Written) -> list[Problem]:
    """Return a problem for each written key without effect.

    Args:
        config: what is loaded.
        values: its values by dotted key.
        written: by the user.
    """
    problems: dict[str, Problem] = {}
    for inert in _inert(config):
        switched = not written.overrides.isdisjoint(inert.switch)
        remedy = f"{inert.remedy}, or leave the key out" if inert.remedy else "leave the key out"
        for key in inert.keys:
            is_written = key in written.overrides or (key in written.file and not switched)
            if is_written and values[key] and key not in problems:  # what is off asks for nothing
                problems[key] = Problem(
                    key=key, value=values[key], rule=f"has no effect with {inert.why}", remedy=remedy
                )
    return list(problems.values())


def _inert(config: AnyConfig) -> Iterator[Inert]:
    if isinstance(config, SftConfig):
        yield from _of_sft(config)
    elif isinstance(config, EvaluationConfig):
        yield from _of_evaluation(config)
    else:
        yield from _of_loss(config)
        yield from _of_learner(config)
        yield from _of_rollout(config.rollout)
        yield from _of_reward(config.reward)
        yield from _of_workers(config)
        yield from _of_data(config)
        yield from _of_steps(config)
        yield from _of_logging(config)
    if isinstance(config, PlanConfig):
        yield from _of_plan(config)


def _keys(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


def _of_loss(c: Config) -> Iterator[Inert]:
    if c.loss.name == "reinforce" and not c.loss.custom:
        yield Inert(
            keys=_keys("loss", "eps_low", "eps_high"),
            why="loss.name = reinforce, which has no ratio to clip",
            remedy="set loss.name=ppo_clip",
        )
        if c.loss.correction == "ratio":
            yield Inert(
                keys=("loss.correction",),
                why="loss.name = reinforce, which has no ratio",
                remedy="set loss.correction=truncated",
            )
    elif not ratio_moves(c) and not c.loss.custom:
        yield Inert(
            keys=_keys("loss", "name", "eps_low", "eps_high"),
            why=f"loss.correction = {c.loss.correction} and train.updates_per_batch = 1, where the ratio is 1 and nothing is "
            "clipped",
            remedy="set loss.correction=ratio or train.updates_per_batch=2 or more",
        )
    if c.loss.custom:
        yield Inert(
            keys=("loss.name",),
            why=f"loss.custom = {c.loss.custom}, which takes its place",
            remedy="clear loss.custom",
        )
    if c.loss.aggregation != "constant":
        yield Inert(
            keys=("loss.constant_length",),
            why=f"loss.aggregation = {c.loss.aggregation}",
            remedy="set loss.aggregation=constant",
        )


def _of_learner(c: RunConfig) -> Iterator[Inert]:
    if not c.model.lora.rank:
        yield Inert(
            keys=_keys("model.lora", "alpha", "targets", "adapter"),
            why="model.lora.rank = 0, where all weights are trained",
            remedy="set model.lora.rank",
            switch=("model.lora.rank",),
        )
    if c.learner.packing == "none":
        yield Inert(
            keys=("learner.max_row_tokens",),
            why="learner.packing = none, where every completion has a row of its own",
            remedy="set learner.packing=group",
            switch=("learner.packing",),
        )
    if c.learner.num_gpus > 0:
        yield Inert(
            keys=("learner.threads",),
            why=f"learner.num_gpus = {c.learner.num_gpus:g}: it is for ranks on CPU",
            switch=("learner.num_gpus",),
        )
    updates = c.train.steps * c.train.updates_per_batch
    if c.learner.schedule != "constant" and c.learner.warmup_steps >= updates > 0:
        yield Inert(
            keys=("learner.schedule",),
            why=f"learner.warmup_steps = {c.learner.warmup_steps} and {updates} updates in the run "
            "(train.steps * train.updates_per_batch): the warm-up never ends",
            remedy="lower learner.warmup_steps",
            switch=("train.steps", "train.updates_per_batch"),
        )


def _of_rollout(r: RolloutConfig) -> Iterator[Inert]:
    if r.num_gpus > 0:
        yield Inert(
            keys=_keys("rollout", "kv_cache_gib", "threads"),
            why=f"rollout.num_gpus = {r.num_gpus:g}: it is for engines on CPU",
            switch=("rollout.num_gpus",),
        )


def _of_reward(r: RewardConfig) -> Iterator[Inert]:
    length = LENGTHS[r.rubric] if r.length == "preset" else r.length
    chosen = f"reward.rubric = {r.rubric}" if r.length == "preset" else f"reward.length = {r.length}"
    switch = ("reward.rubric", "reward.length")
    if length != "band":
        yield Inert(
            keys=("reward.band",),
            why=f"{chosen}: it has no band of wanted lengths",
            remedy="set reward.length=band",
            switch=switch,
        )
    if length != "overlong":
        yield Inert(
            keys=("reward.overlong_buffer",),
            why=f"{chosen}: it has no penalty before the limit",
            remedy="set reward.length=overlong",
            switch=switch,
        )
    if r.length == "overlong" and r.overlong_buffer == 0:
        yield Inert(
            keys=("reward.length",),
            why="reward.overlong_buffer = 0, which switches the penalty off",
            remedy="set reward.overlong_buffer to a number of tokens",
        )
    if not r.custom:
        yield Inert(
            keys=("reward.w_custom",),
            why='reward.custom = ""',
            remedy="set reward.custom=package.module:function",
            switch=("reward.custom",),
        )
    if not r.endpoint:
        yield Inert(
            keys=_keys("reward", "token_file", "ca_file"),
            why='reward.endpoint = ""',
            remedy="set reward.endpoint=HOST:PORT",
            switch=("reward.endpoint",),
        )


def _of_workers(c: Config) -> Iterator[Inert]:
    if c.reward.endpoint:
        yield Inert(
            keys=(*_keys("reward", *LOCAL_REWARDS), "placement.reward"),
            why=f"reward.endpoint = {c.reward.endpoint}: the service scores, not workers of the run",
            remedy="clear reward.endpoint",
            switch=("reward.endpoint",),
        )
    if not c.sampling.dynamic_sampling:
        yield Inert(
            keys=("sampling.dynamic_sampling_limit",),
            why="sampling.dynamic_sampling = false",
            remedy="set sampling.dynamic_sampling=true",
            switch=("sampling.dynamic_sampling",),
        )
    elif c.sampling.dynamic_sampling_limit <= 1:
        yield Inert(
            keys=("sampling.dynamic_sampling",),
            why=f"sampling.dynamic_sampling_limit = {c.sampling.dynamic_sampling_limit:g}, which leaves no room for more groups",
            remedy="raise sampling.dynamic_sampling_limit above 1",
        )


def _of_tabletop(c: RunConfig) -> Iterator[Inert]:
    tabletop = c.data.tabletop
    if not tabletop.train_scenes and not tabletop.heldout_scenes:
        yield Inert(
            keys=_keys("data.tabletop", "difficulty", "seed"),
            why="data.tabletop.train_scenes = 0 and data.tabletop.heldout_scenes = 0, where nothing is built",
            remedy="set data.tabletop.train_scenes",
            switch=_keys("data.tabletop", "train_scenes", "heldout_scenes"),
        )
    if not tabletop.train_scenes:
        yield Inert(
            keys=("data.tabletop.train_questions",),
            why="data.tabletop.train_scenes = 0, where nothing is built",
            remedy="set data.tabletop.train_scenes",
            switch=("data.tabletop.train_scenes",),
        )


def _of_data(c: Config) -> Iterator[Inert]:
    yield from _of_tabletop(c)
    if not c.data.heldout:
        yield Inert(
            keys=(
                "data.tabletop.heldout_scenes",
                *_keys("evaluate", "prompts", "every", "samples", "bootstrap"),
            ),
            why='data.heldout = ""',
            remedy="set data.heldout=DIR",
            switch=("data.heldout",),
        )
    elif not c.evaluate.prompts:
        yield Inert(
            keys=_keys("evaluate", "every", "samples", "bootstrap"),
            why="evaluate.prompts = 0, where nothing is evaluated",
            remedy="set evaluate.prompts",
            switch=("evaluate.prompts",),
        )


def _of_steps(c: RunConfig) -> Iterator[Inert]:
    """Yield the intervals that end after the run; an override of its length lets the file keep them."""
    steps = c.train.steps
    if steps == 0:  # such a run is often another one's config, with this key overridden
        return
    if c.evaluate.every >= steps:
        yield Inert(
            keys=("evaluate.every",),
            why=f"train.steps = {steps}: the run ends before, and is evaluated at its end anyway",
            remedy="lower evaluate.every",
            switch=("train.steps",),
        )
    if c.train.checkpoint_every >= steps:
        yield Inert(
            keys=("train.checkpoint_every",),
            why=f"train.steps = {steps}: a checkpoint is written at the last step anyway",
            remedy="lower train.checkpoint_every",
            switch=("train.steps",),
        )


def _of_logging(c: RunConfig) -> Iterator[Inert]:
    for name, enabled, keys in (
        ("wandb", c.logging.wandb.enabled, ("project", "entity", "mode", "group")),
        ("mlflow", c.logging.mlflow.enabled, ("tracking_uri", "experiment")),
    ):
        if not enabled:
            yield Inert(
                keys=_keys(f"logging.{name}", *keys),
                why=f"logging.{name}.enabled = false",
                remedy=f"set logging.{name}.enabled=true",
                switch=(f"logging.{name}.enabled",),
            )


def _of_plan(c: PlanConfig) -> Iterator[Inert]:
    on_gpu = c.rollout.num_gpus > 0
    keys = ("cores",) if on_gpu else ("gpus", "gpu", "gpus_per_node")
    yield Inert(keys=_keys("plan", *keys), why=f"rollout.num_gpus = {c.rollout.num_gpus:g}")
    if not c.plan.mtbf_hours:
        yield Inert(
            keys=("plan.restart_s",),
            why="plan.mtbf_hours = 0, where no engine dies",
            remedy="set plan.mtbf_hours",
        )


def _of_evaluation(c: EvaluationConfig) -> Iterator[Inert]:
    yield Inert(
        keys=(
            "rollout.max_workers",
            *_keys("reward", *SERVED_REWARDS),
            *_keys("placement", "learner", "reward"),
        ),
        why="an evaluation: its engines do not grow in number, and it scores in its own process",
    )
    switch = ("benchmark.name",)
    if c.benchmark.name != "records":
        yield Inert(
            keys=tuple(f"reward.{name}" for name in vars(c.reward) if name not in SERVED_REWARDS),
            why=f"benchmark.name = {c.benchmark.name}, which has its own scores",
            remedy="set benchmark.name=records",
            switch=switch,
        )
    else:
        yield Inert(
            keys=_keys("benchmark", "max_frames", "fps", "max_pixels"),
            why="benchmark.name = records: a record says which frames are shown",
            switch=switch,
        )
    yield from _of_modes(c.benchmark, scores_whole_texts=c.benchmark.name == "records")
    yield from _of_rollout(c.rollout)
    yield from _of_reward(c.reward)
    yield from _of_judge(c)


def _of_modes(c: BenchmarkConfig, *, scores_whole_texts: bool) -> Iterator[Inert]:
    prompts = prompts_of(c)
    why = f"benchmark.modes = [{', '.join(c.modes)}]"
    switch: tuple[str, ...] = ("benchmark.modes",)
    if not set(c.modes) <= set(get_args(AskingMode)):
        why += f", benchmark.control_prompt = {c.control_prompt}"
        switch += ("benchmark.control_prompt",)
    else:
        controls = ", ".join(mode for mode in get_args(Mode) if mode not in get_args(AskingMode))
        remedy = f"add one of {controls} to the modes"
        yield Inert(keys=("benchmark.control_prompt",), why=why, remedy=remedy, switch=switch)
    if prompts == {"direct"} and not scores_whole_texts:
        yield Inert(keys=("sampling.max_tokens",), why=why, remedy="set sampling.max_tokens_direct", switch=switch)  # fmt: skip
    if "direct" not in prompts:
        yield Inert(keys=("sampling.max_tokens_direct",), why=why, remedy="set sampling.max_tokens", switch=switch)  # fmt: skip


def _of_judge(c: EvaluationConfig) -> Iterator[Inert]:
    if c.benchmark.name != "v_star":
        yield Inert(
            keys=_keys("judge", "endpoint", "model", "api_key_file", "timeout_s"),
            why=f"benchmark.name = {c.benchmark.name}: only v_star has answers that a model rates",
            remedy="set benchmark.name=v_star",
            switch=("benchmark.name",),
        )
    elif not c.judge.endpoint:
        yield Inert(
            keys=_keys("judge", "model", "api_key_file", "timeout_s"),
            why='judge.endpoint = ""',
            remedy="set judge.endpoint=URL",
            switch=("judge.endpoint",),
        )


def _of_sft(c: SftConfig) -> Iterator[Inert]:
    yield Inert(
        keys=(
            *_keys("rollout", "tensor_parallel_size", "num_gpus", "max_num_batched_tokens"),
            *_keys("rollout", "gpu_memory_utilization", "kv_cache_gib", "engine_args"),
            "placement.reward",
        ),
        why="supervised fine-tuning: its rollout workers read references, without an engine, and nothing is scored",
    )
    if c.model.tiny:
        yield Inert(keys=("model.path",), why=f"model.tiny = {c.model.tiny}", remedy='set model.tiny=""')
    if not c.data.heldout or not c.evaluate.prompts:
        yield Inert(
            keys=("data.tabletop.heldout_scenes", *_keys("evaluate", "prompts", "every")),
            why='data.heldout = ""' if not c.data.heldout else "evaluate.prompts = 0",
            remedy="set data.heldout=DIR" if not c.data.heldout else "set evaluate.prompts",
            switch=("data.heldout", "evaluate.prompts"),
        )
    yield from _of_learner(c)
    yield from _of_tabletop(c)
    yield from _of_steps(c)
    yield from _of_logging(c)
