"""The names a model answers to, and its entry in the list of models."""

from typing import Any

from dsv4.server.errors import ApiError, show

# what clients of the official service have in their configuration; the last two fix the default of thinking
ALIASES = ("deepseek-v4-flash", "deepseek-v4-pro", "deepseek-flash", "deepseek-chat", "deepseek-reasoner")
NOT_THINKING = "deepseek-chat"
MAX_OUTPUT_TOKENS = 393_216


def check_model(requested: str, served: str) -> None:
    """Raise a 404 that lists what exists, unless `requested` is the served model or an alias of it."""
    if requested != served and requested not in ALIASES:
        known = ", ".join((served, *ALIASES))
        raise ApiError(
            404,
            f"model: {show(requested)} does not exist; this server has {known}",
            param="model",
            code="model_not_found",
        )


def model_entry(name: str, *, created: int, context_length: int, efforts: tuple[str, ...]) -> dict[str, Any]:
    """One entry of `GET /models`, in the official form with OpenAI's `created`."""
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
    }
