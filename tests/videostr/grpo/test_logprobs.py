from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from math import log
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.videostr.models.plain import plain_inputs
from videostr.config.sections import LossConfig
from videostr.grpo.attention import Kernel
from videostr.grpo.batch import Group, build_row, plan_rows
from videostr.grpo.logprobs import LogprobHead, PolicyLogprobs
from videostr.grpo.loss import count, policy_loss
from videostr.models.attention import INTERFACE
from videostr.models.base import FAMILIES, ModelFamily
from videostr.models.layers import compile_layers
from videostr.types import Prompt
from videostr.video import ClipFrames

MakePrompt = Callable[[str, int, float], tuple[Prompt, ClipFrames]]
MakeGroup = Callable[..., Group]
SUMMED = ("A_log", "dt_bias")
"""A number a head, whose gradient is a sum over all tokens that nearly cancels; test_qwen3_5.py compares them in float64."""
Learned = tuple[float, dict[tuple[int, int], Tensor], dict[str, Tensor], int]


def test_head_by_hand() -> None:
    head = LogprobHead(1, 2, bias=False)
    head.weight = torch.nn.Parameter(torch.tensor([[log(3.0)], [0.0]]))
    hidden = torch.tensor([[1.0], [0.0]])
    # logits (log 3, 0): p = 3/4, 1/4; logits (0, 0): 1/2
    logprobs, entropy = head(hidden, torch.tensor([0, 1]), 1.0)
    assert logprobs.tolist() == pytest.approx([log(0.75), log(0.5)])
    assert entropy.tolist() == pytest.approx([-(0.75 * log(0.75) + 0.25 * log(0.25)), log(2)])
    # at temperature 1/2 the logits double: p = 9/10
    assert head(hidden, torch.tensor([0, 1]), 0.5)[0].tolist() == pytest.approx([log(0.9), log(0.5)])


def test_head_gradients_equal_those_of_whole_logits() -> None:
    torch.manual_seed(0)
    head = LogprobHead(6, 11, bias=False)
    head.chunk = 3
    hidden, targets, weights = torch.randn(8, 6), torch.randint(11, (8,)), torch.randn(8)
    ours = hidden.clone().requires_grad_()
    (head(ours, targets, 0.7)[0] * weights).sum().backward()
    plain, matrix = hidden.clone().requires_grad_(), head.weight.detach().clone().requires_grad_()
    logprobs = torch.log_softmax(plain @ matrix.T / 0.7, -1).gather(1, targets[:, None])[:, 0]
    (logprobs * weights).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.weight.grad, matrix.grad, rtol=1e-5, atol=1e-6)


def test_row_equals_the_plain_forward_of_prompt_and_completion(
    family: ModelFamily, policy: Any, processor: Any, make_prompt: MakePrompt, make_group: MakeGroup
) -> None:
    group = make_group(seed=1, lengths=(7, 4))
    prompt, frames = make_prompt("where?", 4, 4.0)
    temperature = 0.8
    expected = []
    for completion in group.completions:
        with torch.no_grad():
            logits = policy(**plain_inputs(family, prompt, frames, processor, completion)).logits[0]
        # the logits at token t - 1 predict token t
        log_p = torch.log_softmax(logits[len(group.prompt.input_ids) - 1 : -1] / temperature, -1)
        expected.append(log_p.gather(1, completion[:, None])[:, 0])
    (plan,) = plan_rows([len(group.prompt.input_ids)], [[7, 4]], max_row_tokens=500)
    row = build_row(plan, {0: group})
    with torch.no_grad():
        ours, _ = PolicyLogprobs(deepcopy(policy), family)(row, temperature)
    torch.testing.assert_close(ours, torch.cat(expected), atol=1e-5, rtol=0)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_head_never_holds_more_than_a_chunk_of_logits() -> None:
    head = LogprobHead(4, 1000, bias=False)
    head.chunk = 16
    hidden = torch.randn(300, 4, requires_grad=True)
    with Largest() as forward:
        logprobs, _ = head(hidden, torch.randint(1000, (300,)), 1.0)
    with Largest() as backward:
        logprobs.sum().backward()
    # 16 x 1000 logits at once; all would be 300 x 1000
    assert forward.elements == backward.elements == 16 * 1000


def learn(
    family: ModelFamily,
    policy: Any,
    groups: Sequence[Group],
    max_row_tokens: int,
    packing: Literal["group", "none"],
    attention: Kernel = "sdpa",
    *,
    compiled: bool = False,
) -> Learned:
    """Global loss, log-probabilities by sequence, gradients by parameter, number of rows."""
    model = PolicyLogprobs(deepcopy(policy), family, attention)
    if compiled:
        compile_layers(model)
    lengths = [[len(c) for c in group.completions] for group in groups]
    prompts = [len(group.prompt.input_ids) for group in groups]
    rows = plan_rows(prompts, lengths, max_row_tokens=max_row_tokens, packing=packing)
    logprobs, total = {}, 0.0
    for plan in rows:
        row = build_row(plan, dict(enumerate(groups)))
        found, entropy = model(row, 1.0)
        loss, sums = policy_loss(row, found, entropy, LossConfig(aggregation="sequence"), count(lengths))
        loss.backward()
        total += sums.loss
        parts = found.detach().split(row.sequence_ids.bincount().tolist())
        logprobs.update(zip(row.origins, parts, strict=True))
    gradients = {name: p.grad for name, p in model.policy.named_parameters() if p.grad is not None}
    return total, logprobs, gradients, len(rows)


