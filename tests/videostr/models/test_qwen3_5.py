"""What is special to Qwen3.5: recurrent layers in packed rows, sizes, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3_5Config
from transformers.models.qwen3_5 import modeling_qwen3_5

from tests.videostr.models.plain import plain_inputs
from videostr.config.schema import Config, Model
from videostr.config.sections import Lora
from videostr.errors import ModelError
from videostr.grpo.batch import Group, build_row, plan_rows
from videostr.grpo.logprobs import PolicyLogprobs
from videostr.grpo.lora import add_lora
from videostr.grpo.recurrence import RowForks
from videostr.models.base import ModelFamily, shapes_of
from videostr.models.checkpoint import check_model
from videostr.models.delta_net import REFERENCE, TOLERANCE, DeltaRule, delta_rule_of, disagreement
from videostr.models.memory import estimate
from videostr.models.qwen3_5 import FAMILY
from videostr.preflight.findings import Context, Severity
from videostr.preflight.model import check_policy
from videostr.types import Prompt
from videostr.video import ClipFrames

MakePrompt = Callable[[str, int, float], tuple[Prompt, ClipFrames]]
MakeGroup = Callable[..., Group]
Found = tuple[dict[tuple[int, int], Tensor], dict[str, Tensor]]
SHAPES = [((9, 1, 70), 4, 4.0), ((3, 3, 12), 8, 1.0), ((90, 2), 2, 0.25)]
"""Lengths of completions, frames and frame rate of each group; chunks of the delta rule have 64 tokens."""
alone = pytest.mark.parametrize("family", ["qwen3_5"], indirect=True)


@pytest.fixture
def doubled(policy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The policy in float64 throughout, transformers computes parts in float32; its recurrent layers forget slowly."""
    double = SimpleNamespace(**{**vars(torch), "float32": torch.float64, "float": torch.float64})
    monkeypatch.setattr(modeling_qwen3_5, "torch", double)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    found = deepcopy(policy).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(-4.0, -3.0)
            elif "linear_attn" in name and parameter.ndim > 1:
                parameter.mul_(4.0)
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return found


def weights_of(group: int, completion: int, tokens: int) -> Tensor:
    """Of a loss that tells every token from every other."""
    return torch.randn(tokens, generator=torch.Generator().manual_seed(97 * group + completion)).double()


