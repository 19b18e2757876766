"""The HTML report: one file without outside parts, from a run folder in any state."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean, median
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from videostr.metrics import duration
from videostr.report.charts import Chart, Series, interval, line_chart, share_chart, short
from videostr.report.run import RunData, read_run
from videostr.report.scene import chosen, draw, frame_at, frame_images, half_spacing, read_graph, view_of
from videostr.report.traces import TraceRow
from videostr.types import FailureKind, GraphAbsence, SceneGraph

PROMPTS_PER_DUMP = 4
MAX_ROLLOUTS = 8
MAX_QUARANTINE = 50
PARTS = ("total", "answer", "graph", "format")
LINE_CHARTS: list[tuple[str, str, dict[str, str]]] = [
    ("Reward", "total", {"reward/total": "total"}),
    (
        "Reward parts",
        "0 to 1",
        {"reward/answer": "answer", "reward/graph": "graph", "reward/format": "format"},
    ),
    ("Graph reward", "0 to 1", {"reward/graph_node": "nodes", "reward/graph_edge": "edges"}),
    ("Length reward", "-1 to 1", {"reward/length": "length"}),
    ("Loss", "per token", {"loss": "loss"}),
    ("Gradient norm", "before clipping", {"grad_norm": "norm"}),
    ("Entropy", "nats per token", {"entropy": "entropy"}),
    ("Divergence", "nats", {"kl": "from reference", "mismatch_kl": "learner from engine"}),
    ("Clipped tokens", "share", {"clip_fraction": "clipped"}),
    ("Rollout speed", "tokens/s", {"rollout/tokens_per_s": "tokens/s"}),
    ("Tokens of a step", "", {"tokens/prompt": "prompt", "tokens/completion": "completion"}),
    ("Truncated completions", "share", {"truncated_fraction": "truncated"}),
    ("Groups without variance", "per step", {"zero_variance_groups": "groups"}),
    ("Staleness", "updates", {"staleness/mean": "mean", "staleness/max": "greatest"}),
    ("Step time", "s", {"time/step": "seconds"}),
]
ALWAYS_SHOWN = {"Reward", "Reward parts"}
"""Other charts are left out where every value is 0: no such term, or nothing happened."""
TIMES = {"time/rollout": "rollout", "time/reward": "reward", "time/learn": "learn", "time/sync": "sync"}


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder and return its path; raises `RunFolderError` for another folder."""
    path = Path(folder) / "report.html"
    scratch = path.with_name(".report.html.new")
    scratch.write_text(render(read_run(folder)))
    scratch.replace(path)
    return path


def render(run: RunData) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("videostr.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(
        run=run,
        status=_status(run),
        tiles=_tiles(run),
        gains=_gains(run.summary),
        heldout_prompts=_at(run.summary, "heldout", "prompts"),
        charts=_charts(run),
        failures=_failures(run),
        quarantine=[json.dumps(row, ensure_ascii=False) for row in run.quarantine[:MAX_QUARANTINE]],
        quarantine_kinds=Counter(str(row.get("kind", "?")) for row in run.quarantine).most_common(),
        dumps=[(step, _prompts(rows, run.frame_store)) for step, rows in run.dumps],
    )


# ------------------------------------------------------------------------------------- figures of the run


def _status(run: RunData) -> tuple[str, str]:
    """(style class, sentence)."""
    steps = f" of {run.config.train.steps}" if run.config else ""
    if run.summary is not None:
        return "done", "finished"
    if not run.metrics:
        return "open", "no step yet"
    return "open", f"step {run.metrics[-1]['step']}{steps}, running or stopped"


def _tiles(run: RunData) -> list[tuple[str, str, str]]:
    """(name, figure, remark), those that exist."""
    before, after = (_at(run.summary, "heldout", when, "total") for when in ("before", "after"))
    speeds = [v for v in run.series("rollout/tokens_per_s") if v is not None]
    seconds = {name: _at(run.summary, "seconds", name) for name in ("startup", "train", "evaluate")}
    rewards = [v for v in run.series("reward/total") if v is not None]
    failed = sum(count for _, count in run.failures())
    tiles = []
    if before is not None and after is not None:
        tiles.append(("Held-out reward", f"{before:.3f} → {after:.3f}", "sampled, before and after"))
    elif rewards:
        tiles.append(("Reward", short(fmean(rewards[-10:])), "mean of the last 10 steps"))
    if run.metrics:
        planned = f"of {run.config.train.steps}" if run.config else ""
        tiles.append(("Steps", str(len(run.metrics)), planned))
    if speeds:
        tiles.append(("Rollout speed", f"{short(median(speeds))} tok/s", "median over steps"))
    if seconds["train"] is not None:
        rest = ", ".join(
            f"{name} {duration(v)}" for name, v in seconds.items() if name != "train" and v is not None
        )
        tiles.append(("Training time", duration(seconds["train"]), rest))
    if run.metrics:
        tiles.append(("Failures", str(failed), f"{len(run.quarantine)} in quarantine"))
    return tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """One row of the table before/after; figures are text, "–" where unknown."""

    part: str
    before: str
    after: str
    mean: str
    ci: str
    picture: Markup | None
    greedy_before: str
    greedy_after: str


def _gains(summary: dict[str, Any] | None) -> list[Gain]:
    if not isinstance(_at(summary, "heldout"), dict):
        return []
    bounds = [_at(summary, "heldout", "gain", part, "ci95") or [0.0, 0.0] for part in PARTS]
    reach = max(max(abs(float(b)) for b in pair) for pair in bounds) * 1.1
    return [_gain(summary, part, reach) for part in PARTS]