@pytest.mark.parametrize(
    ("shapes", "max_row_tokens", "rows"),
    [
        ([((9, 1, 17, 5), 4, 4.0)], lambda _: 500, 1),
        ([((9, 1, 17, 5), 4, 4.0)], lambda prompts: prompts[0] + 20, 2),  # split: the prompt is repeated
        # shared row, three videos
        ([((6, 8), 4, 4.0), ((3, 3, 12), 8, 1.0), ((20, 2), 2, 0.25)], lambda _: 1000, 1),
        # the first and the last share, the longest is alone
        (
            [((6, 8), 4, 4.0), ((3, 30, 12), 8, 1.0), ((20, 2, 1), 2, 0.25)],
            lambda prompts: max(prompts[0] + 12 + prompts[2] + 20, prompts[1] + 42),
            2,
        ),
    ],
)
def test_packed_equals_per_sample(
    family: ModelFamily,
    policy: Any,
    make_group: MakeGroup,
    shapes: list[tuple[tuple[int, ...], int, float]],
    max_row_tokens: Callable[[list[int]], int],
    rows: int,
) -> None:
    groups = [
        make_group(seed, lengths, question="where? " * (seed + 1), num_frames=frames, fps=fps)
        for seed, (lengths, frames, fps) in enumerate(shapes)
    ]
    limit = max_row_tokens([len(group.prompt.input_ids) for group in groups])
    packed, alone = (
        learn(family, policy, groups, limit, "group"),
        learn(family, policy, groups, 1, "none"),
    )
    assert packed[-1] == rows
    assert alone[-1] == sum(len(group.completions) for group in groups)
    assert any("visual" in name for name in packed[2])
    assert_same(packed, alone)


def assert_same(
    found: Learned,
    wanted: Learned,
) -> None:
    """Loss and log-probabilities to 1e-5, every gradient to 1e-4 of its norm, those of `SUMMED` to 1e-3."""
    loss, logprobs, gradients, _ = found
    expected_loss, expected_logprobs, expected_gradients, _ = wanted
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert logprobs.keys() == expected_logprobs.keys()
    for origin, expected in expected_logprobs.items():
        torch.testing.assert_close(logprobs[origin], expected, atol=1e-5, rtol=0)
    assert gradients.keys() == expected_gradients.keys()
    for name, expected in expected_gradients.items():
        error = float((gradients[name] - expected).norm() / expected.norm().clamp_min(1e-6))
        assert error < (1e-3 if name.endswith(SUMMED) else 1e-4), f"{name}: {error}"


FIRST, *OTHERS = FAMILIES
SEEDS = [(FIRST, seed) for seed in range(8)] + [(kind, seed) for kind in OTHERS for seed in range(2)]


@pytest.mark.parametrize(("family", "seed"), SEEDS, indirect=["family"])
@pytest.mark.parametrize("freeze_vision", [False, True])
def test_packed_equals_per_sample_for_random_groups(
    family: ModelFamily, policy: Any, make_group: MakeGroup, seed: int, freeze_vision: bool
) -> None:
    draw = random.Random(seed)
    groups = [
        make_group(
            draw.randrange(1000),
            tuple(draw.randint(1, 60) for _ in range(draw.randint(2, 8))),
            question="where? " * draw.randint(1, 20),
            num_frames=draw.choice((2, 4, 8)),
            fps=draw.choice((0.5, 1.0, 4.0)),
        )
        for _ in range(draw.randint(1, 4))
    ]
    trained = deepcopy(policy)
    family.tower(trained).requires_grad_(not freeze_vision)
    packed = learn(family, trained, groups, draw.choice((90, 250, 2000)), "group")
    assert_same(packed, learn(family, trained, groups, 1, "none"))
    assert any("visual" in name for name in packed[2]) is not freeze_vision


@pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile", r"ignore:The \.grad attribute"
)
def test_flex_equals_sdpa(
    family: ModelFamily, policy: Any, make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)  # torch refuses gradients on CPU
    groups = [make_group(0, (9, 1, 40)), make_group(1, (30, 20), num_frames=8, fps=1.0)]
    assert_same(
        learn(family, policy, groups, 1000, "group", "flex"), learn(family, policy, groups, 1000, "group")
    )


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(
    family: ModelFamily, policy: Any, make_group: MakeGroup, reentrant: bool
) -> None:
    groups = [make_group(0, (9, 1, 40)), make_group(1, (30, 20), num_frames=8)]
    saving = deepcopy(policy).train()
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same(learn(family, saving, groups, 1000, "group"), learn(family, policy, groups, 1000, "group"))


@pytest.mark.parametrize(
    ("family", "checkpointing"), [(FIRST, True), ("qwen3_vl", False)], indirect=["family"]
)
def test_compiled_layers_change_nothing(
    family: ModelFamily, policy: Any, make_group: MakeGroup, checkpointing: bool
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trained = deepcopy(policy).train()
    if checkpointing:
        trained.gradient_checkpointing_enable({"use_reentrant": False})
    compiled = []
    for groups in ([make_group(0, (9, 1, 40))], [make_group(1, (30, 20)), make_group(2, (5, 70))]):
        assert_same(
            learn(family, trained, groups, 1000, "group", compiled=True),
            learn(family, policy, groups, 1000, "group"),
        )
        compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert compiled[0] == compiled[1] > 0  # other lengths compile nothing again


def test_saved_policy_has_a_plain_attention(family: ModelFamily, policy: Any, tmp_path: Path) -> None:
    model = PolicyLogprobs(deepcopy(policy), family)
    model.policy.save_pretrained(tmp_path)
    assert model.policy.model.language_model.config._attn_implementation == INTERFACE
    assert "videostr" not in (tmp_path / "config.json").read_text()
