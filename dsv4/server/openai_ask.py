"""From a checked chat request to an `Ask`."""

from collections.abc import Mapping
from typing import Any

from dsv4.encoding import Dialect
from dsv4.server.ask import Ask, ToolChoice, effort_name, thinks
from dsv4.server.fields import sampling_fields
from dsv4.server.openai_request import ChatMessage, ChatRequest, sent_functions
from dsv4.server.safety import owner_name


def chat_ask(request: ChatRequest, body: Mapping[str, Any], dialect: Dialect, model: str, key: str) -> Ask:
    """What `request` asks of `model`; `body` is what it was parsed from, `key` the name of the key it came with."""
    functions = sent_functions(body)
    kind = _thinking_kind(request)
    thinking = thinks(request.model, request.reasoning_effort, kind)
    format_ = request.response_format
    return Ask(
        model=model,
        messages=[_message(message) for message in request.messages],
        functions=functions,
        choice=request.tool_choice or ToolChoice(),
        parallel=request.parallel_tool_calls is not False,
        strict=any(tool.function.strict for tool in request.tools or ()),
        thinking=thinking,
        effort=effort_name(request.reasoning_effort, dialect) if thinking else None,
        budget=_budget(request),
        task=request.task,
        limit=request.output_limit,
        sampling=sampling_fields(request),
        stop=request.stop,
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
        schema=format_.schema_wanted if format_ else None,
        show_schema=format_ is not None and format_.type == "json_schema",
        continued=bool(request.messages[-1].prefix),
        owner=owner_name(key, request.user_id, request.user, request.safety_identifier),
        key=key,
    )


def _thinking_kind(request: ChatRequest) -> str | None:
    if request.thinking is not None:
        return request.thinking.type
    options = request.chat_template_kwargs
    chosen = options and (options.thinking if options.thinking is not None else options.enable_thinking)
    return None if chosen is None else "enabled" if chosen else "disabled"


def _budget(request: ChatRequest) -> int | None:
    inner = request.thinking.budget_tokens if request.thinking else None
    return request.thinking_budget if request.thinking_budget is not None else inner


def _message(message: ChatMessage) -> dict[str, Any]:
    content = message.content or ""
    match message.role:
        case "assistant":
            fields: dict[str, Any] = {"role": "assistant", "content": content}
            reasoning = message.reasoning_content
            if reasoning is None and isinstance(message.reasoning, str):
                reasoning = message.reasoning
            if reasoning:
                fields["reasoning_content"] = reasoning
            if message.tool_calls:
                fields["tool_calls"] = [call.model_dump() for call in message.tool_calls]
            return fields
        case "tool":
            return {"role": "tool", "content": content, "tool_call_id": message.tool_call_id or ""}
        case "developer":
            # the encoding drops developer turns of earlier rounds, which no client expects
            return {"role": "system", "content": content}
        case role:
            return {"role": role, "content": content}
