"""Prompts in, sampled groups out: one vLLM engine, in a process of its own. actors/pools.py has all of them behind one port.

`RolloutWorker` takes a `SampleRequest`, reads the clip's frames from the frame store and samples its G completions
with one request (n = G), so that prompt and video are encoded once. vLLM is imported in the workers only: its import takes
20 s and reads the environment that a worker sets before.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.sampling import SamplingWorker
from actors.transfer.request import transfer_backend
from videostr.chat import hidden_tokens
from videostr.config.schema import Config
from videostr.console import send_output_to
from videostr.errors import ConfigError, RolloutError, VideoError, first_line
from videostr.groups import Sampled
from videostr.models.base import family_of
from videostr.models.checkpoint import check_model
from videostr.ports import SampleRequest
from videostr.trace import opened
from videostr.types import Completion, Failure, FailureKind, FinishReason, Prompt, VersionSpan
from videostr.video import ClipFrames, FrameStore

PARSE_TRIES = 5
"""Of a request that meets CPython's error of two threads that parse at once."""
BAN = -100.0
"""Added to the logits of vision placeholders, one of which in a completion breaks the learner's pass (verl issue 1640).

The largest bias vLLM takes: leaves them a probability below 1e-40.
"""
VIDEO_INPUT = {"limit_mm_per_prompt": {"image": 0, "video": 1}, "mm_processor_cache_gb": 0}
"""Arguments of vLLM: a prompt shows one video, and preprocessed pixels are not cached.

A clip returns once an epoch, so they would only fill memory, and a rejected request would leave the two halves of the cache at
odds.
"""
FINISH = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "abort": FinishReason.ABORT}


