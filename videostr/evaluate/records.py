"""A record dataset of ours as a benchmark: the rubric's parts, by question family and source.

In: a folder of Parquet shards. Out: questions whose `row` holds the record, and figures in percent of each part.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from rewards import Rubric, score
from videostr.data.records import read_records
from videostr.digests import folder_digest
from videostr.errors import DataError
from videostr.evaluate.benchmark import Mode, Question, QuestionSet, Verdict, mean
from videostr.prompt import answer_format, answer_text, format_question, instruction, part_shown
from videostr.trace import parse
from videostr.types import AnswerKind, Failure, Record, Score

PARTS = ("answer", "format", "graph", "graph_node", "graph_edge", "entailed", "consistency")
USE = ("entailed", "consistency", "supported", "right_graph", "wrong_graph")
"""Figures of `graph_use`."""


class Records:
    """Scores whole traces: where the mode asks for a graph, the graph counts, too."""

    name: str = "records"
    columns: tuple[str, ...] = PARTS

    def __init__(self, rubric: Rubric) -> None:
        self._rubric = rubric

    def read(self, root: Path) -> QuestionSet:
        """Return all records.

        Raises:
            DataError: there are none, or one breaks the schema (`python -m videostr.data check` names all).
        """
        questions = []
        for row in read_records(root):
            if isinstance(row, Failure):
                raise DataError(row.detail, remedy="an evaluation set must be whole")
            questions.append(_question(row))
        return QuestionSet(questions=tuple(questions), digest=folder_digest(root))

    def prompt(self, question: Question, seconds: float, size: tuple[int, int]) -> str:
        """Return the question and the form of its answer."""
        record = _record(question)
        text = part_shown(record.clip) + format_question(record.question, record.options)
        return f"{text}\nAnswer with {answer_format(record.answer)} only."

    def instruction(self, question: Question, mode: Mode) -> str:
        """Return the instruction of training; without the graph in `Mode.THINK`."""
        record = _record(question)
        return instruction(record if mode is Mode.GRAPH else replace(record, graph=None))

    def asks(self, question: Question) -> str:
        """Return the form of the answer."""
        return answer_format(_record(question).answer)

    def score(self, question: Question, answer: str, size: tuple[int, int] | None) -> Verdict:
        """Return what an answer alone scores; it has no other part."""
        scored = score(f"<think></think><answer>{answer}</answer>", _record(question), self._rubric)
        return Verdict(
            extracted=answer.strip(), scores={"answer": scored.parts["answer"]}, note=_notes(scored, "answer")
        )

    def score_trace(self, question: Question, text: str, mode: Mode) -> Verdict:
        """Return the rubric's parts of a whole text; without those of the graph where the mode asks for none."""
        return verdict_on(parse(text).answer, score(text, _record(question), self._rubric), mode)

    def chance(self, question: Question) -> Mapping[str, float]:
        """Return 1 divided by the number of options."""
        return {"answer": 1 / len(question.options)} if question.options else {}

    def constant(self, questions: Sequence[Question]) -> Mapping[str, str]:
        """By family: the most frequent letter, the median number; nothing for boxes and spans."""
        families: dict[str, list[Question]] = defaultdict(list)
        for question in questions:
            families[question.task].append(question)
        given: dict[str, str] = {}
        for members in families.values():
            for kind in {_record(q).answer.kind for q in members}:
                same = [q for q in members if _record(q).answer.kind is kind]
                truths = [_record(q).answer.value for q in same]
                if kind is AnswerKind.CHOICE:
                    said = Counter(map(str, truths)).most_common(1)[0][0]
                elif kind is AnswerKind.NUMBER:
                    said = f"{median(float(v) for v in truths):g}"  # type: ignore[arg-type]  # a number's value is a float
                else:
                    continue
                given |= {q.id: said for q in same}
        return given

    def figures(
        self, questions: Sequence[Question], scores: Mapping[str, np.ndarray], weights: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return `overall` (the answer), the other parts, then the answer by family and by source; percent.

        Of the questions that a graph can answer, `graph_use` says how the answers depend on the stated graphs: below `part/`
        over all of them, below `supported/`, `right_graph/` and so on by family.
        """
        answer = scores["answer"]
        found = {"overall": mean(answer, weights)}
        for name in PARTS[1:]:
            if name in scores and not np.isnan(scores[name]).all():
                found[f"part/{name}"] = mean(scores[name], weights)
        told = ~np.isnan(scores["consistency"]) if "consistency" in scores else np.zeros(len(questions), bool)
        families = np.array([question.task for question in questions], dtype=object)
        by_family: dict[str, np.ndarray] = {}
        if told.any():
            use = graph_use(scores, weights, told)
            found |= {f"part/{name}": use[name] for name in use if name not in PARTS}
            for family in dict.fromkeys(families[told]):
                use = graph_use(scores, weights, told & (families == family))
                by_family |= {f"{name}/{family}": value for name, value in use.items()}
        for prefix, of in (
            ("task", families),
            ("source", np.array([q.source for q in questions], dtype=object)),
        ):
            for value in dict.fromkeys(of):
                inside = of == value
                found[f"{prefix}/{value}"] = mean(answer[inside], weights[:, inside])
        # by figure, then by family, as the tables show them
        found |= dict(sorted(by_family.items(), key=lambda item: USE.index(item[0].split("/")[0])))
        return {name: 100 * value for name, value in found.items()}


def graph_use(
    scores: Mapping[str, np.ndarray], weights: np.ndarray, inside: np.ndarray
) -> dict[str, np.ndarray]:
    """Return how the answers to some questions depend on the stated graphs, as [B] shares.

    A right graph is one from which the right answer follows; one that entails an answer with a score between 0 and 1 (a number)
    counts by that as right and by the rest as wrong, a missing graph as wrong.

    Args:
        scores: `answer`, `entailed`, `consistency` by question [N].
        weights: [B, N].
        inside: [N], the questions, which a graph can answer.

    Returns:
        `entailed`: what the answers that follow from the stated graphs score. `consistency`: how far the stated answers follow
        from them. `supported`: the share of what the answers score that does. `right_graph`, `wrong_graph`: what the answers
        score, given such a graph; NaN where there is none.
    """
    answer, entailed, consistency = (scores[name][inside] for name in ("answer", "entailed", "consistency"))
    weights = weights[:, inside]

    def share(part: np.ndarray, of: np.ndarray) -> np.ndarray:
        """Return [B] sums of a part, divided by those of the whole."""
        whole = weights @ of
        shares: np.ndarray = np.full(len(weights), np.nan)
        np.divide(weights @ part, whole, out=shares, where=whole > 0)
        return shares

    return {
        "entailed": mean(entailed, weights),
        "consistency": mean(consistency, weights),
        "supported": share(answer * consistency, answer),
        "right_graph": share(answer * entailed, entailed),
        "wrong_graph": share(answer * (1 - entailed), 1 - entailed),
    }


def verdict_on(answer: str, scored: Score, mode: Mode) -> Verdict:
    """Return what a trace with this answer scored by a rubric; without the parts of the graph where the mode asks for none."""
    wanted = PARTS if mode is Mode.GRAPH else PARTS[:2]
    parts = {name: scored.parts[name] for name in wanted if name in scored.parts}
    return Verdict(extracted=answer, scores=parts, note=_notes(scored, *wanted))


def _question(record: Record) -> Question:
    return Question(
        id=record.id,
        video=record.clip.video,
        task=record.family,
        source=record.source,
        start_s=record.clip.start_s,
        end_s=record.clip.end_s,
        text=record.question,
        options=record.options,
        truth=answer_text(record.answer),
        row={"record": record},
    )


def _record(question: Question) -> Record:
    record: Record = question.row["record"]
    return record


def _notes(scored: Score, *parts: str) -> str:
    return "; ".join(note for note in scored.notes if note.split(":")[0] in parts)
