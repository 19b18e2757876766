"""`python -m videostr.data build|stats|check`: make a dataset, describe it, verify it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from videostr.data.records import read_records
from videostr.errors import VideoError, VideoStrError
from videostr.tabletop.build import Split, build
from videostr.tabletop.world import Difficulty
from videostr.types import Failure, Record
from videostr.video import FrameStore, name_clip


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, 1 when `check` finds a broken row or video, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m videostr.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="write Parquet and videos")
    make.add_argument("--source", choices=["tabletop"], required=True)
    make.add_argument("--out", type=Path, required=True)
    make.add_argument("--scenes", type=int, required=True)
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--split", choices=[s.name.lower() for s in Split], default="train")
    make.add_argument("--difficulty", choices=[d.value for d in Difficulty], default="easy")
    make.add_argument("--questions", type=int, default=1, help="at most this many per scene")
    make.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    for name, text in (("stats", "print counts as JSON"), ("check", "read every row, decode every video")):
        command = commands.add_parser(name, help=text)
        command.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        return {"build": _build, "stats": _stats, "check": _check}[options.command](options)
    except VideoStrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _build(options: argparse.Namespace) -> int:
    count = build(
        options.out,
        scenes=options.scenes,
        seed=options.seed,
        split=Split[options.split.upper()],
        difficulty=Difficulty(options.difficulty),
        questions=options.questions,
        workers=options.workers,
    )
    print(f"{options.out}: {count} records of {options.scenes} scenes")
    return 0


def _stats(options: argparse.Namespace) -> int:
    rows = list(read_records(options.folder))
    records = [row for row in rows if isinstance(row, Record)]
    print(
        json.dumps(
            {
                "records": len(records),
                "unusable": sum(row.records for row in rows if isinstance(row, Failure)),
                "videos": len({record.clip.video for record in records}),
                "sources": Counter(record.source for record in records),
                "families": Counter(record.family for record in records),
                "answers": Counter(record.answer.kind.value for record in records),
                "labels": Counter(label for record in records for label in record.labels),
                "without_graph": sum(record.graph is None for record in records),
            },
            indent=2,
        )
    )
    return 0


def _check(options: argparse.Namespace) -> int:
    bad = total = 0
    with tempfile.TemporaryDirectory() as scratch:
        store = FrameStore(scratch)
        for row in read_records(options.folder):
            if isinstance(row, Failure):
                problem, lost = row.detail, row.records
            else:
                problem, lost = _video_problem(row, options.folder, store), 1
            total += lost
            if problem:
                bad += lost
                print(problem)
    print(f"{options.folder}: {total} rows, {bad} bad")
    return 1 if bad else 0


def _video_problem(record: Record, folder: Path, store: FrameStore) -> str:
    try:
        store.frames(name_clip(record.clip, folder))
    except VideoError as error:
        return f"{record.origin}: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
