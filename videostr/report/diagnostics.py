"""Diagnostics: warnings that a run learns the wrong thing, or nothing.

In: curves of a run and figures of its trace dumps. Out: sentences with the numbers they rest on. Pure: the same figures, the
same warnings. "At the start" and "at the end" are the means over the first and the last quarter of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from videostr.report.stats import DumpStats
from videostr.run_data import COSTS

MIN_STEPS = 8
"""Fewer steps show no trend."""
RISE = 0.05
"""A part of the reward that rose by less did not rise."""
FLAT = 0.02
"""An answer reward that rose by less, or by less than twice its standard error, is flat."""
SOLVED = 0.95
"""An answer reward that starts there has no room to rise."""
NODE_GROWTH = 1.2
"""Nodes of a stated frame at the end over those at the start."""
NODE_EXCESS = 1.1
"""Nodes of a stated frame over those of the truth."""
TRUNCATED = 0.1
ZERO_VARIANCE = 0.5
MISMATCH = 0.05
"""Nats a token; engine and learner in bfloat16 differ by about a thousandth."""
COLLAPSE = 0.2
"""Entropy at the end over that at the start."""
FAILED = 0.01
"""Failures over the groups of the run."""

Curve = Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the warnings are derived from."""

    series: Callable[[str], Curve]
    """A metric per step, by its key in metrics.jsonl; None where it is absent or not finite."""
    steps: int
    dumps: Sequence[DumpStats] = ()
    """Ascending in step."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Of the whole run by kind."""
    not_finite: Mapping[str, int] = field(default_factory=dict)
    """Steps in which a metric is NaN or infinite, by its key."""
    prompts_per_step: int | None = None
    """P; None where the config cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """One warning."""

    name: str
    """For tests and anchors, e.g. "format-up-answer-flat"."""
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Change:
    """A curve's course: means over its first and last quarter, and the standard error of their difference."""

    first: float
    last: float
    error: float

    @property
    def rose(self) -> bool:
        """By RISE at least, and beyond noise."""
        return self.last - self.first >= max(RISE, 2 * self.error)

    @property
    def flat(self) -> bool:
        """Did not rise: by less than FLAT, or within noise."""
        return self.last - self.first < max(FLAT, 2 * self.error)


def change_of(values: Curve) -> Change | None:
    """None for fewer than MIN_STEPS values."""
    present = np.array([value for value in values if value is not None])
    if len(present) < MIN_STEPS:
        return None
    size = len(present) // 4
    first, last = present[:size], present[-size:]
    error = math.sqrt(float(first.var(ddof=1) + last.var(ddof=1)) / size)
    return Change(float(first.mean()), float(last.mean()), error)


def diagnose(figures: Figures) -> list[Diagnostic]:
    """Return warnings, most severe kind first; empty when nothing looks wrong."""
    rules = (
        _not_a_number,
        _failures,
        _format_without_answer,
        _graph_stuffing,
        _truncation,
        _mismatch,
        _zero_variance,
        _entropy,
    )
    return [found for rule in rules for found in rule(figures)]


def failure_total(failures: Mapping[str, int]) -> int:
    """Return failures of all kinds, without what they cost."""
    return sum(count for kind, count in failures.items() if kind not in COSTS)


def _not_a_number(figures: Figures) -> Iterator[Diagnostic]:
    if figures.not_finite:
        listed = ", ".join(f"{key} in {count}" for key, count in sorted(figures.not_finite.items()))
        yield Diagnostic(
            name="not-finite",
            title="Figures that are not numbers",
            text=f"Of {figures.steps} steps: {listed}. NaN and infinity do not go away by themselves: lower learner.lr, and go "
            "on from a checkpoint before the first of them.",
        )


def _failures(figures: Figures) -> Iterator[Diagnostic]:
    failures = figures.failures
    lasting = {kind: failures[kind] for kind in ("learner_lost", "checkpoint") if failures.get(kind)}
    count = failure_total(failures)
    groups = (figures.prompts_per_step or 0) * figures.steps
    if not lasting and not (count and groups and count >= FAILED * groups):
        return
    kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(failures.items(), key=lambda pair: -pair[1]))
    share = f", {count / groups:.1%} of the {groups} groups of the run" if groups else ""
    yield Diagnostic(
        name="failures",
        title="Failures",
        text=f"{count} in all{share}: {kinds}. Each was replaced or tried again, which costs time; see Failures below, "
        "quarantine.jsonl and logs/.",
    )


