"""The packed rows of a batch that are this rank's.

In: a `LearnerBatch`. Out: the plan that all ranks make alike, and this rank's rows with their tensors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from actors.encoding import PromptEncoder
from actors.learner.policy import TrainedPolicy
from videostr.config.schema import Config
from videostr.errors import LearnerError
from videostr.groups import LearnerBatch
from videostr.grpo.batch import Group, Row, RowPlan, assign_rows, build_row, plan_rows
from videostr.grpo.loss import completion_lengths
from videostr.types import Failure, FinishReason
from videostr.video import FrameStore


class RankRows:
    """Plans the rows of batches and builds those of one rank."""

    def __init__(
        self, config: Config, trained: TrainedPolicy, frames: FrameStore, device: torch.device
    ) -> None:
        self._config = config
        self._features = trained.features
        self._sequence = trained.sequence
        self._device = device
        self._family = trained.family
        self._model_config = trained.policy.config
        self._cost = self._family.row_cost(self._model_config, freeze_vision=config.model.freeze_vision)
        self._encoder = PromptEncoder(frames, self._family, trained.processor, self._model_config)

    def without_failures(self, batch: LearnerBatch) -> tuple[LearnerBatch, tuple[Failure, ...]]:
        """Return the batch without the groups that some rank cannot encode, and why; the same on every rank.

        All prompts are encoded before the first row is computed: a rank that fails between two collectives of a step
        would leave the others waiting. What is left is planned again, so that a rank may meet prompts that are new to it.
        """
        failures: list[Failure] = []
        while batch.groups:
            plan = self.plan(batch, self.learned_lengths(batch))
            mine = sorted({segment.group for row in plan for segment in row.segments})
            failed = self._of_all_ranks(
                {i: failure for i in mine if (failure := self._encoder.failure(batch.groups[i]))}
            )
            if not failed:
                break
            failures += [failed[i] for i in sorted(failed)]
            kept = [i for i in range(len(batch.groups)) if i not in failed]
            batch = replace(
                batch,
                groups=tuple(batch.groups[i] for i in kept),
                advantages=tuple(batch.advantages[i] for i in kept),
            )
        return batch, tuple(failures)

    def learned_lengths(self, batch: LearnerBatch) -> list[list[int]]:
        """Return the lengths [P][G] that take part in the loss."""
        return completion_lengths(all_lengths(batch), _truncated(batch), self._config.loss)

    def plan(self, batch: LearnerBatch, lengths: Sequence[Sequence[int]]) -> tuple[RowPlan, ...]:
        """Return this rank's rows for completions of these lengths.

        Raises:
            LearnerError: there is no completion to learn from.
        """
        rows = plan_rows(
            [group.sampled.num_prompt_tokens for group in batch.groups],
            lengths,
            max_row_tokens=self._config.learner.max_row_tokens,
            packing=self._config.learner.packing,
            patches=[
                self._family.num_patches(group.tokens.prompt_token_ids, self._model_config)
                for group in batch.groups
            ],
            cost=self._cost,
        )
        if not rows:
            raise LearnerError(
                f"a batch of {len(batch.groups)} groups has no completion to learn from: all are of zero variance, empty or "
                "masked out",
                remedy="allow longer completions (sampling.max_tokens) or set loss.mask_truncated=false",
            )
        shared = self._config.learner.sequence_parallel
        return assign_rows(rows, dist.get_world_size() // shared)[dist.get_rank() // shared]

    def build(self, plan: Sequence[RowPlan], batch: LearnerBatch) -> Iterator[Row]:
        """Yield the planned rows; while one is computed, frames of the next are read and processed in a thread.

        Pixels of two rows are held at a time.
        """
        threads = partial(
            torch.set_num_threads, torch.get_num_threads()
        )  # OpenMP counts them for each thread
        with ThreadPoolExecutor(1, thread_name_prefix="rows", initializer=threads) as ahead:
            encode = partial(ahead.submit, partial(self._encode_row, batch))
            waiting = deque(encode(row) for row in plan[:1])
            for number, row in enumerate(plan):
                groups = waiting.popleft().result()
                waiting.extend(encode(each) for each in plan[number + 1 : number + 2])
                if self._features is not None:
                    groups = {
                        index: self._with_features(batch, index, group) for index, group in groups.items()
                    }
                yield build_row(row, groups).to(self._device)

    def trim(self) -> None:
        """Forget what was kept for an update."""
        self._encoder.clear()
        if self._features is not None:
            self._features.trim()

    def _of_all_ranks(self, mine: Mapping[int, Failure]) -> dict[int, Failure]:
        """Return the failures of all ranks, by group."""
        count = torch.tensor([len(mine)], device=self._device)
        dist.all_reduce(count)
        if not count.item():
            return {}
        parts: list[Mapping[int, Failure]] = [{}] * dist.get_world_size()
        dist.all_gather_object(parts, mine)
        return {group: failure for part in reversed(parts) for group, failure in part.items()}

    def _encode_row(self, batch: LearnerBatch, row: RowPlan) -> dict[int, Group]:
        return {segment.group: self._encode(batch, segment.group) for segment in row.segments}

    def _with_features(self, batch: LearnerBatch, index: int, group: Group) -> Group:
        """Return a group with what the frozen tower makes of its video.

        Each clip passes alone: with others the last bits would depend on which clips are known, and so on when a run resumed.
        """
        assert self._features is not None
        vision = self._features.of(batch.groups[index].prompt.clip.digest, group.prompt.vision)
        return replace(group, prompt=replace(group.prompt, vision=vision))

    def _encode(self, batch: LearnerBatch, index: int) -> Group:
        group = batch.groups[index]
        inputs = self._encoder.encode(group)
        if self._sequence is not None:
            part = self._sequence.computed(inputs.temporal_patches)
            inputs = replace(inputs, vision=self._family.temporal_part(inputs.vision, part))
        completions = group.tokens.completions
        return Group(
            prompt=inputs,
            completions=tuple(torch.from_numpy(c.token_ids.astype(np.int64)) for c in completions),
            behaviour_logprobs=tuple(torch.from_numpy(c.logprobs.astype(np.float32)) for c in completions),
            advantages=torch.from_numpy(batch.advantages[index].astype(np.float32)),
        )


def all_lengths(batch: LearnerBatch) -> list[list[int]]:
    """Return the lengths [P][G] of all completions."""
    return [[each.num_tokens for each in group.sampled.completions] for group in batch.groups]


def _truncated(batch: LearnerBatch) -> list[list[bool]]:
    return [
        [each.finish_reason is FinishReason.LENGTH for each in group.sampled.completions]
        for group in batch.groups
    ]
