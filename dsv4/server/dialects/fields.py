"""What the dialects' requests have in common: how a body is checked, and the fields that several of them have."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from dsv4.server.dialects.parts import Unsupported
from dsv4.server.dialects.request import ToolChoice
from dsv4.server.wire.errors import ApiError, from_validation, invalid, show

MAX_STOPS = 16
# entries that are checked without another thread's turn
RUN = 1000
# of a token id
MOST_DIGITS = 20
# what a call can be written with: no quote, bracket or line break ends a name there
TOOL_NAME = re.compile(r'[^"<>\x00-\x1f]{1,256}')

Budget = Annotated[int | None, Field(ge=0)]
Task = Literal["title", "query", "authority", "domain", "action", "read_url"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"]


def between(low: float, high: float, *, above: bool = False) -> AfterValidator:
    """A range check whose message shows the range; `above` leaves out the lower end."""

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
    """Token ids (as text) and what is added to their logits, as pairs."""
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
    """Types are not converted: the string "3" is no number. Unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", arbitrary_types_allowed=True)

    @classmethod
    def refuse(cls, body: Mapping[str, Any]) -> None:
        """Raise ApiError 400 for a field that would change the answer and is not supported."""


B = TypeVar("B", bound=Fields)


def json_object(body: object) -> Mapping[str, Any]:
    """A decoded body that is a JSON object. Raises ApiError 400 for any other."""
    if not isinstance(body, Mapping):
        raise ApiError(400, f"body: expected a JSON object, got {show(body)}", param="body")
    return body


def checked(model: type[B], body: object) -> B:
    """A decoded body as `model` describes it. Raises ApiError 400 naming the first wrong field."""
    fields = json_object(body)
    model.refuse(fields)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error) from error


def in_runs(model: type[Fields]) -> Callable[[object], object]:
    """Checks a long list run by run: checking all of it at once would keep every other thread waiting. What is wrong
    in a run is left for the check of the whole, which knows where it stands."""
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
    """Whether the model thinks (None: it is not said), and the most tokens it may think; 0 ends the thought at once."""

    type: Literal["enabled", "disabled", "adaptive"] | None = None
    budget_tokens: Budget = None


def _thinking_object(value: object) -> object:
    """`thinking: true` means what it says."""
    return {"type": "enabled" if value else "disabled"} if isinstance(value, bool) else value


class Reasoning(Fields):
    """The effort as the Responses interface nests it; some gateways send it to the others too."""

    effort: Effort | None = None
    enabled: bool | None = None
    summary: Any = None


class TemplateOptions(Fields):
    """What users of other servers switch thinking with."""

    thinking: bool | None = None
    enable_thinking: bool | None = None
    reasoning_effort: Effort | None = None


class Switches(Fields):
    """How thinking is asked for: every interface takes every spelling. Also what all of them have in common."""

    thinking: Annotated[Thinking | None, BeforeValidator(_thinking_object)] = None
    thinking_budget: Budget = None
    enable_thinking: bool | None = None
    reasoning_effort: Effort | None = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: TemplateOptions | None = None
    task: Task | None = None
    unsupported: Unsupported | None = None

    @property
    def thinking_kind(self) -> str | None:
        """`enabled`, `disabled` or `adaptive`; None if the request does not say."""
        if self.thinking is not None and self.thinking.type is not None:
            return self.thinking.type
        options = self.chat_template_kwargs or TemplateOptions()
        reasoning = self.reasoning or Reasoning()
        said = (self.enable_thinking, options.thinking, options.enable_thinking, reasoning.enabled)
        chosen = next((value for value in said if value is not None), None)
        return None if chosen is None else "enabled" if chosen else "disabled"

    @property
    def effort(self) -> str | None:
        """The effort in the first of its spellings that is there."""
        options = self.chat_template_kwargs or TemplateOptions()
        inner = self.reasoning.effort if self.reasoning else None
        return self.reasoning_effort or inner or options.reasoning_effort

    @property
    def budget(self) -> int | None:
        """The most tokens of reasoning."""
        inner = self.thinking.budget_tokens if self.thinking else None
        return self.thinking_budget if self.thinking_budget is not None else inner


CHOICES: dict[str, Literal["auto", "none", "required"]] = {
    "auto": "auto",
    "none": "none",
    "required": "required",
    "any": "required",
}


def choice_of(value: Any) -> ToolChoice:
    """A tool choice in any spelling of any interface; null is auto. Raises ValueError."""
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
        case {"type": "allowed_tools"}:
            return _allowed(value.get("allowed_tools", value))
    raise ValueError(f"expected 'none', 'auto', 'required' or a function by name, got {show(value)}")


def _allowed(value: Any) -> ToolChoice:
    """A choice among some of the tools: only of one can it be enforced."""
    mode, tools = (value.get("mode"), value.get("tools")) if isinstance(value, Mapping) else (None, None)
    if mode == "required" and isinstance(tools, list) and len(tools) == 1 and isinstance(tools[0], Mapping):
        return choice_of({"type": "function", **tools[0]})
    raise ValueError("allowed_tools: only one tool with mode 'required' can be enforced; leave the others out of tools")


def check_choice(choice: ToolChoice, names: Sequence[str], field: str = "tool_choice") -> None:
    """Raise a 400 for a call that is required but cannot be made."""
    if choice.mode != "required":
        return
    if not names:
        raise invalid("tool_choice", "a call is required, but there are no tools")
    if choice.name is not None and choice.name not in names:
        raise invalid(field, f"no function is named {show(choice.name)}")


def check_tool_names(names: Sequence[object], places: Sequence[str]) -> None:
    """Raise a 400 for a name that a call cannot be written with, or one that stands twice; places: of the names."""
    seen: set[str] = set()
    for name, place in zip(names, places, strict=True):
        if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
            text = f"must be a string of 1 to 256 characters without quotes, brackets < > and breaks, got {show(name)}"
            raise invalid(place, text)
        if name in seen:
            raise invalid(place, f"function names must be unique, got {show(name)} twice")
        seen.add(name)


def function_object(name: str, description: object, parameters: object) -> dict[str, Any]:
    """A function as the model is shown it: these three keys, in this order."""
    text = description if isinstance(description, str) else ""
    return {"name": name, "description": text, "parameters": {} if parameters is None else parameters}


def arguments_text(value: object) -> str:
    """Arguments of an earlier call as JSON text. Missing, empty and null ones are those of a call without any."""
    if value is None or (isinstance(value, str) and value.strip() in ("", "null")):
        return "{}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class StreamOptions(Fields):
    include_usage: bool | None = None


class SamplingFields(Fields):
    """What chat and text completions have in common: how to sample, and how to send the answer."""

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
        """Raise a 400 for options of a stream without one."""
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "only allowed with stream: true")


def sampling_fields(request: object) -> dict[str, Any]:
    """The fields of SamplingParams that a checked request has; None where it says nothing."""
    names = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "seed")
    fields = {name: getattr(request, name, None) for name in names}
    top_k = getattr(request, "top_k", None)
    # -1 is what other servers take for "all"
    top_k = None if top_k is None else max(0, top_k)
    return {**fields, "top_k": top_k, "logit_bias": getattr(request, "logit_bias", None) or None}
