"""Headless Chromium, driven through its DevTools over loopback: opens pages, evaluates, presses keys, takes pictures.

`python -m tests.videostr.report.browser PAGE OUT.png [--width 1280] [--height 900] [--dark]` takes one picture.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_S = 60.0
ANSWER_S = 60.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # it is small in containers
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def executable() -> str | None:
    """Chromium or Chrome, wherever it is on the path; Ubuntu's `chromium-browser` may only say how to install it."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    paths = (path for name in names if (path := shutil.which(name)))
    return next(
        (path for path in paths if not subprocess.run([path, "--version"], capture_output=True).returncode),
        None,
    )


class Page:
    """One tab. `errors` are messages of the console at level error or warning and uncaught exceptions; `requests` are
    addresses that the page asked for, data and blob URLs left out."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._number = 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A DevTools command and its answer; what happens meanwhile is noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=ANSWER_S))
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def open(
        self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False, anchor: str = ""
    ) -> None:
        """Load a file and wait until its viewer is ready, where it has one."""
        self.view(width, height, dark=dark)
        self.call("Page.navigate", url=path.resolve().as_uri() + anchor)
        self.wait("document.readyState === 'complete'")
        self.wait("!document.getElementById('index') || document.documentElement.dataset.ready")

    def view(self, width: int, height: int, *, dark: bool = False) -> None:
        """Size of the window, CSS pixels, and colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, f"{expression}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression is true."""
        deadline = time.monotonic() + ANSWER_S
        while not self.run(f"Boolean({expression})"):
            assert time.monotonic() < deadline, f"not true within {ANSWER_S} s: {expression}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """One key, down and up."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def picture(self, path: Path, *, clip: tuple[float, float, float, float] | None = None) -> None:
        """PNG of the window, or of (x, y, width, height) of the page."""
        area = {}
        if clip:
            area = {
                "clip": dict(zip(("x", "y", "width", "height"), clip, strict=True)) | {"scale": 1},
                "captureBeyondViewport": True,
            }
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", **area)["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in {"error", "warning", "assert"}:
            self.errors.append(json.dumps(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in {"error", "warning"}:
            self.errors.append(json.dumps(parameters["entry"]))
        elif method == "Network.requestWillBeSent":
            address = parameters["request"]["url"]
            if not address.startswith(("data:", "blob:")):
                self.requests.append(address)


class Browser:
    """A running Chromium."""

    def __init__(self, port: int) -> None:
        self.port = port

    @contextmanager
    def page(self) -> Iterator[Page]:
        """A fresh tab."""
        from urllib.request import Request, urlopen

        from websockets.sync.client import connect

        with urlopen(
            Request(f"http://127.0.0.1:{self.port}/json/new?about:blank", method="PUT"), timeout=ANSWER_S
        ) as answer:
            target = json.load(answer)
        with connect(target["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
            yield Page(socket)
            socket.send(json.dumps({"id": 0, "method": "Page.close"}))


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start it with a fresh profile, and end it."""
    path = executable()
    assert path, "no Chromium on the path"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [path, *FLAGS, f"--user-data-dir={profile}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield Browser(_port(Path(profile) / "DevToolsActivePort", process))
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"Chromium ended with {process.returncode}"
        lines = file.read_text().splitlines() if file.exists() else []
        if len(lines) >= 2:
            return int(lines[0])
        time.sleep(0.05)
    raise AssertionError(f"Chromium did not open its DevTools within {START_S} s")


def main() -> None:
    """Take one picture."""
    parser = argparse.ArgumentParser(description="A picture of a page in headless Chromium.")
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--anchor", default="", help='e.g. "#traces"')
    parser.add_argument("--run", default="", help="JavaScript to evaluate before")
    options = parser.parse_args()
    with chromium() as browser, browser.page() as page:
        page.open(
            options.page, width=options.width, height=options.height, dark=options.dark, anchor=options.anchor
        )
        if options.run:
            page.run(options.run)
        time.sleep(0.3)
        page.picture(options.out)


if __name__ == "__main__":
    main()
