"""What an ablation shows: a table as Markdown and as JSON, and one HTML page with curves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from videostr.ablate.results import START, ArmResult
from videostr.ablate.scores import CURVES, PARTS
from videostr.bootstrap import Interval
from videostr.charts import Band, Chart, band_chart, interval, short
from videostr.config.schema import AblationConfig
from videostr.files import write_json, write_text
from videostr.heldout import GREEDY, SAMPLED
from videostr.metrics import duration
from videostr.page import render_page

COLUMNS = (*((SAMPLED, part) for part in PARTS), (GREEDY, "answer"))
NONE = "–"


def write_results(
    folder: Path, config: AblationConfig, arms: Sequence[ArmResult], planned: int, done: int
) -> Path:
    """Write `ablation.md`, `ablation.json` and `ablation.html`; return the path of the last.

    Args:
        folder: of the ablation.
        config: of the ablation.
        arms: what is known so far.
        planned: runs in all.
        done: of them.
    """
    reference = config.compared_with
    write_json(
        folder / "ablation.json",
        {"runs": planned, "done": done, "reference": reference, "arms": _values(arms)},
    )
    write_text(folder / "ablation.md", table(arms, reference))
    write_text(folder / "ablation.html", _page(config, arms, reference, planned, done))
    return folder / "ablation.html"


def table(arms: Sequence[ArmResult], reference: str) -> str:
    """Return what each arm scores after training, and the difference in answers from the reference, as Markdown."""
    head = [
        "",
        "seeds",
        *(f"{part}, {way}" for way, part in COLUMNS),
        f"answer, sampled, against {reference}",
        "tokens",
        "time",
    ]
    lines = [head, ["---"] * len(head), *(_row(arm) for arm in arms)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _row(arm: ArmResult) -> list[str]:
    figures = [arm.figures.get(column) for column in COLUMNS]
    answer = arm.figures.get((SAMPLED, "answer"))
    difference = answer.difference if answer else None
    trained = arm.name != START
    return [
        arm.name,
        str(len(arm.seeds)),
        *(NONE if figure is None else _text(figure.value) for figure in figures),
        NONE if difference is None else _text(difference, sign="+"),
        short(arm.tokens) if trained else NONE,
        duration(arm.seconds) if trained else NONE,
    ]


def _text(value: Interval, sign: str = "") -> str:
    return f"{value.value:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


def _values(arms: Sequence[ArmResult]) -> dict[str, Any]:
    return {
        arm.name: {
            "seeds": arm.seeds,
            "tokens": arm.tokens,
            "seconds": arm.seconds,
            **{
                f"{way}/{part}": {
                    "value": _bounds(figure.value),
                    "difference": None if figure.difference is None else _bounds(figure.difference),
                }
                for (way, part), figure in arm.figures.items()
            },
        }
        for arm in arms
    }


def _bounds(value: Interval) -> dict[str, Any]:
    return {"mean": value.value, "ci95": [value.low, value.high]}


# ---------------------------------------------------------------------------------------------------- page


def _page(config: AblationConfig, arms: Sequence[ArmResult], reference: str, planned: int, done: int) -> str:
    return render_page(
        "videostr.ablate",
        "ablation.html",
        config=config,
        arms=arms,
        rows=[_cells(arm, arms) for arm in arms],
        columns=COLUMNS,
        reference=reference,
        planned=planned,
        done=done,
        shared=config.overrides,
        differs={
            name: [*arm.overrides, *([arm.sft] if arm.sft else [])] for name, arm in config.arms.items()
        },
        charts=[chart for part in CURVES if (chart := _curves(arms, part)) is not None],
    )


def _cells(arm: ArmResult, arms: Sequence[ArmResult]) -> dict[str, Any]:
    """Return what the table's row of an arm shows."""
    name, seeds, *figures, _, tokens, seconds = _row(arm)
    answer = arm.figures.get((SAMPLED, "answer"))
    found = answer.difference if answer else None
    others = [of.figures[SAMPLED, "answer"].difference for of in arms if (SAMPLED, "answer") in of.figures]
    reach = max((abs(bound) for d in others if d for bound in (d.low, d.high)), default=1.0)
    return {
        "name": name,
        "seeds": seeds,
        "figures": [figure.partition(" ")[::2] for figure in figures],
        "tokens": tokens,
        "minutes": NONE if seconds == NONE else f"{arm.seconds / 60:.0f} min",
        "difference": NONE if found is None else f"{found.value:+.3f}",
        "interval": "" if found is None else f"{found.low:+.3f} to {found.high:+.3f}",
        "picture": "" if found is None else interval(found.value, found.low, found.high, reach),
    }


def _curves(arms: Sequence[ArmResult], part: str) -> Chart | None:
    """Return a part of what was sampled in training: mean over seeds, and from the lowest to the highest."""
    bands = []
    for arm in arms:
        values: dict[int, list[float]] = defaultdict(list)
        for curve in arm.curves:
            for step, value in curve.get(part, ()):
                values[step].append(value)
        if values:
            bands.append(
                Band(
                    name=arm.name,
                    steps=sorted(values),
                    middle=[fmean(values[step]) for step in sorted(values)],
                    low=[min(values[step]) for step in sorted(values)],
                    high=[max(values[step]) for step in sorted(values)],
                )
            )
    return band_chart(part.capitalize(), "0 to 1", bands)
