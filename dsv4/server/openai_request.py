"""What a request to chat completions may say: fields, ranges, and what is refused by name.

Fields that only inform (`user`, `metadata`, `store`) and unknown ones are ignored, since clients send many.
A field that would change the answer and is not supported is refused: accepting it would be a lie.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from dsv4.server.ask import ToolChoice
from dsv4.server.errors import ApiError, from_validation, invalid, show
from dsv4.server.fields import Budget, Effort, Fields, StreamOptions, Task, Thinking, between, bias_pairs, stop_list

MAX_TOOLS = 128
MAX_TOP_LOGPROBS = 20
SEED_LIMIT = 2**63

# field -> the values that change nothing
UNSUPPORTED: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("n", (None, 1)),
    ("functions", (None, [])),
    ("function_call", (None, "none")),
    ("modalities", (None, ["text"])),
    ("audio", (None,)),
    ("prediction", (None,)),
    ("web_search_options", (None,)),
)


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


def choice_of(value: Any) -> ToolChoice | None:
    """A tool choice in any of its forms."""
    if value is None:
        return None
    if value in ("auto", "none", "required"):
        return ToolChoice(value)
    function = value.get("function") if isinstance(value, Mapping) and value.get("type") == "function" else None
    if isinstance(function, Mapping) and isinstance(function.get("name"), str):
        return ToolChoice("required", function["name"])
    raise ValueError(f"expected 'none', 'auto', 'required' or a function by name, got {show(value)}")


class FunctionCall(Fields):
    name: str
    arguments: Annotated[str, BeforeValidator(object_text)] = "{}"


class ToolCall(Fields):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Fields):
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


class Function(Fields):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Fields):
    type: Literal["function"]
    function: Function


class JsonSchema(Fields):
    name: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")


class ResponseFormat(Fields):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """The schema an answer must follow, None for plain text."""
        if self.type == "json_schema" and self.json_schema is not None:
            return self.json_schema.schema_
        return None if self.type == "text" else {"type": "object"}


class TemplateOptions(Fields):
    """What users of other servers switch thinking with."""

    thinking: bool | None = None
    enable_thinking: bool | None = None


class ChatRequest(Fields):
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
    thinking_budget: Budget = None
    reasoning_effort: Effort | None = None
    task: Task | None = None
    tools: list[Tool] | None = None
    tool_choice: Annotated[ToolChoice | None, BeforeValidator(choice_of)] = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    top_k: Annotated[int | None, Field(ge=-1)] = None
    min_p: Annotated[float | None, between(0, 1)] = None
    presence_penalty: Annotated[float | None, between(-2, 2)] = None
    frequency_penalty: Annotated[float | None, between(-2, 2)] = None
    logit_bias: Annotated[tuple[tuple[int, float], ...], BeforeValidator(bias_pairs)] = ()
    chat_template_kwargs: TemplateOptions | None = None
    user: Any = None
    user_id: Any = None
    safety_identifier: Any = None

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
            if message.prefix and (message.role != "assistant" or index + 1 < len(messages)):
                raise PydanticCustomError("conversation", "prefix: only for a last message of role assistant")
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
    last = request.messages[-1]
    if last.role == "assistant" and not last.prefix and request.task is None:
        raise invalid(
            "messages",
            "the last message must not be of role assistant: there is nothing to answer "
            "(with prefix: true it is continued)",
        )
    if last.prefix and request.task is not None:
        raise invalid("task", "not together with prefix")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "only allowed with stream: true")
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs", "only allowed with logprobs: true")
    format_ = request.response_format
    if format_ is not None and format_.type == "json_schema" and format_.json_schema is None:
        raise invalid("response_format.json_schema", "required with type json_schema")
    check_choice(request.tool_choice, [tool.function.name for tool in request.tools or []])


def check_choice(choice: ToolChoice | None, names: Sequence[str]) -> None:
    """Raise a 400 for a call that is required but cannot be made."""
    if choice is None or choice.mode != "required":
        return
    if not names:
        raise invalid("tool_choice", "a call is required, but there are no tools")
    if choice.name is not None and choice.name not in names:
        raise invalid("tool_choice", f"no function is named {show(choice.name)}")


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
