"""`make gpu-check` without a GPU: every check runs on CPU, and what is wrong is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from videostr import gpu_check, kernel_check
from videostr.gpu_check import Place, main
from videostr.grpo.attention import SplitAttention
from videostr.preflight.findings import Severity


def test_all_checks_pass_on_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page" / "check.html"
    assert main(["--cpu", "--out", str(page)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == str(page)
    assert "All of it works here." in said
    for name in (
        "software",
        "attention, float32",
        "two ranks of ZeRO-3",
        "two ranks that share rows",
        "speed",
        "compiled layers",
        "engine, float32",
        "tensor parallel, 2 ranks",
        "run",
    ):
        assert f"ok    {name} " in said, said
    assert "20 steps, killed after 8 and resumed" in said
    shown = page.read_text()
    assert "two ranks of ZeRO-3" in shown
    assert "All of it works here." in shown


def test_wrong_attention_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = SplitAttention.attend
    monkeypatch.setattr(SplitAttention, "attend", lambda self, *given: right(self, *given) * 1.001)
    (finding,) = gpu_check.check_attention(Place(gpus=0, folder=tmp_path))
    assert finding.severity is Severity.FAIL
    assert gpu_check.verdict([finding]) == "Do not train here yet: attention, float32."


def test_a_check_that_raises_is_a_finding(tmp_path: Path) -> None:
    def check_anything(place: Place) -> list[gpu_check.Finding]:
        raise RuntimeError(f"no {place.gpus}")

    (finding,) = gpu_check.run_checks([check_anything], Place(gpus=0, folder=tmp_path))
    assert (finding.name, finding.severity) == ("anything", Severity.FAIL)
    assert "RuntimeError: no 0" in finding.found


@pytest.mark.parametrize("gpus", [1, 2])
def test_what_needs_more_gpus_is_named(gpus: int, tmp_path: Path) -> None:
    place = Place(gpus=gpus, folder=tmp_path)
    (tensor_parallel,) = gpu_check.check_tensor_parallel(place)
    assert tensor_parallel.severity is Severity.WARN
    assert f"needs 3 GPUs, here is {gpus}" in tensor_parallel.found
    if gpus == 1:
        for check in (gpu_check.check_engine, gpu_check.check_run):
            (finding,) = check(place)
            assert "needs 2 GPUs" in finding.found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "sees no GPU" in capsys.readouterr().err


def test_on_a_gpu_the_speed_is_that_of_layers_of_a_published_model() -> None:
    text = kernel_check.speed_config(gpu_check.PRETRAINED, on_gpu=True).get_text_config()
    assert (text.hidden_size, text.num_hidden_layers) == (3584, kernel_check.SPEED_LAYERS)
    assert 2 * sum(text.rope_parameters["mrope_section"]) == text.hidden_size // text.num_attention_heads
