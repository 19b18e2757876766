"""`python -m videostr.data build|stats|check|show|export|import`: make a dataset, describe, verify, see it, hand it on."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from omegaconf import OmegaConf

from rewards import number, score
from rewards.rubric import PRESETS
from videostr.console import run_command, run_main
from videostr.data import card, exchange
from videostr.data.build import Progress, Settings, build, skip_table
from videostr.data.check import large_clips, problems
from videostr.data.records import usable_records, write_records
from videostr.data.sheet import write_sheet
from videostr.data.sources import SOURCES
from videostr.errors import ConfigError, DataError, VideoError
from videostr.lock import FolderLock
from videostr.metrics import duration
from videostr.prompt import reference_trace
from videostr.tabletop import build as tabletop
from videostr.tabletop.build import Split
from videostr.tabletop.world import Difficulty
from videostr.types import Failure, Record
from videostr.video import LARGE_CLIP_BYTES, probe

FULL = 1 - 1e-6
PROBED = 32
"""Videos of an import, about so many, that are opened to know the size of their frames."""
WRITES_DATASET = {"build", "import"}
"""One at a time in a folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, 1 when `check` finds a problem or `import` no usable row, 2 on bad input."""
    options = _parser().parse_args(arguments)
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "build": _build, "stats": _stats, "check": _check, "show": _show, "export": _export, "import": _import,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:

        def work() -> int:
            if options.command in WRITES_DATASET:
                stack.enter_context(FolderLock(options.out, "--out"))
            return commands[options.command](options)

        return run_command(work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m videostr.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="write Parquet from annotated video, or from the tabletop world")
    make.add_argument("--source", choices=["tabletop", *SOURCES])
    make.add_argument("--recipe", type=Path, help="several sources, e.g. configs/data/stv.yaml")
    make.add_argument(
        "--root", action="append", default=[], help="folder of the source; NAME=DIR with a recipe"
    )
    make.add_argument("--out", type=Path, required=True)
    make.add_argument("--seed", type=int, help="0 unless given")
    make.add_argument("--split", help="train unless given")
    make.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    make.add_argument("--limit", type=int, help="at most so many records")
    make.add_argument("--scenes", type=int, help="at most so many scenes; of the tabletop world, how many")
    make.add_argument("--clips", type=int, help="at most this many clips of a scene (8)")
    make.add_argument(
        "--questions", type=int, help="at most this many about a clip (8) or a tabletop scene (1)"
    )
    make.add_argument("--frames", type=int, help="frames of a clip (8)")
    make.add_argument("--size", type=_size, metavar="WxH", help="of the frames, e.g. 448x252")
    make.add_argument(
        "--exclude", type=Path, action="append", default=[], help="file with scenes to leave out"
    )
    make.add_argument(
        "--families",
        type=lambda text: tuple(text.split(",")),
        metavar="A,B",
        help="ask these only",
    )
    make.add_argument(
        "--difficulty", choices=[d.value for d in Difficulty], help="of the tabletop; easy unless given"
    )
    stats = commands.add_parser(
        "stats", help="print counts and baselines as JSON; write README.md and stats.html"
    )
    stats.add_argument("folder", type=Path)
    check = commands.add_parser(
        "check", help="read every row, score its truth, decode videos, look for leaks"
    )
    check.add_argument("folder", type=Path)
    check.add_argument("--videos", type=int, help="decode only so many clips, chosen at random")
    check.add_argument(
        "--exclude", type=Path, action="append", default=[], help="scenes that must not be in it"
    )
    check.add_argument(
        "--model", default="", metavar="DIR", help="look for special tokens of this checkpoint's tokenizer"
    )
    show = commands.add_parser(
        "show", help="write an HTML page with frames, boxes, graphs, questions, answers"
    )
    show.add_argument("folder", type=Path)
    show.add_argument("--n", type=int, default=12)
    show.add_argument("--out", type=Path, default=Path("sheet.html"))
    show.add_argument("--family", default="")
    show.add_argument("--seed", type=int, default=0)
    export = commands.add_parser("export", help="write the rows of other trainers")
    export.add_argument("folder", type=Path)
    export.add_argument("--format", choices=list(EXPORTS), required=True)
    export.add_argument("--out", type=Path, required=True)
    take = commands.add_parser("import", help="read the rows of other trainers; the graph is theirs to lack")
    take.add_argument("file", type=Path)
    take.add_argument("--format", choices=list(IMPORTS), required=True)
    take.add_argument(
        "--root", type=Path, default=Path(), help="folder that relative paths of videos are below"
    )
    take.add_argument("--out", type=Path, required=True)
    take.add_argument("--frames", type=int, default=exchange.NUM_FRAMES, help="frames of a clip")
    take.add_argument(
        "--size", type=_size, metavar="WxH", help="of the frames, e.g. 448x252; the video's unless given"
    )
    take.add_argument("--unit", default="", help="of numbers that name none, e.g. m")
    return parser


# ------------------------------------------------------------------------------------------------------- build


def _build(options: argparse.Namespace) -> int:
    if options.workers < 1:
        raise ConfigError(f"--workers {options.workers}: must be at least 1")
    if options.source == "tabletop":
        return _build_tabletop(options)
    recipe = _recipe(options)
    began = time.monotonic()
    last = [began]

    def tell(progress: Progress, scenes: int) -> None:
        now = time.monotonic()
        if now - last[0] >= 5 or progress.scenes == scenes:
            last[0] = now
            records = sum(progress.by_source.values())
            left = (now - began) * (scenes - progress.scenes) / progress.scenes
            print(f"scene {progress.scenes}/{scenes}  {records} records  {duration(left)} left", flush=True)

    progress = build(options.out, recipe, options.workers, tell)
    stats = card.collect(options.out)
    card.write_card(options.out, stats, card.guessing(stats, _judge_number))
    print(
        f"{options.out}: {progress.records} records of {progress.scenes} scenes\nleft out:\n{skip_table(progress)}"
    )
    return 0


def _build_tabletop(options: argparse.Namespace) -> int:
    splits = [split.name.lower() for split in Split]
    seed, split = options.seed or 0, options.split or "train"
    questions = 1 if options.questions is None else options.questions
    if options.scenes is None:
        raise ConfigError("--source tabletop needs --scenes N: how many scenes to make")
    for name, value, least in (("scenes", options.scenes, 1), ("questions", questions, 1), ("seed", seed, 0)):
        if value < least:
            raise ConfigError(f"--{name} {value}: must be at least {least}")
    if split not in splits:
        raise ConfigError(f"--split {split}: the tabletop world has {', '.join(splits)}")
    for name in ("families", "frames", "limit", "clips", "size", "exclude", "root"):
        if getattr(options, name):
            raise ConfigError(
                f"--{name}: is not for the tabletop world, which makes its own scenes; leave it out"
            )
    count = tabletop.build(
        options.out,
        scenes=options.scenes,
        seed=seed,
        split=Split[split.upper()],
        difficulty=Difficulty(options.difficulty or "easy"),
        questions=questions,
        workers=options.workers,
    )
    print(f"{options.out}: {count} records of {options.scenes} scenes")
    return 0


def _recipe(options: argparse.Namespace) -> list[Settings]:
    if (options.source is None) == (options.recipe is None):
        raise ConfigError("build needs either --source NAME --root DIR or --recipe FILE")
    exclude = tuple(str(path) for path in options.exclude)
    if options.recipe is not None:
        for name in (*OF_A_SOURCE, "size", "difficulty"):
            if getattr(options, name) is not None:
                raise ConfigError(
                    f"--{name}: cannot go with --recipe; what is asked of each source stands in {options.recipe}"
                )
        recipe = read_recipe(options.recipe, dict(_named_root(text) for text in options.root))
        return [dataclasses.replace(each, exclude=(*each.exclude, *exclude)) for each in recipe]
    if options.difficulty is not None:
        raise ConfigError("--difficulty: is of the tabletop world only; leave it out")
    if len(options.root) != 1:
        raise ConfigError(f"--source {options.source} needs one --root DIR: where the source lies")
    width, height = options.size or (None, None)
    given = {key: getattr(options, name) for name, key in OF_A_SOURCE.items()}
    return [
        Settings(
            source=options.source,
            root=options.root[0],
            exclude=exclude,
            height=height,
            width=width,
            **{key: value for key, value in given.items() if value is not None},
        )
    ]


OF_A_SOURCE = {
    "split": "split",
    "seed": "seed",
    "limit": "limit",
    "scenes": "scenes",
    "clips": "clips",
    "questions": "questions",
    "frames": "num_frames",
    "families": "families",
}
"""Arguments of one source, by their names in `Settings`, which has defaults for them."""


def read_recipe(path: Path, roots: dict[str, str]) -> list[Settings]:
    """The sources of a recipe; `roots` by name of the source take the place of those in the file.

    Raises:
        ConfigError: the file is no recipe, or `roots` has a name that none of its sources has.
    """
    try:
        rows: Any = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # PyYAML, OmegaConf and the decoding of text share no base class
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    try:
        sources = rows["sources"]
        unknown = {str(key) for row in sources for key in row} - {
            f.name for f in dataclasses.fields(Settings)
        }
        recipe = msgspec.convert(sources, list[Settings])
    except (KeyError, TypeError):
        raise ConfigError(f"{path}: must have a list `sources`, each with source and root") from None
    except (msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(f"{path}: sources: {error}") from None
    if unknown:
        raise ConfigError(
            f"{path}: sources: {sorted(unknown)[0]} is no key of a source; see Settings in videostr/data/build.py"
        )
    if strangers := sorted(roots.keys() - {each.source for each in recipe}):
        raise ConfigError(
            f"--root {strangers[0]}={roots[strangers[0]]}: {path} has no source {strangers[0]!r}; it has "
            f"{', '.join(sorted({each.source for each in recipe}))}"
        )
    return [dataclasses.replace(each, root=roots.get(each.source, each.root)) for each in recipe]


def _named_root(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not equals:
        raise ConfigError(f"--root {text}: with a recipe it must be NAME=DIR, e.g. kitti={text}")
    return name, folder


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


# ---------------------------------------------------------------------------------------- stats, check, show, export


def _stats(options: argparse.Namespace) -> int:
    stats = card.collect(options.folder)
    guessed = card.guessing(stats, _judge_number)
    if stats.records:
        card.write_card(options.folder, stats, guessed)
    print(json.dumps(card.as_json(stats, guessed), indent=2))
    return 0


def _judge_number(text: str, record: Record) -> float:
    return number.reward(text, record)[0]


def _check(options: argparse.Namespace) -> int:
    bad = total = 0
    for found in problems(
        options.folder,
        judge=_judge_truth,
        lists=options.exclude,
        videos=options.videos,
        processor=_processor(options.model),
    ):
        if isinstance(found, int):
            total = found
        else:
            bad += found.rows
            print(found.detail)
    print(f"{options.folder}: {total} rows, {bad} bad")
    return 1 if bad else 0


def _processor(model: str) -> Any:
    if not model:
        return None
    from videostr.models.processor import load_processor  # its import takes seconds

    return load_processor(model)


def _judge_truth(record: Record) -> str:
    """Why a record's truth does not earn everything, under every rubric."""
    trace = reference_trace(record)
    for name, rubric in PRESETS.items():
        earned = score(trace, record, dataclasses.replace(rubric, length="none"))
        low = {part: value for part, value in earned.parts.items() if part in PARTS and value < FULL}
        if low:
            return f"{name}: {low}; {'; '.join(earned.notes)}"
    return ""


