"""Every family on a real vLLM engine: prompts, log-probabilities and weights are those of the learner.

One engine for each family but the first, which tests/actors/test_engines.py has. They start together, once for the module.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import ray
import torch
from tokenizers import AddedToken
from transformers import AutoProcessor

from actors.rollout import RolloutWorker
from actors.sync import transfer_weights
from tests.actors.agreement import (
    AGREEMENT,
    TEMPERATURE,
    difference,
    differences,
    logprobs_of,
    prompts_of,
    row_policy,
    sharpen,
    write_videos,
)
from tests.actors.sender import Learner, Sender
from videostr.chat import hidden_tokens
from videostr.config.schema import Config
from videostr.errors import TransferError
from videostr.groups import Sampled
from videostr.models.base import FAMILIES, ModelFamily, family_of
from videostr.models.checkpoint import load_policy
from videostr.models.memory import ELEMENT_BYTES
from videostr.ports import SampleRequest
from videostr.types import FinishReason, Prompt
from videostr.video import FrameStore

T = TypeVar("T")
OTHERS = list(FAMILIES)[1:]
THINKING = "qwen3_vl"
"""The family whose policy here is one that always reasons."""
ROUNDED = 0.2
"""Largest difference between log-probabilities of an engine in bfloat16 and of a learner in float32, nats."""
ENDS = ("<|im_end|>", "<|endoftext|>")
MISSING = {
    "qwen3_vl": (
        "model.visual.deepstack_merger_list.1.linear_fc2.weight",
        "model.language_model.layers.1.self_attn.q_norm.weight",
    ),
    "qwen3_5": (
        "model.language_model.layers.0.linear_attn.conv1d.weight",
        "model.language_model.layers.2.linear_attn.A_log",
    ),
}
"""Parameters whose loss has to be seen; such as only some families have."""


@dataclass(frozen=True)
class Served:
    """A family with an engine."""

    family: ModelFamily
    config: Config
    frames: FrameStore
    prompts: tuple[Prompt, ...]
    """About one video each."""
    processor: Any
    engine: Any
    sender: Any

    @property
    def limit(self) -> float:
        """Largest difference of log-probabilities to the learner's in float32, nats."""
        return AGREEMENT if self.config.model.dtype == "float32" else ROUNDED

    @property
    def element_bytes(self) -> int:
        """Of a weight."""
        return ELEMENT_BYTES[self.config.model.dtype]

    @property
    def policy(self) -> str:
        """Folder of the weights that the engine started with."""
        return self.config.model.path


Run = Callable[[Awaitable[T]], T]


@pytest.fixture(scope="module")
def run() -> Iterator[Run[Any]]:
    loop = asyncio.new_event_loop()
    yield loop.run_until_complete
    loop.close()


@pytest.fixture(scope="module")
def all_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    folder = tmp_path_factory.mktemp("families")
    write_videos(folder)
    ray.init(
        "local", num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20
    )
    found = {kind: serve(kind, folder) for kind in OTHERS}
    ray.get([served.engine.start.remote() for served in found.values()])
    yield found
    ray.get([served.engine.close.remote() for served in found.values()])
    ray.shutdown()


@pytest.fixture(params=OTHERS)
def served(request: pytest.FixtureRequest, all_served: dict[str, Served]) -> Served:
    return all_served[request.param]


def serve(kind: str, folder: Path) -> Served:
    family, policy = family_of({"model_type": kind}), folder / kind
    dtype = family.engine_dtypes(cpu=True)[0]
    family.make_tiny(policy, 0, ["where is the red_ball at 2.5 s?", "<0.1 seconds><think>left</think>"])
    sharpen(policy)
    load_policy(policy, getattr(torch, dtype)).save_pretrained(policy)
    if kind == THINKING:
        make_thinking(policy)
    processor = AutoProcessor.from_pretrained(policy)
    config = Config()
    config.model.path, config.model.dtype = str(policy), dtype
    config.rollout.num_cpus = 1
    config.rollout.max_model_len, config.rollout.max_num_batched_tokens = 1024, 4096
    config.sync.timeout_s, config.sync.verify = 60, True
    frames = FrameStore(folder / "frames")
    engine = ray.remote(RolloutWorker).options(num_cpus=1)
    return Served(
        family=family,
        config=config,
        frames=frames,
        prompts=prompts_of(folder, processor),
        processor=processor,
        engine=engine.remote(0, config, str(frames.folder), str(folder / f"{kind}.log")),
        sender=ray.remote(Sender).options(num_cpus=1).remote(str(policy), dtype),
    )


