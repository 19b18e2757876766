"""Rules between keys, and rules that no annotation can hold.

In: a config whose values have the types and ranges of its sections. Out: a `Problem` for each broken rule.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, get_args

from videostr.config.schema import (
    AblationConfig,
    AnyConfig,
    Config,
    EvaluationConfig,
    Mode,
    RunConfig,
    SftConfig,
    prompts_of,
)
from videostr.config.sections import RolloutConfig
from videostr.config.values import Problem

MAX_NAME, MAX_NAME_BYTES = 128, 200
"""Of a run: Weights & Biases takes 128 characters, file systems 255 bytes for a name and what is put around it."""
RAY_RESOURCES = frozenset({"CPU", "GPU", "memory", "object_store_memory"})
"""Resources that Ray counts itself."""


def broken(config: AnyConfig | AblationConfig) -> list[Problem]:
    """Return the broken rules of a command's config."""
    if isinstance(config, AblationConfig):
        return list(_ablation(config))
    if isinstance(config, EvaluationConfig):
        return list(_evaluation(config))
    if isinstance(config, SftConfig):
        return list(_sft(config))
    return list(_training(config))


def value_at(config: AnyConfig | AblationConfig, key: str) -> Any:
    """Return the value of a dotted key."""
    return reduce(
        lambda of, name: of[name] if isinstance(of, dict) else getattr(of, name), key.split("."), config
    )


def _problem(config: AnyConfig | AblationConfig, key: str, rule: str, remedy: str) -> Problem:
    return Problem(key=key, value=value_at(config, key), rule=rule, remedy=remedy)


# --------------------------------------------------------------------------------------------------------- training


def _training(c: Config) -> Iterator[Problem]:
    yield from _name(c)
    yield from _missing(
        c, {
            "run.dir": ("must name the parent of the run folder", "set run.dir=DIR"),
            "model.path": ("must name the policy", "set model.path=DIR"),
            "data.train": ("must name a record dataset", "build one with python -m videostr.data"),
        },
    )  # fmt: skip
    if c.sampling.group_size < 2:
        yield _problem(c, "sampling.group_size", "a group of one has no advantage", "set it to 2 or more")
    yield from _updates(c)
    yield from _devices(c)
    yield from _rollout(c)
    yield from _placement(c)
    yield from _reward(c)
    yield from _learner(c)
    yield from _logging(c)


def _updates(c: RunConfig) -> Iterator[Problem]:
    if c.train.updates_per_batch > c.train.prompts_per_step:
        yield _problem(
            c, "train.updates_per_batch",
            f"must be at most train.prompts_per_step = {c.train.prompts_per_step}: each update learns from whole groups of the "
            "batch", "lower it",
        )  # fmt: skip


def _devices(c: Config) -> Iterator[Problem]:
    on_gpu = c.rollout.num_gpus > 0
    if on_gpu != (c.learner.num_gpus > 0):
        yield _problem(
            c, "rollout.num_gpus",
            f"engines and learner must be both on GPUs or both on CPU, or weights have no common backend, but "
            f"learner.num_gpus = {c.learner.num_gpus}", "set both keys, or neither",
        )  # fmt: skip
    if c.sync.backend == "nccl" and not on_gpu:
        yield _problem(
            c, "sync.backend", "needs GPUs, but rollout.num_gpus = 0", "use sync.backend=gloo or auto"
        )


def _rollout(c: Config | EvaluationConfig) -> Iterator[Problem]:
    r, on_gpu = c.rollout, c.rollout.num_gpus > 0
    yield from _engine_args(r)
    tokens = {"sampling.max_tokens": c.sampling.max_tokens}
    if isinstance(c, EvaluationConfig):
        prompts = prompts_of(c.benchmark)
        if prompts == {"direct"}:
            del tokens["sampling.max_tokens"]
        if "direct" in prompts:
            tokens["sampling.max_tokens_direct"] = c.sampling.max_tokens_direct
    for key, most in tokens.items():
        if most >= r.max_model_len:
            yield _problem(
                c, key, f"must be below rollout.max_model_len = {r.max_model_len}, or no prompt fits", "raise max_model_len"
            )  # fmt: skip
    if 0 < r.max_workers < r.num_workers:
        yield _problem(
            c, "rollout.max_workers",
            f"must be 0 or at least rollout.num_workers = {r.num_workers}: workers are only added automatically",
            "lower num_workers",
        )  # fmt: skip
    if on_gpu and r.num_gpus != r.tensor_parallel_size:
        yield _problem(
            c, "rollout.num_gpus",
            f"must equal rollout.tensor_parallel_size = {r.tensor_parallel_size}: an engine has one GPU per tensor-parallel rank",
            "set both to the same number",
        )  # fmt: skip
    if not on_gpu and r.max_num_batched_tokens < r.max_model_len:
        yield _problem(
            c, "rollout.max_num_batched_tokens",
            f"must be at least rollout.max_model_len = {r.max_model_len} on CPU, where prompts are not prefilled in chunks",
            "raise it or lower max_model_len",
        )  # fmt: skip


