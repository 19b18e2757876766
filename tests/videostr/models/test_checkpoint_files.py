"""Checkpoints as tools leave them: every command names each fault with file and remedy, before an engine starts."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from videostr import launch, sft
from videostr.config.load import load
from videostr.errors import ModelError
from videostr.evaluate import __main__ as evaluate
from videostr.models.checkpoint import load_policy, open_checkpoint
from videostr.models.processor import load_processor
from videostr.plan import __main__ as plan
from videostr.preflight.findings import Context, Severity
from videostr.preflight.model import check_policy

ROOT = Path(__file__).parents[3]
POLICY = ROOT / "videostr" / "tabletop" / "pretrained"
Breaks = Callable[[Path], object]


def without(*names: str) -> Breaks:
    return lambda folder: [(folder / name).unlink() for name in names]


def written(name: str, text: str) -> Breaks:
    return lambda folder: (folder / name).write_text(text)


def changed(name: str, change: Callable[[dict[str, Any]], object]) -> Breaks:
    def apply(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return apply


def part(of: str, **values: Any) -> Breaks:
    return changed("processor_config.json", lambda config: config[of].update(values))


def template(change: Callable[[str], str]) -> Breaks:
    def apply(folder: Path) -> None:
        file = folder / "chat_template.jinja"
        file.write_text(change(file.read_text()))

    return apply


def apart(folder: Path) -> None:
    """Image and video processor in files of their own, as before transformers 5; normalised differently."""
    config = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(config["image_processor"]))
    video = config["video_processor"] | {"image_mean": [0.5, 0.5, 0.5]}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def sharded(folder: Path, suffix: str = "safetensors", lost: int = -1) -> None:
    """Weights in two shards with an index; shard number `lost` left out."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = sorted(weights)
    where = {
        name: f"{stem}-0000{1 + (i >= len(names) // 2)}-of-00002.{suffix}" for i, name in enumerate(names)
    }
    for number, file in enumerate(sorted(set(where.values()))):
        held = {name: weights[name] for name in names if where[name] == file}
        if number != lost:
            (save_file if suffix == "safetensors" else torch.save)(held, folder / file)
    index = {"metadata": {}, "weight_map": where}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def as_pickle(folder: Path, **options: Any) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", **options)
    (folder / "model.safetensors").unlink()


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def malicious(folder: Path) -> None:
    as_pickle(folder)
    torch.save({"weight": Runs(folder / "ran")}, folder / "pytorch_model.bin")


def plain_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(folder / "ran"), protocol=2))


def lost_tensors(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(dict(list(weights.items())[:-3]), folder / "model.safetensors")


def two_policies(folder: Path) -> None:
    """A single file of one policy and the shards of another: transformers reads the first, vLLM the second."""
    kept = (folder / "model.safetensors").read_bytes()
    sharded(folder)
    (folder / "model.safetensors").write_bytes(kept)


def cut_pickle(folder: Path) -> None:
    as_pickle(folder)
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:5000])


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def pointer_to_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text(LFS_POINTER)


