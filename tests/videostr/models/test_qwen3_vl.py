"""What is special to Qwen3-VL: times in the prompt, positions, DeepStack, sizes of whole clips, what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Qwen3VLConfig

from videostr.chat import chat_text
from videostr.errors import ModelError
from videostr.models.base import ModelFamily, family_of, shapes_of
from videostr.models.checkpoint import load_policy, open_checkpoint
from videostr.models.mrope import mrope_positions
from videostr.models.qwen3_vl import FAMILY, Qwen3VL
from videostr.models.qwen_vl import FRAME_PATCHES
from videostr.prompt import instruction
from videostr.types import (
    Answer,
    AnswerKind,
    Clip,
    ClipSpec,
    GraphFrame,
    Node,
    Prompt,
    Record,
    SceneGraph,
)
from videostr.video import ClipFrames, decode

RELEASED = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "image_token_id": 151655,
    "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False, "bos_token_id": 151643, "dtype": "bfloat16", "eos_token_id": 151645, "head_dim": 128,
        "hidden_size": 4096, "intermediate_size": 12288, "max_position_embeddings": 262144, "model_type": "qwen3_vl_text",
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000, "vocab_size": 151936,
    },
    "tie_word_embeddings": False,
    "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [8, 16, 24], "depth": 27, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1152,
        "intermediate_size": 4304, "model_type": "qwen3_vl", "num_heads": 16, "num_position_embeddings": 2304,
        "out_hidden_size": 4096, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}  # fmt: skip
"""A config.json in the form of released checkpoints, written by transformers 4."""
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3")
    FAMILY.make_tiny(folder, 0, ["where is the red_ball?", "<0.2 seconds><think>left</think>"])
    return folder


@pytest.fixture(scope="module")
def config(folder: Path) -> Any:
    return Qwen3VLConfig.from_pretrained(folder)


@pytest.fixture(scope="module")
def encode(folder: Path, config: Any) -> Callable[[str, ClipFrames], str]:
    """The text of the prompt as the model sees it, placeholders of video left out."""
    processor = AutoProcessor.from_pretrained(folder)

    def encode(text: str, frames: ClipFrames) -> str:
        clip = Clip(digest="0", spec=ClipSpec(video="v", num_frames=len(frames.times)))
        prompt = Prompt(record_id="r", text=chat_text(text, processor), clip=clip)
        (inputs,) = FAMILY.encode([prompt], [frames], processor, config)
        seen: str = processor.tokenizer.decode(inputs.input_ids)
        return seen.replace("<|video_pad|>", "")

    return encode


# ----------------------------------------------------------------------------------------------------- prompts


def frames_at(times: list[float], fps: float) -> ClipFrames:
    return ClipFrames(
        pixels=np.zeros((len(times), 32, 48, 3), np.uint8),
        times=tuple(times),
        indices=tuple(round(t * fps) for t in times),
        fps=fps,
        total_frames=1000,
    )


def test_every_temporal_patch_follows_its_time_and_nothing_is_around_the_video(
    encode: Callable[[str, ClipFrames], str],
) -> None:
    # pairs (3, 4), (5, 6) and, as the last frame is shown twice, (7, 7)
    seen = encode("where?", frames_at([3, 4, 5, 6, 7], 4.0))
    patch = "<|vision_start|><|vision_end|>"
    assert (
        seen
        == f"<|im_start|>user\n<3.5 seconds>{patch}<5.5 seconds>{patch}<7.0 seconds>{patch}where?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_template_without_markers_gives_the_same_text() -> None:
    assert (
        Qwen3VL().engine_text(f"a{VIDEO}b") == Qwen3VL().engine_text("a<|video_pad|>b") == "a<|video_pad|>b"
    )


def write_video(path: Path, rate: Fraction, seconds: float) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(round(seconds * rate)):
            image = np.full((32, 48, 3), number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())


@pytest.mark.parametrize("rate", [Fraction(10), Fraction(30000, 1001)])
@pytest.mark.parametrize(("start", "end", "count"), [(0.0, None, 6), (2.0, 5.0, 6), (3.3, 5.8, 5)])
def test_times_in_the_video_agree_with_those_of_the_graph(
    encode: Callable[[str, ClipFrames], str],
    tmp_path: Path,
    rate: Fraction,
    start: float,
    end: float | None,
    count: int,
) -> None:
    """Both count from the start of the video, whatever part of it is shown."""
    write_video(tmp_path / "a.mp4", rate, 7)
    spec = ClipSpec(video=str(tmp_path / "a.mp4"), start_s=start, end_s=end, num_frames=count)
    frames = decode(spec)
    node = (Node(id="cat.1", label="cat", pos=(1.0, 2.0)),)
    graph = SceneGraph(
        unit="grid", frame="floor", frames=tuple(GraphFrame(t=round(t, 2), nodes=node) for t in frames.times)
    )
    record = Record(
        id="1", source="s", family="f", question="Where is it?", options=(), answer=Answer(kind=AnswerKind.NUMBER, value=1.0),
        clip=spec, labels=("cat",), graph=graph,
    )  # fmt: skip
    seen = encode(instruction(record), frames)
    shown = [float(t) for t in re.findall(r"<([\d.]+) seconds>", seen)]
    (listed,) = re.findall(r"Times: (.*) s\. Labels", seen)
    stated = [float(t) for t in listed.split(", ")]
    assert len(stated) == count
    stated += stated[-1:] * (count % 2)
    middles = [(a + b) / 2 for a, b in zip(stated[::2], stated[1::2], strict=True)]
    assert shown == pytest.approx(middles, abs=0.05 + 0.02)  # a decimal, and the number of a frame
    assert start <= shown[0]


def test_positions_start_anew_at_each_temporal_patch() -> None:
    # a token, time of 2, patch of 2 x 2 merged, end marker and time, patch, 1 more
    kinds = [0] * 3 + [2] * 4 + [0] * 2 + [2] * 4 + [0]
    found = mrope_positions(kinds, [(1, 4, 4)] * 2, [1.0] * 2, 2)
    assert found[0].tolist() == [0, 1, 2, 3, 3, 3, 3, 5, 6, 7, 7, 7, 7, 9]
    assert found[1].tolist() == [0, 1, 2, 3, 3, 4, 4, 5, 6, 7, 7, 8, 8, 9]
    assert found[2].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 8, 7, 8, 9]


def test_positions_are_those_of_transformers(folder: Path, config: Any) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    policy = load_policy(folder, torch.float32)
    clip = Clip(digest="0", spec=ClipSpec(video="v", num_frames=5))
    prompt = Prompt(record_id="r", text=chat_text("where?", processor), clip=clip)
    (inputs,) = FAMILY.encode([prompt], [frames_at([0, 1, 2, 3, 4], 29.97)], processor, config)
    kinds = torch.where(inputs.input_ids == config.video_token_id, 2, 0)
    theirs, _ = policy.model.get_rope_index(
        inputs.input_ids[None], kinds[None], video_grid_thw=inputs.vision["video_grid_thw"]
    )
    assert torch.equal(inputs.positions, theirs[:, 0])


# --------------------------------------------------------------------------------------------------- DeepStack


def test_a_frozen_tower_gives_features_of_each_level(
    folder: Path, config: Any, encode: Callable[[str, ClipFrames], str]
) -> None:
    tower = FAMILY.tower(load_policy(folder, torch.float32))
    pixels = torch.randn(2 * 4 * 6, 3 * 2 * 8 * 8)
    found = FAMILY.features(
        tower, {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[2, 4, 6]])}
    )
    assert list(found) == ["features", "deepstack_0", "deepstack_1"]
    assert {tuple(level.shape) for level in found.values()} == {(2 * 2 * 3, 128)}
    whole = tower(pixels, grid_thw=torch.tensor([[2, 4, 6]]))
    again = Qwen3VL().encoded(found)
    assert torch.equal(again.pooler_output[0], whole.pooler_output)
    assert [level for (level,) in again.deepstack_features] == [found["deepstack_0"], found["deepstack_1"]]
    assert all(
        torch.equal(a[0], b) for a, b in zip(again.deepstack_features, whole.deepstack_features, strict=True)
    )


# ----------------------------------------------------------------------------------------------- what is refused


def change(folder: Path, name: str, apply: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / name).read_text())
    apply(values)
    (folder / name).write_text(json.dumps(values))


def test_a_video_processor_of_another_mean_is_refused(tmp_path: Path) -> None:
    """As where an image processor is left to its default: engines take its values for videos, too."""
    FAMILY.make_tiny(tmp_path, 0, ["where?"])
    open_checkpoint(tmp_path, cpu=True)
    change(
        tmp_path,
        "processor_config.json",
        lambda c: c["image_processor"].update(image_mean=[0.48, 0.46, 0.41]),
    )
    with pytest.raises(
        ModelError, match=r"image_mean is \(0\.48.*in the image processor and \(0\.5.*; write the"
    ):
        open_checkpoint(tmp_path, cpu=True)


@pytest.mark.parametrize("lost", ["mrope_section", "mrope_interleaved"])
def test_positions_that_engines_would_not_interleave_are_refused(tmp_path: Path, lost: str) -> None:
    FAMILY.make_tiny(tmp_path, 0, ["where?"])
    change(tmp_path, "config.json", lambda c: c["text_config"]["rope_parameters"].pop(lost))
    with pytest.raises(ModelError, match=r"lack mrope_section or mrope_interleaved.*copy config\.json"):
        open_checkpoint(tmp_path, cpu=True)


# ----------------------------------------------------------------------------------------------------------- sizes


def test_a_config_as_released_is_taken() -> None:
    family: ModelFamily = family_of(RELEASED)
    config = family.config_of(RELEASED, "released")
    family.check(config, "released", cpu=True)
    assert family.shapes(config, name="8B") == family.shapes(
        family.config_of(family.published["Qwen3-VL-8B"], "8B"), name="8B"
    )


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("2B", 2_127_532_032), ("4B", 4_437_815_808), ("8B", 8_767_123_696), ("32B", 33_357_390_064)],
)
def test_published_models_have_their_published_size(size: str, parameters: int) -> None:
    assert shapes_of(f"Qwen/Qwen3-VL-{size}-Thinking").parameters == parameters


def small_config() -> Qwen3VLConfig:
    """One layer of width 4 with two heads of 6 and an MLP of 8; a tower of one layer of width 2, MLP 3, one level."""
    return Qwen3VLConfig(
        text_config={
            "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": 10, "head_dim": 6,
        },
        vision_config={
            "depth": 1, "hidden_size": 2, "intermediate_size": 3, "num_heads": 1, "out_hidden_size": 4, "patch_size": 1,
            "spatial_merge_size": 1, "temporal_patch_size": 1, "in_channels": 1, "num_position_embeddings": 4,
            "deepstack_visual_indexes": [0],
        },
        tie_word_embeddings=False,
    )  # fmt: skip


def test_sizes_of_a_small_model() -> None:
    shapes = FAMILY.shapes(small_config())
    # Layer: q 4 x 12, k and v 2 x 4 x 6, o 12 x 4, norms of heads 2 x 6, MLP 96, norms 8 = 260. Tables 2 x 40, last norm 4.
    # Tower: patches 2 + 2, places 4 x 2; block: qkv 12 + 6, proj 4 + 2, MLP 6 + 3 + 6 + 2, norms 8 = 49;
    # merger and level, each: norm 4, 2 x 2 + 2, 2 x 4 + 4 = 22
    assert (shapes.parameters, shapes.vision_parameters) == (260 + 80 + 4 + 105, 12 + 49 + 44)
    assert shapes.decode_parameters == 260 + 40
    assert shapes.kv_elements == 2 * 6
    # 8 x 4 + 3 x 12 + 3 x 6 + 4 x 8, norms of heads 3 x (12 + 6); of the tower 14 x 2 + 2 x 3
    assert (shapes.text.activations, shapes.vision.activations) == (172, 34)


def test_operations_of_a_small_model() -> None:
    forward = FAMILY.shapes(small_config()).forward
    # Per token 2 (2 x 4 x 12 + 2 x 4 x 6 + 3 x 32); per pair 4 x 12; per target 2 x 4 x 10
    assert (forward.token, forward.pair, forward.target) == pytest.approx((480, 48, 80))
    # Per patch 2 (16 + 12 + 2 x 2 x frame + two mergers of 4 + 8)
    assert forward.patch == pytest.approx(2 * (16 + 12 + 4 * FRAME_PATCHES + 2 * 12))


def test_cost_of_a_model_counts_its_weights(folder: Path) -> None:
    """6 operations a weight of a matrix and token, 2 for a frozen tower; 4 tokens a patch in the matrices of mergers."""
    policy = load_policy(folder, torch.float32)
    trained = FAMILY.row_cost(policy.config, freeze_vision=False)
    matrices = {name: p.numel() for name, p in policy.named_parameters() if p.ndim >= 2}
    assert trained.token == 6 * sum(n for name, n in matrices.items() if "language_model.layers" in name)
    assert trained.target == 8 * matrices["lm_head.weight"]
    assert trained.pair == 12 * 3 * 4 * 64
    blocks = sum(n for name, n in matrices.items() if "visual.blocks" in name)
    mergers = sum(n for name, n in matrices.items() if "merger" in name)
    assert trained.patch == 6 * (blocks + mergers / 4 + 2 * 2 * 64 * FRAME_PATCHES)
    assert FAMILY.row_cost(policy.config, freeze_vision=True).patch == trained.patch / 3