def learn_plain(
    policy: Any, family: ModelFamily, groups: Sequence[Group], shown: Sequence[Any], processor: Any
) -> Found:
    """Log-probabilities and gradients of transformers' own model, one prompt and completion at a time."""
    policy, logprobs = deepcopy(policy), {}
    for g, (group, (prompt, frames)) in enumerate(zip(groups, shown, strict=True)):
        for c, completion in enumerate(group.completions):
            inputs = plain_inputs(family, prompt, frames, processor, completion)
            inputs["pixel_values_videos"] = inputs["pixel_values_videos"].double()
            logits = policy(**inputs).logits[0, len(group.prompt.input_ids) - 1 : -1]
            found = torch.log_softmax(logits, -1).gather(1, completion[:, None])[:, 0]
            (found * weights_of(g, c, len(completion))).sum().backward()
            logprobs[g, c] = found.detach()
    return logprobs, {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def learn_rows(policy: Any, family: ModelFamily, groups: Sequence[Group], max_row_tokens: int) -> Found:
    """The same, in packed rows."""
    model, logprobs = PolicyLogprobs(policy, family), {}
    lengths = [[len(c) for c in group.completions] for group in groups]
    prompts = [len(group.prompt.input_ids) for group in groups]
    for plan in plan_rows(prompts, lengths, max_row_tokens=max_row_tokens):
        row = build_row(plan, dict(enumerate(groups)))
        found, _ = model(row, 1.0)
        weights = torch.cat([weights_of(g, c, lengths[g][c]) for g, c in row.origins])
        (found * weights).sum().backward()
        logprobs.update(
            zip(row.origins, found.detach().split(row.sequence_ids.bincount().tolist()), strict=True)
        )
    return logprobs, {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def largest_errors(found: Found, wanted: Found) -> tuple[float, float]:
    """Of log-probabilities, nats, and of gradients, in parts of the largest element of each."""
    assert found[0].keys() == wanted[0].keys()
    assert found[1].keys() == wanted[1].keys()
    logprobs = max(float((found[0][k] - wanted[0][k]).abs().max()) for k in wanted[0])
    gradients = [(found[1][k] - wanted[1][k]).abs().max() / wanted[1][k].abs().max() for k in wanted[1]]
    return logprobs, float(torch.stack(gradients).max())


@pytest.fixture
def groups(make_group: MakeGroup) -> list[Group]:
    return [
        make_group(seed, lengths, question="where? " * (seed + 1), num_frames=frames, fps=fps)
        for seed, (lengths, frames, fps) in enumerate(SHAPES)
    ]


@pytest.fixture
def shown(make_prompt: MakePrompt) -> list[tuple[Prompt, ClipFrames]]:
    return [make_prompt("where? " * (seed + 1), frames, fps) for seed, (_, frames, fps) in enumerate(SHAPES)]


@alone
@pytest.mark.parametrize(
    ("max_row_tokens", "checkpointing"),
    [(2000, None), (150, None), (2000, False), (150, True)],
    ids=["shared", "split", "checkpoints", "reentrant"],
)
def test_packed_rows_are_exact(
    family: ModelFamily,
    doubled: Any,
    groups: list[Group],
    shown: Any,
    processor: Any,
    max_row_tokens: int,
    checkpointing: bool | None,
) -> None:
    """Several groups a row, and groups that are split, in float64 against transformers' model."""
    plain = learn_plain(doubled, family, groups, shown, processor)
    if checkpointing is not None:
        doubled.train().gradient_checkpointing_enable({"use_reentrant": checkpointing})
    packed = learn_rows(doubled, family, groups, max_row_tokens)
    logprobs, gradients = largest_errors(packed, plain)
    assert {"A_log", "dt_bias", "weight"} <= {name.rpartition(".")[2] for name in plain[1]}
    assert any("visual" in name for name in plain[1])
    assert logprobs < 1e-10
    assert gradients < 1e-6


@alone
def test_completions_go_on_from_the_state_of_their_prompt(
    family: ModelFamily, doubled: Any, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be lost if they did not: the other tests would see it."""
    right = learn_rows(deepcopy(doubled), family, groups, 2000)
    scan = RowForks.scan

    def of_another(forks: RowForks, recurrence: Any, *streams: Tensor) -> Tensor:
        swapped = RowForks(
            **{**{n: getattr(forks, n) for n in forks.__slots__}, "parents": forks.parents.flip(0)}
        )
        return scan(swapped, recurrence, *streams)

    monkeypatch.setattr(RowForks, "scan", of_another)
    logprobs, gradients = largest_errors(learn_rows(doubled, family, groups, 2000), right)
    assert logprobs > 1e-3
    assert gradients > 1e-2


# ------------------------------------------------------------------------------------------------- rows by hand


def test_layout_of_a_row_by_hand() -> None:
    """A prompt of 4 with completions of 2 and 1 tokens, and one of 2 with none; convolutions of 4 inputs."""
    prompts, completions = (
        torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1]),
        torch.tensor([0, 0, 0, 0, 1, 1, 2, 0, 0]),
    )
    forks = RowForks.of(prompts, completions, 4)
    zero = 9
    assert forks.preceded.tolist() == [
        zero, zero, zero, 0, 1, 2, 3,
        1, 2, 3, 4, 5,
        1, 2, 3, 6,
        zero, zero, zero, 7, 8,
    ]  # fmt: skip
    assert forks.outputs.tolist() == [3, 4, 5, 6, 10, 11, 15, 19, 20]
    assert forks.prompts.places.tolist() == [[0, 1, 2, 3], [7, 8, zero, zero]]
    assert forks.completions is not None
    assert forks.completions.places.tolist() == [[4, 5], [6, zero]]
    assert forks.parents.tolist() == [0, 0]
    assert forks.order.tolist() == [0, 1, 2, 3, 8, 9, 10, 4, 5]


def test_a_convolution_reaches_back_into_the_prompt_of_a_completion() -> None:
    # Sums of a token and the one before: prompt 1, 2, completions 10, 20 and 100
    forks = RowForks.of(torch.zeros(5, dtype=torch.int64), torch.tensor([0, 0, 1, 1, 2]), 2)
    inputs = torch.tensor([[1.0], [2.0], [10.0], [20.0], [100.0]])
    summed = forks.convolve(lambda x: x + torch.nn.functional.pad(x, (1, -1)), inputs)
    assert summed[:, 0].tolist() == [1.0, 3.0, 12.0, 30.0, 102.0]


def test_a_prompt_shorter_than_the_convolution_is_preceded_by_zeros() -> None:
    forks = RowForks.of(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1]), 4)
    assert forks.preceded.tolist() == [2, 2, 2, 0, 2, 2, 0, 1]


def test_padding_leaves_a_state_alone() -> None:
    """What the shorter of two prompts leaves behind is what it leaves alone."""
    torch.manual_seed(0)
    ids = torch.repeat_interleave(torch.tensor([0, 1]), torch.tensor([7, 80]))
    forks = RowForks.of(ids, torch.zeros_like(ids), 4)
    query, key, value = torch.randn(3, 87, 2, 16)
    g, beta = -torch.rand(87, 2), torch.rand(87, 2)
    padded = [forks.prompts.gather(x) for x in (query, key, value, g, beta)]
    _, states = REFERENCE(*padded, None)
    for row, (start, end) in enumerate([(0, 7), (7, 87)]):
        _, state = REFERENCE(*(x[None, start:end] for x in (query, key, value, g, beta)), None)
        torch.testing.assert_close(states[row], state[0], atol=1e-6, rtol=0)


def test_the_delta_rule_by_hand() -> None:
    """Token by token, as the docstring of `Recurrence` says, from a state that is not zero."""
    torch.manual_seed(0)
    tokens, width = 70, 8
    query, key, value = torch.randn(3, 1, tokens, 1, width)
    g, beta = -torch.rand(1, tokens, 1), torch.rand(1, tokens, 1)
    start = torch.randn(1, 1, width, width)
    found, last = REFERENCE(query, key, value, g, beta, start)
    state = start[0, 0]
    for t in range(tokens):
        q, k = (x[0, t, 0] / x[0, t, 0].norm() for x in (query, key))
        b = beta[0, t, 0]
        state = g[0, t, 0].exp() * (state - b * torch.outer(k, k @ state)) + b * torch.outer(
            k, value[0, t, 0]
        )
        torch.testing.assert_close(found[0, t, 0], state.T @ q / width**0.5, atol=1e-5, rtol=0)
    torch.testing.assert_close(last[0, 0], state, atol=1e-5, rtol=0)


def test_kernels_are_used_on_gpus_in_bfloat16_only() -> None:
    assert delta_rule_of(torch.device("cpu"), torch.bfloat16) is REFERENCE
    assert delta_rule_of(torch.device("cuda"), torch.float32) is REFERENCE


def test_kernels_that_lose_a_state_or_its_gradient_are_found() -> None:
    """As they are compared on a GPU before they are used."""
    compute = REFERENCE.compute

    def changed(**change: Callable[[Any], Any]) -> float:
        def of(*inputs: Tensor, **options: Any) -> Any:
            return compute(
                *inputs, **options | {k: f(options[k]) for k, f in change.items() if options[k] is not None}
            )

        return disagreement(DeltaRule(of), torch.device("cpu"))

    assert changed() == 0.0
    assert changed(beta=lambda b: b * (1 + 2**-8)) < TOLERANCE
    for wrong in (lambda s: None, lambda s: s.detach(), lambda s: s.flip(0)):
        assert changed(initial_state=wrong) > 2 * TOLERANCE
    assert changed(g=lambda g: 2 * g) > 2 * TOLERANCE


# ------------------------------------------------------------------------------------------------- what is refused


def test_engines_on_cpu_compute_in_bfloat16_only(tmp_path: Path) -> None:
    FAMILY.make_tiny(tmp_path, 0, ["where?"])
    check_model(tmp_path, cpu=True, dtype="bfloat16")
    check_model(tmp_path, cpu=False, dtype="float32")
    with pytest.raises(
        ModelError, match=r"model\.dtype = float32: vLLM's CPU engine.*; set model\.dtype=bfloat16"
    ):
        check_model(tmp_path, cpu=True, dtype="float32")


def test_the_preflight_says_what_engines_cannot_do(tmp_path: Path) -> None:
    FAMILY.make_tiny(tmp_path, 0, ["where?"])
    config = Config(model=Model(path=str(tmp_path), dtype="float32"))
    config.rollout.num_gpus = 0
    (finding,) = check_policy(config, Context())
    assert finding.severity is Severity.FAIL
    assert "computes a Qwen3.5 in bfloat16 only" in finding.found
    config.model.dtype = "bfloat16"
    assert all(finding.severity is Severity.OK for finding in check_policy(config, Context()))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("linear_key_head_dim", 64, r"linear_key_head_dim': 64.*heads of 128 only"),
        ("output_gate_type", "sigmoid", r"output_gate_type of text_config is 'sigmoid'"),
    ],
)
def test_recurrent_layers_that_engines_compute_otherwise_are_refused(
    tmp_path: Path, key: str, value: Any, words: str
) -> None:
    FAMILY.make_tiny(tmp_path, 0, ["where?"])
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["text_config"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=words):
        check_model(tmp_path, cpu=True)


# ----------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(("size", "parameters"), [("9B", 9_409_813_744), ("27B", 27_356_728_560)])
def test_published_models_have_their_size(size: str, parameters: int) -> None:
    assert shapes_of(f"Qwen/Qwen3.5-{size}").parameters == parameters


def small_config() -> Qwen3_5Config:
    """A recurrent layer and one of attention, of width 4 with an MLP of 8.

    Attention: two heads of 6 over one of keys. Recurrence: one head of keys of 3, two of values of 5, convolutions of 2 inputs.
    """
    return Qwen3_5Config(
        text_config={
            "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": 10, "head_dim": 6, "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 3, "linear_value_head_dim": 5,
            "linear_conv_kernel_dim": 2,
        },
        vision_config={
            "depth": 1, "hidden_size": 2, "intermediate_size": 3, "num_heads": 1, "out_hidden_size": 4, "patch_size": 1,
            "spatial_merge_size": 1, "temporal_patch_size": 1, "in_channels": 1, "num_position_embeddings": 4,
        },
        tie_word_embeddings=False,
    )  # fmt: skip


def test_sizes_of_a_small_model() -> None:
    shapes = FAMILY.shapes(small_config())
    # Attention: q and gate 4 x 24, k and v 2 x 4 x 6, o 12 x 4, norms of heads 2 x 6 = 204.
    # Recurrence: q k v 4 x 16, z 4 x 10, b and a 2 x 4 x 2, out 10 x 4, convolution 16 x 2, two numbers a head 4, norm 5 = 201.
    # Both layers: MLP 96, norms 8. Tables 2 x 40, last norm 4. Tower as Qwen3-VL's with one merger: 12 + 49 + 22
    assert (shapes.parameters, shapes.vision_parameters) == (204 + 201 + 208 + 84 + 83, 83)
    assert shapes.kv_elements == 2 * 6
    # Two matrices of 3 x 5 and the last input of 16
    assert shapes.state_elements == 30 + 16
    # 10 x 4 + 4 x 8 and the mean of 11 x 12 + 4 x 6 and 4 x 3 + 14 x 10 + 64 x 2
    assert shapes.text.activations == 72 + (156 + 280) // 2


def test_operations_of_a_small_model() -> None:
    forward = FAMILY.shapes(small_config()).forward
    # Matrices 4 (36 + 12) and 4 (16 + 20 + 4), convolution 2 x 16, MLPs 2 x 96;
    # delta rule 2 (64 (15 + 15) / 2 + 3 x 15)
    assert forward.token == pytest.approx(2 * (192 + 160 + 32 + 192 + 2 * (960 + 45)))
    assert forward.pair == pytest.approx(4 * 12)


@alone
def test_cost_of_a_model_counts_its_weights(family: ModelFamily, policy: Any) -> None:
    trained = family.row_cost(policy.config, freeze_vision=False)
    matrices = {name: p.numel() for name, p in policy.named_parameters() if p.ndim >= 2}
    # Delta rule: two layers of two heads of 128
    rule = 2 * 2 * (64 * 4 * 128 + 3 * 128 * 128)
    assert trained.token == 6 * (
        rule + sum(n for name, n in matrices.items() if "language_model.layers" in name)
    )
    assert trained.pair == 12 * 4 * 64


@alone
def test_a_recurrent_state_takes_room_in_an_engine(family: ModelFamily, policy: Any) -> None:
    shapes, config = family.shapes(policy.config), Config()
    config.rollout.num_gpus, config.rollout.kv_cache_gib, config.rollout.max_model_len = 0, 1, 100
    # Two layers of keys in bfloat16; two of two states of 128 x 128 and 3 inputs of 512, in float32
    sequence = 100 * 2 * 2 * 64 * 2 + 2 * (2 * 128**2 + 3 * 512) * 4
    assert estimate(config, shapes, None).engine.sequences == 2**30 // sequence


@alone
def test_recurrent_layers_take_adapters(family: ModelFamily, policy: Any, make_group: MakeGroup) -> None:
    adapted, group = deepcopy(policy), make_group(0, (9, 5))
    names = ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"]
    add_lora(adapted, Lora(rank=2, targets=names), 0, leave_out=family.tower(adapted))
    _, gradients = learn_rows(adapted, family, [group], 2000)
    # A has none while B is 0
    assert len(gradients) == 2 * 2 * len(names)
    assert all(gradient.any() for name, gradient in gradients.items() if name.endswith("lora_B"))
