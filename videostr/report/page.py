"""The HTML report: one file without outside parts, from a run folder in any state."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from markupsafe import Markup

from videostr.charts import interval, short
from videostr.environment import environment
from videostr.files import write_text
from videostr.heldout import PARTS, paired_gain
from videostr.metrics import duration
from videostr.page import render_page
from videostr.report.curves import curves
from videostr.report.diagnostics import Figures, diagnose, failure_total
from videostr.report.stats import DumpStats, dump_stats
from videostr.report.timeline import timeline
from videostr.report.viewer import FRAMES_MIB, viewer_data
from videostr.run_data import MAX_TRACES, RunData, read_run
from videostr.types import FailureKind

MAX_QUARANTINE = 50
PROCESS_FAILURES = {
    "engine_died": "an engine's process ended; its groups were sampled by another, and it was started again",
    "engine_hung": "an engine missed its health checks; killed and started again",
    "engine_half_updated": "an engine had no usable weights after a broken transfer; started again",
    "engine_did_not_start": "an engine's new process did not come up; started again",
    "request_late": "a group took longer than rollout.request_timeout_s; sent to an engine again",
    "tokens_sampled_again": "tokens of groups that were given up and asked again: no failures, but their cost",
    "reward_worker_died": "a reward worker's process ended; replaced, and its group scored again",
    "reward_worker_timeout": "a reward worker was later than reward.deadline_s; replaced, and its group scored again",
    "reward_service_timeout": "the reward service did not answer in time; asked again",
    "reward_service_unavailable": "the reward service could not be reached; asked again",
    "transfer": "weights did not reach the engines; tried again",
    "learner_lost": "a learner rank was lost; all ranks started again from the last checkpoint",
    "learner_lost_seconds": "seconds from the checkpoint that the run went back to until ranks were up again: done once more",
    "checkpoint": "a checkpoint could not be written; the one before was kept",
}
"""What the counters of `failures/` mean that are no `FailureKind`; docs/failures.md has more."""
Bounds = tuple[float, float, float]
"""A mean gain and its 95 % interval."""


def write_report(folder: str | Path, *, max_traces: int = MAX_TRACES, frames_mib: float = FRAMES_MIB) -> Path:
    """Write `report.html` into a run folder and return its path.

    Args:
        folder: of the run.
        max_traces: most dumped rollouts in the page.
        frames_mib: most MiB of video frames in the page.

    Raises:
        RunFolderError: nothing of a run is in the folder.
    """
    path = Path(folder) / "report.html"
    page = render(read_run(folder, max_traces=max_traces), frames_mib=frames_mib)
    write_text(path, page)
    return path


def render(run: RunData, *, frames_mib: float = FRAMES_MIB) -> str:
    """Return the whole page."""
    stats = [dump_stats(step, rows) for step, rows in run.dumps]
    return render_page(
        "videostr.report",
        "report.html",
        "scene.js",
        "viewer.js",
        run=run,
        status=_status(run),
        tiles=_tiles(run),
        diagnostics=_diagnostics(run, stats),
        gains=_gains(run),
        heldout_prompts=_at(run.summary, "heldout", "prompts"),
        curves=curves(run, stats),
        timeline=timeline(run),
        failures=_failures(run),
        quarantine=[json.dumps(row, ensure_ascii=False) for row in run.quarantine[:MAX_QUARANTINE]],
        quarantine_kinds=Counter(str(row.get("kind", "?")) for row in run.quarantine).most_common(),
        viewer=viewer_data(run.dumps, run.frame_store, frames_mib) if run.dumps else None,
        frames_mib=frames_mib,
        environment=run.environment or environment(),
    )


# ------------------------------------------------------------------------------------- figures of the run


def _status(run: RunData) -> tuple[str, str]:
    """Return (style class, sentence)."""
    steps = f" of {run.config.train.steps}" if run.config else ""
    if run.summary is not None:
        return "done", "finished"
    if not run.metrics:
        return "open", "no step yet"
    return "open", f"step {run.metrics[-1]['step']}{steps}, running or stopped"


def _tiles(run: RunData) -> list[tuple[str, str, str]]:
    """Return (name, figure, remark), those that exist."""
    speeds = [v for v in run.series("rollout/tokens_per_s") if v is not None]
    seconds = {name: _number(_at(run.summary, "seconds", name)) for name in ("startup", "train", "evaluate")}
    rewards = [v for v in run.series("reward/total") if v is not None]
    tiles = []
    for part, name in (("answer", "Held-out answer"), ("total", "Held-out reward")):
        before, after = (_number(_at(run.summary, "heldout", when, part)) for when in ("before", "after"))
        if before is not None and after is not None:
            tiles.append((name, f"{before:.3f} → {after:.3f}", "sampled, before and after"))
    if not tiles and rewards:
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
        failed = failure_total(dict(run.failures()))
        tiles.append(("Failures", str(failed), f"{len(run.quarantine)} in quarantine"))
    return tiles


def _diagnostics(run: RunData, stats: Sequence[DumpStats]) -> list[Any] | None:
    """Return warnings; None before the first step, when there is nothing to judge."""
    if not run.metrics:
        return None
    return diagnose(
        Figures(
            series=run.series,
            steps=len(run.metrics),
            dumps=stats,
            failures=dict(run.failures()),
            not_finite=run.not_finite(),
            prompts_per_step=run.config.train.prompts_per_step if run.config else None,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """One row of the table before/after; figures are text, "–" where unknown."""

    part: str
    way: str
    """sampled or greedy."""
    before: str
    after: str
    mean: str
    ci: str
    picture: Markup | None


def _gains(run: RunData) -> list[Gain]:
    if not isinstance(_at(run.summary, "heldout"), dict):
        return []
    parts = [part for part in PARTS if _at(run.summary, "heldout", "before", part) is not None]
    found = [(way, part, _interval(run, way, part)) for way in ("sampled", "greedy") for part in parts]
    reach = max((abs(bound) for _, _, gain in found if gain for bound in gain[1:]), default=0.0) * 1.1
    return [_gain(run, way, part, gain, reach) for way, part, gain in found]


def _gain(run: RunData, way: str, part: str, gain: Bounds | None, reach: float) -> Gain:
    def figure(when: str) -> str:
        key = when if way == "sampled" else f"greedy_{when}"
        value = _number(_at(run.summary, "heldout", key, part))
        return "–" if value is None else f"{value:.3f}"

    return Gain(
        part=part,
        way=way,
        before=figure("before"),
        after=figure("after"),
        mean=f"{gain[0]:+.3f}" if gain else "–",
        ci=f"{gain[1]:+.3f} to {gain[2]:+.3f}" if gain else "",
        picture=interval(*gain, reach) if gain else None,
    )


def _interval(run: RunData, way: str, part: str) -> Bounds | None:
    """Return the mean gain with its bounds: the summary's, else from the evaluations of single prompts; None where unknown."""
    pair = _at(run.summary, "heldout", "gain", part, "ci95") if way == "sampled" else None
    mean = _number(_at(run.summary, "heldout", "gain", part, "mean"))
    if isinstance(pair, list) and len(pair) == 2 and mean is not None:
        return mean, float(pair[0]), float(pair[1])
    scores = [values[way] for _, values in run.evaluations if _is_scores(values.get(way))]
    if len(scores) < 2 or run.config is None:
        return None
    gain = paired_gain(scores[0], scores[-1], part, run.config.evaluate.bootstrap, run.config.run.seed)
    return (gain["mean"], *gain["ci95"]) if gain else None


def _is_scores(value: object) -> bool:
    """Return whether it maps record ids to parts of the reward."""
    rows = value.values() if isinstance(value, dict) else ()
    return bool(rows) and all(
        isinstance(row, dict) and all(_number(number) is not None for number in row.values()) for row in rows
    )


def _failures(run: RunData) -> list[tuple[str, int, str]]:
    sentences = PROCESS_FAILURES | {kind.name.lower(): kind.value for kind in FailureKind}
    return [(kind, count, sentences.get(kind.lower(), "")) for kind, count in run.failures()]


def _at(tree: Any, *keys: str) -> Any:
    """Return the value at a path of keys, None where the path ends early."""
    for key in keys:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(key)
    return tree


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < float("inf") else None
