"""Keys that have no effect with the values of others: a config that sets one is refused.

In: a config and which keys were written. Out: one message for each written key that would do nothing.

`Inert` names the keys, the reason and the remedy. Where its `switch` is given by an override, the file may keep the keys: so
one file serves `reward.endpoint=HOST:PORT`, `evaluate.prompts=0` and the like. The loss has no such switch: there nothing may
be silent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videostr.config import ColdStartConfig, Config, EvaluationConfig, RewardConfig, RolloutConfig

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
    remedy: str
    switch: tuple[str, ...] = ()
    """Keys whose override lets the file keep `keys`."""


def ratio_moves(config: Config) -> bool:
    """Return whether the ratio of the policy loss can differ from 1, so that clipping acts.

    Against the learner's own log-probabilities before the first update on a batch, it is 1 in that update.
    """
    return config.loss.correction == "ratio" or config.train.updates_per_batch > 1


def keys_without_effect(
    config: Config | ColdStartConfig | EvaluationConfig,
    values: Mapping[str, Any],
    written: Written,
) -> dict[str, str]:
    """Return a message for each written key without effect, by key.

    Args:
        config: what is loaded.
        values: its values by dotted key.
        written: by the user.
    """
    messages: dict[str, str] = {}
    for inert in _inert(config):
        switched = not written.overrides.isdisjoint(inert.switch)
        for key in inert.keys:
            is_written = key in written.overrides or (key in written.file and not switched)
            if is_written and values[key] and key not in messages:  # what is off asks for nothing
                shown = "true" if values[key] is True else values[key]
                messages[key] = f"{key} = {shown}: has no effect with {inert.why}; {inert.remedy}"
    return messages


def _inert(config: Config | ColdStartConfig | EvaluationConfig) -> Iterator[Inert]:
    from videostr import config as schema  # it imports this module

    if isinstance(config, schema.ColdStartConfig):
        yield from _of_coldstart(config)
    elif isinstance(config, schema.EvaluationConfig):
        yield from _of_evaluation(config)
    else:
        yield from _of_loss(config)
        yield from _of_learner(config)
        yield from _of_rollout(config.rollout)
        yield from _of_reward(config.reward)
        yield from _of_workers(config)
        yield from _of_data(config)
        yield from _of_logging(config)


def _keys(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


def _of_loss(c: Config) -> Iterator[Inert]:
    if not ratio_moves(c) and not c.loss.custom:
        yield Inert(
            keys=_keys("loss", "name", "eps_low", "eps_high"),
            why=f"loss.correction = {c.loss.correction} and train.updates_per_batch = 1, where the ratio is 1 and nothing is "
            "clipped",
            remedy="set loss.correction=ratio or train.updates_per_batch=2 or more, or leave the key out",
        )
    if c.loss.custom:
        yield Inert(
            keys=("loss.name",),
            why=f"loss.custom = {c.loss.custom}, which takes its place",
            remedy="leave one of them out",
        )
    if c.loss.aggregation != "constant":
        yield Inert(
            keys=("loss.constant_length",),
            why=f"loss.aggregation = {c.loss.aggregation}",
            remedy="set loss.aggregation=constant, or leave the key out",
        )


def _of_learner(c: Config) -> Iterator[Inert]:
    if c.learner.packing == "none":
        yield Inert(
            keys=("learner.max_row_tokens",),
            why="learner.packing = none, where every completion has a row of its own",
            remedy="set learner.packing=group, or leave the key out",
            switch=("learner.packing",),
        )
    if c.learner.num_gpus > 0:
        yield Inert(
            keys=("learner.threads",),
            why=f"learner.num_gpus = {c.learner.num_gpus:g}: it is for ranks on CPU",
            remedy="leave the key out",
            switch=("learner.num_gpus",),
        )
    updates = c.train.steps * c.train.updates_per_batch
    if c.learner.schedule != "constant" and c.learner.warmup_steps >= updates:
        yield Inert(
            keys=("learner.schedule",),
            why=f"learner.warmup_steps = {c.learner.warmup_steps} and {updates} updates in the run "
            "(train.steps * train.updates_per_batch): the warm-up never ends",
            remedy="lower learner.warmup_steps, or leave the key out",
            switch=("train.steps", "train.updates_per_batch"),
        )


def _of_rollout(r: RolloutConfig) -> Iterator[Inert]:
    if r.num_gpus > 0:
        yield Inert(
            keys=_keys("rollout", "kv_cache_gib", "threads"),
            why=f"rollout.num_gpus = {r.num_gpus:g}: it is for engines on CPU",
            remedy="leave the key out",
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
            remedy="set reward.length=band, or leave the key out",
            switch=switch,
        )
    if length != "overlong":
        yield Inert(
            keys=("reward.overlong_buffer",),
            why=f"{chosen}: it has no penalty before the limit",
            remedy="set reward.length=overlong, or leave the key out",
            switch=switch,
        )
    if r.length == "overlong" and r.overlong_buffer == 0:
        yield Inert(
            keys=("reward.length",),
            why="reward.overlong_buffer = 0, which switches the penalty off",
            remedy="set reward.overlong_buffer to a number of tokens, or leave the key out",
        )
    if not r.custom:
        yield Inert(
            keys=("reward.w_custom",),
            why='reward.custom = ""',
            remedy="set reward.custom=package.module:function, or leave the key out",
            switch=("reward.custom",),
        )
    if not r.endpoint:
        yield Inert(
            keys=_keys("reward", "token_file", "ca_file"),
            why='reward.endpoint = ""',
            remedy="set reward.endpoint=HOST:PORT, or leave the key out",
            switch=("reward.endpoint",),
        )


def _of_workers(c: Config) -> Iterator[Inert]:
    if c.reward.endpoint:
        yield Inert(
            keys=(*_keys("reward", *LOCAL_REWARDS), "placement.reward"),
            why=f"reward.endpoint = {c.reward.endpoint}: the service scores, not workers of the run",
            remedy="leave the key out, or clear reward.endpoint",
            switch=("reward.endpoint",),
        )
    if not c.sampling.refill:
        yield Inert(
            keys=("sampling.refill_limit",),
            why="sampling.refill = false",
            remedy="set sampling.refill=true, or leave the key out",
            switch=("sampling.refill",),
        )
    elif c.sampling.refill_limit <= 1:
        yield Inert(
            keys=("sampling.refill",),
            why=f"sampling.refill_limit = {c.sampling.refill_limit:g}, which leaves no room for a further group",
            remedy="raise sampling.refill_limit above 1, or leave the key out",
        )


def _of_data(c: Config) -> Iterator[Inert]:
    tabletop = c.data.tabletop
    if not tabletop.train_scenes and not tabletop.heldout_scenes:
        yield Inert(
            keys=_keys("data.tabletop", "difficulty", "seed"),
            why="data.tabletop.train_scenes = 0 and data.tabletop.heldout_scenes = 0, where nothing is built",
            remedy="set data.tabletop.train_scenes, or leave the key out",
            switch=_keys("data.tabletop", "train_scenes", "heldout_scenes"),
        )
    if not c.data.heldout:
        yield Inert(
            keys=(
                "data.tabletop.heldout_scenes",
                *_keys("evaluate", "prompts", "every", "samples", "bootstrap"),
            ),
            why='data.heldout = ""',
            remedy="set data.heldout=DIR, or leave the key out",
            switch=("data.heldout",),
        )
    elif not c.evaluate.prompts:
        yield Inert(
            keys=_keys("evaluate", "every", "samples", "bootstrap"),
            why="evaluate.prompts = 0, where nothing is evaluated",
            remedy="set evaluate.prompts, or leave the key out",
            switch=("evaluate.prompts",),
        )
    elif c.evaluate.every >= c.train.steps:
        yield Inert(
            keys=("evaluate.every",),
            why=f"train.steps = {c.train.steps}: the run ends before, and is evaluated at its end anyway",
            remedy="lower evaluate.every, or leave the key out",
            switch=("train.steps",),
        )


def _of_logging(c: Config) -> Iterator[Inert]:
    for name, enabled, keys in (
        ("wandb", c.logging.wandb.enabled, ("project", "entity", "mode", "group")),
        ("mlflow", c.logging.mlflow.enabled, ("tracking_uri", "experiment")),
    ):
        if not enabled:
            yield Inert(
                keys=_keys(f"logging.{name}", *keys),
                why=f"logging.{name}.enabled = false",
                remedy=f"set logging.{name}.enabled=true, or leave the key out",
                switch=(f"logging.{name}.enabled",),
            )


def _of_evaluation(c: EvaluationConfig) -> Iterator[Inert]:
    yield Inert(
        keys=(
            "rollout.max_workers",
            *_keys("reward", *SERVED_REWARDS),
            *_keys("placement", "learner", "reward"),
        ),
        why="an evaluation: its engines do not grow in number, and it scores in its own process",
        remedy="leave the key out",
    )
    if c.benchmark != "records":
        yield Inert(
            keys=tuple(f"reward.{name}" for name in vars(c.reward) if name not in SERVED_REWARDS),
            why=f"benchmark = {c.benchmark}, which has its own scores",
            remedy="set benchmark=records, or leave the key out",
            switch=("benchmark",),
        )
    else:
        yield Inert(
            keys=_keys("frames", "max_frames", "fps", "max_pixels"),
            why="benchmark = records: a record says which frames are shown",
            remedy="leave the key out",
            switch=("benchmark",),
        )
    if list(c.modes) == ["direct"] and c.benchmark != "records":
        yield Inert(
            keys=("max_tokens",),
            why="modes = [direct]",
            remedy="set max_tokens_direct",
            switch=("modes",),
        )
    if "direct" not in c.modes:
        yield Inert(
            keys=("max_tokens_direct",),
            why=f"modes = [{', '.join(c.modes)}]",
            remedy="set max_tokens",
            switch=("modes",),
        )
    yield from _of_rollout(c.rollout)
    yield from _of_reward(c.reward)
    yield from _of_judge(c)


def _of_judge(c: EvaluationConfig) -> Iterator[Inert]:
    if c.benchmark != "v_star":
        yield Inert(
            keys=_keys("judge", "endpoint", "model", "api_key_file", "timeout_s"),
            why=f"benchmark = {c.benchmark}: only v_star has answers that a model rates",
            remedy="set benchmark=v_star, or leave the key out",
            switch=("benchmark",),
        )
    elif not c.judge.endpoint:
        yield Inert(
            keys=_keys("judge", "model", "api_key_file", "timeout_s"),
            why='judge.endpoint = ""',
            remedy="set judge.endpoint=URL, or leave the key out",
            switch=("judge.endpoint",),
        )


def _of_coldstart(c: ColdStartConfig) -> Iterator[Inert]:
    if c.device != "cpu":
        yield Inert(
            keys=("threads",), why=f"device = {c.device}", remedy="leave the key out", switch=("device",)
        )
    if not c.heldout:
        yield Inert(
            keys=("heldout_prompts",),
            why='heldout = ""',
            remedy="set heldout=DIR, or leave the key out",
            switch=("heldout",),
        )
