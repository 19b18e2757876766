"""Reinforcement learning of video language models with verifiable relation graphs.

What is imported here needs none of the heavy packages; commands and their parts are modules of their own:
`python -m videostr.launch`, `videostr.data`, `videostr.evaluate`, ... The rewards are the package `rewards`.
"""

from __future__ import annotations

from videostr.errors import VideoStrError
from videostr.trace import parse as parse_trace
from videostr.types import (
    Answer,
    AnswerKind,
    ClipSpec,
    Completion,
    Edge,
    GraphFrame,
    Node,
    Record,
    SceneGraph,
    Score,
    Trace,
)

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "AnswerKind",
    "ClipSpec",
    "Completion",
    "Edge",
    "GraphFrame",
    "Node",
    "Record",
    "SceneGraph",
    "Score",
    "Trace",
    "VideoStrError",
    "__version__",
    "parse_trace",
]
