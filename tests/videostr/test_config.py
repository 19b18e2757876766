"""The config tree: defaults, overrides, refusals, and the words of every rule between keys."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from videostr.config.load import dump, load, load_ablation, load_evaluation, load_sft
from videostr.config.schema import Config, SftConfig
from videostr.errors import ConfigError
from videostr.shipped import find

SPARSE = """
model: {path: models/tiny}
data: {train: data/train}
rollout: {max_model_len: 4096}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write_text(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write_text


def test_a_sparse_file_keeps_the_defaults(write: Callable[[str], Path]) -> None:
    config = load(write(SPARSE))
    expected = Config()
    expected.model.path, expected.data.train, expected.rollout.max_model_len = (
        "models/tiny",
        "data/train",
        4096,
    )
    assert config == expected
    assert config.learner.betas == (0.9, 0.999)
    assert isinstance(config, Config)


def test_overrides_win_over_the_file_and_take_the_type_of_the_key(write: Callable[[str], Path]) -> None:
    config = load(
        write(SPARSE),
        ["rollout.max_model_len=2048", "run.name=other", "learner.betas=[0.8,0.9]", "run.seed=7"],
    )
    assert config.rollout.max_model_len == 2048
    assert config.run.name == "other"
    assert config.run.seed == 7
    assert config.learner.betas == (0.8, 0.9)


@pytest.mark.parametrize("name", ["007", "1e5", "1.10", "0x10", "1_000", "1:30", "on", "true", "12e4567"])
def test_a_text_that_yaml_takes_for_a_number_is_kept(write: Callable[[str], Path], name: str) -> None:
    """As an override, such as a date or the hash of a commit; in a file it cannot be told from a number, and is refused."""
    assert load(write(SPARSE), [f"run.name={name}"]).run.name == name
    assert load(write(f"{SPARSE}run: {{name: '{name}'}}")).run.name == name
    with pytest.raises(
        ConfigError, match=r"run\.name = .*: must be text, but YAML reads it as .*; put it in quotes"
    ):
        load(write(f"{SPARSE}run: {{name: {name}}}"))


def test_dump_and_load_give_the_same_config(write: Callable[[str], Path], tmp_path: Path) -> None:
    config = load(write(SPARSE), ["learner.lr=3.5e-7", "loss.name=gspo", "learner.betas=[0.8,0.95]"])
    again = tmp_path / "again.yaml"
    again.write_text(dump(config))
    assert load(again) == config
    assert "lr: 3.5e-07" in again.read_text()


def test_sft_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text("data: {train: d}\nmodel: {tiny: qwen2_5_vl}\n")
    config = load_sft(path, ["train.steps=200", "references.per_prompt=2"])
    expected = SftConfig()
    expected.data.train, expected.model.tiny = "d", "qwen2_5_vl"
    expected.train.steps, expected.references.per_prompt = 200, 2
    assert config == expected
    path.write_text(dump(config))
    assert load_sft(path) == config


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("modle: {path: x}", [], ["modle"]),
        ("model: {pth: x}", [], ["model.pth"]),
        (SPARSE, ["train.stpes=3"], ["train.stpes"]),
        (SPARSE, ["train.steps=many"], ["train.steps"]),
        (SPARSE, ["loss.name=sft"], ["loss.name"]),
        (SPARSE, ["run.seed=1.5"], ["run.seed"]),
        (SPARSE, ["learner.betas={a: 1}"], ["learner.betas", "a list of two numbers"]),
        (
            SPARSE,
            ["learner.betas=[0.9]"],
            ["learner.betas = [0.9]: must be a list of two numbers, at least 0 and below 1"],
        ),
        (SPARSE, ["train=4"], ["train = 4: must be a section"]),
        (
            SPARSE + "train: {steps: -1, stpes: 1}",
            [],
            ["train.steps = -1", "train.stpes = 1: is not a key; did you mean train.steps?"],
        ),
        (SPARSE, ["train.steps"], ["train.steps", "key=value"]),
        ("[1, 2]", [], ["must be a mapping"]),
        ("model: {path: [", [], ["not readable as YAML"]),
        ("model: {path: '${run.name}'}\ndata: {train: d}", [], ["model.path", "interpolation"]),
    ],
)
def test_a_bad_key_or_value_is_refused_by_name(
    write: Callable[[str], Path], text: str, overrides: list[str], words: list[str]
) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    for word in [str(path), *words] if not overrides else words:
        assert word in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("override", ["run.name=@x", "model.path=[", "run.name=*x", "run.name='x"])
