"""Shared by the requests of all dialects: how a body is checked, and the fields that several dialects have."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeGuard, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from dsv4.encoding import Dialect
from dsv4.server.dialects.parts import Unsupported
from dsv4.server.dialects.request import AllowedTool, ToolChoice, effort_name, thinks
from dsv4.server.wire.errors import ApiError, from_validation, invalid, show

MAX_STOPS = 16
# entries that are checked at a time, while other threads wait
RUN = 1000
# digits of a token id in `logit_bias`
MOST_DIGITS = 20
# the names that a call can be written with: in its markup a quote, bracket or line break would end the name
TOOL_NAME = re.compile(r'[^"<>\x00-\x1f]{1,256}')

Budget = Annotated[int | None, Field(ge=0)]
Task = Literal["title", "query", "authority", "domain", "action", "read_url"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"]


def between(low: float, high: float, *, above: bool = False) -> AfterValidator:
    """A range check whose message shows the range; above: the lower end is outside."""

    def check(value: float | None) -> float | None:
        if value is not None and not (low < value <= high if above else low <= value <= high):
            raise ValueError(f"must be in {'(' if above else '['}{low}, {high}], got {value}")
        return value

    return AfterValidator(check)


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


def bias_pairs(value: object) -> object:
    """Pairs of a token id and the number that is added to its logit, from an object with ids as keys."""
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object of token ids and numbers, got {show(value)}")
    pairs: list[tuple[int, float]] = []
    for key, bias in value.items():
        token = str(key).isdecimal() and len(str(key)) <= MOST_DIGITS
        if not token or isinstance(bias, bool) or not isinstance(bias, int | float):
            raise ValueError(f"expected token ids and numbers, got {show(key)}: {show(bias)}")
        if not -100 <= bias <= 100:
            raise ValueError(f"must be in [-100, 100], got {bias} for token {key}")
        pairs.append((int(key), float(bias)))
    return tuple(pairs)


class Fields(BaseModel):
    """Base of all request models. Types are not converted (the string "3" is no number); unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", arbitrary_types_allowed=True)

    @classmethod
    def refuse(cls, body: Mapping[str, Any]) -> None:
        """Raise ApiError 400 for a field that would change the answer and is not supported."""


B = TypeVar("B", bound=Fields)


def json_object(body: object) -> Mapping[str, Any]:
    """`body`, which must be a JSON object. Raises ApiError 400 for any other value."""
    if not isinstance(body, Mapping):
        raise ApiError(400, f"body: expected a JSON object, got {show(body)}", param="body")
    return body


def token_ids_fit(value: object, vocab_size: int) -> TypeGuard[list[int]]:
    """Whether `value` is a list of ids of a vocabulary."""
    return isinstance(value, list) and all(type(token) is int and 0 <= token < vocab_size for token in value)


def checked(model: type[B], body: object) -> B:
    """A decoded body as `model` describes it. Raises ApiError 400 naming the first wrong field."""
    fields = json_object(body)
    model.refuse(fields)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error) from error


def in_runs(model: type[Fields]) -> Callable[[object], object]:
    """A check of a long list in parts, so that other threads can run between them. An invalid entry is left to the
    check of the whole list, whose error names its index."""
    runs = TypeAdapter(list[model])  # type: ignore[valid-type]

    def check(value: object) -> object:
        if not isinstance(value, list):
            return value
        checked: list[Any] = []
        for at in range(0, len(value), RUN):
            run = value[at : at + RUN]
            try:
                checked += runs.validate_python(run)
            except ValidationError:
                return [*checked, *run]
        return checked

    return check


class Thinking(Fields):
    """Whether the model thinks (None = not given), and the largest number of reasoning tokens; 0 ends the reasoning at
    once."""

    type: Literal["enabled", "disabled", "adaptive"] | None = None
    budget_tokens: Budget = None


def _thinking_object(value: object) -> object:
    """`thinking` as an object; some clients send a boolean."""
    return {"type": "enabled" if value else "disabled"} if isinstance(value, bool) else value


class Reasoning(Fields):
    """The effort in the form of the Responses interface; some gateways use it in the other dialects too."""

    effort: Effort | None = None
    enabled: bool | None = None
    summary: Any = None