VIDEO = "{% if part.type == 'video' %}"
FAULTS: dict[str, tuple[Breaks, str]] = {
    "no template": (without("chat_template.jinja"), "has no chat template; copy chat_template.jinja from the base"),
    "empty template": (written("chat_template.jinja", ""), "has no chat template"),
    "template with a wrong syntax": (written("chat_template.jinja", "{% for %}"), "the chat template raises"),
    "template that raises": (written("chat_template.jinja", "{{ raise_exception('never') }}"), "never"),
    "template without video": (template(lambda t: t.replace(VIDEO, "{% if false %}")), "writes 0 placeholders of a video"),
    "template that doubles": (template(lambda t: t + t), "writes 2 placeholders of a video"),
    "template that shows images": (template(lambda t: t.replace("<|video_pad|>", "<|image_pad|>")), "and 1 of an image"),
    "template without text": (template(lambda t: t.replace("{{ part.text }}", "")), "the text of a turn 0 times"),
    "template that prints lists": (written("chat_template.jinja", "{{ messages[0].content }}"), "0 placeholders"),
    "no tokenizer": (without("tokenizer.json"), "copy tokenizer.json and tokenizer_config.json from the base model"),
    "no processor": (without("processor_config.json"), "copy preprocessor_config.json"),
    "no files but config and weights": (
        without("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"),
        "from the base model",
    ),
    **{
        f"{name}: {text!r}": (written(name, text), f"{name} cannot be read")
        for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "config.json", "generation_config.json")
        for text in ("{", "", "[]", '{"a": 1')
    },
    "tokenizer.json without a model": (written("tokenizer.json", "{}"), "tokenizer or processor cannot be loaded"),
    "mean of images": (part("image_processor", image_mean=[0.5, 0.5, 0.5]), "image_mean is (0.5, 0.5, 0.5) in the image"),
    "std of videos": (part("video_processor", image_std=[0.5, 0.5, 0.5]), "image_std is"),
    "scale of videos": (part("video_processor", rescale_factor=1.0), "rescale_factor is"),
    "videos not scaled": (part("video_processor", do_rescale=False), "do_rescale is True in the image processor and False"),
    "images not normalised": (part("image_processor", do_normalize=False), "do_normalize is False in the image"),
    "patches of images": (part("image_processor", patch_size=14), "patch_size is 14"),
    "merge of videos": (part("video_processor", merge_size=1), "merge_size is"),
    "processors in two files": (apart, "image_mean is"),
    "patches of both": (
        lambda f: (part("image_processor", patch_size=14)(f), part("video_processor", patch_size=14)(f)),
        "patch_size is 14 in the video processor, but vision_config.patch_size is 8",
    ),
    "another family": (changed("config.json", lambda c: c.update(model_type="llava")), "model_type 'llava'"),
    "odd values": (changed("config.json", lambda c: c["text_config"].update(hidden_size="x")), "config.json does not describe"),
    "vision as a list": (changed("config.json", lambda c: c.update(vision_config=[])), "config.json does not describe"),
    "few embeddings": (changed("config.json", lambda c: c["text_config"].update(vocab_size=100)), "has 640 tokens"),
    "another placeholder": (changed("config.json", lambda c: c.update(video_token_id=6)), "video_token_id is 6"),
    "cut weights": (cut, "model.safetensors is not whole"),
    "a pointer in place of weights": (
        written("model.safetensors", LFS_POINTER),
        "model.safetensors is a pointer of Git LFS",
    ),
    "a pointer in place of a pickle": (
        pointer_to_pickle,
        "pytorch_model.bin is a pointer of Git LFS",
    ),
    "no weights": (without("model.safetensors"), "there is neither model.safetensors nor"),
    "a lost shard": (lambda f: sharded(f, lost=1), "1 of them are missing: model-00002-of-00002.safetensors"),
    "a lost pickled shard": (lambda f: sharded(f, "bin", lost=0), "missing: pytorch_model-00001-of-00002.bin"),
    "index without map": (
        lambda f: (sharded(f), (f / "model.safetensors.index.json").write_text("{}")), "is not an index of shards",
    ),
    "broken index": (
        lambda f: (sharded(f), (f / "model.safetensors.index.json").write_text("{")), "is not an index of shards",
    ),
    "index with another map": (
        lambda f: (sharded(f), (f / "model.safetensors.index.json").write_text('{"weight_map": [1]}')), "is not an index",
    ),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is not whole"),
    "lost tensors": (lost_tensors, "the rest would be random"),
    "two policies": (two_policies, "learners would read model.safetensors, engines also or instead model-00001"),
    "a stray file": (
        lambda f: save_file({"x": torch.zeros(2)}, f / "adapter_model.safetensors"), "instead adapter_model.safetensors",
    ),
    "a malicious pickle": (malicious, "pytorch_model.bin is refused"),
    "a plain malicious pickle": (plain_pickle, "pytorch_model.bin is"),
    "a cut pickle": (cut_pickle, "pytorch_model.bin is"),
    "an empty pickle": (lambda f: (as_pickle(f), (f / "pytorch_model.bin").write_bytes(b"")), "is not whole"),
    "a pickled list": (lambda f: (as_pickle(f), torch.save([1], f / "pytorch_model.bin")), "holds no table of tensors"),
}  # fmt: skip