def make_thinking(folder: Path) -> None:
    """Give a policy what released models that always reason have: tokens for the tags, a template that opens the block.

    And two tokens that end a completion. The tags are special tokens here, which is the harder case.
    """
    policy, processor = load_policy(folder, torch.float32), AutoProcessor.from_pretrained(folder)
    processor.tokenizer.add_tokens([AddedToken(tag, special=True) for tag in ("<think>", "</think>")])
    processor.chat_template = processor.chat_template.replace("assistant\n", "assistant\n<think>\n")
    policy.resize_token_embeddings(len(processor.tokenizer))
    policy.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids(list(ENDS))
    policy.save_pretrained(folder)
    processor.save_pretrained(folder)


def sample(served: Served, prompt: Prompt, **changes: Any) -> Sampled:
    request = SampleRequest(prompt=prompt, n=4, temperature=TEMPERATURE, max_tokens=16, seed=7)
    sampled = ray.get(served.engine.sample.remote(replace(request, **changes)), timeout=120)
    assert isinstance(sampled, Sampled), sampled
    return sampled


def difference_of(served: Served, policy: Any, prompt: Prompt, sampled: Sampled) -> float:
    return difference(policy, served.processor, prompt, served.frames.frames(prompt.clip), sampled)


def tokens_of(sampled: Sampled) -> list[np.ndarray]:
    return [completion.token_ids for completion in sampled.completions]


def transfer(served: Served, run: Run[Any], version: int, forget: str = "") -> dict[str, float]:
    learner = Learner(served.config, served.sender, forget=forget)
    metrics: dict[str, float] = run(transfer_weights(served.config, learner, [served.engine], version))
    return metrics


def test_ids_and_logprobs_are_those_of_the_learner(served: Served) -> None:
    policy = row_policy(served.policy)
    spread = []
    for prompt in served.prompts:
        sampled = sample(served, prompt)
        assert difference_of(served, policy, prompt, sampled) < served.limit
        spread.append(logprobs_of(sampled).std())
    assert min(spread) > 0.5  # agreement would say nothing without
    first, *_, last = served.prompts
    swapped = replace(last, text=first.text)
    assert (
        sample(served, swapped).completions[0].token_ids.tolist()
        != sample(served, first).completions[0].token_ids.tolist()
    )


def test_after_a_sync_every_parameter_is_that_of_the_learner(
    served: Served, run: Run[Any], tmp_path: Path
) -> None:
    """The transfer compares all of them; what is sampled then is the proof."""
    prompt = served.prompts[1]
    before = sample(served, prompt)
    names = ray.get(served.sender.perturb.remote(1))
    ray.get(served.sender.save.remote(str(tmp_path)))
    policy = row_policy(tmp_path)
    assert set(names) == {name for name, _ in policy.named_parameters()}
    metrics = transfer(served, run, 1)
    assert metrics["sync/bytes"] == sum(p.numel() * served.element_bytes for p in policy.parameters())
    after = sample(served, prompt)
    assert {span.version for c in after.completions for span in c.weight_versions} == {1}
    assert difference_of(served, policy, prompt, after) < served.limit
    assert difference_of(served, policy, prompt, before) > 10 * served.limit