PARTS = {"format", "answer", "graph", "graph_node", "graph_edge"}


def _show(options: argparse.Namespace) -> int:
    count = write_sheet(
        options.folder, options.out, count=options.n, family=options.family, seed=options.seed
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

    count = EXPORTS[options.format](usable(), options.out, options.folder)
    print(f"{options.out}: {count} rows of {total} records")
    return 0


def _import(options: argparse.Namespace) -> int:
    if list(options.out.glob("records-*.parquet")):
        raise DataError(f"{options.out}: already holds a dataset; name another folder or delete this one")
    root = options.root.resolve()
    rows = list(IMPORTS[options.format](options.file, num_frames=options.frames, unit=options.unit))
    records = [row for row in rows if isinstance(row, Record)]
    for row in rows:
        if isinstance(row, Failure):
            print(row.detail)
    width, height = options.size or (None, None)
    placed = [
        dataclasses.replace(
            r, clip=dataclasses.replace(r.clip, video=str(root / r.clip.video), width=width, height=height)
        )
        for r in records
    ]
    if not placed:
        print(f"{options.out}: nothing is written: none of {len(rows)} rows of {options.file} can be used")
        return 1
    write_records(placed, options.out / "records-00000.parquet")
    print(f"{options.out}: {len(records)} records of {len(rows)} rows")
    if warning := _large_clips(placed):
        print(f"warning: {warning}")
    return 0


def _large_clips(records: Sequence[Record]) -> str:
    """What is said of large clips among some of the records, those left out whose video cannot be read."""
    by_video = {record.clip.video: record.clip for record in records}
    some = [list(by_video.values())[i] for i in range(0, len(by_video), max(1, len(by_video) // PROBED))]
    shapes = []
    for clip in some:
        with contextlib.suppress(VideoError):
            shape = probe(Path(clip.video))
            shapes.append((clip.num_frames, clip.height or shape.height, clip.width or shape.width, 3))
    large = [shape for shape in shapes if math.prod(shape) > LARGE_CLIP_BYTES]
    return large_clips(large, len(shapes)) if large else ""


IMPORTS: dict[str, Callable[..., Iterator[Record | Failure]]] = {
    "video-r1": exchange.import_video_r1,
    "easyr1": exchange.import_easyr1,
}
EXPORTS: dict[str, Callable[..., int]] = {
    "video-r1": exchange.export_video_r1,
    "easyr1": exchange.export_easyr1,
    "trl": exchange.export_trl,
}

if __name__ == "__main__":
    run_main(main)
