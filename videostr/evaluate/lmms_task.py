"""`python -m videostr.evaluate.lmms_task`: a record dataset as a task of lmms-eval, so that it asks what is asked here.

    --root DIR --out DIR [--mode direct] [--max-tokens N] [--name videostr]

Written are NAME.yaml, utils.py, questions.jsonl and videos/: each video has the frames that a question shows and no others, each
until the next, in their size, marks drawn in, without loss. lmms-eval gives `exact_match`, answers that are right to the letter;
`python -m videostr.evaluate --predictions` reads the samples that it logs, and scores them by the rubric. The folder needs
nothing of this project and may be moved.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from rewards import Rubric
from videostr.chat import LIKELY, escape
from videostr.command import command, run_main, typed
from videostr.config.sections import Count
from videostr.data.marked_export import LOSSLESS, write_video
from videostr.data.tasks import in_order, once, processes
from videostr.errors import ConfigError
from videostr.evaluate.benchmark import ASKING, Mode
from videostr.evaluate.records import Records
from videostr.files import make_folder, replacing, write_text
from videostr.lock import FolderLock
from videostr.options import text_of
from videostr.types import AnswerKind, Clip
from videostr.video import decode, name_clip

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: questions.jsonl
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_messages: !function utils.messages
doc_to_text: prompt
doc_to_target: answer
process_results: !function utils.results
generation_kwargs:
  max_new_tokens: {max_tokens}
  temperature: 0
  do_sample: false
  until: []
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1
"""
UTILS = '''"""Where the video and the text of a question are, and which answers are right to the letter."""

import re
from pathlib import Path

ANSWER = re.compile(r"{answer}", re.DOTALL)


def visual(doc):
    return [str(Path(__file__).parent / doc["video"])]


def messages(doc, lmms_eval_specific_kwargs=None):
    content = [{{"type": "video", "url": visual(doc)[0]}}, {{"type": "text", "text": doc["prompt"]}}]
    return [{{"role": "user", "content": content}}]


def results(doc, results):
    said = ANSWER.search(results[0])
    right = [text.lower() for text in (doc["answer"], doc["option"]) if text]
    return {{"exact_match": float(said is not None and said[1].strip().lower() in right)}}
'''
MOST_FRAMES = 1024
"""Of a file, about; of longer ones every second, third, ... frame is written, at half, a third, ... of the rate."""
ANSWER = {True: "(.*)", False: "<answer>(.*?)</answer>"}
"""What of a text is the answer, by whether the mode is direct."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the folder; return the exit status, as in `videostr.command`."""
    parser = argparse.ArgumentParser(
        prog="python -m videostr.evaluate.lmms_task",
        description="Write a record dataset as a task of lmms-eval.",
        allow_abbrev=False,
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--mode", choices=[mode.value for mode in ASKING], default="direct", help="default direct"
    )
    parser.add_argument(
        "--max-tokens", type=typed(Count), help="of a completion; default 64 in mode direct, else 2048"
    )
    parser.add_argument("--name", default="videostr", help="of the task, default videostr")
    options = parser.parse_args(arguments)
    if not options.name.replace("_", "").isalnum():
        raise ConfigError(
            f"--name {options.name}: must be letters, digits and underscores", remedy="write it so"
        )
    make_folder(options.out)
    with FolderLock(options.out, "--out"):
        mode = Mode(options.mode)
        most = options.max_tokens or (64 if mode is Mode.DIRECT else 2048)
        count = write_task(options.root, options.out, mode, most, options.name)
    sys.stdout.write(f"{options.out}: task {options.name}, {count} questions\n")
    return 0


def write_task(root: Path, out: Path, mode: Mode, max_tokens: int, name: str) -> int:
    """Write the folder, and return the number of its questions.

    Args:
        root: folder of a record dataset.
        out: folder to write, which exists; videos that it has already are kept.
        mode: how the model is asked.
        max_tokens: most tokens of a completion.
        name: of the task.

    Raises:
        DataError: the dataset cannot be read.
        VideoError: a video cannot be read.
    """
    benchmark = Records(Rubric.preset("default"))
    questions = benchmark.read(root).questions
    make_folder(out / "videos")
    with (
        processes(None) as (number, submit),
        replacing(out / "questions.jsonl") as scratch,
        scratch.open("w", encoding="utf-8") as file,
    ):
        start = once(submit)
        clips = [name_clip(question.row["record"].clip, root) for question in questions]
        paths = [out / "videos" / f"{clip.digest}.mp4" for clip in clips]
        tasks = (
            ((question, path), start(clip.digest, _write, (clip, path)))
            for question, clip, path in zip(questions, clips, paths, strict=True)
        )
        for (question, path), _ in in_order(tasks, number):
            text = (
                benchmark.prompt(question, 0.0, (0, 0))
                if mode is Mode.DIRECT
                else benchmark.instruction(question, mode)
            )
            record = question.row["record"]
            is_choice = record.answer.kind is AnswerKind.CHOICE
            row = {
                "id": question.id,
                "family": question.task,
                "prompt": escape(text, LIKELY),
                "answer": question.truth,
                "option": text_of(record.options, question.truth) if is_choice else "",
                "video": str(path.relative_to(out)),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(out / f"{name}.yaml", TASK.format(name=name, max_tokens=max_tokens))
    write_text(out / "utils.py", UTILS.format(answer=ANSWER[mode is Mode.DIRECT]))
    return len(questions)


def _write(given: tuple[Clip, Path]) -> None:
    """Write the frames of a clip, unless they are there.

    The file has as many frames, at the same rate, as the part of the video from the first to the last that is shown, for rate and
    number make temporal positions. Each is the one of those shown that is nearest, however a program rounds.
    """
    clip, path = given
    if path.exists():
        return
    frames = decode(clip.spec)
    last = frames.indices[-1] - frames.indices[0]
    step = max(1, math.ceil(last / MOST_FRAMES))
    places = np.subtract(frames.indices, frames.indices[0]) / step
    order = np.abs(np.subtract.outer(np.arange(round(last / step) + 1), places)).argmin(axis=1)
    rate = Fraction(frames.fps / step).limit_denominator(1000)
    write_video(frames.pixels, order.tolist(), rate, path, LOSSLESS)


if __name__ == "__main__":
    run_main(main)
