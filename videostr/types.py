"""The carriers, in the order in which data moves through the system.

  record -> clip -> prompt -> rollout group -> trace -> score -> advantage -> learner batch -> update -> weights

All are frozen and hold plain Python values or NumPy arrays, never tensors or pixels, so that each can cross a process
boundary cheaply. Most are dataclasses; the parts of a graph, of which a group of traces has thousands, are msgspec
Structs, which are made in a tenth of the time (to change one, `msgspec.structs.replace`). Shape letters: P prompts, G
rollouts of a group, T tokens, F frames, N nodes.
A failure is a value too: an enum whose member carries the sentence that the user reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

# ----------------------------------------------------------------------------------------------------- record


class AnswerKind(StrEnum):
    """What an answer is, and so which reward judges it."""

    CHOICE = "choice"
    """`value` is the letter of the right option ("A"..), the options stand in `Record.options`."""
    NUMBER = "number"
    """`value` is a float in `Answer.unit`."""
    BOX2D = "box2d"
    """`value` is (x1, y1, x2, y2), in px of 0..1000 of the frame unless `Answer.unit` says otherwise."""
    BOX3D = "box3d"
    """`value` is (x, y, z, dx, dy, dz, yaw), metres and radians."""
    SPAN = "span"
    """`value` is (start, end) in seconds."""
    TRACK = "track"
    """`value` is one box2d per asked time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The true answer of a record."""

    kind: AnswerKind
    """Which family of reward applies."""
    value: str | float | tuple[float, ...] | tuple[tuple[float, ...], ...]
    """The truth, of the type that `kind` names."""
    unit: str = ""
    """Unit of a number ("m", "s", "deg", "cells", ...), or "" when it has none."""


class Node(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An object at one time."""

    id: str
    """`label.number`; the number only tells instances of a label apart."""
    label: str
    """Category, the part that is matched."""
    pos: tuple[float, ...]
    """2 or 3 coordinates in the unit and frame of reference of the graph."""
    size: tuple[float, ...] | None = None
    """Extent along each axis, same unit, or None when unknown."""


