"""The planted faults, each with the name by which `dsv4 verify` must tell it."""

import json
from typing import Any

from tests.verify.broken import Fault, finish_of, message_of, seen_before, usage_of, wrong_first


def _think_in_content(message: dict[str, Any]) -> None:
    if thought := message.pop("reasoning_content", None):
        message["content"] = f"{thought}</think>{message['content']}"


def _without_thirds(chunk: dict[str, Any]) -> dict[str, Any]:
    """Text of tokens that end in e never arrives."""
    for choice in chunk.get("choices", ()):
        if (choice.get("delta", {}).get("content") or "").endswith("e"):
            choice["delta"]["content"] = ""
    return chunk


def _one_more(usage: dict[str, Any]) -> None:
    usage["total_tokens"] += 1


def _counts_twice(usage: dict[str, Any]) -> None:
    usage["completion_tokens"] *= 2
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]


def _weaker(body: dict[str, Any]) -> dict[str, Any]:
    body.get("chat_template_kwargs", {}).pop("reasoning_effort", None)
    return {**body, "reasoning_effort": "high"} if body.get("reasoning_effort") == "max" else body


def _without(*names: str) -> Any:
    return lambda body: {name: value for name, value in body.items() if name not in names}


def _markup(message: dict[str, Any]) -> None:
    """A call that was not recognised: its block is text."""
    for call in message.pop("tool_calls", ()):
        message["content"] += f'<｜DSML｜tool_calls><｜DSML｜invoke name="{call["function"]["name"]}">'


def _calls_of(change: Any) -> Any:
    """A change of each call of a message."""

    def changed(message: dict[str, Any]) -> None:
        for call in message.get("tool_calls", ()):
            change(call)

    return message_of(changed)


def _all_text(call: dict[str, Any]) -> None:
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in arguments(call).items()}
    call["function"]["arguments"] = json.dumps(values)


def _cut(call: dict[str, Any]) -> None:
    call["function"]["arguments"] = call["function"]["arguments"][:-1]


def _renamed(call: dict[str, Any]) -> None:
    call["function"]["name"] = f"functions.{call['function']['name']}"


def _nameless(call: dict[str, Any]) -> None:
    call["id"] = ""


def arguments(call: dict[str, Any]) -> dict[str, Any]:
    return json.loads(call["function"]["arguments"])


def _one_system(body: dict[str, Any]) -> dict[str, Any]:
    """Only the last system message reaches the prompt."""
    inner = body.get("body", body)
    messages = inner.get("messages")
    if isinstance(messages, list):
        systems = [m for m in messages if m.get("role") == "system"][:-1]
        inner["messages"] = [m for m in messages if m not in systems]
    return body


def _spaced(value: dict[str, Any]) -> dict[str, Any]:
    """A template with a space too many."""
    if "prompt" in value:
        value["prompt"] = value["prompt"].replace("<｜Assistant｜>", "<｜Assistant｜> ")
    return value


FAULTS = [
    Fault("lengths of 3 modulo 4", "lengths.prefill-differs", wrong_first(lambda _, p: len(p) % 4 == 3)),
    Fault("lengths of 0 modulo 128", "lengths.prefill-differs", wrong_first(lambda _, p: len(p) % 128 == 0)),
    Fault("a prompt that is cached", "lengths.prefix-hit-differs", wrong_first(seen_before())),
    Fault("under load", "batches.batch-differs", wrong_first(lambda s, _: s.generator.running > 6, at=2)),
    Fault("a stream with holes", "batches.stream-differs", chunk=_without_thirds),
    Fault("a stream without its end", "surface.answer-form", ends=False),
    Fault("a sum of usage", "surface.usage-sum", whole=usage_of(_one_more)),
    Fault("tokens counted twice", "surface.usage-count", whole=usage_of(_counts_twice)),
    Fault("length told as stop", "surface.finish-reason", whole=finish_of("length", "stop")),
    Fault("stop strings ignored", "surface.stop-string", request=_without("stop")),
    Fault("reasoning in the content", "surface.markup-leak", whole=message_of(_think_in_content)),
    Fault("effort ignored", "surface.effort-ignored", request=_weaker),
    Fault("JSON format ignored", "surface.json-format", request=_without("response_format")),
    Fault("mistakes are failures", "surface.error-status", status=lambda status: 500 if status == 400 else status),
    Fault("blocks of calls as text", "calls.markup-leak", whole=message_of(_markup)),
    Fault("every argument is text", "calls.argument-types", whole=_calls_of(_all_text)),
    Fault("arguments cut off", "calls.arguments-json", whole=_calls_of(_cut)),
    Fault("names of no tool", "calls.unknown-tool", whole=_calls_of(_renamed)),
    Fault("calls without ids", "calls.call-ids", whole=_calls_of(_nameless)),
    Fault("calls told as stop", "calls.finish-reason", whole=finish_of("tool_calls", "stop")),
    Fault("another template", "rendering.prompt-text", whole=_spaced),
    Fault("system messages lost", "rendering.prompt-count", request=_one_system),
    Fault("other tokens than recorded", "fixtures.bound-first-token", wrong_first(lambda _, p: len(p) % 2 == 0)),
]
