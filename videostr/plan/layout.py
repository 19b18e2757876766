"""A config as a layout of the simulation."""

from __future__ import annotations

from videostr.config import Config
from videostr.plan.memory import Memory
from videostr.plan.simulate import Layout


def layout_of(config: Config, memory: Memory, prompt_tokens: float, cores: float) -> Layout:
    """What a config runs.

    Args:
        config: the run's.
        memory: its estimate; gives the room of the key-value cache, in which the completions of a group share their
        prompt. prompt_tokens: mean length of a prompt.
        cores: that all processes share; 0 where every engine and rank has its own.
    """
    sampling, rollout = config.sampling, config.rollout
    sequence = prompt_tokens / sampling.group_size + sampling.max_tokens
    return Layout(
        engines=rollout.num_workers,
        ranks=config.learner.num_ranks,
        reward_workers=config.reward.num_workers,
        prompts=config.train.prompts_per_step,
        group_size=sampling.group_size,
        staleness=config.train.max_staleness,
        max_num_seqs=rollout.max_num_seqs,
        kv_seqs=int(memory.engine.kv_tokens / sequence),
        row_tokens=config.learner.max_row_tokens if config.learner.packing == "group" else 1,
        refill_limit=sampling.refill_limit if sampling.refill else 0.0,
        cores=cores,
        engine_threads=rollout.threads,
        learner_threads=config.learner.threads,
        updates_per_batch=config.train.updates_per_batch,
    )
