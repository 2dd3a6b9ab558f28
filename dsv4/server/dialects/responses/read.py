"""Turns a checked Responses request into a `GenerationRequest`: items become messages of the encoding."""

import json
from collections.abc import Mapping
from typing import Any

from dsv4.encoding import Dialect
from dsv4.server.dialects.fields import arguments_text, common_fields, sampling_fields
from dsv4.server.dialects.parts import Unsupported, result_text, text_of_parts
from dsv4.server.dialects.prompt import sort_calls
from dsv4.server.dialects.request import GenerationRequest, owner_name
from dsv4.server.dialects.responses.request import (
    LOCAL_SHELL,
    NO_STORE,
    PromptTool,
    ResponsesRequest,
    choice_of_responses,
    prompt_name,
)
from dsv4.server.dialects.responses.sealed import unseal
from dsv4.server.wire.errors import invalid, naming_field, show

NOT_STORED = "nothing is stored: send the item itself instead of a reference to it"


def read_responses(
    request: ResponsesRequest, tools: Mapping[str, PromptTool], dialect: Dialect, model: str, key: str
) -> GenerationRequest:
    """The `GenerationRequest` of a Responses request to `model`, in which `stored.resolved` has replaced references.
    Raises ApiError 400 for a reference that is left, and for an item that cannot be read."""
    if request.previous_response_id:
        raise invalid("previous_response_id", NO_STORE)
    return GenerationRequest(
        **common_fields(request, model, key, dialect),
        messages=_ItemReader(request, dialect).finished(),
        functions=[tool.function for tool in tools.values()],
        choice=choice_of_responses(request.tool_choice, tools, dialect),
        forces_call=True,
        parallel=request.parallel_tool_calls is not False,
        strict=frozenset(tool.name for tool in tools.values() if tool.strict),
        limit=request.max_output_tokens,
        sampling=sampling_fields(request),
        logprobs=request.wants_logprobs,
        top_logprobs=request.top_logprobs or 0,
        schema=request.format.schema_wanted,
        any_object=request.format.type == "json_object",
        owner=owner_name(key, request.user, request.safety_identifier),
    )


def kind_of(item: Mapping[str, Any]) -> str:
    """The type of an item without one: a message, or a reference, which has only an id."""
    return "message" if "role" in item or "content" in item or "id" not in item else "item_reference"


class _ItemReader:
    """Builds messages item by item; the items of one assistant turn become one message.

    A result must follow its call, but clients put messages between them. So results are kept by the turn that called,
    until all items are read.
    """

    def __init__(self, request: ResponsesRequest, dialect: Dialect) -> None:
        self._dialect = dialect
        self._unsupported: Unsupported | None = request.unsupported
        self._list: list[dict[str, Any]] = []
        self._results: dict[int, list[dict[str, Any]]] = {}
        self._caller: dict[str, int] = {}  # call id -> the turn in the list that made it
        self._turn: dict[str, Any] | None = None  # the assistant turn that is being built
        if request.instructions:
            self._list.append({"role": "system", "content": request.instructions})
        if isinstance(request.input, str):
            self._list.append({"role": "user", "content": request.input})
            return
        for index, item in enumerate(request.input):
            self._add(item, f"input[{index}]")
        if len(self._list) == bool(request.instructions):
            kinds = ", ".join(dict.fromkeys(str(show(item.get("type") or kind_of(item))) for item in request.input))
            raise invalid("input", f"no item has something for the model; the types are {kinds:.200}")

    def finished(self) -> list[dict[str, Any]]:
        """All messages in the order of the prompt."""
        for message in self._list:
            sort_calls(message)
        return [part for at, message in enumerate(self._list) for part in (message, *self._results.get(at, ()))]

    def _add(self, item: Mapping[str, Any], place: str) -> None:
        match item.get("type") or kind_of(item):
            case "message":
                self._message(item, place)
            case "reasoning":
                self._reasoning(item, place)
            case "function_call":
                self._call(item, arguments_text(item.get("arguments")))
            case "custom_tool_call":
                arguments = json.dumps({"input": str(item.get("input") or "")}, ensure_ascii=False)
                self._call(item, arguments)
            case "local_shell_call":
                self._call({**item, "name": LOCAL_SHELL}, arguments_text(item.get("action")))
            case "function_call_output" | "custom_tool_call_output" | "local_shell_call_output":
                with naming_field(f"{place}.output"):
                    text = result_text(item.get("output"), self._unsupported)
                self._output(str(item.get("call_id") or item.get("id") or ""), text)
            case "item_reference":
                raise invalid(place, NOT_STORED)
            case _:
                pass  # web searches and other tools that ran elsewhere

    def _message(self, item: Mapping[str, Any], place: str) -> None:
        with naming_field(f"{place}.content"):
            text = text_of_parts(item.get("content"), self._unsupported)
        match item.get("role"):
            case "assistant":
                turn = self._assistant()
                turn["content"] = (
                    f"{turn['content']}\n\n{text}" if turn["content"] and text else turn["content"] or text
                )
            case "user" | "latest_reminder" as role:
                self._append(role, text)
            case "system":
                self._append("system", text)
            case "developer":
                # a dialect without system turns would move a system message to the head of the prompt
                self._append("system" if self._dialect.system else "user", text)
            case role:
                raise invalid(f"{place}.role", f"expected user, assistant, system or developer, got {show(role)}")

    def _reasoning(self, item: Mapping[str, Any], place: str) -> None:
        with naming_field(f"{place}.content"):
            text = text_of_parts(item.get("content"), self._unsupported, joiner="\n")
        text = text or unseal(item.get("encrypted_content")) or ""
        if not text:
            return  # empty, or sealed by another server
        turn = self._assistant(thinks=True)
        earlier = turn.get("reasoning_content")
        turn["reasoning_content"] = f"{earlier}\n{text}" if earlier else text

    def _append(self, role: str, text: str) -> None:
        self._turn = None
        self._list.append({"role": role, "content": text})

    def _assistant(self, *, thinks: bool = False) -> dict[str, Any]:
        """The turn that is being built. Reasoning begins a new turn after a text, but not after a call that has no
        result yet."""
        turn = self._turn
        if turn is None or (thinks and turn["content"] and "tool_calls" not in turn):
            self._turn = turn = {"role": "assistant", "content": ""}
            self._list.append(turn)
        return turn

    def _call(self, item: Mapping[str, Any], arguments: str) -> None:
        name = str(item.get("name") or "")
        call_id = str(item.get("call_id") or item.get("id") or "")
        function = {"name": prompt_name(name, item.get("namespace"), self._dialect), "arguments": arguments}
        call = {"id": call_id, "type": "function", "function": function}
        self._assistant().setdefault("tool_calls", []).append(call)
        self._caller[call_id] = len(self._list) - 1

    def _output(self, call_id: str, text: str) -> None:
        message = {"role": "tool", "tool_call_id": call_id, "content": text}
        caller = self._caller.get(call_id)
        if caller is None:
            self._list.append(message)
        else:
            self._results.setdefault(caller, []).append(message)
        # the next items answer the result, unless other turns follow the turn that called
        if caller is None or caller == len(self._list) - 1:
            self._turn = None
