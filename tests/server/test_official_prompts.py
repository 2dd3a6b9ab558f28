"""Prompts beside those of the official converter (deepseek-recipe): equal, or in a named row of docs/api.md.

A row says which of our requests gives the official prompt of which other one; with those changes every prompt is equal,
so a difference of another kind cannot hide behind a row.
"""

import copy
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from dsv4.encoding import V4, V4_0731, V41, Dialect
from dsv4.server.dialects.tokens import render_request
from dsv4.server.wire.errors import ApiError
from tests.conftest import ROOT
from tests.server.conversations import Conversations

recipe = pytest.importorskip("deepseek_recipe")

Body = dict[str, Any]
APIS = ("chat", "messages", "responses")
REQUESTS = {
    "chat": recipe.ChatCompletionRequest,
    "messages": recipe.MessagesRequest,
    "responses": recipe.ResponsesRequest,
}
ENCODINGS = {
    V4_0731.name: ("DeepSeek-V4-Pro", recipe.DeepseekV4Encoding()),
    V41.name: ("DeepSeek-V4.1-Flash", recipe.DeepseekV41Encoding()),
}
COUNT = 150  # of each interface, with every seed
SEEDS = (11, 12)


def official(api: str, body: Body, dialect: Dialect) -> str | None:
    """The prompt, None if the request is refused."""
    model, encoding = ENCODINGS[dialect.name]
    options = recipe.ConversionOptions(messages_web_search=recipe.WebSearchBehavior.Drop)
    try:
        request = REQUESTS[api](json.dumps({**body, "model": model}))
        return encoding.render_conversation(request.convert(options).conversation).prompt
    except (ValueError, recipe.ConversionError):
        return None


def ours(api: str, body: Body, dialect: Dialect) -> str:
    return render_request({"api": api, "body": body}, dialect)["prompt"]


# The rows: whether one concerns a request, and what it changes on our side and on theirs.


def _unwanted(api: str, body: Body, dialect: Dialect) -> bool:
    return bool(body.get("tools")) and body.get("tool_choice") in ("none", {"type": "none"})


def _named(api: str, body: Body, dialect: Dialect) -> bool:
    return isinstance(body.get("tool_choice"), dict) and body["tool_choice"]["type"] in ("function", "tool")


def _only_named(body: Body) -> Body:
    choice = body["tool_choice"]
    name = choice.get("name") or choice["function"]["name"]
    tools = [tool for tool in body["tools"] if (tool.get("name") or tool.get("function", {}).get("name")) == name]
    return {**body, "tools": tools}


def _prefill(api: str, body: Body, dialect: Dialect) -> bool:
    last = body["messages"][-1] if api == "messages" else {"role": "user", "content": ""}
    calls = isinstance(last["content"], list) and any(block["type"] == "tool_use" for block in last["content"])
    return last["role"] == "assistant" and not calls


def _go_on(body: Body) -> Body:
    return {**body, "messages": [*body["messages"], {"role": "user", "content": "Go on."}]}


def _deferred(api: str, body: Body, dialect: Dialect) -> bool:
    return not dialect.system and any(tool.get("defer_loading") for tool in body.get("tools") or ())


def _loaded(body: Body) -> Body:
    return _with_tools(body, [{k: v for k, v in t.items() if k != "defer_loading"} for t in body.get("tools") or ()])


def _with_tools(body: Body, tools: list[Any]) -> Body:
    return {**body, "tools": tools} if tools else body


def _strict(api: str, body: Body, dialect: Dialect) -> bool:
    return '"strict": true' in json.dumps(body.get("tools"))


def _lax(body: Body) -> Body:
    text = json.dumps(body.get("tools") or [])
    return _with_tools(body, json.loads(text.replace('"strict": true', '"strict": false')))


def _without(*names: str) -> Callable[[Body], Body]:
    return lambda body: {name: value for name, value in body.items() if name not in names}


def _empty_arguments(api: str, body: Body, dialect: Dialect) -> bool:
    return json.dumps(_filled(body)) != json.dumps(body)


def _filled(body: Body) -> Body:
    text = re.sub(r'"arguments": "(null|\s*)"', '"arguments": "{}"', json.dumps(body))
    return json.loads(re.sub(r'("type": "tool_use", "id": "[^"]*", "name": "[^"]*", "input": )null', r"\1{}", text))


def _same(body: Body) -> Body:
    return body


ROWS: dict[str, tuple[Callable[[str, Body, Dialect], bool], Callable[[Body], Body], Callable[[Body], Body]]] = {
    "tool_choice none": (_unwanted, _without("tools", "tool_choice"), _same),
    "named tool_choice": (_named, lambda body: _loaded(_only_named(body)), _loaded),
    "prefill": (_prefill, _go_on, _go_on),
    "deferred tools": (_deferred, _loaded, _loaded),
    "strict functions": (_strict, _lax, _lax),
    "empty arguments": (_empty_arguments, _filled, _filled),
    "messages' format": (
        lambda api, body, dialect: "output_format" in body,
        _without("output_format"),
        _without("output_format"),
    ),
}
PICTURE = "pictures in V4.1"


