"""Prompts in, reference traces out: the rollout workers of supervised fine-tuning, which have no engine.

A `ReferenceWorker` expands a prompt, which takes the frames of its clip, and makes token ids of the references that a request
brings. It is called as a `RolloutWorker` is, by the same pool.
"""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import torch

from actors.sampling import SamplingWorker
from videostr.config.schema import Config
from videostr.console import send_output_to
from videostr.errors import VideoError
from videostr.groups import Sampled
from videostr.models.base import family_of
from videostr.models.checkpoint import check_model
from videostr.models.processor import load_processor
from videostr.ports import SampleRequest
from videostr.trace import opened, rest_of
from videostr.types import Completion, Failure, FailureKind, FinishReason, Prompt
from videostr.video import FrameStore


class ReferenceWorker(SamplingWorker):
    """Reads references instead of sampling; lives in a process of its own."""

    def __init__(self, index: int, config: Config, frame_store: str, log_file: str) -> None:
        self.name = f"reference worker {index}"
        self.config = config
        self.frames = FrameStore(frame_store)
        self.log_file = log_file

    async def start(self) -> None:
        """Become ready.

        Raises:
            ModelError: the checkpoint cannot be trained.
        """
        send_output_to(self.log_file)
        self.load()

    def load(self) -> None:
        """Load processor and tokenizer; raises as `start` does."""
        torch.set_num_threads(self.config.rollout.threads)
        path = self.config.model.path
        self._model_config = check_model(path, cpu=False)
        self._processor = load_processor(path, self._model_config)
        self._family = family_of(path)

    async def sample(self, request: SampleRequest) -> Sampled | Failure:
        """Return the references of a request as completions; input that cannot be used comes back as a `Failure`."""
        return await asyncio.to_thread(self._read, request)

    def _read(self, request: SampleRequest) -> Sampled | Failure:
        record = request.prompt.record_id
        try:
            prompt = self._expand(request.prompt)
        except VideoError as error:
            return Failure(kind=FailureKind.BAD_VIDEO, record_id=record, detail=str(error))
        except Exception as error:  # what a processor raises for a prompt is of many kinds
            logging.getLogger(__name__).exception("%s: cannot be encoded", record)
            return Failure(
                kind=FailureKind.ENGINE,
                record_id=record,
                detail=f"{self.name} cannot encode the prompt ({type(error).__name__}: {error})",
            )
        completions = tuple(self._completion(text, request.prompt.text) for text in request.references)
        length = len(prompt) + max(len(completion.token_ids) for completion in completions)
        if length > (limit := self.config.rollout.max_model_len):
            return Failure(
                kind=FailureKind.PROMPT_TOO_LONG,
                record_id=record,
                detail=f"{length} tokens of prompt and reference, rollout.max_model_len = {limit}; raise it or show fewer frames",
            )
        return Sampled(prompt_token_ids=prompt, completions=completions)

    def _expand(self, prompt: Prompt) -> np.ndarray:
        """Return the token ids [T] int32 of a prompt, its video placeholder expanded."""
        frames = self.frames.frames(prompt.clip)
        (inputs,) = self._family.encode([prompt], [frames], self._processor, self._model_config)
        return inputs.input_ids.numpy().astype(np.int32)

    def _completion(self, text: str, prompt: str) -> Completion:
        """Return a reference as a completion that ended by itself; what the prompt opens already has no tokens."""
        tokenizer, rest = self._processor.tokenizer, rest_of(text, prompt)
        ids = tokenizer(rest + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        return Completion(
            text=opened(prompt) + rest,
            token_ids=np.asarray(ids, dtype=np.int32),
            logprobs=np.full(len(ids), np.nan, dtype=np.float32),
            finish_reason=FinishReason.STOP,
            weight_versions=(),
        )

    async def pause(self) -> None:
        """Do nothing: references do not depend on weights."""

    async def ping(self) -> None:
        """Answer a health check."""

    def close(self) -> None:
        """End nothing: the process ends with its actor."""
