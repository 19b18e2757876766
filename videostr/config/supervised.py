"""Supervised fine-tuning as a run: `SftConfig` in, the `Config` out that loop and learner work by.

References take the place of samples: their advantage is 1 and their loss -log pi, which is REINFORCE with a reward of 1 and no
baseline. Rollout workers read them, so that collecting a batch does not depend on the weights, and overlaps with learning.
"""

from __future__ import annotations

from dataclasses import fields

from videostr.config.schema import Config, RunConfig
from videostr.config.sections import EvaluateConfig, LossConfig, Model, Sampling, TrainConfig

AHEAD = 1
"""Steps whose references are read while a step learns."""


def as_training(config: RunConfig, model_path: str = "") -> Config:
    """Return what loop and learner work by; `model_path` takes the place of `model.path` where it is given."""
    if isinstance(config, Config):
        return config
    model, train = config.model, config.train
    shared = {each.name: getattr(model, each.name) for each in fields(Model)}
    return Config(
        run=config.run,
        model=Model(**shared | {"path": model_path or model.path}),
        data=config.data,
        sampling=Sampling(group_size=config.references.per_prompt),
        rollout=config.rollout,
        learner=config.learner,
        loss=LossConfig(advantage="none", name="reinforce", correction="none"),
        train=TrainConfig(**vars(train), max_staleness=AHEAD, max_zero_variance_steps=0),
        evaluate=EvaluateConfig(prompts=config.evaluate.prompts, every=config.evaluate.every),
        placement=config.placement,
        logging=config.logging,
    )