class TemplateOptions(Fields):
    """The switches of thinking that other servers have."""

    thinking: bool | None = None
    enable_thinking: bool | None = None
    reasoning_effort: Effort | None = None


class Switches(Fields):
    """The fields that switch thinking: every dialect accepts every form of them. Also the fields that all dialects
    share."""

    thinking: Annotated[Thinking | None, BeforeValidator(_thinking_object)] = None
    thinking_budget: Budget = None
    enable_thinking: bool | None = None
    reasoning_effort: Effort | None = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: TemplateOptions | None = None
    task: Task | None = None
    ignore_eos: bool | None = None
    unsupported: Unsupported | None = None

    @property
    def thinking_kind(self) -> str | None:
        """`enabled`, `disabled` or `adaptive`; None if the request sets none of these fields."""
        if self.thinking is not None and self.thinking.type is not None:
            return self.thinking.type
        options = self.chat_template_kwargs or TemplateOptions()
        reasoning = self.reasoning or Reasoning()
        given = (self.enable_thinking, options.thinking, options.enable_thinking, reasoning.enabled)
        chosen = next((value for value in given if value is not None), None)
        return None if chosen is None else "enabled" if chosen else "disabled"

    @property
    def effort(self) -> str | None:
        """The effort, from the first of its forms that is given."""
        options = self.chat_template_kwargs or TemplateOptions()
        inner = self.reasoning.effort if self.reasoning else None
        return self.reasoning_effort or inner or options.reasoning_effort

    @property
    def budget(self) -> int | None:
        """The largest number of reasoning tokens."""
        inner = self.thinking.budget_tokens if self.thinking else None
        return self.thinking_budget if self.thinking_budget is not None else inner


CHOICES: dict[str, Literal["auto", "none", "required"]] = {
    "auto": "auto",
    "none": "none",
    "required": "required",
    "any": "required",
}


def choice_of(value: Any) -> ToolChoice:
    """A tool choice in any form of any dialect; null is auto. Raises ValueError, or ApiError 400 for a wrong field of
    `allowed_tools`."""
    choice = value if isinstance(value, ToolChoice) else _choice(value)
    single = isinstance(value, Mapping) and value.get("disable_parallel_tool_use") is True
    return replace(choice, single=True) if single else choice


def _choice(value: Any) -> ToolChoice:
    match value:
        case None:
            return ToolChoice()
        case str() | {"type": "auto" | "none" | "required" | "any"}:
            word = value if isinstance(value, str) else value["type"]
            if word in CHOICES:
                return ToolChoice(CHOICES[word])
        case {"type": "function", "function": {"name": str(name)}} | {"type": "custom", "custom": {"name": str(name)}}:
            return ToolChoice("required", name)
        case {"type": "function" | "custom" | "tool", "name": str(name)}:
            return ToolChoice("required", name, value.get("namespace"))
        case {"type": "allowed_tools", "allowed_tools": fields}:
            return _allowed(fields, "tool_choice.allowed_tools")
        case {"type": "allowed_tools"}:
            return _allowed(value, "tool_choice")
    raise ValueError(f"expected 'none', 'auto', 'required', a function by name or allowed_tools, got {show(value)}")


def _allowed(fields: Any, place: str) -> ToolChoice:
    """A choice among some of the tools. Raises ApiError 400."""
    if not isinstance(fields, Mapping):
        raise invalid(place, f"expected an object with mode and tools, got {show(fields)}")
    mode, tools = fields.get("mode"), fields.get("tools")
    if mode not in ("auto", "required"):
        raise invalid(f"{place}.mode", f"expected 'auto' or 'required', got {show(mode)}")
    if not isinstance(tools, list) or not tools:
        raise invalid(f"{place}.tools", f"expected a list of at least one tool, got {show(tools)}")
    found = [_allowed_tool(tool, f"{place}.tools[{index}]") for index, tool in enumerate(tools)]
    return ToolChoice(mode, allowed=tuple(tool for tool in found if tool is not None))


