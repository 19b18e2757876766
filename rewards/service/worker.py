"""A scoring process; `rewards.service.pool` starts it as `python -m rewards.service.worker`.

In, on standard input: frames of 4 bytes length and body; the first body is the pickled rubric, each further one a
ScoreGroupRequest. Out, on what was standard output: for each, 4 bytes length, 1 byte code, and a body: a ScoreGroupResponse,
or the words of the error. Ends when its input does.
"""

from __future__ import annotations

import os
import pickle
import queue
import resource
import signal
import struct
import sys
import threading
from typing import BinaryIO

from google.protobuf.message import DecodeError

from rewards import Rubric, score_group
from rewards.service import reward_pb2 as pb
from rewards.service.messages import Code, read_completions, read_record, response_message
from videostr.errors import RecordError, RewardError

REQUEST_HEADER = struct.Struct(">I")
REPLY_HEADER = struct.Struct(">IB")


def main(memory_mib: int) -> None:
    """Serve until the input ends.

    Args:
        memory_mib: most data that the process may hold, MiB; beyond it a reward gets a MemoryError.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the pool ends its workers, once they have answered
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mib << 20, memory_mib << 20))
    requests, replies = _private_pipes()
    bodies = _read_in_background(requests)
    rubric = pickle.loads(bodies.get())
    _reply(replies, Code.OK, b"")
    while True:
        _reply(replies, *answer(bodies.get(), rubric))


def answer(body: bytes, rubric: Rubric) -> tuple[Code, bytes]:
    """Code and body of the reply to one request."""
    try:
        request = pb.ScoreGroupRequest.FromString(body)
        record, completions = read_record(request), read_completions(request)
    except (DecodeError, RecordError) as error:
        return Code.INVALID_ARGUMENT, str(error).encode()
    try:
        scores = score_group(completions, record, rubric)
        return Code.OK, response_message(scores, request.id).SerializeToString()
    except RewardError as error:
        return Code.FAILED_PRECONDITION, str(error).encode()
    except Exception as error:  # noqa: BLE001  # the process boundary: whatever a reward raises is the caller's status
        detail = f"record {record.id!r}: scoring raised {type(error).__name__}: {error}"
        return Code.INTERNAL, detail.encode("utf-8", "replace")


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The two ends of the pool's pipes, out of the way of rewards that read or print."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _read_in_background(requests: BinaryIO) -> queue.SimpleQueue[bytes]:
    """Bodies of the frames. The end of the input ends the process even while a reward hangs, so that none is left behind."""
    bodies: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        while header := requests.read(REQUEST_HEADER.size):
            bodies.put(requests.read(*REQUEST_HEADER.unpack(header)))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return bodies


def _reply(replies: BinaryIO, code: Code, body: bytes) -> None:
    replies.write(REPLY_HEADER.pack(len(body), code) + body)
    replies.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
