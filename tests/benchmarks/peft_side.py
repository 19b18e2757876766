"""peft, in the environment of the extra `bench`: applies an adapter of this project, and writes one.

    python -m tests.benchmarks.peft_side POLICY ADAPTER FOLDER

In: a policy, an adapter for it, `ids.npy` [B, T] in FOLDER. Out, in FOLDER: `ours.npy` [B, T - 1], log-probabilities with our
adapter; `peft/`, an adapter that peft made; `theirs.npy`, those with it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText


def logprobs(model: Any, ids: np.ndarray) -> np.ndarray:
    """Return the log-probability [B, T - 1] of each token of texts but the first."""
    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[:, :-1].double()
    found: np.ndarray = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0].numpy()
    return found


def main(policy: str, adapter: str, folder: Path) -> None:
    """Do both."""
    ids = np.load(folder / "ids.npy")
    base = AutoModelForImageTextToText.from_pretrained(policy, dtype=torch.float64)
    np.save(folder / "ours.npy", logprobs(PeftModel.from_pretrained(base, adapter), ids))

    base = AutoModelForImageTextToText.from_pretrained(policy, dtype=torch.float64)
    targets = r".*language_model.*\.(q_proj|down_proj)"
    made = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    )
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    made.save_pretrained(folder / "peft")
    np.save(folder / "theirs.npy", logprobs(made, ids))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
