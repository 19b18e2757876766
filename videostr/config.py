"""The typed config tree: load a YAML, override by `key=value`, validate, dump.

A file is sparse (what it leaves out has the default below) and complete (no interpolation, no inheritance).
`load` returns plain dataclasses; unknown keys, wrong types and broken rules raise `ConfigError`.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from videostr.config_effects import Written, keys_without_effect
from videostr.errors import ConfigError

MAX_NAME, MAX_NAME_BYTES = 128, 200
"""Of a run: Weights & Biases takes 128 characters, file systems 255 bytes for a name and what is put around it."""
RESOLVED = "# Resolved: every key, defaults included. Delete this line when you edit the file by hand.\n"
"""First line of a dump. Of such a file only keys that differ from their default count as written by the user."""


@dataclass
class Run:
    """Where a run lives and what it repeats."""

    name: str = "run"
    """Folder below `dir`, and the run's name in every logger: one name, not a path."""
    dir: str = "runs"
    """Parent of the run folder."""
    seed: int = 0
    """Seeds data order and sampling."""
    resume: str = "auto"
    """auto: continue when the folder has a checkpoint; never: refuse a folder that has one; else the folder of
    a checkpoint to go back to, once."""


@dataclass
class Model:
    """The policy."""

    path: str = ""
    """Hugging Face folder (or hub id) of a model of one of the families in `videostr/models`."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of weights and activations, in learner and engine."""
    freeze_vision: bool = False
    """True trains the language model only; the engines then keep their encoder caches across updates."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


@dataclass
class Tabletop:
    """The embedded world: builds the datasets that `data.train` and `data.heldout` name, where they do not exist yet."""

    train_scenes: int = 0
    """One record each; 0 builds nothing."""
    heldout_scenes: int = 0
    """The same for held-out records."""
    difficulty: Literal["easy", "full"] = "easy"
    """easy: the world of the shipped policy; full: metres, occlusion, a panning camera, for real models."""
    seed: int = 0
    """Seeds the scenes."""


@dataclass
class Data:
    """Record datasets: folders of Parquet shards, each with its videos."""

    train: str = ""
    """Folder of the training records."""
    heldout: str = ""
    """Evaluated before and after; "" for none."""
    frame_store: str = ""
    """Folder for decoded frames; "" is `frames/` in the run folder."""
    max_bad_fraction: float = 0.01
    """Stop when more than this share of the training records is quarantined."""
    tabletop: Tabletop = field(default_factory=Tabletop)


@dataclass
class Sampling:
    """How groups are sampled."""

    group_size: int = 8
    """G, completions per prompt, at least 2."""
    temperature: float = 1.0
    """Of training samples; above 0."""
    max_tokens: int = 1024
    """Longest completion, tokens."""
    refill: bool = False
    """Replace groups whose completions all earn the same by groups of further records (DAPO's dynamic sampling)."""
    refill_limit: float = 3.0
    """Most groups sampled for a step, in train.prompts_per_step; then groups without variance fill it up."""


@dataclass
class RolloutConfig:
    """vLLM engines; one per rollout worker."""

    num_workers: int = 1
    """At the start; `python -m videostr.scale` changes it while the run goes on."""
    max_workers: int = 0
    """Add workers up to this number whenever the cluster has room for one; 0 adds none."""
    tensor_parallel_size: int = 1
    """Accelerators per engine; 1 on CPU."""
    num_cpus: float = 1.0
    """Ray CPUs reserved per worker."""
    num_gpus: float = 0.0
    """Ray GPUs reserved per worker; 0 runs the CPU engine, otherwise equal to tensor_parallel_size."""
    max_model_len: int = 8192
    """Prompt and completion together, tokens."""
    max_num_seqs: int = 64
    """Sequences decoded together."""
    max_num_batched_tokens: int = 16384
    """Tokens of one engine step; also the longest prompt on CPU, where chunked prefill is off."""
    gpu_memory_utilization: float = 0.85
    """Share of accelerator memory for the engine."""
    kv_cache_gib: int = 1
    """Key-value cache of a CPU engine, GiB."""
    threads: int = 1
    """OpenMP threads of a CPU engine."""
    start_timeout_s: float = 900.0
    """Longest engine start."""
    request_timeout_s: float = 1800.0
    """Longest time for one group; it is then given up and asked again, three times at most."""
    health_check_s: float = 30.0
    """Seconds between health checks, and for the answer to one; an engine that misses three in a row is replaced."""
    max_restarts: int = 3
    """Times that an engine is started again before it is given up."""


@dataclass
class RewardConfig:
    """What completions are paid for, and where that is computed."""

    rubric: Literal["default", "paper", "spacer", "answer_only"] = "default"
    """Preset of weights, gate, graph score and length term (docs/rewards.md)."""
    w_format: float | None = None
    """Weight of the format; null takes the preset's, as in the next two."""
    w_answer: float | None = None
    """Weight of the answer."""
    w_graph: float | None = None
    """Weight of the relation graph."""
    custom: str = ""
    """A reward of your own, `package.module:function`: (Trace, Record) -> float in [0, 1]; gated as the answer is."""
    w_custom: float = 1.0
    """Weight of `custom`."""
    num_workers: int = 1
    """Processes, each scores one group at a time."""
    num_cpus: float = 1.0
    """Ray CPUs reserved per worker."""
    deadline_s: float = 30.0
    """Longest time for one group; a worker past it is killed and replaced."""
    memory_gib: float = 4.0
    """What a worker may take beyond what it starts with; a reward that wants more fails."""
    node_tolerance: float = 1.0
    """Scale of the distance at which a node's credit reaches 0, in units of the scene's size."""
    distance_tolerance: float = 0.5
    """Relative error at which an edge's distance credit reaches 0."""
    angle_tolerance: float = 60.0
    """Error at which an edge's bearing credit reaches 0, degrees."""
    node_weight: float = 0.5
    """lambda: share of the node term in the graph reward, the edge term has the rest."""
    edges: Literal["stated_or_derived", "derived", "stated"] = "stated_or_derived"
    """Whether stated edges count, edges derived from node positions, or stated ones where stated."""
    scale: Literal["absolute", "relative"] = "absolute"
    """relative divides distances by their mean on each side."""
    length: Literal["preset", "overlong", "band", "none"] = "preset"
    """overlong: a penalty before the limit; band: a bonus of 0.2 for right answers of a wanted length."""
    band: tuple[int, int] = (320, 512)
    """Fewest and most tokens that earn the bonus."""
    overlong_buffer: int = 0
    """Tokens before the limit over which the length penalty falls from 0 to -1; 0 switches it off."""
    endpoint: str = ""
    """HOST:PORT of a reward service that scores in place of workers of this run."""
    token_file: str = ""
    """File with the service's bearer token."""
    ca_file: str = ""
    """PEM file of the authority that signed the service's certificate; set, the connection is TLS."""


@dataclass
class LearnerConfig:
    """DeepSpeed ranks."""

    num_ranks: int = 1
    """Data-parallel processes; fixed while a run goes on."""
    num_cpus: float = 1.0
    """Ray CPUs reserved per rank."""
    num_gpus: float = 0.0
    """Ray GPUs reserved per rank; 0 trains on CPU over gloo."""
    threads: int = 1
    """OpenMP threads per CPU rank."""
    zero_stage: int = 0
    """DeepSpeed ZeRO stage, 0 to 3."""
    lr: float = 1e-6
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    weight_decay: float = 0.0
    """AdamW's, of all trained parameters."""
    warmup_steps: int = 0
    """Linear warm-up of the learning rate, optimizer steps."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up, over train.steps * train.updates_per_batch optimizer steps."""
    max_grad_norm: float = 1.0
    """Global gradient norm is clipped to this."""
    packing: Literal["group", "none"] = "group"
    """group: one forward for the prompt and its G completions; none: one per completion (the reference)."""
    max_row_tokens: int = 4096
    """Tokens of one packed row; longer groups are split by completions, shorter ones share a row."""
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """Of the language model over packed rows. auto: flex (FlexAttention, compiled) on GPUs, sdpa on CPU."""
    vision_cache_gib: float = 0.0
    """Host memory of a rank for features of a frozen vision tower, kept from epoch to epoch; 0 keeps them for an update."""
    timeout_s: float = 1800.0
    """Longest time for one call on a rank."""
    max_restarts: int = 3
    """Times that all ranks are started again from the last checkpoint, when one is lost, before the run is given up."""


@dataclass
class LossConfig:
    """Advantage and policy loss (docs/method.md)."""

    advantage: Literal["grpo", "dr_grpo"] = "grpo"
    """grpo divides by the group's standard deviation, dr_grpo does not."""
    name: Literal["ppo_clip", "gspo", "cispo"] = "ppo_clip"
    """PPO clip with eps_high above eps_low (DAPO), GSPO (one ratio per sequence), CISPO (clipped weight)."""
    custom: str = ""
    """A loss of your own in place of `name`, `package.module:function`: LossInputs -> loss per token (docs/extending.md)."""
    correction: Literal["ratio", "truncated", "none"] = "ratio"
    """What the ratio is taken against, and how the engine's log-probabilities mu enter (docs/method.md).

    ratio: pi / mu, so that the clip acts on staleness and on the difference between learner and engine alike. truncated: pi
    over the learner's own before the first update on the batch, each token weighted by min(own / mu, 2). none: the same
    without the weight; nothing then depends on the last bits of mu, so that a resumed run on CPU repeats exactly.
    """
    eps_low: float = 0.2
    """Ratios are clipped below at 1 - eps_low."""
    eps_high: float = 0.28
    """Ratios are clipped above at 1 + eps_high."""
    kl_coef: float = 0.0
    """Weight of the k3 estimate of KL(policy || reference); above 0 a frozen reference model is kept."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean over all tokens of the batch, over sequences of their token means, or sums divided by `constant_length`."""
    constant_length: int = 1024
    """Divisor per sequence for aggregation `constant`, tokens."""
    mask_truncated: bool = False
    """Leave completions that hit the token limit out of the loss."""


@dataclass
class SyncConfig:
    """Weight transfer from learner to engines."""

    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """auto: nccl when the engines have GPUs, else gloo."""
    timeout_s: float = 300.0
    """Deadline of every control call of a transfer."""
    verify: bool = False
    """Compare checksums of every parameter after each transfer."""


@dataclass
class TrainConfig:
    """Length and shape of the run."""

    steps: int = 100
    """Steps of the run: each samples a batch, learns from it, and sends the new weights to the engines."""
    prompts_per_step: int = 16
    """P, groups per sampled batch."""
    updates_per_batch: int = 1
    """K, optimizer steps per sampled batch: its groups are cut, in order, into K mini-batches of whole groups."""
    max_staleness: int = 0
    """S, steps that may lie between the weights that sampled a token and the step that learns from it; 0 is synchronous."""
    max_flat_steps: int = 20
    """Stop after so many steps in a row without any group whose rewards differ; 0 never."""
    checkpoint_every: int = 50
    """Steps; the last step is always saved. 0 saves only the last."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    traces_every: int = 10
    """Steps between trace dumps; 0 for none."""


@dataclass
class EvaluateConfig:
    """Held-out evaluation before and after training."""

    prompts: int = 256
    """Held-out prompts, the first of the dataset; 0 for no evaluation."""
    every: int = 0
    """Steps between greedy evaluations beside training; the best checkpoint by their total is kept. 0 for none."""
    samples: int = 4
    """Sampled completions per prompt, at the training temperature; one greedy one is added."""
    bootstrap: int = 2000
    """Resamples for confidence intervals."""


@dataclass
class PlacementConfig:
    """How the plan meets the cluster."""

    wait_s: float = 0.0
    """Seconds to wait for nodes that an autoscaler may bring; 0 refuses a plan that does not fit now."""
    rollout: str = ""
    """Ray resource of which every rollout worker takes one, so that it lands on a node that offers it (`ray start
    --resources '{"rollout": 8}'`); "" for any node."""
    learner: str = ""
    """The same for learner ranks."""
    reward: str = ""
    """The same for reward workers."""


@dataclass
class WandbConfig:
    """Weights & Biases. The key is that of `wandb login` or WANDB_API_KEY, never in a config."""

    enabled: bool = False
    """Needs the package `wandb` where the driver runs."""
    project: str = "videostr"
    """Project of the run."""
    entity: str = ""
    """User or team that the project belongs to; "" is the account's default."""
    mode: Literal["online", "offline"] = "online"
    """offline writes `wandb/` in the run folder, for `wandb sync` later."""
    group: str = ""
    """Runs of one group stand together, e.g. the seeds of a comparison; "" for none."""


@dataclass
class MlflowConfig:
    """MLflow tracking. Credentials are MLflow's environment variables (MLFLOW_TRACKING_TOKEN, ...), never in a config."""

    enabled: bool = False
    """Needs the package `mlflow-skinny` where the driver runs, and for a database `sqlalchemy` and `alembic`."""
    tracking_uri: str = ""
    """Server (http://HOST:PORT) or database (sqlite:////FOLDER/mlflow.db); "" is MLFLOW_TRACKING_URI, else `mlflow.db` in the
    run folder."""
    experiment: str = "videostr"
    """Experiment of the run; made where it does not exist."""


@dataclass
class LoggingConfig:
    """Where metrics go beside `metrics.jsonl`. One that fails is counted under `failures/logger_NAME`, and never stops a run."""

    tensorboard: bool = True
    """Event files in `tensorboard/` of the run folder."""
    prometheus: bool = True
    """Metrics page of Ray's node: every figure of a step, failures, worker states (`ray_videostr_*`)."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    mlflow: MlflowConfig = field(default_factory=MlflowConfig)


@dataclass
class Config:
    """One run: `python -m videostr.launch`."""

    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    sampling: Sampling = field(default_factory=Sampling)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


@dataclass
class ColdStartConfig:
    """Supervised cold start on reference traces: `python -m videostr.coldstart`."""

    data: str = ""
    """Record dataset to learn from."""
    heldout: str = ""
    """Record dataset to measure on; "" for none."""
    model: str = ""
    """Folder of a model to start from; "" makes the tabletop policy from random weights."""
    out: str = ""
    """Folder for the result, Hugging Face format."""
    frame_store: str = ""
    """Folder for decoded frames; "" is `frames/` in `data`."""
    seed: int = 0
    """Seeds initial weights and data order."""
    steps: int = 1000
    """Optimizer steps; the learning rate falls to 0 over them, by a cosine."""
    ends_only: float = 0.0
    """Share of reference traces that state only the first and the last selected time: a habit for RL to unlearn."""
    batch_size: int = 64
    """Traces per step."""
    lr: float = 3e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.01
    """AdamW's, of all trained parameters."""
    warmup_steps: int = 50
    """Linear warm-up of the learning rate."""
    max_grad_norm: float = 1.0
    """Global gradient norm is clipped to this."""
    freeze_vision: bool = False
    """True trains the language model only."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations."""
    device: str = "cpu"
    """As torch names it: cpu, cuda, cuda:1."""
    threads: int = 2
    """OpenMP threads on CPU."""
    heldout_prompts: int = 128
    """Held-out records that the final accuracy is measured on."""


@dataclass
class Frames:
    """Which frames of a benchmark's video the model is shown. Records of ours say it themselves."""

    max_frames: int = 32
    """Most frames of a clip, at equal spacing, first and last included."""
    fps: float = 0.0
    """Frames per second, up to max_frames; 0 shows max_frames of every clip."""
    max_pixels: int = 200704
    """Most pixels of a frame; larger ones are scaled down, their sides to multiples of what the model takes. 256 tokens here."""


@dataclass
class Judge:
    """A language model that rates open answers (V-STaR), behind an OpenAI-compatible endpoint such as vLLM's server."""

    endpoint: str = ""
    """Base URL, e.g. http://127.0.0.1:8000/v1; "" rates by shared words, which is not the official judge."""
    model: str = "Qwen/Qwen2.5-72B-Instruct"
    """Name of the model at the endpoint; the default is the official judge."""
    api_key_file: str = ""
    """File with the endpoint's key."""
    timeout_s: float = 120.0
    """Longest time for one rating; it is then tried twice more."""


@dataclass
class EvaluationConfig:
    """A policy on a benchmark: `python -m videostr.evaluate`."""

    name: str = ""
    """Folder of the result below `dir`; "" makes it of benchmark and model."""
    dir: str = "evaluations"
    """Parent of results; holds every answer ever given (`answers.sqlite`), so that nothing is asked twice."""
    benchmark: Literal["sti_bench", "vsi_bench", "v_star", "records"] = "records"
    """records: a record dataset of ours."""
    root: str = ""
    """Folder with the benchmark's files and videos."""
    model: str = ""
    """Hugging Face folder (or hub id) of a model, such as `policy/` of a checkpoint."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of weights and activations."""
    modes: list[Literal["direct", "think", "graph"]] = field(default_factory=lambda: ["direct"])
    """direct: the official prompt; think: reason first; graph: draw the relation graph, then reason."""
    limit: int = 0
    """Only the first questions; 0 asks all."""
    seed: int = 0
    """Of sampling and bootstrap."""
    temperature: float = 0.0
    """0 is greedy."""
    max_tokens: int = 1024
    """Longest completion, tokens."""
    max_tokens_direct: int = 64
    """The same in mode direct, where only an answer is wanted."""
    bootstrap: int = 2000
    """Resamples for confidence intervals."""
    frames: Frames = field(default_factory=Frames)
    judge: Judge = field(default_factory=Judge)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    """The rubric that scores records."""
    placement: PlacementConfig = field(default_factory=PlacementConfig)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a run's config.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type or broken rule; names the key and the remedy.
    """
    config, written = _read(Config, path, overrides)
    validate(config, written)
    return config  # type: ignore[no-any-return]


def load_coldstart(path: str | Path, overrides: Sequence[str] = ()) -> ColdStartConfig:
    """Read a cold start's config; raises as `load` does."""
    config, written = _read(ColdStartConfig, path, overrides)
    _check(_coldstart_rules(config), config, written)
    return config  # type: ignore[no-any-return]


def load_evaluation(path: str | Path, overrides: Sequence[str] = ()) -> EvaluationConfig:
    """Read an evaluation's config; raises as `load` does."""
    config, written = _read(EvaluationConfig, path, overrides)
    _check(_evaluation_rules(config), config, written)
    return config  # type: ignore[no-any-return]


def dump(config: Config | ColdStartConfig | EvaluationConfig) -> str:
    """The resolved config as YAML; `load` of it gives the same config."""
    return RESOLVED + OmegaConf.to_yaml(OmegaConf.structured(config))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf of nested sections; tuples as lists, as a file has them."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def validate(config: Config, written: Written | None = None) -> None:
    """Check every rule between keys.

    Args:
        config: a run's.
        written: which keys the user wrote; by default those that differ from their default.

    Raises:
        ConfigError: one line for each broken rule: the keys, their values, the rule, the remedy.
    """
    _check(_rules(config), config, written or Written(file=_changed(config)))


def _read(schema: type, path: str | Path, overrides: Sequence[str]) -> tuple[Any, Written]:
    """The config, and the keys that file and overrides set."""
    try:
        file = OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file; the shipped ones are in configs/") from None
    except Exception as error:  # PyYAML and OmegaConf share no base class
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(file, DictConfig):
        raise ConfigError(
            f"{path}: holds a {type(file).__name__}, must be a mapping of sections such as `model:`"
        )
    for key, value in _numbers_for_text(file, schema):
        raise ConfigError(f"{path}: {key}: must be text, but YAML reads it as {value!r}; put it in quotes")
    given = [_override(text, schema) for text in overrides]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), file, *given)
        _refuse_interpolation(path, OmegaConf.to_container(merged, resolve=False))
        config: Any = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a mapping for a list
        key = getattr(error, "full_key", None) or "?"
        first = str(error).splitlines()[0]
        raise ConfigError(f"{path}: {key}: {first}; keys and types are listed in docs/config.md") from error
    in_file = _written(file)
    with Path(path).open(encoding="utf-8") as lines:
        if lines.readline() == RESOLVED:
            in_file = _changed(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), file)))
    return config, Written(file=in_file, overrides=_written(*given))


