"""MMSI-Video-Bench: items -> questions, the text with the video in its place, letters, figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoProcessor

from videostr.chat import chat_text
from videostr.errors import DataError
from videostr.evaluate.benchmark import Question
from videostr.evaluate.mmsi_video import MmsiVideo, extract

BENCHMARK = MmsiVideo()


def item(name: str = "question_0000", **changes: Any) -> dict[str, Any]:
    return {
        "id": name, "type": "Planning", "video_list": [{"path": "a.mp4", "start": 3.0, "end": 9.0, "base_fps": 2.0}],
        "frames_list": [["a.jpg"]], "ref_images": [], "system_prompt": "Look.", "task_prompt": "Plan.\n",
        "user_prompt": "The clip: <video>\nWhat next?", "format_prompt": "\nA letter.", "ground_truth": "B",
    } | changes  # fmt: skip


def read(root: Path, *items: dict[str, Any]) -> tuple[Question, ...]:
    (root / "mmsivideo.json").write_text(json.dumps(items))
    return BENCHMARK.read(root).questions


def test_the_video_stands_where_the_text_has_it(tmp_path: Path) -> None:
    (question,) = read(tmp_path, item())
    assert (question.video, question.task, question.truth, question.problem) == (
        "videos/a.mp4",
        "Planning",
        "B",
        "",
    )
    processor = AutoProcessor.from_pretrained("videostr/tabletop/pretrained")
    text = BENCHMARK.prompt(question, 9.0, (64, 64))
    seen = chat_text(text, processor, video_place=question.video_place)
    assert (
        "Look.\nPlan.\nThe clip: <|vision_start|><|video_pad|><|vision_end|>\nWhat next?\nA letter.<|im_end|>"
        in seen
    )
    blind = chat_text(text, processor, with_video=False, video_place=question.video_place)
    assert blind == seen.replace("<|vision_start|><|video_pad|><|vision_end|>", "")


def test_questions_about_several_videos_or_images_are_scored_and_not_asked(tmp_path: Path) -> None:
    twice = item("b", video_list=[{"path": "a.mp4"}, {"path": "b.mp4"}])
    one, two, image = read(tmp_path, item(), twice, item("c", ref_images=["x.jpg"]))
    assert "2 videos and 0 images" in two.problem
    assert "1 videos and 1 images" in image.problem
    found = BENCHMARK.figures([one, two, image], {"accuracy": np.array([1.0, 0.0, 1.0])}, np.ones((1, 3)))
    assert {name: round(float(value[0]), 1) for name, value in found.items()} == {
        "overall": 66.7, "one_video": 100.0, "task/Planning": 66.7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" 'B': because. A", ""),
        ("B. left, not A", "B"),
        ("b", ""),
        ("<answer>C</answer>", "C"),
        ("\\boxed{D} or \\boxed{E}", "D"),
        ("\\boxed{AB}", ""),
        ("The answer is A. No, the answer is F, I think", "F"),
        ("Answer: A\nanswer: B", "B"),
        ('{"answer": "C", "why": "the answer is D"}', "C"),
        ("there is no answer is A", ""),
        ("G", ""),
        ("", ""),
    ],
)
def test_letters(text: str, letter: str) -> None:
    assert extract(text) == letter


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ground_truth": "G"}, "ground_truth"),
        ({"video_list": []}, "video_list"),
        ({"user_prompt": None}, "user_prompt"),
    ],
)
def test_a_broken_item_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"item \[1\]") as caught:
        read(tmp_path, item(), item("b", **changes))
    assert words in str(caught.value)
    with pytest.raises(DataError, match="is there twice"):
        read(tmp_path, item(), item())
    with pytest.raises(DataError, match="cannot be read as a JSON array"):
        BENCHMARK.read(tmp_path / "none")
