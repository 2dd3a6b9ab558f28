"""Dialogues for the card: fixed questions, the model's own answers, not edited."""

import tomllib
from pathlib import Path
from textwrap import fill
from typing import Any

import dsv4

FILE = Path(__file__).parent / "chain" / "dialogues.toml"


def dialogues() -> list[list[str]]:
    """What the user says, turn by turn."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))["dialogues"]


def example_prompts() -> list[str]:
    """What `dsv4 chat` and the web page suggest to ask."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))["examples"]


def answered(model: "dsv4.LocalModel", asked: list[list[str]]) -> str:
    """The dialogues with greedy answers in Markdown; thoughts in italics."""
    parts: list[str] = []
    for number, texts in enumerate(asked, start=1):
        messages: list[dict[str, Any]] = []
        lines = [f"{number}."]
        for text in texts:
            messages.append({"role": "user", "content": text})
            answer = model.chat(messages, temperature=0, max_tokens=512)
            messages.append(answer.message)
            thought = " ".join(answer.reasoning.split())
            lines += [_item(f"**{_line(text)}**"), _item(f"*{_line(thought)}*" if thought else "(no thought)")]
            lines.append(_item(_line(answer.content) or "(nothing)"))
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _item(text: str) -> str:
    return fill(text, 118, initial_indent="   - ", subsequent_indent="     ", break_on_hyphens=False)


def _line(text: str) -> str:
    return " / ".join(part for part in text.splitlines() if part.strip()).replace("*", "\\*")
