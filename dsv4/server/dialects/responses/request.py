"""The fields of a request to the Responses interface, and its tools.

Informative fields and tools that would run on the server are ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from dsv4.encoding import V4, Dialect
from dsv4.server.dialects.chat.request import MAX_TOP_LOGPROBS
from dsv4.server.dialects.fields import (
    Fields,
    Switches,
    between,
    check_choice,
    check_tool_names,
    checked,
    choice_of,
    function_object,
)
from dsv4.server.dialects.request import ToolChoice
from dsv4.server.wire.errors import invalid, naming_field, show

LOGPROBS = "message.output_text.logprobs"
SEALED = "reasoning.encrypted_content"
LOCAL_SHELL = "local_shell"
NO_STORE = "responses are not stored; send the whole conversation as input, or start the server with --store DIR"
# field -> the reason for refusing any value but null and false
REFUSED = {
    "conversation": "conversations are not stored; send the whole conversation as input",
    "prompt": "prompts are not stored; send the text itself as instructions and input",
    "background": "not supported; leave it out or send false",
}


@dataclass(frozen=True, slots=True)
class PromptTool:
    """A tool in the form of the prompt. name: unique in the prompt; own: the client's name, within `namespace`.

    custom: its input is one text instead of an object.
    """

    name: str
    own: str
    function: dict[str, Any]
    namespace: str | None = None
    custom: bool = False
    strict: bool = False


def input_items(value: object) -> object:
    """Input as a string or a list of items; nulls in the list are skipped."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"expected a string or a list of items, got {show(value)}")
    for index, item in enumerate(value):
        if item is not None and not isinstance(item, dict):
            raise ValueError(f"item {index}: expected an object, got {show(item)}")
    items = [item for item in value if item is not None]
    if not items:
        raise ValueError("must not be empty")
    return items


class TextFormat(Fields):
    type: Literal["text", "json_object", "json_schema"]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """The schema that the answer must follow, None for plain text."""
        return {"text": None, "json_object": {"type": "object"}, "json_schema": self.schema_}[self.type]


class TextOptions(Fields):
    format: TextFormat | None = None
    verbosity: Any = None


class ResponsesRequest(Switches):
    """The body of a request, checked. Build it with `parse_responses`."""

    input: Annotated[str | list[dict[str, Any]], PlainValidator(input_items)]
    model: str | None = None
    instructions: str | None = None
    stream: bool | None = None
    temperature: Annotated[float | None, between(0, 2)] = None
    top_p: Annotated[float | None, between(0, 1, above=True)] = None
    max_output_tokens: Annotated[int | None, Field(ge=1)] = None
    top_logprobs: Annotated[int | None, between(0, MAX_TOP_LOGPROBS)] = None
    include: list[str] | None = None
    store: bool | None = None
    previous_response_id: Annotated[str | None, Field(max_length=256)] = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    metadata: Any = None
    user: Any = None
    safety_identifier: Any = None

    @classmethod
    def refuse(cls, body: Mapping[str, Any]) -> None:
        for name, why in REFUSED.items():
            if body.get(name):
                raise invalid(name, why)

    @property
    def seals_reasoning(self) -> bool:
        """Whether the client wants sealed reasoning, which it sends back in later requests."""
        return SEALED in (self.include or ()) or self.store is False

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    @property
    def format(self) -> TextFormat:
        """The form of the answer's text."""
        return (self.text.format if self.text else None) or TextFormat(type="text")


def parse_responses(body: object) -> ResponsesRequest:
    """Check a decoded body. Raises ApiError 400 naming the first wrong field."""
    request = checked(ResponsesRequest, body)
    if request.format.type == "json_schema" and request.format.schema_ is None:
        raise invalid("text.format.schema", "required with type json_schema")
    return request


def tools_of(request: ResponsesRequest, dialect: Dialect = V4) -> dict[str, PromptTool]:
    """The tools by their names in the prompt. Names of tools in a namespace contain its name; tools of the server are
    left out.

    Raises ApiError 400.
    """
    found: list[tuple[PromptTool | None, str]] = []
    for index, fields in enumerate(request.tools or ()):
        place = f"tools[{index}]"
        if fields.get("type") == "namespace":
            inner = [part for part in fields.get("tools") or () if isinstance(part, dict)]
            places = [f"{place}.tools[{at}]" for at in range(len(inner))]
            found += [(_tool(part, where, fields, dialect), where) for part, where in zip(inner, places, strict=True)]
        else:
            found.append((_tool(fields, place, None, dialect), place))
    tools = [(tool, place) for tool, place in found if tool is not None]
    check_tool_names([tool.name for tool, _ in tools], [place for _, place in tools])
    return {tool.name: tool for tool, _ in tools}


def prompt_name(name: str, namespace: object, dialect: Dialect) -> str:
    """The name in the prompt of a tool in a namespace."""
    if not isinstance(namespace, str) or not namespace:
        return name
    separator = dialect.namespace_separator
    joined = separator == "__" and (namespace.endswith("_") or name.startswith("_"))
    return f"{namespace}{name}" if joined else f"{namespace}{separator}{name}"


def choice_of_responses(value: Any, tools: Mapping[str, PromptTool], dialect: Dialect = V4) -> ToolChoice:
    """A tool choice in any of its forms. Raises ApiError 400."""
    with naming_field("tool_choice"):
        choice = choice_of(value)
    if choice.name is not None:
        choice = replace(choice, name=prompt_name(choice.name, choice.namespace, dialect))
    if choice.allowed is not None:
        named = (replace(tool, name=prompt_name(tool.name, tool.namespace, dialect)) for tool in choice.allowed)
        choice = replace(choice, allowed=tuple(named))
    check_choice(choice, list(tools))
    return choice


def _tool(
    fields: Mapping[str, Any], place: str, space: Mapping[str, Any] | None, dialect: Dialect
) -> PromptTool | None:
    kind, name = fields.get("type"), fields.get("name")
    if kind not in ("function", "custom"):
        return None
    if not isinstance(name, str) or not name:
        raise invalid(f"{place}.name", f"must be a string, got {show(name)}")
    namespace = None if space is None else str(space.get("name", ""))
    seen = prompt_name(name, namespace, dialect)
    description = fields.get("description")
    if dialect.system and space is not None and space.get("description"):
        description = f"{space['description']}\n{description or ''}"
    if kind == "custom":
        text = {"type": "string", "description": _custom_text(fields.get("format"))}
        schema: Any = {"type": "object", "properties": {"input": text}, "required": ["input"]}
        return PromptTool(seen, name, function_object(seen, description, schema), namespace, custom=True)
    schema = fields.get("parameters")
    if schema is not None and not isinstance(schema, dict):
        raise invalid(f"{place}.parameters", f"must be an object, got {show(schema)}")
    function = function_object(seen, description, schema)
    return PromptTool(seen, name, function, namespace, strict=fields.get("strict") is True)


def _custom_text(form: Any) -> str:
    """The description of a custom tool's text; a grammar is shown to the model and not enforced."""
    text = "The whole input of the tool, as plain text."
    match form:
        case {"type": "grammar", "definition": str(definition)}:
            return f"{text} It follows this {form.get('syntax', 'lark')} grammar:\n{definition}"
        case _:
            return text
