"""Marked questions about real videos: the tabletop world at `full` difficulty as own annotations, built, checked, encoded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.tabletop_annotations import write_annotations
from videostr.data.build import Settings, build
from videostr.data.check import Tally, problems
from videostr.data.prompts import RecordSource
from videostr.data.records import usable_records
from videostr.models.base import family_of
from videostr.models.checkpoint import load_policy
from videostr.models.processor import load_processor
from videostr.types import AnswerKind, Failure
from videostr.video import FrameStore

PRETRAINED = "videostr/tabletop/pretrained"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marked")
    root = write_annotations(folder / "scenes", range(6))
    settings = Settings(
        source="jsonl", root=str(root), clips=8, questions=2, marked=12, num_frames=8, width=112, height=112
    )
    build(folder / "dataset", [settings], workers=2)
    return folder / "dataset"


def test_every_record_is_sound(dataset: Path) -> None:
    tally = Tally()
    said = list(map(str, problems(dataset, tally, model=PRETRAINED, workers=2)))
    assert tally.bad == 0, said
    (summary,) = said
    assert summary.startswith("answers that the graph entails: ")
    records = list(usable_records(dataset))
    marked = [record for record in records if record.marks]
    assert len(marked) >= 10
    assert all(record.answer.kind is AnswerKind.CHOICE for record in marked)
    assert len(Counter(record.family for record in marked)) >= 2


def test_prompts_differ_from_those_without_marks_in_pixels_alone(dataset: Path, tmp_path: Path) -> None:
    family, processor = family_of(PRETRAINED), load_processor(PRETRAINED)
    source = RecordSource(str(dataset), processor, seed=0)
    config = load_policy(PRETRAINED, "auto").config
    store = FrameStore(tmp_path)
    seen = 0
    for position in range(12):
        item = source.draw(position)
        assert not isinstance(item, Failure), item
        if not item.record.marks:
            continue
        shown = store.frames(item.prompt.clip)
        plain, _ = store.stored_apart(item.prompt.clip.digest)
        with_marks, without = family.encode([item.prompt] * 2, [shown, plain], processor, config)
        assert with_marks.input_ids.equal(without.input_ids)
        assert not with_marks.vision["pixel_values_videos"].equal(without.vision["pixel_values_videos"])
        seen += 1
    assert seen
