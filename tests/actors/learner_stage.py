"""Learner ranks with real videos: a policy, a batch of groups, and what one process without DeepSpeed makes of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoProcessor

from actors.learner import state
from actors.learner.ray_learner import RayLearner
from actors.learner.worker import LearnerWorker
from videostr.checkpoint import Files
from videostr.config.schema import Config
from videostr.config.sections import LearnerConfig, LossConfig, Model, TrainConfig
from videostr.groups import LearnerBatch, RolloutGroup, Sampled
from videostr.grpo.batch import Group, PromptInputs, build_row, plan_rows
from videostr.grpo.logprobs import PolicyLogprobs
from videostr.grpo.loss import completion_lengths, count, policy_loss
from videostr.models.base import family_of
from videostr.models.checkpoint import load_policy
from videostr.models.layers import checkpointing_layers
from videostr.models.tiny import make_tiny
from videostr.types import ClipSpec, Completion, FinishReason, Prompt
from videostr.video import FrameStore, name_clip

LOSS = LossConfig(mask_truncated=True, kl_coef=0.1, correction="ratio")
SHAPES = (
    ((9, 4, 12), "where is it?"),
    ((3, 8), "how many are there in all?"),
    ((6, 6, 1, 7), "left or right?"),
)
"""Completion lengths and question of each group; the last completion of the first group is truncated."""


class Bench(LearnerWorker):
    """A rank that can be built again in its process, and shows its gradients."""

    def rebuild(self, config: Config) -> None:
        self.config = config
        self.start()

    def gradients(self, batch: LearnerBatch) -> tuple[float, dict[str, np.ndarray]]:
        """Global loss and gradients by Hugging Face name, after a step that throws them away."""
        from deepspeed.utils import safe_get_full_grad

        loss = self.updater.accumulate(batch).loss
        whole, policy = self.config.learner.zero_stage > 0, self.trained.policy
        grads = {n: safe_get_full_grad(p) if whole else p.grad for n, p in policy.named_parameters()}
        found = {n: g.float().cpu().numpy().copy() for n, g in grads.items() if g is not None}
        self.trained.engine.step()
        return loss, found

    def parameters(self) -> dict[str, np.ndarray]:
        """Every parameter whole, by Hugging Face name."""
        return {name: tensor.float().cpu().numpy().copy() for name, tensor in self.trained.full_parameters()}

    def held(self) -> tuple[int, int]:
        """Numbers of the policy and of the reference that this rank keeps between two rows."""
        models = (self.trained.policy, self.trained.reference)
        return tuple(sum(p.ds_tensor.numel() for p in model.parameters()) for model in models)  # type: ignore[return-value]

    def checkpointed(self) -> tuple[int, int]:
        """Layers that compute their activations again for the last row, and all."""
        layers = checkpointing_layers(self.trained.policy)
        return sum(layer.gradient_checkpointing for layer in layers), len(layers)

    def limit_shards(self, size: int) -> None:
        """Cut shards at `size` bytes."""
        state.SHARD_BYTES = size

    def forget(self, rank: int) -> None:
        """Empty one rank's cache of vision features; all count from 0."""
        features = self.trained.features
        features.hits = features.misses = 0
        if self.rank == rank:
            limit, features.max_bytes = features.max_bytes, 0
            features.trim()
            features.max_bytes = limit


class Stage:
    """A policy, a frame store and a batch of groups that show videos."""

    def __init__(self, folder: Path, model_type: str = "") -> None:
        self.policy = folder / f"policy{model_type}"
        self.frames = folder / "frames"
        texts = ["where is the red_ball?", "<think>left</think>"]
        make_tiny(self.policy, seed=0, texts=texts, model_type=model_type)
        self.others: dict[str, Stage] = {}
        self.family = family_of(self.policy)
        self.model_config: Any = AutoConfig.from_pretrained(self.policy)
        self.processor = AutoProcessor.from_pretrained(self.policy)
        self.batch = LearnerBatch(
            groups=tuple(self._group(folder, seed, *shape) for seed, shape in enumerate(SHAPES)),
            advantages=tuple(
                np.random.default_rng(seed).normal(size=len(lengths)).astype(np.float32)
                for seed, (lengths, _) in enumerate(SHAPES)
            ),
            temperature=0.9,
        )

    def of(self, model_type: str) -> Stage:
        """The same videos before a policy of another family."""
        if model_type not in self.others:
            self.others[model_type] = Stage(self.policy.parent, model_type)
        return self.others[model_type]

    @cached_property
    def plain(self) -> tuple[float, dict[str, np.ndarray], dict[tuple[int, int], np.ndarray]]:
        return plain_gradients(self)

    def config(self, **learner: Any) -> Config:
        return Config(
            model=Model(path=str(self.policy), dtype="float32"),
            learner=LearnerConfig(
                **{"num_cpus": 0.1, "lr": 1e-3, "timeout_s": 300.0, "max_row_tokens": 90, **learner}
            ),
            loss=LOSS,
            train=TrainConfig(steps=10),
        )

    def encode(self, prompt: Prompt) -> PromptInputs:
        frames = FrameStore(self.frames).frames(prompt.clip)
        (inputs,) = self.family.encode([prompt], [frames], self.processor, self.model_config)
        return inputs

    def _group(self, folder: Path, seed: int, lengths: tuple[int, ...], question: str) -> RolloutGroup:
        video = folder / f"{seed}.mp4"
        if not video.exists():
            write_video(video, seed)
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        prompt = Prompt(
            record_id=f"r{seed}", text=text, clip=name_clip(ClipSpec(video=video.name, num_frames=4), folder)
        )
        inputs = self.encode(prompt)
        draw = np.random.default_rng(seed)
        return RolloutGroup(
            prompt=prompt,
            sampled=Sampled(
                prompt_token_ids=inputs.input_ids.numpy().astype(np.int32),
                completions=tuple(completion(draw, n, truncated=seed == 0 and n == 12) for n in lengths),
            ),
            scores=(),
        )


