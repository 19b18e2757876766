"""When a run is saved, and what of it still can be when a file cannot be written.

In: the state after every step. Out: checkpoints, one after another, each written while training continues; `ledger.json`, and
errors that say where the same command continues.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from typing import Self

from videostr.checkpoint import RunState
from videostr.config.schema import Config
from videostr.errors import CheckpointError, LearnerError, RunFolderError, StorageError, VideoStrError
from videostr.files import storage_error, write_json
from videostr.ports import Ports
from videostr.run_folder import RunFolder
from videostr.tasks import cancel_and_wait

log = logging.getLogger(__name__)


def is_due(step: int, every: int) -> bool:
    """Return whether something that is done every so many steps, never for 0, is done after this one."""
    return every > 0 and step % every == 0


class Saver:
    """The checkpoints of a run, and what is still saved when a file cannot be written."""

    def __init__(self, config: Config, folder: RunFolder, ports: Ports, state: RunState) -> None:
        self.is_updating = False
        """Whether the learner's weights are, or may be, later than those of the last whole step."""
        self._folder = folder
        self._ports = ports
        self._state = state
        self._saved = state.step
        self._writing: asyncio.Task[Exception | None] | None = None
        folder.timeline.note("checkpoint", None)
        self._every, self._last = config.train.checkpoint_every, config.train.steps

    def is_due(self, state: RunState) -> bool:
        """Return whether the state is to have a checkpoint, whatever is evaluated."""
        return state.step == self._last or is_due(state.step, self._every)

    def reached(self, state: RunState) -> None:
        """Note that a step is over."""
        self._state = state
        self.is_updating = False

    async def begin(self) -> None:
        """Begin the checkpoint of the last whole step, once that before it has ended; raises as `settle` does.

        Returns when the learner has copied its state: it is written while training continues.
        """
        await self.settle()
        await self._ports.learner.snapshot()
        self._writing = asyncio.create_task(self._write(self._state))

    async def check(self) -> None:
        """Raise what `settle` would, if the checkpoint that was begun has ended."""
        if self._writing is not None and self._writing.done():
            await self.settle()

    async def settle(self) -> Exception | None:
        """Wait for the checkpoint that was begun; where it failed, the failure was counted and logged, and is returned.

        Raises:
            LearnerError: a rank was lost.
            StorageError: the checkpoint is written, `ledger.json` is not.
        """
        writing, self._writing = self._writing, None
        return None if writing is None else await writing

    async def _save(self) -> Exception | None:
        """Write the checkpoint of the last whole step; returns and raises as `settle` does."""
        await self.begin()
        return await self.settle()

    async def _write(self, state: RunState) -> Exception | None:
        folder = self._folder
        try:
            with folder.timeline.during("checkpoint", "write"):
                await folder.checkpoints.save(state, self._ports.learner.write)
        except (OSError, StorageError, CheckpointError) as error:
            folder.quarantine.counts["checkpoint"] += 1
            log.warning("no checkpoint after step %d: %s; the one before is kept", state.step, error)
            return error
        self._saved = state.step
        await folder.thread(
            write_json, folder.path / "ledger.json", {"step": state.step, **asdict(state.ledger)}
        )
        return None

    async def finish(self) -> None:
        """Wait for the last checkpoint; write it, where it was not begun or failed.

        Raises:
            RunFolderError: it could not be written.
        """
        await self.settle()
        if self._saved != self._state.step and (problem := await self._save()):
            raise RunFolderError(
                f"the state after step {self._state.step} could not be written ({problem})",
                remedy=f"make room, and run the same command again: it continues from {await self._latest()}",
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Save what a run that ends by an error has learned; where a file could not be written, say what came of it."""
        if error is not None:
            await self._end(cancelled=not isinstance(error, Exception))
        if isinstance(error, OSError):
            error = storage_error(error, error.filename or self._folder.path)
        if isinstance(error, StorageError):
            raise StorageError(f"{error}", remedy=f"then {await self._last_try()}") from error
        ranks_are_well = isinstance(error, VideoStrError) and not isinstance(error, LearnerError)
        if ranks_are_well and not self.is_updating and self._saved != self._state.step:
            log.info("an error ends the run after step %d; %s", self._state.step, await self._last_try())

    async def _end(self, *, cancelled: bool) -> None:
        """Wait for the checkpoint that was begun; a cancelled run, whose folder may be another's now, gives it up."""
        if cancelled and self._writing is not None:
            await cancel_and_wait([self._writing])
            return
        try:
            await self.settle()
        except (VideoStrError, OSError) as error:
            log.warning("no checkpoint from the end of the run: %s", error)

    async def _last_try(self) -> str:
        """Return what the same command continues from; a checkpoint may free the room that the lines in front of it lacked."""
        step, folder = self._state.step, self._folder
        try:
            if not self.is_updating and self._saved != step:
                await self._save()
            await folder.thread(folder.write_rest)
        except (VideoStrError, OSError) as error:
            log.warning("%s", error)
        lacking = f" ({', '.join(names)} lack the last step)" if (names := folder.unwritten()) else ""
        lost = "" if self._saved == step else f", and computes steps {self._saved + 1} to {step} again"
        return f"the same command continues from {await self._latest()}{lost}{lacking}"

    async def _latest(self) -> str:
        checkpoints = self._folder.checkpoints
        return str(await checkpoints.thread(checkpoints.latest) or "the start")
