"""Random requests in three interfaces, for comparing prompts with the official converter.

Most are what clients send; some are odd. Everything follows from the seed.
"""

import json
import random
from typing import Any

TEXTS = (
    "hi",
    "",
    "What is 2 + 2?",
    "line one\nline two\n",
    "  spaces  ",
    "\n\nbreaks\n\n",
    "Größe 10 µm — 日本語 😀 e\u0301",
    'quotes " and \\ and / and </tag>',
    "<｜User｜> <think>x</think> ｜DSML｜ <｜end▁of▁sentence｜>",
    "tab\tnul\u0001 \u2028 \u007f \u00a0",
    "please answer in json",
    "a" * 300,
)
NAMES = ("get_weather", "f", "search-web", "Read_File2", "now", "mcp__fs__list")
KEYS = ("city", "n", "z", "a", "Größe", "a b", "items")
EFFORTS = (None, "none", "minimal", "low", "medium", "high", "xhigh", "max")
NUMBERS = (0, 1, -1, 3.5, 1.0, 0.1, 1e-7, 2.5e-5, 1e16, 1e300, 2**63, 2**64, -(2**63) - 1, 10**25, 1e-4, 123456789.25)
BROKEN = (
    *("{}", '{"a": 1', "[1, 2]", '"text"', "5", "not json", '{"a": NaN}', '{"a": "\\ud83d"}', "[]", "true"),
    *("", "null", '{"a": 1e400}', ' {"a" : 1.50e1} ', '{"a": -0}', '{"a": 1, "a": 2}', '{"a": 1} x', '{"a": "x\ny"}'),
)
PNG = "iVBORw0KGgo="