class Edge(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A stated relation between two nodes of one frame."""

    a: str
    """Node id."""
    b: str
    """Node id."""
    dist: float | None
    """Distance in the unit of the graph, or None when not stated."""
    angle: float | None
    """Bearing a -> b in the ground plane, degrees in (-180, 180], or None when not stated."""


class GraphFrame(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The scene at one time."""

    t: float
    """Seconds from the start of the video."""
    nodes: tuple[Node, ...]
    """N objects, in any order."""
    edges: tuple[Edge, ...] = ()
    """Stated relations; empty means that they are derived from the nodes."""
    view: tuple[float, ...] | None = None
    """3 x 4, row by row: takes (position, 1) to px of 0..1000 of the video frame at `t`, times the third row's depth.

    Only true graphs in `camera0` have it, to be drawn over the video; None where the camera is not known.
    """


class SceneGraph(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Objects and their relations at the selected times (contract version 1)."""

    unit: str
    """"m", "px" (0..1000 of the frame's width and height) or "grid"."""
    frame: str
    """Frame of reference: "camera0", "floor" or "image"."""
    frames: tuple[GraphFrame, ...]
    """One per selected time, ascending in `t`."""


class Query(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a record asks, as values: its text is made from them, and its answer follows from them and a graph."""

    family: str
    """Question family, e.g. "counting"."""
    objects: tuple[str, ...] = ()
    """Ids of nodes of the true graph, in the order of the question."""
    names: tuple[str, ...] = ()
    """What the text calls each of them."""
    boxes: tuple[tuple[float, float, float, float, float], ...] = ()
    """(t, x1, y1, x2, y2) of those objects that the text names by a box; seconds, px of 0..1000."""
    times: tuple[float, ...] = ()
    """Seconds, ascending: the time, the start and the end, or every time that is asked about; () is the whole clip."""
    axis: str = ""
    """What is compared: "right" or "depth" from the camera, "image" across its image; "nearest" or "farthest"; a side, "long".

    Of a motion: "camera" over the ground in the camera's axes, "image" across its image, "object" towards another object, "turn".
    """
    label: str = ""
    """What is counted; "" is every object."""
    within_m: float | None = None
    """Only objects this near to the camera are counted."""
    camera: Annotated[tuple[float, ...], Meta(min_length=12, max_length=12)] | None = None
    """3 x 4, row by row: takes (position, 1) to the axes of the camera at the time asked about: x right, y down, z forward.

    None where they are those of the graph.
    """
    camera_end: Annotated[tuple[float, ...], Meta(min_length=12, max_length=12)] | None = None
    """The same at the last time asked about, where what the camera sees is compared over time."""
    up: tuple[float, float, float] | None = None
    """Unit vector away from the ground in the axes of the graph; None where it is that of the frame of reference."""
    options: tuple[str | float | tuple[str, ...], ...] = ()
    """What each option of a choice says: "left", an id, a number, ids in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A sign drawn into shown frames, by which a question names an object (`videostr/marks.py`)."""

    object: str
    """Id of the object's node in the true graph."""
    text: str
    """What is drawn: a digit or a letter on a disc, or the name of a colour for an outline."""
    boxes: tuple[tuple[float, float, float, float, float], ...]
    """(t, x1, y1, x2, y2) of the object in every frame that shows the mark; seconds, px of 0..1000, a point where x1 = x2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSpec:
    """Which frames of which video a prompt shows."""

    video: str
    """Path of the video file, absolute or relative to the dataset's folder."""
    num_frames: int
    """F, frames taken at equal spacing, first and last of the interval included."""
    start_s: float = 0.0
    """Start of the interval, seconds."""
    end_s: float | None = None
    """End of the interval, seconds; None is the end of the video."""
    height: int | None = None
    """Rows of the frames handed to the model, pixels; None keeps the video's."""
    width: int | None = None
    """Columns, pixels; None keeps the video's."""
    marks: tuple[Mark, ...] = ()
    """What is drawn into the frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One dataset row: a question about a video, its true answer and its true scene graph."""

    id: str
    """Unique within the dataset."""
    source: str
    """Where it comes from, e.g. "tabletop/easy"."""
    family: str
    """Question family, e.g. "counting"."""
    question: str
    """What is asked, without options and without instructions."""
    options: tuple[str, ...]
    """Texts of options A, B, ...; empty unless the answer is a choice."""
    answer: Answer
    """The truth."""
    clip: ClipSpec
    """The frames to show."""
    labels: tuple[str, ...]
    """Labels that a graph may use; may hold distractors."""
    graph: SceneGraph | None
    """The true scene, or None where the source has none."""
    query: Query | None = None
    """What `question` and `options` ask, as values; None where only the words are known."""
    image_size: tuple[int, int] | None = None
    """Width and height, px, of the images that the source's boxes and calibration refer to; None where it does not say."""
    origin: str = ""
    """"file:row" of the dataset row, for messages."""

    @property
    def marks(self) -> tuple[Mark, ...]:
        """Marks that the shown frames have: those of the clip."""
        return self.clip.marks


# -------------------------------------------------------------------------------------------- clip and prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Selected frames of a video by name; the pixels stay in the frame store."""

    digest: str
    """Hex digest of video and sampling parameters: key in the frame store, and vLLM's multimodal uuid."""
    spec: ClipSpec
    """What was asked for, with an absolute path."""
    order: tuple[int, ...] = ()
    """Places among the frames of `spec`: the pictures shown, in this order; () shows all, in order of time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the policy sees, before tokenisation."""

    record_id: str
    """Which record it was rendered from."""
    text: str
    """Chat text with one unexpanded video placeholder."""
    clip: Clip
    """The video that the placeholder stands for."""
    is_blind: bool = False
    """The text has no placeholder, and the video is not shown: what a policy answers without looking."""


# ------------------------------------------------------------------------------------------ rollout and trace


class FinishReason(Enum):
    """Why a completion ended."""

    STOP = "the end-of-turn token was sampled"
    LENGTH = "the token limit was reached: the completion is truncated"
    ABORT = "the engine gave the request up"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Tokens [start, end) were sampled from weights `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled continuation of a prompt."""

    text: str
    """Decoded tokens without special tokens; before them what the chat template wrote of the trace (`trace.opened`)."""
    token_ids: np.ndarray
    """[T] int32, the end-of-turn token included when it was sampled."""
    logprobs: np.ndarray
    """[T] float32, log-probability under the sampling distribution (temperature applied), nats; NaN in a reference trace."""
    finish_reason: FinishReason
    """Why it ended."""
    weight_versions: tuple[VersionSpan, ...]
    """Which weights sampled which tokens; covers [0, T). Empty in a reference trace, which none sampled."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.token_ids)


class GraphAbsence(Enum):
    """Why a trace has no usable graph."""

    ABSENT = "no <graph> block inside <think>"
    TOO_LARGE = "over a limit: 64 KiB of text, 16 frames, 64 nodes or 512 edges a frame, JSON depth 6"
    BAD_JSON = "the <graph> block is not JSON"
    BAD_SCHEMA = "the JSON does not follow the graph contract"
    NON_FINITE = "a number is NaN, infinite or beyond 1e6"
    DUPLICATE_ID = "two nodes of one frame share an id"
    UNKNOWN_ID = "an edge names a node that its frame does not have"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A completion's text, parsed."""

    think: str
    """Text of the think block, "" when there is none."""
    graph: SceneGraph | GraphAbsence
    """The stated scene, or why there is none."""
    answer: str
    """Text of the answer block, stripped; "" when there is none."""
    well_formed: bool
    """True when the text matches the trace format exactly (method, section 1)."""
    problems: tuple[str, ...] = ()
    """What is wrong with the text, in words a user understands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a completion scored."""

    total: float
    """The scalar that the advantage is computed from."""
    parts: Mapping[str, float]
    """Parts by name: format, answer, graph, graph_node, graph_edge, length, ...; in [0, 1], length in [-1, 1]."""
    notes: tuple[str, ...] = ()
    """Why a part is low, in words a user understands."""


# ----------------------------------------------------------------------------------------- learner and update


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What the learner did with the batch of one step."""

    version: int
    """Weight version after it, one more than before; version 0 are the initial weights."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """loss, entropy, grad_norm, mismatch_kl, ...; means over completion tokens (docs/report.md)."""
    failures: tuple[Failure, ...] = ()
    """Groups of the batch that the learner could not encode, and so did not learn from."""


# --------------------------------------------------------------------------------------------------- failures


class FailureKind(Enum):
    """What went wrong with one record or group; counted under `failures/<name>` in the metrics."""

    BAD_SHARD = "the dataset's Parquet file cannot be read"
    BAD_ROW = "the dataset row breaks the record schema"
    BAD_VIDEO = "the video is missing or cannot be decoded"
    BAD_PROMPT = "the record's text cannot be made a prompt"
    PROMPT_TOO_LONG = "the expanded prompt leaves no room for a completion within rollout.max_model_len"
    PLACEHOLDER_SAMPLED = "a vision placeholder token was sampled"
    LEARNER_ENCODING = "the learner cannot encode the prompt as the engine saw it"
    ENGINE = "the rollout engine failed on the request"
    OTHER_WEIGHTS = (
        "an engine that was started meanwhile sampled from other weights than those to be evaluated"
    )
    REWARD_ERROR = "a reward raised or returned a value that is not a finite number"
    REWARD_TIMEOUT = "the reward worker did not answer within reward.deadline_s, in three tries"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A record or group that could not be used, and why."""

    kind: FailureKind
    record_id: str
    detail: str
    """What happened: file, row or message."""
    records: int = 1
    """How many records are lost by it; more than one where a file of them cannot be read."""
