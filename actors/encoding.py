"""Prompts of groups -> tensors, compared with what the engine saw; what a rank cannot encode is named, not raised.

In: groups of a batch, frame store, processor. Out: `PromptInputs`, or the `Failure` of a group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from videostr.errors import LearnerError
from videostr.groups import RolloutGroup
from videostr.grpo.batch import PromptInputs
from videostr.models.base import ModelFamily
from videostr.types import Failure, FailureKind
from videostr.video import FrameStore

KEPT_BYTES = 2**30
"""Most bytes of pixels that are kept from `failure` to `encode`; prompts beyond them are encoded twice."""


class PromptEncoder:
    """Encodes prompts as the engine did; `config` is that of the loaded policy."""

    def __init__(self, frames: FrameStore, family: ModelFamily, processor: Any, config: Any) -> None:
        self._frames = frames
        self._family = family
        self._processor = processor
        self._config = config
        self._kept: dict[tuple[str, str], PromptInputs] = {}
        self._bytes = 0

    def encode(self, group: RolloutGroup) -> PromptInputs:
        """Return the tensors of a group's prompt.

        Raises:
            LearnerError: they differ from what the engine saw. What frame store and processor raise is passed on.
        """
        prompt = group.prompt
        key = (prompt.clip.digest, prompt.text)
        if (inputs := self._kept.get(key)) is None:
            frames = self._frames.frames(prompt.clip)
            (inputs,) = self._family.encode([prompt], [frames], self._processor, self._config)
            self._keep(key, inputs)
        _compare(group, inputs)
        return inputs

    def failure(self, group: RolloutGroup) -> Failure | None:
        """Return why a group cannot be encoded, None when it can; keeps what was encoded until `clear`."""
        try:
            self.encode(group)
        except MemoryError:  # is not the record's fault
            raise
        except Exception as error:  # noqa: BLE001  # what a processor raises for a prompt is of many kinds
            known = isinstance(error, LearnerError)
            detail = str(error) if known else f"{type(error).__name__}: {error}"
            return Failure(kind=FailureKind.LEARNER_ENCODING, record_id=group.prompt.record_id, detail=detail)
        return None

    def clear(self) -> None:
        """Forget what was kept."""
        self._kept.clear()
        self._bytes = 0

    def _keep(self, key: tuple[str, str], inputs: PromptInputs) -> None:
        size = sum(tensor.nbytes for tensor in inputs.vision.values())
        if self._bytes + size <= KEPT_BYTES:
            self._kept[key] = inputs
            self._bytes += size


def _compare(group: RolloutGroup, inputs: PromptInputs) -> None:
    seen, encoded = torch.from_numpy(group.tokens.prompt_token_ids.astype(np.int64)), inputs.input_ids
    if torch.equal(seen, encoded):
        return
    shared = min(len(seen), len(encoded))
    differs = (seen[:shared] != encoded[:shared]).nonzero()
    place = int(differs[0]) if len(differs) else shared
    raise LearnerError(
        f"prompt of record {group.prompt.record_id}: the engine saw {len(seen)} tokens, the learner encodes "
        f"{len(encoded)}, first difference at token {place}",
        remedy="both must render and expand the prompt alike: use the same processor (model.path) and frame store for both",
    )
