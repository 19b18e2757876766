"""Supervised fine-tuning: teaches a policy the trace format on reference traces, before reinforcement learning.

`python -m videostr.sft --config configs/X.yaml [key=value ...]`, also through `ray job submit --`. It is a run like any other
(videostr/run.py, videostr/loop.py) with other ports: rollout workers read references, nothing is scored, no weights are sent.
In: a record dataset with true answers, and graphs where it has them; a checkpoint, or the family of a tiny policy.
Out: a run folder, as of videostr/launch.py; the trained policy is `policy/` of its last checkpoint.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from actors.reference import ReferenceWorker
from videostr.command import command, config_parser, run_main
from videostr.config.load import load_sft
from videostr.config.schema import Config, References, SftConfig
from videostr.config.supervised import as_training
from videostr.console import log_to_console
from videostr.data.prompts import PromptItem, RecordSource
from videostr.data.records import usable_records
from videostr.errors import ConfigError
from videostr.files import make_folder
from videostr.groups import SampledGroup
from videostr.launch import cluster, finish, hold, open_folder
from videostr.lock import FolderLock
from videostr.loggers import require
from videostr.models.base import FAMILIES
from videostr.models.checkpoint import open_checkpoint
from videostr.models.tiny import make_tiny
from videostr.pool import EnginePool
from videostr.prompt import instruction, reference_trace
from videostr.run import HeldOut, open_sources, run, until_stopped
from videostr.run_folder import run_folder
from videostr.sync import EngineSync, Sender
from videostr.tabletop.build import build_missing
from videostr.teacher_forcing import TeacherForcing
from videostr.timeline import Timeline
from videostr.types import Failure, Record, Score

TOKENIZER_RECORDS = 4000
"""Records whose texts a tiny policy's tokenizer is trained on."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status, as that of videostr/launch.py."""
    options = config_parser("python -m videostr.sft", __doc__).parse_args(arguments)
    log_to_console()
    config = load_sft(options.config, options.overrides)
    require(config.logging)
    if config.model.tiny not in {"", *FAMILIES}:
        raise ConfigError(
            f"model.tiny = {config.model.tiny}: must be one of {', '.join(FAMILIES)}",
            remedy="choose one of them",
        )

    def start(lock: FolderLock) -> Coroutine[Any, Any, int]:
        if config.model.tiny:  # its tokenizer is made of the records
            build_missing(config)
        training = as_training(config, _initial_policy(config) if config.model.tiny else "")
        processor = open_checkpoint(training.model.path, cpu=False)
        build_missing(config)
        return launch(config, training, lock, processor)

    return hold(config, start)


async def launch(config: SftConfig, training: Config, lock: FolderLock, processor: Any) -> int:
    """Run from the config to the report; `training` is what loop and learner work by."""
    began = time.monotonic()
    with open_folder(config, lock) as (folder, stop):
        sources = partial(ReferenceSource, references=config.references)
        source, heldout = await until_stopped(
            stop, folder.thread(open_sources, training, folder, processor, sources)
        )
        async with cluster(
            training,
            folder,
            stop,
            worker_class=ReferenceWorker,
            sync_class=NothingToSend,
            rewards=NotScored(),
        ) as ports:
            evaluation = None
            if heldout is not None:
                how = TeacherForcing(processor)
                evaluation = HeldOut(training, heldout, ports, folder, how, by_learner=True)
            outcome = await run(training, source, evaluation, ports, folder, stop, began)
        return await finish(training, folder, outcome)


class ReferenceSource(RecordSource):
    """Records with the reference traces to learn; those of `first`, which are held out, are complete and reason if most do."""

    def __init__(self, folder: str, processor: Any, seed: int, references: References) -> None:
        super().__init__(folder, processor, seed)
        self._references = references
        self._option_text = references.choice == "text"

    def draw(self, position: int) -> PromptItem | Failure:
        """Return the record at a position of the endless seeded order, with `references.per_prompt` traces."""
        item = super().draw(position)
        if isinstance(item, Failure):
            return item
        chosen = np.random.default_rng([self.seed, position]).random((self._references.per_prompt, 2))
        texts = [
            reference_trace(
                item.record,
                ends_only=ends < self._references.ends_only,
                reasoned=reasons < self._references.reasoned,
                option_text=self._option_text,
            )
            for ends, reasons in chosen
        ]
        return replace(item, references=tuple(texts))

    def first(self, count: int) -> list[PromptItem | Failure]:
        """Return the first `count` records in file order, each with its complete trace."""
        reasoned = self._references.reasoned > 0.5
        return [
            item
            if isinstance(item, Failure)
            else replace(item, references=(self._complete(item.record, reasoned),))
            for item in super().first(count)
        ]

    def _complete(self, record: Record, reasoned: bool) -> str:
        return reference_trace(record, reasoned=reasoned, option_text=self._option_text)


class NotScored:
    """References are not scored: each counts as much as any other. Implements `videostr.ports.RewardPool`."""

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()

    async def score(self, record: Record, sampled: SampledGroup) -> tuple[Score, ...]:
        """Return scores of 1 without parts."""
        del record
        return (Score(total=1.0, parts={}),) * len(sampled.completions)


class NothingToSend(EngineSync):
    """References do not depend on weights."""

    def __init__(self, config: Config, learner: Sender, pool: EnginePool, timeline: Timeline) -> None:
        del config
        super().__init__(learner, pool, timeline)

    async def _send(self, engines: Sequence[Any], version: int) -> dict[str, float]:
        del engines, version
        return {}


def _initial_policy(config: SftConfig) -> str:
    """Return the folder of a tiny policy with random weights; made once."""
    folder = run_folder(config) / "initial"
    if not (folder / "config.json").exists():
        records = list(islice(usable_records(config.data.train), TOKENIZER_RECORDS))
        reasoned, text_answers = config.references.reasoned > 0, config.references.choice == "text"
        texts = [
            text
            for record in records
            for text in (
                instruction(record),
                reference_trace(record, reasoned=reasoned, option_text=text_answers),
            )
        ]
        make_folder(folder)
        make_tiny(folder, config.run.seed, texts, model_type=config.model.tiny)
    return str(folder)


if __name__ == "__main__":
    run_main(main)
