"""A headless Chromium on a pipe: opens a page, runs JavaScript in it, takes pictures. Standard library only."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

# puts the pipes where the browser looks for them
LAUNCHER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for place, end in zip((3, 4), ends):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """The program, None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page. Messages of the DevTools protocol go over file descriptors 3 and 4, each closed by a zero byte."""

    def __init__(self, program: str, width: int = 1100, height: int = 800) -> None:
        self._numbers = itertools.count(1)
        self._rest = b""
        self._profile = tempfile.TemporaryDirectory()
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        flags += [f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}", "about:blank"]
        launch = [sys.executable, "-c", LAUNCHER, str(to_child), str(from_child), program, *flags]
        self._process = subprocess.Popen(launch, pass_fds=(to_child, from_child), stderr=subprocess.DEVNULL)
        os.close(to_child)
        os.close(from_child)
        try:
            self._session = self._attach()
        except BaseException:
            self.__exit__()
            raise

    def _attach(self) -> dict[str, str]:
        targets = self._call("Target.getTargets")["targetInfos"]
        target = next(info["targetId"] for info in targets if info["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        return {"sessionId": attached["sessionId"]}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def open(self, url: str) -> None:
        """Go to a page and wait until its scripts have run."""
        self._page("Page.navigate", url=url)
        self.wait('document.readyState === "complete" && location.href !== "about:blank"')

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise. Raises RuntimeError if it throws."""
        answer = self._page("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> None:
        """Until an expression is true. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not self.run(script):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {script}")
            time.sleep(0.05)

    def picture(self, file: Path) -> None:
        """A PNG of what is visible."""
        file.write_bytes(base64.b64decode(self._page("Page.captureScreenshot")["data"]))

    def dark(self, on: bool) -> None:
        """Prefer dark colours, as a user's system would."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self._page("Emulation.setEmulatedMedia", features=[feature])

    def _page(self, method: str, **fields: Any) -> dict[str, Any]:
        return self._call(method, self._session, **fields)

    def _call(self, method: str, session: dict[str, str] | None = None, /, **fields: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": fields, **(session or {})}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._read, 1 << 16)
            if not part:
                raise RuntimeError("the browser ended")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)
