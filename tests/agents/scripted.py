"""A model with one idea: write hello.txt with its tools, read it back, say so. It reads only the rendered prompt.

What it is asked for, which tools there are and how often it has called one all stand in the prompt's tokens, as they
would for a real model. It also keeps account of what an exact prefix cache would have had, prompt by prompt.
"""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv4.encoding import Tokenizer
from dsv4.encoding.segments import SegmentWriter
from dsv4.encoding.write_calls import write_tool_calls
from dsv4.generation import RequestOptions, SamplingParams, TokenEvent
from dsv4.testing.stub import StubGenerator

TASK = "create hello.txt containing 42, then read it back"
FILE, TEXT = "hello.txt", "42\n"
SUMMARY = "Done: hello.txt contains 42."
SCHEMAS, SCHEMAS_END = "### Available Tool Schemas\n\n", "\n\nYou MUST strictly follow"
# in the order of preference; the first two are those of coding agents, a shell does for everything
WRITERS = ("Write", "write", "write_file", "create_file")
READERS = ("Read", "read", "read_file")
SHELLS = ("Bash", "bash", "exec_command", "shell_command", "shell", "local_shell", "run_shell_command")
PATHS = ("file_path", "filePath", "absolute_path", "path", "filename")


@dataclass(frozen=True, slots=True)
class Turn:
    """One request: how many calls the model had made before, and what of the prompt an exact cache would have had."""

    calls: int
    tools: int
    prompt: int
    reused: int

    @property
    def share(self) -> float:
        return self.reused / self.prompt


class ScriptedModel:
    """Implements TokenGenerator for agents that work in `folder`. `turns`: every request so far."""

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        self._tokenizer, self._folder = tokenizer, folder
        self._seen: list[list[int]] = []
        self.turns: list[Turn] = []

    @property
    def context_length(self) -> int:
        return 1_000_000

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        """Answer `prompt`; what was sampled becomes part of the cache, as in the engine."""
        ids = list(prompt)
        answer = self._answer(ids)
        reused = min(max((common(ids, old) for old in self._seen), default=0), len(ids) - 1)
        text = self._tokenizer.decode(ids)
        self.turns.append(Turn(calls_made(text, self._tokenizer), len(tools_of(text)), len(ids), reused))
        stub = StubGenerator(answer, self.context_length, reused=reused)
        said: list[int] = []
        try:
            async for event in stub.stream(ids, params, options):
                said += [] if event.token is None else [event.token]
                yield event
        finally:
            self._seen.append(ids + said)

    def _answer(self, ids: Sequence[int]) -> list[int]:
        tokenizer, dialect = self._tokenizer, self._tokenizer.dialect
        text = tokenizer.decode(ids)
        calls, tools = calls_made(text, tokenizer), tools_of(text)
        out = SegmentWriter()
        if ids[-1] == tokenizer.token_id(dialect.think_open):
            out.data(("First the file.", "Now read it.", "Both are done.")[min(calls, 2)])
            out.markup(dialect.think_close)
        step = self._call(tools, calls) if tools and TASK in text else None
        if step is not None:
            name, arguments = step
            function = {"name": name, "arguments": json.dumps(arguments)}
            write_tool_calls(out, [{"function": function}], "calls", dialect)
        else:
            out.data(plain_answer(text) if not tools else SUMMARY)
        return [*tokenizer.encode_segments(out.segments()), tokenizer.eos_id]

    def _call(self, tools: Mapping[str, Mapping[str, Any]], calls: int) -> tuple[str, dict[str, Any]] | None:
        """The next call, None when there is nothing left to do."""
        if calls > 1:
            return None
        wanted = WRITERS if calls == 0 else READERS
        for name in (*wanted, *SHELLS):
            if name in tools:
                return name, self._arguments(tools[name], calls)
        raise AssertionError(f"no tool can write a file among {sorted(tools)}")

    def _arguments(self, schema: Mapping[str, Any], calls: int) -> dict[str, Any]:
        command = f"printf '42\\n' > {FILE}" if calls == 0 else f"cat {FILE}"
        values: dict[str, Any] = dict.fromkeys(PATHS, str(self._folder / FILE))
        values |= {"content": TEXT, "command": command, "cmd": command, "description": "One step of the task"}
        properties = schema.get("properties") or {}
        required = set(schema.get("required") or properties)
        arguments: dict[str, Any] = {}
        for key, shape in properties.items():
            if key not in required and key not in values:
                continue
            kind = shape.get("type")
            value = values.get(key, {"boolean": False, "integer": 1, "number": 1}.get(kind, "hello"))
            arguments[key] = ["bash", "-lc", value] if kind == "array" else value
        return arguments


def tools_of(prompt: str) -> dict[str, Mapping[str, Any]]:
    """The parameter schemas in a rendered prompt, by the name of their tool."""
    if SCHEMAS not in prompt:
        return {}
    lines = prompt.split(SCHEMAS, 1)[1].split(SCHEMAS_END, 1)[0].split("\n")
    functions = [json.loads(line) for line in lines]
    return {function["name"]: function.get("parameters") or {} for function in functions}


def calls_made(prompt: str, tokenizer: Tokenizer) -> int:
    """How many blocks of calls the model has written in a rendered prompt."""
    return prompt.split(SCHEMAS_END, 1)[-1].count(tokenizer.dialect.calls_close)


def plain_answer(prompt: str) -> str:
    """Without tools there are programs that want the file as an edit, and titles."""
    if TASK not in prompt:
        return "A greeting"
    if "SEARCH" in prompt and "REPLACE" in prompt:
        return f"{FILE}\n```\n<<<<<<< SEARCH\n=======\n42\n>>>>>>> REPLACE\n```\n"
    if "```" in prompt:
        return f"{FILE}\n```\n42\n```\n"
    return SUMMARY


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices compare fast; tokens one by one do not
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
