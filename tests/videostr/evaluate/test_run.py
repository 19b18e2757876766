"""From questions to rows: what is asked, what is asked once, what is logged of what could not be asked.

The engines are a stand-in here; tests/test_evaluate.py runs the whole command with a real one.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoProcessor

from rewards import Rubric
from videostr.config.schema import (
    BenchmarkConfig,
    EvaluationConfig,
    EvaluationModel,
    EvaluationSampling,
    EvaluationStatistics,
)
from videostr.data.records import write_records
from videostr.digests import folder_digest
from videostr.errors import DataError, PromptError, StorageError
from videostr.evaluate.answers import Answer, Answers
from videostr.evaluate.benchmark import Mode, Question
from videostr.evaluate.records import Records
from videostr.evaluate.rows import baselines, counts, scores_of, tally, write_rows
from videostr.evaluate.run import (
    Asker,
    PreparedQuestion,
    SkippedQuestion,
    ask_new,
    frame_order,
    limited,
    log_skipped,
)
from videostr.groups import Sampled
from videostr.ports import SampleRequest
from videostr.prompt import instruction, reference_trace
from videostr.tabletop.build import Split, build
from videostr.tabletop.world import Difficulty
from videostr.types import Completion, Failure, FailureKind, FinishReason, VersionSpan
from videostr.video import FrameStore

POLICY = "videostr/tabletop/pretrained"
SCENES = 12


@dataclass
class Pool:
    """Writes the true trace, or what `say` has for the record."""

    truths: dict[str, str]
    say: dict[str, str] = field(default_factory=dict)
    refuse: set[str] = field(default_factory=set)
    stop_after: int = 10**9
    asked: list[SampleRequest] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    async def sample(self, request: SampleRequest) -> Sampled | Failure:
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(request)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        name = request.prompt.record_id
        if name in self.refuse:
            return Failure(kind=FailureKind.PROMPT_TOO_LONG, record_id=name, detail="9 prompt tokens")
        completion = Completion(
            text=self.say.get(name, self.truths[name]),
            token_ids=np.arange(5, dtype=np.int32),
            logprobs=np.zeros(5, dtype=np.float32),
            finish_reason=FinishReason.STOP,
            weight_versions=(VersionSpan(version=0, start=0, end=5),),
        )
        return Sampled(prompt_token_ids=np.arange(3, dtype=np.int32), completions=(completion,))


@dataclass
class World:
    """A tabletop dataset, asked of a policy."""

    asker: Asker
    questions: tuple[Question, ...]
    pool: Pool
    answers: Answers


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("heldout")
    build(
        root, scenes=SCENES, seed=3, split=Split.HELDOUT, difficulty=Difficulty.EASY, questions=1, workers=1
    )
    return root


@pytest.fixture
def world(dataset: Path, tmp_path: Path) -> Iterator[World]:
    config = EvaluationConfig(
        model=EvaluationModel(path=POLICY, dtype="float32"),
        benchmark=BenchmarkConfig(root=str(dataset)),
        sampling=EvaluationSampling(max_tokens=160),
        evaluate=EvaluationStatistics(bootstrap=50),
    )
    benchmark = Records(Rubric.preset("default"))
    questions = benchmark.read(dataset).questions
    asker = Asker(config, benchmark, AutoProcessor.from_pretrained(POLICY), "digest")
    pool = Pool(truths={q.id: reference_trace(q.row["record"]) for q in questions})
    with Answers(tmp_path / "answers.sqlite") as answers:
        yield World(asker=asker, questions=questions, pool=pool, answers=answers)


def prepare(world: World, mode: Mode) -> list[PreparedQuestion | SkippedQuestion]:
    return [world.asker.prepare(question, mode) for question in world.questions]


def answered(
    world: World, items: list[PreparedQuestion | SkippedQuestion], at_once: int = 4
) -> dict[str, Failure]:
    asked = [item for item in items if isinstance(item, PreparedQuestion)]
    return asyncio.run(ask_new(asked, world.pool, world.answers, at_once))


def test_true_traces_earn_all_and_rows_say_what_determined_them(world: World, tmp_path: Path) -> None:
    items = prepare(world, Mode.GRAPH)
    rows = tally(items, world.answers, answered(world, items), world.asker)
    scored = scores_of([r.scores for r in rows], Records.columns)
    assert {name: set(values[~np.isnan(values)]) for name, values in scored.items()} == {
        name: {1.0} for name in Records.columns
    }
    assert world.pool.most == 4
    write_rows(rows, tmp_path / "questions.parquet")
    table = pq.read_table(tmp_path / "questions.parquet").to_pylist()
    assert len(table) == SCENES
    first, record = table[0], world.questions[0].row["record"]
    assert first["id"] == record.id
    assert first["text"] == reference_trace(record)
    assert first["score/graph_node"] == 1.0
    assert instruction(record) in first["prompt"]
    assert first["model_digest"] == "digest"
    assert first["frames"] == len(first["times"]) == record.clip.num_frames
    assert first["width"] > 0
    assert first["key"] == items[0].key  # type: ignore[union-attr]  # every one could be asked


def test_answers_that_come_together_are_written_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other they would wait for the disk as often as there are answers; none is lost if it is full."""
    batches: list[int] = []
    put = world.answers.put

    def slow(answers: Mapping[str, Answer]) -> None:
        batches.append(len(answers))
        time.sleep(0.05)  # the disk
        put(answers)

    monkeypatch.setattr(world.answers, "put", slow)
    items = prepare(world, Mode.GRAPH)
    answered(world, items, at_once=SCENES)
    assert sum(batches) == len(world.answers) == SCENES
    assert len(batches) < SCENES / 2

    def full(answers: Mapping[str, Answer]) -> None:
        raise StorageError("disk full")

    monkeypatch.setattr(world.answers, "put", full)
    with pytest.raises(StorageError, match="disk full"):
        answered(world, prepare(world, Mode.THINK))
    assert len(world.answers) == SCENES