def _format_without_answer(figures: Figures) -> Iterator[Diagnostic]:
    form, answer = (change_of(figures.series(f"reward/{part}")) for part in ("format", "answer"))
    if form and answer and form.rose and answer.flat and answer.first < SOLVED:
        yield Diagnostic(
            name="format-up-answer-flat",
            title="The format is learned, the answer is not",
            text=f"The format reward rose from {form.first:.2f} to {form.last:.2f} while the answer reward stayed at "
            f"{answer.last:.2f} (from {answer.first:.2f}). The policy collects the easy part: lower reward.w_format, or "
            "fine-tune it (sft) so that the format is there before RL begins.",
        )


def _graph_stuffing(figures: Figures) -> Iterator[Diagnostic]:
    graph = change_of(figures.series("reward/graph"))
    counted = [dump for dump in figures.dumps if dump.nodes]
    if not graph or not graph.rose or len(counted) < 2:
        return
    first, last = counted[0], counted[-1]
    if first.nodes is None or last.nodes is None or last.nodes < NODE_GROWTH * first.nodes:
        return
    true = last.true_nodes
    if true is not None and last.nodes <= NODE_EXCESS * true:
        return  # it learned to name what is there
    against = f", {last.nodes / true:.1f} times what the true graphs have ({true:.1f})" if true else ""
    yield Diagnostic(
        name="graph-up-nodes-grow",
        title="The graph reward grows with the number of nodes",
        text=f"The graph reward rose from {graph.first:.2f} to {graph.last:.2f} while the nodes of a stated frame grew from "
        f"{first.nodes:.1f} (step {first.step}) to {last.nodes:.1f} (step {last.step}){against}. The policy may list "
        "objects on the chance that some match: read traces of the last step.",
    )


def _truncation(figures: Figures) -> Iterator[Diagnostic]:
    last = _end(figures.series("truncated_fraction"))
    if last is not None and last >= TRUNCATED:
        yield Diagnostic(
            name="truncation",
            title="Completions are cut off",
            text=f"{last:.0%} of the completions at the end of the run hit the token limit, so that their answer is lost. Raise "
            "sampling.max_tokens, set reward.overlong_buffer, or ask for less in the prompt.",
        )


def _mismatch(figures: Figures) -> Iterator[Diagnostic]:
    last = _end(figures.series("mismatch_kl"))
    if last is not None and last >= MISMATCH:
        yield Diagnostic(
            name="mismatch",
            title="Sampling and training probabilities differ",
            text=f"At the end of the run they differ by {last:.3g} nats a token (k3 estimate; {MISMATCH:g} is the limit of this "
            "warning). The gradient is then biased: lower train.max_staleness, compare the dtype of engine "
            "and learner, or see whether loss.correction=truncated does better.",
        )


def _zero_variance(figures: Figures) -> Iterator[Diagnostic]:
    last, groups = _end(figures.series("zero_variance_groups")), figures.prompts_per_step
    if last is None or not groups or last / groups < ZERO_VARIANCE:
        return
    answer = _end(figures.series("reward/answer"))
    cause = "raise sampling.temperature or sampling.group_size"
    if answer is not None and answer > SOLVED:
        cause = "nearly all answers are right: take harder records"
    elif answer is not None and answer < 1 - SOLVED:
        cause = "nearly all answers are wrong: take easier records, or fine-tune the policy first (sft)"
    yield Diagnostic(
        name="zero-variance-groups",
        title="Most groups have zero variance",
        text=f"At the end of the run {last / groups:.0%} of the groups have completions that all score the same: no gradient; "
        f"{cause}, or set sampling.dynamic_sampling=true.",
    )


def _entropy(figures: Figures) -> Iterator[Diagnostic]:
    entropy = change_of(figures.series("entropy"))
    if entropy and entropy.first > 0 and entropy.last < COLLAPSE * entropy.first:
        yield Diagnostic(
            name="entropy-collapse",
            title="The entropy has collapsed",
            text=f"It fell from {entropy.first:.3g} to {entropy.last:.3g} nats a token: the policy hardly varies what it writes "
            "and soon has nothing to choose from. Raise loss.eps_high or sampling.temperature, or lower learner.lr.",
        )


def _end(values: Curve) -> float | None:
    """Return the mean over the last quarter, of curves of any length; None without a value."""
    present = [value for value in values if value is not None]
    return float(np.mean(present[-max(1, len(present) // 4) :])) if present else None