def broken(folder: Path, fault: str) -> tuple[Path, str]:
    breaks, words = FAULTS[fault]
    target = Path(shutil.copytree(POLICY, folder / "policy"))
    breaks(target)
    return target, words


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_with_its_remedy(tmp_path: Path, fault: str) -> None:
    folder, words = broken(tmp_path, fault)
    with pytest.raises(ModelError) as raised:
        open_checkpoint(folder, cpu=True)
    message = str(raised.value)
    assert words in message
    assert str(folder) in message
    assert "; " in message
    assert "\n" not in message
    assert not (folder / "ran").exists()

    config = load(ROOT / "configs" / "tabletop_cpu.yaml", [f"model.path={folder}"])
    *_, finding = check_policy(config, Context())
    assert finding.severity is Severity.FAIL
    assert finding.remedy
    assert words in f"{finding.found}; {finding.remedy}"
    assert not (folder / "ran").exists()


def test_every_command_says_so_before_it_starts_anything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tabletop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    folder, _ = broken(tmp_path, "no template")
    runs, data = f"run.dir={tmp_path / 'runs'}", f"data.train={tabletop / 'train'}"
    commands: dict[str, Callable[[], int]] = {
        "launch": lambda: launch.main(["--config", "configs/tabletop_cpu.yaml", f"model.path={folder}", runs, data]),
        "check": lambda: launch.main(
            ["--check", "--config", "configs/tabletop_cpu.yaml", f"model.path={folder}", runs, data]
        ),
        "evaluate": lambda: evaluate.main(
            ["--config", "configs/eval_tabletop.yaml", f"model.path={folder}", f"benchmark.root={tabletop / 'heldout'}",
             f"run.dir={tmp_path / 'e'}"]
        ),
        "sft": lambda: sft.main(
            ["--config", "configs/tabletop_sft_habit.yaml", f"model.path={folder}", data, f"run.dir={tmp_path / 'runs'}"]
        ),
    }  # fmt: skip
    for name, command in commands.items():
        caplog.clear()
        logging.getLogger("videostr").propagate = True
        assert command() == 2, name
        assert "has no chat template" in caplog.text, name
        assert "copy chat_template.jinja from the base model" in caplog.text, name
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "qwen2_5_vl"}', '{"vision_config": 3}'])
def test_plan_refuses_a_broken_config(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(text)
    assert plan.main(["--config", str(ROOT / "configs" / "tabletop_cpu.yaml"), f"model.path={tmp_path}"]) == 2
    said = capsys.readouterr()
    assert "config.json" in said.out + said.err


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("weights")
    with pytest.raises(ModelError, match=r"is a file, must be a folder; give the folder"):
        open_checkpoint(tmp_path / "model", cpu=True)


def test_a_template_that_came_with_the_tokenizer_is_taken(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(POLICY, tmp_path / "policy"))
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    changed("tokenizer_config.json", lambda c: c.update(chat_template=text))(folder)
    assert load_processor(folder).chat_template == text


GOOD: dict[str, tuple[Breaks, str]] = {
    "one pickle": (as_pickle, "pickled weights load more slowly"),
    "a pickle of before PyTorch 1.6": (
        lambda f: as_pickle(f, _use_new_zipfile_serialization=False), "pickled weights load more slowly",
    ),
    "pickled shards": (lambda f: sharded(f, "bin"), "pickled weights load more slowly"),
    "shards": (sharded, ""),
    "both": (lambda f: torch.save({}, f / "pytorch_model.bin"), "pytorch_model.bin: not read, the safetensors are"),
    "with arguments of a trainer": (lambda f: torch.save({}, f / "training_args.bin"), ""),
    "as it is": (lambda f: None, ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", GOOD)
def test_what_trains_is_at_most_a_warning(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, words = GOOD[kind]
    folder = Path(shutil.copytree(POLICY, tmp_path / "policy"))
    make(folder)
    logging.getLogger("videostr").propagate = True
    open_checkpoint(folder, cpu=True)
    assert words in caplog.text
    assert bool(words) == bool(caplog.records)
    findings = list(
        check_policy(load(ROOT / "configs" / "tabletop_cpu.yaml", [f"model.path={folder}"]), Context())
    )
    assert {finding.severity for finding in findings} == (
        {Severity.OK, Severity.WARN} if words else {Severity.OK}
    )
    loaded = load_policy(folder, torch.float32)
    assert torch.equal(
        dict(loaded.named_parameters())["lm_head.weight"],
        load_file(POLICY / "model.safetensors")["lm_head.weight"],
    )
