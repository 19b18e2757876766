"""Teacher-forced accuracy on held-out references: how well the policy predicts each token, given the true ones before it.

In: held-out records with their references, ports. Out: an `Evaluation` whose figures are `tokens` and `digits` (the share of
tokens, and of those that are one digit, whose most likely value is the true one) and `loss` (the mean of -log p, nats).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from videostr.asking import ask
from videostr.data.prompts import PromptItem
from videostr.groups import LearnerBatch, RolloutGroup, SampledGroup
from videostr.heldout import Evaluation, EvaluationRequest
from videostr.ports import SampleRequest
from videostr.types import Failure, FailureKind


class TeacherForcing:
    """Evaluates held-out references; implements `videostr.heldout.Evaluate`."""

    def __init__(self, processor: Any) -> None:
        """Take the policy's processor, which knows the tokens of digits."""
        vocabulary = processor.tokenizer.get_vocab()
        self._digits = [vocabulary[str(digit)] for digit in range(10) if str(digit) in vocabulary]

    async def __call__(self, request: EvaluationRequest) -> Evaluation:
        """Return the figures of the learner's weights, which are those of `version`; nothing is sampled.

        Prompts that fail are counted and left out. Weights that have become others meanwhile are a failure of all.
        """
        config, heldout, ports, version = request.config, request.heldout, request.ports, request.version
        items = {item.record.id: item for item in heldout if isinstance(item, PromptItem)}
        groups: dict[str, RolloutGroup] = {}

        async def keep(name: str, sampled: SampledGroup) -> None:
            groups[name] = RolloutGroup(prompt=items[name].prompt, sampled=sampled, scores=())

        requests = {
            name: SampleRequest(
                prompt=item.prompt, n=1, temperature=1.0, max_tokens=config.sampling.max_tokens, seed=0,
                references=item.references[:1],
            )
            for name, item in items.items()
        }  # fmt: skip
        refused = await ask(requests, ports.rollouts, keep, at_once=config.train.prompts_per_step)
        failures = [*(item for item in heldout if isinstance(item, Failure)), *refused.values()]
        scores: dict[str, dict[str, float]] = {}
        ordered = [groups[name] for name in items if name in groups]
        size = config.train.prompts_per_step
        for chunk in (ordered[start : start + size] for start in range(0, len(ordered), size)):
            if ports.learner.version != version:
                failures += [_too_late(group, version, ports.learner.version) for group in chunk]
                continue
            batch = LearnerBatch(
                groups=tuple(chunk), advantages=tuple(np.ones(1, np.float32) for _ in chunk), temperature=1.0
            )
            found, failed = await ports.learner.predictions(batch)
            failures += failed
            for group in chunk:
                if (values := found.get((group.prompt.record_id, 0))) is not None:
                    (completion,) = (await group.sampled.whole()).completions
                    scores[group.prompt.record_id] = self._figures(completion.token_ids, *values)
        return Evaluation(
            version=version,
            sampled={},
            greedy=scores,
            failures=dict(Counter(failure.kind.name.lower() for failure in failures)),
            best_by="tokens",
        )

    def _figures(self, true: np.ndarray, logprobs: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
        """Return the figures of one reference."""
        right, is_digit = tokens == true, np.isin(true, self._digits)
        figures = {"tokens": float(right.mean()), "loss": -float(logprobs.mean())}
        return figures | ({"digits": float(right[is_digit].mean())} if is_digit.any() else {})


def _too_late(group: RolloutGroup, version: int, now: int) -> Failure:
    return Failure(
        kind=FailureKind.OTHER_WEIGHTS,
        record_id=group.prompt.record_id,
        detail=f"the learner has version {now}, version {version} is evaluated",
    )
