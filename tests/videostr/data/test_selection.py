"""From the pool to the records: what is guessed without the video goes, shares of families, scenes that are held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from videostr.data.__main__ import main
from videostr.data.baseline import Guesser
from videostr.data.build import Settings, build
from videostr.data.build.selection import Row, take
from videostr.data.build.worker import open_source
from videostr.data.records import read_records
from videostr.data.thinning import thin
from videostr.errors import ConfigError
from videostr.types import Answer, AnswerKind, ClipSpec, Query, Record


def choice(video: int, number: int, words: str, truth: str, axis: str = "image") -> Record:
    return Record(
        id=f"{axis}/{video}/{number}/{truth}", source="hand", family="direction_camera", question=words,
        options=("left", "right"), answer=Answer(kind=AnswerKind.CHOICE, value="AB"[truth == "right"]),
        clip=ClipSpec(video=f"{video}.mp4", num_frames=4), labels=(), graph=None,
        query=Query(family="direction_camera", axis=axis, options=("left", "right")),
    )  # fmt: skip


def pairs(easy: int, fair: int, axis: str = "image") -> list[list[Record]]:
    """Sets of 20 videos: in the easy ones a word tells the answer."""
    return [
        [
            choice(video, number, f"where is it {('dusk' if side == 'left' else 'dawn') if number < easy else 'now'}", side, axis)
            for side in ("left", "right")
        ]
        for video in range(20)
        for number in range(easy + fair)
    ]  # fmt: skip


def over_chance(sets: Sequence[Sequence[Record]]) -> float:
    (found,) = Guesser(sets).validate().by_family()
    assert found.chance is not None
    return found.score - found.chance


def test_what_a_word_tells_is_dropped_and_what_is_fair_stays() -> None:
    sets = pairs(easy=2, fair=8)
    assert over_chance(sets) > 0.08  # a fifth of the questions is told
    kept, (thinned,) = thin(sets, 0.02)
    left = [found for found, stays in zip(sets, kept, strict=True) if stays]
    assert over_chance(left) < 0.03
    words = Counter(found[0].question for found in left)
    assert words["where is it now"] == 160  # none of those is easy
    assert words["where is it dusk"] <= 12
    assert (thinned.questions, thinned.dropped) == (400, 2 * int((~kept).sum()))
    assert thinned.before > 0.58
    assert thinned.after < 0.53


def test_nothing_goes_where_guessing_does_not_pay_or_is_allowed() -> None:
    fair = pairs(easy=0, fair=6)
    kept, thinned = thin(fair, 0.02)
    assert kept.all()
    assert not thinned
    kept, thinned = thin(pairs(easy=2, fair=8), 0.5)
    assert kept.all()
    assert not thinned


def test_only_the_kind_that_is_easy_is_thinned() -> None:
    sets = [*pairs(easy=2, fair=4), *pairs(easy=0, fair=6, axis="depth")]
    kept, thinned = thin(sets, 0.02)
    assert [each.kind for each in thinned] == ["image, 2 options"]
    assert kept[120:].all()


# ----------------------------------------------------------------------------------------------------------- shares


def rows(family: str, kind: str, count: int, videos: int, size: int = 1) -> list[list[Row]]:
    """Sets of a family, all of the first video first."""
    options = ("a", "b", "c")[: size if size > 1 else 0]
    return [
        [Row(0, f"{family}/{i}/{j}", "hand", family, options, kind, f"v{i * videos // count}") for j in range(size)]
        for i in range(count)
    ]  # fmt: skip


SHARES = {"choice": {"order": 0.4, "ahead": 0.2}, "number": {"size": 0.3, "speed": 0.1}}


def taken_of(
    sets: list[list[Row]], limit: int, **changes: Any
) -> tuple[np.ndarray, dict[str, tuple[int, int]]]:
    settings = Settings(source="kitti", root="", limit=limit, shares=SHARES, **changes)
    chosen, taken = take(sets, np.ones(len(sets), dtype=bool), settings)
    return chosen, {each.family: (each.wanted, each.got) for each in taken}


def test_every_family_gets_its_share_and_scenes_give_alike() -> None:
    sets = [
        *rows("order", "choice", 100, 10, size=3), *rows("ahead", "choice", 100, 10, size=2),
        *rows("size", "number", 200, 10), *rows("speed", "number", 200, 10), *rows("speed", "choice", 9, 3, size=2),
    ]  # fmt: skip
    chosen, taken = taken_of(sets, 150)
    assert taken == {"order": (60, 60), "ahead": (30, 30), "size": (45, 45), "speed": (15, 15)}
    of_order = Counter(sets[i][0].video for i in np.flatnonzero(chosen) if sets[i][0].family == "order")
    assert set(of_order.values()) == {2}  # 20 sets of 10 scenes
    assert not chosen[-9:].any()  # choices of speed have no share
    again, _ = taken_of(sets, 150)
    assert (again == chosen).all()
    assert (taken_of(sets, 150, seed=1)[0] != chosen).any()


def test_what_a_family_lacks_others_of_its_kind_fill_up() -> None:
    sets = [
        *rows("order", "choice", 4, 2, size=3), *rows("ahead", "choice", 100, 10, size=2),
        *rows("size", "number", 200, 10), *rows("speed", "number", 5, 5),
    ]  # fmt: skip
    _, taken = taken_of(sets, 150)
    assert taken == {"order": (60, 12), "ahead": (30, 78), "size": (45, 55), "speed": (15, 5)}
    _, taken = taken_of([*sets[:104], *rows("size", "number", 30, 3)], 150)
    assert taken == {
        "order": (60, 12),
        "ahead": (30, 108),
        "size": (45, 30),
        "speed": (15, 0),
    }  # of another kind
    _, taken = taken_of(sets, 1000)
    assert taken == {"order": (400, 12), "ahead": (200, 200), "size": (300, 200), "speed": (100, 5)}


def test_shares_of_a_build_are_those_of_the_card(street: Path, tmp_path: Path) -> None:
    settings = Settings(
        source="kitti", root=str(street), clips=12, questions=8, marked=16, num_frames=4, limit=150,
        shares={"choice": {"direction_camera": 0.3, "approach": 0.1}, "number": {"size": 0.4}, "track": {"tracking": 0.2}},
    )  # fmt: skip
    out = tmp_path / "set"
    progress = build(out, [settings], workers=1)
    records = [row for row in read_records(out) if isinstance(row, Record)]
    got = Counter((record.answer.kind.value, record.family) for record in records)
    assert {(each["kind"], each["family"]): each["got"] for each in progress.shares} == got
    assert got["number", "size"] >= 60
    assert progress.records == len(records) == 150
    assert not [*out.glob("pool-*"), *out.glob("waiting-*")]
    assert main(["stats", str(out)]) == 0
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"| kitti | choice | direction_camera | 45 | {got['choice', 'direction_camera']} |" in card
    build(tmp_path / "again", [settings], workers=2)
    for shard in out.glob("*.parquet"):
        assert (tmp_path / "again" / shard.name).read_bytes() == shard.read_bytes()


# --------------------------------------------------------------------------------------------------------- held out


def test_scenes_are_held_out_by_the_seed(street: Path) -> None:
    whole = Settings(source="kitti", root=str(street))
    names = list(open_source(whole).names)
    parts = {}
    for seed in range(4):
        train = open_source(replace(whole, heldout=0.3, seed=seed)).names
        heldout = open_source(replace(whole, heldout=0.3, seed=seed, split="heldout")).names
        assert sorted([*train, *heldout]) == names
        assert len(heldout) == 2  # 0.3 of 5 is 1.5
        parts[seed] = tuple(heldout)
    assert len(set(parts.values())) > 1
    assert len(open_source(replace(whole, heldout=0.01, split="heldout")).names) == 1
    assert Settings(source="kitti", root="", limit=1000, heldout=0.05, split="heldout").most == 50


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "heldout"}, 'split = "heldout": no scene is held out'),
        ({"split": "val", "heldout": 0.1}, "heldout = 0.1: has no effect on split 'val'"),
        ({"limit": 9, "shares": {"choice": {"order": 0.5}}}, "shares: they are 0.5 in all, limit is 9"),
        ({"shares": {"choice": {"order": 1.0}}}, "shares: they are 1 in all, limit is None"),
        ({"limit": 9, "shares": {"word": {"order": 1.0}}}, "shares: 'word' is not a kind of answer"),
        ({"limit": 9, "shares": {"choice": {"odour": 1.0}}}, "shares.choice: 'odour' is unknown"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(source="kitti", root="", **values)
    assert message in str(caught.value)
    assert caught.value.remedy
