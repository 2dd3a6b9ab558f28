"""A chain of stages as data, and what a folder knows of the stages that have run in it."""

import json
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

RECORD = "chain.json"
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class ChainStage:
    """command: with {python} and {folder} in place of what is known when it runs. setting: how it takes one
    value, with {key} and {value}; empty where it takes none. device: how it takes {device}, in the same way.
    makes: a file of the chain's folder that is there when the stage has finished. minutes: what is planned for it."""

    name: str
    about: str
    command: tuple[str, ...]
    makes: str
    minutes: float
    setting: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    __pydantic_config__ = _STRICT

    def call(self, places: Mapping[str, str], changes: Mapping[str, str], device: str | None = None) -> list[str]:
        """The command with its places filled in and the changes behind it."""
        found = [_filled(part, places) for part in self.command]
        if device is not None:
            found += [_filled(part, {"device": device}) for part in self.device]
        for key, value in changes.items():
            found += [_filled(part, {"key": key, "value": value}) for part in self.setting]
        return found


def _filled(text: str, places: Mapping[str, str]) -> str:
    for name, value in places.items():
        text = text.replace("{" + name + "}", value)
    return text


@dataclass(frozen=True, slots=True)
class Chain:
    """Stages in their order. folder: where they work if nothing else is said."""

    folder: str
    stages: tuple[ChainStage, ...]
    __pydantic_config__ = _STRICT

    @classmethod
    def from_file(cls, file: Path) -> "Chain":
        """Raises ValueError naming what is wrong."""
        try:
            raw = tomllib.loads(file.read_text(encoding="utf-8"))
            return TypeAdapter(cls).validate_python(raw)
        except (tomllib.TOMLDecodeError, ValidationError) as error:
            raise ValueError(f"{file}: {error}") from None

    def stage(self, name: str) -> ChainStage:
        """Raises ValueError where there is none of that name."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(f"there is no stage {name}; there are {', '.join(stage.name for stage in self.stages)}")

    def changes(self, given: Iterable[str]) -> dict[str, dict[str, str]]:
        """`STAGE.KEY=VALUE` by stage. Raises ValueError naming one that has another form or belongs to no stage."""
        found: dict[str, dict[str, str]] = {}
        for text in given:
            left, equals, value = text.partition("=")
            name, dot, key = left.partition(".")
            if not (equals and dot and key):
                raise ValueError(f"--set must be STAGE.KEY=VALUE, got {text}")
            if not self.stage(name).setting:
                raise ValueError(f"--set {text}: stage {name} takes no settings")
            found.setdefault(name, {})[key] = value
        return found


@dataclass(slots=True)
class ChainRecord:
    """What has run in a folder: by stage the command, seconds over all its starts, and whether it has finished."""

    folder: Path
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "ChainRecord":
        file = folder / RECORD
        return cls(folder, json.loads(file.read_text(encoding="utf-8")) if file.exists() else {})

    def finished(self, stage: ChainStage) -> bool:
        """Whether it has run to its end, and what it made is still there."""
        return bool(self.stages.get(stage.name, {}).get("finished")) and (self.folder / stage.makes).exists()

    def seconds(self, stage: ChainStage) -> float:
        return float(self.stages.get(stage.name, {}).get("seconds", 0.0))

    def check(self, stage: ChainStage, command: list[str]) -> None:
        """Raise ValueError where the stage was begun by another command."""
        begun = self.stages.get(stage.name)
        if begun is not None and begun["command"] != command:
            raise ValueError(
                f"{self.folder}: stage {stage.name} was begun with other settings ({' '.join(begun['command'])}); set "
                f"them again, or remove its folder and its entry in {self.folder / RECORD}"
            )

    def write(self, stage: ChainStage, command: list[str], began: float, *, finished: bool) -> None:
        """Add a start that ended now. began: time.monotonic() when it started."""
        from dsv4.files import write_whole

        seconds = self.seconds(stage) + time.monotonic() - began
        self.stages[stage.name] = {"command": command, "seconds": round(seconds, 3), "finished": finished}
        text = json.dumps(self.stages, indent=1) + "\n"
        write_whole(self.folder / RECORD, lambda out: out.write(text.encode()))

    def left(self, stage: ChainStage) -> float:
        """Minutes that the stage will take, by the plan."""
        return 0.0 if self.finished(stage) else max(0.0, stage.minutes - self.seconds(stage) / 60)
