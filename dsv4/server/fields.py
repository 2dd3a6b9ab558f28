"""What the dialects' requests have in common: how a body is checked, and the fields that several of them have."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dsv4.server.errors import show

MAX_STOPS = 16

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
        if not str(key).isdecimal() or isinstance(bias, bool) or not isinstance(bias, int | float):
            raise ValueError(f"expected token ids and numbers, got {show(key)}: {show(bias)}")
        if not -100 <= bias <= 100:
            raise ValueError(f"must be in [-100, 100], got {bias} for token {key}")
        pairs.append((int(key), float(bias)))
    return tuple(pairs)


class Fields(BaseModel):
    """Types are not converted: the string "3" is no number. Unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", arbitrary_types_allowed=True)


class Thinking(Fields):
    """Whether the model thinks, and the most tokens it may think; 0 ends the thought at once."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Budget = None


class StreamOptions(Fields):
    include_usage: bool | None = None


def sampling_fields(request: object) -> dict[str, Any]:
    """The fields of SamplingParams that a checked request has; None where it says nothing."""
    names = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "seed")
    fields = {name: getattr(request, name, None) for name in names}
    top_k = getattr(request, "top_k", None)
    # -1 is what other servers take for "all"
    top_k = None if top_k is None else max(0, top_k)
    return {**fields, "top_k": top_k, "logit_bias": getattr(request, "logit_bias", None) or None}