OWN_KEYS = {
    "model": "model.path", "dtype": "model.dtype", "seed": "run.seed",
    **{name: f"rollout.{name}" for name in (
        "max_model_len", "max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size", "gpu_memory_utilization",
    )},
}  # fmt: skip
"""Arguments of vLLM that have keys of their own."""
RELIED_ON = {
    "logprobs_mode": "the learner needs the log-probabilities that tokens were sampled with",
    "max_logprobs": "a completion has the log-probability of its own tokens",
    "limit_mm_per_prompt": "a prompt shows one video",
    "mm_processor_cache_gb": "a cache of pixels loses step with the engine's when a request is refused",
    "mm_processor_kwargs": "learner and engine must process videos alike",
    "media_io_kwargs": "frames come from the frame store",
    "weight_transfer_config": "weights are sent as sync.backend says",
    "worker_extension_cls": "it reads weights back for sync.verify",
    "scheduler_cls": "it makes a request's tokens depend on nothing else in its batch",
    "distributed_executor_backend": "actors are placed by the run",
    "skip_tokenizer_init": "completions are decoded",
    "tokenizer": "learner and engine must have one tokenizer",
    "tokenizer_mode": "learner and engine must have one tokenizer",
    "hf_overrides": "learner and engine must read one config.json",
    "hf_config_path": "learner and engine must read one config.json",
    "revision": "learner and engine must read one checkpoint",
    "trust_remote_code": "code of a checkpoint is never run",
    "enable_lora": "adapters are merged before they are sent",
    "chat_template": "prompts are rendered by the run",
    "data_parallel_size": "rollout.num_workers says how many engines there are",
}  # fmt: skip
"""Arguments of vLLM that training would go wrong with, and why."""


def _engine_args(r: RolloutConfig) -> Iterator[Problem]:
    for name, value in r.engine_args.items():
        rule, remedy = "", "leave it out"
        if name in OWN_KEYS:
            rule, remedy = "has a key of its own", f"set {OWN_KEYS[name]}"
        elif name in RELIED_ON:
            rule = f"cannot be changed: {RELIED_ON[name]}"
        elif name == "enable_chunked_prefill" and r.num_gpus == 0:
            rule = "cannot be changed on CPU: a seeded request whose prompt is prefilled in chunks ends the engine"
        if rule:
            yield Problem(key=f"rollout.engine_args.{name}", value=value, rule=rule, remedy=remedy)


def _reward(c: Config) -> Iterator[Problem]:
    if c.reward.band[0] > c.reward.band[1]:
        yield _problem(
            c, "reward.band", "must be two numbers of tokens, the smaller first", "write it as in reward.band=[320,512]"
        )  # fmt: skip
    if c.reward.overlong_buffer >= c.sampling.max_tokens:
        yield _problem(
            c, "reward.overlong_buffer",
            f"must be below sampling.max_tokens = {c.sampling.max_tokens}, or every completion is penalised", "lower it",
        )  # fmt: skip


def _learner(c: RunConfig) -> Iterator[Problem]:
    yield from _lora(c)
    if c.learner.num_ranks % c.learner.sequence_parallel:
        yield _problem(
            c, "learner.sequence_parallel", f"must divide learner.num_ranks = {c.learner.num_ranks}",
            "as many ranks share each row: set learner.num_ranks to a multiple of it",
        )  # fmt: skip
    if c.learner.vision_cache_gib and not c.model.freeze_vision:
        yield _problem(
            c, "learner.vision_cache_gib",
            "needs model.freeze_vision=true: features of a tower that is trained are stale after an update",
            "freeze it, or set learner.vision_cache_gib=0",
        )  # fmt: skip
    if c.learner.activation_gib and not c.model.gradient_checkpointing:
        yield _problem(
            c, "learner.activation_gib", "needs model.gradient_checkpointing=true: without it all activations are kept",
            "set that, or learner.activation_gib=0",
        )  # fmt: skip
    needed = {"none": 0, "optimizer": 2, "all": 3}[c.learner.offload]
    if c.learner.zero_stage < needed:
        yield _problem(
            c, "learner.offload", f"needs learner.zero_stage of {needed} or more, which is {c.learner.zero_stage}",
            f"set learner.zero_stage={needed}, or learner.offload=none",
        )  # fmt: skip
    if c.learner.attention == "flex" and c.learner.num_gpus == 0:
        yield _problem(
            c, "learner.attention", "needs GPUs, but learner.num_gpus = 0: FlexAttention has no backward pass on CPU",
            "use learner.attention=auto",
        )  # fmt: skip


