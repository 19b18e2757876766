"""`python -m videostr.data build|stats|check|show|export|import`: make a dataset, describe, verify, see it, hand it on."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec import structs

from videostr.command import command, run_main, typed
from videostr.config.sections import Count, NonNegativeInt, Seed
from videostr.data import card, exchange
from videostr.data.build import build
from videostr.data.build.recipe import read_recipe
from videostr.data.build.settings import HELDOUT, FrameCount, Settings, Share
from videostr.data.build.state import Progress, skip_table
from videostr.data.check import Tally, large_clips, problems
from videostr.data.records import usable_records, write_records
from videostr.data.sheet import write_sheet
from videostr.data.sources import SOURCES
from videostr.data.tasks import Pool, processes
from videostr.errors import DataError, VideoError
from videostr.lock import FolderLock
from videostr.marks import STYLES
from videostr.metrics import duration
from videostr.tabletop import build as tabletop
from videostr.tabletop.build import Split
from videostr.tabletop.world import Difficulty
from videostr.types import Failure, Record
from videostr.video import LARGE_CLIP_BYTES, probe

PROBED = 32
"""Videos of an import, about so many, that are opened to know the size of their frames."""
FORMAT = "video-r1"
"""What `export` writes and `import` reads."""
WRITES_DATASET = {"build", "import"}
"""One at a time in a folder."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, 1 when `check` finds a problem, 2 on bad input."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser(given).parse_args(given)
    with contextlib.ExitStack() as stack:
        if options.command in WRITES_DATASET:
            stack.enter_context(FolderLock(options.out, "--out"))
        status: int = options.work(options)
        return status


