"""Requests that render a prompt, count or return its tokens, and turn token ids into text; none generates an answer.

`render_request` needs no model: users inspect prompts with it, and tests compare its prompts with the official
converter's.
"""

from collections.abc import Mapping
from typing import Any

from dsv4.encoding import Dialect, Tokenizer
from dsv4.server.backend import Backend
from dsv4.server.backend.models import check_model
from dsv4.server.dialects.chat.read import read_chat
from dsv4.server.dialects.chat.request import parse_chat
from dsv4.server.dialects.fields import json_object, token_ids_fit
from dsv4.server.dialects.messages.context_editing import edit_context
from dsv4.server.dialects.messages.read import read_messages
from dsv4.server.dialects.messages.request import parse_messages
from dsv4.server.dialects.prompt import encode, prompt_text
from dsv4.server.dialects.request import GenerationRequest
from dsv4.server.dialects.responses.read import read_responses
from dsv4.server.dialects.responses.request import parse_responses, tools_of
from dsv4.server.dialects.responses.stored import resolved
from dsv4.server.guard.sizes import check_sizes
from dsv4.server.wire.errors import ApiError, invalid, naming_field, show

APIS = ("chat", "messages", "responses")


def generation_request(
    api: object, body: object, dialect: Dialect, model: str, key: str = "", backend: Backend | None = None
) -> GenerationRequest:
    """The `GenerationRequest` of a `body` for the interface `api`; model: for a body that names none. Without a
    `backend` no context is edited and nothing is stored. Raises ApiError 400."""
    match api:
        case "chat":
            chat = parse_chat(body)
            return read_chat(chat, dialect, chat.model or model, key)
        case "messages":
            messages = parse_messages(body)
            wanted = read_messages(messages, dialect, messages.model or model, key)
            if backend is None:
                return wanted
            return edit_context(wanted, messages.context_management, backend.tokenizer).request
        case "responses":
            request = resolved(parse_responses(body), backend.responses if backend else None, key).request
            return read_responses(request, tools_of(request, dialect), dialect, request.model or model, key)
        case _:
            raise invalid("api", f"expected one of {', '.join(APIS)}, got {show(api)}")


def render_request(
    request: object,
    dialect: Dialect,
    tokenizer: Tokenizer | None = None,
    *,
    backend: Backend | None = None,
    key: str = "",
) -> dict[str, Any]:
    """`{"prompt": text}` of `{"api": ..., "body": ...}`, with the ids as `tokens` if a tokenizer is given. backend and
    key as in `generation_request`.

    Raises ApiError 400.
    """
    if not isinstance(request, Mapping):
        raise ApiError(400, f"expected an object with api and body, got {show(request)}", param="body")
    wanted = generation_request(request.get("api"), request.get("body"), dialect, "", key, backend)
    prompt = {"prompt": prompt_text(wanted, dialect)}
    return prompt if tokenizer is None else {**prompt, "tokens": encode(wanted, tokenizer)}


def count_messages(body: object, backend: Backend, key: str) -> dict[str, Any]:
    """The length of a message request's prompt in tokens, after context editing and before it. Raises ApiError."""
    request, tokenizer = parse_messages(body), backend.tokenizer
    wanted = read_messages(request, tokenizer.dialect, request.model or backend.model_name, key)
    edited = edit_context(wanted, request.context_management, tokenizer)
    count = {"input_tokens": _prompt_length(edited.request, backend)}
    if request.context_management is None:
        return count
    original = count["input_tokens"] if edited.original is None else edited.original
    return {**count, "context_management": {"original_input_tokens": original}}


def count_responses(body: object, backend: Backend, key: str) -> dict[str, Any]:
    """The length of a Responses request's prompt in tokens. Raises ApiError."""
    wanted = generation_request("responses", body, backend.tokenizer.dialect, backend.model_name, key, backend)
    return {"object": "response.input_tokens", "input_tokens": _prompt_length(wanted, backend)}


def token_ids(body: object, backend: Backend, key: str) -> dict[str, Any]:
    """The ids of `prompt` (plain text), or of the prompt of a chat request; with `"tokens": false` only their count.
    Raises ApiError 400."""
    fields = json_object(body)
    tokenizer = backend.tokenizer
    if "messages" in fields:
        ids = encode(generation_request("chat", fields, tokenizer.dialect, backend.model_name, key), tokenizer)
    else:
        text = fields.get("prompt", fields.get("content"))
        if not isinstance(text, str):
            raise invalid("prompt", f"expected a string (or messages), got {show(text)}")
        ids = _encode_text(backend, text, fields.get("add_special_tokens") is True)
    counts = {"count": len(ids), "max_model_len": backend.generator.context_length}
    return counts if fields.get("tokens") is False else {**counts, "tokens": ids}


def rendered_text(body: object, backend: Backend, key: str) -> dict[str, Any]:
    """The prompt of the request `{"api", "body"}`, with `"tokens": true` also its ids. Raises ApiError 400."""
    tokenizer = backend.tokenizer
    fields = json_object(body)
    check_sizes(fields.get("body"), backend.generator.context_length, tokenizer.vocab_size)
    wants_ids = fields.get("tokens") is True
    return render_request(fields, tokenizer.dialect, tokenizer if wants_ids else None, backend=backend, key=key)


def token_text(body: object, backend: Backend, key: str) -> dict[str, Any]:
    """The text of `tokens`. Raises ApiError 400."""
    tokens = json_object(body).get("tokens")
    size = backend.tokenizer.vocab_size
    if not token_ids_fit(tokens, size):
        raise invalid("tokens", f"expected a list of token ids in [0, {size})")
    return {"prompt": backend.tokenizer.decode(tokens)}


def _prompt_length(wanted: GenerationRequest, backend: Backend) -> int:
    check_model(wanted.model, backend.model_name, any_name=backend.settings.any_model)
    return len(encode(wanted, backend.tokenizer, backend.replays))


def _encode_text(backend: Backend, text: str, special: bool) -> list[int]:
    with naming_field("prompt"):
        ids = backend.tokenizer.encode_text(text)
    return [backend.tokenizer.bos_id, *ids] if special else ids
