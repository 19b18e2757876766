"""Datasets: whether rows can be read, a video decodes, and its prompt fits. In: a config. Out: findings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from videostr.config.schema import Config
from videostr.data.records import read_records
from videostr.errors import DataError, VideoError
from videostr.models.base import family_of
from videostr.preflight.findings import Context, Finding, Severity, fail, from_error, ok, warn
from videostr.prompt import render, special_in
from videostr.types import Clip, Failure, Record
from videostr.video import LARGE_CLIP_BYTES, ClipFrames, decode, name_clip

SAMPLED_ROWS = 256
"""Rows of a dataset that are read."""


def check_data(config: Config, context: Context) -> Iterator[Finding]:
    """Check whether rows can be read, a video decodes and its prompt fits; notes how much room decoded frames take."""
    tabletop = config.data.tabletop
    datasets = [("data.train", config.data.train, tabletop.train_scenes)]
    if config.data.heldout and config.evaluate.prompts:
        datasets.append(("data.heldout", config.data.heldout, tabletop.heldout_scenes))
    for key, folder, scenes in datasets:
        if scenes and not list(Path(folder).glob("records-*.parquet")):
            yield ok(key, f"{folder}: not there yet, {scenes} scenes will be built")
            continue
        yield from _check_dataset(config, key, folder, context)


def _check_dataset(config: Config, key: str, folder: str, context: Context) -> Iterator[Finding]:
    try:
        rows = list(itertools.islice(read_records(folder), SAMPLED_ROWS))
    except DataError as error:
        yield from_error(key, error)
        return
    records = [row for row in rows if isinstance(row, Record)]
    total = _rows(folder)
    yield (found := _check_rows(config, key, folder, rows, total))
    if found.severity is Severity.FAIL:
        return
    record = max(records, key=lambda r: r.clip.num_frames * (r.clip.height or 0) * (r.clip.width or 0))
    try:
        clip = name_clip(record.clip, Path(folder))
        frames = decode(clip.spec)
    except VideoError as error:
        yield fail(
            f"{key} video",
            f"{record.origin}: {error}",
            f"python -m videostr.data check {folder} finds them all",
        )
        return
    yield _check_video(f"{key} video", folder, clip, frames)
    clips = len({replace(r.clip, marks=()) for r in records}) / len(records) * total  # marks take no room
    context.frame_bytes += clips * frames.pixels.nbytes
    if context.processor is not None:
        yield _special_tokens(key, records, context.processor)
        yield _prompt(config, f"{key} prompt", record, clip, frames, context)


def _check_rows(
    config: Config, key: str, folder: str, rows: Sequence[Record | Failure], total: int
) -> Finding:
    """Return whether enough of the first rows, of `total`, can be used."""
    broken = [row for row in rows if isinstance(row, Failure)]
    lost, usable = sum(row.records for row in broken), len(rows) - len(broken)
    if not usable or lost > config.data.max_bad_fraction * (lost + usable):
        return fail(
            key,
            f"{folder}: {lost} of the first {lost + usable} rows cannot be used, more than data.max_bad_fraction = "
            f"{config.data.max_bad_fraction:g}; the first: {broken[0].detail}",
            f"python -m videostr.data check {folder} lists them; build the dataset again",
        )
    found = f"{folder}: {total} rows, {lost} of the first {lost + usable} broken"
    if broken:
        return warn(key, f"{found}: {broken[0].detail}", "they will be quarantined; build the dataset again")
    return ok(key, found)


def _check_video(name: str, folder: str, clip: Clip, frames: ClipFrames) -> Finding:
    """Return whether a decoded video is as it should be, and small enough for a frame store."""
    count, height, width, _ = frames.pixels.shape
    found = f"{clip.spec.video}: decodes, {count} frames of {width} x {height}"
    if frames.pixels.nbytes > LARGE_CLIP_BYTES:
        return warn(
            name,
            f"{found}: {frames.pixels.nbytes / 1e6:.0f} MB for a clip in the frame store and in every process that reads it",
            "set clip.width and clip.height of the records (--size WxH of data build and data import), or show fewer frames",
        )
    if frames.remarks:
        return warn(
            name,
            f"{clip.spec.video}: {'; '.join(frames.remarks)}",
            f"python -m videostr.data check {folder} finds them all",
        )
    return ok(name, found)


def _rows(folder: str) -> int:
    total = 0
    for shard in Path(folder).glob("records-*.parquet"):
        try:
            total += pq.read_metadata(shard).num_rows
        except (pa.ArrowException, OSError):
            continue
    return total


def _special_tokens(key: str, records: Sequence[Record], processor: Any) -> Finding:
    """Return whether texts of the first records hold special tokens of the policy's tokenizer."""
    name = f"{key} text"
    found = [(record.origin, tokens) for record in records if (tokens := special_in(record, processor))]
    if not found:
        return ok(name, f"no special token in the text of the first {len(records)} records")
    origin, tokens = found[0]
    return warn(
        name,
        f"{len(found)} of the first {len(records)} records hold special tokens of the tokenizer, the first one {origin}: "
        f"{tokens[0][0]} holds {tokens[0][1]}",
        "they are parted by a blank in prompts, records with one in a label are quarantined; python -m videostr.data check "
        "--model lists them",
    )


def _prompt(
    config: Config, name: str, record: Record, clip: Clip, frames: ClipFrames, context: Context
) -> Finding:
    """Return whether the largest of the first prompts can be encoded, and leaves room for a completion."""
    try:
        prompt = render(record, clip, context.processor)
        family = family_of(context.model_config)
        (inputs,) = family.encode([prompt], [frames], context.processor, context.model_config)
    except Exception as error:  # noqa: BLE001  # what a processor raises is of many kinds
        return fail(
            name,
            f"{record.origin}: the prompt cannot be encoded ({type(error).__name__}: {error})",
            "correct the record, or take tokenizer, template and processors from the base model",
        )
    length = len(inputs.input_ids)
    most, limit, row = config.sampling.max_tokens, config.rollout.max_model_len, config.learner.max_row_tokens
    if length >= limit:
        return fail(
            name,
            f"{length} tokens, rollout.max_model_len = {limit}: it would be quarantined",
            "raise rollout.max_model_len, or build the dataset with fewer or smaller frames",
        )
    if length + most > limit:
        return warn(
            name,
            f"{length} tokens and sampling.max_tokens = {most} are more than rollout.max_model_len = {limit}: completions "
            f"would be cut after {limit - length}",
            f"rollout.max_model_len={length + most} or more",
        )
    if length + most > row:
        return warn(
            name,
            f"{length} tokens and a completion of sampling.max_tokens = {most} are more than learner.max_row_tokens = {row}: "
            "such a row takes more memory than planned",
            f"learner.max_row_tokens={length + most} or more",
        )
    return ok(name, f"{length} tokens, room for {most} more in {limit}")
