"""Servers with one planted fault each: in the model's tokens, in what requests become, or in what is sent back."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsv4.generation import SamplingParams
from tests.verify.pretend import PretendServer

Change = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Fault:
    """found: the name by which verify must tell it, with its check. script: makes a broken script of a server. request:
    changes bodies; whole, chunk: change answers and events; status: changes the HTTP status. lost: text of the stream
    that never arrives."""

    name: str
    found: str
    script: Callable[[PretendServer], Any] | None = None
    request: Change | None = None
    whole: Change | None = None
    chunk: Change | None = None
    status: Callable[[int], int] | None = None
    ends: bool = True


def plant(server: PretendServer, fault: Fault) -> None:
    """Break the server."""
    if fault.script is not None:
        server.script = fault.script(server)
    server.app = BrokenApp(server.app, fault)


class BrokenApp:
    """ASGI: the application, whose requests and responses are changed."""

    def __init__(self, app: Any, fault: Fault) -> None:
        self.app, self.fault = app, fault

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        data = b""
        while True:
            message = await receive()
            data += message.get("body", b"")
            if not message.get("more_body"):
                break
        body = self._asked(data)
        scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"content-length"]}
        scope["headers"].append((b"content-length", str(len(body)).encode()))
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return given.pop() if given else await receive()

        sent = _Sent(self.fault, send)
        await self.app(scope, replay, sent.take)
        await sent.finish()

    def _asked(self, data: bytes) -> bytes:
        if self.fault.request is None:
            return data
        try:
            return json.dumps(self.fault.request(json.loads(data))).encode()
        except ValueError:
            return data


class _Sent:
    """The response, held back until it is whole."""

    def __init__(self, fault: Fault, send: Any) -> None:
        self.fault, self.send, self.start, self.data = fault, send, {}, b""

    async def take(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.start = message
        else:
            self.data += message.get("body", b"")

    async def finish(self) -> None:
        headers = [pair for pair in self.start["headers"] if pair[0] != b"content-length"]
        streamed = any(b"event-stream" in value for _, value in headers)
        status = self.start["status"]
        data = self.data
        if status == 200 and streamed:
            data = self._events(data)
        elif status == 200 and self.fault.whole is not None:
            data = json.dumps(self.fault.whole(json.loads(data))).encode()
        status = self.fault.status(status) if self.fault.status else status
        headers.append((b"content-length", str(len(data)).encode()))
        await self.send({**self.start, "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": data})

    def _events(self, data: bytes) -> bytes:
        out = b""
        for event in data.split(b"\n\n"):
            if event == b"data: [DONE]" and not self.fault.ends:
                continue
            if event.startswith(b"data: {") and self.fault.chunk is not None:
                changed = self.fault.chunk(json.loads(event[6:]))
                event = b"data: " + json.dumps(changed).encode()
            out += event + b"\n\n" if event else b""
        return out


def wrong_first(
    when: Callable[[PretendServer, Sequence[int]], bool], at: int = 0
) -> Callable[[PretendServer], Callable[[Sequence[int], SamplingParams], list[int]]]:
    """A script whose token number `at` is another word for some prompts."""

    def build(server: PretendServer) -> Callable[[Sequence[int], SamplingParams], list[int]]:
        def script(prompt: Sequence[int], params: SamplingParams) -> list[int]:
            tokens = server.model(prompt, params)
            if when(server, prompt) and len(tokens) > at:
                words = server.model.words
                other = words[0] if tokens[at] != words[0] else words[1]
                return [*tokens[:at], other, *tokens[at + 1 :]]
            return tokens

        return script

    return build


def seen_before() -> Callable[[PretendServer, Sequence[int]], bool]:
    """True for a prompt that came before."""
    seen: set[tuple[int, ...]] = set()

    def known(server: PretendServer, prompt: Sequence[int]) -> bool:
        found = tuple(prompt) in seen
        seen.add(tuple(prompt))
        return found

    return known


def message_of(change: Callable[[dict[str, Any]], None]) -> Change:
    """A change of the message of a whole chat completion."""

    def changed(value: dict[str, Any]) -> dict[str, Any]:
        for choice in value.get("choices", ()):
            if "message" in choice:
                change(choice["message"])
        return value

    return changed


def usage_of(change: Callable[[dict[str, Any]], None]) -> Change:
    """A change of the usage of a whole answer."""

    def changed(value: dict[str, Any]) -> dict[str, Any]:
        if value.get("usage"):
            change(value["usage"])
        return value

    return changed


def finish_of(old: str, new: str) -> Change:
    """Another finish reason."""

    def changed(value: dict[str, Any]) -> dict[str, Any]:
        for choice in value.get("choices", ()):
            if choice.get("finish_reason") == old:
                choice["finish_reason"] = new
        return value

    return changed
