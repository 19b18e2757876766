"""The sections of a config: their keys with type, range, default and meaning.

Every command that needs one of these things uses the same section with the same key for it: `run`, `model`, `data`, `sampling`,
`rollout`, `reward`, `learner`, `train`, `evaluate`, `placement`. A range is an annotation; rules between keys are in rules.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
"""What NumPy, torch and vLLM take."""
Dtype = Literal["float32", "bfloat16"]


@dataclass
class Run:
    """Where a run lives and what it repeats."""

    name: str = "run"
    """Folder below `dir`, and the run's name in every logger: one name, not a path."""
    dir: str = "runs"
    """Parent of the run folder."""
    seed: Seed = 0
    """Seeds data order and sampling."""
    resume: str = "auto"
    """auto: continue when the folder has a checkpoint; never: refuse a folder that has one; else the folder of
    a checkpoint to go back to, once."""


@dataclass
class Lora:
    """Low-rank adapters: the policy's weights stay frozen, and small matrices next to some of them are trained."""

    rank: NonNegativeInt = 0
    """r; 0 trains all weights."""
    alpha: Positive = 32.0
    """Adapters are scaled by alpha / r."""
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Linear layers of the language model that get an adapter, by the last part of their name."""
    adapter: str = ""
    """Folder of an adapter in peft's format to start from; "" for a new one."""


@dataclass
class Model:
    """The policy."""

    path: str = ""
    """Hugging Face folder (or hub id) of a model of one of the families in `videostr/models`."""
    dtype: Dtype = "bfloat16"
    """Of weights and activations, in learner and engine."""
    freeze_vision: bool = False
    """True trains the language model only; the engines then keep their encoder caches across updates."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora: Lora = field(default_factory=Lora)


@dataclass
class Tabletop:
    """The embedded world: builds the datasets that `data.train` and `data.heldout` name, where they do not exist yet."""

    train_scenes: NonNegativeInt = 0
    """Scenes of the training records; 0 builds nothing."""
    train_questions: Count = 1
    """Records of each of them at most, each of another family."""
    heldout_scenes: NonNegativeInt = 0
    """Scenes of the held-out records, one record each; 0 builds nothing."""
    difficulty: Literal["easy", "full"] = "easy"
    """easy: the world of the shipped policy; full: metres, occlusion, a panning camera, for real models."""
    seed: Seed = 0
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
    max_bad_fraction: Share = 0.01
    """Stop when more than this share of the training records is quarantined."""
    tabletop: Tabletop = field(default_factory=Tabletop)


@dataclass
class Sampling:
    """How groups are sampled."""

    group_size: int = 8
    """G, completions per prompt, at least 2."""
    temperature: Positive = 1.0
    """Of training samples."""
    max_tokens: Count = 1024
    """Longest completion, tokens."""
    dynamic_sampling: bool = False
    """Replace groups whose completions all score the same by groups of further records (DAPO's dynamic sampling)."""
    dynamic_sampling_limit: Annotated[float, Meta(ge=1)] = 3.0
    """Most groups sampled for a step, in train.prompts_per_step; then zero-variance groups fill it up."""


@dataclass
class RolloutConfig:
    """vLLM engines; one per rollout worker."""

    num_workers: Count = 1
    """At the start; `python -m videostr.scale` changes it during the run."""
    max_workers: NonNegativeInt = 0
    """Add workers up to this number whenever the cluster has room for one; 0 adds none."""
    tensor_parallel_size: Count = 1
    """Accelerators of an engine; on CPU its processes."""
    num_cpus: Positive = 1.0
    """Ray CPUs reserved per worker."""
    num_gpus: NonNegative = 0.0
    """Ray GPUs reserved per worker; 0 runs the CPU engine, otherwise equal to tensor_parallel_size."""
    max_model_len: Count = 8192
    """Prompt and completion together, tokens."""
    max_num_seqs: Count = 64
    """Sequences decoded together."""
    max_num_batched_tokens: Count = 16384
    """Tokens of one engine step; also the longest prompt on CPU, where chunked prefill is off."""
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] = 0.85
    """Share of accelerator memory for the engine."""
    kv_cache_gib: Count = 1
    """Key-value cache of a CPU engine, GiB."""
    threads: Count = 1
    """OpenMP threads of a CPU engine."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's engine by their names there, such as kv_cache_dtype or speculative_config, which vLLM checks.
    What the run sets itself, or relies on, is refused."""
    start_timeout_s: Positive = 900.0
    """Longest engine start."""
    request_timeout_s: Positive = 1800.0
    """Longest time for one group; its request is then given up and sent again, three times at most."""
    health_check_s: Positive = 30.0
    """Seconds between health checks, and for the answer to one; an engine that misses three in a row is replaced."""
    max_restarts: NonNegativeInt = 3
    """Times that an engine is started again before it is given up."""


