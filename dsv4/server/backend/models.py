"""The names a model answers to, and its entry in the list of models."""

from datetime import UTC, datetime
from typing import Any

from dsv4.server.wire.errors import ApiError, show

# model names in the configuration of clients of the official service; the last two also set the default of thinking
NOT_THINKING = "deepseek-chat"
THINKING = "deepseek-reasoner"
ALIASES = ("deepseek-v4-flash", "deepseek-v4-pro", "deepseek-flash", NOT_THINKING, THINKING)
# the official service has retired these names
DEPRECATED = (NOT_THINKING, THINKING)
RETIRED = "@1784908740"  # 2026-07-24 15:59 UTC as RFC 9745 writes it
FOREIGN = "claude-"
MAX_OUTPUT_TOKENS = 393_216
# the context the report recommends for the highest effort
THINK_MAX_CONTEXT = 393_216


def check_model(requested: str, served: str, *, any_name: bool = False) -> None:
    """Raise ApiError 404, which lists the known names, unless `requested` is the served model or one of its aliases.

    Names that begin with `claude-` are aliases, because Claude Code requests several models. A suffix such as `[1m]` is
    ignored. any_name: accept every name.
    """
    name = requested.split("[")[0]
    if any_name or name in (served, *ALIASES) or requested == served or name.startswith(FOREIGN):
        return
    known = ", ".join((served, *ALIASES))
    raise ApiError(
        404,
        f"model: {show(requested)} does not exist; this server has {known}",
        param="model",
        code="model_not_found",
    )


def model_entry(
    name: str,
    served: str,
    *,
    created: int,
    context_length: int,
    efforts: tuple[str, ...],
    example_prompts: tuple[str, ...] = (),
) -> dict[str, Any]:
    """One entry of `GET /models`, in the official form with OpenAI's `created` and the fields of Anthropic's interface,
    whose clients read the same route. The field `alias_of` is the served model for an alias, and null for the served
    model itself; `example_prompts` is there where the model has some."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "dsv4",
        "name": name,
        "context_window": context_length,
        "max_output_tokens": min(MAX_OUTPUT_TOKENS, context_length),
        "input_modalities": ["text"],
        "output_modalities": ["text"],
        "effort": {"supported_levels": list(efforts), "default_level": "high"},
        "api_capabilities": {"anthropic_messages": {"system_prompt_update": "in-history"}},
        "alias_of": None if name == served else served,
        "deprecated": name in DEPRECATED,
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "max_input_tokens": context_length,
        "max_tokens": min(MAX_OUTPUT_TOKENS, context_length),
        "lifecycle": "deprecated" if name in DEPRECATED else "active",
        **({"example_prompts": list(example_prompts)} if example_prompts else {}),
    }
