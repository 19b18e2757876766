"""All benchmarks by name: what `benchmark.name` and `--benchmark` take."""

from __future__ import annotations

from collections.abc import Callable

from rewards import Rubric
from videostr.evaluate.benchmark import Benchmark
from videostr.evaluate.mmsi_video import MmsiVideo
from videostr.evaluate.records import Records
from videostr.evaluate.revsi import ReVsi
from videostr.evaluate.sti_bench import StiBench
from videostr.evaluate.v_star import VStar
from videostr.evaluate.vsi_bench import VsiBench
from videostr.evaluate.vsi_debiased import VsiDebiased

JudgeFunction = Callable[[str, str, str], int | None]
BENCHMARKS: dict[str, Callable[[JudgeFunction | None, Rubric], Benchmark]] = {
    "sti_bench": lambda _judge, _rubric: StiBench(),
    "vsi_bench": lambda _judge, _rubric: VsiBench(),
    "vsi_debiased": lambda _judge, _rubric: VsiDebiased(),
    "revsi": lambda _judge, _rubric: ReVsi(),
    "mmsi_video": lambda _judge, _rubric: MmsiVideo(),
    "v_star": lambda judge, _rubric: VStar(judge),
    "records": lambda _judge, rubric: Records(rubric),
}
"""By the name in configs and results; made with the judge of open answers and the rubric."""
