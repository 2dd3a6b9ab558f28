"""The conversation of `dsv4 chat`: a system message, turns, and text files for the next message."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv4.files import naming, rename, sync_path

MOST_BYTES = 64 << 20  # of a file that is read


@dataclass(slots=True)
class ChatSession:
    """turns: messages of user, assistant and tool in order. files: (name, text) at the start of the next message."""

    system: str | None = None
    turns: list[dict[str, Any]] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages for the model."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.turns]

    def said(self, line: str) -> dict[str, Any]:
        """The user's next message: the files, then the line."""
        return {"role": "user", "content": "\n\n".join([*(f"{name}:\n{text}" for name, text in self.files), line])}

    def clear(self) -> None:
        """Remove everything but the system message."""
        self.turns, self.files = [], []

    def undo(self) -> str | None:
        """Remove the last message of the user and everything after it; returns its text, None if there is none."""
        last = next((i for i in reversed(range(len(self.turns))) if self.turns[i]["role"] == "user"), None)
        if last is None:
            return None
        message = self.turns[last]
        del self.turns[last:]
        return str(message["content"])

    def reopen(self) -> bool:
        """Remove the last answer, so that the model can answer again. False if there is no message to answer."""
        while self.turns and self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        return bool(self.turns)

    def save(self, file: Path) -> None:
        """Write the messages as OpenAI's list. Raises ValueError for an existing file that is no saved conversation,
        and OSError if it cannot be written; an existing file then stays as it is."""
        if file.exists():
            try:
                read_messages(file)
            except ValueError:
                raise ValueError(f"{file}: exists and is no saved conversation; choose another name") from None
        staging = file.with_name(f".{file.name}.{os.getpid()}.new")
        try:
            with naming(file):
                staging.write_text(json.dumps(self.messages, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
                sync_path(staging)
                rename(staging, file)
        finally:
            staging.unlink(missing_ok=True)

    def load(self, file: Path) -> None:
        """Replace this conversation by a saved one. Raises ValueError or OSError; then nothing changes."""
        messages = read_messages(file)
        head = messages[0] if messages and messages[0]["role"] in ("system", "developer") else None
        self.system = None if head is None else str(head["content"])
        self.turns, self.files = messages[head is not None :], []


def read_messages(file: Path) -> list[dict[str, Any]]:
    """The messages of a JSON file. Raises ValueError naming file, line or field, OSError if it cannot be read."""
    from dsv4.api.chat_request import check_messages

    try:
        messages = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"{file}: nested too deep") from None
    if isinstance(messages, Mapping) and isinstance(messages.get("messages"), list):
        messages = messages["messages"]  # the body of a request
    if not isinstance(messages, list):
        raise ValueError(f"{file}: expected a JSON list of messages, got {type(messages).__name__}")
    try:
        return check_messages(messages)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def read_text(file: Path) -> str:
    """The text of a file, without a byte order mark. Raises ValueError for a missing or too large file or one that is
    not UTF-8, OSError if it cannot be read."""
    if not file.exists():
        raise ValueError(f"{file}: no such file")
    if not file.is_file():
        raise ValueError(f"{file}: not a file")
    if (size := file.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{file}: {size:,} bytes, at most {MOST_BYTES:,} are read")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text (byte {error.start:,})") from None


def fits(used: int, context: int) -> str:
    """The used and the free part of the context, as a text."""
    return f"{used:,} of {context:,} tokens used, {max(0, context - used):,} left"
