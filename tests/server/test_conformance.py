"""The 25 cases a server for these clients must pass, one test each, with the official SDKs and raw HTTP.

Where the wording of an answer matters the generator is scripted; where it does not, the bundled model runs. Where the
official service is stricter (7, 11, 13) this one is lenient, but for 7. Finer points have tests in the files beside it.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx
import openai
import pytest
from anthropic.types import ModelInfo

from dsv4.encoding import Tokenizer
from dsv4.server import Keys, Settings, create_app
from tests.agents.scripted import ScriptedModel
from tests.agents.test_agents import LOOPS
from tests.server.conftest import MODEL, Converse, Server, joined, listening
from tests.server.models import Nano, block, cached_server

OFF = {"thinking": {"type": "disabled"}}
USER = {"role": "user", "content": "What is 17 + 25?"}
WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}
TOOLS = [{"type": "function", "function": WEATHER}]
MARKS = ("｜DSML｜", "<invoke", "<think>", "</think>")


PARIS = ("get_weather", {"city": "Paris", "days": 3})
ROME = ("get_weather", {"city": "Rome", "days": 1})


@pytest.fixture(scope="module")
def nano() -> Iterator[Nano]:
    server = Nano(16_384)
    yield server
    server.service.close()


def chat(server: Server, **fields: Any) -> Any:
    """A completion by the SDK. Fields it does not know go into the body as they are."""

    async def use(client: openai.AsyncOpenAI) -> Any:
        return await client.chat.completions.create(model=MODEL, messages=[USER], extra_body=fields)

    return server.sdk(use)


def clean(text: str | None) -> bool:
    return not any(mark in (text or "") for mark in MARKS)


def test_01_basic_chat(serve: Converse) -> None:
    answer = chat(serve("pong", reused=2), **OFF)
    choice, usage = answer.choices[0], answer.usage.model_dump()
    assert (answer.object, choice.message.content, choice.finish_reason) == ("chat.completion", "pong", "stop")
    assert not getattr(choice.message, "reasoning_content", None)
    assert usage["prompt_tokens"] == usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_02_thinking_is_the_default(nano: Nano) -> None:
    answer = chat(nano, max_tokens=300, seed=1)
    message, usage = answer.choices[0].message, answer.usage
    assert message.reasoning_content
    assert clean(message.content)
    assert 0 < usage.completion_tokens_details.reasoning_tokens <= usage.completion_tokens


def test_03_effort_values(nano: Nano) -> None:
    for effort in ("none", "minimal", "low", "medium", "high", "xhigh", "max"):
        message = chat(nano, reasoning_effort=effort, max_tokens=4).choices[0].message
        assert bool(getattr(message, "reasoning_content", None)) == (effort != "none")
    with pytest.raises(openai.BadRequestError, match="reasoning_effort"):
        chat(nano, reasoning_effort="banana")


def test_04_sampling_is_ignored_while_thinking(serve: Converse) -> None:
    server = serve("why</think>x")
    chat(server, temperature=0, top_p=0.1, presence_penalty=1.5, frequency_penalty=1.5)
    params = server.generator.calls[0].params
    assert (params.temperature, params.top_p, params.presence_penalty, params.frequency_penalty) == (1, 1, 0, 0)


def test_05_stream_shape(nano: Nano) -> None:
    fields = {"messages": [USER], "seed": 5, "max_tokens": 200}
    chunks = nano.chunks(**fields)  # checks media type, frame and [DONE]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    kinds = ["reasoning" if d.get("reasoning_content") else "content" for d in deltas if any(d.values())][1:]
    assert kinds == sorted(kinds, reverse=True)
    assert sum(chunk["choices"][0]["finish_reason"] is not None for chunk in chunks) == 1
    assert len({chunk["id"] for chunk in chunks}) == 1
    whole = nano.answer(**fields)["choices"][0]["message"]
    assert (joined(chunks, "content"), joined(chunks, "reasoning_content")) == (
        whole["content"],
        whole["reasoning_content"],
    )


def test_06_usage_comes_once(serve: Converse) -> None:
    chunks = serve("x</think>y").chunks(stream_options={"include_usage": True})
    assert [chunk["usage"] is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_07_stream_options_need_a_stream(serve: Converse) -> None:
    response = serve("x").post(stream_options={"include_usage": True})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


def test_08_tool_call_streamed(serve: Converse) -> None:
    server = serve("I look." + "</think>" + block(PARIS))

    async def use(client: openai.AsyncOpenAI) -> list[Any]:
        stream = await client.chat.completions.create(model=MODEL, messages=[USER], tools=TOOLS, stream=True)
        return [chunk.choices[0] async for chunk in stream]

    choices = server.sdk(use)
    calls = [call for choice in choices for call in choice.delta.tool_calls or ()]
    assert calls[0].id
    assert (calls[0].function.name, calls[0].function.arguments) == ("get_weather", "")
    arguments = json.loads("".join(call.function.arguments for call in calls))
    assert arguments == {"city": "Paris", "days": 3}
    assert type(arguments["days"]) is int
    assert choices[-1].finish_reason == "tool_calls"
    assert all(clean(c.delta.content) and clean(c.delta.model_dump().get("reasoning_content")) for c in choices)


def test_09_arguments_arrive_as_they_are_written(serve: Converse, tokenizer: Tokenizer) -> None:
    content = "".join(f'line {n}: "quoted" </b> ｜DSML｜ \\ \t ü\n' for n in range(40))
    tool = {"type": "function", "function": {"name": "write_file", "parameters": {"type": "object"}}}
    # safe mode: the text of the value holds no control token, as a model would write it
    head, tail = block(("write_file", {"path": "a.txt", "content": "@"})).split("@")
    tokens = [
        *tokenizer.encode_text("x</think>" + head, trusted=True),
        *tokenizer.encode_text(content),
        *tokenizer.encode_text(tail, trusted=True),
        tokenizer.eos_id,
    ]
    server = serve(tokens)
    deltas = [chunk["choices"][0]["delta"] for chunk in server.chunks(tools=[tool], max_tokens=4000)]
    pieces = [call["function"]["arguments"] for delta in deltas for call in delta.get("tool_calls", ())]
    assert len([piece for piece in pieces if piece]) >= 10
    first = next(
        index
        for index, delta in enumerate(deltas)
        if any(c["function"]["arguments"] for c in delta.get("tool_calls", ()))
    )
    assert first < 0.3 * len(deltas)
    assert json.loads("".join(pieces)) == {"path": "a.txt", "content": content}


def loop(server: Server, first: dict[str, Any], *, reasoning: bool) -> dict[str, Any]:
    """The second turn of a tool loop: usage."""
    message = first["choices"][0]["message"]
    if not reasoning:
        message.pop("reasoning_content")
    results = [
        {
            "role": "tool",
            "tool_call_id": call["id"],
            "content": f"sunny in {json.loads(call['function']['arguments'])['city']}",
        }
        for call in reversed(message["tool_calls"])
    ]
    return server.answer(messages=[USER, message, *results], tools=TOOLS)


@pytest.mark.parametrize("reasoning", [True, False], ids=["10_with_reasoning", "11_without_reasoning"])
def test_10_11_round_trip(tokenizer: Tokenizer, reasoning: bool) -> None:
    server = cached_server(tokenizer, "I look." + "</think>" + block(PARIS))
    first = server.answer(messages=[USER], tools=TOOLS)
    second = loop(server, first, reasoning=reasoning)
    # all of the first turn, as it was sampled, whatever of it the client sends back
    assert second["usage"]["prompt_cache_hit_tokens"] == first["usage"]["total_tokens"]


def test_12_parallel_calls(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve("Both." + "</think>" + block(PARIS, ROME))
    first = server.answer(messages=[USER], tools=TOOLS)
    calls = first["choices"][0]["message"]["tool_calls"]
    assert [call["index"] for call in calls] == [0, 1]
    assert len({call["id"] for call in calls}) == 2
    loop(server, first, reasoning=True)  # answers in reverse order
    prompt = tokenizer.decode(server.generator.calls[1].prompt)
    assert "<tool_result>sunny in Paris</tool_result>\n\n<tool_result>sunny in Rome</tool_result>" in prompt


def test_13_tool_choice(nano: Nano, serve: Converse) -> None:
    none = serve("No." + block(PARIS)).answer(tools=TOOLS, tool_choice="none", **OFF)["choices"][0]["message"]
    assert "tool_calls" not in none
    assert clean(none["content"])
    # a model this small may never end a free text
    city = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": city}}]
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        for fields in (OFF, {"thinking_budget": 20}):
            forced = {"parallel_tool_calls": False, "max_tokens": 400, **fields}
            message = chat(nano, tools=tools, tool_choice=choice, **forced).choices[0].message
            assert message.tool_calls, (choice, fields)
            assert message.tool_calls[0].function.name == "get_weather"


def test_14_json_mode(nano: Nano) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "boolean"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    strict = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    for fields in (OFF, {"thinking_budget": 20}):
        text = chat(nano, response_format=strict, max_tokens=400, **fields).choices[0].message.content
        assert set(json.loads(text)) == {"n"}
        answer = chat(nano, response_format={"type": "json_object"}, max_tokens=400, seed=2, **fields).choices[0]
        # a model this small may not close what it opens; what it wrote is then cut off, never something else
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.message.content), dict)
        else:
            assert answer.message.content.lstrip().startswith("{")


def test_15_stop_and_length(serve: Converse) -> None:
    choice = chat(serve("1, 2, 3, 4, 5, 6"), stop=["5"], **OFF).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("1, 2, 3, 4, ", "stop")
    assert chat(serve("x"), stop=[str(n) for n in range(100, 116)], **OFF).choices
    with pytest.raises(openai.BadRequestError, match="stop"):
        chat(serve("x"), stop=[str(n) for n in range(100, 117)])
    answer = chat(serve("a long answer that goes on and on", ended=False), max_tokens=8, **OFF)
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 8)
    thinking = chat(serve("a long thought that goes on"), max_tokens=3).choices[0]
    assert (thinking.finish_reason, thinking.message.content) == ("length", "")


def test_16_logprobs(nano: Nano) -> None:
    choice = chat(nano, logprobs=True, top_logprobs=5, max_tokens=20, **OFF).choices[0]
    entries = choice.logprobs.content
    assert all(len(entry.top_logprobs) == 5 and entry.logprob <= 0 for entry in entries)
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == choice.message.content
    for fields in ({"top_logprobs": 5}, {"logprobs": True, "top_logprobs": 21}):
        with pytest.raises(openai.BadRequestError, match="top_logprobs"):
            chat(nano, **fields)


def test_17_prefix_and_gap(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve("print(1)\n```\nThat is all.")
    begun = {"role": "assistant", "content": "```python\n", "prefix": True}
    body = {"messages": [USER, begun], "stop": ["```"], **OFF}
    answer = server.request("POST", "/beta/chat/completions", json=body).json()["choices"][0]
    assert answer["message"]["content"] == "print(1)\n"
    assert tokenizer.decode(server.generator.calls[0].prompt).endswith("</think>```python\n")
    gap = {"prompt": "def add(a, b):\n    return ", "suffix": "\n\nprint(add(1,2))"}
    response = serve("a + b").request("POST", "/beta/completions", json=gap)
    # a vocabulary without fill-in-the-middle tokens says so; test_plain_routes fills a gap with one that has them
    assert response.status_code == 400
    assert "fim" in response.json()["error"]["message"]
    plain = serve("a + b").request("POST", "/beta/completions", json={"prompt": gap["prompt"]}).json()
    assert (plain["object"], plain["choices"][0]["text"]) == ("text_completion", "a + b")


def test_18_models_balance_head_and_keys(serve: Converse) -> None:
    server = serve("x")
    for path in ("/models", "/v1/models"):
        entries = server.request("GET", path).json()["data"]
        assert entries[0]["id"] == MODEL
        assert all(entry["context_window"] == 4096 for entry in entries)
        # Anthropic's clients read the same list
        assert all(ModelInfo.model_validate(entry, strict=False).display_name == entry["id"] for entry in entries)
    assert server.request("GET", f"/v1/models/{MODEL}").json()["id"] == MODEL
    assert server.request("GET", "/user/balance").json()["is_available"] is True
    assert server.request("HEAD", "/").status_code == 200
    missing = server.request("GET", "/nope")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "invalid_request_error")
    locked = serve("x", settings={"keys": Keys.parse(["ann secret-of-ann"])})
    with pytest.raises(openai.AuthenticationError, match="Your api key: "):
        chat(locked)


def test_19_error_bodies(serve: Converse) -> None:
    server = serve("x</think>y")
    bodies = [b'{"messages": [', b"[]", b"\xff\xfe", b""]
    wrong = [
        {"messages": []},
        {"messages": [{"role": "tool", "tool_call_id": "a", "content": "x"}]},
        {"messages": [USER], "max_tokens": 0},
    ]
    for content in [*bodies, *(json.dumps(body).encode() for body in wrong)]:
        response = server.request("POST", "/v1/chat/completions", content=content)
        assert 400 <= response.status_code < 500
        error = response.json()["error"]
        assert error["message"]
        assert error["type"]
    assert server.answer()["choices"]


def test_20_context_overflow(serve: Converse) -> None:
    server = serve("x</think>y", context_length=100)
    long = [{"role": "user", "content": "word " * 200}]
    with pytest.raises(openai.BadRequestError, match="maximum context length is 100 tokens"):
        chat(server, messages=long)

    async def use(client: anthropic.AsyncAnthropic) -> Any:
        return await client.messages.create(model="claude-x", max_tokens=10, messages=long)  # type: ignore[arg-type]

    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 100 maximum"):
        server.claude(use)
    assert chat(server, max_tokens=384_000).choices
    call = server.generator.calls[-1]
    assert call.params.max_tokens == 100 - len(call.prompt)


SILENT = {
    "/v1/chat/completions": ({"messages": [USER]}, ": keep-alive"),
    "/v1/messages": ({"messages": [USER], "max_tokens": 50}, '"type":"thinking_delta","thinking":""'),
    "/v1/responses": ({"input": "Hi"}, "event: response.in_progress"),
}


@pytest.mark.parametrize("path", SILENT)
def test_21_keep_alive(serve: Converse, path: str) -> None:
    body, sign = SILENT[path]
    silent = {"delay": 0.2, "settings": {"keep_alive": 0.05}}
    text = serve("x</think>y", **silent).request("POST", path, json={**body, "stream": True}).text
    before = text[: text.index('"y"')]
    assert before.count(sign) >= 3
    if path == "/v1/messages":
        assert before.index("message_start") < before.index("content_block_start") < before.index(sign)
    whole = serve("x</think>y", **silent).request("POST", path, json=body)
    assert whole.text.startswith("\n\n")
    assert "error" not in whole.json() or whole.json()["error"] is None


def test_21_leaving_stops_the_work_and_keeps_it(nano: Nano) -> None:
    body = {"messages": [{"role": "user", "content": "one 2 three 4 five 6 " * 700}], "max_tokens": 2, **OFF}

    def running() -> float:
        return nano.service.counters()["running"] + nano.service.counters()["waiting"]

    with listening(nano) as url, httpx.Client(base_url=url, timeout=60) as client:
        with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
            next(line for line in response.iter_lines() if line.startswith(": keep-alive, prompt"))
        end = time.monotonic() + 30
        while running() and time.monotonic() < end:
            time.sleep(0.01)
        assert running() == 0
        assert nano.app.state.backend.running == 0
        short = client.post("/v1/chat/completions", json={"messages": [USER], "max_tokens": 2, **OFF})
        assert short.status_code == 200
        usage = client.post("/v1/chat/completions", json=body).json()["usage"]
    assert 0 < usage["prompt_cache_hit_tokens"] < usage["prompt_tokens"]


CLAUDE_TOOL = {"name": "get_weather", "input_schema": WEATHER["parameters"]}
SYSTEM = [
    {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=abc;"},
    {"type": "text", "text": "You help.", "cache_control": {"type": "ephemeral"}},
    {"type": "text", "text": "Be brief."},
]
CLAUDE = {"model": "claude-sonnet-next", "max_tokens": 200, "system": SYSTEM, "tools": [CLAUDE_TOOL]}


@pytest.mark.parametrize("listed", [False, True], ids=["string", "list"])
def test_22_anthropic_loop(tokenizer: Tokenizer, listed: bool) -> None:
    server = cached_server(tokenizer, "I look." + "</think>" + block(PARIS))
    talk: list[Any] = [USER]

    async def use(client: anthropic.AsyncAnthropic) -> Any:
        adaptive = {
            "extra_body": {"thinking": {"type": "adaptive", "display": "omitted"}},
            "extra_query": {"beta": "true"},
        }
        async with client.messages.stream(messages=talk, **CLAUDE, **adaptive) as stream:  # type: ignore[arg-type]
            names = [event.type async for event in stream]
            return names, await stream.get_final_message()

    names, message = server.claude(use)
    assert (names[0], names[-1]) == ("message_start", "message_stop")
    thought, call = message.content
    assert thought.signature
    assert call.input == {"city": "Paris", "days": 3}
    assert message.stop_reason == "tool_use"
    result: Any = [{"type": "text", "text": "sunny"}] if listed else "sunny"
    blocks = [{"type": "tool_result", "tool_use_id": call.id, "content": result}]
    talk += [{"role": "assistant", "content": message.content}, {"role": "user", "content": blocks}]
    first = message.usage
    _, second = server.claude(use)
    assert second.usage.cache_read_input_tokens == first.input_tokens + first.output_tokens
    off = {"model": "claude-x", "max_tokens": 50, "messages": [USER], **OFF, "output_config": {"effort": "high"}}
    quiet = server.request("POST", "/v1/messages", json=off)
    assert (quiet.status_code, "thinking" in quiet.text) == (200, False)


def test_23_anthropic_extras(tokenizer: Tokenizer) -> None:
    server = cached_server(tokenizer, "x</think>y")

    def usage(**fields: Any) -> dict[str, int]:
        return server.request("POST", "/v1/messages", json={**CLAUDE, "messages": [USER], **fields}).json()["usage"]

    counted = server.request("POST", "/v1/messages/count_tokens", json={**CLAUDE, "messages": [USER]}).json()
    first = usage()
    assert counted["input_tokens"] == first["input_tokens"] + first["cache_read_input_tokens"]
    other = [{"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=def;"}, *SYSTEM[1:]]
    assert usage(system=other)["input_tokens"] == 1  # all but the token that is always computed
    notes = "Remember the platform."
    as_list = {"role": "system", "content": [{"type": "text", "text": notes, "cache_control": {"type": "ephemeral"}}]}
    before = usage(messages=[USER, as_list])
    after = usage(messages=[USER, {"role": "system", "content": notes}])
    assert after["cache_read_input_tokens"] == before["input_tokens"] + before["cache_read_input_tokens"] - 1
    late = {"name": "clock", "input_schema": {"type": "object", "properties": {}}, "defer_loading": True}
    call = {"type": "tool_use", "id": "a1", "name": "get_weather", "input": {}}
    found = {"type": "tool_result", "tool_use_id": "a1", "content": [{"type": "tool_reference", "tool_name": "clock"}]}
    usage(tools=[CLAUDE_TOOL])
    talk = [USER, {"role": "assistant", "content": [call]}, {"role": "user", "content": [found]}]
    loaded = usage(messages=talk, tools=[late, CLAUDE_TOOL])
    assert loaded["cache_read_input_tokens"] >= counted["input_tokens"]


def test_24_responses_as_codex_sends_them(serve: Converse) -> None:
    patch = block(("apply_patch", {"input": "*** Begin Patch\n*** End Patch"}))
    server = serve("I patch." + "</think>" + patch)
    body: dict[str, Any] = {
        "input": [
            {"role": "developer", "content": "Rules."},
            {"role": "user", "content": [{"type": "input_text", "text": "Go"}]},
        ],
        "tools": [
            {"type": "function", "strict": False, **WEATHER},
            {"type": "namespace", "name": "mcp__x", "tools": [{"type": "function", "name": "f", "parameters": {}}]},
            {"type": "web_search"},
            {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "definition": "start: X"}},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "high", "summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "thread",
        "text": {"verbosity": "low"},
    }

    async def use(client: openai.AsyncOpenAI) -> list[Any]:
        stream = await client.responses.create(model=MODEL, stream=True, extra_body=body)
        return [event async for event in stream]

    events = server.sdk(use)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.type for item in done] == ["reasoning", "custom_tool_call"]
    assert done[1].input == "*** Begin Patch\n*** End Patch"
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage.output_tokens > 0
    output = {"type": "custom_tool_call_output", "call_id": done[1].call_id, "output": "ok"}
    between = {"role": "developer", "content": "A hook says hello."}
    body["input"] += [*(item.model_dump(mode="json") for item in done), between, output]
    assert server.sdk(use)[-1].type == "response.completed"
    body["previous_response_id"] = "resp_1"
    with pytest.raises(openai.BadRequestError, match="not stored"):
        server.sdk(use)


def test_25_two_agents_at_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The real agents run in tests/agents; here are two loops like theirs at the same time, one a dialect."""
    app = create_app(ScriptedModel(tokenizer, tmp_path), tokenizer, model_name=MODEL, settings=Settings())

    def agent(dialect: str) -> tuple[int, str]:
        path, start, step = LOOPS[dialect]
        body, turns, more = json.loads(json.dumps(start)), 0, True
        with httpx.Client(base_url=url) as client:
            while more:
                response = client.post(path, json=body)
                assert response.status_code == 200, response.text
                more, turns = step(body, response.json()), turns + 1
        return turns, response.text

    with listening(SimpleNamespace(app=app)) as url, ThreadPoolExecutor() as pool:
        done = list(pool.map(agent, LOOPS))
    assert [turns for turns, _ in done] == [3, 3, 3]
    assert all("hello.txt contains 42" in text and clean(text) for _, text in done)
