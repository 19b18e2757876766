"""A scoring process; `rewards.service.pool` starts it as `python -m rewards.service.worker`.

In, on standard input: frames of 4 bytes number, 4 bytes length and body; the first body is the pickled rubric, each further
one a ScoreGroupRequest. Out, on what was standard output: for each, its number, 4 bytes length, 1 byte code, and a body: a
ScoreGroupResponse, or the words of the error. Ends when its input does.
"""

from __future__ import annotations

import contextlib
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
from rewards.service.orphans import MARK, end_group, end_marked
from videostr.errors import ConfigError, RecordError, RewardError, error_text, printable

REQUEST_HEADER = struct.Struct(">II")
REPLY_HEADER = struct.Struct(">IIB")
_MAX_DETAIL = 900  # characters of a status message; it travels in a header, whose size gRPC limits to 8 KiB
_Frame = tuple[int, bytes]


def main(memory_mib: int) -> None:
    """Serve until the input ends.

    Args:
        memory_mib: most data that the process may hold, MiB; beyond it a reward gets a MemoryError.
    """
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the pool ends its workers, once they have answered
        signal.signal(ignored, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mib << 20, memory_mib << 20))
    requests, replies = _private_pipes()
    frames = _read_in_background(requests)
    number, body = frames.get()
    rubric = pickle.loads(body)
    _reply(replies, number, Code.OK, b"")
    process = os.getpid()
    while True:
        number, body = frames.get()
        code, reply = answer(body, rubric)
        if os.getpid() != process:  # a reward forked, and its child came back from the reward
            os._exit(0)
        _reply(replies, number, code, reply)


def answer(body: bytes, rubric: Rubric) -> tuple[Code, bytes]:
    """Return code and body of the reply to one request; never raises."""
    name = ""
    try:
        request = pb.ScoreGroupRequest.FromString(body)
        name = printable(request.record.id, 100)
        record, completions = read_record(request), read_completions(request)
        scores = score_group(completions, record, rubric)
        return Code.OK, response_message(scores, request.id).SerializeToString()
    except (DecodeError, RecordError) as error:
        return Code.INVALID_ARGUMENT, _detail(str(error))
    except (RewardError, ConfigError) as error:
        return Code.FAILED_PRECONDITION, _detail(str(error))
    except KeyboardInterrupt as error:  # not a signal: those are ignored here
        return Code.FAILED_PRECONDITION, _detail(
            f"record {name}: the custom reward raised {error_text(error)}"
        )
    except BaseException as error:  # noqa: BLE001  # the process boundary: whatever is raised is the caller's status
        return Code.INTERNAL, _detail(f"record {name}: scoring raised {error_text(error)}")


def _detail(text: str) -> bytes:
    return printable(text, _MAX_DETAIL).encode()


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return the two ends of the pool's pipes, out of the way of rewards that read, print or fork."""
    nothing = os.open(os.devnull, os.O_RDWR)
    requests, replies = os.dup(0), os.dup(1)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    def let_go() -> None:
        for pipe in (requests, replies):
            os.dup2(nothing, pipe, inheritable=False)

    os.register_at_fork(after_in_child=let_go)
    return os.fdopen(requests, "rb"), os.fdopen(replies, "wb")


def _read_in_background(requests: BinaryIO) -> queue.SimpleQueue[_Frame]:
    """Return the frames, as they come.

    The end of the input ends the process and its children even while a reward hangs, so that none is left behind.
    """
    frames: queue.SimpleQueue[_Frame] = queue.SimpleQueue()
    mark = os.environ.get(MARK, "")  # now: a reward may change its environment

    def read() -> None:
        with contextlib.suppress(Exception):  # a frame that is cut off
            while header := requests.read(REQUEST_HEADER.size):
                number, length = REQUEST_HEADER.unpack(header)
                frames.put((number, requests.read(length)))
        end_marked(mark)
        if os.getpgrp() == os.getpid():
            end_group(os.getpid())
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return frames


def _reply(replies: BinaryIO, number: int, code: Code, body: bytes) -> None:
    replies.write(REPLY_HEADER.pack(number, len(body), code) + body)
    replies.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
