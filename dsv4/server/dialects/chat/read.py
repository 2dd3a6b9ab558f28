"""From a checked chat request to a `GenerationRequest`."""

from typing import Any

from dsv4.encoding import Dialect
from dsv4.server.dialects.chat.request import ChatMessage, ChatRequest, functions_of
from dsv4.server.dialects.fields import sampling_fields
from dsv4.server.dialects.parts import Unsupported, result_text, text_of_parts
from dsv4.server.dialects.request import GenerationRequest, effort_name, owner_name, thinks
from dsv4.server.wire.errors import invalid

# some clients keep the reasoning and calls of an answer in its content, as blocks
ELSEWHERE = ("thinking", "redacted_thinking", "reasoning", "tool_use", "tool_call")


def read_chat(request: ChatRequest, dialect: Dialect, model: str, key: str) -> GenerationRequest:
    """What `request` asks of `model`; `key` is the name of the key it came with. Raises ApiError 400 for a message that
    cannot be taken."""
    thinking = thinks(request.model, request.effort, request.thinking_kind)
    format_ = request.response_format
    messages = [
        _message(message, request.unsupported, f"messages[{index}]") for index, message in enumerate(request.messages)
    ]
    return GenerationRequest(
        model=model,
        # an empty system message says nothing, and upstream writes nothing for it
        messages=[message for message in messages if message["role"] != "system" or message["content"]],
        functions=functions_of(request),
        choice=request.tool_choice,
        forces_call=True,
        parallel=request.parallel_tool_calls is not False,
        strict=frozenset(tool.function.name for tool in request.tools or () if tool.function.strict),
        thinking=thinking,
        effort=effort_name(request.effort, dialect) if thinking else None,
        budget=request.budget,
        task=request.task,
        limit=request.output_limit,
        sampling=sampling_fields(request),
        stop=request.stop,
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
        schema=format_.schema_wanted if format_ else None,
        any_object=format_ is not None and format_.type == "json_object",
        continued=bool(request.messages[-1].prefix),
        owner=owner_name(key, request.user_id, request.user, request.safety_identifier),
        key=key,
    )


def _said(message: ChatMessage) -> Any:
    """The content of a message without the parts of an answer that stand in other fields, too."""
    if message.role != "assistant" or not isinstance(message.content, list):
        return message.content
    return [part for part in message.content if not (isinstance(part, dict) and part.get("type") in ELSEWHERE)]


def _message(message: ChatMessage, unsupported: Unsupported | None, place: str) -> dict[str, Any]:
    if message.role in ("system", "developer", "user") and "content" not in message.model_fields_set:
        raise invalid(f"{place}.content", f"required for role {message.role}")
    try:
        read = result_text if message.role == "tool" else text_of_parts
        content = read(_said(message), unsupported)
    except ValueError as error:
        raise invalid(f"{place}.content", str(error)) from error
    match message.role:
        case "assistant":
            fields: dict[str, Any] = {"role": "assistant", "content": content}
            # other values come from other servers, which mean something else by them
            texts = [text for text in (message.reasoning_content, message.reasoning) if isinstance(text, str)]
            if reasoning := next(iter(texts), ""):
                fields["reasoning_content"] = reasoning
            if message.tool_calls:
                fields["tool_calls"] = [call.model_dump() for call in message.tool_calls]
            return fields
        case "tool":
            return {"role": "tool", "content": content, "tool_call_id": message.tool_call_id or ""}
        case "developer":
            return {"role": "system", "content": content}
        case role:
            return {"role": role, "content": content}
