"""Hacking probes on the tabletop world, and the tables and the picture of docs/rewards.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rewards.explain import main
from rewards.probes import FIXED_TEXTS, GRAPH_PROBES, crowds, measure, table, tabletop_records
from rewards.probes import main as probe
from tests.rewards.examples import example_rows
from tests.rewards.fixed_text import search
from videostr.data.records import read_records
from videostr.tabletop.world import Difficulty
from videostr.types import Record

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| (?P<name>[^|]+) \|(?P<values>[-\d.| ]+)\|$", re.MULTILINE)


def documented(marker: str) -> dict[str, list[float]]:
    """Rows of a table of docs/rewards.md: name -> values."""
    text = (DOCS / "rewards.md").read_text()
    block = text.split(f"<!-- {marker} -->\n", 1)[1].split("<!-- end -->", 1)[0]
    return rows_of(block)


def rows_of(markdown: str) -> dict[str, list[float]]:
    return {
        match["name"]: [float(value) for value in match["values"].split("|")]
        for match in ROW.finditer(markdown)
    }


@pytest.mark.parametrize(
    ("difficulty", "marker"),
    [
        (Difficulty.EASY, "probes: python -m rewards.probes"),
        (Difficulty.FULL, "probes: python -m rewards.probes --difficulty full"),
    ],
)
def test_shortcuts_score_little_and_the_documented_table_says_so(difficulty: Difficulty, marker: str) -> None:
    rows = measure(tabletop_records(256, difficulty))
    for name in list(GRAPH_PROBES)[:3]:  # centroid, random positions, copies
        assert rows[name]["graph"] < 0.25, name
    for name in ("(k) the label list at random positions, held still", "(l) one fixed text for all records"):
        assert rows[name]["graph"] < 0.28, name
    assert rows["(j) truth"] == dict.fromkeys(rows["(j) truth"], 1.0) | {"total": pytest.approx(2.2)}
    assert rows["(i) the true graph, a wrong answer"]["answer"] == 0.0
    assert rows["(h) the answer repeated as thinking"]["graph"] == 0.0
    assert rows["(g) the true graph turned by 90 degrees"]["graph_edge"] == pytest.approx(1.0)
    assert (
        rows["(f) the true graph mirrored"]["graph_edge"] < 0.9
    )  # clips with one pair of objects have no mirror image
    in_docs = documented(marker)
    assert list(in_docs) == list(rows)
    for name, values in rows_of(table(rows)).items():
        assert in_docs[name] == pytest.approx(values, abs=0.011), (
            f"{name}: make the table again with {marker}"
        )


def test_crowds_are_reported_in_the_documented_table() -> None:
    in_docs = documented("probes: python -m rewards.probes --crowds")
    rows = rows_of(table(crowds()))
    assert list(in_docs) == list(rows)
    for name, values in rows.items():
        assert in_docs[name] == pytest.approx(values, abs=0.011), (
            f"{name}: make the table again with --crowds"
        )


def test_the_search_for_a_fixed_text_climbs_and_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    records = tabletop_records(16, Difficulty.EASY, seed=1)
    truths = [r.graph for r in records if r.graph is not None and any(item.nodes for item in r.graph.frames)]
    _, first = search(truths, rounds=0)
    text, highest = search(truths, rounds=3)
    assert search(truths, rounds=3) == (text, highest)
    assert highest > first
    monkeypatch.setitem(FIXED_TEXTS, truths[0].unit, text)
    assert measure(records)["(l) one fixed text for all records"]["graph"] == pytest.approx(highest)


def test_the_example_picture_and_table_are_those_of_the_code() -> None:
    drawn, markdown = example_rows()
    marker = "examples: python -m tests.rewards.examples docs/images/graph_scores.svg"
    for name, values in rows_of(markdown).items():
        assert documented(marker)[name] == pytest.approx(values, abs=0.011)
    assert (DOCS / "images" / "graph_scores.svg").read_text() == drawn


def test_the_commands_answer(tabletop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tabletop / "heldout"
    record = next(row for row in read_records(data) if isinstance(row, Record))
    (tmp_path / "trace.txt").write_text("<think>hm</think><answer>0</answer>")
    arguments = ["--data", str(data), "--id", record.id, "--trace", str(tmp_path / "trace.txt")]
    assert main([*arguments, "--picture", str(tmp_path / "out.svg")]) == 0
    out = capsys.readouterr().out
    assert "graph_node  0.000" in out
    assert "- graph: no <graph> block inside <think>" in out
    assert (tmp_path / "out.svg").read_text().count("not stated") == 4
    assert main([*arguments[:3], "nobody", *arguments[4:]]) == 2
    assert "has no usable record with id = 'nobody'" in capsys.readouterr().err
    assert probe(["--data", str(data)]) == 0
    assert "| (j) truth | 1.00 | 1.00 | 1.00 |" in capsys.readouterr().out
    assert probe(["--data", str(tmp_path)]) == 2
