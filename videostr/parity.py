"""Do trainer and engine see the same? `python -m videostr.parity --model DIR [--video FILE]`, for the installed versions.

For a checkpoint and clips of several shapes: expanded token ids, positions, normalised pixels; with an engine also the
log-probabilities of sampled tokens, of the learner's packed rows against one row a completion, and all of it again after an
update and a weight sync, in which every parameter is read back. Out: a table with the worst difference of each, and a verdict.
Exit status: 0 they agree, 1 they do not, 2 bad input.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from actors.engine_view import EngineView, engine_views
from actors.learner.ray_learner import RayLearner
from actors.placement import start_ray, stop_ray
from actors.pools import RayRolloutPool
from actors.sync import transfer_weights
from videostr.command import command, run_main, typed
from videostr.config.schema import Config
from videostr.config.sections import (
    Count,
    Dtype,
    LearnerConfig,
    LossConfig,
    Model,
    RolloutConfig,
    Run,
    SyncConfig,
    TrainConfig,
)
from videostr.console import log_to_console
from videostr.errors import RolloutError, TransferError
from videostr.groups import LearnerBatch, RolloutGroup
from videostr.grpo.batch import PromptInputs
from videostr.models.base import family_of, read_config
from videostr.models.checkpoint import open_checkpoint
from videostr.ports import SampleRequest
from videostr.prompt import render
from videostr.types import Answer, AnswerKind, Clip, ClipSpec, Failure, Prompt, Record
from videostr.video import ClipFrames, FrameStore, name_clip

log = logging.getLogger("videostr.parity")
SHAPES = (
    (64, 64, Fraction(4), 6),
    (48, 80, Fraction(4), 5),
    (112, 84, Fraction(30000, 1001), 4),
    (56, 56, Fraction(2), 9),
)
"""Height, width [px], frames a second and frames of the synthetic clips: odd counts, not square, an odd rate."""
LIMITS = {"float32": (1e-3, 1e-4), "bfloat16": (0.3, 0.05)}
"""Largest and mean difference of log-probabilities that pass, nats. Engines never sample placeholders, so their probabilities are
higher by what the policy gives to these, which shows in the largest; in bfloat16 both sides round at different places."""
PACKED = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest difference of the learner's own log-probabilities between packed rows and rows of one completion, nats."""
PIXELS = 1e-5
COMPLETIONS, TOKENS = 4, 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    what: str
    cases: int
    """Prompts, tokens or parameters that were compared."""
    worst: float
    """Largest difference; for what must be equal the share that is not."""
    limit: float
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Return whether it is within the limit; NaN is not."""
        return self.worst <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A prompt about a clip."""

    prompt: Prompt
    frames: ClipFrames


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status, as in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m videostr.parity", description=__doc__)
    parser.add_argument("--model", required=True, metavar="DIR", help="Hugging Face folder or hub id")
    parser.add_argument("--video", metavar="FILE", help="compare on this video, too")
    parser.add_argument("--frames", type=typed(Count), default=8, help="frames of it (default 8)")
    parser.add_argument("--dtype", type=typed(Dtype), default="float32", help="float32 (default) or bfloat16")
    parser.add_argument("--gpu", action="store_true", help="engine and learner have a GPU each")
    parser.add_argument(
        "--inputs", action="store_true", help="ids, positions and pixels alone: seconds, no engine"
    )
    options = parser.parse_args(arguments)
    log_to_console()
    processor = open_checkpoint(
        options.model, cpu=not options.gpu, dtype="" if options.inputs else options.dtype
    )
    with tempfile.TemporaryDirectory(prefix="videostr-parity-") as scratch:
        folder = Path(scratch)
        cases = make_cases(folder, processor, options.video, options.frames)
        rows = compare_inputs(options.model, options.dtype, processor, cases, folder)
        if not options.inputs:
            config = engine_config(options.model, options.dtype, gpu=options.gpu)
            rows += asyncio.run(compare_computation(config, cases, folder))
    sys.stdout.write(table(rows))
    return 0 if all(row.agrees for row in rows) else 1


