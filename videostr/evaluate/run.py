"""Questions -> prompts -> answers -> rows and figures, for any benchmark.

`prepare` names what each question shows and asks, and so what determines its answer; `ask_new` asks what was never answered;
`tally` scores. Nothing here knows Ray or vLLM: engines come in as a `RolloutPool`.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videostr.chat import chat_text
from videostr.config import EvaluationConfig
from videostr.errors import DataError, PromptError, VideoError
from videostr.evaluate.answers import Answer, Answers, key_of, writable
from videostr.evaluate.asking import ask
from videostr.evaluate.benchmark import Benchmark, Mode, Question, QuestionSet, Verdict
from videostr.evaluate.records import Records
from videostr.evaluate.statistics import Scored, figure_values
from videostr.files import replacing
from videostr.models.base import family_of
from videostr.ports import RolloutPool, Sampled, SampleRequest
from videostr.prompt import asked, graph_contract, reasoned
from videostr.trace import parse
from videostr.types import Clip, ClipSpec, Failure, GraphFrame, Node, Prompt, Record, SceneGraph
from videostr.video import METADATA, VideoShape, name_clip, probe, target_times

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
class Asked:
    """A question as one model is asked it."""

    question: Question
    mode: Mode
    request: SampleRequest
    size: tuple[int, int]
    """Width and height of the frames shown, pixels."""
    times: tuple[float, ...]
    """Times of the frames asked for, seconds; shown are the frames nearest to them."""
    key: str
    """Digest of everything that determines the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unasked:
    """A question that cannot be asked, and why; it counts as wrong, and is told."""

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
        self.family = family_of(config.model)
        self.root = Path(config.root)
        self._shapes: dict[str, VideoShape | str] = {}
        """By video: its shape, or why it has none."""

    def prepare(self, question: Question, mode: Mode) -> Asked | Unasked:
        """What this question shows and asks."""
        shape = self._shape(question.video)
        if isinstance(shape, str):
            return Unasked(question=question, mode=mode, problem=shape)
        spec = self._spec(question, shape)
        try:
            clip = name_clip(spec, self.root)
        except VideoError as error:
            return Unasked(question=question, mode=mode, problem=str(error))
        size = (spec.width or shape.width, spec.height or shape.height)
        end = shape.seconds if spec.end_s is None else min(spec.end_s, shape.seconds)
        times = tuple(round(float(t), 3) for t in target_times(spec.start_s, end, spec.num_frames))
        try:
            prompt = self._prompt(question, mode, clip, shape, size, times)
        except PromptError as error:
            return Unasked(question=question, mode=mode, problem=str(error))
        request = SampleRequest(
            prompt=prompt,
            n=1,
            temperature=self.config.temperature,
            max_tokens=self.config.max_tokens_direct if mode is Mode.DIRECT else self.config.max_tokens,
            seed=self.config.seed,
        )
        key = key_of(
            model=self.model_digest,
            dtype=self.config.dtype,
            prompt=prompt.text,
            clip=clip.digest,
            temperature=request.temperature,
            seed=request.seed if request.temperature > 0 else 0,
            max_tokens=request.max_tokens,
            metadata=METADATA,
        )
        return Asked(question=question, mode=mode, request=request, size=size, times=times, key=key)

    def _shape(self, video: str) -> VideoShape | str:
        if video not in self._shapes:
            path = self.root / video
            try:
                self._shapes[video] = probe(path) if path.exists() else f"{path}: the video is missing"
            except VideoError as error:
                self._shapes[video] = str(error)
        return self._shapes[video]

    def _spec(self, question: Question, shape: VideoShape) -> ClipSpec:
        """Frames of a record as it says; of other questions as `frames` says."""
        if "record" in question.row:
            spec: ClipSpec = question.row["record"].clip
            return spec
        frames = self.config.frames
        end = shape.seconds if question.end_s is None else min(question.end_s, shape.seconds)
        start = min(question.start_s, end)
        wanted = round((end - start) * frames.fps) if frames.fps else frames.max_frames
        height, width = self.family.video_size(shape.height, shape.width, frames.max_pixels, self.processor)
        return ClipSpec(
            video=question.video,
            num_frames=max(2, min(frames.max_frames, wanted) // 2 * 2),  # the tower takes frames in pairs
            start_s=start,
            end_s=end,
            height=height,
            width=width,
        )

    def _prompt(
        self,
        question: Question,
        mode: Mode,
        clip: Clip,
        shape: VideoShape,
        size: tuple[int, int],
        times: Sequence[float],
    ) -> Prompt:
        benchmark = self.benchmark
        if mode is Mode.DIRECT:
            text = benchmark.prompt(question, shape.seconds, size)
        elif isinstance(benchmark, Records):
            text = benchmark.instruction(question, mode)
        else:
            contract = ""
            if mode is Mode.GRAPH:
                some = [times[i] for i in np.linspace(0, len(times) - 1, GRAPH_TIMES).round().astype(int)]
                contract = graph_contract(
                    OPEN_SCENE, list(dict.fromkeys(some)), "Labels: names of the objects that matter."
                )
            text = reasoned(_told(question), contract, benchmark.asks(question))
        return Prompt(record_id=question.id, text=chat_text(text, self.processor), clip=clip)


async def ask_new(
    asked: Sequence[Asked], pool: RolloutPool, answers: Answers, at_once: int
) -> dict[str, Failure]:
    """Ask what has no answer yet; each answer is on disk before the next question is asked in its place.

    Args:
        asked: questions, of any modes; equal keys are asked once.
        pool: engines.
        answers: where answers are kept.
        at_once: most questions in flight.

    Returns:
        Key -> why it got no answer, for those that the engines refused.
    """
    new = {item.key: item.request for item in asked if answers.get(item.key) is None}
    log.info("%d answers are there, %d to ask", len({item.key for item in asked}) - len(new), len(new))

    async def keep(key: str, sampled: Sampled) -> None:
        (completion,) = sampled.completions
        answers.put(
            key,
            Answer(
                text=completion.text,
                finish_reason=completion.finish_reason.name,
                prompt_tokens=len(sampled.prompt_token_ids),
                completion_tokens=len(completion.token_ids),
            ),
        )

    return await ask(new, pool, keep, at_once)


def tell_unasked(items: Sequence[Asked | Unasked]) -> None:
    """Log which questions cannot be asked, by reason; `questions.parquet` has them all."""
    reasons = Counter(item.problem for item in items if isinstance(item, Unasked))
    for problem, count in reasons.most_common(NAMED):
        log.warning("%d of %d cannot be asked, which count as wrong: %s", count, len(items), problem)
    if len(reasons) > NAMED:
        log.warning("and for %d more reasons; questions.parquet has all of them", len(reasons) - NAMED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One question, its answer and what determined it: a line of `questions.parquet`.

    What is not known of texts that came in a file, is 0, empty or "".
    """

    id: str
    task: str
    scene: str
    source: str
    video: str
    facts: str
    """What else the benchmark's figures need of the question, JSON."""
    mode: str
    model: str = ""
    """Path or id."""
    model_digest: str = ""
    prompt: str = ""
    """Chat text, the video as one placeholder."""
    frames: int = 0
    times: list[float] = field(default_factory=list)
    """Seconds."""
    width: int = 0
    height: int = 0
    temperature: float = 0.0
    max_tokens: int = 0
    seed: int = 0
    text: str
    """As the model wrote it."""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    extracted: str
    truth: str
    scores: dict[str, float]
    problem: str
    """Why there is no text, or why it is no answer; "" where all is well."""
    answered: bool
    """Whether there is a text at all."""
    key: str = ""

    @classmethod
    def of(
        cls, question: Question, mode: Mode, text: str | None, verdict: Verdict, problem: str, **rest: Any
    ) -> Row:
        """A question with its text, None for none, and what that earned."""
        facts = {name: value for name, value in question.row.items() if not isinstance(value, Record)}
        return cls(
            id=question.id,
            task=question.task,
            scene=question.scene,
            source=question.source,
            video=question.video,
            facts=json.dumps(facts),
            mode=mode.value,
            text=text or "",
            extracted=verdict.extracted,
            truth=str(question.truth),
            scores=dict(verdict.scores),
            problem=problem,
            answered=text is not None,
            **rest,
        )


def tally(
    items: Sequence[Asked | Unasked],
    answers: Answers,
    refused: Mapping[str, Failure],
    asker: Asker,
) -> list[Row]:
    """Score every question; one without an answer scores as an empty one, and says why."""
    rows = []
    for item in items:
        answer = answers.get(item.key) if isinstance(item, Asked) else None
        size = item.size if isinstance(item, Asked) else None
        verdict = verdict_of(asker.benchmark, item.question, item.mode, answer.text if answer else "", size)
        problem = verdict.note
        if isinstance(item, Unasked):
            problem = item.problem
        elif answer is None:
            failure = refused.get(item.key)
            problem = f"{failure.kind.value}: {failure.detail}" if failure else "it was not asked"
        rows.append(
            Row.of(
                item.question,
                item.mode,
                answer.text if answer else None,
                verdict,
                problem,
                **_asking(item, answer, asker),
            )
        )
    return rows


def verdict_of(
    benchmark: Benchmark, question: Question, mode: Mode, text: str, size: tuple[int, int] | None
) -> Verdict:
    """Score a text of a mode: the whole of it in `Mode.DIRECT`, else the content of its answer block."""
    if mode is Mode.DIRECT:
        return benchmark.score(question, text, size)
    if isinstance(benchmark, Records):
        return benchmark.score_trace(question, text, mode)
    return benchmark.score(question, parse(text).answer, size)


def scores_of(rows: Sequence[Mapping[str, float]], columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Column -> [N] scores, NaN where a question does not have the column; columns that no question has are left out."""
    found = {name: np.array([row.get(name, np.nan) for row in rows], dtype=float) for name in columns}
    return {name: values for name, values in found.items() if not np.isnan(values).all()}


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write `questions.parquet`; `scores` becomes one column `score/NAME` each, texts are as `writable` gives them."""
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    table = []
    for row in rows:
        values = {name: getattr(row, name) for name in Row.__dataclass_fields__ if name != "scores"}
        values |= {name: writable(value) for name, value in values.items() if isinstance(value, str)}
        table.append({**values, **{f"score/{name}": row.scores.get(name) for name in names}})
    with replacing(path) as scratch:
        pq.write_table(pa.Table.from_pylist(table), scratch, compression="zstd")


def read_rows(path: Path, columns: Sequence[str]) -> Scored:
    """What `write_rows` wrote, as the statistics take it.

    Raises:
        DataError: the file is missing or no such table.
    """
    try:
        table = pq.read_table(path).to_pylist()
        questions = [
            Question(
                **{name: row[name] for name in ("id", "video", "task", "scene", "source", "truth")},
                text="",
                row=json.loads(row["facts"]),
            )
            for row in table
        ]
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(f"{path}: holds no rows of an evaluation ({error}); evaluate again") from None
    scores = [
        {name: value for name in columns if (value := row.get(f"score/{name}")) is not None} for row in table
    ]
    return Scored(questions=questions, scores=scores_of(scores, columns))


def baselines(benchmark: Benchmark, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    """`chance` and `constant` -> figure -> value; figures with questions that a baseline does not answer are left out."""
    constant = benchmark.constant(questions)
    ways: dict[str, Callable[[Question], Mapping[str, float]]] = {
        "chance": benchmark.chance,
        "constant": lambda q: benchmark.score(q, constant[q.id], None).scores if q.id in constant else {},
    }
    empty = [benchmark.score(question, "", None).scores for question in questions]
    found = {}
    for name, way in ways.items():
        known = [way(question) for question in questions]
        # What does not depend on the scores of the questions that are left open, is known.
        low, high = (
            figure_values(
                benchmark,
                questions,
                scores_of(
                    [{**dict.fromkeys(has, guess), **row} for has, row in zip(empty, known, strict=True)],
                    benchmark.columns,
                ),
            )
            for guess in (0.0, 0.5)
        )
        if any(known):
            found[name] = {figure: value for figure, value in low.items() if value == high[figure]}
    return found


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """`questions`, `answered`, and what kept others from it, by kind."""
    kinds = Counter(
        "truncated" if row.finish_reason == "LENGTH" else "no_answer_read"
        for row in rows
        if row.answered and not row.extracted
    )
    lost = Counter("video" if not row.key else "engine" for row in rows if not row.answered)
    return {
        "questions": len(rows),
        "answered": sum(row.answered for row in rows),
        **{f"failed_{kind}": count for kind, count in sorted(lost.items())},
        **dict(sorted(kinds.items())),
    }


def limited(read: QuestionSet, limit: int) -> QuestionSet:
    """The first `limit` questions; all for 0."""
    return replace(read, questions=read.questions[:limit]) if limit else read


def _told(question: Question) -> str:
    text = asked(question.text, question.options)
    if question.end_s is None:
        return text
    return f"From {question.start_s:g} s to {question.end_s:g} s: {text}"


def _asking(item: Asked | Unasked, answer: Answer | None, asker: Asker) -> dict[str, Any]:
    """Fields of a `Row` that say how a question was asked."""
    config = asker.config
    found: dict[str, Any] = {
        "model": config.model,
        "model_digest": asker.model_digest,
        "temperature": config.temperature,
        "seed": config.seed,
    }
    if isinstance(item, Asked):
        found |= {
            "prompt": item.request.prompt.text,
            "frames": len(item.times),
            "times": list(item.times),
            "width": item.size[0],
            "height": item.size[1],
            "max_tokens": item.request.max_tokens,
            "key": item.key,
        }
    if answer:
        found |= {
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
        }
    return found