def _written(*parts: DictConfig) -> frozenset[str]:
    """Dotted keys of mappings."""
    trees: list[Any] = [OmegaConf.to_container(part, resolve=False) for part in parts]
    return frozenset(key for tree in trees for key, _ in flat(tree))


def _changed(config: Any) -> frozenset[str]:
    """Dotted keys whose value differs from the default."""
    defaults = dict(flat(asdict(type(config)())))
    return frozenset(key for key, value in flat(asdict(config)) if value != defaults[key])


def _override(text: str, schema: type) -> DictConfig:
    _, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"override {text!r}: must be key=value, e.g. train.steps=10")
    try:
        override = OmegaConf.from_dotlist([text])
        # Text stays as it was written: run.name=007 is not 7, nor are 1.10 and 1.1 one run.
        for key, _ in _numbers_for_text(override, schema):
            OmegaConf.update(override, key, value.strip())
    except Exception as error:  # as of a file
        problem = " ".join(str(error).split())
        raise ConfigError(
            f"override {text!r}: not readable as YAML: {problem}; quote the value, e.g. run.name='\"@x\"'"
        ) from error
    return override


def _numbers_for_text(part: DictConfig, schema: type) -> list[tuple[str, bool | int | float]]:
    """Return the keys of a config that hold text and were given what YAML reads as something else, with that."""
    texts = {key for key, default in flat(asdict(schema())) if isinstance(default, str)}
    values: Any = OmegaConf.to_container(part, resolve=False)
    return [(key, v) for key, v in flat(values) if key in texts and isinstance(v, bool | int | float)]


