"""What a step says of itself: one flat row of numbers for `metrics.jsonl`, and one line for the user."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from videostr.checkpoint import RunState
from videostr.errors import ZeroVarianceError
from videostr.groups import RolloutGroup
from videostr.grpo.advantage import has_zero_variance
from videostr.types import FinishReason, Update

log = logging.getLogger(__name__)


def step_metrics(
    state: RunState, groups: Sequence[RolloutGroup], update: Update, failures: Counter[str]
) -> dict[str, float]:
    """Return the metrics of a step, sampling, times and sync left out; `failures` are counted since the process started."""
    return {
        "step": state.step,
        "version": state.version,
        **update.metrics,
        "tokens/prompt": sum(group.sampled.num_prompt_tokens for group in groups),
        "tokens/completion": completion_tokens(groups),
        **{f"failures/{kind}": count for kind, count in sorted(failures.items())},
    }


def sampling_metrics(groups: Sequence[RolloutGroup], update: Update, rollout_s: float) -> dict[str, float]:
    """Return rewards, staleness and speed of sampled groups; nothing of references, which are neither sampled nor scored."""
    completions = [completion for group in groups for completion in group.sampled.completions]
    scores = [score for group in groups for score in group.scores]
    spans = [[span for c in group.sampled.completions for span in c.weight_versions] for group in groups]
    if not any(spans):
        return {}
    rewards = {"reward/total": float(np.mean([score.total for score in scores]))}
    for name in sorted({name for score in scores for name in score.parts}):
        values = [score.parts[name] for score in scores if name in score.parts]
        rewards[f"reward/{name}"] = float(np.mean(values))
    before = update.version - 1 if update.metrics else update.version
    staleness = [before - min(span.version for span in group) for group in spans]
    return {
        **rewards,
        "truncated_fraction": float(
            np.mean([completion.finish_reason is FinishReason.LENGTH for completion in completions])
        ),
        "zero_variance_groups": sum(has_zero_variance(group.totals) for group in groups),
        "staleness/mean": float(np.mean(staleness)),
        "staleness/max": max(staleness),
        "rollout/tokens_per_s": completion_tokens(groups) / max(rollout_s, 1e-9),
    }


def completion_tokens(groups: Sequence[RolloutGroup]) -> int:
    """Return sampled tokens of all completions."""
    return sum(completion.num_tokens for group in groups for completion in group.sampled.completions)


class Progress:
    """One line a step, the same on a terminal and in a log file."""

    def __init__(self, steps: int, done: int) -> None:
        self.steps = steps
        self.first = done
        self.started = time.monotonic()

    def step(self, metrics: Mapping[str, float]) -> None:
        """Log a step."""
        step = int(metrics["step"])
        left = (time.monotonic() - self.started) / (step - self.first) * (self.steps - step)
        names = [f"reward/{name}" for name in ("total", "format", "answer", "graph", "custom")]
        if "reward/total" not in metrics:
            names = ["loss", "grad_norm"]
        figures = [f"{name.removeprefix('reward/')} {metrics[name]:.3f}" for name in names if name in metrics]
        if (speed := metrics.get("rollout/tokens_per_s")) is not None:
            figures.append(f"{speed:6.0f} tokens/s")
        log.info(
            "step %*d/%d  %s  %5.1f s  %s left",
            len(str(self.steps)),
            step,
            self.steps,
            "  ".join(figures),
            metrics["time/step"],
            duration(left),
        )


class Signal:
    """Stops a run that learns nothing."""

    def __init__(self, max_zero_variance_steps: int) -> None:
        self.max_zero_variance_steps = max_zero_variance_steps
        self.zero_variance_steps = 0

    def step(self, metrics: Mapping[str, float], learned: bool) -> None:
        """Note a step and whether it had a group to learn from.

        Raises:
            ZeroVarianceError: `train.max_zero_variance_steps` steps in a row had none; with the likely cause.
        """
        self.zero_variance_steps = 0 if learned else self.zero_variance_steps + 1
        if not self.max_zero_variance_steps or self.zero_variance_steps < self.max_zero_variance_steps:
            return
        parts = {
            name: metrics[f"reward/{name}"]
            for name in ("total", "format", "answer")
            if f"reward/{name}" in metrics
        }
        raise ZeroVarianceError(
            f"{self.zero_variance_steps} steps in a row had no group whose rewards differ (train.max_zero_variance_steps = "
            f"{self.max_zero_variance_steps}): means of the last: "
            f"{', '.join(f'{name} {value:.3f}' for name, value in parts.items())}, truncated "
            f"{metrics['truncated_fraction']:.0%}",
            remedy=_likely_cause(parts, metrics["truncated_fraction"]),
        )


def _likely_cause(parts: Mapping[str, float], truncated: float) -> str:
    if truncated > 0.5:
        return "most completions are cut off: raise sampling.max_tokens, or ask for less in the prompt"
    if parts.get("format", 1.0) < 0.05:
        return "the policy does not write the format: fine-tune it (python -m videostr.sft), or start from another one"
    if parts.get("answer", 0.0) > 0.95:
        return "nearly all answers are right: the records are too easy, take harder ones"
    return (
        "all completions of a group score the same: raise sampling.temperature or sampling.group_size, set "
        "sampling.dynamic_sampling=true, or look into traces/ whether the policy has collapsed"
    )


def duration(seconds: float) -> str:
    """Return a text such as "1 h 05 min", "3 min 20 s" or "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
