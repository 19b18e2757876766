"""Both kernels against a dense mask, on random rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import flex_attention as flex

from videostr.grpo.attention import (
    FlexAttention,
    Kernel,
    SplitAttention,
    bucket,
    row_attention,
)

ROWS = st.lists(
    st.tuples(st.integers(1, 40), st.lists(st.integers(1, 30), max_size=5)), min_size=1, max_size=4
)
"""Length of each prompt, and lengths of its completions."""

EAGER_FLEX = pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile",
    r"ignore:The \.grad attribute of a Tensor that is not a leaf",
)
"""The reference implementation says that it is slow, and is traced."""


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch refuses gradients of FlexAttention on CPU, but its reference implementation has them."""
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)


def ids(row: list[tuple[int, list[int]]]) -> tuple[Tensor, Tensor]:
    """Prompt and completion of each token [T]."""
    prompts, completions, number = [], [], 0
    for index, (prompt, lengths) in enumerate(row):
        prompts += [index] * (prompt + sum(lengths))
        completions += [0] * prompt
        for length in lengths:
            number += 1
            completions += [number] * length
    return torch.tensor(prompts), torch.tensor(completions)


def attention_mask(prompt_ids: Tensor, completion_ids: Tensor) -> Tensor:
    """Return the dense mask [T, T] bool of a row, True where token q (row) sees token k (column).

    k is not after q, belongs to the same prompt, and is a prompt token or of q's own completion.
    """
    index = torch.arange(len(prompt_ids), device=prompt_ids.device)
    causal = index[:, None] >= index[None, :]
    same_prompt = prompt_ids[:, None] == prompt_ids[None, :]
    visible = (completion_ids[None, :] == 0) | (completion_ids[:, None] == completion_ids[None, :])
    return causal & same_prompt & visible


def test_attention_mask() -> None:
    # [p p c1 c2 c2] [p c3]
    mask = attention_mask(torch.tensor([0, 0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 2, 2, 0, 3]))
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def states(tokens: int, heads: int, key_heads: int, size: int, device: str) -> list[Tensor]:
    draw = torch.Generator().manual_seed(tokens)
    shapes = ((heads, size), (key_heads, size), (key_heads, size))
    return [torch.randn(1, h, tokens, d, generator=draw).to(device).requires_grad_() for h, d in shapes]


def outputs_and_gradients(attend: Any, inputs: list[Tensor]) -> list[Tensor]:
    output = attend(*inputs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.device)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)]


