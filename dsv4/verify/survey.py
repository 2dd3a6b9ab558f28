"""What an endpoint can do, found by asking it: its model, log-probabilities, token ids, and how it shows prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsv4.verify.answer import Answer
from dsv4.verify.endpoint import Endpoint, RefusedError, Reply, error_text

# both switches of thinking that are in use: the official one, and that of vLLM, SGLang and llama.cpp
QUIET: dict[str, Any] = {
    "thinking": {"type": "disabled"},
    "chat_template_kwargs": {"thinking": False, "enable_thinking": False},
}
GREEDY: dict[str, Any] = {"temperature": 0, "seed": 1}


def thinking(effort: str = "high") -> dict[str, Any]:
    """The fields that ask for reasoning."""
    kwargs = {"thinking": True, "enable_thinking": True, "reasoning_effort": effort}
    return {"thinking": {"type": "enabled"}, "reasoning_effort": effort, "chat_template_kwargs": kwargs}


def separate(salt: str) -> dict[str, Any]:
    """The fields that keep a request away from cached prefixes of other salts, in the spellings of the official service
    and dsv4, and of vLLM. Others ignore them."""
    return {"user": salt, "cache_salt": salt}


def user(text: str) -> list[dict[str, Any]]:
    """A conversation of one turn."""
    return [{"role": "user", "content": text}]


@dataclass(frozen=True, slots=True)
class Abilities:
    """logprobs: chat completions tell alternatives. ids: text completions take and tell token ids. completions: there
    are text completions with log-probabilities. continues: a last assistant message is continued. renders: the route
    that shows prompts as text, "" = none. tokenizes: there is a route that turns text into ids. dialect: what the
    endpoint says of its prompt format. context: tokens, None = unknown."""

    model: str
    logprobs: bool
    ids: bool
    completions: bool
    continues: bool
    renders: str
    tokenizes: bool
    dialect: str
    context: int | None

    def told(self) -> dict[str, str]:
        """For a report."""
        return {
            "log-probabilities of chat": _yes(self.logprobs),
            "text completions with log-probabilities": _yes(self.completions),
            "text completions with token ids": _yes(self.ids),
            "continues a last assistant message": _yes(self.continues),
            "shows prompts": self.renders or "no",
            "turns text into ids": _yes(self.tokenizes),
            "prompt format": self.dialect or "not told",
            "context": "not told" if self.context is None else f"{self.context:,} tokens",
        }


def survey(endpoint: Endpoint) -> Abilities:
    """Ask the endpoint what it can do, and set its `model` if it has none. Raises UnreachableError, and RefusedError
    where it does not answer a plain chat completion."""
    context, template = named(endpoint)
    hello = {"messages": user("Say hello."), "max_tokens": 4, **GREEDY, **QUIET}
    plain = endpoint.chat(hello)
    scored = _answer(endpoint, "chat", {**hello, "logprobs": True, "top_logprobs": 2})
    ids = tokenized(endpoint, "one two three")
    text = {"prompt": "one two three", "max_tokens": 2, "logprobs": 2, **GREEDY}
    known = _answer(endpoint, "completion", {**text, "prompt": ids, "return_token_ids": True}) if ids else None
    written = _answer(endpoint, "completion", text)
    return Abilities(
        endpoint.model,
        bool(scored and scored.tokens and scored.tokens[0].top),
        bool(known and known.ids and known.tokens),
        bool(written and written.tokens),
        _continues(endpoint, plain),
        _renders(endpoint),
        bool(ids),
        template if len(template) < 20 else "",
        context,
    )


def list_models(endpoint: Endpoint) -> list[dict[str, Any]]:
    """The models that an endpoint lists; the first one becomes its `model` if it has none. Raises UnreachableError."""
    listed = endpoint.get("/v1/models").value
    entries = listed.get("data") if isinstance(listed, dict) else None
    models = [entry for entry in entries or () if isinstance(entry, dict)]
    if not endpoint.model and models:
        endpoint.model = str(models[0].get("id") or "")
    return models


def named(endpoint: Endpoint) -> tuple[int | None, str]:
    """What an endpoint tells without being asked for an answer: its context in tokens, and the name of a dialect or
    the text of a template. Sets its `model` if it has none. Raises UnreachableError."""
    models = list_models(endpoint)
    props = endpoint.get("/props").value
    facts: Mapping[str, Any] = props if isinstance(props, Mapping) else {}
    length = facts.get("context_length") or next((m.get("max_model_len") for m in models if m.get("id")), None)
    return length if isinstance(length, int) else None, str(facts.get("chat_template") or "")


def continued(messages: Sequence[Mapping[str, Any]], text: str) -> dict[str, Any]:
    """The fields of a chat completion that goes on with `text`, in the spellings of the official service and dsv4
    (prefix) and of vLLM and SGLang (continue_final_message). llama.cpp needs none."""
    last = {"role": "assistant", "content": text, "prefix": True}
    return {"messages": [*messages, last], "continue_final_message": True, "add_generation_prompt": False}


def tokenized(endpoint: Endpoint, text: str) -> list[int]:
    """The ids of a text without special ones; none if the endpoint has no such route."""
    reply = endpoint.post("/tokenize", {"prompt": text, "content": text, "add_special_tokens": False})
    return _ids(reply)


def prompt_ids(endpoint: Endpoint, body: Mapping[str, Any]) -> list[int]:
    """The ids of the prompt of a chat request; none if the endpoint does not tell."""
    return _ids(endpoint.post("/tokenize", {"model": endpoint.model, **body}))


def id_text(endpoint: Endpoint, ids: Sequence[int]) -> str:
    """The text of ids, control tokens included; "" if the endpoint does not tell."""
    reply = endpoint.post("/detokenize", {"model": endpoint.model, "tokens": [*ids]})
    return _prompt_text(reply)


def _ids(reply: Reply) -> list[int]:
    tokens = reply.value.get("tokens") if reply.status == 200 and isinstance(reply.value, dict) else None
    return tokens if isinstance(tokens, list) and all(isinstance(token, int) for token in tokens) else []


def _answer(endpoint: Endpoint, kind: str, body: Mapping[str, Any]) -> Answer | None:
    """An answer; None if the endpoint cannot give it."""
    try:
        return endpoint.chat(body) if kind == "chat" else endpoint.completion(body)
    except RefusedError:
        return None


def _continues(endpoint: Endpoint, plain: Answer) -> bool:
    """Whether the prompt grows by the words of a last assistant message alone: a server that does not continue adds a
    new header, or refuses."""
    few, many = (
        _answer(endpoint, "chat", {**continued(user("Count."), text), "max_tokens": 1, **GREEDY, **QUIET})
        for text in ("1 2", "1 2 3 4 5 6")
    )
    if few is None or many is None:
        return False
    fresh = _answer(endpoint, "chat", {"messages": user("Count."), "max_tokens": 1, **GREEDY, **QUIET})
    counts = [answer.count("prompt_tokens") for answer in (fresh, few, many) if answer]
    if len(counts) < 3 or None in counts:
        return False
    none, two, six = (count or 0 for count in counts)
    # a closed message adds an end token, a header and more; "1 2" is at most four tokens in any vocabulary
    return none < two < six and two - none <= 4 and plain.finish is not None


def _renders(endpoint: Endpoint) -> str:
    """The first route that shows the prompt of a chat request."""
    for route in ROUTES:
        if shown_prompt(endpoint, route, {"messages": user("Hi.")}):
            return route
    return ""


ROUTES = ("/render", "/apply-template", "/detokenize")


def shown_prompt(endpoint: Endpoint, route: str, body: Mapping[str, Any]) -> str:
    """The prompt of a chat request as the route shows it; "" if it does not. Raises RefusedError if it refuses this
    one. /detokenize: the text of the ids that /tokenize tells for the conversation."""
    match route:
        case "/render":
            reply = endpoint.post(route, {"api": "chat", "body": body})
        case "/apply-template":
            reply = endpoint.post(route, body)
        case _:
            ids = prompt_ids(endpoint, body)
            reply = endpoint.post(route, {"model": endpoint.model, "tokens": ids}) if ids else Reply(404, None)
    if reply.status >= 500:
        raise RefusedError(reply.status, error_text(reply.value), endpoint.command(route, body))
    return _prompt_text(reply)


def _prompt_text(reply: Reply) -> str:
    value = reply.value if reply.status == 200 and isinstance(reply.value, dict) else {}
    return next((value[name] for name in ("prompt", "content") if isinstance(value.get(name), str)), "")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
