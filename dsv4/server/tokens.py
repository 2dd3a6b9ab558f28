"""Text to token ids and back, for clients that count or cache prompts themselves."""

from collections.abc import Mapping
from typing import Any

from dsv4.server.backend import Backend
from dsv4.server.dialects.chat.read import chat_ask
from dsv4.server.dialects.chat.request import parse_chat
from dsv4.server.dialects.prompt import encode
from dsv4.server.dialects.render import render_request
from dsv4.server.guard.sizes import check_sizes
from dsv4.server.wire.errors import ApiError, invalid, show


def token_ids(body: object, backend: Backend, key: str) -> dict[str, Any]:
    """The ids of `prompt` (plain text) or of a chat request as it would be answered to `key`. Raises ApiError 400."""
    fields = _mapping(body)
    tokenizer = backend.tokenizer
    if "messages" in fields:
        request = parse_chat(fields)
        ask = chat_ask(request, tokenizer.dialect, backend.model_name, key)
        ids = encode(ask, tokenizer)
    else:
        text = fields.get("prompt", fields.get("content"))
        if not isinstance(text, str):
            raise invalid("prompt", f"expected a string (or messages), got {show(text)}")
        ids = _encode_text(backend, text, fields.get("add_special_tokens") is True)
    return {"count": len(ids), "max_model_len": backend.generator.context_length, "tokens": ids}


def rendered_text(body: object, backend: Backend, key: str) -> dict[str, Any]:
    """The prompt that the request `{"api", "body"}` becomes; with `"tokens": true` its ids too. Raises ApiError 400."""
    tokenizer = backend.tokenizer
    fields = _mapping(body)
    check_sizes(fields.get("body"), backend.generator.context_length, tokenizer.vocab_size)
    wants_ids = fields.get("tokens") is True
    return render_request(fields, tokenizer.dialect, tokenizer if wants_ids else None)


def token_text(body: object, backend: Backend, key: str) -> dict[str, Any]:
    """The text of `tokens`, the same for every `key`. Raises ApiError 400."""
    tokens = _mapping(body).get("tokens")
    size = backend.tokenizer.vocab_size
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < size for token in tokens):
        raise invalid("tokens", f"expected a list of token ids in [0, {size})")
    return {"prompt": backend.tokenizer.decode(tokens)}


def _encode_text(backend: Backend, text: str, special: bool) -> list[int]:
    try:
        ids = backend.tokenizer.encode_text(text)
    except ValueError as error:
        raise invalid("prompt", str(error)) from error
    return [backend.tokenizer.bos_id, *ids] if special else ids


def _mapping(body: object) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise ApiError(400, f"body: expected a JSON object, got {show(body)}", param="body")
    return body
