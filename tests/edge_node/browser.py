"""Headless Chromium over the DevTools protocol on a pipe: no driver, no port, nothing but the browser."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TIMEOUT_SECONDS = 60
"""Starting a browser on a busy machine takes a while; a page that does not come has failed."""

BLOCK_BYTES = 1 << 16


class Browser:
    """One page of a headless browser; a context manager.

    Args:
        program: Chromium or Chrome.
        profile: an empty folder for its profile.
    """

    def __init__(self, program: Path, profile: Path) -> None:
        self._arguments = [
            str(program),
            "--headless=new",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "--no-sandbox",  # tests run as root in containers, where Chromium's sandbox can't
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--window-size=900,900",
            "about:blank",
        ]
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(profile)}
        self._number = 0
        self._buffer = b""
        self._session: str | None = None
        self.console: list[str] = []
        """Errors and refused resources, as the page's console shows them."""

    def __enter__(self) -> Self:
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        commands_read, self._commands = os.pipe()
        self._answers, answers_write = os.pipe()
        launch = f'exec 3<&{commands_read} 4>&{answers_write}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", launch, "browser", *self._arguments],
            pass_fds=(commands_read, answers_write),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_read)
        os.close(answers_write)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Return the answer to one command of the protocol."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                found: dict[str, Any] = answer["result"]
                return found
            self._note(answer)

    def evaluate(self, script: str) -> Any:
        """Return the value of a script run in the page."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, address: str) -> None:
        """Load a page and wait until it is there."""
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def wait_for(self, condition: str) -> None:
        """Wait until a script's value is true."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"the page never came to {condition}; console: {self.console}"
            time.sleep(0.05)

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file in an input, as a person would in its dialogue."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def drop_file(self, selector: str, path: Path) -> None:
        """Drop a file on an element, by the mouse's own events."""
        script = (
            f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect(); return [r.x + 9, r.y + 9]; }})()"
        )
        x, y = self.evaluate(script)
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def screenshot(self, path: Path) -> None:
        """Store a picture of the page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], TIMEOUT_SECONDS)
            assert ready, "the browser does not answer"
            block = os.read(self._answers, BLOCK_BYTES)
            assert block, f"the browser ended with status {self._process.wait()}"
            self._buffer += block
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Log.entryAdded":
            self.console.append(event["params"]["entry"]["text"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.console.append(str(event["params"]["exceptionDetails"]))