def check(
    row: list[tuple[int, list[int]]],
    heads: int,
    key_heads: int,
    kernel: Kernel,
    size: int = 16,
    device: str = "cpu",
) -> None:
    prompt_ids, completion_ids = (numbers.to(device) for numbers in ids(row))
    mask, scale = attention_mask(prompt_ids, completion_ids), 1.2 / size**0.5

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (x.repeat_interleave(heads // key_heads, dim=1) for x in (key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return row_attention(prompt_ids, completion_ids, kernel).attend(query, key, value, scale)

    inputs = states(len(prompt_ids), heads, key_heads, size, device)
    found = outputs_and_gradients(ours, inputs)
    expected = outputs_and_gradients(dense, inputs)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=0)
    for gradient, wanted in zip(found[1:], expected[1:], strict=True):
        # a lone token's query has no gradient but for rounding
        assert float((gradient - wanted).norm()) < 1e-4 * float(wanted.norm()) + 1e-5


@given(row=ROWS, heads=st.sampled_from([(4, 4), (4, 2), (6, 2)]))
@settings(max_examples=60)
def test_split_equals_dense(row: list[tuple[int, list[int]]], heads: tuple[int, int]) -> None:
    check(row, *heads, "sdpa")


@pytest.mark.parametrize(
    ("row", "heads"),
    [
        ([(20, [10, 1, 30])], (4, 4)),
        ([(50, [10, 20]), (60, [30]), (3, [])], (4, 2)),  # 173 tokens: padded to 256
        ([(100, [28])], (6, 2)),  # 128, no padding; three queries a key
    ],
)
@EAGER_FLEX
@pytest.mark.usefixtures("flex_on_cpu")
def test_flex_equals_dense(row: list[tuple[int, list[int]]], heads: tuple[int, int]) -> None:
    check(row, *heads, "flex")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", [16, 128])
@pytest.mark.parametrize("heads", [(4, 4), (16, 2), (14, 2)])
@pytest.mark.parametrize("kernel", ["flex", "sdpa"])
def test_kernels_equal_dense_on_a_gpu(kernel: Kernel, heads: tuple[int, int], size: int) -> None:
    """FlexAttention is compiled there; seven queries a key as in the 7B model."""
    check([(700, [90, 10, 300]), (1, [1]), (400, [128, 800])], *heads, kernel, size, "cuda")


def test_split_computes_no_score_outside_the_rule() -> None:
    # prompts of 3 and 2; a completion of 2 sees 3 + 2 keys: row 0 sees its own first token, row 1 both
    attention = SplitAttention.of(*ids([(3, [2, 1]), (2, [1])]))
    assert [(part.length, part.prompt) for part in attention.parts] == [
        (3, 0),
        (2, 3),
        (1, 3),
        (2, 0),
        (1, 2),
    ]
    query = torch.zeros(1, 1, 9, 4, dtype=torch.bfloat16)
    masks = [attention.mask(part, query) for part in attention.parts if part.prompt]
    assert [(mask == 0).int().tolist() for mask in masks] == [
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
        [[1, 1, 1, 1]],
        [[1, 1, 1]],
    ]
    assert masks[0].dtype is torch.bfloat16
    assert masks[0].data_ptr() == masks[1].data_ptr()  # one for all completions of a prompt


def test_flex_skips_empty_blocks() -> None:
    # 512 tokens, 4 blocks: prompt of 128, completions of 128 and 256: each block of queries sees the prompt and its own
    attention = FlexAttention.of(*ids([(128, [128, 256])]))
    assert attention.blocks.to_dense()[0, 0].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 0, 1, 0],
        [1, 0, 1, 1],
    ]


@pytest.mark.parametrize("row", [[(128, [128, 256])], [(700, [90, 10, 300]), (1, [1]), (400, [128, 800])]])
def test_blocks_are_those_of_torch(row: list[tuple[int, list[int]]]) -> None:
    """Numbers of blocks, and their places as far as the numbers reach; 2430 tokens are padded to 2560."""
    ours = FlexAttention.of(*ids(row)).blocks
    tokens = ours.seq_lengths[0]
    wanted = flex.create_block_mask(ours.mask_mod, None, None, tokens, tokens, "cpu")
    for kind in ("", "full_"):
        for side in ("kv", "q"):
            numbers = getattr(ours, f"{kind}{side}_num_blocks")[0, 0]
            assert torch.equal(numbers, getattr(wanted, f"{kind}{side}_num_blocks")[0, 0])
            found, expected = (getattr(mask, f"{kind}{side}_indices")[0, 0] for mask in (ours, wanted))
            for number, places, others in zip(numbers, found, expected, strict=True):
                assert torch.equal(places[:number], others[:number])


def test_buckets() -> None:
    assert [bucket(n) for n in (1, 128, 129, 1024, 1025, 4096, 4097, 8000)] == [
        128,
        128,
        256,
        1024,
        1152,
        4096,
        4608,
        8192,
    ]
    assert all(n <= bucket(n) <= max(n + 127, n * 9 / 8) for n in range(1, 5000))
    assert len({bucket(n) for n in range(4097, 8193)}) == 8


@EAGER_FLEX
@pytest.mark.usefixtures("flex_on_cpu")
def test_rows_of_one_bucket_compile_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever groups they hold; a GPU would stop for seconds at every other length."""
    counter = CompileCounter()
    compiled = torch.compile(flex.flex_attention, dynamic=False, backend=counter)
    monkeypatch.setattr("videostr.grpo.attention.flex_attention", compiled)
    for row in ([(100, [40, 30])], [(20, [120]), (90, [5])], [(250, [])]):
        check(row, 4, 2, "flex")
    assert counter.frame_count == 1
    check([(250, [40])], 4, 2, "flex")
    assert counter.frame_count == 2
