"""Our scoring next to the authors' own programs: the same questions and texts, the same figures.

Skipped unless `VIDEOSTR_OFFICIAL` names a folder of clones (bare or not, up to two levels down) of the repositories below, with
the commits below, and pandas can be imported, which two of their programs need. Models, video readers and plots are stand-ins;
the rest of their programs runs as it is.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from videostr.evaluate import sti_bench, v_star_figures, v_star_reading
from videostr.evaluate.benchmark import Benchmark, Question, QuestionSet
from videostr.evaluate.mmsi_video import LETTERS, MARKERS, MmsiVideo
from videostr.evaluate.revsi import ReVsi
from videostr.evaluate.sti_bench import StiBench
from videostr.evaluate.v_star import JUDGE_SYSTEM, JUDGE_TEMPLATE, VStar
from videostr.evaluate.v_star_reading import lexical_rating
from videostr.evaluate.vsi_bench import VsiBench
from videostr.evaluate.vsi_debiased import VsiDebiased

STI = "43ddebea5e386072cc9f95f4b3cdbe81fbc390a3"  # github.com/MINT-SJTU/STI-Bench
VSI = "51e089c3ae69b9435e9489058610f5b3964c56a8"  # github.com/vision-x-nyu/thinking-in-space
MMSI = "1f33d743a41605b6382e6a679660306256032098"  # github.com/rbler1234/MMSI-Video-Bench
LMMS_EVAL = "75571cfe0fa36ca5ec2e6aa2bb268f9d38295af3"  # github.com/EvolvingLMMs-Lab/lmms-eval, for ReVSI
V_STAR = "1894682b15be0a0c0c5ab24be6e8252743cd6c2f"  # github.com/V-STaR-Bench/V-STaR

FOLDER = os.environ.get("VIDEOSTR_OFFICIAL", "")
Texts = dict[str, str]

pytestmark = pytest.mark.skipif(
    not FOLDER, reason="VIDEOSTR_OFFICIAL names no folder of clones of the benchmarks' repositories"
)


def official(commit: str, file: str) -> str:
    """Text of a file of one of the repositories; skips the test where no clone has it."""
    folder = Path(FOLDER)
    for place in [*folder.glob("*"), *folder.glob("*/*")]:
        git = place / ".git" if (place / ".git").is_dir() else place
        if (git / "objects").is_dir():
            command = ["git", f"--git-dir={git}", "show", f"{commit}:{file}"]
            shown = subprocess.run(command, capture_output=True, text=True, check=False)
            if shown.returncode == 0:
                return shown.stdout
    pytest.skip(f"no clone below {folder} has {commit}:{file}")


@contextlib.contextmanager
def stand_ins(modules: Mapping[str, Any]) -> Iterator[None]:
    """`sys.modules` with these for a while; signal handlers as before afterwards."""
    before, handler = {name: sys.modules.get(name) for name in modules}, signal.getsignal(signal.SIGALRM)
    sys.modules.update(modules)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, handler)
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def run(path: Path, source: str, name: str = "official") -> tuple[dict[str, Any], str]:
    """Globals and standard output of a program, run where it lies; as a command with the name "__main__"."""
    path.write_text(source)
    printed = io.StringIO()
    with contextlib.chdir(path.parent), contextlib.redirect_stdout(printed):
        found = runpy.run_path(str(path), run_name=name)
    return found, printed.getvalue()


def ours(
    benchmark: Benchmark, known: QuestionSet, texts: Texts
) -> tuple[dict[str, float], list[Mapping[str, float]]]:
    """Figures, and scores question by question."""
    rows = [benchmark.score(question, texts[question.id], None).scores for question in known.questions]
    columns = {c: np.array([row.get(c, np.nan) for row in rows]) for c in benchmark.columns}
    figures = benchmark.figures(known.questions, columns, np.ones((1, len(rows))))
    return {name: float(value[0]) for name, value in figures.items()}, rows


def near(a: float, b: float) -> bool:
    """Equal but for the order of summation."""
    return a == pytest.approx(b, rel=1e-12, abs=1e-12)


# --------------------------------------------------------------------------------------------- STI-Bench

STI_TASKS = ("Spatial Relation", "Speed & Acceleration", "Pose Estimation")


def sti_root(root: Path, rng: random.Random, count: int) -> Path:
    names = ("000012.mp4", "scene0011_00.mp4", "segment-9_camera_front.mp4", "walk.mp4")
    scenes = (None, "outdoor", "indoor")
    rows = [
        {
            "Video": rng.choice(names),
            "Source": "ScanNet",
            "ID": n,
            "time_start": rng.choice((0.0, 2.5)),
            "time_end": float(rng.randrange(3, 30)),
            "Task": rng.choice(STI_TASKS),
            "Question": f"How far\nis object #{n}#?",
            "Candidates": {
                letter: None if letter == "E" and n % 7 == 0 else f"{rng.randrange(9)} m"
                for letter in "ABCDE"
            },
            "Answer": rng.choice("ABCD"),
            "Scene": rng.choice(scenes),
        }
        for n in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "qa.parquet")
    (root / "video").mkdir()
    for name in names:
        (root / "video" / name).touch()
    return root


STI_FRAGMENTS = (
    *(
        "A",
        "b",
        "C",
        "(D)",
        "(e)",
        "E.",
        "c)",
        "B) ",
        "Answer",
        ":",
        " = ",
        "Ans='C'",
        "Ans = ",
        "Option ",
        "option  d",
    ),
    *(
        "is correct",
        "was  correct",
        "isCorrect",
        "\n",
        " ",
        "the answer is",
        "a chair",
        "NONE",
        "é",
        ".",
        "12 m",
        "ſ",
    ),
)


def sti_texts(kind: str, rng: random.Random, known: QuestionSet) -> Texts:
    def text(question: Question) -> str:
        if kind == "random":
            return rng.choice("ABCDE")
        if kind == "perfect":
            return str(question.truth)
        return "".join(rng.choices(STI_FRAGMENTS, k=rng.randrange(1, 9))) + "x" * rng.randrange(2) or "?"

    texts = {question.id: text(question) for question in known.questions}
    return {key: said if said.strip() else "?" for key, said in texts.items()}


def run_sti(root: Path, texts: Texts, prompts: Texts) -> dict[str, Any]:
    """The official script with `texts` for the model's; fills `prompts`."""
    source = official(STI, "opensource_test.py").replace(".head(10)", "")
    for name, value in (
        ("PARQUET_FILE", root / "qa.parquet"),
        ("VIDEO_DIR", root / "video"),
        ("RESULTS_JSON", root / "out.json"),
    ):
        source = re.sub(rf"^{name}\s*=.*$", f"{name} = {str(value)!r}", source, flags=re.MULTILINE)
    (root / "out.json").unlink(missing_ok=True)
    current: list[str] = []

    def template(messages: Any, **_: Any) -> str:
        prompt = str(messages[0]["content"][1]["text"])
        match = re.search(r"#(\d+)#", prompt)
        assert match
        current[:] = [match.group(1)]
        prompts[match.group(1)] = prompt
        return prompt

    transformers, video, plots = MagicMock(), MagicMock(), MagicMock()
    processor = transformers.Qwen2_5_VLProcessor.from_pretrained.return_value
    processor.apply_chat_template.side_effect = template
    processor.batch_decode.side_effect = lambda *_, **__: [texts[current[0]]]
    video.VideoCapture.return_value.get.return_value = 30.0
    plots.subplots.return_value = (MagicMock(), MagicMock())
    vision = MagicMock()
    vision.process_vision_info.return_value = (None, None)
    modules = {
        "cv2": video,
        "torch": MagicMock(),
        "seaborn": MagicMock(),
        "transformers": transformers,
        "matplotlib": MagicMock(pyplot=plots),
        "matplotlib.pyplot": plots,
        "qwen_vl_utils": vision,
    }
    with stand_ins(modules):
        found, _ = run(root / "opensource_test.py", source)
    return found