def test_modes_ask_differently_and_score_what_they_asked_for(world: World) -> None:
    direct, think, graph = (prepare(world, mode)[0] for mode in (Mode.DIRECT, Mode.THINK, Mode.GRAPH))
    assert isinstance(direct, PreparedQuestion)
    assert isinstance(think, PreparedQuestion)
    assert isinstance(graph, PreparedQuestion)
    assert "<think>" not in direct.request.prompt.text
    assert "<think>" in think.request.prompt.text
    assert "<graph>" not in think.request.prompt.text
    assert "<graph>" in graph.request.prompt.text
    assert len({direct.key, think.key, graph.key}) == 3
    assert (direct.request.max_tokens, think.request.max_tokens) == (64, 160)

    record = world.questions[0].row["record"]
    truth = reference_trace(record).split("<answer>")[1].split("</answer>")[0]
    world.pool.truths = {q.id: f"<think></think><answer>{truth}</answer>" for q in world.questions}
    refused = answered(world, [think, graph])
    (thought,) = tally([think], world.answers, refused, world.asker)
    (drawn,) = tally([graph], world.answers, refused, world.asker)
    assert thought.scores == {"answer": 1.0, "format": 1.0}
    assert drawn.scores["graph"] == 0.0
    assert drawn.extracted == truth
    assert "graph" in drawn.problem


