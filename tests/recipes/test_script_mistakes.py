"""Mistakes in calls of the documented scripts end in a sentence, not in a traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.finetune import orders
from recipes.nano import deepen, grade


@pytest.mark.parametrize(
    ("script", "arguments", "code", "message"),
    [
        (orders.main, ["grade", "nowhere"], 2, "grade needs the file of what to ask"),
        (orders.main, ["grade", "nowhere", "gone.jsonl"], 1, "gone.jsonl: No such file or directory\n"),
        (orders.main, ["grade", "nowhere", "long.jsonl"], 1, "long.jsonl, line 1: messages must be an order and its"),
        (orders.main, ["write", "long.jsonl"], 1, "long.jsonl: File exists\n"),
        (deepen.main, ["nowhere", "new", "--layers", "0"], 1, "nowhere: no such folder\n"),
        (grade.main, ["nowhere"], 1, "nowhere/tokenizer.json: no such tokenizer file\n"),
        (grade.main, ["nowhere", "--items", "0"], 2, "items"),
    ],
)
def test_a_mistake_is_a_sentence(
    script: Callable[[list[str]], Any],
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("long.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "a"}] * 3}) + "\n")
    with pytest.raises(SystemExit) as ended:
        script(arguments)
    assert ended.value.code == code
    assert message in capsys.readouterr().err