def test_an_override_that_is_no_yaml_is_refused_by_name(write: Callable[[str], Path], override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(SPARSE), ["train.steps=3", override])
    assert str(caught.value).startswith(f"override {override!r}: not readable as YAML: ")
    assert "quote the value" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_shipped_policy_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(tmp_path)
    config = load(root / "configs" / "tabletop_cpu.yaml")
    assert Path(config.model.path) == root / "videostr" / "tabletop" / "pretrained"
    assert load(root / "configs" / "tabletop_cpu.yaml", ["model.path=Qwen/X"]).model.path == "Qwen/X"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        load(tmp_path / "none.yaml")


# Keys set, and what the message must hold: each key, each value, the remedy.
RULES: list[tuple[dict[str, object], list[str]]] = [
    ({"model.path": ""}, ['model.path = ""', "set model.path=DIR"]),
    ({"data.train": ""}, ['data.train = ""', "python -m videostr.data"]),
    ({"sampling.group_size": 1}, ["sampling.group_size = 1", "set it to 2 or more"]),
    (
        {"sampling.max_tokens": 600, "rollout.max_model_len": 500},
        ["sampling.max_tokens = 600", "rollout.max_model_len = 500", "raise max_model_len"],
    ),
    (
        {"rollout.num_gpus": 2.0, "learner.num_gpus": 1.0},
        ["rollout.num_gpus = 2.0", "rollout.tensor_parallel_size = 1", "one GPU per tensor-parallel rank"],
    ),
    (
        {"learner.num_gpus": 1.0},
        ["rollout.num_gpus = 0.0", "learner.num_gpus = 1.0", "both on GPUs or both on CPU"],
    ),
    (
        {"learner.attention": "flex"},
        ["learner.attention = flex", "learner.num_gpus = 0", "use learner.attention=auto"],
    ),
    (
        {"learner.vision_cache_gib": 2.0},
        ["learner.vision_cache_gib = 2", "model.freeze_vision=true", "set learner.vision_cache_gib=0"],
    ),
    (
        {"learner.activation_gib": 2.0},
        [
            "learner.activation_gib = 2",
            "needs model.gradient_checkpointing=true",
            "or learner.activation_gib=0",
        ],
    ),
    (
        {"learner.offload": "optimizer", "learner.zero_stage": 1},
        [
            "learner.offload = optimizer",
            "learner.zero_stage of 2 or more, which is 1",
            "set learner.zero_stage=2",
        ],
    ),
    (
        {"learner.num_ranks": 4, "learner.sequence_parallel": 3},
        [
            "learner.sequence_parallel = 3",
            "must divide learner.num_ranks = 4",
            "set learner.num_ranks to a multiple",
        ],
    ),
    (
        {"learner.offload": "all", "learner.zero_stage": 2},
        ["learner.offload = all", "learner.zero_stage of 3 or more, which is 2", "set learner.zero_stage=3"],
    ),
    ({"sync.backend": "nccl"}, ["sync.backend = nccl", "rollout.num_gpus = 0", "sync.backend=gloo"]),
    (
        {"logging.mlflow.tracking_uri": "file:///tmp/mlruns"},
        ["logging.mlflow.tracking_uri = file:///tmp/mlruns", "sqlite:////FOLDER/mlflow.db"],
    ),
    (
        {"logging.wandb.enabled": True, "logging.wandb.project": ""},
        ['logging.wandb.project = ""', "logging.wandb.project=NAME"],
    ),
    (
        {"logging.mlflow.enabled": True, "logging.mlflow.experiment": ""},
        ['logging.mlflow.experiment = ""', "logging.mlflow.experiment=NAME"],
    ),
    (
        {"reward.overlong_buffer": 1024},
        ["reward.overlong_buffer = 1024", "sampling.max_tokens = 1024", "lower it"],
    ),
]
RANGES: list[tuple[str, object]] = [
    *[
        (key, 0)
        for key in ("sampling.temperature", "sampling.max_tokens", "rollout.num_workers", "learner.lr")
    ],
    *[(key, 0) for key in ("train.prompts_per_step", "train.keep_checkpoints", "evaluate.samples")],
    *[(key, -1) for key in ("reward.deadline_s", "sync.timeout_s", "loss.eps_low", "learner.max_grad_norm")],
    *[
        (key, -1)
        for key in ("loss.kl_coef", "evaluate.prompts", "train.checkpoint_every", "train.traces_every")
    ],
    *[(key, 1.5) for key in ("reward.node_weight", "data.max_bad_fraction")],
    *[(key, value) for key in ("run.seed", "data.tabletop.seed") for value in (-1, 2**32)],
    ("learner.zero_stage", 4),
    ("learner.warmup_steps", -1),
    ("learner.vision_cache_gib", -1),
    ("learner.betas", [0.9, 1.0]),
    ("reward.overlong_buffer", -1),
    *[
        (key, value)
        for key in ("rollout.num_gpus", "learner.num_gpus", "learner.weight_decay", "placement.wait_s")
        for value in (-1.0, math.nan)
    ],
    *[("rollout.gpu_memory_utilization", value) for value in (0.0, 1.5, math.inf)],
    *[("learner.num_cpus", value) for value in (0.0, math.inf)],
    *[(f"data.tabletop.{split}_scenes", -1) for split in ("train", "heldout")],
]


