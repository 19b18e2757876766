"""The adapters of docs/reward_service.md, as they stand there: in their own process and over the service."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards import score_group
from videostr.data.records import record_to_row
from videostr.prompt import reference_trace
from videostr.types import Record

DOCUMENT = Path(__file__).parents[3] / "docs/reward_service.md"
MODULES = ("videostr_scores", "trl_reward", "openrlhf_reward", "verl_reward")
RIGHT = "<think>x</think><answer>A</answer>"
WRONG = "<think>x</think><answer>B</answer>"


@pytest.fixture(params=["in process", "service"])
def adapters(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: Any
) -> Iterator[dict[str, Any]]:
    """The modules of the document, by name."""
    blocks = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert sorted(name for name, _ in blocks) == sorted(MODULES)
    for name, code in blocks:
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("VIDEOSTR_REWARD_ENDPOINT", raising=False)
    if request.param == "service":
        monkeypatch.setenv("VIDEOSTR_REWARD_ENDPOINT", service.endpoint)
    before = service.metric("groups_total")
    modules = {name: importlib.import_module(name) for name in MODULES}
    yield modules
    assert (service.metric("groups_total") > before) is (request.param == "service")
    for name in MODULES:
        sys.modules.pop(name)


@pytest.fixture
def row(record: Record) -> str:
    return json.dumps(record_to_row(record))


def test_trl(adapters: dict[str, Any], record: Record, row: str) -> None:
    other = json.dumps(
        json.loads(row) | {"id": "r2", "answer": {"kind": "choice", "value": '"B"', "unit": ""}}
    )
    reward = adapters["trl_reward"].video_str_reward
    texts = [reference_trace(record), RIGHT, WRONG, RIGHT, WRONG]
    columns = {"record": [row] * 3 + [other] * 2, "completion_ids": [[1, 2]] * 5, "trainer_state": None}
    # format 0.2, answer 1, graph 1
    expected = pytest.approx([2.2, 1.2, 0.2, 0.2, 1.2])
    assert reward(prompts=["?"] * 5, completions=texts, **columns) == expected
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    assert reward(prompts=["?"] * 5, completions=messages, **columns) == expected


def test_openrlhf(adapters: dict[str, Any], record: Record, row: str) -> None:
    prompt = "<|im_start|>user\nlike <think>...</think>?<|im_end|>\n<|im_start|>assistant\n"
    texts = [reference_trace(record), RIGHT, WRONG]
    queries = [f"{prompt}{text}<|im_end|>\n" for text in texts]
    prompts = [prompt, prompt, prompt.replace("like", "decoded differently")]
    found = adapters["openrlhf_reward"].reward_func(queries, prompts, [row] * 3, images=None)
    assert found["rewards"].tolist() == pytest.approx([2.2, 1.2, 0.2])
    assert found["scores"].tolist() == [1.0, 1.0, 0.0]
    assert found["extra_logs"]["graph"].tolist() == [1.0, 0.0, 0.0]


def test_verl(adapters: dict[str, Any], record: Record, row: str) -> None:
    reward = adapters["verl_reward"].compute_score
    found = [
        reward(data_source="tabletop", solution_str=text, ground_truth=row, extra_info={"index": 3})
        for text in (reference_trace(record), RIGHT, WRONG)
    ]
    assert found[0] == {"score": pytest.approx(2.2), "format": 1.0, "answer": 1.0, "graph": 1.0}
    assert [each["score"] for each in found[1:]] == pytest.approx([1.2, 0.2])


def test_the_row_carries_all_that_scoring_needs(adapters: dict[str, Any], record: Record, row: str) -> None:
    texts = [reference_trace(record).replace("0", "1"), RIGHT, "no trace"]
    found = adapters["videostr_scores"].score_texts(row, texts)
    assert [score.total for score in found] == [score.total for score in score_group(texts, record)]
