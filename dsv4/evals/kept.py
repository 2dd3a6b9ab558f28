"""The folder of a run: its settings, every answer as soon as it is scored, and with that what is left to do."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dsv4.evals.suite import Graded, Message

SETTINGS, ANSWERS, RESULT, REPORT, LOGS = "settings.json", "answers.jsonl", "result.json", "report.html", "inspect"


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """A scored answer with its transcript. found, why: of the score. messages: what was asked. answer: what came, as
    JSON. target: what is right."""

    graded: Graded
    found: str = ""
    why: str = ""
    target: Any = ""
    messages: tuple[Message, ...] = ()
    answer: Mapping[str, Any] = field(default_factory=dict)


class RunFolder:
    """Holds one run, and goes on with it. Raises ValueError for a folder that has another run, naming the
    difference."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / SETTINGS
        if file.exists():
            _compare(folder, json.loads(file.read_text(encoding="utf-8")), dict(settings))
        else:
            file.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self.answers = _read(folder / ANSWERS)

    def add(self, answer: KeptAnswer) -> None:
        """Write an answer down at once: a run that is killed has lost only what was being answered."""
        self.answers.append(answer)
        with (self.folder / ANSWERS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")

    def done(self) -> set[tuple[str, int]]:
        """Item and number of each answer that is there."""
        return {(kept.graded.item, kept.graded.sample) for kept in self.answers}


def read_run(folder: Path) -> tuple[dict[str, Any], list[KeptAnswer]]:
    """Settings and answers of a run. Raises ValueError where there is none."""
    file = folder / SETTINGS
    if not file.is_file():
        raise ValueError(f"{folder} has no run of dsv4 eval: {SETTINGS} is missing")
    return json.loads(file.read_text(encoding="utf-8")), _read(folder / ANSWERS)


def _read(file: Path) -> list[KeptAnswer]:
    """All answers; a last line that a killed run has not finished is cut off."""
    if not file.exists():
        return []
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        file.write_bytes(whole)
    return [_answer(json.loads(line)) for line in whole.decode("utf-8").split("\n") if line]


def _answer(row: dict[str, Any]) -> KeptAnswer:
    graded, messages = Graded(**row.pop("graded")), tuple(row.pop("messages"))
    return KeptAnswer(graded, messages=messages, **row)


def _compare(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    new = json.loads(json.dumps(new))
    for name in dict.fromkeys([*new, *old]):
        if old.get(name) != new.get(name):
            raise ValueError(
                f"--out {folder} has a run with {name} {_short(old.get(name))}, not {_short(new.get(name))}: "
                "give another folder"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 80 else text[:77] + "..."
