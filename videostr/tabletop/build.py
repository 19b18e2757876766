"""Builds a tabletop dataset: seeds -> scenes -> MP4 files and records.

Splits draw their scene seeds from disjoint streams of one seed, so that training, supervised fine-tuning and held-out never
share a scene.
The result does not depend on the number of worker processes.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from enum import IntEnum
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from videostr.config.schema import RunConfig, SftConfig
from videostr.data.records import write_records
from videostr.errors import DataError
from videostr.files import make_folder, storage
from videostr.lock import FolderLock
from videostr.tabletop.questions import make_records
from videostr.tabletop.render import write_mp4
from videostr.tabletop.world import Difficulty, make_scene
from videostr.types import Record

log = logging.getLogger(__name__)


class Split(IntEnum):
    """Stream of scene seeds."""

    TRAIN = 0
    SFT = 1
    HELDOUT = 2


def build(
    out: Path, *, scenes: int, seed: int, split: Split, difficulty: Difficulty, questions: int, workers: int
) -> int:
    """Write `out/records-00000.parquet` and `out/videos/*.mp4`; returns the number of records.

    Args:
        questions: at most this many records per scene, each of another family.
        workers: processes that render.

    Raises:
        DataError: `out` already holds a dataset.
    """
    shard = out / "records-00000.parquet"
    if shard.exists():
        raise DataError(f"{out}: already holds a dataset", remedy="name another folder or delete this one")
    make_folder(out / "videos")
    one = functools.partial(_build_scene, out, seed, split, difficulty, questions)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return write_records(_flat(pool.map(one, range(scenes), chunksize=16)), shard)


def build_missing(config: RunConfig) -> None:
    """Build the datasets that the config asks for and that do not exist yet."""
    tabletop = config.data.tabletop
    train = Split.SFT if isinstance(config, SftConfig) else Split.TRAIN
    for folder, scenes, questions, split in (
        (config.data.train, tabletop.train_scenes, tabletop.train_questions, train),
        (config.data.heldout, tabletop.heldout_scenes, 1, Split.HELDOUT),
    ):
        if not folder or scenes == 0 or _is_dataset(folder):
            continue
        with FolderLock(Path(folder), "data.train and data.heldout", wait=True):
            if _is_dataset(folder):  # another run has built it meanwhile
                continue
            log.info("building %s: %d scenes", folder, scenes)
            build(
                Path(folder),
                scenes=scenes,
                seed=tabletop.seed,
                split=split,
                difficulty=Difficulty(tabletop.difficulty),
                questions=questions,
                workers=os.cpu_count() or 1,
            )


def _is_dataset(folder: str) -> bool:
    return any(Path(folder).glob("records-*.parquet"))


def scene_seed(seed: int, split: Split, index: int) -> int:
    """Return the 63-bit seed of scene `index` of a split."""
    return int(np.random.SeedSequence([seed, split, index]).generate_state(1, np.uint64)[0] >> 1)


def _build_scene(
    out: Path, seed: int, split: Split, difficulty: Difficulty, questions: int, index: int
) -> list[Record]:
    scene = make_scene(scene_seed(seed, split, index), difficulty)
    name = f"{split.name.lower()}-{seed}-{index:06d}"
    path = out / "videos" / f"{name}.mp4"
    with storage(path):
        write_mp4(scene, path)
    return make_records(scene, f"videos/{name}.mp4", name, questions)


def _flat(parts: Iterator[list[Record]]) -> Iterator[Record]:
    for part in parts:
        yield from part
