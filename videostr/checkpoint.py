"""Run state on disk: the ledger of consumed records and the checkpoints of a run folder.

checkpoints/step_000010/policy/     Hugging Face format
checkpoints/step_000010/learner/    master weights, moments and step of AdamW, version; in safetensors, by parts
checkpoints/step_000010/state.json  step, ledger, size and digest of every file; written last: without it there is no checkpoint
checkpoints/best.json               which step had the best held-out reward; its checkpoint is kept
checkpoints/resumed_from.json       the path of `run.resume` that the run went back to
checkpoints/discarded_000015/           a checkpoint of steps that the run went back from; not used, not deleted
checkpoints/.writing_*, .deleting_* what a kill left half written or half deleted; dropped at the next start
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from videostr.digests import file_digest
from videostr.errors import RunFolderError, StorageError
from videostr.files import storage, sync_to_disk, write_json
from videostr.tasks import FileThread

log = logging.getLogger(__name__)
FORMAT = 4
"""Of `state.json`; another number means that a run cannot be continued across the change."""
STATE, BEST, RESUMED = "state.json", "best.json", "resumed_from.json"
WRITING, DELETING = ".writing_", ".deleting_"
Files = Mapping[str, tuple[int, str]]
"""Size in bytes and SHA-256 of files, by their path below the folder of a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Which positions of the seeded order are consumed: all below `next_position` but those `in_flight`, each exactly once."""

    seed: int
    """Seed of the order."""
    records: int
    """Records in one epoch."""
    next_position: int = 0
    """First position never drawn."""
    in_flight: tuple[int, ...] = ()
    """Drawn for a batch that was not learned from yet; drawn again on resume, before any other."""
    learned: int = 0
    """Positions whose group was learned from, or had zero variance."""
    failed: int = 0
    """Positions whose record or group failed, and was replaced by a later position."""


class DataCursor:
    """Hands out positions to the batches in flight, and commits those of a batch to the ledger when it was learned from."""

    def __init__(self, ledger: Ledger) -> None:
        self._next = ledger.next_position
        self._again = deque(ledger.in_flight)
        self._in_flight = set(ledger.in_flight)

    def take(self, count: int) -> list[int]:
        """Return the next positions: first those that were in flight when the run was stopped."""
        taken = []
        for _ in range(count):
            if self._again:
                taken.append(self._again.popleft())
            else:
                taken.append(self._next)
                self._next += 1
        self._in_flight.update(taken)
        return taken

    def commit(self, ledger: Ledger, positions: Sequence[int], learned: int) -> Ledger:
        """Return the ledger after a batch that drew `positions`, `learned` of which were used."""
        self._in_flight.difference_update(positions)
        return replace(
            ledger,
            next_position=self._next,
            in_flight=tuple(sorted(self._in_flight)),
            learned=ledger.learned + learned,
            failed=ledger.failed + len(positions) - learned,
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
    """The checkpoints of one run folder: the newest `keep`, and the best by held-out reward.

    A checkpoint may have hundreds of gigabytes: on an event loop, call all methods but `save` through `thread`.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.thread = FileThread("checkpoints")
        """Does all file work in order: the next checkpoint waits for what is still hashed or deleted of the one before."""

    def latest(self) -> Path | None:
        """Return the newest complete checkpoint; not looked into."""
        complete = self._complete()
        return complete[-1] if complete else None

    def latest_intact(self) -> Path | None:
        """Return the newest checkpoint whose files are as they were written; damaged ones are skipped with a warning.

        Raises:
            RunFolderError: there are checkpoints, and all are damaged.
        """
        complete = self._complete()
        for checkpoint in reversed(complete):
            try:
                self.verify(checkpoint)
            except RunFolderError as error:
                log.warning("skipping a damaged checkpoint: %s", error)
            else:
                return checkpoint
        if complete:
            raise RunFolderError(
                f"{self.folder}: all {len(complete)} checkpoints are damaged",
                remedy="restore one from a copy, or delete the run folder to start from the beginning",
            )
        return None

    async def save(self, state: RunState, learner_write: Callable[[Path], Awaitable[Files]]) -> Path:
        """Write a checkpoint and drop those that are neither among the newest `keep` nor the best.

        It is written under another name, forced to disk and renamed, so that a run killed here, or a full disk, leaves
        the previous one as the latest.

        Args:
            state: that the checkpoint is of.
            learner_write: writes into a folder, and returns the files that it has forced to disk and hashed itself.

        Raises:
            StorageError: it cannot be written.
        """
        final = self.folder / f"step_{state.step:06d}"
        scratch = self.folder / f"{WRITING}{state.step:06d}"
        await self.thread(self._begin, scratch)
        try:
            written = await learner_write(scratch)
            await self.thread(_seal, scratch, state, written)
        except Exception:
            await self.thread(shutil.rmtree, scratch, ignore_errors=True)
            raise
        await self.thread(self._finish, scratch, final)
        return final

    def rewind(self, step: int, resume: str) -> None:
        """Discard checkpoints of later steps (they are renamed), damaged ones too, and forget the best if it is one of them.

        Args:
            step: that the run continues from.
            resume: `run.resume`; a path is noted.

        Raises:
            StorageError: the folder cannot be written.
        """
        with storage(self.folder):
            self._sweep()
            self._discard_after(step)
            best = self.best()
            if best is not None and best[0] > step:
                (self.folder / BEST).unlink()
            if resume in {"auto", "never"}:
                (self.folder / RESUMED).unlink(missing_ok=True)
            else:
                write_json(self.folder / RESUMED, {"resume": resume, "step": step})

    def resumed_from(self, resume: str) -> int | None:
        """Return the step that the run last went back to by this path of `run.resume`; None where it did not."""
        try:
            values = json.loads((self.folder / RESUMED).read_text(encoding="utf-8"))
            step: int = values["step"]
            return step if values["resume"] == resume else None
        except (OSError, ValueError, KeyError):
            return None

    def note_held_out(self, step: int, reward: float) -> float:
        """Note the held-out reward of the checkpoint of a step; returns the best so far, whose checkpoint is kept."""
        best = self.best()
        if best is None or reward > best[1]:
            write_json(self.folder / BEST, {"step": step, "reward": reward})
            self._prune()
            return reward
        return best[1]

    def best(self) -> tuple[int, float] | None:
        """Step and held-out reward of the best checkpoint; None where nothing was evaluated."""
        try:
            values = json.loads((self.folder / BEST).read_text(encoding="utf-8"))
            return values["step"], values["reward"]
        except (OSError, ValueError, KeyError):
            return None

    @staticmethod
    def state(checkpoint: Path) -> RunState:
        """Read `state.json`.

        Raises:
            RunFolderError: it is damaged, or of another version of this program.
        """
        values = _read_state(checkpoint)
        try:
            ledger = {**values["ledger"], "in_flight": tuple(values["ledger"]["in_flight"])}
            return RunState(step=values["step"], version=values["version"], ledger=Ledger(**ledger))
        except (KeyError, TypeError) as error:
            raise _damaged(checkpoint, f"{STATE} lacks {error}") from None

    @staticmethod
    def verify(checkpoint: Path) -> None:
        """Compare size and digest of every file with what `save` noted.

        Raises:
            RunFolderError: names the first file that differs.
        """
        files = _read_state(checkpoint).get("files", {})
        if not files:
            raise _damaged(checkpoint, f"{STATE} lists no files")
        for name, (size, digest) in files.items():
            path = checkpoint / name
            try:
                found = path.stat().st_size
                if found != size:
                    raise _damaged(checkpoint, f"{name} has {found} bytes, {size} were written")
                if file_digest(path) != digest:
                    raise _damaged(checkpoint, f"{name} has other contents than were written")
            except FileNotFoundError:
                raise _damaged(checkpoint, f"{name} is missing") from None
            except OSError as error:
                raise _damaged(checkpoint, f"{name} cannot be read ({error.strerror})") from None

    def _complete(self) -> list[Path]:
        return [path for _, path in self._all() if (path / STATE).exists()]

    def _all(self) -> list[tuple[int, Path]]:
        """Step and folder of every checkpoint, complete or not; other names are someone's own, such as copies."""
        found = [(path.name.removeprefix("step_"), path) for path in self.folder.glob("step_*")]
        return sorted((int(number), path) for number, path in found if number.isdecimal())

    def _discard_after(self, step: int) -> None:
        for number, later in self._all():
            if number > step:
                discarded = self.folder / later.name.replace("step_", "discarded_")
                self._delete(discarded)
                later.replace(discarded)
                log.warning(
                    "%s is of a later step: renamed to %s; delete it if you do not need it",
                    later,
                    discarded.name,
                )

    def _begin(self, scratch: Path) -> None:
        with storage(scratch):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)

    def _finish(self, scratch: Path, final: Path) -> None:
        with storage(final):
            self._delete(final)
            scratch.replace(final)
            sync_to_disk(self.folder)
        self._prune()

    def _prune(self) -> None:
        best = self.best()
        for number, old in self._all()[: -self.keep]:
            if best is None or number != best[0]:
                self._delete(old)

    def _delete(self, checkpoint: Path) -> None:
        """Delete a checkpoint, if there is one; it takes another name first, so that none is ever half there.

        What cannot be deleted is logged, and stays.
        """
        doomed = self.folder / f"{DELETING}{checkpoint.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        try:
            with contextlib.suppress(FileNotFoundError):
                checkpoint.replace(doomed)
                shutil.rmtree(doomed)
        except OSError as error:
            log.warning("%s cannot be deleted (%s); delete it by hand", checkpoint, error.strerror)

    def _sweep(self) -> None:
        """Drop what a kill left half written or half deleted."""
        for pattern in (f"{WRITING}*", f"{DELETING}*"):
            for left in self.folder.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)


