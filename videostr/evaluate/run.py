"""Questions -> prompts -> answers -> rows and figures, for any benchmark.

`prepare` names what each question shows and asks, and so what determines its answer; `ask_new` asks what was never answered;
`tally` scores. Nothing here knows Ray or vLLM: engines come in as a `RolloutPool`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from videostr.asking import ask
from videostr.chat import chat_text
from videostr.config.schema import EvaluationConfig
from videostr.digests import json_digest
from videostr.errors import PromptError, VideoError
from videostr.evaluate.answers import Answer, Answers, key_of
from videostr.evaluate.benchmark import CONTROLS, Benchmark, Mode, Question, QuestionSet
from videostr.evaluate.records import Records
from videostr.groups import SampledGroup
from videostr.models.base import family_of
from videostr.ports import RolloutPool, SampleRequest
from videostr.prompt import format_question, graph_contract, reasoning_prompt
from videostr.types import ClipSpec, Failure, GraphFrame, Node, Prompt, SceneGraph
from videostr.video import METADATA, VideoShape, name_clip, probe, reordered, target_times

log = logging.getLogger("videostr.evaluate")
GRAPH_TIMES = 4
"""Most times at which a graph is asked for, where no record says which."""
OPEN_SCENE = SceneGraph(
    unit="m",
    frame="camera0",
    frames=(GraphFrame(t=0.0, nodes=(Node(id="object.1", label="object", pos=(0.0, 0.0, 0.0)),)),),
)
"""Contract of graphs of benchmarks without true ones: metres, three coordinates, seen from the first camera."""
NAMED = 5
"""Reasons that are named in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedQuestion:
    """A question as one model is asked it."""

    question: Question
    mode: Mode
    request: SampleRequest
    size: tuple[int, int]
    """Width and height of the frames shown, pixels."""
    times: tuple[float, ...]
    """Times of the frames asked for, seconds; shown are the frames nearest to them. Empty where none is."""
    key: str
    """Digest of everything that determines the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedQuestion:
    """A question that cannot be asked, and why; it counts as wrong, and is logged."""

    question: Question
    mode: Mode
    problem: str
    """In words a user understands."""


class Asker:
    """Turns questions into prompts for one model."""

    def __init__(
        self, config: EvaluationConfig, benchmark: Benchmark, processor: Any, model_digest: str
    ) -> None:
        self.config = config
        self.benchmark = benchmark
        self.processor = processor
        self.model_digest = model_digest
        self.family = family_of(config.model.path)
        self.root = Path(config.benchmark.root)
        self._shapes: dict[str, VideoShape | str] = {}
        """By video: its shape, or why it has none."""

    def prompt_of(self, mode: Mode) -> Mode:
        """Return the mode whose prompt a mode asks with, and whose answers it reads: of a control, that of the config."""
        return Mode(self.config.benchmark.control_prompt) if mode in CONTROLS else mode

    def prepare(self, question: Question, mode: Mode) -> PreparedQuestion | SkippedQuestion:
        """Return what this question shows and asks."""
        shape = question.problem or self._shape(question.video)
        if isinstance(shape, str):
            return SkippedQuestion(question=question, mode=mode, problem=shape)
        spec = self._spec(question, shape)
        try:
            clip = name_clip(spec, self.root)
        except VideoError as error:
            return SkippedQuestion(question=question, mode=mode, problem=str(error))
        size = (spec.width or shape.width, spec.height or shape.height)
        end = shape.seconds if spec.end_s is None else min(spec.end_s, shape.seconds)
        times = tuple(round(float(t), 3) for t in target_times(spec.start_s, end, spec.num_frames))
        is_blind = mode is Mode.BLIND
        try:
            text = chat_text(
                self._text(question, mode, shape, size, times),
                self.processor,
                with_video=not is_blind,
                video_place=question.video_place,
            )
        except PromptError as error:
            return SkippedQuestion(question=question, mode=mode, problem=str(error))
        order = () if is_blind else frame_order(mode, question, spec, self.config.run.seed)
        clip = reordered(clip, order) if order else clip
        prompt = Prompt(record_id=question.id, text=text, clip=clip, is_blind=is_blind)
        sampling = self.config.sampling
        request = SampleRequest(
            prompt=prompt,
            n=1,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens_direct
            if self.prompt_of(mode) is Mode.DIRECT
            else sampling.max_tokens,
            seed=self.config.run.seed,
        )
        key = key_of(
            model=self.model_digest,
            dtype=self.config.model.dtype,
            prompt=prompt.text,
            clip="" if is_blind else clip.digest,
            temperature=request.temperature,
            seed=request.seed if request.temperature > 0 else 0,
            max_tokens=request.max_tokens,
            metadata=METADATA,
        )
        shown = () if is_blind else tuple(times[i] for i in sorted(set(order))) or times
        return PreparedQuestion(
            question=question, mode=mode, request=request, size=size, times=shown, key=key
        )

    def _shape(self, video: str) -> VideoShape | str:
        if video not in self._shapes:
            path = self.root / video
            try:
                self._shapes[video] = probe(path) if path.exists() else f"{path}: the video is missing"
            except VideoError as error:
                self._shapes[video] = str(error)
        return self._shapes[video]

    def _spec(self, question: Question, shape: VideoShape) -> ClipSpec:
        """Return the frames of a record as it says, of other questions as section `benchmark` says."""
        if "record" in question.row:
            spec: ClipSpec = question.row["record"].clip
            return spec
        frames = self.config.benchmark
        end = shape.seconds if question.end_s is None else min(question.end_s, shape.seconds)
        start = min(question.start_s, end)
        wanted = round((end - start) * frames.fps) if frames.fps else frames.max_frames
        num_frames = max(2, min(frames.max_frames, wanted) // 2 * 2)  # the tower takes frames in pairs
        height, width = self.family.video_size(
            shape.height, shape.width, num_frames, frames.max_pixels, self.processor
        )
        return ClipSpec(
            video=question.video,
            num_frames=num_frames,
            start_s=start,
            end_s=end,
            height=height,
            width=width,
        )

    def _text(
        self, question: Question, mode: Mode, shape: VideoShape, size: tuple[int, int], times: Sequence[float]
    ) -> str:
        """Return the user's text; that of a control is the same as without it."""
        benchmark, mode = self.benchmark, self.prompt_of(mode)
        if mode is Mode.DIRECT:
            return benchmark.prompt(question, shape.seconds, size)
        if isinstance(benchmark, Records):
            return benchmark.instruction(question, mode)
        contract = ""
        if mode is Mode.GRAPH:
            some = [times[i] for i in np.linspace(0, len(times) - 1, GRAPH_TIMES).round().astype(int)]
            contract = open_contract(list(dict.fromkeys(some)))
        return reasoning_prompt(_question_text(question), contract, benchmark.asks(question))


