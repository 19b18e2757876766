"""What custom rewards do to their workers, and what callers then get: odd exceptions, children, signals, garbage, forks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rewards import score_group
from rewards.rubric import Rubric
from rewards.service.client import BlockingRewardClient, GroupRejected
from rewards.service.messages import SERVICE
from videostr.errors import RewardError
from videostr.types import Record

FAULTS = """
import json, multiprocessing, os, pathlib, signal, subprocess, sys, threading, time

HERE = pathlib.Path(__file__).parent

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")

class Number(Exception):
    def __str__(self):
        return 3

class Sticky(Exception):
    def __init__(self):
        super().__init__("a lock cannot travel", threading.Lock())

class Quit(BaseException):
    pass

class Odd(float):
    def __float__(self):
        raise ValueError("not today")

ERRORS = {
    "surrogate": lambda: ValueError("boom \\ud800"),
    "nul": lambda: ValueError("boom \\0 boom"),
    "huge": lambda: ValueError("boom " * 1_000_000),
    "bytes": lambda: ValueError(b"\\xff\\xfe"),
    "path": lambda: FileNotFoundError(2, "gone", os.fsdecode(b"/data/\\xff")),
    "mute": Mute,
    "number": Number,
    "sticky": Sticky,
    "group": lambda: ExceptionGroup("two", [ValueError("first"), ExceptionGroup("more", [KeyError("second")])]),
    "interrupt": lambda: KeyboardInterrupt("from the reward"),
    "exit": lambda: SystemExit(0),
    "base": lambda: Quit("base"),
    "stop": lambda: StopIteration("stop"),
}

def note(pid):
    (HERE / "children").open("a").write(f"{pid}\\n")

def raw_reply():
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and "pipe" in os.readlink(f"/proc/self/fd/{name}"):
                os.write(int(name), b"garbage that is not a reply")
        except OSError:
            pass

