"""From a checked request to a prompt: thinking mode, effort, and the messages the encoding expects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dsv4.encoding import Dialect, Tokenizer
from dsv4.generation import SamplingDefaults, SamplingParams
from dsv4.server.errors import ApiError
from dsv4.server.models import NOT_THINKING
from dsv4.server.openai_request import ChatMessage, ChatRequest, sent_functions

# what official clients may rely on when they set no limit (September documentation)
DEFAULT_TOKENS = 8_192
DEFAULT_TOKENS_THINKING = 65_536
DEFAULT_TOKENS_MAX_EFFORT = 131_072

EFFORTS = {
    "minimal": "low",
    "low": "low",
    "medium": "high",
    "high": "high",
    "xhigh": "high",
    "max": "max",
    "ultra": "max",
}


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """What the encoding needs of a request. `tools`: whether the model may call functions."""

    messages: list[dict[str, Any]]
    thinking: bool
    effort: str | None
    drop_thinking: bool
    tools: bool

    @property
    def thinking_mode(self) -> Literal["chat", "thinking"]:
        """The mode as encoding and parser name it."""
        return "thinking" if self.thinking else "chat"

    @property
    def default_tokens(self) -> int:
        """The longest answer if the client sets no limit."""
        if not self.thinking:
            return DEFAULT_TOKENS
        return DEFAULT_TOKENS_MAX_EFFORT if self.effort == "max" else DEFAULT_TOKENS_THINKING

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """The prompt's ids; message text never becomes a control token. Raises ApiError 400."""
        try:
            return tokenizer.encode_messages(
                self.messages,
                self.thinking_mode,
                drop_thinking=self.drop_thinking,
                reasoning_effort=self.effort,
                mode="safe",
            )
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from error


def chat_prompt(request: ChatRequest, body: Mapping[str, Any], dialect: Dialect) -> ChatPrompt:
    """The prompt of `request`; `body` is what it was parsed from.

    Tools go to the first system message, which is made if there is none. With `tool_choice: none` the model
    does not see them. A conversation with tools keeps all its reasoning, so that its prefix stays the same.
    """
    thinking = thinks(request)
    functions = sent_functions(body)
    messages = [_message(message) for message in request.messages]
    if messages[-1]["role"] == "system":
        # the encoding lets only user turns be answered
        messages[-1]["role"] = "user"
    tools = bool(functions) and request.tool_choice != "none"
    if tools:
        if messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": ""})
        messages[0]["tools"] = [{"type": "function", "function": function} for function in functions]
    effort = effort_name(request.reasoning_effort, dialect) if thinking else None
    return ChatPrompt(messages, thinking, effort, drop_thinking=not functions, tools=tools)


def thinks(request: ChatRequest) -> bool:
    """On unless something says off: `thinking`, an effort of none, or the alias without thinking."""
    if request.reasoning_effort == "none":
        return False
    if request.thinking is not None:
        return request.thinking.type != "disabled"
    return request.model != NOT_THINKING


def effort_name(requested: str | None, dialect: Dialect) -> str:
    """The effort as the dialect names it; a release without a low effort answers with high."""
    name = EFFORTS[requested or "high"]
    return name if name in dict(dialect.efforts) else "high"


def supported_efforts(dialect: Dialect) -> tuple[str, ...]:
    """What a client may choose from."""
    return ("none", *(name for name, _ in dialect.efforts))


def sampling(
    request: ChatRequest,
    prompt: Sequence[int],
    context_length: int,
    default_tokens: int,
    eos_id: int,
    defaults: SamplingDefaults,
) -> SamplingParams:
    """How to sample; the limit is cut to the room in the context. Raises ApiError 400 if there is none."""
    room = context_length - len(prompt)
    wanted = request.output_limit
    if room < 1:
        completion = wanted or 1
        raise ApiError(
            400,
            f"This model's maximum context length is {context_length} tokens. However, you requested "
            f"{len(prompt) + completion} tokens ({len(prompt)} in the messages, {completion} in the "
            "completion). "
            "Please reduce the length of the messages or completion.",
            param="messages",
            code="context_length_exceeded",
        )
    return SamplingParams(
        max_tokens=min(wanted or default_tokens, room),
        temperature=defaults.temperature if request.temperature is None else request.temperature,
        top_p=defaults.top_p if request.top_p is None else request.top_p,
        seed=request.seed,
        stop_ids=(eos_id,),
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
    )


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
