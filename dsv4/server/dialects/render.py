"""The prompt of a request as text: what the server would send to the model, without a model.

Users look for faults of prompts with it, and it is how equality with the official converter is checked.
"""

from collections.abc import Mapping
from typing import Any

from dsv4.encoding import Dialect, Tokenizer
from dsv4.server.dialects.chat.read import chat_ask
from dsv4.server.dialects.chat.request import parse_chat
from dsv4.server.dialects.messages.read import messages_ask
from dsv4.server.dialects.messages.request import parse_messages
from dsv4.server.dialects.prompt import encode, prompt_text
from dsv4.server.dialects.request import Ask
from dsv4.server.dialects.responses.read import responses_ask
from dsv4.server.dialects.responses.request import parse_responses, tools_of
from dsv4.server.wire.errors import ApiError, invalid, show

APIS = ("chat", "messages", "responses")


def ask_of(api: object, body: object, dialect: Dialect, model: str, key: str = "") -> Ask:
    """What the request `body` to the interface `api` asks; `model` answers if it names none. Raises ApiError 400."""
    match api:
        case "chat":
            chat = parse_chat(body)
            return chat_ask(chat, dialect, chat.model or model, key)
        case "messages":
            messages = parse_messages(body)
            return messages_ask(messages, dialect, messages.model or model, key)
        case "responses":
            request = parse_responses(body)
            return responses_ask(request, tools_of(request, dialect), dialect, request.model or model, key)
        case _:
            raise invalid("api", f"expected one of {', '.join(APIS)}, got {show(api)}")


def render_request(request: object, dialect: Dialect, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """`{"prompt": text}` of `{"api": ..., "body": ...}`, with the `tokens` it has for `tokenizer`, if there is one.

    Raises ApiError 400.
    """
    if not isinstance(request, Mapping):
        raise ApiError(400, f"expected an object with api and body, got {show(request)}", param="body")
    ask = ask_of(request.get("api"), request.get("body"), dialect, "")
    prompt = {"prompt": prompt_text(ask, dialect)}
    return prompt if tokenizer is None else {**prompt, "tokens": encode(ask, tokenizer)}