class RolloutWorker(SamplingWorker):
    """One vLLM engine; lives in a process of its own, whose output it sends to `log_file`.

    Log-probabilities are those of the sampling distribution: temperature applied, placeholders banned and the rest
    renormalised. The learner takes a plain log-softmax over the whole vocabulary, which is lower by -log(1 - p), where
    p is the probability that the policy gives to the four placeholders at that token: tiny for a policy that has seen
    any training; 0.002 nats on average for one with random weights and 640 tokens (1e-6 with the ban in both).
    """

    def __init__(self, index: int, config: Config, frame_store: str, log_file: str) -> None:
        self.name = f"engine {index}"
        self.config = config
        self.frames = FrameStore(frame_store)
        self.log_file = log_file
        self.on_gpu = config.rollout.num_gpus > 0
        self._engine: Any = None
        self._receiver: Any = None
        self._tokenizer: Any = None
        self._transfers = 0
        """Control calls of a transfer that are under way."""
        self._banned: dict[int, float] = {}
        self._hidden: frozenset[int] = frozenset()
        """Tokens that no text shows."""
        self._first = asyncio.Lock()
        self._has_sampled = False

    # ------------------------------------------------------------------------------------------------- start

    async def start(self) -> None:
        """Start the engine; it then serves weight version 0.

        Raises:
            ModelError: the checkpoint cannot be served.
            RolloutError: the engine does not start; the reason is in the log file.
        """
        check_model(self.config.model.path, cpu=not self.on_gpu, dtype=self.config.model.dtype)
        self._family = family_of(self.config.model.path)
        send_output_to(self.log_file)
        os.environ.update(self._environment())
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from actors.transfer.receiver import WeightReceiver

        try:
            arguments = AsyncEngineArgs(**self._engine_args())
        except (TypeError, ValueError) as error:
            raise self._refused(error) from error
        try:
            self._engine = AsyncLLM.from_engine_args(arguments)
        except (RuntimeError, ValueError) as error:
            raise RolloutError(
                f"{self.name} did not start: {error}", remedy=f"see {self.log_file}"
            ) from error
        self._receiver = WeightReceiver(self._engine)
        self._tokenizer = self._engine.get_tokenizer()
        self._hidden = hidden_tokens(self._tokenizer) | _end_tokens(self._engine, self._tokenizer)
        vocabulary = self._tokenizer.get_vocab()
        self._banned = {vocabulary[token]: BAN for token in self._family.placeholders if token in vocabulary}
        await self._engine.update_weight_version("0")

    def _refused(self, error: Exception) -> ConfigError:
        given = ", ".join(self.config.rollout.engine_args) or "none"
        return ConfigError(
            f"rollout.engine_args: vLLM refuses its arguments ({first_line(error)}); given: {given}",
            remedy="write them as in vLLM's documentation of engine arguments",
        )

    def _environment(self) -> dict[str, str]:
        environment = offline_environment(self.config.model.path)
        if not self.on_gpu:
            environment["VLLM_CPU_KVCACHE_SPACE"] = str(self.config.rollout.kv_cache_gib)
            # Engines may outnumber cores: a thread bound to a core would wait behind another engine's.
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            environment["OMP_NUM_THREADS"] = str(self.config.rollout.threads)
            # Every batch size of every layer makes a primitive; the library keeps 1024, which are some hundred MiB.
            environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = os.environ.get(
                "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64"
            )
            # Lets the CPU engine compute in its own process; else vLLM starts one more, only to bind threads to cores.
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return environment

    def _engine_args(self) -> dict[str, Any]:
        from vllm.config import WeightTransferConfig

        config, rollout = self.config, self.config.rollout
        arguments = {
            "model": config.model.path,
            "dtype": config.model.dtype,
            "seed": config.run.seed,
            "max_model_len": rollout.max_model_len,
            "max_num_seqs": rollout.max_num_seqs,
            "max_num_batched_tokens": rollout.max_num_batched_tokens,
            "tensor_parallel_size": rollout.tensor_parallel_size,
            "gpu_memory_utilization": rollout.gpu_memory_utilization,
            **VIDEO_INPUT,
            "logprobs_mode": "processed_logprobs",
            "weight_transfer_config": WeightTransferConfig(backend=transfer_backend(config)),
            "worker_extension_cls": "actors.transfer.engine.EngineExtension",
            "scheduler_cls": "actors.transfer.engine.scheduler",
            # Left to itself, vLLM would spread a tensor-parallel engine over Ray actors of its own.
            "distributed_executor_backend": "uni" if rollout.tensor_parallel_size == 1 else "mp",
            "disable_log_stats": True,
        }
        if not self.on_gpu:
            arguments["enforce_eager"] = True
            # A seeded request whose prompt is prefilled in chunks kills the CPU engine.
            arguments["enable_chunked_prefill"] = False
        return arguments | dict(self._family.engine_arguments(cpu=not self.on_gpu)) | rollout.engine_args

    # ------------------------------------------------------------------------------------------------- sample

    async def sample(self, request: SampleRequest) -> Sampled | Failure:
        """Sample one group; input that cannot be used comes back as a `Failure`.

        The process ends when the engine has died: a live actor around a dead engine would take retries forever (ray
        issue 60088).
        """
        from vllm.exceptions import VLLMError
        from vllm.v1.engine.exceptions import EngineDeadError

        prompt = request.prompt
        try:
            return await self._sample_first_alone(request)
        except VideoError as error:
            return Failure(kind=FailureKind.BAD_VIDEO, record_id=prompt.record_id, detail=str(error))
        except EngineDeadError:
            logging.getLogger(__name__).exception("%s is dead, its worker ends", self.name)
            self._engine.shutdown()
            os._exit(1)
        except (VLLMError, ValueError) as error:
            return Failure(
                kind=FailureKind.ENGINE, record_id=prompt.record_id, detail=f"{self.name}: {error}"
            )

    async def _sample_first_alone(self, request: SampleRequest) -> Sampled | Failure:
        """Sample; other requests wait until the first of a process is done.

        What vLLM and transformers load at a first request parses source code, and where two threads do so at once CPython
        3.11 may raise SystemError: "AST constructor recursion depth mismatch" (its issue 106905). It can still happen
        later: then the request is asked again, and its seed gives the same tokens.
        """
        if not self._has_sampled:
            async with self._first:
                if not self._has_sampled:
                    return await self._sample_again(request)
        return await self._sample_again(request)

    async def _sample_again(self, request: SampleRequest) -> Sampled | Failure:
        """Sample, several times where two threads parsed at once."""
        for _ in range(PARSE_TRIES - 1):
            try:
                sampled = await self._sample(request)
            except SystemError:
                logging.getLogger(__name__).exception("%s: asked again", request.prompt.record_id)
            else:
                self._has_sampled = True
                return sampled
        return await self._sample(request)

    async def _sample(self, request: SampleRequest) -> Sampled | Failure:
        from vllm.exceptions import VLLMError

        prompt = request.prompt
        frames = None if prompt.is_blind else await asyncio.to_thread(self.frames.frames, prompt.clip)
        try:
            rendered = await self._render(prompt, frames)
        except VLLMError:
            raise
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
            # Of a processor that met a prompt it cannot take; raised on, it would count against the engine
            return Failure(
                kind=FailureKind.ENGINE,
                record_id=prompt.record_id,
                detail=f"{self.name} cannot encode the prompt ({type(error).__name__}: {error})",
            )
        length, limit = len(rendered["prompt_token_ids"]), self.config.rollout.max_model_len
        if length >= limit:
            return Failure(
                kind=FailureKind.PROMPT_TOO_LONG,
                record_id=prompt.record_id,
                detail=f"{length} prompt tokens, rollout.max_model_len = {limit}; raise it or show fewer frames",
            )
        output = await self._generate(rendered, request)
        begun = opened(prompt.text)
        completions = tuple(self._completion(part, begun) for part in output.outputs)
        sampled = {int(token) for completion in completions for token in completion.token_ids}
        if not sampled.isdisjoint(self._banned):
            return Failure(
                kind=FailureKind.PLACEHOLDER_SAMPLED,
                record_id=prompt.record_id,
                detail=f"{self.name} sampled {sorted(sampled & self._banned.keys())} in spite of the ban",
            )
        return Sampled(
            prompt_token_ids=np.asarray(output.prompt_token_ids, dtype=np.int32), completions=completions
        )

    async def _render(self, prompt: Prompt, frames: ClipFrames | None) -> Any:
        """Return token ids and vision inputs of a prompt, in vLLM's form; None where it shows no video."""
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        given: dict[str, Any] = {"prompt": prompt.text}
        if frames is not None:
            inputs = self._family.engine_inputs(prompt, frames)
            given = {
                "prompt": inputs.text,
                "multi_modal_data": {"video": [(inputs.pixels, dict(inputs.metadata))]},
                # The clip's name instead of a hash over its pixels, for prefix and encoder cache.
                "multi_modal_uuids": {"video": [prompt.clip.digest]},
            }
            if inputs.processor_options:
                given["mm_processor_kwargs"] = dict(inputs.processor_options)
        renderer = self._engine.renderer
        # Without a limit here: the limit is for the expanded prompt, and is ours to report.
        params = replace(renderer.default_cmpl_tok_params, max_total_tokens=None)
        parsed = parse_model_prompt(self._engine.model_config, given)
        (rendered,) = await renderer.render_cmpl_async([parsed], params)
        return rendered

    async def _generate(self, rendered: Any, request: SampleRequest) -> Any:
        """Return vLLM's `RequestOutput` of a group."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            n=request.n,
            seed=engine_seed(request.seed),
            temperature=request.temperature,
            top_p=1.0,
            top_k=0,
            max_tokens=request.max_tokens,
            logprobs=0,
            logit_bias=self._banned,
            output_kind=RequestOutputKind.FINAL_ONLY,
            # A token's text in addition to its log-probability, and the text so far, cost a third of this process's time.
            detokenize=False,
            flat_logprobs=True,
        )
        outputs = self._engine.generate(rendered, params, request_id=uuid.uuid4().hex)
        final = None
        async for output in outputs:
            final = output
        return final

    def _completion(self, output: Any, begun: str) -> Completion:
        """Return vLLM's `CompletionOutput` as a completion; its log-probabilities are those of the sampled tokens alone.

        `begun` is what the prompt holds of the trace already.
        """
        spans = [
            VersionSpan(version=int(s.version), start=s.start, end=s.end) for s in output.weight_versions
        ]
        shown = [token for token in output.token_ids if token not in self._hidden]
        return Completion(
            text=begun + self._tokenizer.decode(shown),
            token_ids=np.asarray(output.token_ids, dtype=np.int32),
            logprobs=np.asarray(output.logprobs.logprobs, dtype=np.float32),
            finish_reason=FINISH[output.finish_reason],
            weight_versions=tuple(spans),
        )

    # ------------------------------------------------------------------------------------- weights and end

    async def pause(self) -> None:
        """Freeze requests in flight until weights have been transferred."""
        await self._receiver.pause()

    async def transfer(self, phase: str, *arguments: Any) -> Any:
        """Make a control call of a weight transfer: a method of `actors.transfer.receiver.WeightReceiver`."""
        self._transfers += 1
        try:
            return await getattr(self._receiver, phase)(*arguments)
        finally:
            self._transfers -= 1

    async def ping(self) -> None:
        """Answer a health check, when the engine's own process has; ends the process when the engine has died.

        While weights are transferred, which has deadlines of its own and keeps the engine busy, the worker answers alone.
        """
        if self._engine is None:
            return
        if self._engine.errored:
            logging.getLogger(__name__).error("%s is dead, its worker ends", self.name)
            os._exit(1)
        if self._transfers == 0:
            await self._engine.is_paused()

    def close(self) -> None:
        """End the engine and its processes."""
        if self._engine is not None:
            self._engine.shutdown()


def offline_environment(path: str) -> dict[str, str]:
    """Return the environment in which vLLM reports nothing, and asks no hub for a model whose folder is at `path`."""
    return {"VLLM_NO_USAGE_STATS": "1", **({"HF_HUB_OFFLINE": "1"} if Path(path).is_dir() else {})}


def engine_seed(seed: int) -> int:
    """Spread a request's seed over 56 bits.

    vLLM gives completion i of a group the seed `seed + i`: groups with neighbouring seeds would share random streams.
    """
    return int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=7).digest())


def _end_tokens(engine: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end a completion: that of the tokenizer, and one or several of generation_config.json."""
    configured = engine.model_config.try_get_generation_config().get("eos_token_id", ())
    ends = [configured] if isinstance(configured, int) else list(configured or ())
    return frozenset({*ends, tokenizer.eos_token_id} - {None})
