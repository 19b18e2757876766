"""What trainer and engine see: they agree on the shipped policy, and a learner that counts positions wrongly is found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
from torch import Tensor

from videostr import check
from videostr.config.load import load
from videostr.models import qwen_vl
from videostr.models.tiny import make_tiny
from videostr.parity import Row, main, table
from videostr.preflight.findings import Severity

PRETRAINED = "videostr/tabletop/pretrained"


def test_trainer_and_engine_agree_before_and_after_a_weight_sync(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "mine.mp4"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 100, 60, "yuv420p"
        for seed in range(30):
            image = np.random.default_rng(seed).integers(0, 256, (60, 100, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    assert main(["--model", PRETRAINED, "--video", str(video), "--frames", "5"]) == 0
    said = capsys.readouterr().out
    for what, cases in (("token ids", 6), ("positions", 6), ("pixels", 6), ("weights read back", 69)):
        assert re.search(rf"^{what} +{cases} .* ok$", said, re.MULTILINE), said
    assert len(re.findall(r"^log-probabilities, worst .* ok", said, re.MULTILINE)) == 2
    assert re.search(r"after an update \(gradient norm [0-9.e]+\)", said)
    assert said.endswith("trainer and engine see the same\n")


def test_a_learner_that_counts_positions_wrongly_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tabletop: Path, tmp_path: Path
) -> None:
    right = qwen_vl.mrope_positions

    def wrong(*arguments: object) -> Tensor:
        positions = right(*arguments)  # type: ignore[arg-type]
        positions[0, -1] += 1
        return positions

    monkeypatch.setattr(qwen_vl, "mrope_positions", wrong)
    assert main(["--model", PRETRAINED, "--inputs"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"^positions +5 +1 +0  DIFFERS$", said, re.MULTILINE), said
    assert re.search(r"^token ids .* ok$", said, re.MULTILINE), said
    given = [
        f"data.train={tabletop / 'train'}",
        f"data.heldout={tabletop / 'heldout'}",
        f"run.dir={tmp_path}",
    ]
    found = check.check(load("configs/tabletop_cpu.yaml", given), inputs=True)
    (inputs,) = [finding for finding in found if finding.name == "inputs"]
    assert inputs.severity is Severity.FAIL
    assert "make different positions of one prompt" in inputs.found


def test_a_video_that_does_not_exist_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", PRETRAINED, "--video", "no/such.mp4"]) == 2
    assert "no/such.mp4" in capsys.readouterr().err
    assert main(["--model", "no/such/model"]) == 2


def test_nan_does_not_pass() -> None:
    rows = [
        Row(what="a", cases=1, worst=0.0, limit=0.0),
        Row(what="b", cases=1, worst=float("nan"), limit=1.0),
    ]
    assert "DIFFERS" in table(rows)
    assert table(rows[:1]).endswith("see the same\n")


def test_a_clip_of_2048_frames_goes_through_store_engine_and_learner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, policy = tmp_path / "long.mp4", tmp_path / "policy"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for number in range(2048):
            image = np.full((16, 16, 3), number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    make_tiny(policy, 0, ["How many things move?"], model_type="qwen2_5_vl")
    config = json.loads((policy / "processor_config.json").read_text())
    config["video_processor"]["size"]["longest_edge"] = 2**24  # of all frames together
    (policy / "processor_config.json").write_text(json.dumps(config))
    main(["--model", str(policy), "--video", str(video), "--frames", "2048"])
    said = capsys.readouterr().out
    # A token for two frames of 16 x 16: the completions of this clip alone follow 1024 tokens of video
    for what in ("token ids", "positions", "pixels", "packed against alone", "weights read back"):
        assert re.search(rf"^{what} .* ok", said, re.MULTILINE), said
    # Random weights give the placeholders, which engines may not sample, up to 1.6 % after 1,024 of them
    worst = [
        float(found) for found in re.findall(r"^log-probabilities, worst +\d+ +(\S+)", said, re.MULTILINE)
    ]
    assert len(worst) == 2, said
    assert max(worst) < 0.05, said