@pytest.mark.parametrize("kind", ["random", "perfect", "adversarial"])
@pytest.mark.parametrize("seed", range(3))
def test_sti_bench(tmp_path: Path, kind: str, seed: int) -> None:
    pytest.importorskip("pandas")
    rng = random.Random(f"{kind} {seed}")
    benchmark = StiBench()
    known = benchmark.read(sti_root(tmp_path, rng, 300))
    assert known.questions[7].id == "7"  # ID is unique here
    texts = sti_texts(kind, rng, known)
    prompts: Texts = {}
    theirs = run_sti(tmp_path, texts, prompts)
    assert prompts == {q.id: benchmark.prompt(q, 10.0, (640, 480)) for q in known.questions}
    figures, rows = ours(benchmark, known, texts)
    assert [bool(row["accuracy"]) for row in rows] == theirs["df"]["correct"].tolist()
    assert near(figures["overall"] / 100, float(theirs["overall_acc"]))
    for name, series in (("task", theirs["task_acc"]), ("scene", theirs["scene_acc"])):
        assert {key for key in figures if key.startswith(f"{name}/")} == {
            f"{name}/{key}" for key in series.index
        }
        for key, value in series.items():
            assert near(figures[f"{name}/{key}"] / 100, float(value))


def test_sti_bench_fails_on_an_empty_text(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    benchmark = StiBench()
    known = benchmark.read(sti_root(tmp_path, random.Random(0), 5))
    texts = {question.id: " " for question in known.questions}
    with pytest.raises(IndexError):
        run_sti(tmp_path, texts, {})
    assert ours(benchmark, known, texts)[0]["overall"] == 0


def test_sti_bench_extraction() -> None:
    source = official(STI, "opensource_test.py")
    found: dict[str, Any] = {"re": re}
    exec(source[source.index("ANSWER_PATTERNS = [") : source.index("def scene_type")], found)
    rng = random.Random(0)
    for _ in range(20_000):
        text = "".join(rng.choices(STI_FRAGMENTS, k=rng.randrange(1, 9)))
        if text.strip():
            theirs = (found["extract_answer"](text) or text.strip())[-1]
            assert sti_bench.extract(text) == (theirs if theirs in "ABCDE" else ""), text


# --------------------------------------------------------------------------------------------- VSI-Bench


def vsi_root(root: Path, rng: random.Random, count: int, benchmark: VsiBench) -> Path:
    kinds = [kind for of_task in benchmark.tasks.values() for kind in of_task]
    with (root / "test.jsonl").open("w") as file:
        for n in range(count):
            kind = kinds[n % len(kinds)] if n < len(kinds) else rng.choice(kinds)
            options = [f"{letter}. the {n % 5} {letter}" for letter in "ABCD"[: rng.randrange(2, 5)]]
            truth = (
                rng.choice(options)[0]
                if kind not in benchmark.units
                else rng.choice((f"{rng.randrange(1, 9)}", f"{rng.uniform(0.1, 9):.2f}"))
            )
            row = {
                "id": n,
                "dataset": "scannet",
                "scene_name": f"scene{n:04d}_00",
                "scene_id": f"scene{n:04d}_00",
                "question_type": kind,
                "question": "Which?",
                "ground_truth": truth,
                "options": options if kind not in benchmark.units else None,
                "pruned": n >= len(kinds) and rng.random() < 0.5,
            }
            file.write(json.dumps(row) + "\n")
    return root


VSI_FRAGMENTS = (
    *(
        "A",
        "b",
        "C.",
        "(D)",
        "3",
        "4.5",
        "-2",
        "1e3",
        "nan",
        "inf",
        "1_0",
        "2.0.",
        "٣",
        " ",
        "\n",
        ".",
        "..",
        "meters",
        "m",
        "1e999",
        "\t",
    ),
)


def vsi_texts(kind: str, rng: random.Random, known: QuestionSet) -> Texts:
    def text(question: Question) -> str:
        if kind == "random":
            return rng.choice("ABCD") if question.options else f"{rng.uniform(0, 10):.1f}"
        if kind == "perfect":
            return str(question.truth)
        if kind == "empty":
            return ""
        return "".join(rng.choices(VSI_FRAGMENTS, k=rng.randrange(6)))

    return {question.id: text(question) for question in known.questions}


@pytest.mark.parametrize("kind", ["random", "perfect", "empty", "adversarial"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("benchmark", [VsiBench(), VsiDebiased()], ids=["all", "debiased"])
def test_vsi_bench(tmp_path: Path, kind: str, seed: int, benchmark: VsiBench) -> None:
    pytest.importorskip("pandas")
    rng = random.Random(f"{kind} {seed}")
    known = benchmark.read(vsi_root(tmp_path, rng, 600, benchmark))
    texts = vsi_texts(kind, rng, known)
    for name in ("utils.py", "vsibench.yaml"):
        (tmp_path / name).write_text(official(VSI, f"lmms_eval/tasks/vsibench/{name}"))
    with stand_ins({"loguru": MagicMock(), "datasets": MagicMock()}):
        theirs, _ = run(tmp_path / "utils.py", (tmp_path / "utils.py").read_text())
        docs = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
        if isinstance(benchmark, VsiDebiased):
            docs = [doc for doc in docs if not doc["pruned"]]
            assert len(docs) < 500
        for question, doc in zip(known.questions, docs, strict=True):
            asked = theirs["vsibench_doc_to_text"](doc, {})
            assert asked == benchmark.prompt(question, 10.0, (640, 480))
        results = [
            theirs["vsibench_process_results"](doc, [texts[q.id]])["vsibench_score"]
            for q, doc in zip(known.questions, docs, strict=True)
        ]
        totals = theirs["vsibench_aggregate_results"](results)
    figures, rows = ours(benchmark, known, texts)
    for row, result in zip(rows, results, strict=True):
        assert row.get("accuracy", row.get("mra")) == result.get("accuracy", result.get("MRA:.5:.95:.05"))
    compared = {"overall"} | {
        f"task/{key.rsplit('_', 1)[0]}" for key in totals if key.endswith(("_accuracy", "_MRA:.5:.95:.05"))
    }
    assert compared == {name for name in figures if name == "overall" or name.startswith("task/")}
    assert near(figures["overall"], totals["overall"])
    for key, value in totals.items():
        if key.endswith(("_accuracy", "_MRA:.5:.95:.05")):
            assert near(figures[f"task/{key.rsplit('_', 1)[0]}"], value), key


@pytest.mark.parametrize("kind", ["random", "perfect", "empty", "adversarial"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("left_out", [(), ("object_counting_single", "route_planning")])
def test_revsi(tmp_path: Path, kind: str, seed: int, left_out: tuple[str, ...]) -> None:
    pytest.importorskip("pandas")
    rng, benchmark = random.Random(f"{kind} {seed}"), ReVsi()
    vsi_root(tmp_path, rng, 600, benchmark)
    docs = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    docs = [doc for doc in docs if doc["question_type"] not in left_out]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    known = benchmark.read(tmp_path)
    texts = vsi_texts(kind, rng, known)
    template = official(LMMS_EVAL, "lmms_eval/tasks/revsi/_default_template_yaml")
    prompts = yaml.safe_load(template.replace("!function", ""))["lmms_eval_specific_kwargs"]["default"]
    names = ("lmms_eval", "lmms_eval.utils", "lmms_eval.tasks", "lmms_eval.tasks._task_utils")
    modules = ("lmms_eval.tasks._task_utils.default_template_yaml", "datasets", "huggingface_hub.constants")
    with stand_ins({name: MagicMock() for name in (*names, *modules)}):
        theirs, _ = run(tmp_path / "utils.py", official(LMMS_EVAL, "lmms_eval/tasks/revsi/utils.py"))
        for question, doc in zip(known.questions, docs, strict=True):
            assert theirs["revsi_doc_to_text"](doc, prompts) == benchmark.prompt(question, 10.0, (640, 480))
            with np.errstate(all="ignore"):
                theirs["revsi_process_results"](doc, [texts[question.id]])
        totals = theirs["_compute_all_subscores"](docs)
    figures, rows = ours(benchmark, known, texts)
    for row, doc in zip(rows, docs, strict=True):
        assert row.get("accuracy", row.get("mra")) == doc["acc"], doc
    assert {name for name in figures if name.startswith("task/")} == {
        f"task/{key.removesuffix('_acc')}" for key in totals if key != "overall_acc"
    }
    for key, value in totals.items():
        name = key.removesuffix("_acc")
        assert near(figures[name if name == "overall" else f"task/{name}"], 100 * value), key


# -------------------------------------------------------------------------------------------- MMSI-Video

MMSI_FRAGMENTS = (
    *(*"ABCDEFG", "b", "<answer>", "</answer>", "\\boxed{", "}", "no answer", *MARKERS, "The answer is"),
    *(" ", "\n", ",", ".", ":", '"', "'", "{", "(", ")", "and"),
)


def mmsi_items(rng: random.Random, count: int, kinds: list[str]) -> list[dict[str, Any]]:
    items = []
    for n in range(count):
        videos, images = rng.randrange(1, 3), rng.randrange(2)
        question = "<video>" * videos + f"Which {'<image>' * images}?\nOptions:\nA: left\nB: right\n"
        items.append(
            {
                "id": f"question_{n:04d}",
                "type": kinds[n % len(kinds)],
                "video_list": [
                    {"path": f"{n}_{i}.mp4", "start": 0.0, "end": 9.0, "base_fps": 2.0} for i in range(videos)
                ],
                "frames_list": [[f"{n}_{i}/{k}.jpg" for k in range(60)] for i in range(videos)],
                "ref_images": [f"{n}_{i}.jpg" for i in range(images)],
                "system_prompt": "Look.",
                "task_prompt": rng.choice(("", "Think of time.\n")),
                "user_prompt": question,
                "ori_question": question,
                "format_prompt": "\nAnswer with a letter.",
                "ground_truth": rng.choice(LETTERS),
            }
        )
    return items


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("kind", ["random", "perfect", "empty", "adversarial"])
@pytest.mark.parametrize("seed", range(3))
def test_mmsi_video(tmp_path: Path, kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, benchmark = random.Random(f"{kind} {seed}"), MmsiVideo()
    program = official(MMSI, "evaluation.py")
    kinds = ast.literal_eval(f"[{program.rpartition('ORDER_LIST = [')[2].partition(']')[0]}]")
    items = mmsi_items(rng, 400, kinds)
    (tmp_path / "mmsivideo.json").write_text(json.dumps(items))
    known = benchmark.read(tmp_path)
    says: dict[str, Callable[[Question], str]] = {
        "random": lambda _: rng.choice(LETTERS),
        "perfect": lambda q: str(q.truth),
        "empty": lambda _: "",
        "adversarial": lambda _: "".join(rng.choices(MMSI_FRAGMENTS, k=rng.randrange(7))),
    }
    texts = {question.id: says[kind](question) for question in known.questions}
    loader, _ = run(tmp_path / "dataset.py", official(MMSI, "dataset.py"))
    asked = loader["MMSILOADER"](data_root=str(tmp_path))
    (tmp_path / "said").mkdir()
    for place, question in enumerate(known.questions):
        shown = asked[place]
        prompt = benchmark.prompt(question, 9.0, (640, 480))
        assert prompt == shown["input_prompt"]
        assert bool(question.problem) == (len(shown["video_list"]) > 1 or bool(shown["ref_images"]))
        said = {**items[place], "response": texts[question.id]}
        (tmp_path / "said" / f"{question.id}.json").write_text(json.dumps(said))
    monkeypatch.setattr(sys, "argv", ["evaluation.py", "--eval_dir", "said"])
    theirs, printed = run(tmp_path / "evaluation.py", program, "__main__")
    for text in texts.values():
        read = theirs["extract_answer"](text)
        assert benchmark.score(known.questions[0], text, None).extracted == (
            read if read in set(LETTERS) else ""
        ), text
    figures, _ = ours(benchmark, known, texts)
    found = dict(re.findall(r"^(.+) :  (\S+) \d+$", printed, re.MULTILINE))
    assert {f"task/{name}" for name in found if name != "Overall"} == {
        name for name in figures if name.startswith("task/")
    }
    for name, value in found.items():
        assert near(figures["overall" if name == "Overall" else f"task/{name}"], 100 * float(value)), name


# ------------------------------------------------------------------------------------------------ V-STaR


def v_star_root(root: Path, rng: random.Random, count: int) -> Path:
    items = []
    for n in range(count):
        start = rng.randrange(20) + rng.choice((0.0, 0.4))
        span = [start, start + rng.randrange(2, 9)]
        items.append(
            {
                "vid": f"v{n}",
                "domain": rng.choice(("Sports", "Animals")),
                "fps": rng.choice((25, 29.97)),
                "width": 640,
                "height": 360,
                "frame_count": rng.choice((1000, 2500, 6000)),
                "chain": "",
                "object": "dog",
                "question": f"Who runs? #{n}/what#",
                "answer": rng.choice(("a brown dog", "the tall man in red")),
                "temporal_question": f"When is it? #{n}/when#",
                "timestamps": span,
                "spatial_question": f"Where is it? #{n}/where#",
                "spatial_question_2": f"Where does it run? #{n}/where_2#",
                "bboxes": [
                    {
                        "timestamp": second,
                        "frame_index": second * 25,
                        "xmin": (x := rng.randrange(300)),
                        "ymin": rng.uniform(0, 100),
                        "xmax": x + rng.randrange(1, 300),
                        "ymax": 200.0,
                    }
                    for second in range(int(span[0]) + 1, int(span[1]) + 1)
                ],
            }
        )
    (root / "V_STaR_test.json").write_text(json.dumps(items))
    return root


JSON_FRAGMENTS = (
    *(
        "[",
        "]",
        "{",
        "}",
        '"3":',
        '"4"',
        "'5':",
        ",",
        ", ",
        "[1,2,30,40]",
        "[[0,0,9,9]]",
        "```json\n",
        "\n```",
        "``` json",
        "\n",
        " ",
    ),
    *(
        "NaN",
        "1e400",
        "null",
        "true",
        "7",
        "-3.5",
        '"3": [0, 0, 300, 200]',
        "[3, [0,0,300,200]]",
        '{"3": [10, 10, 200, 200]}',
        "text",
    ),
)


def jumble(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return "".join(rng.choices(JSON_FRAGMENTS, k=rng.randrange(12)))
    boxes: dict[str, Any] = {
        str(rng.randrange(12)): [rng.choice((0, 10, 99.5, 300, "a", None)) for _ in range(4)]
        for _ in range(4)
    }
    whole: Any = rng.choice((boxes, [boxes, boxes], [[key, box] for key, box in boxes.items()]))
    text = json.dumps(whole, indent=rng.choice((None, 1)))
    text = rng.choice((text, f"Here:\n```json\n{text}\n```\ndone", text.replace('"', "'")))
    cut = rng.randrange(len(text))
    return rng.choice((text, text[:cut], text[cut:], text[:cut] + rng.choice(JSON_FRAGMENTS) + text[cut:]))


def v_star_texts(kind: str, rng: random.Random, known: QuestionSet) -> Texts:
    def noisy(question: Question) -> str:
        if question.task == "what":
            return rng.choice(("dog", "a brown dog", "the tall man", "nothing", "no rating", "", " "))
        if question.task in {"when", "when_2"}:
            start, end = question.truth
            return rng.choice(
                (
                    f"From {start} to {end + 1}",
                    f"{start}s to {end}s",
                    "3",
                    "1 2 3",
                    f"{end} to {start}",
                    "",
                    "00:03 - 00:09",
                    "-1 and 5",
                )
            )
        return rng.choice((jumble(rng), perfect(question), ""))

    def perfect(question: Question) -> str:
        if question.task == "what":
            return str(question.truth)
        if question.task in {"when", "when_2"}:
            return "{} to {}".format(*question.truth)
        return json.dumps({key: list(box) for key, box in question.truth.boxes})

    def almost(question: Question) -> str:
        return perfect(question) if rng.random() < 0.7 else "nothing"

    def empty(question: Question) -> str:
        return "x" if question.task == "what" else ""

    make: Callable[[Question], str] = {"random": noisy, "perfect": perfect, "almost": almost, "empty": empty}[
        kind
    ]
    return {question.id: make(question) for question in known.questions}


def rate(question: str, truth: str, answer: str) -> int | None:
    return None if answer == "no rating" else lexical_rating(question, truth, answer)


def infer(folder: Path, texts: Texts, prompts: Texts) -> list[dict[str, Any]]:
    """`inference_demo.py` with `texts` for the model's; fills `prompts`."""
    modules = {
        name: MagicMock() for name in ("cv2", "torch", "transformers", "qwen_vl_utils", "requests", "tqdm")
    }
    modules["tqdm"].tqdm.side_effect = lambda items, **_: items

    def model(video: str, prompt: Any) -> tuple[str, int, int]:
        told = (
            prompt
            if isinstance(prompt, str)
            else jinja2.Template("{{ c['text'] }}").render(c={"text": prompt})
        )
        match = re.search(r"#(\d+/\w+)#", told)
        assert match
        key = match.group(1) + ("_2" if "without knowing the time" in told else "")
        prompts[key] = told
        return texts[key], 364, 644

    with stand_ins(modules):
        demo, _ = run(folder / "inference_demo.py", official(V_STAR, "inference_demo.py"))
        demo["test_qwen2_5vl"].__globals__["inference"] = model
        with contextlib.redirect_stdout(io.StringIO()):
            demo["test_qwen2_5vl"](
                str(folder), str(folder / "V_STaR_test.json"), str(folder / "answers.json")
            )
    answers: list[dict[str, Any]] = json.loads((folder / "answers.json").read_text())
    return answers


def evaluate(folder: Path, answers: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """`eval.py` on these answers: items with scores, and what it prints."""
    path = folder / "results" / "qwen2_5" / "qwen2-5-32B_answer_update.json"
    path.parent.mkdir(parents=True)
    (folder / "metrics").mkdir()
    path.write_text(json.dumps(answers))
    start, middle, end = (
        re.escape(part) for part in re.split(r"\{question\}|\{truth\}", JUDGE_TEMPLATE.split("{answer}")[0])
    )
    tail = re.escape(JUDGE_TEMPLATE.split("{answer}")[1])
    said: list[str] = []

    def template(messages: list[dict[str, str]], **_: Any) -> str:
        assert messages[0]["content"] == JUDGE_SYSTEM
        match = re.fullmatch(f"{start}(.*){middle}(.*){end}(.*){tail}", messages[1]["content"], re.DOTALL)
        assert match
        rating = rate(*match.groups())
        said[:] = ["I cannot say" if rating is None else str(rating)]
        return ""

    transformers, bar = MagicMock(), MagicMock()
    tokenizer = transformers.AutoTokenizer.from_pretrained.return_value
    tokenizer.apply_chat_template.side_effect = template
    tokenizer.batch_decode.side_effect = lambda *_, **__: list(said)
    bar.tqdm.side_effect = lambda items, **_: items
    with stand_ins({"transformers": transformers, "tqdm": bar}):
        # All digits instead of four.
        _, printed = run(folder / "eval.py", official(V_STAR, "eval.py").replace(":.4f}", ":.17g}"))
    items: list[dict[str, Any]] = json.loads(
        (folder / "metrics" / "qwen2-5-32B_merged_v2_metrics.json").read_text()
    )
    return items, printed


NAMES = (
    # First word of a line of the output -> our figures, in its order, with what ours is divided by.
    ("VQA: Avg", (("what/rating", 1), ("what/rating_where_rated", 1), ("what/accuracy", 100))),
    ("AM1", (("chain_1/am", 100), ("chain_2/am", 100), ("m_am", 100))),
    ("LGM1", (("chain_1/lgm", 100), ("chain_2/lgm", 100), ("m_lgm", 100))),
    ("VQA & Temp:", (("chain_1/joint/what_when", 100), ("chain_2/joint/what_when", 100))),
    ("VQA & Spat:", (("chain_1/joint/what_where", 100), ("chain_2/joint/what_where", 100))),
    ("Temp & Spat:", (("chain_1/joint/when_where", 100), ("chain_2/joint/when_where", 100))),
    ("VQA & Temp & Spat:", (("chain_1/joint/all", 100), ("chain_2/joint/all", 100))),
)


def printed_figures(printed: str) -> dict[str, float]:
    """By our names; fractions as printed."""
    found: dict[str, float] = {}
    prefix, chain = "", ""
    for line in printed.splitlines():
        if match := re.fullmatch(r"(Overall Statistics|Video Length: (\w+)|Domain: (\w+)):", line):
            prefix = (
                f"duration/{match[2].lower()}/" if match[2] else f"domain/{match[3]}/" if match[3] else ""
            )
        elif match := re.fullmatch(r"Chain (\d):", line):
            chain = f"chain_{match[1]}"
        numbers = [float(number) for number in re.findall(r":\s*(nan|-?\d+(?:\.\d+)?(?:e-?\d+)?)", line)]
        names: tuple[str, ...] = ()
        if line.startswith("Temporal Answer"):
            names = (
                *(f"{chain}/when/r1@{recall}" for recall in v_star_figures.RECALLS),
                f"{chain}/when/m_tiou",
            )
        elif line.startswith("Spatial Answer"):
            names = (
                *(f"{chain}/where/ap@{overlap}" for overlap in v_star_figures.OVERLAPS),
                f"{chain}/where/m_viou",
            )
        else:
            names = next(
                (
                    tuple(n for n, _ in row)
                    for start, row in NAMES
                    if line.startswith(start) and "list" not in line
                ),
                (),
            )
        assert len(names) == len(numbers), (line, names, numbers)
        found |= {f"{prefix}{name}": number for name, number in zip(names, numbers, strict=True)}
    return found


@pytest.mark.parametrize("kind", ["random", "almost", "empty"])
@pytest.mark.parametrize("seed", range(4))
def test_v_star(tmp_path: Path, kind: str, seed: int) -> None:
    rng = random.Random(f"{kind} {seed}")
    benchmark = VStar(rate)
    known = benchmark.read(v_star_root(tmp_path, rng, 80))
    texts = v_star_texts(kind, rng, known)
    prompts: Texts = {}
    answers = infer(tmp_path, texts, prompts)
    assert prompts == {
        question.id: benchmark.prompt(question, 1.0, (644, 364)) for question in known.questions
    }
    items, printed = evaluate(tmp_path, answers)
    figures, rows = ours(benchmark, known, texts)
    scores = {question.id: row for question, row in zip(known.questions, rows, strict=True)}
    for index, item in enumerate(items):
        if texts[f"{index}/what"]:
            rating = item["VQA_score"]
            assert scores[f"{index}/what"]["rating"] == max(rating, 0) / 3
            assert scores[f"{index}/what"]["correct"] == (rating >= 2)
            for part, iou, miou, aps in (
                ("", "temporal_IoU", "spatial_mIoU", "AP1@0.1:0.9"),
                ("_2", "temporal_IoU_2", "spatial_mIoU_2", "AP2@0.1:0.9"),
            ):
                assert scores[f"{index}/when{part}"]["tiou"] == item[iou]
                assert scores[f"{index}/where{part}"]["viou"] == item[miou]
                assert [scores[f"{index}/where{part}"][f"ap@{o}"] for o in v_star_figures.OVERLAPS] == item[
                    aps
                ]
        else:
            assert "VQA_score" not in item
    theirs = printed_figures(printed)
    assert len(theirs) >= 29
    for name, value in theirs.items():
        is_rating = "rating" in name
        mine = figures[name] if is_rating else figures[name] / 100
        # Of a group without any rating theirs is 0.
        assert near(mine, value) or (is_rating and value == 0 and np.isnan(mine)), name


def test_v_star_fails_on_a_perfect_set(tmp_path: Path) -> None:
    benchmark = VStar(rate)
    known = benchmark.read(v_star_root(tmp_path, random.Random(0), 10))
    texts = v_star_texts("perfect", random.Random(0), known)
    answers = infer(tmp_path, texts, {})
    with pytest.raises(ValueError, match=r"math domain error|expected a positive input"):
        evaluate(tmp_path, answers)
    figures, _ = ours(benchmark, known, texts)
    assert figures["m_am"] == 100
    assert figures["m_lgm"] == pytest.approx(-100 * np.log(1e-9))


def test_v_star_fails_on_a_group_without_an_answer(tmp_path: Path) -> None:
    benchmark = VStar(rate)
    known = benchmark.read(v_star_root(tmp_path, random.Random(0), 10))
    texts = dict.fromkeys((question.id for question in known.questions), "")
    with pytest.raises((ZeroDivisionError, RuntimeWarning)):
        evaluate(tmp_path, infer(tmp_path, texts, {}))
    figures, _ = ours(benchmark, known, texts)
    assert figures["what/accuracy"] == figures["corrected/m_am"] == 0
    assert np.isnan(
        [figures["m_am"], figures["chain_1/when/m_tiou"], figures["domain/Sports/what/accuracy"]]
    ).all()


def test_v_star_skips_an_item_without_a_whole_second(tmp_path: Path) -> None:
    """The official program fails on it before it keeps any answer; we ask and count it."""
    benchmark = VStar(rate)
    root = v_star_root(tmp_path, random.Random(0), 2)
    items = json.loads((root / "V_STaR_test.json").read_text())
    items[0]["timestamps"] = [3.2, 3.8]
    (root / "V_STaR_test.json").write_text(json.dumps(items))
    known = benchmark.read(root)
    texts = v_star_texts("perfect", random.Random(0), known)
    answers = infer(tmp_path, texts, {})
    assert ["answer_vqa" in answer for answer in answers] == [False, True]
    assert ours(benchmark, known, texts)[0]["what/accuracy"] == 100


def test_v_star_extraction(tmp_path: Path) -> None:
    modules = {
        name: MagicMock() for name in ("cv2", "torch", "transformers", "qwen_vl_utils", "requests", "tqdm")
    }
    with stand_ins(modules):
        demo, _ = run(tmp_path / "inference_demo.py", official(V_STAR, "inference_demo.py"))
    source = official(V_STAR, "eval.py")
    metric: dict[str, Any] = {"np": np, "ast": __import__("ast")}
    exec(
        source[source.index("def calculate_temporal_iou") : source.index("# evaluate the json file")], metric
    )
    benchmark = VStar(rate)
    known = benchmark.read(v_star_root(tmp_path, random.Random(0), 20))
    tracks = [question for question in known.questions if question.task == "where"]
    spans = [question for question in known.questions if question.task == "when"]
    rng = random.Random(0)
    data = {"width": 640, "height": 360}
    failed = 0
    for _ in range(20_000):
        text, track = jumble(rng), rng.choice(tracks)
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = demo["extract_bounding_boxes"](text, data, 364, 644)
        assert repr(v_star_reading.boxes(text)) == repr(theirs), text
        truth = [
            {"timestamp": key, "xmin": box[0], "ymin": box[1], "xmax": box[2], "ymax": box[3]}
            for key, box in track.truth.boxes
        ]
        scores = benchmark.score(track, text, None).scores
        try:
            aps, mean = metric["calculate_spatial_metrics"](truth, theirs)
        except TypeError:  # a list of strings, one of which is a second
            assert isinstance(theirs, list)
            failed += 1
            aps, mean = [0.0] * 5, 0.0
        assert [scores["viou"], *(scores[f"ap@{o}"] for o in v_star_figures.OVERLAPS)] == [mean, *aps], text
    assert failed < 200
    for _ in range(20_000):
        text = "".join(
            rng.choices(
                ("3", "12.5", "s", " ", ".", "-", ":", "to", "٣", "7", "e5", "\n", "_"), k=rng.randrange(9)
            )
        )
        span = rng.choice(spans)
        theirs = demo["extract_timestamps"](text)
        expected = metric["calculate_temporal_iou"](span.truth, theirs) if theirs else 0.0
        assert benchmark.score(span, text, None).scores["tiou"] == expected, text
