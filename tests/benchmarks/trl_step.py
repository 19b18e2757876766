"""TRL's GRPOTrainer, one step for every line on standard input; runs in the environment of the extra `bench`.

    python -m tests.benchmarks.trl_step JOB.json

In: a JSON job (see `Job`), then one line for each step wanted. Out, on standard output: one JSON object for each step with
its seconds, completions, and their mean lengths in tokens.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rewards import Rubric, score_group
from videostr.data.records import read_records
from videostr.prompt import instruction
from videostr.types import Record
from videostr.video import FrameStore, name_clip


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train on, and how."""

    policy: str
    """Hugging Face folder."""
    records: str
    """Record dataset."""
    frame_store: str
    prompts: int
    group_size: int
    completion: int
    """Tokens of every completion."""
    images: int
    """Of a prompt: so many of its clip's frames, equally spaced."""
    micro_batch: int
    """Completions of one forward and backward."""
    steps: int
    threads: int
    custom: str
    """`reward.custom`."""


class Turns(TrainerCallback):
    """Waits for a line before every step and answers with a line after it."""

    def __init__(self, job: Job, answers: TextIO) -> None:
        self.job, self.answers = job, answers
        self.trainer: Any = None
        self.started = 0.0

    def wait(self) -> None:
        """Until the step is wanted."""
        if not sys.stdin.readline():
            os._exit(0)
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The optimizer has stepped."""
        metrics = self.trainer._metrics["train"]
        answer = {
            "seconds": time.perf_counter() - self.started,
            "completions": self.job.prompts * self.job.group_size,
            "completion_tokens": metrics["completions/mean_length"][-1],
            "prompt_tokens": self.trainer.prompt_tokens,
            "reward_std": metrics["reward_std"][-1],
            "seconds_sampling": self.trainer.sampling_seconds,
        }
        print(json.dumps(answer), file=self.answers, flush=True)


class Trainer(GRPOTrainer):
    """Says when a step begins: with the sampling of its completions, before `on_step_begin`."""

    turns: Turns
    prompt_tokens = 0.0
    sampling_seconds = 0.0

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.turns.wait()
        found = super()._generate_and_score_completions(inputs)
        self.prompt_tokens = float(found["prompt_mask"].sum(1).float().mean())
        self.sampling_seconds = time.perf_counter() - self.turns.started
        return found


def examples(job: Job) -> tuple[Dataset, dict[str, Record]]:
    """A row for each prompt, and the records by id."""
    store, folder = FrameStore(job.frame_store), Path(job.records)
    rows, records = [], {}
    for record in read_records(folder):
        if len(rows) == job.prompts or not isinstance(record, Record):
            break
        pixels = store.frames(name_clip(record.clip, folder)).pixels
        chosen = np.linspace(0, len(pixels) - 1, job.images).round().astype(int)
        images = [Image.fromarray(np.array(pixels[i])) for i in chosen]
        prompt = [{"role": "user", "content": instruction(record)}]
        rows.append({"prompt": prompt, "images": images, "record": record.id})
        records[record.id] = record
    return Dataset.from_list(rows), records


def settings(job: Job, folder: str) -> GRPOConfig:
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=job.micro_batch,
        gradient_accumulation_steps=job.prompts * job.group_size // job.micro_batch,
        num_generations=job.group_size,
        max_completion_length=job.completion,
        generation_kwargs={"min_new_tokens": job.completion, "pad_token_id": 0},
        temperature=1.0,
        beta=0.0,
        learning_rate=1e-5,
        max_steps=job.steps,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def main() -> None:
    """Train as the job says."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what others print is not an answer
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(job.threads)
    data, records = examples(job)
    rubric = Rubric(custom=job.custom, gate="none")

    def reward(completions: list[Any], record: list[str], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        groups = range(0, len(texts), job.group_size)
        return [
            score.total
            for start in groups
            for score in score_group(texts[start : start + job.group_size], records[record[start]], rubric)
        ]

    turns = Turns(job, answers)
    processor = AutoProcessor.from_pretrained(job.policy, padding_side="left")  # as TRL pads prompts
    policy = Qwen2_5_VLForConditionalGeneration.from_pretrained(job.policy, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=policy,
            reward_funcs=reward,
            args=settings(job, folder),
            train_dataset=data,
            processing_class=processor,
            callbacks=[turns],
        )
        trainer.turns, turns.trainer = turns, trainer
        trainer.train()


if __name__ == "__main__":
    main()
