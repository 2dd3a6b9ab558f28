"""From a checked chat request to a `GenerationRequest`."""

from typing import Any

from dsv4.encoding import Dialect
from dsv4.server.dialects.chat.request import ChatMessage, ChatRequest, functions_of
from dsv4.server.dialects.fields import common_fields, sampling_fields
from dsv4.server.dialects.parts import Unsupported, result_text, text_of_parts
from dsv4.server.dialects.request import GenerationRequest, owner_name
from dsv4.server.wire.errors import invalid, naming_field

# some clients repeat the reasoning and the calls of an answer as blocks of its content
ELSEWHERE = ("thinking", "redacted_thinking", "reasoning", "tool_use", "tool_call")


def read_chat(request: ChatRequest, dialect: Dialect, model: str, key: str) -> GenerationRequest:
    """The `GenerationRequest` of a chat request to `model`; key: the name of the client's key. Raises ApiError 400 for
    a message that cannot be read."""
    format_ = request.response_format
    messages = [
        _message(message, request.unsupported, f"messages[{index}]") for index, message in enumerate(request.messages)
    ]
    return GenerationRequest(
        **common_fields(request, model, key, dialect),
        # the official service writes nothing for an empty system message
        messages=[message for message in messages if message["role"] != "system" or message["content"]],
        functions=functions_of(request),
        choice=request.tool_choice,
        forces_call=True,
        parallel=request.parallel_tool_calls is not False,
        strict=frozenset(tool.function.name for tool in request.tools or () if tool.function.strict),
        limit=request.output_limit,
        sampling=sampling_fields(request),
        stop=request.stop,
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
        schema=format_.schema_wanted if format_ else None,
        any_object=format_ is not None and format_.type == "json_object",
        continued=bool(request.messages[-1].prefix),
        answers=request.n or 1,
        owner=owner_name(key, request.user_id, request.user, request.safety_identifier),
    )


def _content(message: ChatMessage) -> Any:
    """The content of a message, without the blocks whose contents are also in other fields."""
    if message.role != "assistant" or not isinstance(message.content, list):
        return message.content
    return [part for part in message.content if not (isinstance(part, dict) and part.get("type") in ELSEWHERE)]


def _message(message: ChatMessage, unsupported: Unsupported | None, place: str) -> dict[str, Any]:
    if message.role in ("system", "developer", "user") and "content" not in message.model_fields_set:
        raise invalid(f"{place}.content", f"required for role {message.role}")
    with naming_field(f"{place}.content"):
        read = result_text if message.role == "tool" else text_of_parts
        content = read(_content(message), unsupported)
    match message.role:
        case "assistant":
            fields: dict[str, Any] = {"role": "assistant", "content": content}
            # other types come from other servers and have another meaning
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