def test_a_frozen_tower_is_not_sent(served: Served, run: Run[Any], tmp_path: Path) -> None:
    served.config.model.freeze_vision = True
    ray.get([served.sender.freeze_vision.remote(True), served.sender.perturb.remote(2, "language_model")])
    ray.get(served.sender.save.remote(str(tmp_path)))
    metrics = transfer(served, run, 2)
    served.config.model.freeze_vision = False
    ray.get(served.sender.freeze_vision.remote(False))
    policy = row_policy(tmp_path)
    tower = sum(p.numel() for p in served.family.tower(policy).parameters())
    assert metrics["sync/bytes"] == served.element_bytes * (
        sum(p.numel() for p in policy.parameters()) - tower
    )
    assert difference_of(served, policy, served.prompts[1], sample(served, served.prompts[1])) < served.limit


def test_groups_in_flight_go_on_with_new_weights(served: Served, run: Run[Any], tmp_path: Path) -> None:
    """What was computed of them, states too, is computed again: the tokens after the sync are those of the new weights."""
    prompt = served.prompts[1]
    ray.get(served.sender.forget_to_end.remote())
    transfer(served, run, 3)
    ray.get(served.sender.perturb.remote(3, "language_model"))
    ray.get(served.sender.save.remote(str(tmp_path)))
    request = SampleRequest(prompt=prompt, n=4, temperature=TEMPERATURE, max_tokens=300, seed=8)

    def begun(worker: Any) -> int:
        """Completions in flight that have a token. Defined here, so that Ray ships it by value."""
        requests = worker._engine.output_processor.request_states.values()
        return sum(not request.is_prefilling for request in requests)

    async def get(ref: Any) -> Any:
        return await ref

    async def transfer_meanwhile() -> Sampled:
        group = asyncio.ensure_future(get(served.engine.sample.remote(request)))
        while await get(served.engine.__ray_call__.remote(begun)) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await transfer_weights(served.config, Learner(served.config, served.sender), [served.engine], 4)
        sampled: Sampled = await group
        return sampled

    sampled = run(asyncio.wait_for(transfer_meanwhile(), 120))
    found = differences(
        row_policy(tmp_path), served.processor, prompt, served.frames.frames(prompt.clip), sampled
    )
    ends = np.cumsum([len(tokens) for tokens in tokens_of(sampled)])
    for completion, off in zip(sampled.completions, np.split(found, ends[:-1]), strict=True):
        before, after = completion.weight_versions
        assert (before.version, after.version) == (3, 4)
        assert off[after.start :].max() < served.limit
        assert off[: before.end].max() > 2 * served.limit


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in MISSING.items() for name in names]
)
def test_a_missing_parameter_is_named(
    all_served: dict[str, Served], run: Run[Any], kind: str, name: str
) -> None:
    served = all_served[kind]
    ray.get(served.sender.perturb.remote(4))
    with pytest.raises(TransferError, match=f"{name} differs .*version 5"):
        transfer(served, run, 5, forget=name)
    transfer(served, run, 6)


def test_a_model_that_always_reasons(all_served: dict[str, Served], run: Run[Any]) -> None:
    """Its texts begin with what the template wrote, hold the tags, and end at each of the tokens that end a completion."""
    served = all_served[THINKING]
    tokenizer, prompt = served.processor.tokenizer, served.prompts[0]
    assert prompt.text.endswith("<think>\n")
    ends = tokenizer.convert_tokens_to_ids(list(ENDS))
    close = tokenizer.convert_tokens_to_ids("</think>")
    common, _ = Counter(np.concatenate(tokens_of(sample(served, prompt))).tolist()).most_common(1)[0]
    ray.get(served.sender.make_alike.remote([common, close, *ends]))
    transfer(served, run, 7)
    last, closed = set(), 0
    for completion in sample(served, prompt, n=32, max_tokens=64).completions:
        ids = completion.token_ids.tolist()
        stopped = completion.finish_reason is FinishReason.STOP
        assert [i for i in ids if i in ends] == ([ids[-1]] if stopped else [])
        last.add(ids[-1])
        closed += close in ids
        shown = tokenizer.decode([i for i in ids if i not in hidden_tokens(tokenizer)])
        assert completion.text == "<think>\n" + shown
        assert completion.text.count("</think>") == ids.count(close)
        assert not any(end in completion.text for end in ENDS)
    assert last >= set(ends)
    assert closed
