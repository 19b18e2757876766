"""Chat requests of another program through the proxy: what the server is asked, and what the program gets of fixed texts."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from videostr.evaluate import proxy
from videostr.evaluate.benchmark import Mode
from videostr.evaluate.proxy import Proxy

TRACE = '<think>left of it <graph>{"unit": "m"}</graph></think>\n<answer> B </answer>'
OFFICIAL = "Which?\nA. left\nB. right\nAnswer with the option's letter from the given choices directly."


class Server(BaseHTTPRequestHandler):
    """Says what `says` has, as many texts as there are."""

    asked: list[dict[str, Any]]
    says: list[str]
    choices: Any = None
    """In place of those of `says`."""

    def do_GET(self) -> None:
        self._send(
            200, {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "x"}]}
        )

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if not self.says:
            self._send(404, {"error": {"message": "no such model"}})
            return
        choices = [
            {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            for i, text in enumerate(self.says)
        ]
        self._send(
            200,
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": self.choices or choices,
            },
        )

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[type[Server]]:
    handler = type("Handler", (Server,), {"asked": [], "says": [TRACE]})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        handler.url = f"http://127.0.0.1:{http.server_address[1]}/v1"  # type: ignore[attr-defined]  # for the tests
        yield handler
        http.shutdown()


@pytest.fixture(params=[Mode.GRAPH])
def client(server: Any, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with Proxy(server.url, ("127.0.0.1", 0), request.param, 300) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        yield openai.OpenAI(base_url=url, api_key="k", max_retries=0)
        http.shutdown()


def say(client: openai.OpenAI, content: Any, **more: Any) -> Any:
    return client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": content}], max_tokens=16, **more
    )


def test_the_program_gets_the_answer_and_the_server_the_instruction(
    client: openai.OpenAI, server: Any
) -> None:
    assert [model.id for model in client.models.list()] == ["m"]
    server.says = [TRACE, "B, I think", "left of it</think><answer>C</answer>"]
    choices = say(client, OFFICIAL, temperature=0.0).choices
    assert [choice.message.content for choice in choices] == ["B", "", "C"]
    assert [choice.message.reasoning_content for choice in choices] == server.says
    (asked,) = server.asked
    assert (asked["temperature"], asked["max_tokens"], asked["model"]) == (0.0, 300, "m")
    (part,) = asked["messages"][0]["content"]
    question, think, unit, *_, end = (
        part["text"].removeprefix(OFFICIAL[: OFFICIAL.rindex("\n")]).split("\n")[1:]
    )
    assert question == OFFICIAL.rsplit("\n", 1)[1]
    assert think == "Inside <think></think>, draw the scene as JSON inside <graph></graph>, then reason."
    assert "Times: up to four of those shown, in s. Labels: names of the objects that matter." in unit
    assert end == "Then write the answer, in the form asked for, inside <answer></answer>."


@pytest.mark.parametrize("client", [Mode.THINK], indirect=True)
def test_mode_think_asks_for_no_graph(client: openai.OpenAI, server: Any) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    assert say(client, [{"type": "text", "text": OFFICIAL}, image]).choices[0].message.content == "B"
    text, kept = server.asked[0]["messages"][0]["content"]
    assert kept == image
    assert text["text"] == (
        f"{OFFICIAL}\nReason inside <think></think>.\nThen write the answer, in the form asked for, inside <answer></answer>."
    )


def test_the_times_of_a_video_are_named_where_they_are_known(
    client: openai.OpenAI, server: Any, tabletop: Path
) -> None:
    """Videos of the tabletop's easy worlds are as long as their first one; four times, the ends among them."""
    path = sorted((tabletop / "heldout").rglob("*.mp4"))[0]
    seconds = proxy.probe(path).seconds
    data = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
    for url, named in (
        (data, True),
        (path.resolve().as_uri(), True),
        ("http://127.0.0.1/v.mp4", False),
        ("data:video/mp4;base64,AAAA", False),
    ):
        say(client, [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": OFFICIAL}])
        text = server.asked[-1]["messages"][0]["content"][1]["text"]
        times = ", ".join(f"{round(seconds * i / 3, 2):g}" for i in range(4))
        assert (f"Times: {times} s." in text) == named
        assert ("Times: up to four of those shown" in text) != named


def test_what_would_pass_without_the_instruction_is_refused(client: openai.OpenAI, server: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="ask without"):
        say(client, OFFICIAL, stream=True)
    with pytest.raises(openai.BadRequestError, match="serves /v1/models and /v1/chat/completions only"):
        client.completions.create(model="m", prompt="x")
    with pytest.raises(openai.BadRequestError, match="no chat request that ends with a text"):
        say(client, [{"type": "image_url", "image_url": {"url": "x"}}])
    assert server.asked == []


def test_errors_of_the_server_are_passed_on(client: openai.OpenAI, server: Any) -> None:
    server.says = []
    with pytest.raises(openai.NotFoundError, match="no such model"):
        say(client, OFFICIAL)


@pytest.mark.parametrize("says", [[None], "x", [{"message": "x"}]])
def test_an_answer_of_another_form_is_named(client: openai.OpenAI, server: Any, says: Any) -> None:
    server.choices = says
    with pytest.raises(openai.InternalServerError, match=r"/v1: the answer is no chat response \("):
        say(client, OFFICIAL)


def test_a_server_that_speaks_no_http_is_named() -> None:
    def hello() -> None:
        connection, _ = other.accept()
        with connection:
            connection.sendall(b"hello\n")

    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=hello, daemon=True).start()
        base = f"http://127.0.0.1:{other.getsockname()[1]}/v1"
        with Proxy(base, ("127.0.0.1", 0), Mode.GRAPH, 300) as http:
            threading.Thread(target=http.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{http.server_address[1]}/v1"
            with pytest.raises(openai.InternalServerError, match=f"{base}: "):
                say(openai.OpenAI(base_url=url, api_key="k", max_retries=0), OFFICIAL)
            http.shutdown()


def test_a_server_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with Proxy("http://127.0.0.1:9/v1", ("127.0.0.1", 0), Mode.GRAPH, 300) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        with pytest.raises(openai.InternalServerError, match=r"http://127\.0\.0\.1:9/v1: .*refused"):
            say(openai.OpenAI(base_url=url, api_key="k", max_retries=0), OFFICIAL)
        for port in (str(http.server_address[1]), "99999"):
            assert proxy.main(["--endpoint", "http://127.0.0.1:9/v1", "--port", port]) == 2
            assert f"--port {port}: cannot be listened on at 127.0.0.1" in capsys.readouterr().err
        http.shutdown()


def test_bad_input_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert proxy.main(["--endpoint", "localhost"]) == 2
    assert "--endpoint localhost: must be a URL" in capsys.readouterr().err
    assert proxy.main(["--endpoint", "http://x/v1", "--mode", "direct"]) == 2
    assert proxy.main([]) == 2
