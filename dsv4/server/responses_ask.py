"""From a checked Responses request to an `Ask`: items become messages of the encoding."""

import json
from collections.abc import Mapping
from typing import Any

from dsv4.encoding import Dialect
from dsv4.server.ask import Ask, effort_name, thinks
from dsv4.server.errors import invalid, show
from dsv4.server.responses_request import ResponsesRequest, Tool, choice_of_responses, prompt_name
from dsv4.server.safety import owner_name

TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text")


def responses_ask(request: ResponsesRequest, tools: Mapping[str, Tool], dialect: Dialect, model: str, key: str) -> Ask:
    """What `request` asks of `model`. Raises ApiError 400 for an item that cannot be taken."""
    effort = request.reasoning.effort if request.reasoning else None
    thinking = thinks(model, effort, None)
    messages = _Messages(request)
    if not messages.list or (messages.list[-1]["role"] == "assistant" and request.task is None):
        raise invalid("input", "the last item must not be the assistant's: there is nothing to answer")
    return Ask(
        model=model,
        messages=messages.list,
        functions=[tool.function for tool in tools.values()],
        choice=choice_of_responses(request.tool_choice, tools),
        parallel=request.parallel_tool_calls is not False,
        strict=any(tool.strict for tool in tools.values()),
        thinking=thinking,
        effort=effort_name(effort, dialect) if thinking else None,
        budget=request.thinking_budget,
        task=request.task,
        limit=request.max_output_tokens,
        sampling={"temperature": request.temperature, "top_p": request.top_p},
        logprobs=request.wants_logprobs,
        top_logprobs=request.top_logprobs or 0,
        schema=request.schema_wanted,
        show_schema=request.schema_wanted != {"type": "object"},
        owner=owner_name(key, request.user, request.safety_identifier),
        key=key,
    )


class _Messages:
    """Builds `list` item by item. The items of one assistant turn become one message."""

    def __init__(self, request: ResponsesRequest) -> None:
        self.list: list[dict[str, Any]] = []
        if request.instructions:
            self.list.append({"role": "system", "content": request.instructions})
        if isinstance(request.input, str):
            self.list.append({"role": "user", "content": request.input})
            return
        for index, item in enumerate(request.input):
            self._add(item, f"input[{index}]")

    def _add(self, item: Mapping[str, Any], place: str) -> None:
        match item.get("type", "message"):
            case "message":
                self._message(item, place)
            case "reasoning":
                text = _text(item.get("content"), f"{place}.content")
                if text:
                    turn = self._assistant(new=True)
                    turn["reasoning_content"] = turn.get("reasoning_content", "") + text
            case "function_call":
                self._call(item, str(item.get("arguments") or "{}"))
            case "custom_tool_call":
                self._call(item, json.dumps({"input": str(item.get("input", ""))}, ensure_ascii=False))
            case "function_call_output" | "custom_tool_call_output":
                self._output(str(item.get("call_id", "")), _text(item.get("output"), f"{place}.output"))
            case _:
                pass  # web searches and the like, which ran elsewhere

    def _message(self, item: Mapping[str, Any], place: str) -> None:
        text = _text(item.get("content"), f"{place}.content")
        match item.get("role"):
            case "assistant":
                self._assistant()["content"] += text
            case "user":
                self.list.append({"role": "user", "content": text})
            case "system" | "developer":
                self.list.append({"role": "system", "content": text})
            case role:
                raise invalid(f"{place}.role", f"expected user, assistant, system or developer, got {show(role)}")

    def _assistant(self, *, new: bool = False) -> dict[str, Any]:
        """The assistant message that is being put together. new: it must hold nothing but reasoning yet."""
        last = self.list[-1] if self.list else {"role": ""}
        if last["role"] != "assistant" or (new and (last["content"] or "tool_calls" in last)):
            self.list.append({"role": "assistant", "content": ""})
        return self.list[-1]

    def _call(self, item: Mapping[str, Any], arguments: str) -> None:
        name = prompt_name(str(item.get("name", "")), item.get("namespace"))
        call = {"id": str(item.get("call_id", "")), "type": "function"}
        function = {"name": name, "arguments": arguments}
        self._assistant().setdefault("tool_calls", []).append({**call, "function": function})

    def _output(self, call_id: str, text: str) -> None:
        """Results stand right behind their call: clients put messages of their own in between."""
        at = len(self.list)
        for index, message in enumerate(self.list):
            if any(call["id"] == call_id for call in message.get("tool_calls", ())):
                at = index + 1
        while at < len(self.list) and self.list[at]["role"] == "tool":
            at += 1
        self.list.insert(at, {"role": "tool", "tool_call_id": call_id, "content": text})


def _text(content: object, place: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise invalid(place, f"expected a string or a list of parts, got {show(content)}")
    texts: list[str] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else part
        if kind == "refusal":
            texts.append(str(part.get("refusal", "")))
        elif kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise invalid(f"{place}[{index}]", f"this model reads text only, got a part of type {show(kind)}")
        else:
            texts.append(part["text"])
    return "\n\n".join(texts)
