"""What `dsv4 pull` shows on stderr: a bar in a terminal, elsewhere a line every few seconds."""

import threading
import time
from collections import deque

from dsv4.cli.progress import console
from dsv4.files import size_text

WINDOW = 30.0  # seconds over which speed is measured


class PullProgress:
    """Bytes that arrive, their speed, and the time left. Threads may call `arrived` and `note`."""

    EVERY = 10.0  # seconds between two lines

    def __init__(self) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        self.console = console()
        self._lock = threading.Lock()
        self._done, self._total = 0, 0
        self._seen: deque[tuple[float, int]] = deque()  # times and what had arrived then
        self._said = time.monotonic()
        self._bar = Progress(
            BarColumn(),
            DownloadColumn(binary_units=True),
            TextColumn("{task.fields[rate]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, rate="")

    def __enter__(self) -> "PullProgress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self, total: int, here: int) -> None:
        """total: bytes in all; here: those that were there before."""
        with self._lock:
            self._done, self._total = here, total
            self._seen.clear()
        self.note(f"{size_text(total - here)} to fetch" + (f", {size_text(here)} are here" if here else ""))
        self._bar.start()

    def arrived(self, count: int) -> None:
        """Count bytes; negative ones no longer count."""
        with self._lock:
            now = time.monotonic()
            self._done += count
            if not self._total:
                return
            self._seen.append((now, self._done))
            while self._seen[0][0] < now - WINDOW:
                self._seen.popleft()
            rate = self._rate()
            line = not self.console.is_terminal and now - self._said > self.EVERY
            self._said = now if line else self._said
        self._bar.update(self._task, completed=self._done, total=self._total, rate=rate)
        if line:
            self.note(f"{self._done / self._total:.1%} of {size_text(self._total)}  {rate}")

    def note(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, soft_wrap=True)

    def _rate(self) -> str:
        """Speed and time left, as far as they can be told."""
        (start, before), (now, done) = self._seen[0], self._seen[-1]
        if now - start < 1 or done <= before:
            return ""
        speed = (done - before) / (now - start)
        return f"{speed / 2**20:,.1f} MiB/s, {duration((self._total - done) / speed)} left"


def duration(seconds: float) -> str:
    """'2 h 05 min', '12 min', '40 s'."""
    minutes, rest = divmod(int(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{rest} s"
