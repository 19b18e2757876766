"""Run state on disk: the ledger of consumed records and the checkpoints of a run folder.

checkpoints/step_000010/policy/     Hugging Face format
checkpoints/step_000010/learner/    optimizer and schedule
checkpoints/step_000010/state.json  written last: a folder without it is not a checkpoint
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from videostr.errors import RunFolderError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Which positions of the seeded order are consumed: all below `next_position`, each exactly once."""

    seed: int
    """Seed of the order."""
    records: int
    """Records in one epoch."""
    next_position: int = 0
    """First position not consumed."""
    learned: int = 0
    """Positions whose group was learned from, or had zero variance."""
    failed: int = 0
    """Positions whose record or group failed, and was replaced by a later position."""

    def consume(self, *, drawn: int, learned: int) -> Ledger:
        """The ledger after `drawn` further positions, `learned` of which were used."""
        return replace(
            self,
            next_position=self.next_position + drawn,
            learned=self.learned + learned,
            failed=self.failed + drawn - learned,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands after a step."""

    step: int
    """Steps done."""
    version: int
    """Weight version of the learner."""
    ledger: Ledger


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        complete = sorted(self.folder.glob("step_*/state.json"))
        return complete[-1].parent if complete else None

    async def save(self, state: RunState, learner_save: Callable[[Path], Awaitable[None]]) -> Path:
        """Write a checkpoint and drop those beyond the newest `keep`.

        It is written under another name and renamed, so that a run killed here leaves the previous one as the latest.
        """
        final = self.folder / f"step_{state.step:06d}"
        scratch = self.folder / f".writing_{state.step:06d}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        await learner_save(scratch)
        write_json(scratch / "state.json", asdict(state))
        shutil.rmtree(final, ignore_errors=True)
        scratch.replace(final)
        for old in sorted(self.folder.glob("step_*"))[: -self.keep]:
            shutil.rmtree(old)
        return final

    @staticmethod
    def state(checkpoint: Path) -> RunState:
        """Read `state.json`.

        Raises:
            RunFolderError: it is damaged.
        """
        path = checkpoint / "state.json"
        try:
            values = json.loads(path.read_text())
            ledger = Ledger(**values.pop("ledger"))
            return RunState(ledger=ledger, **values)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{path}: not a readable run state ({error!r}); delete {checkpoint} to resume from the one before"
            ) from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is either the old one or the new one, whatever happens meanwhile."""
    scratch = path.with_name(f".{path.name}.writing")
    with scratch.open("w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