def _seal(scratch: Path, state: RunState, written: Files) -> None:
    """Say what the files of a checkpoint are: from now on it is one.

    Raises:
        StorageError: a file that was written is not here, or cannot be forced to disk.
    """
    with storage(scratch):
        for name, (size, _) in written.items():
            path = scratch / name
            found = path.stat().st_size if path.exists() else "no"
            if found != size:
                raise StorageError(
                    f"{path}: a learner rank wrote {size} bytes, {found} bytes are here",
                    remedy="set run.dir to a folder that all nodes share",
                )
        files = {**_fingerprints(scratch, written), **written}
        write_json(scratch / STATE, {"format": FORMAT, **asdict(state), "files": files})


def _read_state(checkpoint: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(checkpoint, f"{STATE} is not readable ({error})") from None
    if values.get("format") != FORMAT:
        raise RunFolderError(
            f"{checkpoint}: written in format {values.get('format', 'unknown')}, this version of the program reads {FORMAT}",
            remedy="continue with the version that wrote it, or start a new run from its policy/ (model.path)",
        )
    return values


def _damaged(checkpoint: Path, problem: str) -> RunFolderError:
    return RunFolderError(
        f"{checkpoint}: {problem}",
        remedy="restore it from a copy, or delete it to resume from the one before",
    )


def _fingerprints(folder: Path, known: Files) -> dict[str, tuple[int, str]]:
    """Return the size and digest of every other file below a folder, forced to disk and as readable as the folder."""
    found = {}
    mode = folder.stat().st_mode & 0o666  # safetensors writes files that nobody but their owner may read
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in known:
            path.chmod(mode)
            sync_to_disk(path)
            found[name] = (path.stat().st_size, file_digest(path))
    return found
