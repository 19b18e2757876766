"""Losses of a user's own: what they get, what is refused, and with which words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from videostr.config.sections import LossConfig
from videostr.errors import ConfigError
from videostr.grpo.losses import LossInputs, check_custom, token_loss

MODULE = '''
import torch

def reinforce(inputs):
    return -inputs.advantages * inputs.logprobs

def mean(inputs):
    return reinforce(inputs).mean()

def short(inputs):
    return reinforce(inputs)[1:]

def detached(inputs):
    return reinforce(inputs).detach()

def infinite(inputs):
    return reinforce(inputs) / 0.0

def whole(inputs):
    return inputs.sequence_ids

def listed(inputs):
    return reinforce(inputs).tolist()

def fails(inputs):
    raise RuntimeError("no such sequence")

def unrelated(inputs):
    return torch.ones(5, requires_grad=True) * inputs.advantages

def constant(inputs):
    return 0.0 * inputs.logprobs

def root(inputs):
    """Finite, but its gradient is NaN where the ratio is 1."""
    return torch.where(inputs.log_ratio == 0, 0.0, inputs.log_ratio.square().sqrt())

class Odd(Exception):
    def __str__(self):
        raise ValueError("no text")

def odd(inputs):
    raise Odd

def in_place(inputs):
    inputs.behaviour_logprobs.zero_()
    inputs.sequence_ids.zero_()
    return reinforce(inputs)

def sequences(inputs):
    """The mean over its sequence of each token's loss, clipped above as configured."""
    ratio = inputs.log_ratio.exp().clamp(max=1 + inputs.eps_high)
    return inputs.sequence_mean(-ratio * inputs.advantages)

value = 3
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"losses_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def inputs() -> LossInputs:
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    return LossInputs(
        logprobs=logprobs,
        log_ratio=logprobs - torch.tensor([-2.0, -2.0, -3.0]),
        behaviour_logprobs=torch.tensor([-2.0, -2.0, -3.0]),
        entropy=torch.ones(3),
        advantages=torch.tensor([1.0, 1.0, -2.0]),
        sequence_ids=torch.tensor([0, 0, 1]),
        eps_low=0.2,
        eps_high=0.5,
    )


def test_a_loss_of_the_users_own(module: str) -> None:
    config, given = LossConfig(custom=f"{module}:reinforce"), inputs()
    check_custom(config)
    found = token_loss(config, given)
    assert found.loss.tolist() == [1.0, 2.0, -6.0]
    found.loss.sum().backward()
    assert given.logprobs.grad is not None
    assert given.logprobs.grad.tolist() == [-1.0, -1.0, 2.0]


def test_it_has_ratio_bounds_and_means_over_sequences(module: str) -> None:
    config = LossConfig(custom=f"{module}:sequences")
    check_custom(config)
    # ratios e, 1, 1 clipped to 1.5, 1, 1; times -A: -1.5, -1, 2; means over the sequences: -1.25, -1.25, 2
    assert token_loss(config, inputs()).loss.tolist() == [-1.25, -1.25, 2.0]


def test_it_may_change_what_it_gets(module: str) -> None:
    given = inputs()
    token_loss(LossConfig(custom=f"{module}:in_place"), given)
    assert given.behaviour_logprobs.tolist() == [-2.0, -2.0, -3.0]
    assert given.sequence_ids.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("mean", ["returned torch.float32 []", "one float for each of the 5 tokens", "loss.aggregation"]),
        ("short", ["returned torch.float32 [4]"]),
        ("whole", ["returned torch.int64 [5]"]),
        ("listed", ["returned list"]),
        ("detached", ["has no gradient", "without detach()"]),
        ("infinite", ["returned NaN or infinity", "must return finite numbers"]),
        ("fails", ["raised RuntimeError: no such sequence"]),
        ("unrelated", ["its gradient is zero for every token"]),
        ("constant", ["its gradient is zero for every token"]),
        ("root", ["its gradient has NaN or infinity"]),
        ("odd", ["it raised Odd: (its __str__ raised ValueError)"]),
        ("value", ["has no function value"]),
        ("none", ["has no function none"]),
    ],
)
def test_what_a_loss_must_not_do_is_told_before_the_run(module: str, function: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_custom(LossConfig(custom=f"{module}:{function}"))
    for word in [f"{module}:{function}", "loss.custom = ", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["reinforce", "no.such.module:loss", ":loss", "module:"])
def test_a_name_that_leads_nowhere_is_reported(name: str) -> None:
    with pytest.raises(ConfigError, match=r"loss\.custom = "):
        check_custom(LossConfig(custom=name))


def test_the_loss_that_the_docs_show_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n(# my_losses\.py\n.*?)```", page, re.DOTALL)
    (tmp_path / "my_losses.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    check_custom(LossConfig(custom="my_losses:soft_clip", eps_high=0.5))


def test_without_one_nothing_is_tried() -> None:
    check_custom(LossConfig())
