"""VSI-Bench-Debiased: which questions it has, by each of the files that say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from videostr.errors import DataError
from videostr.evaluate.vsi_bench import VsiBench
from videostr.evaluate.vsi_debiased import VsiDebiased

PRUNED = {1, 2}


def rows() -> list[dict[str, Any]]:
    return [
        {
            "id": n, "dataset": "scannet", "scene_name": f"s{n}", "question_type": "object_counting", "question": "How many?",
            "ground_truth": str(n + 1), "options": None, "pruned": n in PRUNED,
        }
        for n in range(5)
    ]  # fmt: skip


def write(root: Path, *, field: bool, drop: frozenset[int] = frozenset()) -> None:
    names = [name for name in rows()[0] if field or name != "pruned"]
    lines = [{name: row[name] for name in names} for row in rows() if row["id"] not in drop]
    (root / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def ids(root: Path) -> list[str]:
    return [question.id for question in VsiDebiased().read(root).questions]


def test_each_way_to_say_it_gives_the_same_questions(tmp_path: Path) -> None:
    write(tmp_path, field=True)
    assert ids(tmp_path) == ["0", "3", "4"]
    assert len(VsiBench().read(tmp_path).questions) == 5
    digest = VsiDebiased().read(tmp_path).digest
    assert digest == VsiBench().read(tmp_path).digest
    write(tmp_path, field=False)
    (tmp_path / "pruned_ids.txt").write_text("1\n2\n")
    assert ids(tmp_path) == ["0", "3", "4"]
    kept = [row for row in rows() if row["id"] not in PRUNED]
    pq.write_table(pa.Table.from_pylist(kept), tmp_path / "test_debiased.parquet")
    (tmp_path / "pruned_ids.txt").unlink()
    assert ids(tmp_path) == ["0", "3", "4"]
    (tmp_path / "test.jsonl").unlink()
    assert ids(tmp_path) == ["0", "3", "4"]


def test_a_folder_that_does_not_say_it_is_refused(tmp_path: Path) -> None:
    write(tmp_path, field=False)
    with pytest.raises(
        DataError, match=r"nor questions with a field pruned, nor pruned_ids.txt .*since November 2025"
    ):
        ids(tmp_path)
    (tmp_path / "pruned_ids.txt").write_text("1 2 99")
    with pytest.raises(DataError, match=r"pruned_ids.txt: id '99' is of no question"):
        ids(tmp_path)
    write(tmp_path, field=True, drop=frozenset(range(5)) - PRUNED)
    with pytest.raises(DataError, match="all its questions are pruned"):
        ids(tmp_path)