def _lora(c: RunConfig) -> Iterator[Problem]:
    lora = c.model.lora
    if not lora.rank:
        return
    if not c.model.freeze_vision:
        yield _problem(
            c, "model.lora.rank", "needs model.freeze_vision=true: adapters are of the language model alone", "freeze it"
        )  # fmt: skip
    if not lora.targets or len(set(lora.targets)) < len(lora.targets):
        yield _problem(
            c, "model.lora.targets", "must name at least one layer, each once", "write it as in [q_proj,v_proj]"
        )  # fmt: skip
    if lora.adapter and isinstance(c, Config) and c.loss.kl_coef > 0:
        yield _problem(
            c, "model.lora.adapter",
            f"cannot go with loss.kl_coef = {c.loss.kl_coef:g}: the reference is the model without adapters, not the policy that "
            "training starts from", "merge the adapter into the model, or set loss.kl_coef=0",
        )  # fmt: skip


def _logging(c: RunConfig) -> Iterator[Problem]:
    if c.logging.mlflow.tracking_uri.startswith(("file:", "/", ".")):
        yield _problem(
            c, "logging.mlflow.tracking_uri",
            "must be a server or a database: MLflow no longer supports folders of files",
            "use http://HOST:PORT or sqlite:////FOLDER/mlflow.db",
        )  # fmt: skip
    required = {}
    if c.logging.wandb.enabled:
        required["logging.wandb.project"] = ("must name a project", "set logging.wandb.project=NAME")
    if c.logging.mlflow.enabled:
        required["logging.mlflow.experiment"] = (
            "must name an experiment",
            "set logging.mlflow.experiment=NAME",
        )
    yield from _missing(c, required)


def _placement(c: AnyConfig) -> Iterator[Problem]:
    for name in ("rollout", "learner", "reward"):
        if getattr(c.placement, name) in RAY_RESOURCES:
            yield _problem(
                c, f"placement.{name}", "must be a resource of your own, for Ray counts this one itself",
                'name one that nodes offer by `ray start --resources`, such as rollout, or ""',
            )  # fmt: skip


# --------------------------------------------------------------------------------------------------- other commands


def _evaluation(c: EvaluationConfig) -> Iterator[Problem]:
    if c.run.name:
        yield from _name(c)
    yield from _missing(
        c, {
            "benchmark.root": ("must name the folder with the files of the benchmark", "set benchmark.root=DIR"),
            "model.path": ("must name the policy to evaluate", "set model.path=DIR"),
        },
    )  # fmt: skip
    modes = c.benchmark.modes
    if not modes or len(set(modes)) < len(modes):
        yield _problem(
            c, "benchmark.modes", f"must name at least one of {', '.join(get_args(Mode))}, each once",
            "write it as in benchmark.modes=[direct,graph]",
        )  # fmt: skip
    yield from _rollout(c)
    yield from _placement(c)


def _sft(c: SftConfig) -> Iterator[Problem]:
    yield from _name(c)
    required = {
        "run.dir": ("must name the parent of the run folder", "set run.dir=DIR"),
        "data.train": ("must name a record dataset", "build one with python -m videostr.data build"),
    }
    if not c.model.tiny:
        required["model.path"] = (
            "must name the policy to start from",
            "set model.path=DIR or model.tiny=FAMILY",
        )
    yield from _missing(c, required)
    yield from _updates(c)
    yield from _placement(c)
    yield from _learner(c)
    yield from _logging(c)


def _ablation(c: AblationConfig) -> Iterator[Problem]:
    yield from _name(c, "name")
    yield from _missing(
        c,
        {
            "dir": ("must name the parent of the ablation's folder", "set dir=DIR"),
            "base": ("must name the config of the training run", "set base=FILE"),
            "arms": ("must name at least one way of training", "write it as in arms.default.overrides=[]"),
        },
    )
    for name in c.arms:
        if (rule := _name_rule(name)) is not None:
            yield Problem(
                key=f"arms.{name}", value=name, rule=rule, remedy="choose another name, such as default"
            )
    if c.reference and c.reference not in c.arms:
        yield _problem(c, "reference", "must be one of the arms", f"choose one of {', '.join(c.arms)}")
    for key in ("seeds", *(f"arms.{name}.seeds" for name in c.arms if "." not in name)):
        if len(set(value_at(c, key))) < len(value_at(c, key)):
            yield _problem(c, key, "must name each seed once", "leave out what is there twice")


# ------------------------------------------------------------------------------------------------------------ texts


def _missing(c: AnyConfig | AblationConfig, required: dict[str, tuple[str, str]]) -> Iterator[Problem]:
    """Yield the keys whose text is empty; `required` has the rule and the remedy of each."""
    for key, (rule, remedy) in required.items():
        if not value_at(c, key):
            yield _problem(c, key, rule, remedy)


def _name(c: AnyConfig | AblationConfig, key: str = "run.name") -> Iterator[Problem]:
    """Yield why the name cannot be that of a folder, and of a run in every logger."""
    if (rule := _name_rule(value_at(c, key))) is not None:
        yield _problem(c, key, rule, "choose another name, such as run-1")


def _name_rule(name: str) -> str | None:
    """Return the rule that a name breaks."""
    return next((rule for holds, rule in NAME_RULES if not holds(name)), None)


NAME_RULES: tuple[tuple[Callable[[str], bool], str], ...] = (
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
