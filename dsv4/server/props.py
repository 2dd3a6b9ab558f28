"""What `/props` tells: the loaded model and what this server can do with it. The chat page asks it at its start."""

from typing import Any

from dsv4.server.backend import Backend
from dsv4.server.backend.models import ALIASES, MAX_OUTPUT_TOKENS, THINK_MAX_CONTEXT
from dsv4.server.dialects.choices import MOST_CHOICES
from dsv4.server.dialects.fields import MAX_STOPS
from dsv4.server.dialects.request import (
    DEFAULT_TOKENS,
    DEFAULT_TOKENS_MAX_EFFORT,
    DEFAULT_TOKENS_THINKING,
    supported_efforts,
)
from dsv4.server.guard.sizes import MOST_TOOLS
from dsv4.server.storage.history import MOST_BYTES, MOST_CONVERSATIONS, MOST_DOCUMENT_BYTES


def described(backend: Backend) -> dict[str, Any]:
    """The description as a JSON object. `facts` has what the engine adds, such as the mode of its numerics."""
    settings, context, dialect = backend.settings, backend.generator.context_length, backend.tokenizer.dialect
    efforts = supported_efforts(dialect)
    return {
        "model": backend.model_name,
        "aliases": list(ALIASES),
        **backend.facts,
        "context_length": context,
        "vocab_size": backend.tokenizer.vocab_size,
        "chat_template": dialect.name,
        "input_modalities": ["text"],
        "output_modalities": ["text"],
        "example_prompts": list(backend.defaults.example_prompts),
        "effort": {
            "supported_levels": list(efforts),
            "default_level": "high",
            "max_recommended_context": THINK_MAX_CONTEXT,
        },
        "sampling": {
            "temperature": backend.defaults.temperature,
            "top_p": backend.defaults.top_p,
            "fixed_while_thinking": not settings.free_sampling,
        },
        "features": {
            "tools": True,
            "json_schema": True,
            "history": backend.history is not None,
            "stored_responses": backend.responses is not None,
        },
        "limits": {
            "output_tokens": min(MAX_OUTPUT_TOKENS, context),
            "default_output_tokens": {
                "not_thinking": DEFAULT_TOKENS,
                "thinking": DEFAULT_TOKENS_THINKING,
                "max_effort": DEFAULT_TOKENS_MAX_EFFORT,
            },
            "body_bytes": backend.bodies.most,
            "requests": settings.max_requests,
            "choices": MOST_CHOICES,
            "stop_strings": MAX_STOPS,
            "tools": MOST_TOOLS,
            "history": {
                "conversations": MOST_CONVERSATIONS,
                "conversation_bytes": MOST_DOCUMENT_BYTES,
                "bytes": MOST_BYTES,
            },
        },
        "key_needed": bool(settings.keys),
    }
