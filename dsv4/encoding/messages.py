"""From chat messages to turns: tool results become user turns, in the order of the calls they answer.

A `Turn` has the index of its input message, so that an error of the renderer names that message. Fields are checked
only where the renderer reads them: the release accepts anything in a message it does not render.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dsv4.encoding.dialect import Dialect

Message = Mapping[str, Any]

CALLER_ROLES = frozenset({"user", "developer"})
KEPT_WITHOUT_THINKING = frozenset({"user", "system", "tool", "latest_reminder", "direct_search_results"})


@dataclass(frozen=True, slots=True)
class TurnPart:
    """One part of a user turn: typed text, or the result of a tool call. `source` names the input message."""

    kind: Literal["text", "tool_result"]
    value: Any
    source: str
    call_id: str = ""


@dataclass(slots=True)
class Turn:
    """A message as the renderer sees it.

    `fields` is the input message; user turns have none, since the release keeps only their blocks and task.
    """

    role: Any
    source: str
    fields: Message = field(default_factory=dict)
    blocks: list[TurnPart] = field(default_factory=list)
    task: Any = None

    def text(self, name: str) -> str:
        """The string field `name`; missing and None count as empty. Raises ValueError for any other type."""
        value = self.fields.get(name)
        if value is None:
            return ""
        return expect_text(value, f"{self.source}.{name}")


def expect_text(value: Any, where: str) -> str:
    """`value` if it is a string, else ValueError: `messages[2].content: expected a string, got None`."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected a string, got {describe(value)}")
    return value


def expect_mapping(value: Any, where: str) -> Message:
    """`value` if it is a mapping, else ValueError naming `where`."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected an object, got {describe(value)}")
    return value


def expect_list(value: Any, where: str) -> Sequence[Any]:
    """`value` if it is a list or tuple, else ValueError naming `where`."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where}: expected a list, got {describe(value)}")
    return value


def describe(value: Any) -> str:
    """The type of a value as a user knows it: None stays None, everything else is its type's name."""
    return "None" if value is None else type(value).__name__


def normalise(messages: Sequence[Message], context: Sequence[Message]) -> tuple[list[Turn], list[Turn]]:
    """Merge tool messages and sort tool results; returns the turns of (context, messages).

    The two lists never merge into each other, but results in `messages` may answer calls made in `context`.
    Does not modify its arguments. Raises ValueError naming message and field.
    """
    before = _merge_tool_messages(context, "context")
    after = _merge_tool_messages(messages, "messages")
    _sort_tool_results([*before, *after])
    return before, after


def with_system_fields(messages: Sequence[Message], fields: Message, dialect: Dialect) -> list[dict[str, Any]]:
    """Copies of the messages with `fields` (tools, response_format, ...) in the first system message, which is made if
    there is none.

    Dialects without system turns have one system text, at the head: all system messages are joined there.
    """
    found = [dict(message) for message in messages]
    if not dialect.system:
        texts = [message["content"] for message in found if message["role"] == "system" and message["content"]]
        found = [message for message in found if message["role"] != "system"]
        if texts:
            found.insert(0, {"role": "system", "content": "\n\n".join(texts)})
    if fields:
        if not found or found[0]["role"] != "system":
            found.insert(0, {"role": "system", "content": ""})
        found[0] |= fields
    return found


def drop_reasoning(turns: Sequence[Turn]) -> list[Turn]:
    """The turns left when earlier reasoning is dropped.

    Before the last user or developer turn, assistants lose their reasoning; developer turns and unknown
    roles vanish (a property of the release, not a choice of ours). Does not modify its argument.
    """
    last = last_caller(turns)
    kept: list[Turn] = []
    for index, turn in enumerate(turns):
        if index >= last or turn.role in KEPT_WITHOUT_THINKING:
            kept.append(turn)
        elif turn.role == "assistant":
            fields = {key: value for key, value in turn.fields.items() if key != "reasoning_content"}
            kept.append(Turn(turn.role, turn.source, fields, turn.blocks, turn.task))
    return kept


def last_caller(turns: Sequence[Turn]) -> int:
    """Index of the last user or developer turn, -1 if there is none."""
    return max((index for index, turn in enumerate(turns) if turn.role in CALLER_ROLES), default=-1)


def without_empty_texts(blocks: Sequence[TurnPart]) -> list[TurnPart]:
    """The blocks of a user turn without the empty ones of every run of texts; a run of nothing else keeps one."""
    kept: list[TurnPart] = []
    for block in blocks:
        if kept and block.kind == kept[-1].kind == "text":
            if not block.value:
                continue
            if not kept[-1].value:
                kept.pop()
        kept.append(block)
    return kept


def _merge_tool_messages(messages: Sequence[Message], name: str) -> list[Turn]:
    turns: list[Turn] = []
    for index, message in enumerate(expect_list(messages, name)):
        source = f"{name}[{index}]"
        fields = expect_mapping(message, source)
        role = fields.get("role")
        # an unhashable role cannot be looked up in a set of roles later
        if not isinstance(role, str):
            raise ValueError(f"{source}.role: expected a string, got {describe(role)}")
        previous = turns[-1] if turns and turns[-1].role == "user" else None
        if role == "tool":
            block = TurnPart("tool_result", fields.get("content", ""), source, _call_id(fields, source))
            if previous is not None:
                previous.blocks.append(block)
            else:
                turns.append(Turn("user", source, blocks=[block]))
        elif role == "user":
            block = TurnPart("text", fields.get("content", ""), source)
            if previous is not None and previous.task is None:
                previous.blocks.append(block)
            else:
                turns.append(Turn("user", source, blocks=[block], task=fields.get("task")))
        else:
            turns.append(Turn(role, source, fields, task=fields.get("task")))
    return turns


def _call_id(fields: Message, source: str) -> str:
    call_id = fields.get("tool_call_id")
    return "" if call_id is None else expect_text(call_id, f"{source}.tool_call_id")


def _sort_tool_results(turns: Iterable[Turn]) -> None:
    order: dict[str, int] = {}
    for turn in turns:
        calls = turn.fields.get("tool_calls") if turn.role == "assistant" else None
        if calls:
            order = _call_order(calls, f"{turn.source}.tool_calls")
        slots = [index for index, block in enumerate(turn.blocks) if block.kind == "tool_result"]
        if len(slots) < 2 or not order:
            continue
        results = [turn.blocks[slot] for slot in slots]
        # an unknown id sorts like the first call; the sort is stable and text keeps its slot
        results.sort(key=lambda block, order=order: order.get(block.call_id, 0))
        for slot, block in zip(slots, results, strict=True):
            turn.blocks[slot] = block


def _call_order(calls: Any, where: str) -> dict[str, int]:
    order: dict[str, int] = {}
    for index, call in enumerate(expect_list(calls, where)):
        fields = expect_mapping(call, f"{where}[{index}]")
        call_id = fields.get("id")
        if not call_id:
            call_id = expect_mapping(fields.get("function", {}), f"{where}[{index}].function").get("id")
        if call_id:
            order[expect_text(call_id, f"{where}[{index}].id")] = index
    return order
