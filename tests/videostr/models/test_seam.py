"""Only `videostr/models` knows families: no other module names one, its classes in transformers, or its processor's fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("videostr", "rewards", "actors")
JUDGE = re.compile(r"(Qwen/)?Qwen2\.5-72B-Instruct")
"""A text model that rates answers; it is not trained."""
FAMILY = re.compile(
    r"qwen|internvl|llava|glm-?4|second_per_grid|_grid_thw|pixel_values|mm_token_type|deepstack|mrope"
    r"|spatial_merge_size|smart_resize|\.model\.visual|\.language_model\b|transformers\.models\b",
    re.IGNORECASE,
)


def names_of_families(path: Path, source: str) -> Iterator[str]:
    """What `source`, if it stood at `path`, says of a family."""
    if path.is_relative_to("videostr/models"):
        return
    for number, line in enumerate(JUDGE.sub("", source).splitlines(), start=1):
        for found in FAMILY.findall(line):
            yield f"{path}:{number}: {found}"


def test_no_module_outside_the_seam_knows_a_family() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 100
    found = [
        line
        for path in files
        for line in names_of_families(path.relative_to(ROOT), path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        ("videostr/check.py", "from transformers import Qwen2_5_VLConfig", ["Qwen"]),
        ("videostr/prompt.py", '"""As Qwen3-VL has it."""', ["Qwen"]),
        ("actors/learner.py", "policy.model.visual = None", [".model.visual"]),
        ("actors/encoding.py", 'inputs["second_per_grid_ts"]', ["second_per_grid"]),
        (
            "videostr/grpo/batch.py",
            "row.pixel_values_videos\nrow.video_grid_thw",
            ["pixel_values", "_grid_thw"],
        ),
        ("videostr/config.py", 'model: str = "Qwen/Qwen2.5-72B-Instruct"', []),
        ("videostr/evaluate/v_star.py", '"""Rated by Qwen2.5-72B-Instruct."""', []),
        ("videostr/models/qwen2_5_vl.py", "from transformers import Qwen2_5_VLConfig", []),
    ],
)
def test_names_are_found(path: str, source: str, words: list[str]) -> None:
    found = list(names_of_families(Path(path), source))
    assert [line.rpartition(": ")[2] for line in found] == words
