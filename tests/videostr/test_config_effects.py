"""Keys without effect: refused by name, value, reason and remedy; what an override switches off may stay in the file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rewards.rubric import PRESETS
from videostr.config.effects import LENGTHS, Written, keys_without_effect, ratio_moves
from videostr.config.load import dump, load, load_evaluation, load_sft
from videostr.config.schema import Config, EvaluationConfig, SftConfig
from videostr.config.values import flat
from videostr.errors import ConfigError

BASE = ["model.path=m", "data.train=d"]
ONE_UPDATE = (
    "loss.correction = {} and train.updates_per_batch = 1, where the ratio is 1 and nothing is clipped"
)

# Overrides, and for each key that must be refused a piece of its message.
NO_EFFECT: list[tuple[list[str], dict[str, str]]] = [
    *(
        (
            [f"loss.correction={correction}", f"loss.{key}={value}"],
            {f"loss.{key} = {value}": ONE_UPDATE.format(correction)},
        )
        for correction in ("none", "truncated")
        for key, value in (
            ("name", "gspo"),
            ("name", "cispo"),
            ("name", "ppo_clip"),
            ("eps_low", "0.2"),
            ("eps_high", "0.4"),
        )
    ),
    (["loss.custom=m:f", "loss.name=gspo"], {"loss.name = gspo": "loss.custom = m:f"}),
    (["loss.constant_length=100"], {"loss.constant_length = 100": "loss.aggregation = token"}),
    (["loss.aggregation=sequence", "loss.constant_length=1024"], {"loss.constant_length = 1024": "sequence"}),
    (
        ["sampling.dynamic_sampling_limit=2"],
        {"sampling.dynamic_sampling_limit = 2.0": "sampling.dynamic_sampling = false"},
    ),
    (
        ["sampling.dynamic_sampling=true", "sampling.dynamic_sampling_limit=1"],
        {"sampling.dynamic_sampling = true": "leaves no room"},
    ),
    (
        ["learner.packing=none", "learner.max_row_tokens=99"],
        {"learner.max_row_tokens = 99": "a row of its own"},
    ),
    (
        ["learner.schedule=cosine", "learner.warmup_steps=100"],
        {"learner.schedule = cosine": "100 updates in the run"},
    ),
    (
        [
            "rollout.num_gpus=1",
            "learner.num_gpus=1",
            "rollout.threads=2",
            "learner.threads=2",
            "rollout.kv_cache_gib=2",
        ],
        {
            "rollout.threads = 2": "engines on CPU",
            "rollout.kv_cache_gib = 2": "engines on CPU",
            "learner.threads = 2": "ranks on CPU",
        },
    ),
    (["reward.band=[1,2]"], {"reward.band = [1, 2]": "reward.rubric = default"}),
    (
        ["reward.rubric=paper", "reward.overlong_buffer=9"],
        {"reward.overlong_buffer = 9": "reward.rubric = paper"},
    ),
    (
        ["reward.length=none", "reward.overlong_buffer=9"],
        {"reward.overlong_buffer = 9": "reward.length = none"},
    ),
    (["reward.length=overlong"], {"reward.length = overlong": "reward.overlong_buffer = 0"}),
    (["reward.w_custom=0.5"], {"reward.w_custom = 0.5": 'reward.custom = ""'}),
    (["reward.token_file=t"], {"reward.token_file = t": 'reward.endpoint = ""'}),
    (["reward.ca_file=t"], {"reward.ca_file = t": 'reward.endpoint = ""'}),
    (
        ["reward.endpoint=h:1", "reward.num_workers=3", "placement.reward=x"],
        {"reward.num_workers = 3": "the service scores", "placement.reward = x": "reward.endpoint = h:1"},
    ),
    (["evaluate.samples=2"], {"evaluate.samples = 2": 'data.heldout = ""'}),
    (["evaluate.prompts=8"], {"evaluate.prompts = 8": 'data.heldout = ""'}),
    (
        ["data.heldout=h", "evaluate.prompts=0", "evaluate.every=2"],
        {"evaluate.every = 2": "evaluate.prompts = 0"},
    ),
    (
        ["data.heldout=h", "evaluate.every=9", "train.steps=9"],
        {"evaluate.every = 9": "train.steps = 9"},
    ),
    (
        ["train.checkpoint_every=9", "train.steps=9"],
        {"train.checkpoint_every = 9": "a checkpoint is written at the last step anyway"},
    ),
    (["data.tabletop.difficulty=full"], {"data.tabletop.difficulty = full": "nothing is built"}),
    (["data.tabletop.train_questions=2"], {"data.tabletop.train_questions = 2": "nothing is built"}),
    (["data.tabletop.heldout_scenes=9"], {"data.tabletop.heldout_scenes = 9": 'data.heldout = ""'}),
    (["logging.wandb.project=p"], {"logging.wandb.project = p": "logging.wandb.enabled = false"}),
    (["logging.mlflow.experiment=p"], {"logging.mlflow.experiment = p": "logging.mlflow.enabled = false"}),
]


def refused(text: str, overrides: list[str], folder: Path) -> list[str]:
    path = folder / "run.yaml"
    path.write_text(text)
    try:
        load(path, [*BASE, *overrides])
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize(("overrides", "expected"), NO_EFFECT, ids=lambda value: "+".join(value))
def test_a_key_without_effect_is_refused(
    overrides: list[str], expected: dict[str, str], tmp_path: Path
) -> None:
    lines = refused("{}", overrides, tmp_path)
    assert len(lines) == len(expected)
    for start, reason in expected.items():
        (line,) = [line for line in lines if line.startswith(f"{start}: has no effect with ")]
        assert reason in line
        assert "; " in line


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.name=gspo", "loss.eps_low=3e-4", "loss.eps_high=4e-4"],
        ["loss.name=cispo", "train.max_staleness=2"],
        *(
            [
                f"loss.correction={correction}",
                "train.updates_per_batch=2",
                f"loss.name={name}",
                "loss.eps_high=0.3",
            ]
            for correction in ("none", "truncated")
            for name in ("ppo_clip", "gspo", "cispo")
        ),
        ["loss.correction=none"],
        ["loss.correction=truncated", "loss.custom=m:f", "loss.eps_low=0.1"],
        ["loss.aggregation=constant", "loss.constant_length=10"],
        ["sampling.dynamic_sampling=true", "sampling.dynamic_sampling_limit=2"],
        ["reward.rubric=paper", "reward.band=[1,2]"],
        ["reward.length=overlong", "reward.overlong_buffer=9"],
        ["reward.custom=m:f", "reward.w_custom=0.5"],
        ["reward.endpoint=h:1", "reward.token_file=t", "reward.ca_file=t"],
        ["data.heldout=h", "evaluate.samples=2"],
        ["evaluate.prompts=0", "evaluate.every=0"],  # off is off, whatever else
        ["learner.schedule=cosine", "learner.warmup_steps=100", "train.updates_per_batch=2"],
    ],
    ids="+".join,
)
def test_a_key_with_an_effect_passes(overrides: list[str], tmp_path: Path) -> None:
    assert refused("{}", overrides, tmp_path) == []


@pytest.mark.parametrize(
    ("file", "override"),
    [
        ("reward: {num_workers: 8}", "reward.endpoint=h:1"),
        (
            "sampling: {dynamic_sampling: true, dynamic_sampling_limit: 2.0}",
            "sampling.dynamic_sampling=false",
        ),
        ("reward: {overlong_buffer: 256}", "reward.rubric=paper"),
        ("logging: {wandb: {enabled: true, project: p}}", "logging.wandb.enabled=false"),
        ("evaluate: {samples: 2}\ndata: {heldout: h}", "evaluate.prompts=0"),
        ("learner: {max_row_tokens: 9}", "learner.packing=none"),
        ("train: {checkpoint_every: 9}", "train.steps=3"),
    ],
)
def test_a_file_may_keep_what_an_override_switches_off(file: str, override: str, tmp_path: Path) -> None:
    assert refused(file, [override], tmp_path) == []
    key, _, value = override.partition("=")
    section, name = key.rsplit(".", 1)
    config = Config()
    assert hasattr(config, section.split(".")[0])
    # the same written into the file is a contradiction
    path = tmp_path / "both.yaml"
    path.write_text(file)
    (tmp_path / "empty.yaml").write_text("{}")
    tree = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist([override]))
    assert len(refused(OmegaConf.to_yaml(tree), [], tmp_path)) == 1, (section, name, value)


@pytest.mark.parametrize("override", ["loss.correction=none", "loss.correction=truncated"])
def test_the_loss_of_a_file_is_not_switched_off_in_silence(override: str, tmp_path: Path) -> None:
    assert len(refused("loss: {eps_high: 0.3}", [override], tmp_path)) == 1


def test_the_config_of_a_run_folder_counts_what_differs_from_the_defaults(tmp_path: Path) -> None:
    config = Config()
    config.model.path, config.data.train, config.sampling.dynamic_sampling = "m", "d", True
    config.sampling.dynamic_sampling_limit = 2.0
    path = tmp_path / "config.yaml"
    path.write_text(dump(config))
    assert load(path) == config
    assert load(path, ["sampling.dynamic_sampling=false"]).sampling.dynamic_sampling is False
    with pytest.raises(ConfigError, match=r"^loss.eps_low = 0.3: has no effect"):
        load(path, ["loss.correction=none", "loss.eps_low=0.3"])
    path.write_text("".join(dump(config).splitlines(keepends=True)[1:]))
    with pytest.raises(ConfigError, match=r"config.yaml: .*constant_length = 1024: has no effect"):
        load(path)


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (
            ["benchmark.modes=[direct]", "sampling.max_tokens=9"],
            "sampling.max_tokens = 9: has no effect with benchmark.modes = [direct]",
        ),
        (
            ["benchmark.modes=[think]", "sampling.max_tokens_direct=9"],
            "sampling.max_tokens_direct = 9: has no effect with benchmark.modes = [think]",
        ),
        (
            ["benchmark.modes=[direct,think]", "benchmark.control_prompt=think"],
            "benchmark.control_prompt = think: has no effect with benchmark.modes = [direct, think]",
        ),
        (
            ["benchmark.modes=[blind]", "sampling.max_tokens=9"],
            "sampling.max_tokens = 9: has no effect with benchmark.modes = [blind], benchmark.control_prompt = direct",
        ),
        (
            [
                "benchmark.modes=[graph,blind]",
                "benchmark.control_prompt=graph",
                "sampling.max_tokens_direct=9",
            ],
            "sampling.max_tokens_direct = 9: has no effect with benchmark.modes = [graph, blind], benchmark.control",
        ),
        (
            ["benchmark.fps=1.0", "benchmark.name=records"],
            "benchmark.fps = 1.0: has no effect with benchmark.name = records",
        ),
        (["judge.endpoint=u"], "judge.endpoint = u: has no effect with benchmark.name = vsi_bench"),
        (
            ["benchmark.name=v_star", "judge.timeout_s=3"],
            'judge.timeout_s = 3.0: has no effect with judge.endpoint = ""',
        ),
        (["reward.rubric=paper"], "reward.rubric = paper: has no effect with benchmark.name = vsi_bench"),
        (
            ["benchmark.name=records", "reward.num_workers=2"],
            "reward.num_workers = 2: has no effect with an evaluation",
        ),
        (["rollout.max_workers=3"], "rollout.max_workers = 3: has no effect with an evaluation"),
    ],
)
def test_in_an_evaluation(overrides: list[str], word: str, tmp_path: Path) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text("benchmark: {name: vsi_bench, root: r}\nmodel: {path: m}\n")
    load_evaluation(path)
    with pytest.raises(ConfigError) as caught:
        load_evaluation(path, overrides)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(word)


def test_a_model_s_length_bounds_no_limit_that_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text("benchmark: {name: vsi_bench, root: r}\nmodel: {path: m}\n")
    load_evaluation(path, ["rollout.max_model_len=512"])  # mode direct
    load_evaluation(path, ["rollout.max_model_len=512", "benchmark.modes=[think]", "sampling.max_tokens=9"])
    for modes in ("[think]", "[direct,graph]"):
        with pytest.raises(
            ConfigError, match=r"sampling.max_tokens = 1024: must be below rollout.max_model_len"
        ):
            load_evaluation(path, ["rollout.max_model_len=512", f"benchmark.modes={modes}"])
    with pytest.raises(ConfigError, match=r"sampling.max_tokens_direct = 64: must be below"):
        load_evaluation(path, ["rollout.max_model_len=64"])


def test_in_supervised_fine_tuning(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text("data: {train: d}\nmodel: {tiny: qwen2_5_vl}\n")
    with pytest.raises(ConfigError) as caught:
        load_sft(
            path, ["model.path=m", "rollout.kv_cache_gib=2", "evaluate.every=4", "train.checkpoint_every=500"]
        )
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "rollout.kv_cache_gib = 2",
        "model.path = m",
        "evaluate.every = 4",
        "train.checkpoint_every = 500",
    ]


def test_reinforce_clips_nothing(tmp_path: Path) -> None:
    (line,) = refused("loss: {name: reinforce, correction: truncated}", ["loss.eps_low=0.1"], tmp_path)
    assert line.startswith("loss.eps_low = 0.1: has no effect with loss.name = reinforce")
    (line,) = refused("loss: {name: reinforce, correction: ratio}", [], tmp_path)
    assert "loss.correction = ratio: has no effect with loss.name = reinforce" in line


def test_updates_need_groups(tmp_path: Path) -> None:
    (line,) = refused("{}", ["train.updates_per_batch=5", "train.prompts_per_step=4"], tmp_path)
    for word in ("train.updates_per_batch = 5", "train.prompts_per_step = 4", "whole groups", "lower it"):
        assert word in line


@pytest.mark.parametrize("kind", [Config, EvaluationConfig, SftConfig])
def test_every_key_of_the_rules_is_one_of_the_schema(kind: type) -> None:
    """With all keys written: a rule that names an unknown one would raise KeyError."""
    config = kind()
    values = dict(flat(asdict(config)))
    assert keys_without_effect(config, values, Written(file=frozenset(values)))


def test_length_terms_are_those_of_the_presets() -> None:
    assert {name: preset.length for name, preset in PRESETS.items()} == LENGTHS


def test_when_the_ratio_moves() -> None:
    config = Config()
    assert ratio_moves(config)
    config.loss.correction = "none"
    assert not ratio_moves(config)
    config.train.updates_per_batch = 2
    assert ratio_moves(config)
