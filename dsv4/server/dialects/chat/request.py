"""The fields of a request to chat completions, their ranges, and the fields that are refused.

Informative fields (`user`, `metadata`, `store`) and unknown ones are ignored, because clients send many. A field that
would change the answer and is not supported is refused, so that no client relies on it.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from dsv4.server.dialects.choices import Count
from dsv4.server.dialects.fields import (
    Fields,
    SamplingFields,
    Switches,
    arguments_text,
    between,
    check_choice,
    check_tool_names,
    checked,
    choice_of,
    function_object,
    in_runs,
)
from dsv4.server.dialects.request import ToolChoice
from dsv4.server.wire.errors import invalid, show

MAX_TOP_LOGPROBS = 20
SEED_LIMIT = 2**63

# field -> its accepted values, which have no effect
UNSUPPORTED: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("functions", (None, [])),
    ("function_call", (None, "none")),
    ("modalities", (None, ["text"])),
    ("audio", (None,)),
    ("prediction", (None,)),
    ("web_search_options", (None,)),
)


def call_id(value: object) -> object:
    """An id as text; some clients send numbers."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def or_function(value: object) -> object:
    """The type of a tool or call; "function" where it is missing."""
    return "function" if value is None else value


Id = Annotated[str | None, BeforeValidator(call_id)]
Kind = Annotated[str, BeforeValidator(or_function)]


class FunctionCall(Fields):
    name: Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
    arguments: Annotated[str, BeforeValidator(arguments_text)] = "{}"


class ToolCall(Fields):
    """A call of an earlier turn. The text of a custom tool's call becomes the parameter `input`."""

    id: Id = None
    type: Kind = "function"
    function: FunctionCall

    @model_validator(mode="before")
    @classmethod
    def _custom(cls, value: Any) -> Any:
        match value:
            case {"type": "custom", "custom": {"name": str(name)} as custom}:
                arguments = json.dumps({"input": str(custom.get("input") or "")}, ensure_ascii=False)
                return {"id": value.get("id"), "function": {"name": name, "arguments": arguments}}
            case _:
                return value


class ChatMessage(Fields):
    """One message. `reasoning` is the name of `reasoning_content` in newer vLLM; both are read."""

    role: Literal["system", "developer", "user", "assistant", "tool", "latest_reminder"]
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Id = None
    prefix: bool | None = None


class Function(Fields):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(Fields):
    type: Annotated[Literal["function"], BeforeValidator(or_function)] = "function"
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


class ChatRequest(Switches, SamplingFields):
    """The body of a chat completion, checked. Build it with `parse_chat`."""

    messages: Annotated[list[ChatMessage], BeforeValidator(in_runs(ChatMessage))] = Field(min_length=1)
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    n: Count = None
    seed: Annotated[int | None, between(-SEED_LIMIT, SEED_LIMIT - 1)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, between(0, MAX_TOP_LOGPROBS)] = None
    tools: list[ChatTool] | None = None
    tool_choice: Annotated[ToolChoice, BeforeValidator(choice_of)] = ToolChoice()
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    safety_identifier: Any = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None

    @classmethod
    def refuse(cls, body: Mapping[str, Any]) -> None:
        for name, values in UNSUPPORTED:
            value = body.get(name)
            # True == 1 in Python, but not in JSON
            if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values):
                allowed = " or ".join(json.dumps(known) for known in values)
                raise invalid(name, f"{show(value)} is not supported; leave it out or send {allowed}")

    @field_validator("messages", mode="after")
    @classmethod
    def _conversation(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        # a shortened history may begin with a result, but it must also hold a message of user or assistant
        spoken = any(message.role in ("user", "assistant") for message in messages)
        for index, message in enumerate(messages):
            if message.role == "tool" and not spoken:
                raise PydanticCustomError(
                    "conversation",
                    "Messages with role 'tool' must be a response to a preceding message with 'tool_calls' "
                    "(messages[{index}])",
                    {"index": index},
                )
            if message.prefix and (message.role != "assistant" or index + 1 < len(messages)):
                raise PydanticCustomError("conversation", "prefix: only for a last message of role assistant")
        return messages

    @property
    def output_limit(self) -> int | None:
        """The longest answer the client wants, in tokens; the newer of OpenAI's two fields takes precedence."""
        return self.max_completion_tokens or self.max_tokens


def parse_chat(body: object) -> ChatRequest:
    """Check a decoded body. Raises ApiError 400 naming the first wrong field."""
    request = checked(ChatRequest, body)
    if request.messages[-1].prefix and request.task is not None:
        raise invalid("task", "not together with prefix")
    request.check_stream()
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs", "only allowed with logprobs: true")
    format_ = request.response_format
    if format_ is not None and format_.type == "json_schema" and format_.json_schema is None:
        raise invalid("response_format.json_schema", "required with type json_schema")
    names = [tool.function.name for tool in request.tools or []]
    check_tool_names(names, [f"tools[{index}].function.name" for index in range(len(names))])
    check_choice(request.tool_choice, names)
    return request


def functions_of(request: ChatRequest) -> list[dict[str, Any]]:
    """The functions in the form of the prompt, without `strict`, which is for the server."""
    functions = [tool.function for tool in request.tools or []]
    return [function_object(tool.name, tool.description, tool.parameters) for tool in functions]
