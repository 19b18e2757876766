"""Checkpoints: atomic, verified, the newest and the best kept; positions handed out and committed."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from videostr.checkpoint import Checkpoints, DataCursor, Files, Ledger, RunState
from videostr.errors import RunFolderError


def state(step: int) -> RunState:
    ledger = Ledger(seed=1, records=9, next_position=4 * step, in_flight=(3, 7), learned=4 * step, failed=0)
    return RunState(step=step, version=step, ledger=ledger)


def save(checkpoints: Checkpoints, step: int) -> Path:
    async def learner(folder: Path) -> Files:
        (folder / "learner").mkdir()
        (folder / "learner" / "shard_00001.safetensors").write_bytes(bytes(1000))
        (folder / "policy.bin").write_text(f"weights of {step}")
        return {}

    return asyncio.run(checkpoints.save(state(step), learner))


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.glob("step_*"))


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest_intact() is None
    for step, reward in ((1, 0.5), (2, 0.9), (3, 0.6), (4, 0.7), (5, 0.8)):
        save(checkpoints, step)
        checkpoints.note_held_out(step, reward)
    assert names(checkpoints) == ["step_000002", "step_000004", "step_000005"]
    assert checkpoints.best() == (2, 0.9)
    latest = checkpoints.latest_intact()
    assert latest is not None
    assert Checkpoints.state(latest) == state(5)
    save(checkpoints, 6)
    assert checkpoints.note_held_out(6, 1.0) == 1.0
    assert names(checkpoints) == ["step_000005", "step_000006"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_whoever_may_read_the_folder_may_read_its_files(tmp_path: Path, mask: int) -> None:
    async def learner(folder: Path) -> Files:
        save_file({"w": torch.zeros(1)}, folder / "model.safetensors")
        return {}

    before = os.umask(mask)
    try:
        saved = asyncio.run(Checkpoints(tmp_path, keep=2).save(state(1), learner))
    finally:
        os.umask(before)
    assert (saved / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_copies_under_other_names_are_neither_used_nor_dropped(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    copies = [
        shutil.copytree(save(checkpoints, step), tmp_path / f"step_{step:06d}_copy") for step in range(1, 4)
    ]
    assert checkpoints.latest() == tmp_path / "step_000003"
    assert all(copy.is_dir() for copy in copies)
    assert len(names(checkpoints)) == 5


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda c: (c / "policy.bin").write_text("weights of X"), "policy.bin has other contents"),
        (lambda c: (c / "policy.bin").write_text("weights"), "policy.bin has 7 bytes, 12 were written"),
        (
            lambda c: (c / "learner" / "shard_00001.safetensors").unlink(),
            "shard_00001.safetensors is missing",
        ),
        (lambda c: (c / "state.json").write_text('{"step": 2'), "state.json is not readable"),
        (lambda c: (c / "state.json").write_text('{"format": 4, "step": 2}'), "state.json lists no files"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    damage, problem: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    first, second = save(checkpoints, 1), save(checkpoints, 2)
    damage(second)
    assert checkpoints.latest_intact() == first
    assert problem in caplog.text
    with pytest.raises(RunFolderError, match=r"step_000002: .*restore it from a copy, or delete it"):
        checkpoints.verify(second)
    (first / "policy.bin").unlink()
    with pytest.raises(RunFolderError, match="all 2 checkpoints are damaged"):
        checkpoints.latest_intact()


def test_a_checkpoint_of_another_format_is_refused_with_the_remedy(tmp_path: Path) -> None:
    checkpoint = save(Checkpoints(tmp_path, keep=1), 1)
    values = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps(values | {"format": 7}))
    with pytest.raises(
        RunFolderError, match=r"written in format 7, this version of the program reads 4; continue"
    ):
        Checkpoints.state(checkpoint)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    first = save(checkpoints, 1)

    async def full(folder: Path) -> Files:
        (folder / "half").write_text("of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        asyncio.run(checkpoints.save(state(2), full))
    assert checkpoints.latest_intact() == first
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_a_folder_without_state_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    first = save(checkpoints, 1)
    (tmp_path / "step_000009" / "policy").mkdir(parents=True)
    assert checkpoints.latest() == first


def test_every_position_is_committed_once() -> None:
    ledger = Ledger(seed=0, records=10)
    cursor = DataCursor(ledger)
    one, two = cursor.take(3), cursor.take(2)
    one += cursor.take(1)  # a replacement
    ledger = cursor.commit(ledger, one, learned=3)
    assert ledger == Ledger(seed=0, records=10, next_position=6, in_flight=(3, 4), learned=3, failed=1)
    resumed = DataCursor(ledger)
    again = resumed.take(3)
    assert again == [3, 4, 6]
    assert resumed.commit(ledger, again, learned=3) == Ledger(
        seed=0, records=10, next_position=7, in_flight=(), learned=6, failed=1
    )
    assert two == [3, 4]
