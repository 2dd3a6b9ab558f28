"""What a request to the Responses interface may say, and the tools it may bring.

Nothing is stored: what refers to an earlier response is refused. Fields that only inform are ignored, and so are tools
that would run on the server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from dsv4.server.ask import ToolChoice
from dsv4.server.errors import ApiError, from_validation, invalid, show
from dsv4.server.fields import Budget, Effort, Fields, Task, between
from dsv4.server.openai_request import MAX_TOP_LOGPROBS, check_choice

LOGPROBS = "message.output_text.logprobs"
# field -> why a value that is not null or false is refused
REFUSED = {
    "previous_response_id": "responses are not stored; send the whole conversation as input",
    "conversation": "conversations are not stored; send the whole conversation as input",
    "background": "not supported; leave it out or send false",
}


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as the model sees it. name: unique in the prompt; own: what the client calls it, within `namespace`.

    custom: takes one text instead of an object.
    """

    name: str
    own: str
    function: dict[str, Any]
    namespace: str | None = None
    custom: bool = False
    strict: bool = False


class Reasoning(Fields):
    effort: Effort | None = None
    summary: Any = None


class TextFormat(Fields):
    type: Literal["text", "json_object", "json_schema"]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class TextOptions(Fields):
    format: TextFormat | None = None
    verbosity: Any = None


class ResponsesRequest(Fields):
    """The body of a request, checked. Build it with `parse_responses`."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    stream: bool | None = None
    temperature: Annotated[float | None, between(0, 2)] = None
    top_p: Annotated[float | None, between(0, 1, above=True)] = None
    max_output_tokens: Annotated[int | None, Field(ge=1)] = None
    top_logprobs: Annotated[int | None, between(0, MAX_TOP_LOGPROBS)] = None
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    thinking_budget: Budget = None
    task: Task | None = None
    text: TextOptions | None = None
    metadata: Any = None
    user: Any = None
    safety_identifier: Any = None

    @field_validator("input", mode="after")
    @classmethod
    def _some_input(cls, value: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        if not value:
            raise ValueError("must not be empty")
        return value

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """The schema an answer must follow, None for plain text."""
        format_ = self.text.format if self.text else None
        if format_ is None or format_.type == "text":
            return None
        return {"type": "object"} if format_.type == "json_object" else format_.schema_


def parse_responses(body: object) -> ResponsesRequest:
    """Check a decoded body. Raises ApiError 400 naming the first wrong field."""
    if not isinstance(body, Mapping):
        raise ApiError(400, f"body: expected a JSON object, got {show(body)}", param="body")
    for name, why in REFUSED.items():
        if body.get(name):
            raise invalid(name, why)
    try:
        request = ResponsesRequest.model_validate(body)
    except ValidationError as error:
        raise from_validation(error) from error
    format_ = request.text.format if request.text else None
    if format_ is not None and format_.type == "json_schema" and format_.schema_ is None:
        raise invalid("text.format.schema", "required with type json_schema")
    return request


def tools_of(request: ResponsesRequest) -> dict[str, Tool]:
    """The tools by the name the model sees. Those of a namespace carry its name; those of the server are left out.

    Raises ApiError 400.
    """
    tools: dict[str, Tool] = {}
    for index, fields in enumerate(request.tools or ()):
        place = f"tools[{index}]"
        if fields.get("type") == "namespace":
            own = str(fields.get("name", ""))
            found = [_tool(part, f"{place}.tools", own) for part in fields.get("tools") or () if isinstance(part, dict)]
        else:
            found = [_tool(fields, place, None)]
        for tool in found:
            if tool is None:
                continue
            if tool.name in tools:
                raise invalid(place, f"function names must be unique, got {show(tool.name)} twice")
            tools[tool.name] = tool
    return tools


def prompt_name(name: str, namespace: str | None) -> str:
    """How the model sees a tool of a namespace."""
    return name if not namespace else f"{namespace.removesuffix('__')}__{name}"


def choice_of_responses(value: Any, tools: Mapping[str, Tool]) -> ToolChoice:
    """A tool choice in any of its forms. Raises ApiError 400."""
    match value:
        case None:
            return ToolChoice()
        case "auto" | "none" | "required":
            choice = ToolChoice(value)
        case {"type": "function" | "custom", "name": str(name)}:
            choice = ToolChoice("required", prompt_name(name, value.get("namespace")))
        case _:
            raise invalid("tool_choice", f"expected none, auto, required or a function by name, got {show(value)}")
    check_choice(choice, list(tools))
    return choice


def _tool(fields: Mapping[str, Any], place: str, namespace: str | None) -> Tool | None:
    kind, name = fields.get("type"), fields.get("name")
    if kind not in ("function", "custom"):
        return None
    if not isinstance(name, str) or not name:
        raise invalid(f"{place}.name", f"must be a string, got {show(name)}")
    seen = prompt_name(name, namespace)
    function: dict[str, Any] = {"name": seen}
    if isinstance(fields.get("description"), str):
        function["description"] = fields["description"]
    if kind == "custom":
        text = {"type": "string", "description": _custom_text(fields.get("format"))}
        schema: Any = {"type": "object", "properties": {"input": text}, "required": ["input"]}
        return Tool(seen, name, {**function, "parameters": schema}, namespace, custom=True)
    schema = fields.get("parameters")
    if schema is not None and not isinstance(schema, dict):
        raise invalid(f"{place}.parameters", f"must be an object, got {show(schema)}")
    function["parameters"] = schema or {"type": "object", "properties": {}}
    return Tool(seen, name, function, namespace, strict=fields.get("strict") is True)


def _custom_text(form: Any) -> str:
    """What the model is told about the text of a custom tool; a grammar is shown to it, not enforced."""
    text = "The whole input of the tool, as plain text."
    match form:
        case {"type": "grammar", "definition": str(definition)}:
            return f"{text} It follows this {form.get('syntax', 'lark')} grammar:\n{definition}"
        case _:
            return text
