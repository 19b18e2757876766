"""In an engine's processes: what vLLM's hooks `worker_extension_cls` and `scheduler_cls` name.

Not an entry point of vLLM's plugins: the project is not installed where it runs from Ray's working directory. With tensor
parallelism workers and scheduler live in different processes, so each hook prepares its own.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import signal
import sys
from typing import Any, Self

import torch
from vllm.v1.core.sched import output

from actors.transfer.gloo import register_gloo
from actors.transfer.readback import running_weight
from actors.transfer.source import weight_digest
from videostr.models.base import family_of


@functools.cache
def prepare_process() -> None:
    """Adapt vLLM in this process to its use here; only the first call does anything."""
    register_gloo()
    # An engine process has a parent; actors are not children of multiprocessing.
    if multiprocessing.parent_process() is not None:
        _end_with_parent()
        _keep_videos()


def _end_with_parent() -> None:
    """Let the kernel end this process with the rollout actor that started it (Linux).

    vLLM notices a dead parent by itself, but not while it hangs, and a hung engine is what actors are killed for.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _keep_videos() -> None:
    """Let every request keep its pixels in the worker.

    vLLM drops them from a request whose prompt lies in the prefix cache, as that of all completions of a group but the first
    does. A weight sync empties the caches under requests in flight; the video is then encoded again for the first of them that
    continues, and without its pixels the engine dies ("Expected number of multimodal embeddings"; vLLM 0.32).
    """
    output.strip_covered_mm_data = lambda features, *_args, **_options: features


def scheduler(**arguments: Any) -> Any:
    """Return vLLM's own scheduler; named as `scheduler_cls` so that the process that schedules is prepared."""
    prepare_process()
    config = arguments["vllm_config"].scheduler_config
    config.scheduler_cls = None
    return config.get_scheduler_cls()(**arguments)


class EngineExtension:
    """Mixed into vLLM's worker by `worker_extension_cls`."""

    model_config: Any
    model_runner: Any

    def __new__(cls, *_args: Any, **_options: Any) -> Self:
        """Prepare the process before vLLM's worker is made; its `__init__` does not call that of a class mixed in."""
        prepare_process()
        return super().__new__(cls)

    def weight_digests(self, names: list[str]) -> dict[str, str]:
        """Return `weight_digest` of every named parameter as the model computes with it now.

        Raises:
            TransferError: the model has no such parameter.
        """
        model, dtype = self.model_runner.get_model(), self.model_config.dtype
        with torch.inference_mode():
            # The CPU engine keeps some biases in float32 whatever the model's dtype.
            stacked = family_of(self.model_config.hf_config).stacked_parameters
            return {name: weight_digest(running_weight(model, name, stacked).to(dtype)) for name in names}

    def give_memory_back(self) -> None:
        """Give free pages back to the system.

        Batches of ever different sizes leave holes in glibc's heap: memory in use stays the same, but resident memory of a CPU
        engine grew by 200 MiB in half an hour.
        """
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
