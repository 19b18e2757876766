"""Supervised cold start: teach a model the trace format on reference traces, before reinforcement learning.

In: a record dataset with true graphs and answers, and a model folder (or none: then the tabletop policy starts from random
weights). Out: a Hugging Face folder with `coldstart.json`, which holds the config and the figures reached.
Run as `python -m videostr.coldstart --config configs/tabletop_coldstart.yaml [key=value ...]`.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from videostr.command import command, config_parser, run_main
from videostr.config.load import load_coldstart
from videostr.config.schema import ColdStartConfig
from videostr.data.records import index_at, read_records, usable_records
from videostr.errors import DataError, PromptError
from videostr.files import storage, write_json
from videostr.lock import FolderLock
from videostr.models.base import family_of
from videostr.models.checkpoint import load_policy, open_checkpoint
from videostr.models.tiny import make_tiny
from videostr.prompt import instruction, prompt_text, reference_trace, render
from videostr.types import Record
from videostr.video import FrameStore, name_clip

log = logging.getLogger(__name__)
IGNORED = -100
"""Label of positions without a loss, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Teacher-forced accuracy on held-out records: share of trace tokens whose most likely value is the true one."""

    tokens: float
    """All tokens of the trace."""
    digits: float
    """Tokens that are one digit: positions, times, numbers."""
    records: int
    """How many records were measured."""


class Examples:
    """Records as padded training batches."""

    def __init__(self, folder: str, frame_store: str, processor: Any, model_config: Any) -> None:
        self.folder = Path(folder)
        self.records = [row for row in usable_records(folder) if _can_be_asked(row, processor)]
        if not self.records:
            raise DataError(
                f"{folder}: has no usable record", remedy=f"run python -m videostr.data check {folder}"
            )
        self.store = FrameStore(frame_store or self.folder / "frames")
        self.processor = processor
        self.model_config = model_config

    def batch(self, records: Sequence[Record], traces: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return model inputs and labels [B, T]; only the trace and its end token have labels."""
        tokenizer = self.processor.tokenizer
        clips = [name_clip(record.clip, self.folder) for record in records]
        prompts = [render(record, clip, self.processor) for record, clip in zip(records, clips, strict=True)]
        frames = [self.store.frames(clip) for clip in clips]
        family = family_of(self.model_config)
        encoded = family.encode(prompts, frames, self.processor, self.model_config)
        ids, labels, positions = [], [], []
        for text, prompt in zip(traces, encoded, strict=True):
            trace = tokenizer(text + tokenizer.eos_token, return_tensors="pt")["input_ids"][0]
            ids.append(torch.cat([prompt.input_ids, trace]))
            labels.append(torch.cat([torch.full_like(prompt.input_ids, IGNORED), trace]))
            place = prompt.positions
            positions.append(torch.cat([place, place[:, -1:] + 1 + torch.arange(len(trace))], dim=1).T)
        input_ids = pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
        lengths = torch.tensor([len(row) for row in ids])
        return {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            "position_ids": pad_sequence(positions, batch_first=True).permute(2, 0, 1),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            # Their names are those of the model's own arguments
            **{name: torch.cat([prompt.vision[name] for prompt in encoded]) for name in encoded[0].vision},
        }

    def draw(self, config: ColdStartConfig) -> Iterator[dict[str, torch.Tensor]]:
        """Endless batches in a seeded order."""
        for position in itertools.count(0, config.train.batch_size):
            rng = np.random.default_rng([config.run.seed, position])
            places = range(position, position + config.train.batch_size)
            records = [self.records[index_at(p, len(self.records), config.run.seed)] for p in places]
            yield self.batch(
                records,
                [reference_trace(r, ends_only=bool(rng.random() < config.train.ends_only)) for r in records],
            )


def _can_be_asked(record: Record, processor: Any) -> bool:
    """Return whether the text of a record can be made a prompt; says why where it cannot."""
    try:
        prompt_text(record, processor)
    except PromptError as error:
        log.warning("left out %s: %s: %s", record.id, record.origin, error)
        return False
    return True


