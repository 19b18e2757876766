"""`python -m videostr.evaluate.proxy`: lets any program that speaks to an OpenAI-compatible server ask in mode think or graph.

    --endpoint http://127.0.0.1:8000/v1 [--port 8001] [--mode graph] [--max-tokens 2048]

It stands between the program and a server such as `vllm serve`. To the last text of every chat request it adds the instruction of
the mode; of the answer it returns the content of the answer block alone, the whole text as `reasoning_content`. Only
`/v1/models` and `/v1/chat/completions` are served: what would pass without the instruction is refused.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import logging
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from videostr.command import command, run_main, typed
from videostr.config.sections import Count
from videostr.console import log_to_console
from videostr.errors import ConfigError, VideoError
from videostr.evaluate.benchmark import Mode
from videostr.evaluate.run import open_contract
from videostr.prompt import reasoning_prompt
from videostr.trace import parse
from videostr.video import probe, target_times

log = logging.getLogger("videostr.evaluate")
MODES = (Mode.THINK, Mode.GRAPH)
FORM = "the answer, in the form asked for,"
TIMES = 4
"""Times of a graph, the first and the last of a video among them, where its length can be read."""
TIMEOUT_S = 3600.0


class BadRequest(Exception):
    """The program asked for what the proxy does not do; its text says what and why."""


class BadAnswer(Exception):
    """The server's answer is none to a chat request; its text says why."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; return the exit status, as in `videostr.command`."""
    parser = argparse.ArgumentParser(
        prog="python -m videostr.evaluate.proxy",
        description="Ask in mode think or graph.",
        allow_abbrev=False,
    )
    parser.add_argument("--endpoint", required=True, help="base URL of the server, with /v1")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on, default 127.0.0.1")
    parser.add_argument("--port", type=typed(Count), default=8001, help="to listen on, default 8001")
    parser.add_argument(
        "--mode", choices=[mode.value for mode in MODES], default="graph", help="default graph"
    )
    parser.add_argument(
        "--max-tokens",
        type=typed(Count),
        default=2048,
        help="of a completion, reasoning included; default 2048",
    )
    options = parser.parse_args(arguments)
    log_to_console(sys.stdout)
    address = (options.host, options.port)
    with Proxy(options.endpoint, address, Mode(options.mode), options.max_tokens) as server:
        log.info(
            "http://%s:%d/v1 asks %s in mode %s", *server.server_address[:2], options.endpoint, options.mode
        )
        server.serve_forever()
    return 0


class Proxy(ThreadingHTTPServer):
    """Listens; `serve_forever` lets it answer."""

    daemon_threads = True

    def __init__(self, endpoint: str, address: tuple[str, int], mode: Mode, max_tokens: int) -> None:
        """Bind the address.

        Args:
            endpoint: base URL of the server that is asked.
            address: host and port to listen on; port 0 takes a free one.
            mode: whose instruction is added.
            max_tokens: most tokens of a completion, in place of what a request says, which leaves no room for reasoning.

        Raises:
            ConfigError: the endpoint is no URL, or the address cannot be had.
        """
        self.base = endpoint.rstrip("/")
        self.mode = mode
        self.max_tokens = max_tokens
        if urlsplit(self.base).scheme not in {"http", "https"}:
            raise ConfigError(
                f"--endpoint {endpoint}: must be a URL", remedy="write it as http://127.0.0.1:8000/v1"
            )
        try:
            super().__init__(address, _Handler)
        except (OSError, OverflowError) as error:  # the latter for a port above 65535
            why = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(
                f"--port {address[1]}: cannot be listened on at {address[0]} ({why})",
                remedy="name another one",
            ) from None

    def forward(self, path: str, body: bytes | None, key: str | None) -> tuple[int, bytes]:
        """Return status and body of the server's answer.

        Raises:
            OSError, HTTPException: it does not answer, or not as a server does.
        """
        headers = {"Content-Type": "application/json"} | ({"Authorization": key} if key else {})
        request = urllib.request.Request(self.base + path, data=body, headers=headers)  # checked
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        self._answer("/v1/models", None)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "0")
        self._answer("/v1/chat/completions", self.rfile.read(int(length) if length.isdecimal() else 0))

    def _answer(self, served: str, body: bytes | None) -> None:
        proxy = self.server
        try:
            if self.path.rstrip("/") != served:
                raise BadRequest(f"{self.path}: the proxy serves /v1/models and /v1/chat/completions only")
            asked = None if body is None else asking(body, proxy.mode, proxy.max_tokens)
            key = self.headers.get("Authorization")
            status, answer = proxy.forward(served.removeprefix("/v1"), asked, key)
            if asked is not None and status == HTTPStatus.OK:
                answer = answering(answer)
        except BadRequest as error:
            status, answer = HTTPStatus.BAD_REQUEST, _error(str(error))
        except (OSError, HTTPException, BadAnswer) as error:
            status, answer = (
                HTTPStatus.BAD_GATEWAY,
                _error(f"{proxy.base}: {str(error) or type(error).__name__}"),
            )
        with contextlib.suppress(ConnectionError):  # the program has gone
            self._send(status, answer)

    def _send(self, status: int, answer: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in the base class
        log.debug(format, *args)


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()


def asking(body: bytes, mode: Mode, max_tokens: int) -> bytes:
    """Return a chat request with the instruction of a mode after its last text.

    Raises:
        BadRequest: it is no chat request, has no text, or asks for a stream.
    """
    try:
        request = json.loads(body)
        last = request["messages"][-1]
        content = last["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        text = next(part for part in reversed(content) if part["type"] == "text")
    except (ValueError, KeyError, IndexError, TypeError, StopIteration) as error:
        raise BadRequest(f"the request is no chat request that ends with a text ({error!r})") from None
    if request.get("stream"):
        raise BadRequest("stream: an answer is known when its reasoning has ended; ask without")
    contract = open_contract(_times(content)) if mode is Mode.GRAPH else ""
    text["text"] = reasoning_prompt(text["text"].strip(), contract, FORM)
    last["content"] = content
    request.pop("max_completion_tokens", None)
    request["max_tokens"] = max_tokens
    return json.dumps(request).encode()


def answering(body: bytes) -> bytes:
    """Return a chat response whose contents are those of the answer blocks; "" where a text has none.

    Raises:
        BadAnswer: it is no chat response.
    """
    try:
        response = json.loads(body)
        for choice in response["choices"]:
            message = choice["message"]
            whole = message.get("content") or ""
            message["content"], message["reasoning_content"] = parse(whole).answer, whole
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadAnswer(f"the answer is no chat response ({error!r})") from None
    return json.dumps(response).encode()


def _times(content: Sequence[dict[str, Any]]) -> list[float]:
    """Return times of the only video of a message, in seconds; none where its length is not known, as of single images."""
    urls = [part["video_url"]["url"] for part in content if part.get("type") == "video_url"]
    if len(urls) != 1:
        return []
    try:
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            path = Path(file.name)
            if urls[0].startswith("data:"):
                path.write_bytes(base64.b64decode(urls[0].partition(",")[2]))
            elif urls[0].startswith("file:"):
                path = Path(unquote(urlsplit(urls[0]).path))
            else:
                return []
            return [round(float(t), 2) for t in target_times(0.0, probe(path).seconds, TIMES)]
    except (VideoError, ValueError):
        return []


if __name__ == "__main__":
    run_main(main)
