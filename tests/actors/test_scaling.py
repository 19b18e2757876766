"""When rollout workers are added or taken out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.scaling import Scaling
from videostr.config.schema import Config
from videostr.config.sections import RolloutConfig
from videostr.scale import main
from videostr.target_size import read_target_size
from videostr.worker_state import Health


class Pool:
    """Only its size."""

    def __init__(self, size: int) -> None:
        self.standings = [Health.HEALTHY] * size

    def size(self) -> int:
        return len(self.standings)

    def health(self) -> list[Health]:
        return self.standings

    async def resize(self, count: int) -> None:
        self.standings = self.standings[:count] + [Health.RESTARTING] * (count - self.size())


class Placement:
    """Room for some more."""

    def __init__(self, room: int) -> None:
        self.room = room

    def has_room_for(self, role: str) -> bool:
        return role == "rollout" and self.room > 0


def scaling(folder: Path, pool: Any, room: int, most: int) -> Scaling:
    return Scaling(Config(rollout=RolloutConfig(max_workers=most)), folder, pool, Placement(room))  # type: ignore[arg-type]


def test_a_target_size_is_followed_once_and_beats_free_room(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    pool = Pool(1)
    found = scaling(tmp_path, pool, room=9, most=9)
    assert main([str(tmp_path), "--rollout-workers", "3"]) == 0
    for _ in range(3):
        asyncio.run(found.look())
    assert pool.size() == 3


def test_free_room_is_taken_by_one_worker_after_the_other(tmp_path: Path) -> None:
    pool = Pool(1)
    found = scaling(tmp_path, pool, room=1, most=3)
    asyncio.run(found.look())
    asyncio.run(found.look())
    assert pool.standings == [Health.HEALTHY, Health.RESTARTING]
    pool.standings = [Health.HEALTHY] * 2
    asyncio.run(found.look())
    pool.standings = [Health.HEALTHY] * 3
    asyncio.run(found.look())
    assert pool.size() == 3


@pytest.mark.parametrize(("room", "most"), [(0, 3), (1, 0)])
def test_without_room_or_leave_nothing_is_added(tmp_path: Path, room: int, most: int) -> None:
    pool = Pool(1)
    asyncio.run(scaling(tmp_path, pool, room, most).look())
    assert pool.size() == 1


def test_a_target_size_that_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--rollout-workers", "2"]) == 2
    assert "no run folder" in capsys.readouterr().err
    (tmp_path / "config.yaml").touch()
    assert main([str(tmp_path), "--rollout-workers", "0"]) == 2
    assert "must be a whole number, at least 1" in capsys.readouterr().err
    assert read_target_size(tmp_path) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rollout_workers": 0}', '{"rollout_workers": "3"}'])
def test_a_damaged_target_size_changes_nothing(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "scale.json").write_text(text)
    pool = Pool(2)
    asyncio.run(scaling(tmp_path, pool, room=0, most=0).look())
    assert pool.size() == 2
    assert "scale.json: not readable" in caplog.text
