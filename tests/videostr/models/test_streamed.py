"""A policy read tensor by tensor is the one that is loaded whole; safetensors files are those of the library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from videostr.errors import ModelError
from videostr.models.base import ModelFamily
from videostr.models.checkpoint import load_policy
from videostr.models.streamed import StreamedPolicy, can_stream
from videostr.models.tensor_files import TensorFile, write_tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_streamed_policy_is_the_loaded_one(
    family: ModelFamily, policy_folder: Path, dtype: torch.dtype
) -> None:
    loaded, streamed = load_policy(policy_folder, dtype), StreamedPolicy(policy_folder, dtype)
    empty = dict(streamed.policy.named_parameters())
    assert {parameter.device.type for parameter in empty.values()} == {"meta"}
    expected = dict(loaded.named_parameters())
    assert list(empty) == list(expected)
    for name, parameter in expected.items():
        value = streamed.read(name)
        assert value.dtype == empty[name].dtype == parameter.dtype
        assert torch.equal(value, parameter), name
    buffers = dict(streamed.policy.named_buffers())
    for name, buffer in loaded.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert loaded.config.to_json_string() == streamed.policy.config.to_json_string()
    assert loaded.generation_config.to_json_string() == streamed.policy.generation_config.to_json_string()


def test_shards_and_a_tied_output_layer(policy_folder: Path, tmp_path: Path) -> None:
    policy = load_policy(policy_folder, torch.float32)
    policy.config.tie_word_embeddings = policy.config.text_config.tie_word_embeddings = True
    policy.tie_weights()
    policy.save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    streamed = StreamedPolicy(tmp_path, torch.float32)
    assert streamed.policy.lm_head.weight is streamed.policy.get_input_embeddings().weight
    expected = dict(load_policy(tmp_path, torch.float32).named_parameters())
    assert list(expected) == [name for name, _ in streamed.policy.named_parameters()]
    assert all(torch.equal(streamed.read(name), value) for name, value in expected.items())


def test_a_checkpoint_that_lacks_a_tensor_or_has_another_shape_is_refused(
    policy_folder: Path, tmp_path: Path
) -> None:
    load_policy(policy_folder, torch.float32).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = sorted(tensors)[-1]
    save_file({name: tensors[name] for name in tensors if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"1 of \d+ parameters are in no file, the first .*; copy or download"
    ):
        StreamedPolicy(tmp_path, torch.float32)
    save_file({**tensors, "lm_head.weight": torch.zeros(3, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"lm_head.weight is \[3, 4\], config.json describes \[\d+, \d+\]; copy"
    ):
        StreamedPolicy(tmp_path, torch.float32).read("lm_head.weight")


def test_only_folders_with_safetensors_are_streamed(policy_folder: Path, tmp_path: Path) -> None:
    assert can_stream(policy_folder)
    assert not can_stream("Qwen/Qwen2.5-VL-3B-Instruct")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert not can_stream(tmp_path)


TENSORS = {
    "odd": torch.arange(15).reshape(3, 5).bfloat16(),
    "wide": torch.arange(7).double(),
    "none": torch.zeros(0, 4),
    "scalar": torch.tensor(3.0),
    "turned": torch.arange(24).reshape(4, 6).T,
    "bytes": torch.arange(9, dtype=torch.uint8),
}


def test_a_file_is_what_the_library_reads_and_its_digest_is_known(tmp_path: Path) -> None:
    path, given = tmp_path / "a.safetensors", dict(TENSORS)
    size, digest = write_tensors(path, given, {"starts": "{}"})
    assert not given  # freed one by one
    content = path.read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)
    found, ours = load_file(path), TensorFile(path)
    assert found.keys() == TENSORS.keys() == set(ours.names)
    for name, tensor in TENSORS.items():
        for read in (found[name], ours.read(name)):
            assert read.dtype == tensor.dtype
            assert torch.equal(read, tensor), name
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "starts": "{}"}


def test_a_file_that_is_cut_off_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="a is cut off"):
        TensorFile(path).read("a")
    path.write_bytes((5).to_bytes(8, "little") + b"x")
    with pytest.raises(json.JSONDecodeError):
        TensorFile(path)
