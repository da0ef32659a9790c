# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Chromium without a window, driven through a pipe by the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: Seconds without any message after which a browser counts as hung.
PATIENCE = 120
CODES = {
    **{letter: f"Key{letter.upper()}" for letter in "acenrsu"},
    **{digit: f"Digit{digit}" for digit in "123456789"},
}
CONTROL = 2
# The browser reads commands from file descriptor 3 and answers through 4.
START = """
import fcntl, os, sys
for target, source in enumerate([fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]], start=3):
    os.dup2(source, target)
    os.close(source)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """A browser of its own profile, with one page.

    Args:
        folder: folder for the profile and for downloads.

    Attributes:
        downloads: folder of what pages save.
        events: messages of the browser that were no answers.
    """

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        self.downloads, self.events = folder / "downloads", list[dict[str, Any]]()
        self.downloads.mkdir()
        (commands, self._to), (self._from, answers) = os.pipe(), os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        options += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900", "--disable-dev-shm-usage"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, str(commands), str(answers), CHROMIUM, *options],
            pass_fds=(commands, answers),
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder)},
        )
        os.close(commands)
        os.close(answers)
        self._rest, self._number, self.attached = b"", 0, ""
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads), eventsEnabled=True)
        self.new_page()

    def new_page(self) -> None:
        """Opens another page and turns to it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.attached = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self.attached and method.partition(".")[0] not in ("Browser", "Target"):
            message["sessionId"] = self.attached
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer["error"])
        return dict(answer["result"])

    def wait(self, method: str, **wanted: Any) -> None:
        """Waits for an event, unless it has come since the last `open` or `forget`."""
        while not any(event["method"] == method and event["params"].items() >= wanted.items() for event in self.events):
            self.events.append(self._receive())

    def forget(self) -> None:
        """Forgets the events that have come."""
        self.events.clear()

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], PATIENCE)
            part = os.read(self._from, 1 << 20) if ready else b""
            assert part, "the browser has ended or hangs"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def open(self, page: Path) -> None:
        """Opens a file and waits until it is loaded."""
        self.forget()
        self.call("Page.navigate", url=page.as_uri())
        self.wait("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression, or what its promise becomes."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Waits until an expression is true in the page."""
        self.value(f"new Promise(done => {{ const ask = () => {expression} ? done() : setTimeout(ask, 5); ask(); }})")

    def reload(self) -> None:
        """Loads the page again and waits until it is there."""
        self.forget()
        self.call("Page.reload")
        self.wait("Page.loadEventFired")

    def text(self, element: str) -> str:
        """Returns the text of an element."""
        return str(self.value(f"document.getElementById({element!r}).textContent"))

    def press(self, *keys: str, repeated: bool = False, modifiers: int = 0) -> None:
        """Presses keys, by their names in JavaScript."""
        for key in keys:
            text = {"text": key} if len(key) == 1 and not modifiers else {}
            known = {"key": key, "code": CODES.get(key.lower(), key), "modifiers": modifiers}
            self.call("Input.dispatchKeyEvent", type="keyDown", autoRepeat=repeated, **known, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **known)

    def write(self, text: str) -> None:
        """Types a text into what has the focus."""
        self.call("Input.insertText", text=text)

    def click(self, element: str) -> None:
        """Clicks the middle of an element."""
        box = f"document.getElementById({element!r}).getBoundingClientRect()"
        place = self.value(f"(({{x, y, width, height}}) => ({{x: x + width / 2, y: y + height / 2}}))({box})")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def saved(self) -> Path:
        """Presses S, waits for what the page saves then, and returns its file."""
        self.forget()
        self.press("s")
        self.wait("Browser.downloadProgress", state="completed")
        return self.downloads / "review.csv"

    def give(self, element: str, file: Path) -> None:
        """Gives a file to an element that asks for one."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=f"#{element}")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def picture(self, path: Path) -> None:
        """Writes a picture of the page."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