def compare(api: str, body: Body, dialect: Dialect) -> str:
    """`equal`, `refused upstream`, or the names of the rows that explain the difference. Fails for any other one."""
    theirs, mine = official(api, body, dialect), ours(api, body, dialect)
    if theirs is None:
        return "refused upstream"
    if theirs == mine:
        return "equal"
    left, right, rows = copy.deepcopy(body), copy.deepcopy(body), []
    for name, (concerns, here, there) in ROWS.items():
        if concerns(api, right, dialect):
            rows.append(name)
            left, right = here(left), there(right)
    theirs, mine = official(api, right, dialect), ours(api, left, dialect)
    assert theirs is not None
    if dialect is V41 and "<｜image｜>" in theirs:
        rows.append(PICTURE)
        theirs = theirs.replace("<｜image｜>", "[Unsupported Image]")
    assert mine == theirs, (api, dialect.name, rows, json.dumps(body, ensure_ascii=False))
    return ", ".join(rows)


@pytest.mark.parametrize("dialect", [V4_0731, V41], ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("api", APIS)
def test_random_requests(api: str, dialect: Dialect) -> None:
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        conversations = Conversations(seed)
        counts.update(compare(api, conversations.request(api), dialect) for _ in range(COUNT))
    print(dict(counts))
    assert counts["equal"] > len(SEEDS) * COUNT // 2


def test_every_row_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in (*ROWS, PICTURE, "minus zero", "refused upstream"):
        assert f"| {name} |" in text, name


def test_april_differs_in_the_effort_only() -> None:
    conversations = Conversations(13)
    for _ in range(50):
        body = conversations.request("chat") | {"thinking": {"type": "disabled"}}
        assert ours("chat", body, V4) == ours("chat", body, V4_0731)


USER = {"role": "user", "content": "hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
REFERENCE = {"type": "tool_result", "tool_use_id": "s", "content": [{"type": "tool_reference", "tool_name": "f"}]}
REMINDER = {"role": "latest_reminder", "content": "L"}
ADDITION = {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "f"}}
EMPTY, SAID = [{"type": "text", "text": ""}], [{"type": "text", "text": "said"}]
SPACED = {"type": "function", "name": "_f"}
SEARCH = {"type": "tool_use", "id": "s", "name": "S", "input": {}}
CASES: list[tuple[str, Body]] = [
    ("chat", {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, *[USER] * 2]}),
    ("chat", {"messages": [{"role": "system", "content": ""}]}),
    (
        "chat",
        {"messages": [{"role": "assistant", "content": "first"}, USER, REMINDER]},
    ),
    ("chat", {"messages": [REMINDER, {"role": "system", "content": "S"}, USER]}),
    ("chat", {"messages": [USER], "reasoning_effort": "none", "thinking": {"type": "enabled"}}),
    ("chat", {"messages": [USER], "reasoning_effort": "ultra"}),
    ("chat", {"messages": [USER], "tools": [{"type": "function", "function": {"name": "f", "parameters": None}}]}),
    ("messages", {"max_tokens": 9, "system": "", "messages": [USER, {"role": "system", "content": ""}, USER]}),
    ("messages", {"max_tokens": 9, "messages": [{"role": "system", "content": "first"}, USER], "tools": [TOOL]}),
    (
        "messages",
        {
            "max_tokens": 9,
            "tools": [{**TOOL, "defer_loading": True}, {**TOOL, "name": "S"}],
            "messages": [
                USER,
                {"role": "assistant", "content": [SEARCH]},
                {"role": "user", "content": [REFERENCE, {"type": "text", "text": "then"}]},
                {
                    "role": "system",
                    "content": [ADDITION],
                },
                USER,
            ],
        },
    ),
    (
        "messages",
        {"max_tokens": 9, "messages": [USER, {"role": "assistant", "content": [*EMPTY, *EMPTY, *SAID, *EMPTY]}, USER]},
    ),
    ("messages", {"max_tokens": 9, "messages": [USER, {"role": "assistant", "content": [*EMPTY, *EMPTY]}, USER]}),
    ("responses", {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}),
    ("responses", {"input": "x", "tools": [{"type": "namespace", "name": "s", "description": "", "tools": [SPACED]}]}),
    ("responses", {"input": ""}),
    ("responses", {"input": [USER, {"type": "reasoning", "summary": [], "encrypted_content": "foreign"}, USER]}),
    ("responses", {"input": [{"role": "developer", "content": "q"}], "instructions": "I"}),
]


@pytest.mark.parametrize("dialect", [V4_0731, V41], ids=lambda dialect: dialect.name)
@pytest.mark.parametrize(("api", "body"), CASES)
def test_odd_requests(api: str, body: Body, dialect: Dialect) -> None:
    compare(api, body, dialect)


def test_what_cannot_be_done_is_refused_here() -> None:
    for body in ({"input": [{"type": "item_reference", "id": "x"}]}, {"input": "x", "previous_response_id": "x"}):
        assert official("responses", {**body, "input": [USER, *[i for i in body["input"] if isinstance(i, dict)]]}, V41)
        with pytest.raises(ApiError):
            ours("responses", body, V41)
