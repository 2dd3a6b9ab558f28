"""Turns a checked request of Anthropic's messages into a `GenerationRequest`: blocks become messages of the
encoding."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsv4.encoding import Dialect
from dsv4.server.dialects.fields import arguments_text, common_fields, function_object, sampling_fields
from dsv4.server.dialects.messages.client_tools import known_tool
from dsv4.server.dialects.messages.request import MessagesRequest, runs_here, system_text
from dsv4.server.dialects.parts import Unsupported, part_text, result_text
from dsv4.server.dialects.request import GenerationRequest, owner_name
from dsv4.server.wire.errors import invalid, naming_field, show

# blocks that clients send back and the model does not need; results of tools that ran on a server are left out too
LEFT_OUT = frozenset({"redacted_thinking", "server_tool_use", "mcp_tool_use", "tool_removal", "container_upload"})
SERVER_RESULT = "_tool_result"
# a later system message in a dialect without system turns
REMINDER = "<system-reminder>\n{text}\n</system-reminder>"


def read_messages(request: MessagesRequest, dialect: Dialect, model: str, key: str) -> GenerationRequest:
    """The `GenerationRequest` of a message request to `model`. Raises ApiError 400 for a block that cannot be read.

    Tools with deferred loading stand where the conversation loads them, so that the head of the prompt stays the same.
    """
    config = request.output_config
    tools = [tool for tool in request.tools or [] if runs_here(tool)]
    late = [_function(tool) for tool in tools if tool.get("defer_loading")]
    functions = [_function(tool) for tool in tools if not tool.get("defer_loading")]
    system = system_text(request.system, request.unsupported)
    messages = [] if system is None else [{"role": "system", "content": system}]
    builder = _BlockReader(dialect, {function["name"]: function for function in (*functions, *late)}, late, request)
    for index, message in enumerate(request.messages):
        messages += builder.turn(message.role, message.content, f"messages[{index}]")
    format_ = (config.format if config else None) or request.output_format
    return GenerationRequest(
        **common_fields(request, model, key, dialect, effort=config.effort if config else None),
        messages=messages,
        functions=functions,
        late=late,
        choice=request.tool_choice,
        forces_call=request.tool_choice.name is not None,
        parallel=not request.tool_choice.single,
        strict=frozenset(tool["name"] for tool in tools if tool.get("strict")),
        limit=request.max_tokens,
        sampling=sampling_fields(request),
        stop=request.stop_sequences,
        schema=format_.schema_ if format_ else None,
        continued=_goes_on(messages) and request.task is None,
        owner=owner_name(key, request.metadata.user_id if request.metadata else None),
    )


def _goes_on(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last message is the beginning of the answer; a message with a call is complete."""
    return bool(messages) and messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    description, schema = known_tool(tool) or (None, None)
    return function_object(tool["name"], tool.get("description") or description, tool.get("input_schema") or schema)


