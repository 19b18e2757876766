"""The configs of the commands, made of sections: training, planning, supervised fine-tuning, evaluation.

What means the same has the same key in all of them; a command's section lacks the keys that it has no use for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from msgspec import Meta

from videostr.config.sections import (
    Count,
    Data,
    Dtype,
    EvaluateConfig,
    LearnerConfig,
    LoggingConfig,
    LossConfig,
    Model,
    NonNegative,
    NonNegativeInt,
    PlacementConfig,
    Positive,
    RewardConfig,
    RolloutConfig,
    Run,
    Sampling,
    Seed,
    Share,
    SyncConfig,
    TrainConfig,
    TrainLength,
)

AskingMode = Literal["direct", "think", "graph"]
Mode = Literal["direct", "think", "graph", "blind", "shuffled", "single_frame"]
"""The last three change what is shown, and ask with the prompt of an `AskingMode`."""


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


# -------------------------------------------------------------------------------------------------------- ablations


@dataclass
class Arm:
    """One way of training."""

    overrides: list[str] = field(default_factory=list)
    """key=value, in place of those of `base` and of the ablation."""
    seeds: list[Seed] = field(default_factory=list)
    """[] for those of the ablation."""
    sft: str = ""
    """A config of videostr.sft, whose run takes the place of reinforcement learning; `overrides` are of its keys."""


@dataclass
class AblationConfig:
    """The same training with one thing changed at a time, over several seeds: `python -m videostr.ablate`."""

    name: str = "ablation"
    """Folder below `dir`: one name, not a path."""
    dir: str = "runs"
    """Parent of the folder; a run is a folder of its own in it."""
    base: str = ""
    """Config of the training run."""
    overrides: list[str] = field(default_factory=list)
    """key=value for all arms, e.g. train.steps=100."""
    seeds: Annotated[list[Seed], Meta(min_length=1)] = field(default_factory=lambda: [0, 1, 2])
    """Values of run.seed."""
    reference: str = ""
    """The arm that all others are compared with; "" for the first."""
    at_once: Count = 1
    """Runs at a time: 1 on one machine; as many as it has room for on a cluster."""
    resamples: Count = 2000
    """Of the bootstrap over seeds and prompts."""
    arms: dict[str, Arm] = field(default_factory=dict)
    """Name of an arm -> what is different in it."""

    @property
    def compared_with(self) -> str:
        """Return the name of the reference."""
        return self.reference or next(iter(self.arms))


# --------------------------------------------------------------------------------------------------------- planning


@dataclass
class Estimate:
    """What the planner compares, and what it assumes."""

    gpus: list[Annotated[int, Meta(ge=2)]] = field(default_factory=list)
    """Numbers of GPUs to divide between engines and learner ranks; [] for the number that the run asks for."""
    staleness: Annotated[list[NonNegativeInt], Meta(min_length=1)] = field(default_factory=lambda: [0, 1, 2])
    """Values of `train.max_staleness` to compare."""
    gpu: Literal["H100", "A100"] = "H100"
    """Kind of GPU, 80 GB; speeds are assumed until a run is measured."""
    gpus_per_node: Count = 8
    """More GPUs than these exchange weights and gradients over the network."""
    cores: NonNegative = 0.0
    """CPU cores that a run on CPU shares; 0 for those of this machine."""
    calibrate: str = ""
    """Folder of a run of the same model on the same hardware: its lengths and seconds take the place of assumed ones."""
    prompt_tokens: NonNegativeInt = 0
    """Mean length of a prompt, video included; 0 for that of the calibrating run, else half of what `rollout.max_model_len`
    leaves."""
    completion_tokens: NonNegativeInt = 0
    """Median length of a completion; 0 for the lengths of the calibrating run, else 40 % of `sampling.max_tokens`."""
    mtbf_hours: NonNegative = 0.0
    """Mean time between failures of one engine; 0 for none."""
    restart_s: Positive = 300.0
    """Start of an engine that replaces a dead one."""


@dataclass
class PlanConfig(Config):
    """A run to be estimated: `python -m videostr.plan`. It has all keys of a run."""

    plan: Estimate = field(default_factory=Estimate)


# ------------------------------------------------------------------------------------------ supervised fine-tuning


@dataclass
class SftModel(Model):
    """The policy to start from: a checkpoint, or a tiny one of random weights."""

    tiny: str = ""
    """Family, by a `model_type` that `videostr/models` knows, whose tiny policy is made of random weights in place of `path`."""


@dataclass
class References:
    """The reference traces that the policy learns to write: true graph and true answer of each record."""

    per_prompt: Count = 1
    """Traces of a record in one step; they share the computation of its prompt."""
    reasoned: Share = 1.0
    """Share of traces that say, after the graph, why the answer follows from it; where the graph does not tell, none does."""
    choice: Literal["letter", "text"] = "letter"
    """How a choice is answered: small policies copy a text from their reasoning long before they learn to find its letter."""
    ends_only: Share = 0.0
    """Share of traces that state only the first and the last selected time: a habit for RL to unlearn."""


@dataclass
class SftLearner(LearnerConfig):
    """DeepSpeed ranks, with a learning rate for supervised fine-tuning."""

    lr: Positive = 1e-5
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegativeInt = 20
    """Linear warm-up of the learning rate, optimizer steps."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """After warm-up, over train.steps * train.updates_per_batch optimizer steps."""


@dataclass
class SftTrain(TrainLength):
    """Length of the run."""

    steps: Count = 500
    """Steps of the run: each learns from the references of `prompts_per_step` records."""
    prompts_per_step: Count = 64
    """P, records per step."""


@dataclass
class SftEvaluate:
    """Teacher-forced accuracy on held-out references, before and after training."""

    prompts: NonNegativeInt = 128
    """Held-out records, the first of the dataset; 0 for no evaluation."""
    every: NonNegativeInt = 0
    """Steps between evaluations during training; the best checkpoint by their accuracy is kept. 0 for none."""


@dataclass
class SftConfig:
    """Supervised fine-tuning on reference traces: `python -m videostr.sft`.

    The processes are those of a run, but rollout workers read out reference traces, without an engine, and nothing is scored.
    """

    run: Run = field(default_factory=Run)
    model: SftModel = field(default_factory=SftModel)
    data: Data = field(default_factory=Data)
    references: References = field(default_factory=References)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    learner: SftLearner = field(default_factory=SftLearner)
    train: SftTrain = field(default_factory=SftTrain)
    evaluate: SftEvaluate = field(default_factory=SftEvaluate)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


# ------------------------------------------------------------------------------------------------------- evaluation


@dataclass
class EvaluationRun:
    """Where a result lives."""

    name: str = ""
    """Folder of the result below `dir`; "" makes it of benchmark and model."""
    dir: str = "evaluations"
    """Parent of results; holds every answer ever given (`answers.sqlite`), so that no question is asked twice."""
    seed: Seed = 0
    """Seeds sampling and bootstrap."""


@dataclass
class EvaluationModel:
    """The policy to evaluate."""

    path: str = ""
    """Hugging Face folder (or hub id) of a model, such as `policy/` of a checkpoint."""
    dtype: Dtype = "bfloat16"
    """Of weights and activations."""


@dataclass
class BenchmarkConfig:
    """The questions, and what the model is shown and asked for."""

    name: Literal["sti_bench", "vsi_bench", "vsi_debiased", "revsi", "mmsi_video", "v_star", "records"] = (
        "records"
    )
    """records: a record dataset, such as `data.heldout` of a run."""
    root: str = ""
    """Folder with the benchmark's files and videos."""
    modes: list[Mode] = field(default_factory=lambda: ["direct"])
    """direct: the official prompt; think: reason first; graph: draw the relation graph, then reason. Controls of what the
    video adds: blind: without it; shuffled: its frames in random order; single_frame: the one in the middle."""
    control_prompt: AskingMode = "direct"
    """How blind, shuffled and single_frame ask: with the prompt of this mode, which they are compared with."""
    limit: NonNegativeInt = 0
    """Only the first questions; 0 asks all."""
    max_frames: Count = 32
    """Most frames of a clip, at equal spacing, first and last included. A record names its own frames, as in the next two."""
    fps: NonNegative = 0.0
    """Frames per second, up to max_frames; 0 shows max_frames of every clip."""
    max_pixels: Count = 200704
    """Most pixels of a frame; larger ones are scaled down, their sides to multiples of what the model takes. 256 tokens here."""


