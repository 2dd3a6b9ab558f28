"""What commands that take long show on stderr: a bar for bytes; for training runs of any kind a bar, a page with the
curves, a report at the end, and a stop between two steps."""

import errno
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from dsv4.training.curves import LivePage
    from dsv4.training.logbook import Logbook


def console() -> "Console":
    """stderr, without colours for numbers. Brackets in names are no markup, and lines of a file are not wrapped."""
    from rich.console import Console

    made = Console(highlight=False, markup=False, stderr=True)
    made.soft_wrap = not made.is_terminal  # a bar must not be wider than the terminal
    return made


@contextmanager
def byte_progress(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Gives a function to call with (bytes done, bytes in all, name of what is at hand)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def show(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name)

        yield show


class RunProgress:
    """The progress of a run of `total` units, `done` of them before it starts: a bar in a terminal, elsewhere a line
    every `EVERY` seconds. `console` prints lines above the bar."""

    EVERY = 10.0

    def __init__(self, total: int, done: int = 0) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = console()
        self._last = 0.0
        self._bar = Progress(
            TextColumn("{task.fields[phase]}", markup=False),  # a column does not ask the console
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=done, phase="", text="")

    def __enter__(self) -> "RunProgress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, done: int, place: str, phase: str, text: str) -> None:
        """done: units of `total`. place: where the run stands ("step 3  1,024 tokens"), which the bar does not show."""
        self._bar.update(self._task, completed=done, phase=phase, text=text)
        if not self.console.is_terminal and time.monotonic() - self._last > self.EVERY:
            self._last = time.monotonic()
            self.console.print(f"{place}  {phase}  {text}")


class StopAfterStep:
    """While entered, the first Ctrl-C or SIGTERM sets `requested`: the caller finishes its step, saves and stops. A
    second one raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopAfterStep":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def check_live_port(port: int | None) -> None:
    """Raise ValueError for a value of --live that is no port."""
    if port is not None and not -1 <= port < 2**16:
        raise ValueError(f"--live must be a port in [0, 65535], or -1 for no page, got {port}")


@contextmanager
def live_page(title: str, log: Path, port: int | None) -> "Iterator[LivePage | None]":
    """The page with the curves of a growing log; None for port None or -1. Raises ValueError if the port is taken."""
    from dsv4.training.curves import LivePage

    if port is None or port == -1:
        yield None
        return
    try:
        page = LivePage(title, log, port)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
        raise ValueError(f"--live {port}: the port {reason}; 0 takes a free one, -1 shows no page") from None
    try:
        yield page
    finally:
        page.close()


@contextmanager
def report_at_end(name: str, log: "Logbook", file: Path, about: dict[str, Any]) -> Iterator[None]:
    """However the body ends: close the log and write a report with its curves to `file`. If that fails, a message is
    printed, and an error of the body stays the one that is raised. about: shown in the report."""
    from dsv4.files import write_whole
    from dsv4.training.curves import report_html
    from dsv4.training.logbook import read_log

    try:
        yield
    finally:
        try:
            log.close()
            html = report_html(name, {name: list(read_log(log.file))}, about)
            write_whole(file, lambda out: out.write(html.encode("utf-8", "replace")))
        except OSError as error:
            console().print(f"the log or the report is not complete: {error}")
