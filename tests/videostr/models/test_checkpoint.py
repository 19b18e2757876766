from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from videostr.errors import ModelError
from videostr.models.base import FAMILIES, family_of
from videostr.models.checkpoint import check_model, load_policy, untie


def write_config(folder: Path, **config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_untied_video_policy_is_accepted_and_loads(policy_folder: Path) -> None:
    check_model(policy_folder, cpu=True)
    policy = load_policy(policy_folder, torch.bfloat16)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.bfloat16}


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no config\.json; give the folder"):
        check_model(tmp_path, cpu=True)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        check_model(tmp_path, cpu=True)


@pytest.mark.parametrize(
    "kind", ["qwen2", "qwen3_vl_moe", "qwen3_5_moe", "llava_onevision", "internvl", "glm4v", "", None]
)
def test_other_families_are_refused_with_the_names_of_those_that_are_not(
    tmp_path: Path, kind: str | None
) -> None:
    with pytest.raises(ModelError) as refused:
        check_model(write_config(tmp_path, model_type=kind, vision_config={}, text_config={}), cpu=False)
    assert f"model_type {kind!r}, so it takes no video here" in refused.value.message
    assert refused.value.remedy.startswith("use a ")
    for taken in FAMILIES:
        assert f"a {family_of({'model_type': taken}).name} (model_type {taken!r})" in refused.value.remedy


@pytest.mark.parametrize("kind", FAMILIES)
def test_text_model_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ModelError, match="no vision_config, so it takes no video here"):
        check_model(write_config(tmp_path, model_type=kind), cpu=False)


def test_sliding_window_is_refused(tmp_path: Path) -> None:
    text = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 0}
    folder = write_config(tmp_path, model_type="qwen2_5_vl", vision_config={}, text_config=text)
    with pytest.raises(
        ModelError, match="use_sliding_window is true, but packed rows attend without a window"
    ):
        check_model(folder, cpu=False)


def test_tied_embeddings_are_refused_on_cpu_only_and_untie_cures_them(
    policy_folder: Path, tmp_path: Path
) -> None:
    policy = load_policy(policy_folder, torch.float32)
    policy.config.tie_word_embeddings = True
    policy.tie_weights()
    tied, untied = tmp_path / "tied", tmp_path / "untied"
    policy.save_pretrained(tied)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        (tied / name).write_bytes((policy_folder / name).read_bytes())
    check_model(tied, cpu=False)
    with pytest.raises(ModelError, match=rf"tie_word_embeddings is true.*videostr\.models untie {tied} DIR"):
        check_model(tied, cpu=True)

    untie(tied, untied)
    check_model(untied, cpu=True)
    ids = torch.arange(20)[None]
    before = load_policy(tied, torch.float32).eval()
    after = load_policy(untied, torch.float32).eval()
    assert after.lm_head.weight is not after.get_input_embeddings().weight
    with torch.no_grad():
        torch.testing.assert_close(after(ids).logits, before(ids).logits, atol=0, rtol=0)


def test_tying_stated_the_old_way_is_seen(tmp_path: Path) -> None:
    """Before transformers 5 it stood in the text section."""
    folder = write_config(
        tmp_path, model_type="qwen2_5_vl", vision_config={}, text_config={"tie_word_embeddings": True}
    )
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        check_model(folder, cpu=True)