def prompts_of(benchmark: BenchmarkConfig) -> set[str]:
    """Return the modes whose prompts are asked with, those of controls included."""
    asking: set[str] = {mode for mode in benchmark.modes if mode in get_args(AskingMode)}
    return asking if len(asking) == len(benchmark.modes) else asking | {benchmark.control_prompt}


@dataclass
class EvaluationSampling:
    """How answers are sampled."""

    temperature: NonNegative = 0.0
    """0 is greedy."""
    max_tokens: Count = 1024
    """Longest completion, tokens."""
    max_tokens_direct: Count = 64
    """The same with the prompt of mode direct, where only an answer is wanted."""


@dataclass
class Judge:
    """A language model that rates open answers (V-STaR), behind an OpenAI-compatible endpoint such as vLLM's server."""

    endpoint: str = ""
    """Base URL, e.g. http://127.0.0.1:8000/v1; "" rates by shared words, which is not the official judge."""
    model: str = "Qwen/Qwen2.5-72B-Instruct"
    """Name of the model at the endpoint; the default is the official judge."""
    api_key_file: str = ""
    """File with the endpoint's key."""
    timeout_s: Positive = 120.0
    """Longest time for one rating; it is then tried twice more."""


@dataclass
class EvaluationStatistics:
    """How results are summarised."""

    bootstrap: Count = 2000
    """Resamples for confidence intervals."""


@dataclass
class EvaluationConfig:
    """A policy on a benchmark: `python -m videostr.evaluate`."""

    run: EvaluationRun = field(default_factory=EvaluationRun)
    model: EvaluationModel = field(default_factory=EvaluationModel)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    sampling: EvaluationSampling = field(default_factory=EvaluationSampling)
    judge: Judge = field(default_factory=Judge)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    """The rubric that scores records."""
    evaluate: EvaluationStatistics = field(default_factory=EvaluationStatistics)
    placement: PlacementConfig = field(default_factory=PlacementConfig)


RunConfig = Config | SftConfig
"""What has a run folder."""
AnyConfig = RunConfig | EvaluationConfig
