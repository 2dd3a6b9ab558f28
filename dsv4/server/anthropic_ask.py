"""From a checked request of Anthropic's messages to an `Ask`: blocks become messages of the encoding."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dsv4.encoding import Dialect
from dsv4.server.anthropic_request import (
    HIDDEN_PREFIX,
    MessagesRequest,
    ToolChoiceField,
    runs_here,
    text_of,
    unreadable,
)
from dsv4.server.ask import Ask, ToolChoice, effort_name, thinks
from dsv4.server.errors import invalid
from dsv4.server.safety import owner_name

# what clients replay and the model does not need
LEFT_OUT = frozenset(
    {"redacted_thinking", "server_tool_use", "web_search_tool_result", "tool_addition", "tool_removal"}
)


def messages_ask(request: MessagesRequest, dialect: Dialect, model: str, key: str) -> Ask:
    """What `request` asks of `model`. Raises ApiError 400 for a block that cannot be taken.

    Tools whose loading is deferred are shown where the conversation mentions them, not at its head: the head must
    stay the same when one is loaded.
    """
    config, choice = request.output_config, request.tool_choice
    effort = config.effort if config else None
    thinking = thinks(model, effort, request.thinking.type if request.thinking else None)
    tools = [tool for tool in request.tools or [] if runs_here(tool)]
    late = {tool["name"]: _function(tool) for tool in tools if tool.get("defer_loading")}
    messages = [{"role": "system", "content": request.system}] if request.system else []
    for index, message in enumerate(request.messages):
        messages += _messages(message.role, message.content, f"messages[{index}]", late)
    if not messages:
        raise invalid("messages", "they hold no text")
    format_ = (config.format if config else None) or request.output_format
    continued = messages[-1]["role"] == "assistant" and request.task is None
    return Ask(
        model=model,
        messages=messages,
        functions=[_function(tool) for tool in tools if not tool.get("defer_loading")],
        late=list(late.values()),
        choice=_choice(choice),
        parallel=not (choice and choice.disable_parallel_tool_use),
        strict=any(tool.get("strict") for tool in tools),
        thinking=thinking,
        effort=effort_name(effort, dialect) if thinking else None,
        budget=request.thinking.budget_tokens if request.thinking else None,
        task=request.task,
        limit=request.max_tokens,
        sampling={"temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k},
        stop=request.stop_sequences,
        schema=format_.schema_ if format_ else None,
        continued=continued,
        owner=owner_name(key, request.metadata.user_id if request.metadata else None),
        key=key,
    )


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool["name"]}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {**function, "parameters": tool.get("input_schema") or {"type": "object", "properties": {}}}


def _choice(choice: ToolChoiceField | None) -> ToolChoice:
    match choice.type if choice else "auto":
        case "any":
            return ToolChoice("required")
        case "tool":
            return ToolChoice("required", choice.name if choice else None)
        case "none":
            return ToolChoice("none")
        case _:
            return ToolChoice()


def _messages(
    role: str, content: str | Sequence[Mapping[str, Any]], where: str, late: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One message as those of the encoding; a string and a list with one text give the same."""
    blocks: Sequence[Mapping[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if role == "assistant":
        return [_assistant(blocks, where)]
    messages: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        place = f"{where}.content[{index}]"
        match block:
            case {"type": "text", "text": str(text)}:
                if not text.startswith(HIDDEN_PREFIX):
                    messages.append({"role": role, "content": text})
            case {"type": "tool_result"}:
                text = _result(block, place, late)
                messages.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": text})
            case {"type": str(kind)} if kind in LEFT_OUT:
                pass
            case _:
                raise invalid(place, unreadable(block))
    if role == "system":
        text = "\n\n".join(message["content"] for message in messages)
        return [{"role": "system", "content": text}] if text else []
    return messages


def _assistant(blocks: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "thinking"}:
                thoughts.append(str(block.get("thinking") or ""))
            case {"type": "tool_use", "name": str(name)}:
                arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
                call = {"id": str(block.get("id", "")), "function": {"name": name, "arguments": arguments}}
                calls.append({**call, "type": "function"})
            case {"type": str(kind)} if kind in LEFT_OUT:
                pass
            case _:
                raise invalid(f"{where}.content[{index}]", unreadable(block))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if any(thoughts):
        message["reasoning_content"] = "".join(thoughts)
    return {**message, "tool_calls": calls} if calls else message


def _result(block: Mapping[str, Any], place: str, late: Mapping[str, Any]) -> str:
    content = block.get("content")
    try:
        text = text_of(content)
    except ValueError as error:
        raise invalid(f"{place}.content", str(error)) from error
    named = [part.get("tool_name") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    schemas = [json.dumps(late[name], ensure_ascii=False) for name in named if name in late]
    return "\n".join([text, *schemas])