def make_cases(folder: Path, processor: Any, video: str | None = None, frames: int = 8) -> list[Case]:
    """Write synthetic clips into `folder`; return a prompt about each, and about all and a part of a video of the user's.

    Raises:
        VideoError: the video cannot be read.
    """
    specs = []
    for number, (height, width, fps, count) in enumerate(SHAPES):
        _write_video(folder / f"{number}.mp4", number, height, width, fps, count)
        specs.append(ClipSpec(video=f"{number}.mp4", num_frames=count))
    specs.append(ClipSpec(video="3.mp4", num_frames=4, start_s=1.0, end_s=3.0))
    if video is not None:
        specs.append(ClipSpec(video=str(Path(video).resolve()), num_frames=frames))
    store = FrameStore(folder / "frames")
    clips = [name_clip(spec, folder) for spec in specs]
    return [Case(prompt=render(_record(clip), clip, processor), frames=store.frames(clip)) for clip in clips]


# ------------------------------------------------------------------------------------------ ids, positions, pixels


def compare_inputs(model: str, dtype: str, processor: Any, cases: Sequence[Case], folder: Path) -> list[Row]:
    """Return how token ids, positions and pixels of engine and learner differ; `folder` gets a log of vLLM."""
    family = family_of(model)
    config = model_config(model, dtype)
    prompts, clips = [case.prompt for case in cases], [case.frames for case in cases]
    ours = family.encode(prompts, clips, processor, config)
    views = engine_views(model, dtype, prompts, clips, str(folder / "vllm.log"))
    pairs = list(zip(ours, views, strict=True))
    unequal = {
        "token ids": sum(not np.array_equal(mine.input_ids.numpy(), view.token_ids) for mine, view in pairs),
        "positions": sum(not np.array_equal(mine.positions.numpy(), view.positions) for mine, view in pairs),
    }
    rows = [
        Row(what=name, cases=len(cases), worst=count / len(cases), limit=0.0)
        for name, count in unequal.items()
    ]
    pixels = max(_pixel_difference(mine, view) for mine, view in pairs)
    return [*rows, Row(what="pixels", cases=len(cases), worst=pixels, limit=PIXELS)]


def model_config(model: str, dtype: str) -> Any:
    """Return the model's own configuration, with the type that it is computed in."""
    config = family_of(model).config_of(read_config(model), model)
    config.dtype = dtype
    return config


def _pixel_difference(mine: PromptInputs, view: EngineView) -> float:
    """Return the largest difference of vision inputs under one name; infinity where names or shapes differ."""
    worst = 0.0
    for name, values in mine.vision.items():
        here, there = values.float().numpy(), view.vision.get(name)
        if there is None or here.size != there.size:
            return float("inf")
        worst = max(worst, float(np.abs(here.reshape(-1) - there.astype(np.float32).reshape(-1)).max()))
    return worst


# ------------------------------------------------------------------------------------------------- log-probabilities


async def compare_computation(config: Config, cases: Sequence[Case], folder: Path) -> list[Row]:
    """Start an engine and a learner rank; return how their log-probabilities differ, before and after a weight sync."""
    start_ray()
    pool = RayRolloutPool(config, folder / "frames", folder / "logs")
    learner = RayLearner(config, folder / "frames")
    try:
        log.info("starting an engine and a learner rank")
        await asyncio.gather(pool.start(), learner.restart())
        groups = await _sample(pool, cases)
        rows = await _compare_logprobs(config, learner, groups, "")
        update = await learner.update(batch_of(groups))
        changed = f"after an update (gradient norm {update.metrics['grad_norm']:.3g})"
        rows.append(await _sync(config, pool, learner, update.version))
        return rows + await _compare_logprobs(config, learner, await _sample(pool, cases), changed)
    finally:
        pool.close()
        learner.close()
        stop_ray()


async def _sync(config: Config, pool: RayRolloutPool, learner: RayLearner, version: int) -> Row:
    engines = await pool.pause()
    parameters = len(await learner.checksums())
    try:
        await transfer_weights(config, learner, engines, version)
    except TransferError as error:
        return Row(what="weights read back", cases=parameters, worst=1.0, limit=0.0, note=str(error))
    await pool.mark_current(engines)
    return Row(what="weights read back", cases=parameters, worst=0.0, limit=0.0)