def _allowed_tool(tool: Any, place: str) -> AllowedTool | None:
    """A function by name; None for a tool that would run on the server, as such tools are left out of the prompt."""
    match tool:
        case {"function": {"name": str(name)}}:
            return AllowedTool(name, place=f"{place}.function.name")
        case {"custom": {"name": str(name)}}:
            return AllowedTool(name, place=f"{place}.custom.name")
        case {"type": "function" | "custom", "name": str(name)}:
            return AllowedTool(name, tool.get("namespace"), f"{place}.name")
        case {"type": str(kind)} if kind not in ("function", "custom"):
            return None
    raise invalid(place, f"expected a function by name, got {show(tool)}")


def check_choice(choice: ToolChoice, names: Sequence[str], field: str = "tool_choice") -> None:
    """Raise ApiError 400 for functions that there are not, and for a required call that is impossible."""
    known = frozenset(names)
    for tool in choice.allowed or ():
        if tool.name not in known:
            raise invalid(tool.place, f"no function is named {show(tool.name)}")
    if choice.mode != "required":
        return
    if not names:
        raise invalid("tool_choice", "a call is required, but there are no tools")
    if choice.allowed == ():
        raise invalid("tool_choice", "a call is required, but no function is allowed")
    if choice.name is not None and choice.name not in known:
        raise invalid(field, f"no function is named {show(choice.name)}")


def check_tool_names(names: Sequence[object], places: Sequence[str]) -> None:
    """Raise ApiError 400 for a name that a call cannot be written with, or that occurs twice; places: of the names."""
    seen: set[str] = set()
    for name, place in zip(names, places, strict=True):
        if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
            text = f"must be a string of 1 to 256 characters without quotes, brackets < > and breaks, got {show(name)}"
            raise invalid(place, text)
        if name in seen:
            raise invalid(place, f"function names must be unique, got {show(name)} twice")
        seen.add(name)


def function_object(name: str, description: object, parameters: object) -> dict[str, Any]:
    """A function in the form of the prompt: these three keys in this order."""
    text = description if isinstance(description, str) else ""
    return {"name": name, "description": text, "parameters": {} if parameters is None else parameters}


def arguments_text(value: object) -> str:
    """Arguments of an earlier call as JSON text; "{}" for missing, empty and null ones."""
    if value is None or (isinstance(value, str) and value.strip() in ("", "null")):
        return "{}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class StreamOptions(Fields):
    include_usage: bool | None = None


class SamplingFields(Fields):
    """The fields that chat and text completions share: for sampling, and for the form of the answer."""

    model: str | None = None
    temperature: Annotated[float | None, between(0, 2)] = None
    top_p: Annotated[float | None, between(0, 1, above=True)] = None
    top_k: Annotated[int | None, Field(ge=-1)] = None
    min_p: Annotated[float | None, between(0, 1)] = None
    presence_penalty: Annotated[float | None, between(-2, 2)] = None
    frequency_penalty: Annotated[float | None, between(-2, 2)] = None
    seed: int | None = None
    logit_bias: Annotated[tuple[tuple[int, float], ...], BeforeValidator(bias_pairs)] = ()
    stop: Annotated[list[str], BeforeValidator(stop_list)] = Field(default_factory=list)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Any = None
    user_id: Any = None

    @property
    def wants_usage(self) -> bool:
        """Whether each chunk of a stream has a field for usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_stream(self) -> None:
        """Raise ApiError 400 for options of a stream without a stream."""
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "only allowed with stream: true")


def common_fields(
    request: Switches, model: str, key: str, dialect: Dialect, effort: str | None = None
) -> dict[str, Any]:
    """The fields of GenerationRequest that every chat dialect reads in the same way. effort: one that goes before those
    of `request`."""
    effort = effort or request.effort
    thinking = thinks(model, effort, request.thinking_kind)
    return {
        "model": model,
        "key": key,
        "thinking": thinking,
        "effort": effort_name(effort, dialect) if thinking else None,
        "budget": request.budget,
        "task": request.task,
        "ignore_eos": bool(request.ignore_eos),
    }


def sampling_fields(request: object) -> dict[str, Any]:
    """The fields of SamplingParams in a checked request; None for a field that is not given."""
    names = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "seed")
    fields = {name: getattr(request, name, None) for name in names}
    top_k = getattr(request, "top_k", None)
    # other servers use -1 for "all"
    top_k = None if top_k is None else max(0, top_k)
    return {**fields, "top_k": top_k, "logit_bias": getattr(request, "logit_bias", None) or None}