def once(name):
    try:
        (HERE / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def reward(trace, record):
    word, _, value = trace.answer.partition(" ")
    if word == "raise":
        raise ERRORS[value]()
    if word == "return":
        return {"text": "\\ud800", "odd": Odd(0.5), "nan": float("nan"), "none": None}[value]
    if word == "children":
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
        child.start()
        note(child.pid)
        note(subprocess.Popen(["sleep", "3600"]).pid)
        note(subprocess.Popen(["sleep", "3600"], start_new_session=True).pid)
    if word == "fork" and os.fork() == 0:
        note(os.getpid())
        return 1.0
    if word == "once" and once(value):
        {
            "exit0": lambda: os._exit(0),
            "oom": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
            "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
            "garbage": raw_reply,
        }[value]()
    return 0.5
"""


def answer(text: str) -> str:
    return f"<think></think><answer>{text}</answer>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "fault_reward.py").write_text(FAULTS)
    return folder


@pytest.fixture(scope="module")
def service(folder: Path, start_service: Any) -> Iterator[Any]:
    """A server with one worker, without a config of a run."""
    with start_service("--custom", "fault_reward:reward", "--deadline", "60", folder=folder) as running:
        yield running


@pytest.fixture
def client(service: Any) -> Iterator[BlockingRewardClient]:
    client = BlockingRewardClient(service.endpoint)
    yield client
    client.close()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise surrogate", "ValueError: boom \\ud800"),
        ("raise nul", "ValueError: boom \\x00 boom"),
        ("raise huge", "ValueError: boom boom"),
        ("raise bytes", "ValueError: b'\\xff\\xfe'"),
        ("raise path", "/data/\\udcff"),
        ("raise mute", "Mute: (its __str__ raised RuntimeError)"),
        ("raise number", "Number: (its __str__ raised TypeError)"),
        ("raise sticky", "Sticky: ('a lock cannot travel'"),
        ("raise group", "[ValueError: first; KeyError: 'second']"),
        ("raise interrupt", "KeyboardInterrupt: from the reward"),
        ("raise exit", "SystemExit: 0"),
        ("raise base", "Quit: base"),
        ("raise stop", "StopIteration: stop"),
        ("return text", "returned '\\ud800', must be a number in [0, 1]"),
        ("return odd", "raised ValueError: not today"),
        ("return nan", "returned nan"),
        ("return none", "returned None"),
    ],
)
def test_any_error_of_a_reward_is_delivered_and_costs_no_worker(
    service: Any, client: BlockingRewardClient, record: Record, fault: str, words: str
) -> None:
    workers, counted = service.workers(), service.metric('failures_total{code="FAILED_PRECONDITION"}')
    with pytest.raises(GroupRejected) as refused:
        client.score_group([answer(fault)], record)
    assert words in str(refused.value)
    assert "record r1" in str(refused.value)
    assert len(str(refused.value)) < 1000
    assert service.metric('failures_total{code="FAILED_PRECONDITION"}') == counted + 1
    assert service.workers() == workers


def test_a_cut_text_says_so(client: BlockingRewardClient, record: Record) -> None:
    with pytest.raises(GroupRejected, match=r"\.\.\. \[cut, 5000012 characters\]"):
        client.score_group([answer("raise huge")], record)


def test_the_same_errors_in_this_process(
    record: Record, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    rubric = Rubric(custom="fault_reward:reward")
    for fault in ("raise surrogate", "raise mute", "raise exit", "return odd"):
        with pytest.raises(RewardError, match=r"record r1 .*fault_reward:reward raised \w+: "):
            score_group([answer(fault)], record, rubric)
    with pytest.raises(KeyboardInterrupt):  # perhaps the user's own
        score_group([answer("raise interrupt")], record, rubric)


def serving(service: Any) -> int:
    with grpc.insecure_channel(service.endpoint) as channel:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        return health_pb2_grpc.HealthStub(channel).Check(request).status


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_whose_children_outlive_it_is_replaced_and_they_end(
    service: Any, client: BlockingRewardClient, record: Record, folder: Path
) -> None:
    (folder / "children").unlink(missing_ok=True)
    client.score_group([answer("children")], record)
    children = [int(line) for line in (folder / "children").read_text().split()]
    assert len(children) == 3
    assert all(_alive(pid) for pid in children)
    died, (worker,) = service.metric('worker_restarts_total{cause="died"}'), service.workers()
    os.kill(worker, signal.SIGKILL)
    (score,) = client.score_group([answer("A")], record, timeout_s=60)  # below the service's deadline
    assert score.parts["custom"] == 0.5
    assert service.metric('worker_restarts_total{cause="died"}') == died + 1
    assert service.metric("workers") == 1
    assert worker not in service.workers()
    service.wait_for(lambda: not any(_alive(pid) for pid in children))


def test_health_tells_when_no_worker_is_up(
    service: Any, client: BlockingRewardClient, record: Record
) -> None:
    states = health_pb2.HealthCheckResponse
    with grpc.insecure_channel(service.endpoint) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert next(watch).status == states.SERVING
        os.kill(service.workers()[0], signal.SIGKILL)
        assert next(watch).status == states.NOT_SERVING
        assert next(watch).status == states.SERVING
        watch.cancel()


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("exit0", "died"),
        ("oom", "died"),
        ("segfault", "died"),
        ("stopped", "stopped"),
        ("garbage", "bad_reply"),
    ],
)
def test_a_group_that_loses_its_worker_is_scored_by_the_next_one(
    service: Any, client: BlockingRewardClient, record: Record, fault: str, cause: str
) -> None:
    metric = f'worker_restarts_total{{cause="{cause}"}}'
    before = service.metric(metric)
    (score,) = client.score_group(
        [answer(f"once {fault}")], record, timeout_s=59
    )  # the service's deadline is 60 s
    assert score.parts["custom"] == 0.5
    service.wait_for(lambda: service.metric(metric) == before + 1)


def test_a_worker_stopped_while_idle_is_replaced(
    service: Any, client: BlockingRewardClient, record: Record
) -> None:
    before, (worker,) = service.metric('worker_restarts_total{cause="stopped"}'), service.workers()
    os.kill(worker, signal.SIGSTOP)
    service.wait_for(lambda: service.metric('worker_restarts_total{cause="stopped"}') == before + 1, 60)
    client.score_group([answer("A")], record)
    assert not _alive(worker)


def test_a_child_that_comes_back_from_the_reward_is_not_a_worker(
    service: Any, client: BlockingRewardClient, record: Record, folder: Path
) -> None:
    (folder / "children").unlink(missing_ok=True)
    workers = service.workers()
    for _ in range(3):
        (score,) = client.score_group([answer("fork")], record)
        assert score.parts["custom"] == 0.5
    service.wait_for(lambda: len((folder / "children").read_text().split()) == 3)
    service.wait_for(lambda: not any(_alive(int(pid)) for pid in (folder / "children").read_text().split()))
    assert service.workers() == workers


def test_children_end_with_a_service_that_is_killed(folder: Path, start_service: Any, record: Record) -> None:
    (folder / "children").unlink(missing_ok=True)
    with start_service("--custom", "fault_reward:reward", folder=folder) as service:
        client = BlockingRewardClient(service.endpoint)
        client.score_group([answer("children")], record)
        client.close()
        os.kill(service.process.pid, signal.SIGKILL)
        children = [int(line) for line in (folder / "children").read_text().split()]
        service.wait_for(lambda: not any(_alive(pid) for pid in children))