async def _compare_logprobs(
    config: Config, learner: RayLearner, groups: Sequence[RolloutGroup], note: str
) -> list[Row]:
    packed = await learner.logprobs(batch_of(groups))
    alone = [
        [(await learner.logprobs(batch_of([_only(group, index)])))[0][0] for index in range(COMPLETIONS)]
        for group in groups
    ]
    engine = np.concatenate([c.logprobs for group in groups for c in group.tokens.completions])
    ours = np.concatenate([values for group in packed for values in group])
    single = np.concatenate([values for group in alone for values in group])
    worst, mean = LIMITS[config.model.dtype]
    gap = np.abs(engine - ours)
    figures = {
        "log-probabilities, worst": (gap.max(), worst),
        "log-probabilities, mean": (gap.mean(), mean),
        "packed against alone": (np.abs(ours - single).max(), PACKED[config.model.dtype]),
    }
    return [
        Row(what=what, cases=len(ours), worst=float(value), limit=limit, note=note)
        for what, (value, limit) in figures.items()
    ]


async def _sample(pool: RayRolloutPool, cases: Sequence[Case]) -> list[RolloutGroup]:
    """Return a group of completions of every prompt.

    Raises:
        RolloutError: a prompt cannot be sampled.
    """
    requests = [
        SampleRequest(prompt=case.prompt, n=COMPLETIONS, temperature=1.0, max_tokens=TOKENS, seed=number)
        for number, case in enumerate(cases)
    ]
    groups = []
    for request, found in zip(requests, await asyncio.gather(*map(pool.sample, requests)), strict=True):
        if isinstance(found, Failure):
            raise RolloutError(
                f"{request.prompt.record_id}: {found.detail}",
                remedy="compare with --inputs, or with other --frames",
            )
        groups.append(RolloutGroup(prompt=request.prompt, sampled=await found.whole(), scores=()))
    return groups


def _only(group: RolloutGroup, index: int) -> RolloutGroup:
    whole = group.tokens
    return replace(group, sampled=replace(whole, completions=whole.completions[index : index + 1]))


def batch_of(groups: Sequence[RolloutGroup]) -> LearnerBatch:
    """Return groups with advantages that differ within each."""
    gains = tuple(
        np.linspace(-1.0, 1.0, len(group.sampled.completions)).astype(np.float32) for group in groups
    )
    return LearnerBatch(groups=tuple(groups), advantages=gains, temperature=1.0)


# ------------------------------------------------------------------------------------------------------------ shared


def _record(clip: Clip) -> Record:
    return Record(
        id=Path(clip.spec.video).name,
        source="parity",
        family="counting",
        question="How many things move?",
        options=(),
        answer=Answer(kind=AnswerKind.NUMBER, value=1.0),
        clip=clip.spec,
        labels=(),
        graph=None,
    )


def _write_video(path: Path, seed: int, height: int, width: int, fps: Fraction, frames: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for image in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())


def engine_config(model: str, dtype: Any, *, gpu: bool) -> Config:
    """Return the config of one engine and one rank, whose one update moves every weight by about 1e-3."""
    gpus = 1.0 if gpu else 0.0
    longest = model_config(model, dtype).get_text_config().max_position_embeddings
    return Config(
        run=Run(name="parity"),
        model=Model(path=model, dtype=dtype),
        rollout=RolloutConfig(
            num_gpus=gpus,
            num_cpus=0.5,
            max_num_seqs=32,
            max_model_len=min(RolloutConfig.max_model_len, longest),
        ),
        learner=LearnerConfig(num_gpus=gpus, num_cpus=0.5, lr=1e-3, max_row_tokens=2048),
        loss=LossConfig(correction="ratio"),
        sync=SyncConfig(verify=True),
        train=TrainConfig(steps=1),
    )


def table(rows: Sequence[Row]) -> str:
    """Return the table and the verdict."""
    width = max(len(row.what) for row in rows)
    lines = [f"{'':{width}}     cases       worst       limit"]
    for row in rows:
        verdict = "ok" if row.agrees else "DIFFERS"
        lines.append(
            f"{row.what:{width}}  {row.cases:8d}  {row.worst:10.3g}  {row.limit:10.3g}  {verdict:8s}{row.note}".rstrip()
        )
    agree = all(row.agrees for row in rows)
    lines.append(
        "trainer and engine see the same"
        if agree
        else "trainer and engine DIFFER: do not train with these versions"
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_main(main)
