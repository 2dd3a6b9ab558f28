"""Dialogues over HTTP through the two SDKs people use."""

import json
from collections.abc import Sequence
from typing import Any

import anthropic
import openai

from dsv4.posttraining.types import Effort
from dsv4.verify.answer import Call
from recipes.nano.grading.dialogue import LIMITS, Message, Turn, request_parts

MODEL = "nano"
TIMEOUT = 3600.0  # seconds; a prompt of a million tokens takes minutes on a CPU


def switches(effort: Effort) -> dict[str, Any]:
    """The fields of a request that choose the reasoning mode."""
    if effort is Effort.NON_THINK:
        return {"thinking": {"type": "disabled"}}
    return {"thinking": {"type": "enabled"}, "reasoning_effort": "max" if effort is Effort.MAX else "high"}


class OpenAIDialogue:
    """Chat completions. messages: what was said before; a `task` of the last one (quick instructions) and tools of the
    first one go where the interface has them."""

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        effort: Effort,
        messages: Sequence[Message] = (),
        *,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> None:
        self._client, self._effort = client, effort
        self._options: dict[str, Any] = {"temperature": temperature, "max_tokens": LIMITS[effort]}
        if seed is not None:
            self._options["seed"] = seed
        self._body = switches(effort)
        self._messages, tools, task = request_parts(messages)
        if tools:
            self._options["tools"] = tools
        if task:
            self._body["task"] = task

    def say(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})

    async def answer(self) -> Turn:
        reply = await self._client.chat.completions.create(
            model=MODEL,
            messages=self._messages,  # type: ignore[arg-type]
            extra_body=self._body,
            **self._options,
        )
        choice, usage = reply.choices[0], reply.usage
        message = choice.message.model_dump(exclude_none=True)
        self._messages.append(message)
        calls = tuple(
            Call(call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls") or ()
        )
        return Turn(
            message.get("content") or "",
            message.get("reasoning_content") or "",
            calls,
            0 if usage is None else usage.completion_tokens,
            choice.finish_reason == "length",
        )

    def results(self, results: Sequence[tuple[Call, str]]) -> None:
        self._messages += [{"role": "tool", "tool_call_id": call.id, "content": text} for call, text in results]


class AnthropicDialogue:
    """Messages. tools: OpenAI tool objects, which become Anthropic's."""

    def __init__(
        self, client: anthropic.AsyncAnthropic, effort: Effort, *, system: str = "", tools: Sequence[Message] = ()
    ) -> None:
        self._client = client
        self._options: dict[str, Any] = {"max_tokens": LIMITS[effort]}
        self._body = switches(effort) | {"temperature": 0.0}  # its SDK has no argument for it any more
        if system:
            self._options["system"] = system
        if tools:
            self._options["tools"] = [_anthropic_tool(tool["function"]) for tool in tools]
        self._messages: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})

    async def answer(self) -> Turn:
        reply = await self._client.messages.create(
            model=MODEL,
            messages=self._messages,  # type: ignore[arg-type]
            extra_body=self._body,
            **self._options,
        )
        blocks = [block.model_dump(exclude_none=True) for block in reply.content]
        self._messages.append({"role": "assistant", "content": blocks})
        calls = [Call(b["id"], b["name"], json.dumps(b["input"])) for b in blocks if b["type"] == "tool_use"]
        return Turn(
            "".join(block["text"] for block in blocks if block["type"] == "text"),
            "".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
            tuple(calls),
            reply.usage.output_tokens,
            reply.stop_reason == "max_tokens",
        )

    def results(self, results: Sequence[tuple[Call, str]]) -> None:
        blocks = [{"type": "tool_result", "tool_use_id": call.id, "content": text} for call, text in results]
        self._messages.append({"role": "user", "content": blocks})


def _anthropic_tool(function: Message) -> dict[str, Any]:
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    return {"name": function["name"], "description": function.get("description", ""), "input_schema": schema}