def _refuse_interpolation(path: str | Path, tree: Any, key: str = "") -> None:
    if isinstance(tree, dict):
        for name, value in tree.items():
            _refuse_interpolation(path, value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, str) and "${" in tree:
        raise ConfigError(f"{path}: {key} = {tree!r}: interpolation is not supported; write the value out")


def _check(
    rules: Sequence[tuple[bool, str]], config: Config | ColdStartConfig | EvaluationConfig, written: Written
) -> None:
    broken = [message for holds, message in rules if not holds]
    named = {message.partition(" = ")[0] for message in broken}
    without = keys_without_effect(config, dict(flat(asdict(config))), written)
    broken += [message for key, message in without.items() if key not in named]
    if broken:
        raise ConfigError("\n".join(broken))


def _positive(section: str, values: Any, *names: str) -> list[tuple[bool, str]]:
    return [_bound(f"{section}.{name}", getattr(values, name), lambda v: v > 0, "above 0") for name in names]


def _bound(key: str, value: float, holds: Callable[[float], bool], rule: str) -> tuple[bool, str]:
    if not abs(value) < math.inf:
        return False, f"{key} = {value}: must be a finite number, {rule}"
    return holds(value), f"{key} = {value}: must be {rule}"


def seed_rule(key: str, value: int) -> tuple[bool, str]:
    """Whether NumPy, torch and vLLM take a seed, and what is said where they do not."""
    return _bound(key, value, lambda v: 0 <= v < 2**32, f"at least 0 and at most {2**32 - 1}")


