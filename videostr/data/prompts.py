"""The records of a run as prompts, by position in the seeded order.

In: a record dataset. Out: `PromptItem` (record and prompt) for any position, or the `Failure` that keeps it from being used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videostr.data.records import index_at, read_records
from videostr.errors import DataError, PromptError, VideoError
from videostr.prompt import render
from videostr.types import Failure, FailureKind, Prompt, Record
from videostr.video import name_clip


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptItem:
    """A record, ready to be asked."""

    position: int
    """In the seeded order; for evaluation, in the file order."""
    record: Record
    prompt: Prompt
    references: tuple[str, ...] = ()
    """Supervised fine-tuning: the completions to learn."""


class RecordSource:
    """A dataset in memory, videos excepted."""

    def __init__(self, folder: str, processor: Any, seed: int) -> None:
        self.folder = Path(folder)
        self.processor = processor
        self.seed = seed
        rows = list(read_records(folder))
        self.records = [row for row in rows if isinstance(row, Record)]
        self.failures = [row for row in rows if isinstance(row, Failure)]
        """Rows and shards that cannot be used."""
        if not self.records:
            reasons = "; ".join(failure.detail for failure in self.failures[:3])
            raise DataError(f"{folder}: has no usable record: {reasons}")

    def draw(self, position: int) -> PromptItem | Failure:
        """Return the record at a position of the endless seeded order; every epoch is a new permutation."""
        return self._ask(position, self.records[index_at(position, len(self.records), self.seed)])

    def first(self, count: int) -> list[PromptItem | Failure]:
        """Return the first `count` records in file order."""
        return [self._ask(place, record) for place, record in enumerate(self.records[:count])]

    def _ask(self, position: int, record: Record) -> PromptItem | Failure:
        try:
            clip = name_clip(record.clip, self.folder)
            prompt = render(record, clip, self.processor)
        except (VideoError, PromptError) as error:
            kind = FailureKind.BAD_VIDEO if isinstance(error, VideoError) else FailureKind.BAD_PROMPT
            return Failure(kind=kind, record_id=record.id, detail=f"{record.origin}: {error}")
        return PromptItem(position=position, record=record, prompt=prompt)