def open_contract(times: Sequence[float]) -> str:
    """Return how to draw a scene of which no true graph is known; without times, at some of those shown."""
    return graph_contract(OPEN_SCENE, times, "Labels: names of the objects that matter.")


def frame_order(mode: Mode, question: Question, spec: ClipSpec, seed: int) -> tuple[int, ...]:
    """Return which of a clip's frames a mode shows, by their places, in its order; () where it shows all as they are.

    One frame is shown twice, for towers take frames in pairs. The random order depends on the seed and on which frames of which
    video they are: questions on the same frames see the same order. It is never the true one.
    """
    count = spec.num_frames
    if mode is Mode.SINGLE_FRAME:
        return ((count - 1) // 2,) * 2
    if mode is not Mode.SHUFFLED or count < 2:
        return ()
    frames = [seed, question.video, spec.start_s, spec.end_s, count]
    random = np.random.default_rng(int(json_digest(frames)[:16], 16))
    order = tuple(range(count))
    while list(order) == sorted(order):
        order = tuple(random.permutation(count).tolist())
    return order


async def ask_new(
    asked: Sequence[PreparedQuestion], pool: RolloutPool, answers: Answers, at_once: int
) -> dict[str, Failure]:
    """Ask what has no answer yet; each answer is on disk before the next question is asked in its place.

    Questions about one clip follow each other, so that an engine encodes it once and still has it when the next one comes.

    Args:
        asked: questions, of any modes; equal keys are asked once.
        pool: engines.
        answers: where answers are kept.
        at_once: most questions in flight.

    Returns:
        Key -> why it got no answer, for those that the engines refused.
    """
    clips: dict[str, int] = {}
    """Digest of a clip: its place among all."""
    for item in asked:
        clips.setdefault(item.request.prompt.clip.digest, len(clips))
    ordered = sorted(asked, key=lambda item: clips[item.request.prompt.clip.digest])
    new = {item.key: item.request for item in ordered if answers.get(item.key) is None}
    log.info("%d answers are there, %d to ask", len({item.key for item in asked}) - len(new), len(new))

    waiting: dict[str, Answer] = {}
    writing = asyncio.Lock()

    async def keep(key: str, sampled: SampledGroup) -> None:
        """Write an answer, together with those that come while others are written: a wait for the disk takes milliseconds."""
        (completion,) = (await sampled.whole()).completions
        waiting[key] = Answer(
            text=completion.text,
            finish_reason=completion.finish_reason.name,
            prompt_tokens=sampled.num_prompt_tokens,
            completion_tokens=completion.num_tokens,
        )
        async with writing:
            batch = waiting.copy()
            waiting.clear()
            if batch:  # else the task before wrote this one, too
                await asyncio.to_thread(answers.put, batch)

    return await ask(new, pool, keep, at_once)


def log_skipped(items: Sequence[PreparedQuestion | SkippedQuestion]) -> None:
    """Log which questions cannot be asked, by reason; `questions.parquet` has them all."""
    reasons = Counter(item.problem for item in items if isinstance(item, SkippedQuestion))
    for problem, count in reasons.most_common(NAMED):
        log.warning("%d of %d cannot be asked, which count as wrong: %s", count, len(items), problem)
    if len(reasons) > NAMED:
        log.warning("and for %d more reasons; questions.parquet has all of them", len(reasons) - NAMED)


def limited(read: QuestionSet, limit: int) -> QuestionSet:
    """Return the first `limit` questions; all for 0."""
    return replace(read, questions=read.questions[:limit]) if limit else read


def _question_text(question: Question) -> str:
    text = format_question(question.text, question.options)
    if question.end_s is None:
        return text
    return f"From {question.start_s:g} s to {question.end_s:g} s: {text}"