def _gain(summary: dict[str, Any] | None, part: str, reach: float) -> Gain:
    def figure(when: str) -> str:
        value = _at(summary, "heldout", when, part)
        return "–" if value is None else f"{value:.3f}"

    mean, pair = (_at(summary, "heldout", "gain", part, name) for name in ("mean", "ci95"))
    known = mean is not None and pair is not None
    return Gain(
        part=part,
        before=figure("before"),
        after=figure("after"),
        mean=f"{mean:+.3f}" if known else "–",
        ci=f"{pair[0]:+.3f} to {pair[1]:+.3f}" if known else "",
        picture=interval(mean, pair[0], pair[1], reach) if known else None,
        greedy_before=figure("greedy_before"),
        greedy_after=figure("greedy_after"),
    )


def _charts(run: RunData) -> list[Chart]:
    if not run.metrics:
        return []
    steps = [int(row["step"]) for row in run.metrics]
    charts = []
    for title, unit, keys in LINE_CHARTS:
        series = [Series(name=name, values=run.series(key)) for key, name in keys.items()]
        if title in ALWAYS_SHOWN or any(any(one.values) for one in series):
            charts.append(line_chart(title, unit, steps, series))
    charts.append(share_chart("Where the time goes", "share of a step", steps, _time_series(run)))
    return [chart for chart in charts if chart is not None]


def _time_series(run: RunData) -> list[Series]:
    named = [Series(name=name, values=run.series(key)) for key, name in TIMES.items()]
    rest = [
        max(0.0, step - sum(one.values[i] or 0.0 for one in named)) if step is not None else None
        for i, step in enumerate(run.series("time/step"))
    ]
    return [*named, Series(name="other", values=rest)]


def _failures(run: RunData) -> list[tuple[str, int, str]]:
    sentences = {kind.name.lower(): kind.value for kind in FailureKind}
    return [(kind, count, sentences.get(kind.lower(), "")) for kind, count in run.failures()]


# ------------------------------------------------------------------------------------------- trace viewer


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutView:
    """One rollout: its trace, what it earned and the scene it states."""

    row: TraceRow
    parts: list[tuple[str, float]]
    notes: list[str]
    absence: str
    pictures: list[Markup]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptView:
    """One prompt with its rollouts, best first."""

    row: TraceRow
    """Any row of the prompt: what they share."""
    mean: float
    times: list[float]
    images: list[str]
    truth: list[Markup]
    rollouts: list[RolloutView]


def _prompts(rows: Sequence[TraceRow], store: Path) -> list[PromptView]:
    """Some prompts of a dump: one family after the other, those with the widest spread of rewards first."""
    by_prompt = [list(group) for _, group in groupby(sorted(rows, key=_prompt_key), key=_prompt_key)]
    by_prompt.sort(key=lambda group: min(row["total"] for row in group) - max(row["total"] for row in group))
    rank: Counter[str] = Counter()
    ranked = []
    for group in by_prompt:
        family = group[0]["family"]
        ranked.append((rank[family], group))
        rank[family] += 1
    ranked.sort(key=lambda pair: pair[0])
    return [_prompt(group, store) for _, group in ranked[:PROMPTS_PER_DUMP]]


def _prompt_key(row: TraceRow) -> tuple[str, str]:
    return row["record_id"], row["prompt"]


def _prompt(group: list[TraceRow], store: Path) -> PromptView:
    first = group[0]
    best = sorted(group, key=lambda row: -row["total"])
    truth = read_graph(first["true_graph"], first["reference"])
    predictions = [read_graph(row["predicted_graph"], first["reference"]) for row in best[:MAX_ROLLOUTS]]
    all_times = [
        frame.t for frame in (truth or _first(predictions) or SceneGraph(unit="", frame="", frames=())).frames
    ]
    indices = chosen(len(all_times)) if all_times else []
    times, tolerance = [all_times[i] for i in indices], half_spacing(all_times)
    shown = [graph for graph in (truth, _first(predictions)) if graph is not None]
    view = view_of(shown, first["reference"]) if shown else None
    true_frames = [frame_at(truth, t, tolerance) for t in times]
    return PromptView(
        row=first,
        mean=fmean(row["total"] for row in group),
        times=times,
        images=frame_images(store, first["clip"], indices),
        truth=[draw(frame, view) for frame in true_frames] if view and truth else [],
        rollouts=[
            RolloutView(
                row=row,
                parts=list(_json(row["parts"], {}).items()),
                notes=_json(row["notes"], []),
                absence=_absence(row["absence"]),
                pictures=[
                    draw(frame_at(prediction, t, tolerance), view, true)
                    for t, true in zip(times, true_frames, strict=True)
                ]
                if view and prediction
                else [],
            )
            for row, prediction in zip(best, predictions, strict=False)
        ],
    )


def _first(graphs: Sequence[SceneGraph | None]) -> SceneGraph | None:
    return next((graph for graph in graphs if graph is not None), None)


def _absence(name: str) -> str:
    return GraphAbsence[name].value if name in GraphAbsence.__members__ else name


def _json(text: str, otherwise: Any) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return otherwise
    return value if isinstance(value, type(otherwise)) else otherwise


def _at(tree: Any, *keys: str) -> Any:
    """The value at a path of keys, None where the path ends early."""
    for key in keys:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(key)
    return tree