def load_with(tmp_path: Path, values: dict[str, object]) -> Config:
    """Load a valid config with other values of some keys."""
    path = tmp_path / "run.yaml"
    path.write_text("model: {path: m}\ndata: {train: d}\n")
    overrides = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in values.items()]
    return load(path, [override.removesuffix("...\n") for override in overrides])


def test_the_valid_config_is_valid(tmp_path: Path) -> None:
    load_with(tmp_path, {})


@pytest.mark.parametrize(("values", "words"), RULES, ids=lambda value: "+".join(value))
def test_a_broken_rule_names_keys_values_and_remedy(
    values: dict[str, object], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_with(tmp_path, values)
    (line,) = str(caught.value).splitlines()
    for word in words:
        assert word in line


@pytest.mark.parametrize(("key", "value"), RANGES)
def test_a_value_out_of_range_names_key_value_and_range(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_with(tmp_path, {key: value})
    assert any(line.startswith(f"{key} = {value}: must be ") for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    "values",
    [
        {"train.steps": -1, "learner.lr": 0, "data.max_bad_fraction": 2},
        {"data.train": "", "model.path": "", "sampling.group_size": 1},
    ],
)
def test_all_broken_rules_are_told_at_once(values: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_with(tmp_path, values)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["data.train=''"], 'data.train = ""'),
        (["model.tiny=''"], 'model.path = "": must name the policy to start from'),
        (["references.ends_only=2"], "references.ends_only = 2: must be a finite number, from 0 to 1"),
        (["train.steps=0"], "train.steps = 0: must be a whole number, at least 1"),
        (["run.seed=-1"], "run.seed = -1: must be a whole number, from 0 to 4294967295"),
        (["learner.weight_decay=.nan"], "learner.weight_decay = nan: must be a finite number, at least 0"),
        (["learner.warmup_steps=-1"], "learner.warmup_steps = -1: must be a whole number, at least 0"),
        (["x=1"], "x = 1: is not a key"),
    ],
)
def test_sft_rules(tmp_path: Path, overrides: list[str], word: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {train: d}\nmodel: {tiny: qwen2_5_vl}\n")
    with pytest.raises(ConfigError) as caught:
        load_sft(path, overrides)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../x", "a/b", "/tmp/x", "a\\b", "a?b", "-x", "--check", ".hidden", "x.", "x ", " x", "x\t", "a\nb",
        "a\x00b", "a\x7fb", "a\u200bb", "a\u202eb", "a\u2028b", "x" * 129, "字" * 67,
    ],
)  # fmt: skip
def test_a_name_that_is_no_single_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^run\.name = .*: must .*; choose another name") as found:
        load_with(tmp_path, {"run.name": name})
    assert str(found.value).isascii()
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "run-1",
        "a b",
        "lr=1e-5,bs=32",
        "2026-11-29T10:00",
        "ä",
        "実験 1",
        "🚀",
        "50%",
        "x" * 128,
        "字" * 66,
        "CON",
    ],
)
def test_any_other_name_is_taken(name: str, tmp_path: Path) -> None:
    assert load_with(tmp_path, {"run.name": name}).run.name == name


