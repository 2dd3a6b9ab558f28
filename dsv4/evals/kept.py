"""The folder of a run: its settings, every answer as soon as it is scored, and with that what is left to do."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dsv4.evals.suite import Graded, Item, Message
from dsv4.files import unusable

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
    """Holds one run, and goes on with it; a run without an answer gives way to another one. Answers are written
    without the data of their items, which can be large and would be there once an answer: it comes from the items
    again. Raises ValueError for a folder that has another run, naming the difference."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], items: Sequence[Item]) -> None:
        """items: of the run."""
        check_place(folder)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / SETTINGS
        answers, whole = _read(folder / ANSWERS)
        if file.exists() and answers:
            _compare(folder, read_settings(folder), dict(settings))
        else:
            file.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if whole is not None:  # what is added must start a line
            os.truncate(folder / ANSWERS, whole)
        data = {item.id: item.data for item in items}
        self.answers = [
            replace(kept, graded=replace(kept.graded, data=dict(data[kept.graded.item]))) for kept in answers
        ]

    def add(self, answer: KeptAnswer) -> None:
        """Write an answer down at once: a run that is killed has lost only what was being answered."""
        row = asdict(replace(answer, graded=replace(answer.graded, data={})))
        del row["graded"]["data"]
        # half of a surrogate pair, which a server may send, is no UTF-8: its replacement is JSON's escape
        with (self.folder / ANSWERS).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.answers.append(answer)

    def done(self) -> set[tuple[str, int]]:
        """Item and number of each answer that is there."""
        return {(kept.graded.item, kept.graded.sample) for kept in self.answers}


def check_place(folder: Path) -> None:
    """Raise ValueError where a run could not be written."""
    if why := unusable(folder):
        raise ValueError(f"--out {folder}: {why}")


def check_kept(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError where `folder` cannot hold a run of these settings, which may be a part of all."""
    check_place(folder)
    if (folder / SETTINGS).exists() and _read(folder / ANSWERS)[0]:
        old = read_settings(folder)
        _compare(folder, {name: old.get(name) for name in settings}, dict(settings))


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a run. Raises ValueError where there is none."""
    file = folder / SETTINGS
    if not file.is_file():
        raise ValueError(f"{folder} has no run of dsv4 eval: {SETTINGS} is missing")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{file} must be a JSON object")
    return settings


def read_run(folder: Path) -> tuple[dict[str, Any], list[KeptAnswer]]:
    """Settings and answers of a run, which stays as it is and may be going on: answers without the data of their items.
    Raises ValueError where there is none."""
    return read_settings(folder), _read(folder / ANSWERS)[0]


def _read(file: Path) -> tuple[list[KeptAnswer], int | None]:
    """All answers, and the length in bytes of their lines where a killed run has left a part of one behind them."""
    if not file.exists():
        return [], None
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    answers = list[KeptAnswer]()
    for number, line in enumerate(whole.split(b"\n"), 1):
        try:
            answers += [_answer(json.loads(line))] if line else []
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{file}, line {number}: no answer of a run ({error}); without this line it is asked again"
            ) from None
    return answers, len(whole) if len(whole) < len(data) else None


def _answer(row: dict[str, Any]) -> KeptAnswer:
    graded, messages = Graded(**row.pop("graded")), tuple(row.pop("messages"))
    return KeptAnswer(graded, messages=messages, **row)


def _compare(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    new = json.loads(json.dumps(new))
    for name in dict.fromkeys([*new, *old]):
        if old.get(name) != new.get(name):
            values = f"{name} {_short(old.get(name))}, not {_short(new.get(name))}"
            what = "of other questions" if name == "items" else f"with {values}"
            raise ValueError(f"--out {folder} has a run {what}: give another folder")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 80 else text[:77] + "..."
