"""VSI-Bench-Debiased: the questions of VSI-Bench that are hard to answer without the video (arXiv 2511.04655), as a benchmark.

In: the folder of huggingface.co/datasets/nyu-visionx/VSI-Bench, as it is since November 2025. Out: the questions that its authors
did not prune; prompts, reading and figures are those of VSI-Bench. After a run on all questions these have their answers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from videostr.errors import DataError
from videostr.evaluate.benchmark import QuestionSet
from videostr.evaluate.vsi_bench import VsiBench

SUBSET = "test_debiased.parquet"
PRUNED_IDS = "pruned_ids.txt"


class VsiDebiased(VsiBench):
    """The subset, by the first of these that is there: its own file, the field `pruned`, the list of pruned ids."""

    name: str = "vsi_debiased"

    def files(self, root: Path) -> list[Path]:
        """Return the subset's own file, or those of VSI-Bench."""
        return [root / SUBSET] if (root / SUBSET).is_file() else super().files(root)

    def read(self, root: Path) -> QuestionSet:
        """Return the questions that were not pruned, in the order of the file.

        Raises:
            DataError: as of VSI-Bench; or nothing there says which were pruned, or all were.
        """
        read = super().read(root)
        if (root / SUBSET).is_file():
            return read
        pruned = {question.id for question in read.questions if question.row["pruned"]}
        if any(question.row["pruned"] is None for question in read.questions):
            pruned = _listed(root, {question.id for question in read.questions})
        kept = tuple(question for question in read.questions if question.id not in pruned)
        if not kept:
            raise DataError(f"{root}: all its questions are pruned", remedy="download VSI-Bench again")
        return replace(read, questions=kept)


def _listed(root: Path, known: set[str]) -> set[str]:
    try:
        ids = set((root / PRUNED_IDS).read_text(encoding="utf-8").split())
    except OSError as error:
        raise DataError(
            f"{root}: has neither {SUBSET}, nor questions with a field pruned, nor {PRUNED_IDS} ({error.strerror})",
            remedy="download VSI-Bench as it is since November 2025",
        ) from None
    unknown = sorted(ids - known)
    if unknown:
        raise DataError(
            f"{root / PRUNED_IDS}: id {unknown[0]!r} is of no question", remedy="download VSI-Bench again"
        )
    return ids
