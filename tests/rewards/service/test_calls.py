"""The service as a whole: scores equal to in-process ones, errors, limits, hung and killed workers, malformed bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from rewards import Rubric, score_group
from rewards.service import reward_pb2
from rewards.service.client import (
    BlockingRewardClient,
    GroupRejected,
    RewardClient,
    RewardServiceError,
    ServiceTimeout,
    ServiceUnavailable,
)
from rewards.service.messages import SERVICE, describe, read_scores, request_message, response_message
from videostr.prompt import reference_trace
from videostr.types import Completion, FinishReason, Record, Score

# The preset `default` with the probe, which scores 0.5 and weighs 0.
RUBRIC = Rubric(custom="reward_probe:reward", w_custom=0.0)
RIGHT = "<think>x</think><answer>A</answer>"


def answer(text: str) -> str:
    return f"<think></think><answer>{text}</answer>"


def completion(text: str, tokens: int, reason: FinishReason = FinishReason.STOP) -> Completion:
    return Completion(
        text=text,
        token_ids=np.zeros(tokens, np.int32),
        logprobs=np.zeros(tokens, np.float32),
        finish_reason=reason,
        weight_versions=(),
    )


def use(service: Any, action: Any) -> Any:
    """What `action(client)` gives, in an event loop of its own."""

    async def main() -> Any:
        async with RewardClient(service.endpoint) as client:
            return await action(client)

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def probe_importable(probe_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(probe_folder))


def test_unary_and_streaming_scores_equal_those_of_this_process(service: Any, record: Record) -> None:
    perfect = reference_trace(record)
    groups = [
        [perfect, RIGHT, answer("B"), "", "\ud800 no trace"],
        [completion(perfect, 90), completion(RIGHT, 1024, FinishReason.LENGTH)],
        [perfect.replace("0", "1"), perfect[:-30]],
    ]
    expected = [score_group(group, record, RUBRIC) for group in groups]
    # format 0.2, answer 1 and the true graph 1; then the right letter without a graph
    assert [score.total for score in expected[0][:2]] == pytest.approx([2.2, 1.2])

    async def action(client: RewardClient) -> Any:
        unary = [await client.score_group(group, record) for group in groups]
        stream = [found async for found in client.score_groups((groups[i % 3], record) for i in range(100))]
        return unary, stream

    unary, stream = use(service, action)
    assert unary == expected
    assert sorted(index for index, _ in stream) == list(range(100))
    assert all(scores == expected[index % 3] for index, scores in stream)

    blocking = BlockingRewardClient(service.endpoint)
    assert blocking.score_group(groups[0], record) == expected[0]
    blocking.close()


def test_info_names_the_rubric_and_the_limits(service: Any) -> None:
    info = use(service, lambda client: client.info())
    assert json.loads(info.rubric_json) == json.loads(describe(RUBRIC))
    assert (info.workers, info.max_groups, info.deadline_s) == (2, 40, 2.0)
    assert info.max_message_bytes == 4 * 1024 * 1024


def test_health_and_reflection(service: Any) -> None:
    with grpc.insecure_channel(service.endpoint) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            status = health.Check(health_pb2.HealthCheckRequest(service=name)).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        database = ProtoReflectionDescriptorDatabase(channel)
        assert SERVICE in database.get_services()
        file: descriptor_pb2.FileDescriptorProto = database.FindFileContainingSymbol(SERVICE)
        assert [method.name for method in file.service[0].method] == ["ScoreGroup", "ScoreGroups", "Info"]


def test_metrics_count_groups_and_traces(service: Any, record: Record) -> None:
    before = [service.metric(name) for name in ("groups_total", "traces_total", "seconds_count")]
    use(service, lambda client: client.score_group([RIGHT] * 3, record))
    after = [service.metric(name) for name in ("groups_total", "traces_total", "seconds_count")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 3, 1]
    assert service.metric("in_flight") == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "colour"}, "record 'r1': answer.kind = 'colour': must be one of choice, number"),
        ({"value": '"C"'}, "of kind choice: must be the letter of one of at least two"),
        ({"value": "[" * 100_000}, "answer.value = '[[[["),
        (
            {"kind": "number", "value": "1" + "0" * 400},
            "of kind number: must be a finite number, as JSON",
        ),
        (
            {"value": "A"},
            "answer.value = 'A' of kind choice: must be the letter of one of at least two options, as JSON",
        ),
    ],
)
def test_a_record_that_breaks_the_schema_is_refused_with_field_and_rule(
    service: Any, record: Record, change: dict[str, str], words: str
) -> None:
    message = request_message([RIGHT], record)
    for name, value in change.items():
        setattr(message.record.answer, name, value)
    code, detail = status(service, message.SerializeToString())
    assert code == "INVALID_ARGUMENT"
    assert words in detail
    assert len(detail) <= 500


def test_what_scoring_does_not_need_stays_at_home(record: Record) -> None:
    whole = replace(record, image_size=(64, 48), clip=replace(record.clip, video="other.mp4"))
    assert request_message([RIGHT], whole) == request_message([RIGHT], record)


@pytest.mark.parametrize(
    ("name", "value"), [("start_s", math.nan), ("end_s", math.inf), ("num_frames", -1), ("num_frames", 0)]
)
def test_numbers_of_a_clip_that_are_none_are_refused(
    service: Any, record: Record, name: str, value: float
) -> None:
    message = request_message([RIGHT], record)
    message.record.clip.video, message.record.clip.num_frames = "v.mp4", 2
    setattr(message.record.clip, name, value)
    code, detail = status(service, message.SerializeToString())
    assert code == "INVALID_ARGUMENT"
    assert f"clip.{name} = {value}" in detail


def test_scores_with_odd_names_notes_and_numbers_travel() -> None:
    odd = Score(
        total=math.inf,
        parts={"\ud800\0": math.nan, "ü": -0.0},
        notes=("\ud800", "\0 \U0001f600", "x" * 10_000),
    )
    (found,) = read_scores(
        reward_pb2.ScoreGroupResponse.FromString(response_message([odd], 1).SerializeToString())
    )
    assert found.total == math.inf
    assert {name: str(value) for name, value in found.parts.items()} == {
        "\ufffd\ufffd\ufffd\0": "nan",
        "ü": "-0.0",
    }
    assert found.notes == ("\ufffd\ufffd\ufffd", "\0 \U0001f600", "x" * 10_000)


def status(service: Any, request: bytes) -> tuple[str, str]:
    """Code and detail of one raw unary call."""
    with grpc.insecure_channel(service.endpoint) as channel:
        try:
            channel.unary_unary(f"/{SERVICE}/ScoreGroup")(request, timeout=30)
        except grpc.RpcError as error:
            return error.code().name, error.details()
    return "OK", ""


def test_requests_without_record_or_completions_are_refused(service: Any, record: Record) -> None:
    assert status(service, b"") == (
        "INVALID_ARGUMENT",
        "record is missing; a request must hold the record that its completions belong to",
    )
    with pytest.raises(GroupRejected, match="record 'r1': 0 completions; a group must hold 1 to 1024"):
        use(service, lambda client: client.score_group([], record))
    code, detail = status(service, b"\xff\xff")
    assert code == "INVALID_ARGUMENT"
    assert "not a ScoreGroupRequest" in detail


def test_a_custom_reward_that_raises_is_reported_with_its_record(service: Any, record: Record) -> None:
    failures = service.metric('failures_total{code="FAILED_PRECONDITION"}')
    with pytest.raises(GroupRejected, match=r"record r1 .* ValueError: the judge is away"):
        use(service, lambda client: client.score_group([answer("raise")], record))
    assert service.metric('failures_total{code="FAILED_PRECONDITION"}') == failures + 1


def test_rewards_that_print_or_want_memory_do_no_harm(service: Any, record: Record) -> None:
    workers = sorted(service.workers())
    (score,) = use(service, lambda client: client.score_group([answer("noise")], record))
    assert score.parts["custom"] == 0.5
    with pytest.raises(GroupRejected, match="MemoryError"):  # 8 GiB, where a worker has 4
        use(service, lambda client: client.score_group([answer("memory")], record))
    assert sorted(service.workers()) == workers


def test_errors_of_one_group_leave_the_stream_open(service: Any, record: Record) -> None:
    async def action(client: RewardClient) -> Any:
        texts = [RIGHT, answer("raise"), RIGHT, answer("crash"), answer("sleep 60"), RIGHT]
        return dict([found async for found in client.score_groups(([text], record) for text in texts)])

    lost = {'worker_restarts_total{cause="died"}': 3, 'worker_restarts_total{cause="timeout"}': 1}
    before = {name: service.metric(name) for name in lost}
    found = use(service, action)
    assert [type(found[i]).__name__ for i in range(6)] == [
        "list", "GroupRejected", "list", "GroupRejected", "ServiceTimeout", "list",
    ]  # fmt: skip
    assert "ended 3 workers" in str(found[3])
    # Later tests count workers: let these be replaced first.
    service.wait_for(lambda: {name: service.metric(name) - before[name] for name in lost} == lost)
    service.wait_for(lambda: len(service.workers()) == 2)


def test_a_stream_of_malformed_bytes_ends_with_the_reason(service: Any, record: Record) -> None:
    good = request_message([RIGHT], record, 7).SerializeToString()
    with grpc.insecure_channel(service.endpoint) as channel:
        call = channel.stream_stream(f"/{SERVICE}/ScoreGroups")(iter([good, b"\xff\xff", good]), timeout=30)
        assert reward_pb2.ScoreGroupResponse.FromString(next(call)).id == 7  # what came before is answered
        with pytest.raises(grpc.RpcError, match="not a ScoreGroupRequest"):
            next(call)
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_reward_that_hangs_costs_its_worker_and_nothing_else(service: Any, record: Record) -> None:
    restarts, workers = service.metric('worker_restarts_total{cause="timeout"}'), set(service.workers())

    async def action(client: RewardClient) -> Any:
        hanging = client.score_group([answer("sleep 3600")], record, timeout_s=30)
        others = [client.score_group([RIGHT], record) for _ in range(20)]
        return await asyncio.gather(hanging, *others, return_exceptions=True)

    hung, *others = use(service, action)
    assert isinstance(hung, ServiceTimeout)
    assert "no score after 2.0 s" in str(hung)
    assert all(scores[0].total == pytest.approx(1.2) for scores in others)
    service.wait_for(lambda: service.metric('worker_restarts_total{cause="timeout"}') == restarts + 1)
    service.wait_for(lambda: len(service.workers()) == 2)
    assert len(set(service.workers()) & workers) == 1


def test_the_callers_deadline_is_kept(service: Any, record: Record) -> None:
    restarts = service.metric('worker_restarts_total{cause="timeout"}')
    began = time.monotonic()
    with pytest.raises(ServiceTimeout) as late:
        use(service, lambda client: client.score_group([answer("sleep 3600")], record, timeout_s=1.0))
    assert time.monotonic() - began < 1.9  # the service's own is 2 s
    assert "after 2.0 s" not in str(late.value)
    (score,) = use(service, lambda client: client.score_group([RIGHT], record))
    assert score.total == pytest.approx(1.2)
    # The next test counts workers: let this one's be replaced first.
    service.wait_for(lambda: service.metric('worker_restarts_total{cause="timeout"}') == restarts + 1)


def test_a_call_that_is_given_up_costs_no_worker(service: Any, record: Record) -> None:
    async def action(client: RewardClient) -> None:
        call = asyncio.create_task(client.score_group([answer("sleep 1")], record))
        await asyncio.to_thread(service.wait_for, lambda: service.metric("in_flight") == 1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await asyncio.gather(*(client.score_group([answer("sleep 0.1")], record) for _ in range(6)))

    service.wait_for(lambda: len(service.workers()) == 2)
    workers = sorted(service.workers())
    use(service, action)
    assert sorted(service.workers()) == workers


def test_above_max_groups_calls_are_refused_and_clients_come_again(service: Any, record: Record) -> None:
    async def action(client: RewardClient) -> Any:
        # Two keep both workers busy, so that the places of the others stay taken until `more` has come.
        texts = ["sleep 1.2"] * 2 + ["sleep 0.05"] * 38
        slow = [asyncio.create_task(client.score_group([answer(text)], record)) for text in texts]
        await asyncio.to_thread(service.wait_for, lambda: service.metric("in_flight") >= 35)
        more = [client.score_group([answer("sleep 0.05")], record) for _ in range(30)]
        return await asyncio.gather(*slow, *more)

    refused = service.metric('failures_total{code="RESOURCE_EXHAUSTED"}')
    scores = use(service, action)
    assert len(scores) == 70
    assert service.metric('failures_total{code="RESOURCE_EXHAUSTED"}') > refused


def test_too_long_a_message_is_refused_once(service: Any, record: Record) -> None:
    with pytest.raises(RewardServiceError, match=r"RESOURCE_EXHAUSTED.*greater --max-message-mib"):
        use(service, lambda client: client.score_group(["x" * (5 << 20)], record, timeout_s=60))


def test_a_service_that_is_not_there_is_named_with_the_remedy(record: Record) -> None:
    async def main() -> None:
        async with RewardClient("127.0.0.1:1") as client:
            await client.score_group([RIGHT], record, timeout_s=2.0)

    with pytest.raises(
        ServiceUnavailable, match=r"127\.0\.0\.1:1 was not reached .*python -m rewards\.service"
    ):
        asyncio.run(main())


@pytest.mark.parametrize(("first_s", "raised"), [(1.4, ServiceUnavailable), (0.0, ServiceTimeout)])
def test_what_took_most_of_the_time_is_the_reason(
    record: Record, first_s: float, raised: type[Exception]
) -> None:
    """The first try ends after a while, the second has no answer."""
    calls = []

    async def away(request: Any, context: Any) -> bytes:
        calls.append(request)
        await asyncio.sleep(first_s if len(calls) == 1 else 3600)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        return b""

    async def main() -> None:
        server = grpc.aio.server()
        handlers = {"ScoreGroup": grpc.unary_unary_rpc_method_handler(away)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with RewardClient(f"127.0.0.1:{port}") as client:
                await client.score_group([RIGHT], record, timeout_s=2.0)
        finally:
            await server.stop(0)

    with pytest.raises(raised):
        asyncio.run(main())


def test_a_stream_that_ends_under_a_write_is_no_refusal_of_a_group(record: Record) -> None:
    """gRPC then often gives INTERNAL in place of the server's own status."""

    async def cut(requests: Any, context: Any) -> Any:
        async for _ in requests:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the service is shutting down")
            yield b""

    async def main() -> list[RewardServiceError]:
        server = grpc.aio.server()
        handlers = {"ScoreGroups": grpc.stream_stream_rpc_method_handler(cut)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ends = []
        async with RewardClient(f"127.0.0.1:{port}") as client:
            for _ in range(20):
                try:
                    async for _ in client.score_groups(([RIGHT], record) for _ in range(1000)):
                        pass
                except RewardServiceError as error:
                    ends.append(error)
        await server.stop(0)
        return ends

    ends = asyncio.run(main())
    assert {type(error) for error in ends} == {ServiceUnavailable}
    assert all("shutting down" in str(error) for error in ends)


def test_killed_workers_under_load_leave_every_call_answered(service: Any, record: Record) -> None:
    group = [answer("sleep 0.05"), RIGHT]
    expected = score_group(group, record, RUBRIC)

    async def kill(count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0.3)
            workers = service.workers()
            if workers:
                with contextlib.suppress(ProcessLookupError):  # it has just been replaced
                    os.kill(random.choice(workers), signal.SIGKILL)

    async def action(client: RewardClient) -> Any:
        calls = (client.score_group(group, record) for _ in range(35))
        stream = [found async for found in client.score_groups([([RIGHT], record)] * 5)]
        *scores, _ = await asyncio.gather(*calls, kill(3))
        return scores, stream

    died = service.metric('worker_restarts_total{cause="died"}')
    scores, stream = use(service, action)
    assert scores == [expected] * 35
    assert len(stream) == 5
    service.wait_for(lambda: service.metric('worker_restarts_total{cause="died"}') > died)
    service.wait_for(lambda: len(service.workers()) == 2)


# --------------------------------------------------------------------------------------------- malformed bytes


HOSTILE = (
    "",
    "\x00",
    "NaN",
    "1e999",
    "[" * 5000,
    '{"frames": 3}',
    "9" * 400,
    '"\\ud800"',
    "[[1, 2], {}]",
    "sound",
)


def hostile(request: bytes, rng: random.Random) -> bytes:
    """The request with one text of the record or of a completion replaced, cut or garbled: proper bytes, bad contents."""
    message = reward_pb2.ScoreGroupRequest.FromString(request)
    record = message.record
    owner, name = rng.choice(
        [(record.answer, n) for n in ("kind", "value", "unit")]
        + [(record, n) for n in ("id", "question", "graph", "graph_frame")]
        + [(completion, "text") for completion in message.completions]
    )
    text = getattr(owner, name)
    at = rng.randrange(len(text) + 1)
    garbled = text[:at] + "".join(map(chr, rng.choices(range(1, 0x300), k=rng.randrange(5)))) + text[at + 1 :]
    setattr(
        owner, name, rng.choice([rng.choice(HOSTILE), text[:at], garbled, text[:at] + rng.choice(HOSTILE)])
    )
    return message.SerializeToString()


def malformed(request: bytes, rng: random.Random) -> bytes:
    """Random bytes, or the request with bytes changed, cut, doubled or put in, or with bad contents."""
    kind = rng.randrange(10)
    if kind >= 5:
        return hostile(request, rng)
    data, at = bytearray(request), rng.randrange(len(request))
    if kind == 0:
        return rng.randbytes(rng.randrange(2000))
    if kind == 1:
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:
        del data[at : at + rng.randrange(1, 100)]
    elif kind == 3:
        data[at:at] = data[rng.randrange(len(data)) :][:500]
    else:
        data[at:at] = rng.randbytes(rng.randrange(1, 50))
    return bytes(data)


def usage(pid: int) -> tuple[int, int]:
    """Resident MiB and open files of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20, len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def fuzz(endpoint: str, request: bytes, count: int, seed: int) -> Counter[str]:
    """Statuses of `count` malformed requests, every tenth sent as a stream of its own."""
    rng, found = random.Random(seed), Counter[str]()

    async def send(data: bytes, stream: bool) -> None:
        try:
            if stream:
                call = channel.stream_stream(f"/{SERVICE}/ScoreGroups")(iter([data]), timeout=60)
                found.update(["OK" async for _ in call])
            else:
                await channel.unary_unary(f"/{SERVICE}/ScoreGroup")(data, timeout=60)
                found["OK"] += 1
        except grpc.aio.AioRpcError as error:
            found[error.code().name] += 1

    async with grpc.aio.insecure_channel(endpoint) as channel:
        for start in range(0, count, 20):
            batch = range(start, min(start + 20, count))
            await asyncio.gather(*(send(malformed(request, rng), i % 10 == 0) for i in batch))
    return found


MALFORMED = int(os.environ.get("VIDEOSTR_MALFORMED", "400"))
"""How many; more for a long run."""


def test_malformed_requests_neither_crash_nor_leak(service: Any, record: Record) -> None:
    request = request_message([reference_trace(record), RIGHT], record).SerializeToString()
    asyncio.run(fuzz(service.endpoint, request, 100, seed=1))
    workers, before = sorted(service.workers()), usage(service.process.pid)
    found = asyncio.run(fuzz(service.endpoint, request, MALFORMED, seed=2))
    after = usage(service.process.pid)
    assert set(found) <= {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION"}
    assert found["INVALID_ARGUMENT"] > MALFORMED / 4
    assert found["OK"] > MALFORMED / 8  # texts of completions may hold anything
    assert sorted(service.workers()) == workers
    assert after[0] <= before[0] + 16
    assert after[1] <= before[1] + 2
    (score,) = use(service, lambda client: client.score_group([RIGHT], record))
    assert score.total == pytest.approx(1.2)
