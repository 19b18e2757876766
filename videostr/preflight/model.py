"""The policy: whether its checkpoint can be trained and served. In: a config. Out: findings; its size in the context."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from videostr.config.schema import Config
from videostr.errors import ModelError
from videostr.models.base import family_of
from videostr.models.checkpoint import check_model, warnings_of, weights_of
from videostr.models.processor import load_processor
from videostr.preflight.findings import Context, Finding, from_error, ok, warn


def check_policy(config: Config, context: Context) -> Iterator[Finding]:
    """Check whether the checkpoint can be trained and served, and its weights are whole; notes its size."""
    path = config.model.path
    try:
        context.model_config = described = check_model(
            path,
            cpu=config.rollout.num_gpus == 0,
            dtype=config.model.dtype,
            sequence_parallel=config.learner.sequence_parallel,
        )
        family = family_of(described)
        context.shapes = shapes = family.shapes(described)
        context.processor = load_processor(path, described)
    except ModelError as error:
        yield from_error("model", error)
        return
    total, vision = _count(shapes.parameters), _count(shapes.vision_parameters)
    yield ok("model", f"{path}: {family.name}, {total} parameters, {vision} of them vision")
    if not Path(path).is_dir():
        yield warn(
            "weights",
            f"model.path = {path} is a name on the hub: every node would fetch it, at the same time",
            f"hf download {path} --local-dir DIR, on storage that all nodes share, and model.path=DIR",
        )
        return
    try:
        weights = weights_of(path, described)
    except ModelError as error:
        yield from_error("weights", error)
        return
    yield ok("weights", f"{len(weights.files)} file{'s' * (len(weights.files) > 1)} whole")
    for found, remedy in warnings_of(path, weights):
        yield warn("weights", found, remedy)


def _count(number: float) -> str:
    return f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"