def _name_rule(key: str, name: str) -> tuple[bool, str]:
    """Whether a name can be that of a folder, and of a run in every logger."""
    problem = next((problem for holds, problem in _NAME_RULES if not holds(name)), "")
    return not problem, f"{key} = {name!a}: {problem}; choose another name, such as run-1"


_NAME_RULES: tuple[tuple[Callable[[str], bool], str], ...] = (
    (bool, "must not be empty"),
    (
        lambda n: not set(n) & set("/\\?"),
        "must not contain / or \\ (it is one folder below run.dir), nor ? (which ends the name of a database)",
    ),
    (lambda n: n[0] not in ".-", "must not begin with . or -"),
    (lambda n: n[-1] != "." and n.strip() == n, "must not end with . nor begin or end with a space"),
    (
        lambda n: all(unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029" for c in n),
        "must not contain control characters, nor such as have no meaning in UTF-8",
    ),
    (
        lambda n: len(n) <= MAX_NAME and len(n.encode(errors="replace")) <= MAX_NAME_BYTES,
        f"must have at most {MAX_NAME} characters, and {MAX_NAME_BYTES} bytes in UTF-8",
    ),
)


def _rollout_rules(
    r: RolloutConfig, max_tokens: int, key: str = "sampling.max_tokens"
) -> list[tuple[bool, str]]:
    on_gpu = r.num_gpus > 0
    return [
        *_positive("rollout", r, "num_workers", "tensor_parallel_size", "max_model_len", "max_num_seqs"),
        *_positive(
            "rollout",
            r,
            "num_cpus",
            "kv_cache_gib",
            "threads",
            "start_timeout_s",
            "request_timeout_s",
            "health_check_s",
        ),
        (
            r.max_workers == 0 or r.max_workers >= r.num_workers,
            f"rollout.max_workers = {r.max_workers} must be 0 or at least rollout.num_workers = "
            f"{r.num_workers}: workers are only added by themselves; lower num_workers",
        ),
        _bound("rollout.max_restarts", r.max_restarts, lambda v: v >= 0, "at least 0"),
        _bound("rollout.num_gpus", r.num_gpus, lambda v: v >= 0, "at least 0"),
        _bound("rollout.gpu_memory_utilization", r.gpu_memory_utilization, lambda v: 0 < v <= 1, "in (0, 1]"),
        (
            max_tokens < r.max_model_len,
            f"{key} = {max_tokens} must be below rollout.max_model_len = "
            f"{r.max_model_len}, or no prompt fits; raise max_model_len",
        ),
        (
            on_gpu or r.tensor_parallel_size == 1,
            f"rollout.tensor_parallel_size = {r.tensor_parallel_size} needs GPUs, but rollout.num_gpus = 0; "
            "set rollout.num_gpus to the same number",
        ),
        (
            not on_gpu or r.num_gpus == r.tensor_parallel_size,
            f"rollout.num_gpus = {r.num_gpus} must equal rollout.tensor_parallel_size = "
            f"{r.tensor_parallel_size}: an engine has one GPU per tensor-parallel rank",
        ),
        (
            on_gpu or r.max_num_batched_tokens >= r.max_model_len,
            f"rollout.max_num_batched_tokens = {r.max_num_batched_tokens} must be at least rollout.max_model_len = "
            f"{r.max_model_len} on CPU, where prompts are not prefilled in chunks; raise it or lower max_model_len",
        ),
    ]


def _evaluation_rules(c: EvaluationConfig) -> list[tuple[bool, str]]:
    return [
        *_positive("evaluation", c, "max_tokens", "max_tokens_direct", "bootstrap"),
        *_positive("frames", c.frames, "max_frames", "max_pixels"),
        *_positive("judge", c.judge, "timeout_s"),
        *_rollout_rules(c.rollout, max(c.max_tokens, c.max_tokens_direct), "max_tokens"),
        _bound("frames.fps", c.frames.fps, lambda v: v >= 0, "at least 0"),
        _bound("temperature", c.temperature, lambda v: v >= 0, "at least 0"),
        _bound("limit", c.limit, lambda v: v >= 0, "at least 0"),
        *_placement_rules(c.placement),
        seed_rule("seed", c.seed),
        *([_name_rule("name", c.name)] if c.name else []),
        (bool(c.root), 'root = "": must name the folder with the files of the benchmark; set root=DIR'),
        (bool(c.model), 'model = "": must name the policy to evaluate; set model=DIR'),
        (
            bool(c.modes) and len(set(c.modes)) == len(c.modes),
            f"modes = {list(c.modes)}: must name at least one of direct, think, graph, each once",
        ),
    ]


def _rules(c: Config) -> list[tuple[bool, str]]:
    gpu_rollout = c.rollout.num_gpus > 0
    gpu_learner = c.learner.num_gpus > 0
    return [
        _name_rule("run.name", c.run.name),
        (bool(c.run.dir), 'run.dir = "": must name the parent of the run folder; set run.dir=DIR'),
        seed_rule("run.seed", c.run.seed),
        seed_rule("data.tabletop.seed", c.data.tabletop.seed),
        *_positive("sampling", c.sampling, "temperature", "max_tokens"),
        *_rollout_rules(c.rollout, c.sampling.max_tokens),
        *_positive(
            "reward", c.reward, "num_workers", "num_cpus", "deadline_s", "memory_gib", "node_tolerance"
        ),
        *_positive("reward", c.reward, "distance_tolerance", "angle_tolerance"),
        *_positive("learner", c.learner, "num_ranks", "num_cpus", "threads", "lr", "max_grad_norm"),
        *_positive("learner", c.learner, "max_row_tokens", "timeout_s"),
        *_positive("loss", c.loss, "eps_low", "eps_high", "constant_length"),
        *_positive("sync", c.sync, "timeout_s"),
        *_positive("train", c.train, "steps", "prompts_per_step", "updates_per_batch", "keep_checkpoints"),
        *_positive("evaluate", c.evaluate, "samples", "bootstrap"),
        _bound("reward.node_weight", c.reward.node_weight, lambda v: 0 <= v <= 1, "in [0, 1]"),
        _bound("reward.overlong_buffer", c.reward.overlong_buffer, lambda v: v >= 0, "at least 0"),
        *(
            _bound(f"reward.{name}", getattr(c.reward, name) or 0.0, lambda v: v >= 0, "at least 0")
            for name in ("w_format", "w_answer", "w_graph", "w_custom")
        ),
        (
            0 <= c.reward.band[0] <= c.reward.band[1],
            f"reward.band = {list(c.reward.band)}: must be two numbers of tokens, the smaller first, e.g. [320, 512]",
        ),
        _bound("data.max_bad_fraction", c.data.max_bad_fraction, lambda v: 0 <= v <= 1, "in [0, 1]"),
        _bound("learner.zero_stage", c.learner.zero_stage, lambda v: v in (0, 1, 2, 3), "0, 1, 2 or 3"),
        (
            all(0 <= beta < 1 for beta in c.learner.betas),
            f"learner.betas = {list(c.learner.betas)}: must be two numbers in [0, 1), e.g. [0.9, 0.999]",
        ),
        _bound("learner.vision_cache_gib", c.learner.vision_cache_gib, lambda v: v >= 0, "at least 0"),
        (
            c.learner.vision_cache_gib == 0 or c.model.freeze_vision,
            f"learner.vision_cache_gib = {c.learner.vision_cache_gib:g} needs model.freeze_vision=true: features of a tower "
            "that is trained are stale after an update; freeze it, or set learner.vision_cache_gib=0",
        ),
        (
            gpu_learner or c.learner.attention != "flex",
            "learner.attention = flex needs GPUs, but learner.num_gpus = 0: FlexAttention has no backward pass on CPU; "
            "use learner.attention=auto",
        ),
        _bound("learner.num_gpus", c.learner.num_gpus, lambda v: v >= 0, "at least 0"),
        _bound("learner.weight_decay", c.learner.weight_decay, lambda v: v >= 0, "at least 0"),
        _bound("learner.warmup_steps", c.learner.warmup_steps, lambda v: v >= 0, "at least 0"),
        *(
            _bound(f"data.tabletop.{name}", getattr(c.data.tabletop, name), lambda v: v >= 0, "at least 0")
            for name in ("train_scenes", "heldout_scenes")
        ),
        _bound("loss.kl_coef", c.loss.kl_coef, lambda v: v >= 0, "at least 0"),
        _bound("learner.max_restarts", c.learner.max_restarts, lambda v: v >= 0, "at least 0"),
        _bound("evaluate.every", c.evaluate.every, lambda v: v >= 0, "at least 0"),
        _bound("evaluate.prompts", c.evaluate.prompts, lambda v: v >= 0, "at least 0"),
        _bound("train.checkpoint_every", c.train.checkpoint_every, lambda v: v >= 0, "at least 0"),
        _bound("train.max_staleness", c.train.max_staleness, lambda v: v >= 0, "at least 0"),
        _bound("train.max_flat_steps", c.train.max_flat_steps, lambda v: v >= 0, "at least 0"),
        _bound("sampling.refill_limit", c.sampling.refill_limit, lambda v: v >= 1, "at least 1"),
        _bound("train.traces_every", c.train.traces_every, lambda v: v >= 0, "at least 0"),
        (
            c.train.updates_per_batch <= c.train.prompts_per_step,
            f"train.updates_per_batch = {c.train.updates_per_batch} must be at most train.prompts_per_step = "
            f"{c.train.prompts_per_step}: each update learns from whole groups of the batch; lower it",
        ),
        *_placement_rules(c.placement),
        *_logging_rules(c.logging),
        (bool(c.model.path), 'model.path = "": must name the policy; set model.path=DIR'),
        (
            bool(c.data.train),
            'data.train = "": must name a record dataset; build one with python -m videostr.data',
        ),
        (
            c.sampling.group_size >= 2,
            f"sampling.group_size = {c.sampling.group_size}: a group of one has no advantage; set it to 2 or more",
        ),
        (
            gpu_rollout == gpu_learner,
            f"rollout.num_gpus = {c.rollout.num_gpus} and learner.num_gpus = {c.learner.num_gpus}: engines and learner "
            "must be both on GPUs or both on CPU, or weights have no common backend",
        ),
        (
            not (c.sync.backend == "nccl" and not gpu_rollout),
            "sync.backend = nccl needs GPUs, but rollout.num_gpus = 0; use sync.backend=gloo or auto",
        ),
        (
            not (c.reward.overlong_buffer >= c.sampling.max_tokens),
            f"reward.overlong_buffer = {c.reward.overlong_buffer} must be below sampling.max_tokens = "
            f"{c.sampling.max_tokens}, or every completion is penalised; lower it",
        ),
    ]


def _placement_rules(p: PlacementConfig) -> list[tuple[bool, str]]:
    names = [
        (
            getattr(p, name) not in {"CPU", "GPU", "memory", "object_store_memory"},
            f"placement.{name} = {getattr(p, name)}: must be a resource of your own, for Ray counts this one itself; name one "
            'that nodes offer by `ray start --resources`, such as rollout, or ""',
        )
        for name in ("rollout", "learner", "reward")
    ]
    return [*names, _bound("placement.wait_s", p.wait_s, lambda v: v >= 0, "at least 0")]


def _logging_rules(c: LoggingConfig) -> list[tuple[bool, str]]:
    uri = c.mlflow.tracking_uri
    return [
        (
            not uri.startswith(("file:", "/", ".")),
            f"logging.mlflow.tracking_uri = {uri}: must be a server or a database, for MLflow has given folders of files up; "
            "use http://HOST:PORT or sqlite:////FOLDER/mlflow.db",
        ),
        (
            not c.wandb.enabled or bool(c.wandb.project),
            'logging.wandb.project = "": must name a project; set logging.wandb.project=NAME',
        ),
        (
            not c.mlflow.enabled or bool(c.mlflow.experiment),
            'logging.mlflow.experiment = "": must name an experiment; set logging.mlflow.experiment=NAME',
        ),
    ]


def _coldstart_rules(c: ColdStartConfig) -> list[tuple[bool, str]]:
    return [
        *_positive("coldstart", c, "steps", "batch_size", "lr", "max_grad_norm", "threads"),
        seed_rule("seed", c.seed),
        _bound("ends_only", c.ends_only, lambda v: 0 <= v <= 1, "in [0, 1]"),
        _bound("weight_decay", c.weight_decay, lambda v: v >= 0, "at least 0"),
        _bound("warmup_steps", c.warmup_steps, lambda v: v >= 0, "at least 0"),
        (bool(c.data), 'data = "": must name a record dataset; build one with python -m videostr.data build'),
        (bool(c.out), 'out = "": must name the folder for the result'),
    ]