@dataclass
class RewardConfig:
    """What completions are scored for, and where that is computed."""

    rubric: Literal["default", "paper", "spacer", "answer_only"] = "default"
    """Preset of weights, gate, graph score and length term (docs/rewards.md)."""
    w_format: NonNegative | None = None
    """Weight of the format; null takes the preset's, as in the next three."""
    w_answer: NonNegative | None = None
    """Weight of the answer."""
    w_graph: NonNegative | None = None
    """Weight of the relation graph."""
    w_consistency: NonNegative | None = None
    """Weight of whether the stated answer follows from the stated graph."""
    gate: Literal["preset", "format", "none"] = "preset"
    """format: all but the format itself and the length count only where the format is right."""
    custom: str = ""
    """A reward of your own, `package.module:function`: (Trace, Record) -> float in [0, 1]; gated as the answer is."""
    w_custom: NonNegative = 1.0
    """Weight of `custom`."""
    num_workers: Count = 1
    """Processes, each scores one group at a time."""
    num_cpus: Positive = 1.0
    """Ray CPUs reserved per worker."""
    deadline_s: Positive = 30.0
    """Longest time for one group; a worker past it is killed and replaced."""
    memory_gib: Positive = 4.0
    """What a worker may take in addition to what it starts with; a reward that wants more fails."""
    node_tolerance: Positive = 1.0
    """Scale of the distance at which a node's credit reaches 0, in units of the scene's size."""
    distance_tolerance: Positive = 0.5
    """Relative error at which an edge's distance credit reaches 0."""
    angle_tolerance: Positive = 60.0
    """Error at which an edge's bearing credit reaches 0, degrees."""
    node_weight: Share = 0.5
    """lambda: share of the node term in the graph reward, the edge term has the rest."""
    edges: Literal["stated_or_derived", "derived", "stated"] = "stated_or_derived"
    """Whether stated edges count, edges derived from node positions, or stated ones where stated."""
    scale: Literal["absolute", "relative"] = "absolute"
    """relative divides distances by their mean on each side."""
    length: Literal["preset", "overlong", "band", "none"] = "preset"
    """overlong: a penalty before the limit; band: a bonus of 0.2 for right answers of a wanted length."""
    band: tuple[NonNegativeInt, NonNegativeInt] = (320, 512)
    """Fewest and most tokens that get the bonus."""
    overlong_buffer: NonNegativeInt = 0
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

    num_ranks: Count = 1
    """Processes; each holds rows of its own, unless `sequence_parallel` ranks share them."""
    sequence_parallel: Count = 1
    """Ranks that share each packed row, tokens and video alike (Ulysses): for rows that do not fit one; divides `num_ranks`."""
    num_cpus: Positive = 1.0
    """Ray CPUs reserved per rank."""
    num_gpus: NonNegative = 0.0
    """Ray GPUs reserved per rank; 0 trains on CPU over gloo."""
    threads: Count = 1
    """OpenMP threads per CPU rank."""
    zero_stage: Annotated[int, Meta(ge=0, le=3)] = 0
    """DeepSpeed ZeRO stage."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Kept in host memory: optimizer (AdamW's state and master weights; ZeRO 2 or 3), all (the parameters too; ZeRO 3)."""
    lr: Positive = 1e-6
    """Peak learning rate of AdamW."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    weight_decay: NonNegative = 0.0
    """AdamW's, of all trained parameters."""
    warmup_steps: NonNegativeInt = 0
    """Linear warm-up of the learning rate, optimizer steps."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up, over train.steps * train.updates_per_batch optimizer steps."""
    max_grad_norm: Positive = 1.0
    """Global gradient norm is clipped to this."""
    packing: Literal["group", "none"] = "group"
    """group: one forward for the prompt and its G completions; none: one per completion (the reference)."""
    max_row_tokens: Count = 4096
    """Tokens of one packed row; longer groups are split by completions, shorter ones share a row."""
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """Of the language model over packed rows. auto: flex (FlexAttention, compiled) on GPUs, sdpa on CPU."""
    activation_gib: NonNegative = 0.0
    """With model.gradient_checkpointing: layers whose activations of a row fit into so much memory keep them."""
    kernels: Literal["plain", "compiled"] = "plain"
    """compiled: torch.compile fuses what lies between products of matrices in a layer, which takes a minute at the start."""
    vision_cache_gib: NonNegative = 0.0
    """Host memory of a rank for features of a frozen vision tower, kept from epoch to epoch; 0 keeps them for an update."""
    timeout_s: Positive = 1800.0
    """Longest time for one call on a rank."""
    max_restarts: NonNegativeInt = 3
    """Times that all ranks are started again from the last checkpoint, when one is lost, before the run is given up."""