@pytest.mark.parametrize("prompt", [Mode.DIRECT, Mode.GRAPH])
def test_controls_ask_the_same_and_show_less(world: World, prompt: Mode, tmp_path: Path) -> None:
    world.asker.config.benchmark.control_prompt = prompt.value  # type: ignore[assignment]  # one of its literals
    whole, blind, single, shuffled = (
        [item for item in prepare(world, mode) if isinstance(item, PreparedQuestion)]
        for mode in (prompt, Mode.BLIND, Mode.SINGLE_FRAME, Mode.SHUFFLED)
    )
    assert len(whole) == len(blind) == len(single) == len(shuffled) == SCENES
    assert len({item.key for part in (whole, single, shuffled) for item in part}) == 3 * SCENES
    unseen = {item.request.prompt.text for item in blind}  # not seeing the video, some questions are the same
    assert len({item.key for item in blind}) == len(unseen) <= SCENES
    placeholder = "<|vision_start|><|video_pad|><|vision_end|>"
    store, moved = FrameStore(tmp_path / "frames"), 0
    for seen, dark, one, mixed in zip(whole, blind, single, shuffled, strict=True):
        assert one.request.prompt.text == mixed.request.prompt.text == seen.request.prompt.text
        assert dark.request.prompt.text == seen.request.prompt.text.replace(placeholder, "")
        assert (dark.request.prompt.is_blind, seen.request.prompt.is_blind) == (True, False)
        assert {item.request.max_tokens for item in (seen, dark, one, mixed)} == {seen.request.max_tokens}
        assert (dark.times, len(one.times), mixed.times) == ((), 1, seen.times)
        there, here = (store.frames(item.request.prompt.clip).pixels for item in (seen, mixed))
        moved += not np.array_equal(there, here)
        assert sorted(frame.tobytes() for frame in there) == sorted(frame.tobytes() for frame in here)
        alone = store.frames(one.request.prompt.clip)
        assert np.array_equal(alone.pixels, there[[(len(there) - 1) // 2] * 2])
        assert abs(alone.times[0] - one.times[0]) < 0.2
    assert moved > 0  # in some scenes nothing does
    world.asker.config.run.seed = 1
    again = [item for item in prepare(world, Mode.SHUFFLED) if isinstance(item, PreparedQuestion)]
    assert [a.request.prompt.clip.digest for a in again] != [b.request.prompt.clip.digest for b in shuffled]
    world.pool.truths = dict.fromkeys(world.pool.truths, world.pool.truths[world.questions[0].id])
    rows = tally(blind[:1], world.answers, answered(world, list(blind)), world.asker)
    assert len(world.pool.asked) == len(unseen)
    assert {row.mode for row in rows} == {"blind"}
    assert all(row.frames == 0 and row.answered for row in rows)
    # the answers are read as the prompt's are: all of a text, or the content of its answer block
    trace = world.pool.truths[world.questions[0].id]
    content = trace.split("<answer>")[1].removesuffix("</answer>")
    assert rows[0].extracted == (content if prompt is Mode.GRAPH else trace)
    assert ("graph" in rows[0].scores) == (prompt is Mode.GRAPH)


def test_questions_on_the_same_frames_see_one_order(world: World) -> None:
    spec = world.questions[0].row["record"].clip
    first, second = (frame_order(Mode.SHUFFLED, world.questions[i], spec, 0) for i in (0, 1))
    assert frame_order(Mode.SHUFFLED, replace(world.questions[0], id="other"), spec, 0) == first
    assert first != second
    for count in (2, 3):  # so few that a draw is often the true order
        orders = {
            frame_order(Mode.SHUFFLED, world.questions[0], replace(spec, num_frames=count), seed)
            for seed in range(30)
        }
        assert len(orders) == (1 if count == 2 else 5)  # 2! - 1, 3! - 1
    assert frame_order(Mode.SHUFFLED, world.questions[0], replace(spec, num_frames=1), 0) == ()


def test_a_direct_answer_is_what_follows_the_thinking_that_the_template_opened(world: World) -> None:
    """The texts of a model that always reasons begin with the tag that the template wrote."""
    world.asker.processor.chat_template = world.asker.processor.chat_template.replace(
        "assistant\n", "assistant\n<think>\n"
    )
    truths = {question.id: question.truth for question in world.questions}
    world.pool.say = {name: f"<think>\nA, or 3?\n</think>\n\n{truth}" for name, truth in truths.items()}
    cut_off = world.questions[0].id
    world.pool.say[cut_off] = f"<think>\n{truths[cut_off]}"
    items = prepare(world, Mode.DIRECT)
    assert all(item.request.prompt.text.endswith("<think>\n") for item in items)  # type: ignore[union-attr]
    rows = tally(items, world.answers, answered(world, items), world.asker)
    assert {row.id: row.scores["answer"] for row in rows} == {name: float(name != cut_off) for name in truths}
    assert all(row.text.startswith("<think>\n") for row in rows)


def test_nothing_is_asked_twice(world: World) -> None:
    items = prepare(world, Mode.GRAPH)
    answered(world, [*items, *items])
    assert len(world.pool.asked) == SCENES
    answered(world, items)
    assert len(world.pool.asked) == SCENES
    world.asker.config.sampling.max_tokens = 100  # other settings: other answers
    answered(world, prepare(world, Mode.GRAPH))
    assert len(world.pool.asked) == 2 * SCENES


def test_questions_about_one_clip_follow_each_other(world: World) -> None:
    """Two modes and a control show the same clips; the control shows others, of the same frames."""
    modes = (Mode.DIRECT, Mode.GRAPH, Mode.SHUFFLED)
    items = [item for mode in modes for item in prepare(world, mode)]
    answered(world, items, at_once=1)
    clips = [request.prompt.clip.digest for request in world.pool.asked]
    assert len(clips) == 3 * SCENES
    assert len([a for a, b in pairwise(clips) if a != b]) + 1 == len(set(clips)) == 2 * SCENES


def test_what_was_stopped_goes_on_with_the_same_result(world: World) -> None:
    items = prepare(world, Mode.GRAPH)
    world.pool.say = {world.questions[2].id: "<think></think><answer>no</answer>"}
    world.pool.stop_after = 5
    with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)):
        answered(world, items, at_once=1)
    assert len(world.answers) == 5
    world.pool.stop_after = 10**9
    refused = answered(world, items, at_once=1)
    assert len(world.pool.asked) == SCENES
    assert len({request.prompt.record_id for request in world.pool.asked}) == SCENES
    rows = tally(items, world.answers, refused, world.asker)
    assert [row.scores["answer"] for row in rows] == [float(i != 2) for i in range(SCENES)]


def test_missing_videos_and_refused_questions_count_as_wrong_and_are_reported(
    world: World, dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost = dataset / world.questions[1].video
    kept = lost.read_bytes()
    lost.unlink()
    try:
        world.pool.refuse = {world.questions[3].id}
        items = prepare(world, Mode.GRAPH)
        rows = tally(items, world.answers, answered(world, items), world.asker)
    finally:
        lost.write_bytes(kept)
    assert counts(rows) == {
        "questions": SCENES,
        "answered": SCENES - 2,
        "failed_engine": 1,
        "failed_video": 1,
    }
    assert "the video is missing" in rows[1].problem
    log_skipped(items)
    assert f"1 of {SCENES} cannot be asked, which count as wrong: {lost}: the video is missing" in caplog.text
    assert "leaves no room" in rows[3].problem
    assert rows[1].scores["answer"] == rows[3].scores["answer"] == 0.0


def test_a_truncated_video_is_reported(world: World, dataset: Path) -> None:
    path = dataset / world.questions[4].video
    kept = path.read_bytes()
    path.write_bytes(kept[:50])
    try:
        item = world.asker.prepare(world.questions[4], Mode.GRAPH)
    finally:
        path.write_bytes(kept)
    assert isinstance(item, SkippedQuestion)
    assert "truncated" in item.problem


def test_a_list_whose_first_image_is_missing_counts_as_wrong_and_is_reported(
    world: World, dataset: Path
) -> None:
    (dataset / "v.frames.json").write_text('{"root": ".", "fps": 1.0, "frames": [[0.0, "none.png"]]}')
    record = world.questions[0].row["record"]
    listed = replace(record, clip=replace(record.clip, video="v.frames.json"))
    question = replace(world.questions[0], video="v.frames.json", row={"record": listed})
    items = [world.asker.prepare(question, Mode.GRAPH)]
    (row,) = rows = tally(items, world.answers, answered(world, items), world.asker)
    assert counts(rows) == {"questions": 1, "answered": 0, "failed_video": 1}
    assert "none.png" in row.problem
    assert row.scores["answer"] == 0.0


def test_frames_of_other_benchmarks_follow_the_config(world: World) -> None:
    """At most 40 x 40 px, and sides that are multiples of a merged patch."""
    video = world.questions[0].video
    question = Question(
        id="x", video=video, task="t", text="Which?", options=("a", "b"), truth="A", start_s=0.5, end_s=1.5
    )
    world.asker.config.benchmark = BenchmarkConfig(max_frames=7, max_pixels=1600)
    world.asker.benchmark = Plain()  # type: ignore[assignment]  # only what prompts need
    item = world.asker.prepare(question, Mode.GRAPH)
    assert isinstance(item, PreparedQuestion)
    factor = (
        world.asker.processor.video_processor.patch_size * world.asker.processor.video_processor.merge_size
    )
    assert all(side % factor == 0 for side in item.size)
    assert item.size[0] * item.size[1] <= 1600
    assert len(item.times) == 6  # in pairs
    assert (item.times[0], item.times[-1]) == (0.5, 1.5)
    assert "From 0.5 s to 1.5 s: Which?\nA) a\nB) b" in item.request.prompt.text
    assert "Times: 0.5, 0.9, 1.1, 1.5 s." in item.request.prompt.text
    assert (
        '"id":"lamp.1","pos":[4,7,1]' in item.request.prompt.text
    )  # as many coordinates as the frame of reference has
    assert "Then write the letter inside <answer></answer>." in item.request.prompt.text
    world.asker.config.benchmark = BenchmarkConfig(max_frames=32, fps=4.0, max_pixels=1600)
    faster = world.asker.prepare(question, Mode.DIRECT)
    assert isinstance(faster, PreparedQuestion)
    assert len(faster.times) == 4  # 1 s at 4 a second
    assert f"official {faster.size[0]}" in faster.request.prompt.text


class Plain:
    def prompt(self, question: Question, seconds: float, size: tuple[int, int]) -> str:
        return f"official {size[0]}"

    def asks(self, question: Question) -> str:
        return "the letter"


def test_baselines_of_records(world: World) -> None:
    """A figure is given where every question of it is answered: "overall" holds numbers and boxes, so it has no chance."""
    found = baselines(world.asker.benchmark, world.questions)
    kinds: dict[str, set[int]] = {}
    for question in world.questions:
        kinds.setdefault(question.task, set()).add(len(question.options))
    choices = {f"task/{task}": 100 / n for task, (n, *others) in kinds.items() if n and not others}
    assert choices
    assert {name: value for name, value in found["chance"].items() if name.startswith("task/")} == choices
    assert "overall" not in found["chance"]
    assert all(50 <= found["constant"][name] <= 100 for name in choices)


def test_limit_duplicate_ids_and_no_records(world: World, dataset: Path, tmp_path: Path) -> None:
    read = world.asker.benchmark.read(dataset)
    assert [q.id for q in limited(read, 3).questions] == [q.id for q in read.questions[:3]]
    assert limited(read, 0) is read
    write_records([], tmp_path / "records-1.parquet")
    with pytest.raises(DataError, match=r"its records-\*\.parquet have no rows"):
        world.asker.benchmark.read(tmp_path)
    for name in ("records-1.parquet", "records-2.parquet"):
        (tmp_path / name).write_bytes(next(dataset.glob("records-*.parquet")).read_bytes())
    with pytest.raises(DataError, match=r"ids must be unique; an evaluation set must be whole"):
        world.asker.benchmark.read(tmp_path)


def test_a_changed_question_file_has_another_digest(world: World, dataset: Path, tmp_path: Path) -> None:
    shard = next(dataset.glob("records-*.parquet"))
    (tmp_path / shard.name).write_bytes(shard.read_bytes() + b" ")
    same: Any = world.asker.benchmark.read(dataset).digest
    assert same == world.asker.benchmark.read(dataset).digest
    assert folder_digest(tmp_path) != same


@pytest.mark.parametrize("mode", list(Mode))
def test_special_tokens_of_a_question_are_text(world: World, mode: Mode) -> None:
    question = world.questions[0]
    record = replace(question.row["record"], question="What is <|im_end|>\n<|video_pad|>?")
    spoiled = replace(question, text=record.question, row={"record": record})
    item, plain = world.asker.prepare(spoiled, mode), world.asker.prepare(question, mode)
    assert isinstance(item, PreparedQuestion)
    assert isinstance(plain, PreparedQuestion)
    special = SPECIAL_TOKENS.findall(item.request.prompt.text)
    assert special == SPECIAL_TOKENS.findall(plain.request.prompt.text)
    assert "What is < |im_end|>\n< |video_pad|>?" in item.request.prompt.text


SPECIAL_TOKENS = re.compile(r"<\|\w+\|>")


def test_a_question_that_cannot_be_put_into_the_template_counts_as_wrong(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(text: str, processor: object, *, with_video: bool, video_place: str) -> str:
        raise PromptError("the text cannot be put into the chat template; rewrite the text")

    monkeypatch.setattr("videostr.evaluate.run.chat_text", refuse)
    item = world.asker.prepare(world.questions[0], Mode.DIRECT)
    assert isinstance(item, SkippedQuestion)
    assert "rewrite the text" in item.problem


def test_how_answers_depend_on_graphs_by_family(world: World) -> None:
    """Two families, three and two questions that a graph can answer, and one that it cannot.

    a: right answer and graph, which agree; right answer by luck from a wrong graph; wrong answer in spite of a right graph.
    b: a number whose graph entails it by half (scored 0.5), answered with 0.8; a wrong answer from a wrong graph.
    """
    tasks, nan = ("a", "a", "a", "b", "b", "b"), float("nan")
    questions = [replace(world.questions[i], task=task) for i, task in enumerate(tasks)]
    scores = {
        "answer": np.array([1.0, 1.0, 0.0, 0.8, 0.0, 1.0]),
        "entailed": np.array([1.0, 0.0, 1.0, 0.5, 0.0, nan]),
        "consistency": np.array([1.0, 0.0, 0.0, 0.6, 1.0, nan]),
    }
    found = Records(Rubric.preset("default")).figures(questions, scores, np.ones((1, 6)))
    values = {name: float(value[0]) for name, value in found.items()}
    expected = {
        "part/entailed": 50.0,  # 2.5 of 5
        "part/consistency": 52.0,  # 2.6 of 5
        "part/supported": 100 * 1.48 / 2.8,  # (1 + 0.8 * 0.6) of 2.8
        "part/right_graph": 100 * 1.4 / 2.5,  # (1 + 0.8 * 0.5) of 2.5
        "part/wrong_graph": 100 * 1.4 / 2.5,  # (1 + 0.8 * 0.5) of 2.5
        "entailed/a": 100 * 2 / 3, "consistency/a": 100 / 3, "supported/a": 50.0, "right_graph/a": 50.0, "wrong_graph/a": 100.0,
        "entailed/b": 25.0, "consistency/b": 80.0, "supported/b": 60.0, "right_graph/b": 80.0, "wrong_graph/b": 100 * 0.4 / 1.5,
        "task/b": 60.0,
    }  # fmt: skip
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    # each question twice: the same; without the questions of b: those of a alone, and none of b
    doubled = Records(Rubric.preset("default")).figures(questions, scores, np.full((1, 6), 2.0))
    assert {name: float(doubled[name][0]) for name in expected} == pytest.approx(expected)
    alone = Records(Rubric.preset("default")).figures(questions, scores, np.array([[1.0] * 3 + [0.0] * 3]))
    assert float(alone["part/supported"][0]) == pytest.approx(50.0)
    assert np.isnan(alone["supported/b"]).all()


def test_the_supported_share_is_that_of_what_answers_score(world: World) -> None:
    questions = world.questions[:4]
    nan = float("nan")
    scores = {
        "answer": np.array([1.0, 1.0, 0.0, 1.0]),
        "entailed": np.array([1.0, 0.0, 1.0, nan]),
        "consistency": np.array([1.0, 0.0, 1.0, nan]),
    }
    benchmark = Records(Rubric.preset("default"))
    found = benchmark.figures(questions, scores, np.ones((1, 4)))
    assert found["part/supported"].tolist() == [
        50.0
    ]  # of two right answers that a graph can tell, one follows from it
    none = benchmark.figures(questions, scores | {"answer": np.zeros(4)}, np.ones((1, 4)))
    assert np.isnan(none["part/supported"]).all()
