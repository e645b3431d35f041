"""A headless Chromium, driven over a pipe by its DevTools protocol: no port, no library.

Not here: what a page must be (test_browser.py).
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
_PATIENCE_S = 120.0
_CHECKS = (Path(__file__).parent / "browser.js").read_text()


class Browser:
    """One page in one window; `events` are what the browser said about it."""

    def __init__(self, write_fd: int, read_fd: int) -> None:
        self.events: list[dict[str, Any]] = []
        self._write_fd = write_fd
        self._read_fd = read_fd
        self._held = b""
        self._number = 0
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        while (reply := self._next()).get("id") != self._number:
            self.events.append(reply)
        assert "error" not in reply, reply["error"]
        result: dict[str, Any] = reply["result"]
        return result

    def _next(self) -> dict[str, Any]:
        end_s = time.monotonic() + _PATIENCE_S
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._read_fd], [], [], end_s - time.monotonic())
            assert ready, "the browser says nothing"
            self._held += os.read(self._read_fd, 1 << 20)
        text, _, self._held = self._held.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def show(self, page: Path, *, width: int = 1280, scheme: str = "light") -> None:
        """Load a page in a window of its whole height."""
        self.events.clear()
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self._resize(width, 800)
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        self._resize(width, min(30_000, self.evaluate("document.documentElement.scrollHeight")))

    def _resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    @property
    def complaints(self) -> list[Any]:
        """Everything on the console, and every uncaught error."""
        self.evaluate("0")  # what came before it has arrived
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.events if event.get("method") in kinds]

    @property
    def requests(self) -> list[str]:
        """Addresses that were asked for, but for data inside the page."""
        asked = (e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent")
        urls = [str(params["request"]["url"]) for params in asked]
        return [url for url in urls if not url.startswith("data:")]

    def check(self, name: str) -> Any:
        """What a function of browser.js says of the page."""
        return self.evaluate(f"(() => {{ {_CHECKS}; return {name}(); }})()")

    def stops(self) -> tuple[list[str], list[str]]:
        """What can be focused, and of that what the Tab key reached and drew as focused."""
        wanted: list[str] = self.check("markStops")
        reached: dict[str, None] = {}
        for _ in range(12 * len(wanted) + 12):  # the controls of a player are stops of their own
            for kind in ("rawKeyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key="Tab", windowsVirtualKeyCode=9)
            stop, is_shown = self.check("focused")
            if stop and is_shown:
                reached[stop] = None
            if len(reached) == len(wanted):
                break
        return wanted, [wanted[int(stop)] for stop in reached]

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in `folder`."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    command = [
        *("bash", "-c", f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}', str(CHROMIUM)),
        *(*_FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder}"),
    ]
    running = subprocess.Popen(
        command,
        pass_fds=(to_read, from_write),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    try:
        yield Browser(to_write, from_read)
    finally:
        running.kill()
        running.wait()
        os.close(to_write)
        os.close(from_read)