def train(config: ColdStartConfig) -> Accuracy | None:
    """Run the cold start; returns the held-out accuracy, None without held-out records."""
    torch.manual_seed(config.run.seed)
    if config.device == "cpu":
        torch.set_num_threads(config.learner.threads)
    out = Path(config.out)
    source = config.model.path or _new_policy(config, out)
    processor = open_checkpoint(source, cpu=False)
    # Steps of AdamW are lost in bfloat16 weights: these stay in float32, and what is computed with them is in `dtype`.
    model = load_policy(source, torch.float32)
    model.to(device=config.device)
    family_of(model.config).tower(model).requires_grad_(not config.model.freeze_vision)
    described = deepcopy(model.config)
    described.dtype = getattr(torch, config.model.dtype)  # positions as engines will have them
    examples = Examples(config.data.train, config.data.frame_store, processor, described)
    started = time.monotonic()
    _fit(model, examples, config)
    seconds = time.monotonic() - started
    accuracy = None
    if config.data.heldout:
        heldout = Examples(config.data.heldout, "", processor, described)
        accuracy = measure(model, heldout, heldout.records[: config.evaluate.prompts], config)
        log.info("held-out: %s", accuracy)
    model.to(dtype=getattr(torch, config.model.dtype))
    with storage(out):
        model.save_pretrained(out)
        processor.save_pretrained(out)
    about = {
        "config": asdict(config),
        "records": len(examples.records),
        "seconds": round(seconds),
        "heldout": accuracy and asdict(accuracy),
    }
    write_json(out / "coldstart.json", about)
    return accuracy


@torch.no_grad()
def measure(model: Any, examples: Examples, records: Sequence[Record], config: ColdStartConfig) -> Accuracy:
    """Return teacher-forced accuracy on `records`."""
    vocabulary = examples.processor.tokenizer.get_vocab()
    digit_ids = torch.tensor([vocabulary[str(d)] for d in range(10) if str(d) in vocabulary])
    right = total = digits_right = digits = 0
    model.eval()
    for start in range(0, len(records), config.train.batch_size):
        chosen = records[start : start + config.train.batch_size]
        inputs = _to(examples.batch(chosen, [reference_trace(record) for record in chosen]), config.device)
        labels = inputs.pop("labels")[:, 1:]
        with _computing(config):
            hit = model(**inputs).logits[:, :-1].argmax(-1) == labels
        counted = labels != IGNORED
        digit = torch.isin(labels.cpu(), digit_ids).to(labels.device)
        right += int((hit & counted).sum())
        total += int(counted.sum())
        digits_right += int((hit & digit).sum())
        digits += int(digit.sum())
    model.train()
    return Accuracy(tokens=right / total, digits=digits_right / max(digits, 1), records=len(records))


def _fit(model: Any, examples: Examples, config: ColdStartConfig) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learner.lr, weight_decay=config.learner.weight_decay, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))
    model.train()
    batches = examples.draw(config)
    started = time.monotonic()
    for step in range(1, config.train.steps + 1):
        with _computing(config):
            loss = model(**_to(next(batches), config.device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.learner.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == config.train.steps:
            left = (time.monotonic() - started) / step * (config.train.steps - step)
            log.info("step %d/%d loss %.4f, %.0f s left", step, config.train.steps, loss.item(), left)


def _computing(config: ColdStartConfig) -> torch.autocast:
    """Compute matrix products in `dtype`."""
    dtype = getattr(torch, config.model.dtype)
    return torch.autocast(torch.device(config.device).type, dtype, enabled=dtype != torch.float32)


def _rate(step: int, config: ColdStartConfig) -> float:
    if step < config.learner.warmup_steps:
        return (step + 1) / config.learner.warmup_steps
    done = (step - config.learner.warmup_steps) / max(1, config.train.steps - config.learner.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _new_policy(config: ColdStartConfig, out: Path) -> str:
    records = [row for row in read_records(config.data.train) if isinstance(row, Record)][:4000]
    texts = [text for record in records for text in (instruction(record), reference_trace(record))]
    make_tiny(out, config.run.seed, texts)
    return str(out)


def _to(inputs: dict[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    options = config_parser("python -m videostr.coldstart", __doc__).parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    config = load_coldstart(options.config, options.overrides)
    with FolderLock(Path(config.out), "out"):
        train(config)
    return 0


if __name__ == "__main__":
    run_main(main)