BUILD = """make a dataset, in one of three forms:
  --source NAME --root DIR      from annotated video
  --source tabletop --scenes N  from the embedded world
  --recipe FILE                 from several sources, e.g. configs/data/stv.yaml
"""


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m videostr.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser(
        "build", help="write Parquet from annotated video, or from the tabletop world", description=BUILD,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    make.add_argument("--out", type=Path, required=True)
    make.add_argument("--workers", type=typed(Count), help="scenes that are read at once (one on each core)")
    if any(word.partition("=")[0] == "--recipe" for word in given):
        _add_recipe(make)
    elif "tabletop" in given or "--source=tabletop" in given:
        _add_tabletop(make)
    else:
        _add_source(make)
    _add_readers(commands)
    _add_exchange(commands)
    return parser


def _add_ray(make: argparse.ArgumentParser) -> None:
    make.add_argument(
        "--ray", action="store_true", help="run as Ray tasks: on the cluster of RAY_ADDRESS, else here"
    )


def _add_source(make: argparse.ArgumentParser) -> None:
    make.set_defaults(work=_build_source)
    _add_ray(make)
    make.add_argument("--source", choices=["tabletop", *SOURCES], required=True)
    make.add_argument("--root", required=True, help="folder of the source")
    make.add_argument("--split", default="train", help="of the source, or heldout (train)")
    make.add_argument(
        "--heldout",
        type=typed(Share),
        default=0.0,
        help="share of the scenes of train that are held out (0)",
    )
    make.add_argument("--seed", type=typed(Seed), default=0)
    make.add_argument("--limit", type=typed(Count), help="at most so many records")
    make.add_argument("--scenes", type=typed(Count), help="at most so many scenes")
    make.add_argument("--clips", type=typed(Count), default=8, help="at most this many clips of a scene (8)")
    make.add_argument("--questions", type=typed(Count), default=8, help="at most this many about a clip (8)")
    make.add_argument(
        "--marked",
        type=typed(NonNegativeInt),
        default=0,
        help="tries of questions about marked objects of a clip, of each family (0: none)",
    )
    make.add_argument(
        "--marks", choices=list(STYLES), default="numbers", help="how objects are marked (numbers)"
    )
    make.add_argument(
        "--frames", dest="num_frames", type=typed(FrameCount), default=8, help="frames of a clip (8)"
    )
    make.add_argument("--size", type=_size, metavar="WxH", help="of the frames, e.g. 448x252")
    make.add_argument(
        "--families",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="A,B",
        help="ask these only",
    )
    _add_exclude(make)


def _add_tabletop(make: argparse.ArgumentParser) -> None:
    make.set_defaults(work=_build_tabletop)
    make.add_argument("--source", choices=["tabletop"], required=True)
    make.add_argument("--split", choices=[split.name.lower() for split in Split], default="train")
    make.add_argument("--seed", type=typed(Seed), default=0)
    make.add_argument("--scenes", type=typed(Count), required=True, help="how many scenes to make")
    make.add_argument("--questions", type=typed(Count), default=1, help="about a scene (1)")
    make.add_argument("--difficulty", choices=[d.value for d in Difficulty], default="easy", help="(easy)")


def _add_recipe(make: argparse.ArgumentParser) -> None:
    make.set_defaults(work=_build_recipe)
    _add_ray(make)
    make.add_argument(
        "--split",
        choices=["train", HELDOUT],
        help="in place of the recipe's: its scenes but those held out, or these alone",
    )
    make.add_argument("--recipe", type=Path, required=True, help="the sources and what to take from each")
    make.add_argument(
        "--root",
        type=_named_root,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="in place of the recipe's",
    )
    _add_exclude(make)


def _add_exclude(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exclude", type=Path, action="append", default=[], help="file with scenes to leave out"
    )


def _add_readers(commands: Any) -> None:
    stats = commands.add_parser("stats", help="print counts and baselines as JSON; write README.md")
    stats.set_defaults(work=_stats)
    stats.add_argument("folder", type=Path)
    check = commands.add_parser(
        "check", help="read every row, score its truth, decode videos, look for leaks"
    )
    check.set_defaults(work=_check)
    check.add_argument("folder", type=Path)
    check.add_argument(
        "--videos", type=typed(NonNegativeInt), help="decode only so many clips, chosen at random"
    )
    check.add_argument(
        "--workers", type=typed(Count), help="rows and videos that are looked at at once (one on each core)"
    )
    _add_ray(check)
    _add_exclude(check)
    check.add_argument(
        "--model", default="", metavar="DIR", help="look for special tokens of this checkpoint's tokenizer"
    )
    show = commands.add_parser(
        "show", help="write an HTML page with frames, boxes, graphs, questions, answers"
    )
    show.set_defaults(work=_show)
    show.add_argument("folder", type=Path)
    show.add_argument("--n", type=typed(Count), default=12)
    show.add_argument("--out", type=Path, default=Path("sheet.html"))
    show.add_argument("--family", default="")
    show.add_argument("--marked", action="store_true", help="only records with marks")
    show.add_argument("--seed", type=typed(Seed), default=0)


def _add_exchange(commands: Any) -> None:
    export = commands.add_parser("export", help="write rows of Video-R1 and SpaceR")
    export.set_defaults(work=_export)
    export.add_argument("folder", type=Path)
    export.add_argument("--format", choices=[FORMAT], default=FORMAT)
    export.add_argument("--out", type=Path, required=True)
    export.add_argument(
        "--workers", type=typed(Count), help="clips that are written at once (one on each core)"
    )
    _add_ray(export)
    export.add_argument(
        "--marked", choices=["videos", "frames", "none"], default="videos",
        help="write clips with marks as videos or images of their own, or leave their records out (videos)",
    )  # fmt: skip
    read = commands.add_parser("import", help="read rows of Video-R1 and SpaceR, which have no graphs")
    read.set_defaults(work=_import)
    read.add_argument("file", type=Path)
    read.add_argument("--format", choices=[FORMAT], default=FORMAT)
    read.add_argument(
        "--root", type=Path, default=Path(), help="folder that relative paths of videos are below"
    )
    read.add_argument("--out", type=Path, required=True)
    read.add_argument("--frames", type=typed(Count), default=exchange.NUM_FRAMES, help="frames of a clip")
    read.add_argument(
        "--size", type=_size, metavar="WxH", help="of the frames, e.g. 448x252; the video's unless given"
    )
    read.add_argument("--unit", default="", help="of numbers that name none, e.g. m")


# ------------------------------------------------------------------------------------------------------- build


def _build_source(options: argparse.Namespace) -> int:
    width, height = options.size or (None, None)
    given = vars(options)
    asked = {name: given[name] for name in Settings.__struct_fields__ if name in given and name != "exclude"}
    exclude = tuple(map(str, options.exclude))
    return _build(options, [Settings(**asked, exclude=exclude, width=width, height=height)])


def _build_recipe(options: argparse.Namespace) -> int:
    exclude = tuple(map(str, options.exclude))
    recipe = read_recipe(options.recipe, dict(options.root))
    if options.split:
        recipe = [structs.replace(each, split=options.split) for each in recipe]
    return _build(options, [structs.replace(each, exclude=(*each.exclude, *exclude)) for each in recipe])


def _build(options: argparse.Namespace, recipe: Sequence[Settings]) -> int:
    began = time.monotonic()
    last = [began]

    def tell(progress: Progress, scenes: int) -> None:
        now = time.monotonic()
        if now - last[0] >= 5 or progress.scenes == scenes:
            last[0] = now
            records = sum(progress.by_source.values())
            left = (now - began) * (scenes - progress.scenes) / progress.scenes
            print(f"scene {progress.scenes}/{scenes}  {records} records  {duration(left)} left", flush=True)

    progress = build(options.out, recipe, options.workers, tell, _pool(options))
    stats = card.collect(options.out)
    card.write_card(options.out, stats, card.guessing(stats))
    print(
        f"{options.out}: {progress.records} records of {progress.scenes} scenes\nleft out:\n{skip_table(progress)}"
    )
    return 0


def _pool(options: argparse.Namespace) -> Pool:
    if not options.ray:
        return processes
    from actors.data_tasks import ray_tasks  # Ray is no part of the small installation

    return ray_tasks


def _build_tabletop(options: argparse.Namespace) -> int:
    count = tabletop.build(
        options.out,
        scenes=options.scenes,
        seed=options.seed,
        split=Split[options.split.upper()],
        difficulty=Difficulty(options.difficulty),
        questions=options.questions,
        workers=options.workers or os.cpu_count() or 1,
    )
    print(f"{options.out}: {count} records of {options.scenes} scenes")
    return 0


def _named_root(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: must be NAME=DIR, e.g. kitti={text}")
    return name, folder


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text}: must be WIDTHxHEIGHT in pixels, e.g. 448x252")
    return int(width), int(height)


# ---------------------------------------------------------------------------------------- stats, check, show, export


def _stats(options: argparse.Namespace) -> int:
    stats = card.collect(options.folder)
    guessed = card.guessing(stats)
    if stats.records:
        card.write_card(options.folder, stats, guessed)
    print(json.dumps(card.as_json(stats, guessed), indent=2))
    return 0


def _check(options: argparse.Namespace) -> int:
    tally = Tally()
    for problem in problems(
        options.folder, tally, lists=options.exclude, videos=options.videos, model=options.model,
        workers=options.workers, pool=_pool(options),
    ):  # fmt: skip
        tally.add(problem)
        print(problem)
    print(f"{options.folder}: {tally.rows} rows, {tally.bad} bad")
    return 1 if tally.bad else 0


def _show(options: argparse.Namespace) -> int:
    count = write_sheet(
        options.folder,
        options.out,
        count=options.n,
        family=options.family,
        marked=options.marked,
        seed=options.seed,
    )
    print(f"{options.out}: {count} records of {options.folder}")
    return 0


def _export(options: argparse.Namespace) -> int:
    total = 0

    def usable() -> Iterator[Record]:
        nonlocal total
        for record in usable_records(options.folder):
            total += 1
            yield record

    marked = None if options.marked == "none" else options.marked
    count = exchange.export_video_r1(
        usable(), options.out, options.folder, marked, options.workers, _pool(options)
    )
    print(f"{options.out}: {count} rows of {total} records")
    return 0


def _import(options: argparse.Namespace) -> int:
    if list(options.out.glob("records-*.parquet")):
        raise DataError(
            f"{options.out}: already holds a dataset", remedy="name another folder or delete this one"
        )
    rows = list(exchange.import_video_r1(options.file, num_frames=options.frames, unit=options.unit))
    records = [row for row in rows if isinstance(row, Record)]
    for row in rows:
        if isinstance(row, Failure):
            print(row.detail)
    if not records:
        raise DataError(
            f"{options.file}: none of its {len(rows)} rows can be used, nothing is written",
            remedy="correct the file",
        )
    root = options.root.resolve()
    placed = [_placed(record, root, options.size) for record in records]
    write_records(placed, options.out / "records-00000.parquet")
    print(f"{options.out}: {len(records)} records of {len(rows)} rows")
    if warning := _large_clips(placed):
        print(f"warning: {warning}")
    return 0


def _placed(record: Record, root: Path, size: tuple[int, int] | None) -> Record:
    """Return a record whose video has its whole path, and whose frames have this width and height, if any."""
    width, height = size or (None, None)
    video = str(root / record.clip.video)
    return replace(record, clip=replace(record.clip, video=video, width=width, height=height))


def _large_clips(records: Sequence[Record]) -> str:
    """Return what is said of large clips among some of the records, those left out whose video cannot be read."""
    by_video = {record.clip.video: record.clip for record in records}
    some = [list(by_video.values())[i] for i in range(0, len(by_video), max(1, len(by_video) // PROBED))]
    shapes = []
    for clip in some:
        with contextlib.suppress(VideoError):
            shape = probe(Path(clip.video))
            shapes.append((clip.num_frames, clip.height or shape.height, clip.width or shape.width, 3))
    large = [shape for shape in shapes if math.prod(shape) > LARGE_CLIP_BYTES]
    return large_clips(large, len(shapes)) if large else ""


if __name__ == "__main__":
    run_main(main)
