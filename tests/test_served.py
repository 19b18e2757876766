"""The proxy in front of vLLM's own server: a program gets the policy's answers to the texts that the proxy sends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from videostr.chat import chat_text
from videostr.data.records import usable_records
from videostr.evaluate.benchmark import Mode
from videostr.evaluate.proxy import FORM, Proxy
from videostr.evaluate.run import open_contract
from videostr.prompt import format_question, reasoning_prompt
from videostr.trace import parse
from videostr.types import Record
from videostr.video import decode, name_clip

POLICY = Path(__file__).parents[1] / "videostr" / "tabletop" / "pretrained"
SERVER = """--dtype float32 --max-model-len 512 --max-num-seqs 4 --enforce-eager --host 127.0.0.1 --served-model-name policy
--media-io-kwargs {"video":{"video_backend":"opencv","num_frames":4}}"""
TOKENS = 200
START_S = 600
QUESTIONS = 4


@pytest.fixture
def endpoint(tabletop: Path, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(POLICY)),
        *("--port", str(port), "--allowed-local-media-path", str(tabletop.resolve()), *SERVER.split()),
    ]
    cpu = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    log = tmp_path / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, env=os.environ | cpu, stdout=out, stderr=subprocess.STDOUT)
    started = psutil.Process(server.pid)
    try:
        deadline = time.monotonic() + START_S
        while not serves(f"http://127.0.0.1:{port}/v1/models"):
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        for process in [*started.children(recursive=True), started]:
            process.terminate()
        server.wait()


def serves(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


def text_sent(record: Record) -> str:
    """What the proxy makes of a question about a video of 3 s."""
    question = format_question(record.question, record.options)
    return reasoning_prompt(question, open_contract([0.0, 1.0, 2.0, 3.0]), FORM)


def generated(record: Record, root: Path, processor: Any, model: Any) -> str:
    """What the policy writes greedily, in transformers."""
    frames = decode(name_clip(record.clip, root).spec)
    metadata = {key: value for key, value in frames.metadata.items() if key != "do_sample_frames"}
    inputs = processor(
        text=[chat_text(text_sent(record), processor)],
        videos=[frames.pixels],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    with torch.inference_mode():
        found = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    text: str = processor.tokenizer.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def test_a_program_gets_the_answers_of_the_policy(endpoint: str, tabletop: Path) -> None:
    root = tabletop / "heldout"
    records = list(usable_records(root))[:QUESTIONS]
    processor = AutoProcessor.from_pretrained(POLICY)
    model = AutoModelForImageTextToText.from_pretrained(POLICY, dtype=torch.float32)
    same = 0
    with Proxy(endpoint, ("127.0.0.1", 0), Mode.GRAPH, TOKENS) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{http.server_address[1]}/v1", api_key="k")
        for record in records:
            video = {"url": (root / record.clip.video).resolve().as_uri()}
            content: Any = [
                {"type": "video_url", "video_url": video},
                {"type": "text", "text": format_question(record.question, record.options)},
            ]
            message: Any = (
                client.chat.completions.create(
                    model="policy", temperature=0, messages=[{"role": "user", "content": content}]
                )
                .choices[0]
                .message
            )
            assert message.content == parse(message.reasoning_content).answer
            same += message.reasoning_content == generated(record, root, processor, model)
        http.shutdown()
    assert same >= QUESTIONS - 1  # where two tokens are nearly as likely, either may be written
