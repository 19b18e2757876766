"""Which curves the report draws: of metrics.jsonl, of trace dumps and of evaluations during training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from videostr.charts import Chart, Series, line_chart, share_chart
from videostr.report.stats import DumpStats
from videostr.run_data import COSTS, RunData

MAX_LINES = 8
"""Colour classes of the style sheet."""
TIMES = {"time/rollout": "rollout", "time/reward": "reward", "time/learn": "learn", "time/sync": "sync"}
ASYNCHRONOUS_TIMES = {"time/wait": "waiting for rollouts", "time/learn": "learn", "time/sync": "sync"}
"""Sampling runs during the step there, and may take longer than it."""


class Wanted(NamedTuple):
    """A chart of metrics."""

    title: str
    unit: str
    keys: dict[str, str]
    """Key in metrics.jsonl to name in the legend."""


_WEIGHTS = {"importance_weight_mean": "mean, as applied", "importance_weight_max": "greatest, before the cap"}
_PARTS = {"reward/answer": "answer", "reward/graph": "graph", "reward/format": "format"}
_ZERO_VARIANCE = {"zero_variance_groups": "all rewards equal", "replaced_groups": "replaced"}
LINE_CHARTS = [
    Wanted("Reward", "total", {"reward/total": "total"}),
    Wanted("Reward parts", "0 to 1", _PARTS),
    Wanted("Graph reward", "0 to 1", {"reward/graph_node": "nodes", "reward/graph_edge": "edges"}),
    Wanted(
        "Answer and graph", "0 to 1", {"reward/entailed": "entailed", "reward/consistency": "consistency"}
    ),
    Wanted("Length reward", "-1 to 1", {"reward/length": "length"}),
    Wanted("Loss", "", {"loss": "loss"}),
    Wanted("Gradient norm", "before clipping", {"grad_norm": "norm"}),
    Wanted("Learning rate", "", {"lr": "rate"}),
    Wanted("Entropy", "nats per token", {"entropy": "entropy"}),
    Wanted("KL from the reference", "nats per token", {"kl": "kl"}),
    Wanted("Mismatch", "KL of learner and engine, nats per token", {"mismatch_kl": "mismatch"}),
    Wanted("Greatest ratio", "that the loss clips", {"ratio_max": "ratio"}),
    Wanted("Clipped tokens", "share", {"clip_fraction": "clipped"}),
    Wanted("Importance weights", "learner to engine, of a token", _WEIGHTS),
    Wanted("Capped importance weights", "share of tokens", {"importance_weight_capped_fraction": "capped"}),
    Wanted("Truncated completions", "share", {"truncated_fraction": "truncated"}),
    Wanted("Zero-variance groups", "per step", _ZERO_VARIANCE),
    Wanted("Dropped prompts", "share, failed or replaced", {"dropped_fraction": "dropped"}),
    Wanted("Staleness", "updates", {"staleness/mean": "mean", "staleness/max": "greatest"}),
    Wanted("Rollout speed", "tokens/s", {"rollout/tokens_per_s": "tokens/s"}),
    Wanted("Tokens of a step", "", {"tokens/prompt": "prompt", "tokens/completion": "completion"}),
    Wanted("Step time", "s", {"time/step": "seconds"}),
    Wanted("Waiting for rollouts", "s, of the learner", {"time/wait": "seconds"}),
]
ALWAYS_SHOWN = {"Reward", "Reward parts"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """The charts, and the titles of those that were left out."""

    charts: list[Chart]
    zero: list[str]
    """Every value is 0: no such term, or nothing happened."""
    absent: list[str]
    """metrics.jsonl does not have the figure."""


def curves(run: RunData, stats: Sequence[DumpStats]) -> Curves:
    """Return all charts of a run; none without a step."""
    charts: list[Chart | None] = []
    zero, absent = [], []
    steps = [int(row["step"]) for row in run.metrics]
    for wanted in [*LINE_CHARTS[:4], *_other_rewards(run), *LINE_CHARTS[4:]] if steps else []:
        series = [Series(name=name, values=run.series(key)) for key, name in wanted.keys.items()]
        if all(value is None for one in series for value in one.values):
            absent.append(wanted.title)
        elif wanted.title in ALWAYS_SHOWN or any(any(one.values) for one in series):
            charts.append(line_chart(wanted.title, wanted.unit, steps, series))
        else:
            zero.append(wanted.title)
    if steps:
        charts.append(_lengths(run, steps))
        failed = _failures(run, steps)
        charts.append(failed)
        zero += [] if failed else ["Failures"]
        charts.append(share_chart("Shares of the step time", "", steps, _time_series(run)))
    charts += [*_of_dumps(stats), _heldout(run)]
    return Curves(charts=[chart for chart in charts if chart is not None], zero=zero, absent=absent)


def _other_rewards(run: RunData) -> list[Wanted]:
    """Return parts of the reward that no other chart has, such as `custom` and `map`."""
    known = {key for wanted in LINE_CHARTS for key in wanted.keys}
    keys = sorted({key for row in run.metrics for key in row if key.startswith("reward/")} - known)
    return [
        Wanted(
            "More reward parts",
            "",
            {key: key.removeprefix("reward/") for key in keys[start : start + MAX_LINES]},
        )
        for start in range(0, len(keys), MAX_LINES)
    ]


def _lengths(run: RunData, steps: Sequence[int]) -> Chart | None:
    if run.config is None:
        return None
    rollouts = run.config.train.prompts_per_step * run.config.sampling.group_size
    values = [None if tokens is None else tokens / rollouts for tokens in run.series("tokens/completion")]
    return line_chart("Completion length", "tokens, mean", steps, [Series(name="tokens", values=values)])


def _failures(run: RunData, steps: Sequence[int]) -> Chart | None:
    """Return the most frequent kinds, and all others together."""
    by_step = run.failures_by_step()
    for cost in COSTS:
        by_step.pop(cost, None)
    ranked = sorted(by_step, key=lambda kind: -sum(by_step[kind]))
    series = [
        Series(name=kind, values=by_step[kind]) for kind in ranked[: MAX_LINES - 1] if any(by_step[kind])
    ]
    rest = [by_step[kind] for kind in ranked[MAX_LINES - 1 :]]
    if rest:
        series.append(Series(name="other kinds", values=[sum(new) for new in zip(*rest, strict=True)]))
    return line_chart("Failures", "new in a step", steps, series) if series else None


def _time_series(run: RunData) -> list[Series]:
    times = ASYNCHRONOUS_TIMES if run.is_asynchronous else TIMES
    named = [Series(name=name, values=run.series(key)) for key, name in times.items()]
    rest = [
        max(0.0, step - sum(one.values[i] or 0.0 for one in named)) if step is not None else None
        for i, step in enumerate(run.series("time/step"))
    ]
    return [*named, Series(name="other", values=rest)]


def _of_dumps(stats: Sequence[DumpStats]) -> list[Chart | None]:
    if len(stats) < 2:
        return []
    steps = [dump.step for dump in stats]
    families = sorted({family for dump in stats for family in dump.answer_by_family})

    def chart(title: str, unit: str, **lines: Callable[[DumpStats], float | None]) -> Chart | None:
        series = [
            Series(name=name, values=[figure(dump) for dump in stats]) for name, figure in lines.items()
        ]
        return line_chart(title, f"{unit}of dumped traces", steps, series)

    by_family = [
        line_chart(
            "Answer reward by family",
            "0 to 1, of dumped traces",
            steps,
            [
                Series(name=family, values=[dump.answer_by_family.get(family) for dump in stats])
                for family in families[start : start + MAX_LINES]
            ],
        )
        for start in range(0, len(families), MAX_LINES)
    ]
    without = any(dump.absent for dump in stats)
    return [
        chart("Answers fully right", "share, ", right=lambda dump: dump.right),
        *by_family,
        chart(
            "Nodes of a stated frame",
            "",
            predicted=lambda dump: dump.nodes,
            true=lambda dump: dump.true_nodes,
        ),
        chart("Frames of a predicted graph", "", frames=lambda dump: dump.frames),
        chart("Completions without a graph", "share, ", share=lambda dump: dump.absent) if without else None,
        chart(
            "Spread of lengths",
            "tokens, ",
            mean=lambda dump: dump.tokens_mean,
            p95=lambda dump: dump.tokens_p95,
            longest=lambda dump: float(dump.tokens_max),
        ),
    ]


def _heldout(run: RunData) -> Chart | None:
    """Evaluations during training; before and after alone stand in the table."""
    if len(run.evaluations) < 3:
        return None
    steps = [step for step, _ in run.evaluations]
    series = []
    for part in ("total", "answer", "graph", "format"):
        means = [values.get("greedy_mean") for _, values in run.evaluations]
        found = [mean.get(part) if isinstance(mean, dict) else None for mean in means]
        values = [float(value) if isinstance(value, int | float) else None for value in found]
        series.append(Series(name=part, values=values))
    return line_chart("Held-out reward", "greedy", steps, series)
