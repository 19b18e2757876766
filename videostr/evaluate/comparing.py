"""Results side by side, from the folders that evaluations wrote.

In: folders with `figures.json` and `questions.parquet`. Out: a page with every figure of each, how they differ from the first,
and what the video adds where a run without it, or with less of it, is among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rewards import Rubric
from videostr.evaluate import tables
from videostr.evaluate.benchmark import CONTROLS, Mode
from videostr.evaluate.benchmarks import BENCHMARKS
from videostr.evaluate.result import Evaluated, require_same_questions
from videostr.evaluate.rows import read_rows
from videostr.evaluate.statistics import comparisons

RESULT = "figures.json"
ROWS = "questions.parquet"
PROMPT = "prompt"
"""Setting of a control: the mode whose prompt it asks with."""
SEES_OTHER_FRAMES = {PROMPT, "frames", "pixels"}
"""Settings in which a control may differ from the run that it is compared with."""


def side_by_side(folders: Sequence[Path], resamples: int, seed: int) -> str:
    """Return the page of results side by side, the first one the base.

    Raises:
        DataError: a folder has no result, or they are of different benchmarks or question files.
    """
    runs = [Evaluated.from_json(folder / RESULT) for folder in folders]
    require_same_questions(runs)
    benchmark = BENCHMARKS[runs[0].benchmark](None, Rubric.preset("default"))
    scored = [read_rows(folder / ROWS, benchmark.columns) for folder in folders]
    binary = "accuracy" if "accuracy" in benchmark.columns else ""
    found = [comparisons(benchmark, scored[0], other, resamples, seed, binary=binary) for other in scored[1:]]
    gains = [
        tables.Gain(
            what=CONTROLS[Mode(control.mode)],
            whole=whole.name,
            control=control.name,
            figures=comparisons(benchmark, scored[i], scored[j], resamples, seed),
        )
        for i, control in enumerate(runs)
        for j, whole in enumerate(runs)
        if _is_control_of(control, whole)
    ]
    return tables.compare(runs, found) + tables.gains(gains)


def _is_control_of(control: Evaluated, whole: Evaluated) -> bool:
    if control.mode not in CONTROLS or control.settings.get(PROMPT) != whole.mode:
        return False
    names = (control.settings.keys() | whole.settings.keys()) - SEES_OTHER_FRAMES
    return all(control.settings.get(name) == whole.settings.get(name) for name in names)
