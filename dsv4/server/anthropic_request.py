"""What a request to Anthropic's messages may say. Lenient: clients send much that has no meaning here.

Fields that only inform, mark caches or ask for beta behaviour are ignored. What would change the answer and cannot be
done (images, documents, tools that run on the server) is refused by name or, for tools, left out.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from dsv4.server.errors import ApiError, from_validation, invalid, show
from dsv4.server.fields import Effort, Fields, Task, Thinking, between, stop_list

# a line some clients put first, which changes with every version of theirs
HIDDEN_PREFIX = "x-anthropic-"


def text_of(value: object) -> str:
    """System text or the content of a tool result, from a string or a list of blocks."""
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise ValueError(f"expected a string or a list of blocks, got {show(value)}")
    texts: list[str] = []
    for index, block in enumerate(value):
        match block:
            case {"type": "text", "text": str(text)}:
                if not text.startswith(HIDDEN_PREFIX):
                    texts.append(text)
            case {"type": "tool_reference", "tool_name": str(name)}:
                texts.append(f"Tool loaded: {name}")
            case _:
                raise ValueError(f"part {index}: {unreadable(block)}")
    return "\n\n".join(texts)


def unreadable(block: object) -> str:
    """Why a block cannot be taken."""
    kind = block.get("type") if isinstance(block, Mapping) else block
    if kind in ("image", "document"):
        return f"this model reads text only, got a block of type {show(kind)}"
    return f"blocks of type {show(kind)} are not supported"


class OutputFormat(Fields):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Fields):
    effort: Effort | None = None
    format: OutputFormat | None = None


class ToolChoiceField(Fields):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Metadata(Fields):
    user_id: Any = None


class MessagesMessage(Fields):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class MessagesRequest(Fields):
    """The body of a message request, checked. Build it with `parse_messages`."""

    messages: list[MessagesMessage] = Field(min_length=1)
    model: str | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    system: Annotated[str, BeforeValidator(text_of)] = ""
    temperature: Annotated[float | None, between(0, 2)] = None
    top_p: Annotated[float | None, between(0, 1, above=True)] = None
    top_k: Annotated[int | None, Field(ge=0)] = None
    stop_sequences: Annotated[list[str], BeforeValidator(stop_list)] = Field(default_factory=list)
    stream: bool | None = None
    thinking: Thinking | None = None
    task: Task | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    metadata: Metadata | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoiceField | None = None

    @field_validator("tools", mode="after")
    @classmethod
    def _tools(cls, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for index, tool in enumerate(tools or []):
            if not isinstance(tool.get("name"), str) or not tool["name"]:
                raise ValueError(f"tool {index}: name must be a string, got {show(tool.get('name'))}")
            schema = tool.get("input_schema")
            if schema is not None and not isinstance(schema, dict):
                raise ValueError(f"tool {index}: input_schema must be an object, got {show(schema)}")
        return tools


def parse_messages(body: object) -> MessagesRequest:
    """Check a decoded body. Raises ApiError 400 naming the first wrong field."""
    if not isinstance(body, Mapping):
        raise ApiError(400, f"body: expected a JSON object, got {show(body)}", param="body")
    try:
        request = MessagesRequest.model_validate(body)
    except ValidationError as error:
        raise from_validation(error) from error
    choice = request.tool_choice
    names = [tool["name"] for tool in request.tools or [] if runs_here(tool)]
    if choice is not None and choice.type in ("any", "tool") and not names:
        raise invalid("tool_choice", "a call is required, but there are no tools")
    if choice is not None and choice.type == "tool" and choice.name not in names:
        raise invalid("tool_choice.name", f"no tool is named {show(choice.name)}")
    return request


def runs_here(tool: Mapping[str, Any]) -> bool:
    """Whether the client runs a tool itself; those of Anthropic's servers (web search, code) do not exist here."""
    return tool.get("type", "custom") == "custom" or tool.get("type") is None or "input_schema" in tool
