"""What a benchmark is: questions read from its official files, its prompts, its scoring, its figures.

In: a benchmark's folder; texts that a model wrote. Out: `Question`s, `Verdict`s and figures by name. One module a benchmark
implements `Benchmark`; everything else here (`run`, `statistics`, `tables`) works with any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from videostr.graph import MAX_BYTES

LIMIT = MAX_BYTES
"""Characters; longer texts are not answers to the strict readers, as in traces. The official ones have no limit."""


class Mode(StrEnum):
    """How the model is asked, and for the last three, the controls, what it is shown; these ask with the prompt of another."""

    DIRECT = "direct"
    """The official prompt; the whole text is the answer."""
    THINK = "think"
    """Reason inside <think></think>; the text inside <answer></answer> is the answer."""
    GRAPH = "graph"
    """As `THINK`, with the relation graph of the scene inside <think></think>."""
    BLIND = "blind"
    """Without the video."""
    SHUFFLED = "shuffled"
    """With its frames in a random order, at the times of the true one."""
    SINGLE_FRAME = "single_frame"
    """With the frame in the middle alone."""


ASKING = (Mode.DIRECT, Mode.THINK, Mode.GRAPH)
"""Modes with a prompt of their own."""
CONTROLS = {
    Mode.BLIND: "the video",
    Mode.SINGLE_FRAME: "more than one frame",
    Mode.SHUFFLED: "the order of frames",
}
"""Control -> what a model adds to its score by what the control keeps from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of a benchmark."""

    id: str
    """Unique within the benchmark; what `id` of a predictions file names."""
    video: str
    """Path of the video, below the benchmark's folder; it need not be there for scoring."""
    task: str
    scene: str = ""
    """Kind of scene ("indoor"), where the benchmark has kinds."""
    source: str = ""
    """Dataset that the video comes from, where the benchmark says it."""
    start_s: float = 0.0
    """Start of the part that is asked about, seconds."""
    end_s: float | None = None
    """Its end; None is the end of the video."""
    text: str
    """The question as the benchmark's file has it."""
    video_place: str = ""
    """What of the official text the video takes the place of; "" where it comes first."""
    options: tuple[str, ...] = ()
    """Texts of options A, B, ...; empty where the answer is not a choice."""
    problem: str = ""
    """Why it cannot be asked here, in words a user understands; texts from elsewhere are scored all the same."""
    truth: Any
    """As the benchmark's scoring wants it: a letter, a number as text, a span, boxes by second."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """What else of the official row prompts and scoring need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet:
    """The questions of a benchmark's folder."""

    questions: tuple[Question, ...]
    """In the order of the files; ids are unique."""
    digest: str
    """SHA-256 over the question files, hex: figures of different digests are figures of different benchmarks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one text scored."""

    extracted: str
    """What the official extraction read as the answer; "" where it read none."""
    scores: Mapping[str, float]
    """By column, in [0, 1]: the benchmark's own, and `strict` by our parser. Every question has the columns of its task."""
    note: str = ""
    """Why it is not an answer, in words a user understands; "" where it is one."""


class Benchmark(Protocol):
    """One benchmark."""

    name: str
    """As `--benchmark` takes it."""
    columns: tuple[str, ...]
    """Columns that `Verdict.scores` may have."""

    def read(self, root: Path) -> QuestionSet:
        """Return all questions.

        Raises:
            DataError: a file is missing or not in the official form, or an id is there twice; names file, row and field.
        """
        ...

    def prompt(self, question: Question, seconds: float, size: tuple[int, int]) -> str:
        """Return the official user text for `Mode.DIRECT`, with `Question.video_place` for the video.

        Args:
            question: what is asked.
            seconds: length of the video.
            size: width and height of the frames that the model is shown, pixels.
        """
        ...

    def asks(self, question: Question) -> str:
        """Return what the answer has to be, for "Then write ... inside <answer></answer>." of `Mode.THINK` and `Mode.GRAPH`."""
        ...

    def score(self, question: Question, answer: str, size: tuple[int, int] | None) -> Verdict:
        """Return what an answer scores. Never raises, whatever the text.

        Args:
            question: what was asked.
            answer: the model's text, or the content of its answer block where the mode has one; "" for none.
            size: width and height of the frames that the model was shown, pixels; None where it is not known.
        """
        ...

    def chance(self, question: Question) -> Mapping[str, float]:
        """Return the expected scores of an answer drawn at random, where that is defined; {} where it is not."""
        ...

    def constant(self, questions: Sequence[Question]) -> Mapping[str, str]:
        """Return by question id the answer of a model that has seen the answers' distribution and no video."""
        ...

    def figures(
        self, questions: Sequence[Question], scores: Mapping[str, np.ndarray], weights: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the benchmark's figures, in its own order, for many weightings of the questions at once.

        Args:
            questions: N of them.
            scores: column -> [N] float64, NaN where a question does not have the column.
            weights: [B, N] times that each question counts; ones give the benchmark's figures, draws a bootstrap.

        Returns:
            Name ("overall", "task/Displacement & Path Length", "scene/indoor", "strict/overall", ...) -> [B], in percent
            where the benchmark publishes percent; NaN where a weighting leaves a figure without questions.
        """
        ...


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return [B] weighted means of [N] values, those that are NaN left out; NaN without any."""
    there = ~np.isnan(values)
    total = weights[:, there].sum(axis=1)
    means: np.ndarray = np.full(len(weights), np.nan)
    np.divide(weights[:, there] @ values[there], total, out=means, where=total > 0)
    return means