def write_video(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 32, 48, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for image in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())


def completion(draw: np.random.Generator, length: int, truncated: bool) -> Completion:
    return Completion(
        text="",
        token_ids=draw.integers(8, 200, length).astype(np.int32),
        logprobs=draw.normal(-5.6, 0.3, length).astype(np.float32),
        finish_reason=FinishReason.LENGTH if truncated else FinishReason.STOP,
        weight_versions=(),
    )


def plain_gradients(stage: Stage) -> tuple[float, dict[str, np.ndarray], dict[tuple[int, int], np.ndarray]]:
    """Loss, gradients and log-probabilities in this process, without DeepSpeed, one completion at a time."""
    policy = load_policy(stage.policy, torch.float32)
    model, batch = PolicyLogprobs(policy, stage.family), stage.batch
    groups = {
        index: Group(
            prompt=stage.encode(group.prompt),
            completions=tuple(torch.from_numpy(c.token_ids).long() for c in group.tokens.completions),
            behaviour_logprobs=tuple(torch.from_numpy(c.logprobs) for c in group.tokens.completions),
            advantages=torch.from_numpy(batch.advantages[index]),
        )
        for index, group in enumerate(batch.groups)
    }
    lengths = [[len(c) for c in group.completions] for group in groups.values()]
    cut = [[c.finish_reason is FinishReason.LENGTH for c in g.sampled.completions] for g in batch.groups]
    taking_part = completion_lengths(lengths, cut, LOSS)
    prompts = [group.sampled.num_prompt_tokens for group in batch.groups]
    total, found = 0.0, {}
    for plan in plan_rows(prompts, lengths, max_row_tokens=1, packing="none"):
        row = build_row(plan, groups)
        ((group, completion),) = row.origins
        logprobs, entropy = model(row, batch.temperature)
        found[group, completion] = logprobs.detach().numpy()
        if taking_part[group][completion]:
            reference = logprobs.detach()  # the reference is the policy itself
            loss, sums = policy_loss(row, logprobs, entropy, LOSS, count(taking_part), reference)
            loss.backward()
            total += sums.loss
    gradients = {n: p.grad.numpy() for n, p in policy.named_parameters() if p.grad is not None}
    return total, gradients, found


async def started(*arguments: Any, **options: Any) -> RayLearner:
    learner = RayLearner(*arguments, **options)
    await learner.restart()
    return learner


async def save(learner: RayLearner, folder: Path) -> Files:
    """Write a checkpoint of the state of now."""
    await learner.snapshot()
    return await learner.write(folder)


def assert_close(gradient: np.ndarray, expected: np.ndarray, name: str) -> None:
    """To 1e-4 of the norm; gradients that are zero but for rounding (biases of keys) to 1e-6.

    Those of a number a head of a recurrent layer, sums over all tokens that nearly cancel, to 1e-3 of the norm.
    """
    error = np.linalg.norm(gradient - expected)
    share = 1e-3 if name.endswith(("A_log", "dt_bias")) else 1e-4
    assert error <= max(share * np.linalg.norm(expected), 1e-6), f"{name}: {error}"


def assert_gradients(
    learner: RayLearner,
    run: Callable[[Awaitable[Any]], Any],
    config: Config,
    batch: LearnerBatch,
    expected_loss: float,
    expected: Mapping[str, Any],
) -> None:
    """Ranks that are rebuilt have this loss, and gradients of these parameters and no others."""
    run(learner.call("rebuild", config))
    for loss, gradients in run(learner.call("gradients", batch)):
        assert loss == pytest.approx(expected_loss, abs=1e-5)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            assert_close(gradient, expected[name], name)