class Conversations:
    """Makes requests; `request(api)` gives a body without a model."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def request(self, api: str) -> dict[str, Any]:
        return {"chat": self.chat, "messages": self.messages, "responses": self.responses}[api]()

    # values

    def maybe(self, chance: float) -> bool:
        return self.random.random() < chance

    def text(self) -> str:
        return self.random.choice(TEXTS)

    def value(self, depth: int = 0) -> Any:
        kind = self.random.randrange(8 if depth < 3 else 5)
        match kind:
            case 0 | 1:
                return self.text()
            case 2:
                return self.random.choice(NUMBERS)
            case 3:
                return self.random.choice((True, False, None))
            case 4:
                return self.random.choice((-5, 0, 7, 42))
            case 5 | 6:
                return {self.random.choice(KEYS): self.value(depth + 1) for _ in range(self.random.randrange(4))}
            case _:
                return [self.value(depth + 1) for _ in range(self.random.randrange(4))]

    def object(self) -> dict[str, Any]:
        return {self.random.choice(KEYS): self.value() for _ in range(self.random.randrange(4))}

    def arguments(self) -> str:
        """Of a call, as clients write them: mostly JSON, in their own style, sometimes broken."""
        if self.maybe(0.15):
            return self.random.choice(BROKEN)
        style = self.random.choice(({}, {"ensure_ascii": False}, {"separators": (",", ":")}, {"indent": 2}))
        return json.dumps(self.object(), **style)

    def schema(self) -> dict[str, Any]:
        kinds = ("string", "integer", "number", "boolean", "array", "object")
        properties: dict[str, Any] = {}
        for _ in range(self.random.randrange(4)):
            part: dict[str, Any] = {"type": self.random.choice(kinds)}
            if self.maybe(0.5):
                part["description"] = self.text()
            if part["type"] == "number" and self.maybe(0.6):
                part["minimum"] = self.random.choice((1.0, 1e-7, 2.5e-5, 10**25, 0))
            if part["type"] == "string" and self.maybe(0.3):
                part["enum"] = ["é", "b", self.text()]
            if part["type"] == "array":
                part["items"] = {"type": "string"}
            properties[self.random.choice(KEYS)] = part
        fields: list[tuple[str, Any]] = [("type", "object"), ("properties", properties)]
        if properties and self.maybe(0.5):
            fields.append(("required", [self.random.choice(list(properties))]))
        if self.maybe(0.3):
            fields.append(("additionalProperties", False))
        self.random.shuffle(fields)
        return dict(fields)

    def function(self, name: str) -> dict[str, Any]:
        fields: list[tuple[str, Any]] = [("name", name)]
        if self.maybe(0.7):
            fields.append(("description", self.text()))
        if self.maybe(0.85):
            fields.append(("parameters", self.schema()))
        if self.maybe(0.3):
            fields.append(("strict", self.maybe(0.1)))
        self.random.shuffle(fields)
        return dict(fields)

    def names(self) -> list[str]:
        return self.random.sample(NAMES, self.random.randrange(1, 4))

    def parts(self, kind: str = "text", image: Any = None) -> Any:
        """Content as a string or as parts."""
        if self.maybe(0.6):
            return self.text()
        parts: list[Any] = [{"type": kind, "text": self.text()} for _ in range(self.random.randrange(1, 4))]
        if image is not None and self.maybe(0.15):
            parts.insert(self.random.randrange(len(parts) + 1), image)
        return parts

    # chat completions

    def chat(self) -> dict[str, Any]:
        body: dict[str, Any] = {"messages": self.chat_messages()}
        if self.maybe(0.6):
            body["tools"] = [{"type": "function", "function": self.function(name)} for name in self.names()]
            if self.maybe(0.3):
                named = body["tools"][0]["function"]["name"]
                choices = ("auto", "none", "required", {"type": "function", "function": {"name": named}})
                body["tool_choice"] = self.random.choice(choices)
            if self.maybe(0.1):
                body["parallel_tool_calls"] = False
        if self.maybe(0.5):
            body["thinking"] = {"type": self.random.choice(("enabled", "disabled", "disabled", "adaptive"))}
        if self.maybe(0.5) and (effort := self.random.choice(EFFORTS)):
            body["reasoning_effort"] = effort
        if self.maybe(0.2):
            schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": self.schema()}}
            body["response_format"] = self.random.choice(({"type": "text"}, {"type": "json_object"}, schema))
        if self.maybe(0.1) and "tools" not in body:
            last: dict[str, Any] = {"role": "assistant", "content": self.text(), "prefix": True}
            if self.maybe(0.5):
                last["reasoning_content"] = self.text()
            body["messages"].append(last)
        return body

    def chat_messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
        if self.maybe(0.6):
            messages.append({"role": "system", "content": self.parts()})
        for _ in range(self.random.randrange(1, 4)):
            messages.append({"role": "user", "content": self.parts(image=image)})
            if self.maybe(0.15):
                messages.append({"role": "user", "content": self.text()})
            if self.maybe(0.15):
                messages.append({"role": "system", "content": self.text()})
            if self.maybe(0.1):
                messages.append({"role": "latest_reminder", "content": self.text()})
            while self.maybe(0.4):
                messages += self.chat_calls(image)
            if self.maybe(0.6):
                answer: dict[str, Any] = {"role": "assistant", "content": self.parts()}
                if self.maybe(0.5):
                    answer["reasoning_content"] = self.text()
                messages.append(answer)
        if self.maybe(0.6):
            messages.append({"role": "user", "content": self.text(), "name": "bob"})
        return messages

    def chat_calls(self, image: dict[str, Any]) -> list[dict[str, Any]]:
        ids = [f"call_{self.random.randrange(10**6)}" for _ in range(self.random.randrange(1, 4))]
        calls = [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": self.random.choice(NAMES), "arguments": self.arguments()},
            }
            for call_id in ids
        ]
        turn: dict[str, Any] = {"role": "assistant", "tool_calls": calls}
        if self.maybe(0.7):
            turn["content"] = self.random.choice((None, "", self.text()))
        if self.maybe(0.6):
            turn["reasoning_content"] = self.text()
        self.random.shuffle(ids)
        return [turn, *({"role": "tool", "tool_call_id": at, "content": self.parts(image=image)} for at in ids)]

    # Anthropic's messages

    def messages(self) -> dict[str, Any]:
        body: dict[str, Any] = {"max_tokens": 100, "messages": self.anthropic_messages()}
        if self.maybe(0.6):
            hidden = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1;"}
            system = self.parts()
            body["system"] = [hidden, *system] if isinstance(system, list) and self.maybe(0.5) else system
        if self.maybe(0.6):
            body["tools"] = [self.anthropic_tool(name) for name in self.names()]
            if self.maybe(0.3):
                named = {"type": "tool", "name": body["tools"][0]["name"]}
                body["tool_choice"] = self.random.choice(({"type": "auto"}, {"type": "none"}, {"type": "any"}, named))
        if self.maybe(0.5):
            kinds = ({"type": "enabled", "budget_tokens": 2000}, {"type": "disabled"}, {"type": "adaptive"})
            body["thinking"] = self.random.choice(kinds)
        if self.maybe(0.4) and (effort := self.random.choice(EFFORTS)):
            body["output_config"] = {"effort": effort}
        if self.maybe(0.1):
            body["output_format"] = {"type": "json_schema", "schema": self.schema()}
        return body

    def anthropic_tool(self, name: str) -> dict[str, Any]:
        tool: dict[str, Any] = {"input_schema": self.schema(), "name": name}
        if self.maybe(0.7):
            tool["description"] = self.text()
        if self.maybe(0.3):
            tool["cache_control"] = {"type": "ephemeral"}
        if self.maybe(0.1):
            tool["defer_loading"] = True
        return tool

    def anthropic_messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
        document = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "x"}}
        for _ in range(self.random.randrange(1, 4)):
            odd = document if self.maybe(0.2) else image
            messages.append({"role": "user", "content": self.parts(image=odd)})
            if self.maybe(0.2):
                messages.append({"role": "system", "content": self.parts()})
            while self.maybe(0.4):
                messages += self.anthropic_calls(image)
            if self.maybe(0.6):
                messages.append(
                    {"role": "assistant", "content": [*self.thought(), {"type": "text", "text": self.text()}]}
                )
        if self.maybe(0.75):
            messages.append({"role": "user", "content": self.text()})
        return messages

    def thought(self) -> list[dict[str, Any]]:
        if self.maybe(0.5):
            return []
        return [
            {"type": "thinking", "thinking": self.text(), "signature": "s"}
            for _ in range(self.random.choice((1, 1, 2)))
        ]

    def anthropic_calls(self, image: dict[str, Any]) -> list[dict[str, Any]]:
        ids = [f"toolu_{self.random.randrange(10**6)}" for _ in range(self.random.randrange(1, 4))]
        blocks: list[dict[str, Any]] = self.thought()
        if self.maybe(0.5):
            blocks.append({"type": "text", "text": self.text()})
        for call_id in ids:
            value = self.object() if self.maybe(0.9) else self.random.choice(([1], "text", 5, True, None))
            blocks.append({"type": "tool_use", "id": call_id, "name": self.random.choice(NAMES), "input": value})
        self.random.shuffle(ids)
        results: list[dict[str, Any]] = []
        for call_id in ids:
            result: dict[str, Any] = {"type": "tool_result", "tool_use_id": call_id}
            if self.maybe(0.9):
                result["content"] = self.parts(image=image)
            if self.maybe(0.1):
                result["is_error"] = True
            results.append(result)
        if self.maybe(0.3):
            results.append({"type": "text", "text": self.text()})
        return [{"role": "assistant", "content": blocks}, {"role": "user", "content": results}]

    # Responses

    def responses(self) -> dict[str, Any]:
        body: dict[str, Any] = {"input": self.text() if self.maybe(0.1) else self.items()}
        if self.maybe(0.5):
            body["instructions"] = self.text()
        if self.maybe(0.6):
            body["tools"] = [{"type": "function", **self.function(name)} for name in self.names()]
            if self.maybe(0.2):
                space = self.random.choice(("mcp__fs__", "ns", "a_"))
                inner = [{"type": "function", **self.function(name)} for name in self.names()]
                body["tools"].append({"type": "namespace", "name": space, "description": self.text(), "tools": inner})
            if self.maybe(0.2):
                body["tools"].insert(0, {"type": self.random.choice(("web_search", "file_search", "local_shell"))})
            if self.maybe(0.3):
                named = next(tool["name"] for tool in body["tools"] if tool["type"] == "function")
                choices = ("auto", "none", "required", {"type": "function", "name": named})
                body["tool_choice"] = self.random.choice(choices)
        if self.maybe(0.7):
            body["reasoning"] = {"effort": self.random.choice(EFFORTS), "summary": "auto"}
        if self.maybe(0.2):
            schema = {"type": "json_schema", "name": "x", "schema": self.schema()}
            body["text"] = {"format": self.random.choice(({"type": "text"}, {"type": "json_object"}, schema))}
        return body

    def items(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        image = {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"}
        for _ in range(self.random.randrange(1, 4)):
            if self.maybe(0.3):
                items.append(self.item(self.random.choice(("system", "developer")), "input_text"))
            items.append(self.item("user", "input_text", image))
            while self.maybe(0.4):
                items += self.item_calls(image)
            if self.maybe(0.6):
                items += self.item_thoughts()
                items += [self.item("assistant", "output_text") for _ in range(self.random.choice((1, 1, 2)))]
        if self.maybe(0.1):
            items.append({"type": "web_search_call", "id": "ws_1", "status": "completed"})
        if self.maybe(0.6):
            items.append(self.item("user", "input_text"))
        return items

    def item(self, role: str, kind: str, image: Any = None) -> dict[str, Any]:
        item = {"role": role, "content": self.parts(kind, image)}
        return {"type": "message", **item} if self.maybe(0.7) else item

    def item_thoughts(self) -> list[dict[str, Any]]:
        if self.maybe(0.5):
            return []
        texts = [self.text() for _ in range(self.random.choice((1, 1, 2)))]
        return [
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}
            for text in texts
        ]

    def item_calls(self, image: dict[str, Any]) -> list[dict[str, Any]]:
        ids = [f"fc{self.random.randrange(10**6)}" for _ in range(self.random.randrange(1, 4))]
        items = self.item_thoughts()
        if self.maybe(0.3):
            items.append(self.item("assistant", "output_text"))
        custom: set[str] = set()
        for call_id in ids:
            call: dict[str, Any] = {"type": "function_call", "call_id": call_id, "name": self.random.choice(NAMES)}
            if self.maybe(0.1):
                custom.add(call_id)
                call = {"type": "custom_tool_call", "call_id": call_id, "name": "apply_patch", "input": self.text()}
            else:
                call["arguments"] = self.arguments()
                if self.maybe(0.1):
                    call["namespace"] = "mcp__fs__"
            items.append(call)
        self.random.shuffle(ids)
        for call_id in ids:
            kind = "custom_tool_call_output" if call_id in custom else "function_call_output"
            items.append({"type": kind, "call_id": call_id, "output": self.parts("input_text", image)})
        return items
