"""The fields of a request to Anthropic's messages.

Informative fields, marks of caches and beta options are ignored. Tools that would run on the server are left out, and
parts that the model cannot read become placeholders.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, field_validator

from dsv4.server.dialects.fields import (
    Effort,
    Fields,
    Switches,
    between,
    check_choice,
    check_tool_names,
    checked,
    choice_of,
    in_runs,
    stop_list,
)
from dsv4.server.dialects.messages.client_tools import known_tool
from dsv4.server.dialects.messages.context_editing import ContextManagement
from dsv4.server.dialects.parts import Unsupported, text_of_parts
from dsv4.server.dialects.request import ToolChoice
from dsv4.server.wire.errors import naming_field, show

# the first line of some clients, which changes with each of their versions
HIDDEN_PREFIX = "x-anthropic-"


def system_text(value: object, unsupported: Unsupported | None) -> str | None:
    """The system text of a string or a list of blocks; None for null. Raises ApiError 400."""
    if value is None:
        return None
    if isinstance(value, list):
        value = [block for block in value if not (isinstance(block, Mapping) and _is_hidden(block.get("text")))]
    with naming_field("system"):
        return text_of_parts(value, unsupported)


def content_blocks(value: object) -> object:
    """Content as a string or a list of blocks; strings in the list become text blocks, nulls are skipped."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"expected a string or a list of blocks, got {show(value)}")
    for index, block in enumerate(value):
        if block is not None and not isinstance(block, dict | str):
            raise ValueError(f"block {index}: expected an object, got {show(block)}")
    blocks = [block for block in value if block is not None]
    return [{"type": "text", "text": block} if isinstance(block, str) else block for block in blocks]


def _is_hidden(text: object) -> bool:
    return isinstance(text, str) and text.startswith(HIDDEN_PREFIX)


class OutputFormat(Fields):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Fields):
    effort: Effort | None = None
    format: OutputFormat | None = None


class Metadata(Fields):
    user_id: Any = None


class MessagesMessage(Fields):
    role: Literal["user", "assistant", "system"]
    content: Annotated[str | list[dict[str, Any]] | None, PlainValidator(content_blocks)] = None


class MessagesRequest(Switches):
    """The body of a message request, checked. Build it with `parse_messages`."""

    messages: Annotated[list[MessagesMessage], BeforeValidator(in_runs(MessagesMessage))] = Field(min_length=1)
    model: str | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    system: Any = None
    temperature: Annotated[float | None, between(0, 2)] = None
    top_p: Annotated[float | None, between(0, 1, above=True)] = None
    top_k: Annotated[int | None, Field(ge=-1)] = None
    stop_sequences: Annotated[list[str], BeforeValidator(stop_list)] = Field(default_factory=list)
    stream: bool | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    metadata: Metadata | None = None
    context_management: ContextManagement | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Annotated[ToolChoice, BeforeValidator(choice_of)] = ToolChoice()

    @field_validator("tools", mode="after")
    @classmethod
    def _tools(cls, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for index, tool in enumerate(tools or []):
            schema = tool.get("input_schema")
            if schema is not None and not isinstance(schema, dict):
                raise ValueError(f"tool {index}: input_schema must be an object, got {show(schema)}")
        return tools


def parse_messages(body: object) -> MessagesRequest:
    """Check a decoded body. Raises ApiError 400 naming the first wrong field."""
    request = checked(MessagesRequest, body)
    ours = {f"tools[{at}].name": tool.get("name") for at, tool in enumerate(request.tools or ()) if runs_here(tool)}
    names = list(ours.values())
    check_tool_names(names, list(ours))
    check_choice(request.tool_choice, [str(name) for name in names], "tool_choice.name")
    return request


def runs_here(tool: Mapping[str, Any]) -> bool:
    """Whether the client runs a tool itself; tools of Anthropic's servers (web search, code) are not available."""
    return tool.get("type") in (None, "custom") or "input_schema" in tool or known_tool(tool) is not None