@dataclass
class LossConfig:
    """Advantage and policy loss (docs/method.md)."""

    advantage: Literal["grpo", "dr_grpo", "none"] = "grpo"
    """grpo divides by the group's standard deviation, dr_grpo does not; none is the reward itself, without a baseline."""
    name: Literal["ppo_clip", "gspo", "cispo", "reinforce"] = "ppo_clip"
    """PPO clip with eps_high above eps_low (DAPO), GSPO (one ratio a sequence), CISPO (clipped weight), REINFORCE (no ratio)."""
    custom: str = ""
    """A loss of your own in place of `name`, `package.module:function`: LossInputs -> loss per token (docs/extending.md)."""
    correction: Literal["ratio", "truncated", "none"] = "ratio"
    """What the ratio is taken against, and how the engine's log-probabilities mu enter (docs/method.md).

    ratio: pi / mu, so that the clip acts on staleness and on the difference between learner and engine alike. truncated: pi
    over the learner's own before the first update on the batch, each token weighted by min(own / mu, 2). none: the same
    without the weight; nothing then depends on the last bits of mu, so that a resumed run on CPU repeats exactly.
    """
    eps_low: Positive = 0.2
    """Ratios are clipped below at 1 - eps_low."""
    eps_high: Positive = 0.28
    """Ratios are clipped above at 1 + eps_high."""
    kl_coef: NonNegative = 0.0
    """Weight of the k3 estimate of KL(policy || reference); above 0 a frozen reference model is kept."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean over all tokens of the batch, over sequences of their token means, or sums divided by `constant_length`."""
    constant_length: Count = 1024
    """Divisor per sequence for aggregation `constant`, tokens."""
    mask_truncated: bool = False
    """Leave completions that hit the token limit out of the loss."""


@dataclass
class SyncConfig:
    """Weight transfer from learner to engines."""

    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """auto: nccl when the engines have GPUs, else gloo."""
    timeout_s: Positive = 300.0
    """Deadline of every control call of a transfer."""
    verify: bool = False
    """Compare checksums of every parameter after each transfer."""


@dataclass
class TrainLength:
    """Length of a run, and what it writes on the way."""

    steps: NonNegativeInt = 100
    """Steps of the run: each collects a batch and learns from it; the engines then get the new weights. 0 only evaluates."""
    prompts_per_step: Count = 16
    """P, groups per batch."""
    updates_per_batch: Count = 1
    """K, optimizer steps per batch: its groups are cut, in order, into K mini-batches of whole groups."""
    checkpoint_every: NonNegativeInt = 50
    """Steps; the last step is always saved. 0 saves only the last."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept."""
    traces_every: NonNegativeInt = 10
    """Steps between trace dumps; the last step is always dumped. 0 for none."""


@dataclass
class TrainConfig(TrainLength):
    """Length and shape of the run."""

    max_staleness: NonNegativeInt = 0
    """S, steps that may lie between the weights that sampled a token and the step that learns from it; 0 is synchronous."""
    max_zero_variance_steps: NonNegativeInt = 20
    """Stop after so many steps in a row without any group whose rewards differ; 0 never."""


@dataclass
class EvaluateConfig:
    """Held-out evaluation before and after training."""

    prompts: NonNegativeInt = 256
    """Held-out prompts, the first of the dataset; 0 for no evaluation."""
    every: NonNegativeInt = 0
    """Steps between greedy evaluations during training; the best checkpoint by their total is kept. 0 for none."""
    samples: Count = 4
    """Sampled completions per prompt, at the training temperature; one greedy one is added."""
    bootstrap: Count = 2000
    """Resamples for confidence intervals."""


@dataclass
class PlacementConfig:
    """How the plan meets the cluster."""

    wait_s: NonNegative = 0.0
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
    """Runs of one group are shown together, e.g. the seeds of a comparison; "" for none."""


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
    """Where metrics go in addition to `metrics.jsonl`. A logger that fails is counted under `failures/logger_NAME`, and never
    stops a run.
    """

    tensorboard: bool = True
    """Event files in `tensorboard/` of the run folder."""
    prometheus: bool = True
    """Metrics page of Ray's node: every figure of a step, failures, worker states (`ray_videostr_*`)."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    mlflow: MlflowConfig = field(default_factory=MlflowConfig)
