"""The learning of a rank: forward and backward passes over its rows, optimizer steps, the metrics of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor

from actors.learner.policy import TrainedPolicy
from actors.learner.rows import RankRows
from videostr.config.schema import Config
from videostr.errors import GradientError
from videostr.groups import LearnerBatch
from videostr.grpo.batch import Row
from videostr.grpo.loss import Counts, LossSums, count, policy_loss
from videostr.grpo.schedule import learning_rate, mini_batches
from videostr.types import Update

MAX_NONFINITE_STEPS = 5
"""Optimizer steps in a row whose gradient is NaN or infinite; so many end the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One optimizer step."""

    sums: LossSums
    """Over all ranks."""
    norm: float
    """Of the gradient before clipping."""
    rate: float
    """Learning rate."""

    @property
    def was_taken(self) -> bool:
        return math.isfinite(self.norm)


class Updater:
    """Learns from batches; every public method is a collective.

    Attributes:
        version: weight version, the number of batches learned from.
        updates: optimizer steps taken, `train.updates_per_batch` a batch.
        rows: plans and builds the rows of this rank.
    """

    def __init__(self, config: Config, trained: TrainedPolicy, rows: RankRows, device: torch.device) -> None:
        self.version = self.updates = 0
        self._config = config
        self._trained = trained
        self._engine = trained.engine
        self.rows = rows
        self._device = device
        self._nonfinite_steps = 0
        """In a row."""

    def update(self, batch: LearnerBatch) -> Update:
        """Learn from the groups that can be encoded; the result is the same on every rank.

        Takes `train.updates_per_batch` optimizer steps, each on a mini-batch of whole groups, and as many as there are
        groups where these are fewer. Without any group there is no step, and the version stays.

        Raises:
            LearnerError: the batch has no completion to learn from.
            ConfigError: `loss.custom` failed.
            GradientError: the gradient was NaN or infinite in `MAX_NONFINITE_STEPS` steps in a row.
        """
        batch, failures = self.rows.without_failures(batch)
        if failures and not batch.groups:
            return Update(version=self.version, failures=failures)
        parts = [
            replace(batch, groups=groups, advantages=advantages)
            for groups, advantages in zip(
                mini_batches(batch.groups, self._config.train.updates_per_batch),
                mini_batches(batch.advantages, self._config.train.updates_per_batch),
                strict=True,
            )
        ]
        old = self._old_logprobs(parts)
        steps = [self._step(part, logprobs) for part, logprobs in zip(parts, old, strict=True)]
        self.rows.trim()
        self.version += 1
        return Update(version=self.version, metrics=self._metrics(steps), failures=failures)

    def forward(self, batch: LearnerBatch, lengths: Sequence[Sequence[int]]) -> Iterator[tuple[Row, Tensor]]:
        """Yield this rank's rows and their log-probabilities [N], without gradient."""
        for row, logprobs, _ in self.predict(batch, lengths):
            yield row, logprobs

    def predict(
        self, batch: LearnerBatch, lengths: Sequence[Sequence[int]], *, most_likely: bool = False
    ) -> Iterator[tuple[Row, Tensor, Tensor]]:
        """Yield this rank's rows, their log-probabilities [N], and entropies [N] or the most likely tokens [N]."""
        for row in self.rows.build(self.rows.plan(batch, lengths), batch):
            with torch.no_grad():
                logprobs, other = self._engine(row, batch.temperature, most_likely)
            yield row, logprobs, other

    def accumulate(self, batch: LearnerBatch, old: Sequence[Tensor] | None = None) -> LossSums:
        """Run forward and backward over this rank's rows; gradients are left reduced over ranks, sums are of all ranks.

        Args:
            batch: of one optimizer step.
            old: log-probabilities [N] of each of this rank's rows before the first step on the sampled batch; None in that
                step.
        """
        lengths = self.rows.learned_lengths(batch)
        plan, counts = self.rows.plan(batch, lengths), count(lengths)
        sums = LossSums()
        for number, row in enumerate(self.rows.build(plan, batch)):
            self._engine.set_gradient_accumulation_boundary(number == len(plan) - 1)
            before = None if old is None else old[number]
            loss, row_sums = self._row_loss(row, batch.temperature, counts, before)
            # DeepSpeed averages gradients over ranks, the loss is a sum over them.
            self._engine.backward(loss * dist.get_world_size())
            sums = sums.plus(row_sums) if self._trained.is_first_of_row else sums
        return self._reduce(sums)

    def _old_logprobs(self, parts: Sequence[LearnerBatch]) -> list[list[Tensor] | None]:
        """Return the learner's log-probabilities [N] before the first step, of every row of each part.

        None where the loss does not need them: in the first part, which is learned from with these weights, and in all
        where the ratio is taken against the engine.
        """
        if self._config.loss.correction == "ratio":
            return [None for _ in parts]
        later = (self.forward(part, self.rows.learned_lengths(part)) for part in parts[1:])
        return [None, *([logprobs for _, logprobs in rows] for rows in later)]

    def _step(self, batch: LearnerBatch, old: Sequence[Tensor] | None) -> _Step:
        """Take one optimizer step, unless the gradient is NaN or infinite."""
        train = self._config.train
        rate = learning_rate(self._config.learner, self.updates, train.steps * train.updates_per_batch)
        for group in self._trained.optimizer.param_groups:
            group["lr"] = rate
        step = _Step(sums=self.accumulate(batch, old), norm=self._step_engine(), rate=rate)
        if step.was_taken:
            self.updates += 1
            self._nonfinite_steps = 0
            return step
        self._nonfinite_steps += 1
        if self._nonfinite_steps >= MAX_NONFINITE_STEPS:
            raise GradientError(
                f"the gradient was NaN or infinite in {self._nonfinite_steps} optimizer steps in a row; the weights are those "
                "before them",
                remedy="lower learner.lr, look into traces/ whether the policy has collapsed, and start again from an "
                "earlier checkpoint",
            )
        return step

    def _step_engine(self) -> float:
        """Apply the gradients, unless they are NaN or infinite; return their norm before clipping."""
        engine = self._engine
        if self._config.learner.zero_stage > 0:
            engine.step()
            return float(engine.get_global_grad_norm())
        norm = self._local_gradient_norm()
        if math.isfinite(norm) or engine.bfloat16_enabled():
            engine.step()
        else:  # in all other modes DeepSpeed itself skips such a step
            engine.zero_grad()
        return norm

    def _row_loss(
        self, row: Row, temperature: float, counts: Counts, old: Tensor | None
    ) -> tuple[Tensor, LossSums]:
        reference = self._trained.reference_logprobs(row, temperature)
        self._trained.keep_activations(row)
        logprobs, entropy = self._engine(row, temperature)
        return policy_loss(row, logprobs, entropy, self._config.loss, counts, reference, old)

    def _local_gradient_norm(self) -> float:
        """Return the 2-norm of the reduced gradients, which without ZeRO every rank holds whole."""
        gradients = (parameter.grad for parameter in self._trained.trained_parameters())
        norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
        return float(torch.stack(norms).norm())

    # --------------------------------------------------------------------------------------------- metrics

    def _metrics(self, steps: Sequence[_Step]) -> dict[str, float]:
        """Return the metrics of all steps on a batch.

        Means over tokens are of all its tokens. `mismatch_kl` is of the first mini-batch, whose weights are those that the
        batch met; the steps after it have moved them on purpose.
        """
        metrics = reduce(LossSums.plus, (step.sums for step in steps)).metrics(self._config)
        taken = [step.norm for step in steps if step.was_taken]
        first = steps[0].sums.metrics(self._config)
        metrics |= {
            "loss": metrics["loss"] / len(steps),
            **{name: value for name, value in first.items() if name == "mismatch_kl"},
            "grad_norm": sum(taken) / len(taken) if taken else math.nan,
            "lr": steps[-1].rate,
        }
        if self._config.train.updates_per_batch > 1:
            metrics["updates"] = len(taken)
        if skipped := len(steps) - len(taken):
            metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
            metrics["nonfinite_steps"] = skipped
        return metrics | self._vision_metrics()

    def _reduce(self, sums: LossSums) -> LossSums:
        """Return sums over all ranks, and the largest of what ends in `_max`."""
        values = asdict(sums)
        largest = {name: values.pop(name) for name in tuple(values) if name.endswith("_max")}
        found: dict[str, float] = {}
        for part, operation in ((values, dist.ReduceOp.SUM), (largest, dist.ReduceOp.MAX)):
            numbers = torch.tensor(list(part.values()), dtype=torch.float64, device=self._device)
            dist.all_reduce(numbers, op=operation)
            found |= dict(zip(part, numbers.tolist(), strict=True))
        return LossSums(**found)

    def _vision_metrics(self) -> dict[str, float]:
        """Return how many clips' features were known and how many were computed, on all ranks since the last call."""
        features = self._trained.features
        if features is None:
            return {}
        found = [features.hits, features.misses] if self._trained.is_first_of_row else [0, 0]
        counts = torch.tensor(found, device=self._device)
        features.hits = features.misses = 0
        dist.all_reduce(counts)
        hits, misses = counts.tolist()
        return {"vision/hits": hits, "vision/misses": misses}
