"""Carriers to messages of reward.proto and back.

A record travels as its dataset row and is read back by the code that reads datasets, so that both refuse the same rows with
the same words. Everything here is pure; neither side's network code is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from rewards.rubric import Rubric
from rewards.service import reward_pb2 as pb
from videostr.data.records import record_from_row, record_to_row
from videostr.errors import RecordError
from videostr.types import Completion, FinishReason, Record, Score

SERVICE = "videostr.reward.v1.RewardService"
MAX_COMPLETIONS = 1024
"""Completions of one group."""
MAX_TOKENS = 1 << 24
"""Tokens of one completion."""

_NO_CLIP = {"video": "-", "num_frames": 1, "start_s": 0.0, "end_s": None, "height": None, "width": None}


class Code(IntEnum):
    """The gRPC status codes that scoring ends with, by their numbers; here so that workers need no gRPC."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    FAILED_PRECONDITION = 9
    INTERNAL = 13


def request_message(
    completions: Sequence[Completion | str], record: Record, group_id: int = 0
) -> pb.ScoreGroupRequest:
    """Return the request that asks for scores of `completions`; what they do not need (clip, image size) stays at home."""
    row = record_to_row(record)
    for name in ("clip", "image_size"):
        del row[name]
    return pb.ScoreGroupRequest(
        id=group_id,
        record=pb.Record(**{name: value for name, value in row.items() if value is not None}),
        completions=[_completion_message(completion) for completion in completions],
    )


def read_record(request: pb.ScoreGroupRequest) -> Record:
    """Return the record of a request.

    Raises:
        RecordError: it is missing or breaks the record schema; names record, field and rule.
    """
    if not request.HasField("record"):
        raise RecordError(
            "record is missing", remedy="a request must hold the record that its completions belong to"
        )
    message = request.record
    origin = f"record {message.id!r}"
    try:
        return record_from_row(_row(message), origin)
    except RecordError:
        raise
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:  # JSON of no sense at all
        raise RecordError(
            f"{origin}: answer.value, graph or query cannot be read ({type(error).__name__}: {error})",
            remedy="they must be JSON of the record schema",
        ) from None


def read_completions(request: pb.ScoreGroupRequest) -> list[Completion | str]:
    """Return the completions of a request; one without a number of tokens is its text.

    Raises:
        RecordError: there are none, too many, or one is too long.
    """
    if not 1 <= len(request.completions) <= MAX_COMPLETIONS:
        raise RecordError(
            f"record {request.record.id!r}: {len(request.completions)} completions",
            remedy=f"a group must hold 1 to {MAX_COMPLETIONS}: split it, or send what it lacks",
        )
    return [_completion(message, request.record.id) for message in request.completions]


def response_message(scores: Sequence[Score], group_id: int) -> pb.ScoreGroupResponse:
    """Return the answer to a request."""
    return pb.ScoreGroupResponse(
        id=group_id,
        scores=[
            pb.Score(
                total=s.total,
                parts={_valid(name): value for name, value in s.parts.items()},
                notes=map(_valid, s.notes),
            )
            for s in scores
        ],
    )


def read_scores(response: pb.ScoreGroupResponse) -> list[Score]:
    """Return the scores of an answer; equal to what scoring in this process gives."""
    return [Score(total=s.total, parts=dict(s.parts), notes=tuple(s.notes)) for s in response.scores]


def describe(rubric: Rubric) -> str:
    """Return all fields of a rubric as JSON with sorted keys: equal exactly when the rubrics score alike."""
    return json.dumps(dataclasses.asdict(rubric), sort_keys=True)


def _completion_message(completion: Completion | str) -> pb.Completion:
    if isinstance(completion, str):
        return pb.Completion(text=_valid(completion))
    return pb.Completion(
        text=_valid(completion.text),
        tokens=len(completion.token_ids),
        truncated=completion.finish_reason is FinishReason.LENGTH,
    )


def _valid(text: str) -> str:
    """Lone surrogates, which UTF-8 and so a message cannot hold, become U+FFFD."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _completion(message: pb.Completion, record_id: str) -> Completion | str:
    if not message.HasField("tokens"):
        return message.text
    if message.tokens > MAX_TOKENS:
        raise RecordError(
            f"record {record_id!r}: completion.tokens = {message.tokens}: must be at most {MAX_TOKENS}"
        )
    # Length terms read only how many there are: a view of one number costs no memory, whatever the message says.
    return Completion(
        text=message.text,
        token_ids=np.broadcast_to(np.int32(0), message.tokens),
        logprobs=np.broadcast_to(np.float32(0), message.tokens),
        finish_reason=FinishReason.LENGTH if message.truncated else FinishReason.STOP,
        weight_versions=(),
    )


def _row(message: pb.Record) -> dict[str, Any]:
    answer = message.answer
    return {
        "id": message.id,
        "source": message.source,
        "family": message.family,
        "question": message.question,
        "options": list(message.options),
        "answer": {"kind": answer.kind, "value": answer.value, "unit": answer.unit},
        "clip": _clip_row(message.clip) if message.HasField("clip") else _NO_CLIP,
        "labels": list(message.labels),
        "graph": message.graph if message.HasField("graph") else None,
        "graph_frame": message.graph_frame if message.HasField("graph_frame") else None,
        "query": message.query if message.HasField("query") else None,
    }


def _clip_row(message: pb.Clip) -> dict[str, Any]:
    optional = ("start_s", "end_s", "height", "width")
    return {
        "video": message.video,
        "num_frames": message.num_frames,
        **{name: getattr(message, name) if message.HasField(name) else None for name in optional},
    }
