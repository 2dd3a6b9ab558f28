"""Caches of their own, a small hub, and a pull that shows nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dsv4.hub.download import Patience
from dsv4.hub.names import Repository
from dsv4.hub.pull import PullWishes
from tests.hub.small_hub import SmallHub, small_model

TINY = Repository("own/Tiny-V4")
SOON = PullWishes(patience=Patience((0.0, 0.0, 0.0)))


class Screen:
    """Keeps what a pull tells."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.total = self.here = self.count = 0

    def begin(self, total: int, here: int) -> None:
        self.total, self.here, self.count = total, here, here

    def arrived(self, count: int) -> None:
        self.count += count

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for everything that pulls leave, instead of the user's own."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "ms-home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub() -> Iterator[SmallHub]:
    """A hub with one small model."""
    with SmallHub({TINY.name: small_model()}) as running:
        yield running


@pytest.fixture
def screen() -> Screen:
    return Screen()