class _BlockReader:
    """Turns messages into messages of the encoding. named: the tools by name; late: the tools with deferred loading."""

    def __init__(
        self,
        dialect: Dialect,
        named: Mapping[str, dict[str, Any]],
        late: Sequence[dict[str, Any]],
        request: MessagesRequest,
    ) -> None:
        self._system_turns = bool(dialect.system)
        self._named, self._late = named, {function["name"] for function in late}
        self._unsupported: Unsupported | None = request.unsupported

    def turn(
        self, role: str, content: str | Sequence[Mapping[str, Any]] | None, where: str
    ) -> Iterator[dict[str, Any]]:
        """The messages of the encoding for one message; a string and a list with one text give the same."""
        blocks = [{"type": "text", "text": content or ""}] if isinstance(content, str | None) else content
        places = [(block, f"{where}.content[{index}]") for index, block in enumerate(blocks)]
        match role:
            case "assistant":
                yield self._assistant(places)
            case "system":
                yield from self._system(places)
            case _:
                yield from self._user(places)

    def _user(self, places: Sequence[tuple[Mapping[str, Any], str]]) -> Iterator[dict[str, Any]]:
        loaded: list[str] = []
        said = False
        for block, place in places:
            if block.get("type") == "tool_result":
                said = True
                text = self._result(block.get("content"), f"{place}.content", loaded)
                yield {"role": "tool", "tool_call_id": str(block.get("tool_use_id") or ""), "content": text}
            elif not _is_left_out(block):
                said = True
                yield {"role": "user", "content": self._text(block, place)}
        if not said:
            yield {"role": "user", "content": ""}
        if loaded and self._system_turns:
            yield {"role": "system", "content": "", "added_tools": self._added(loaded)}

    def _system(self, places: Sequence[tuple[Mapping[str, Any], str]]) -> Iterator[dict[str, Any]]:
        texts: list[str] = []
        loaded: list[str] = []
        for block, place in places:
            match block:
                case {"type": "tool_addition", "tool": {"name": str(name)} | {"tool_name": str(name)}}:
                    loaded.append(name)
                case _ if block.get("type") != "tool_addition" and not _is_left_out(block):
                    texts.append(self._text(block, place))
        text = "\n\n".join(texts)
        if self._system_turns:
            added = self._added(loaded)
            yield {"role": "system", "content": text, **({"added_tools": added} if added else {})}
            return
        schemas = self._schemas(loaded)
        text = "\n\n".join([text, *schemas]) if text else "\n\n".join(schemas)
        if text:
            yield {"role": "user", "content": REMINDER.format(text=text)}

    def _assistant(self, places: Sequence[tuple[Mapping[str, Any], str]]) -> dict[str, Any]:
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[dict[str, Any]] = []
        for block, place in places:
            match block:
                case {"type": "thinking"}:
                    thoughts.append(str(block.get("thinking") or ""))
                case {"type": "tool_use"}:
                    function = {
                        "name": str(block.get("name") or ""),
                        "arguments": arguments_text(_input(block.get("input"))),
                    }
                    calls.append({"id": str(block.get("id") or ""), "type": "function", "function": function})
                case _ if not _is_left_out(block):
                    texts.append(self._text(block, place))
        # as the official service does: empty texts before the others are dropped, later ones are not
        while texts and not texts[0]:
            texts.pop(0)
        message: dict[str, Any] = {"role": "assistant", "content": "\n\n".join(texts)}
        if thoughts:
            message["reasoning_content"] = "\n\n".join(thoughts)
        return {**message, "tool_calls": calls} if calls else message

    def _text(self, block: Mapping[str, Any], place: str) -> str:
        with naming_field(place):
            return part_text(block, self._unsupported)

    def _result(self, content: Any, place: str, loaded: list[str]) -> str:
        """The text of a tool's result. Adds the tools it refers to to `loaded`; their schemas stand in the text if the
        dialect has no system turns."""
        if not isinstance(content, list):
            with naming_field(place):
                return result_text(content, self._unsupported)
        texts: list[str] = []
        for index, part in enumerate(content):
            match part:
                case None:
                    pass
                case str():
                    texts.append(part)
                case {"type": "tool_reference", "tool_name": str(name)}:
                    loaded.append(name)
                    texts.append("\n".join([name, *([] if self._system_turns else self._schemas([name]))]))
                case {}:
                    texts.append(self._text(part, f"{place}[{index}]"))
                case _:
                    raise invalid(f"{place}[{index}]", f"expected a block, got {show(part)}")
        return "\n\n".join(texts)

    def _added(self, names: Sequence[str]) -> list[dict[str, Any]]:
        functions = [self._named[name] for name in names if name in self._named]
        return [{"type": "function", "function": function} for function in functions]

    def _schemas(self, names: Sequence[str]) -> list[str]:
        return [json.dumps(self._named[name], ensure_ascii=False) for name in names if name in self._late]


def _input(value: object) -> object:
    """The input of a call; a string becomes JSON text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and value else value


def _is_left_out(block: Mapping[str, Any]) -> bool:
    kind = str(block.get("type"))
    return kind in LEFT_OUT or kind.endswith(SERVER_RESULT)