def test_an_error_of_several_keys_has_a_message_and_a_remedy_of_each(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_with(tmp_path, {"sampling.group_size": 1, "model.path": ""})
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.message.splitlines() == [
        'model.path = "": must name the policy',
        "sampling.group_size = 1: a group of one has no advantage",
    ]
    assert error.remedy.splitlines() == ["set model.path=DIR", "set it to 2 or more"]
    assert [str(problem) for problem in error.problems] == str(error).splitlines()


def test_a_key_of_the_file_is_named_with_the_file_and_one_of_the_command_line_without(
    write: Callable[[str], Path],
) -> None:
    path = write(SPARSE + "train: {steps: -1}")
    with pytest.raises(ConfigError) as caught:
        load(path, ["learner.lr=0"])
    assert [error.message for error in caught.value.problems] == [
        f"{path}: train.steps = -1: must be a whole number, at least 0",
        "learner.lr = 0: must be a finite number, above 0",
    ]


def test_a_run_that_was_shortened_by_an_override_loads_from_its_folder(write: Callable[[str], Path]) -> None:
    """checkpoint_every of the file has no effect then; the resolved config holds it as any key."""
    config = load(write(SPARSE + "train: {checkpoint_every: 10}"), ["train.steps=3"])
    path = write(dump(config))
    assert load(path, ["rollout.num_workers=2"]).train.checkpoint_every == 10
    with pytest.raises(ConfigError, match=r"checkpoint_every = 5: has no effect with train\.steps = 3"):
        load(path, ["train.checkpoint_every=5"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("seed=3", "rollout.engine_args.seed = 3: has a key of its own; set run.seed"),
        ("trust_remote_code=true", "code of a checkpoint is never run; leave it out"),
        (
            "logprobs_mode=raw_logprobs",
            "the learner needs the log-probabilities that tokens were sampled with",
        ),
        ("enable_chunked_prefill=true", "cannot be changed on CPU"),
    ],
)
def test_engine_arguments_that_training_relies_on_are_refused(
    write: Callable[[str], Path], given: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(SPARSE), [f"rollout.engine_args.{given}"])
    (line,) = str(caught.value).splitlines()
    assert line.startswith("rollout.engine_args.")
    assert said in line


def test_engine_arguments_are_kept_as_they_are(write: Callable[[str], Path], tmp_path: Path) -> None:
    given = ["speculative_config={method: mtp, num_speculative_tokens: 2}", "kv_cache_dtype=fp8"]
    config = load(write(SPARSE), [f"rollout.engine_args.{each}" for each in given])
    assert config.rollout.engine_args == {
        "speculative_config": {"method": "mtp", "num_speculative_tokens": 2},
        "kv_cache_dtype": "fp8",
    }
    again = tmp_path / "again.yaml"
    again.write_text(dump(config))
    assert load(again) == config
    with pytest.raises(ConfigError, match=r"rollout\.engine_args = 3: must be a mapping"):
        load(write(SPARSE), ["rollout.engine_args=3"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["model.lora.rank=8"], "model.lora.rank = 8: needs model.freeze_vision=true"),
        (
            ["model.lora.rank=8", "model.freeze_vision=true", "model.lora.targets=[]"],
            "must name at least one layer",
        ),
        (["model.lora.alpha=8"], "model.lora.alpha = 8.0: has no effect with model.lora.rank = 0"),
        (
            ["model.lora.rank=8", "model.freeze_vision=true", "model.lora.adapter=a", "loss.kl_coef=0.1"],
            "model.lora.adapter = a: cannot go with loss.kl_coef = 0.1",
        ),
    ],
)
def test_rules_of_adapters(write: Callable[[str], Path], given: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(SPARSE), given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("read", "name", "command"),
    [
        (load_ablation, "tabletop_cpu", "videostr.launch or python -m videostr.plan"),
        (load_evaluation, "tabletop_sft", "videostr.sft"),
        (load, "eval_tabletop", "videostr.evaluate"),
        (load, "ablation_tabletop", "videostr.ablate"),
    ],
)
def test_the_config_of_another_command_is_named(
    read: Callable[[str], object], name: str, command: str
) -> None:
    with pytest.raises(ConfigError, match=f"configs/{name}.yaml: is a config of python -m {command}, not of"):
        read(f"configs/{name}.yaml")


@pytest.mark.parametrize("path", ["configs/tabletop_cpu.yaml", "videostr/tabletop/pretrained/config.json"])
def test_what_is_shipped_is_found_from_any_folder(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(path).is_file()
    own = tmp_path / path
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    assert find(path).resolve() == own.resolve()
    assert find("configs/nothing.yaml") == Path("configs/nothing.yaml")
