"""What a request to chat completions may say: fields, ranges, and what is refused by name.

Fields that only inform (`user`, `metadata`, `store`) and unknown ones are ignored, since clients send many.
A field that would change the answer and is not supported is refused: accepting it would be a lie.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from dsv4.server.errors import ApiError, from_validation, invalid, show

MAX_STOPS = 16
MAX_TOOLS = 128
MAX_TOP_LOGPROBS = 20
SEED_LIMIT = 2**63

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"]

# field -> the values that change nothing
UNSUPPORTED: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("n", (None, 1)),
    ("tool_choice", (None, "auto", "none")),
    ("response_format", (None, {"type": "text"})),
    ("logit_bias", (None, {})),
    ("presence_penalty", (None, 0)),
    ("frequency_penalty", (None, 0)),
    ("functions", (None, [])),
    ("function_call", (None, "none")),
    ("modalities", (None, ["text"])),
    ("audio", (None,)),
    ("prediction", (None,)),
    ("web_search_options", (None,)),
)


def between(low: float, high: float, *, above: bool = False) -> AfterValidator:
    """A range check whose message shows the range; `above` leaves out the lower end."""

    def check(value: float | None) -> float | None:
        if value is not None and not (low < value <= high if above else low <= value <= high):
            raise ValueError(f"must be in {'(' if above else '['}{low}, {high}], got {value}")
        return value

    return AfterValidator(check)


def flatten_content(value: object) -> str | None:
    """Text as a string, from a string or a list of text parts.

    Parts are joined by an empty line, as the encoding joins the blocks of one user turn.
    """
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"expected a string or a list of text parts, got {show(value)}")
    texts: list[str] = []
    for index, part in enumerate(value):
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise ValueError(f"part {index}: only parts of type 'text' are supported, got {show(kind)}")
        if not isinstance(part.get("text"), str):
            raise ValueError(f"part {index}: text must be a string, got {show(part.get('text'))}")
        texts.append(part["text"])
    return "\n\n".join(texts)


def object_text(value: object) -> object:
    """Tool-call arguments as the text of an object. Empty ones become `{}`; what is not JSON stays."""
    if value in (None, ""):
        return "{}"
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        if not isinstance(parsed, dict):
            raise ValueError(f"expected the text of a JSON object, got {show(value)}")
    return value


def stop_list(value: object) -> object:
    """One stop string or several, as a list."""
    if value is None:
        return []
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        if len(value) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} strings, got {len(value)}")
        if "" in value:
            raise ValueError("a stop string must not be empty")
    return value


class _Part(BaseModel):
    """Types are not converted: the string "3" is no number. Unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class FunctionCall(_Part):
    name: str
    arguments: Annotated[str, BeforeValidator(object_text)] = "{}"


class ToolCall(_Part):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(_Part):
    """One message. `reasoning` is what newer vLLM calls `reasoning_content`; both are understood."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(flatten_content)] = Field(default=None, validate_default=True)
    reasoning_content: str | None = None
    reasoning: Any = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    prefix: bool | None = None

    @field_validator("content", mode="after")
    @classmethod
    def _content_where_needed(cls, value: str | None, info: ValidationInfo) -> str | None:
        role = info.data.get("role")
        if value is None and role in ("system", "developer", "user"):
            raise ValueError(f"required for role {role}, got null")
        return value

    @field_validator("prefix", mode="after")
    @classmethod
    def _no_prefix(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("prefix completion is not supported")
        return value


class Function(_Part):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("strict", mode="after")
    @classmethod
    def _not_strict(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("strict tools are not supported; leave it out or set it to false")
        return value


class Tool(_Part):
    type: Literal["function"]
    function: Function


class Thinking(_Part):
    type: Literal["enabled", "disabled", "adaptive"]


class StreamOptions(_Part):
    include_usage: bool | None = None


class ChatRequest(_Part):
    """The body of a chat completion, checked. Build it with `parse_chat`."""

    messages: list[ChatMessage] = Field(min_length=1)
    model: str | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, between(0, 2)] = None
    top_p: Annotated[float | None, between(0, 1, above=True)] = None
    seed: Annotated[int | None, between(-SEED_LIMIT, SEED_LIMIT - 1)] = None
    stop: Annotated[list[str], BeforeValidator(stop_list)] = Field(default_factory=list)
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, between(0, MAX_TOP_LOGPROBS)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    thinking: Thinking | None = None
    reasoning_effort: Effort | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none"] | None = None

    @field_validator("messages", mode="after")
    @classmethod
    def _conversation(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        calls = False
        for index, message in enumerate(messages):
            calls = calls or bool(message.tool_calls)
            if message.role == "tool" and not calls:
                raise PydanticCustomError(
                    "conversation",
                    "Messages with role 'tool' must be a response to a preceding message with 'tool_calls' "
                    "(messages[{index}])",
                    {"index": index},
                )
        if messages[-1].role == "assistant":
            raise ValueError("the last message must not be of role assistant: there is nothing to answer")
        return messages

    @field_validator("tools", mode="after")
    @classmethod
    def _tools(cls, tools: list[Tool] | None) -> list[Tool] | None:
        names = [tool.function.name for tool in tools or []]
        if len(names) > MAX_TOOLS:
            raise ValueError(f"at most {MAX_TOOLS} tools, got {len(names)}")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"function names must be unique, got {show(twice)} twice")
        return tools

    @property
    def output_limit(self) -> int | None:
        """The largest answer the client wants; the newer of OpenAI's two fields wins."""
        return self.max_completion_tokens or self.max_tokens


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Raise a 400 for the first field that would change the answer and that this server does not know."""
    for name, values in UNSUPPORTED:
        value = body.get(name)
        # True == 1 in Python, but not in JSON
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values):
            allowed = " or ".join(json.dumps(known) for known in values)
            raise invalid(name, f"{show(value)} is not supported; leave it out or send {allowed}")


def check_together(request: ChatRequest) -> None:
    """Raise a 400 for fields that only make sense with another one."""
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "only allowed with stream: true")
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs", "only allowed with logprobs: true")


def parse_chat(body: object) -> ChatRequest:
    """Check a decoded body. Raises ApiError 400 naming the first wrong field."""
    if not isinstance(body, Mapping):
        raise ApiError(400, f"body: expected a JSON object, got {show(body)}", param="body")
    refuse_unsupported(body)
    try:
        request = ChatRequest.model_validate(body)
    except ValidationError as error:
        raise from_validation(error) from error
    check_together(request)
    return request


def sent_functions(body: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """The functions of a checked body with their keys in the order sent: the prompt shows them as they are.

    `strict` is a word to the server, not to the model.
    """
    tools = body.get("tools") or []
    return [{key: value for key, value in tool["function"].items() if key != "strict"} for tool in tools]
