"""Context editing of Anthropic's messages: old results of tools, and old reasoning, are cleared from the prompt.

The client keeps the whole conversation and sends it each time; the server leaves out what `context_management` says.
The prompt up to the first cleared place stays the same, so the cached prefix is valid until there. Defaults are those
of Anthropic's documentation (beta context-management-2025-06-27).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from dsv4.encoding import Tokenizer
from dsv4.server.dialects.fields import Fields
from dsv4.server.dialects.prompt import encode
from dsv4.server.dialects.request import GenerationRequest

TOOL_USES, THINKING = "clear_tool_uses_20250919", "clear_thinking_20251015"
DEFAULT_TRIGGER_TOKENS = 100_000
DEFAULT_KEPT_USES = 3
CLEARED = "[The result of this call was cleared to save context.]"

Messages = Sequence[Mapping[str, Any]]
Whole = Annotated[int, Field(ge=0)]


class Tokens(Fields):
    type: Literal["input_tokens"]
    value: Whole


class Uses(Fields):
    type: Literal["tool_uses"]
    value: Whole


class Turns(Fields):
    type: Literal["thinking_turns"]
    value: Annotated[int, Field(ge=1)]


class AllTurns(Fields):
    type: Literal["all"]


def _all_turns(value: object) -> object:
    return {"type": "all"} if value == "all" else value


class ClearToolUses(Fields):
    """Clears the results of all calls but the last `keep`, once the prompt is larger than `trigger`.

    clear_at_least: nothing is cleared if it would be fewer tokens. clear_tool_inputs: clear the arguments of these
    calls too (true), or of the calls of some tools (their names).
    """

    type: Literal["clear_tool_uses_20250919"]
    trigger: Annotated[Tokens | Uses, Field(discriminator="type")] = Tokens(
        type="input_tokens", value=DEFAULT_TRIGGER_TOKENS
    )
    keep: Uses = Uses(type="tool_uses", value=DEFAULT_KEPT_USES)
    clear_at_least: Tokens | None = None
    exclude_tools: list[str] | None = None
    clear_tool_inputs: bool | list[str] | None = None


class ClearThinking(Fields):
    """Clears the reasoning of all turns of the assistant but the last `keep`."""

    type: Literal["clear_thinking_20251015"]
    keep: Annotated[Annotated[Turns | AllTurns, Field(discriminator="type")], BeforeValidator(_all_turns)] = Turns(
        type="thinking_turns", value=1
    )


class OtherEdit(Fields):
    """An edit that this server does not know, such as compaction. The answer does not list it as applied."""

    type: str


def _kind(value: object) -> str:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return kind if kind in (TOOL_USES, THINKING) else "other"


Edit = Annotated[
    Annotated[ClearToolUses, Tag(TOOL_USES)]
    | Annotated[ClearThinking, Tag(THINKING)]
    | Annotated[OtherEdit, Tag("other")],
    Discriminator(_kind),
]


class ContextManagement(Fields):
    edits: list[Edit] | None = None


@dataclass(frozen=True, slots=True)
class Edited:
    """A request after context editing. original: the tokens of its prompt before, None if nothing was cleared and they
    were not counted; applied: the edits that cleared something, in the form of the answer."""

    request: GenerationRequest
    original: int | None
    applied: list[dict[str, Any]]


def edit_context(request: GenerationRequest, management: ContextManagement | None, tokenizer: Tokenizer) -> Edited:
    """Apply the edits in the order of the request. Raises ApiError 400 for messages that cannot be encoded."""
    applied: list[dict[str, Any]] = []
    original = size = None
    for edit in (management.edits if management else None) or ():
        if isinstance(edit, OtherEdit):
            continue
        if isinstance(edit, ClearThinking):
            messages, cleared = _without_thinking(request.messages, edit)
        else:
            messages, cleared = _without_results(request.messages, edit)
        if not cleared:
            continue
        # counting costs as much as making the prompt, so it is done only for an edit that has something to clear
        if size is None:
            original = size = len(encode(request, tokenizer))
        if isinstance(edit, ClearToolUses) and isinstance(edit.trigger, Tokens) and size <= edit.trigger.value:
            continue
        edited = replace(request, messages=messages)
        left = len(encode(edited, tokenizer))
        least = edit.clear_at_least.value if isinstance(edit, ClearToolUses) and edit.clear_at_least else 1
        # a dialect may leave out old reasoning anyway
        if size - left < max(1, least):
            continue
        name = "cleared_thinking_turns" if isinstance(edit, ClearThinking) else "cleared_tool_uses"
        applied.append({"type": edit.type, name: cleared, "cleared_input_tokens": size - left})
        request, size = edited, left
    return Edited(request, original, applied)


def _without_thinking(messages: Messages, edit: ClearThinking) -> tuple[list[dict[str, Any]], int]:
    """The messages without the reasoning of old turns, and the number of these turns.

    A turn lasts until the user says something: all calls of one task, and the reasoning between them, are one turn. A
    message of the user directly behind a result belongs to the task, as clients add notes there.
    """
    turns: list[list[int]] = [[]]
    for index, message in enumerate(messages):
        if message["role"] == "user" and (index == 0 or messages[index - 1]["role"] not in ("tool", "user")):
            turns.append([])
        elif message.get("reasoning_content"):
            turns[-1].append(index)
    thinking = [turn for turn in turns if turn]
    old = [] if isinstance(edit.keep, AllTurns) else thinking[: -edit.keep.value]
    edited = [dict(message) for message in messages]
    for index in (index for turn in old for index in turn):
        del edited[index]["reasoning_content"]
        # the sampled tokens, which hold the reasoning, must not take the place of this text
        edited[index]["reasoning_cleared"] = True
    return edited, len(old)


def _without_results(messages: Messages, edit: ClearToolUses) -> tuple[list[dict[str, Any]], int]:
    """The messages without the results of old calls, and the number of these calls."""
    edited = [dict(message) for message in messages]
    names = {call["id"]: call["function"]["name"] for message in edited for call in message.get("tool_calls") or ()}
    if isinstance(edit.trigger, Uses) and len(names) <= edit.trigger.value:
        return edited, 0
    ids = list(names)
    kept = set(ids[max(0, len(ids) - edit.keep.value) :])
    old = {id for id, name in names.items() if id not in kept and name not in (edit.exclude_tools or ())}
    cleared: set[str] = set()
    for message in edited:
        if message["role"] == "tool" and message["tool_call_id"] in old and len(message["content"]) > len(CLEARED):
            message["content"] = CLEARED
            cleared.add(message["tool_call_id"])
        if message.get("tool_calls"):
            message["tool_calls"] = [_without_input(call, edit, old, cleared) for call in message["tool_calls"]]
    return edited, len(cleared)


def _without_input(call: dict[str, Any], edit: ClearToolUses, old: set[str], cleared: set[str]) -> dict[str, Any]:
    """The call, without its arguments if they are to be cleared; its id is then added to `cleared`."""
    function, inputs = call["function"], edit.clear_tool_inputs
    wanted = function["name"] in inputs if isinstance(inputs, list) else bool(inputs)
    if call["id"] not in old or not wanted or function["arguments"] == "{}":
        return call
    cleared.add(call["id"])
    return {**call, "function": {**function, "arguments": "{}"}}
