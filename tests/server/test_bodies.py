"""Bodies within limits of size, of time and of memory; what they hold is counted before it is looked at."""

import asyncio
import json
import threading
import time
from typing import Any

import pytest
from starlette.requests import Request

from dsv4.encoding import Tokenizer
from dsv4.generation import SamplingDefaults, SamplingParams
from dsv4.server import ApiError, Keys, Settings, create_app
from dsv4.server.backend import Backend
from dsv4.server.backend.endable import Endable
from dsv4.server.guard.sizes import MOST_SCHEMA_PARTS, MOST_TOOL_PARTS, check_sizes
from dsv4.server.wire.body import LEAST_BODY_BYTES, Bodies, body_limit
from dsv4.server.wire.json import PIECEWISE_BYTES, decode
from dsv4.server.wire.workers import Workers
from dsv4.testing.stub import StubGenerator
from tests.server.conftest import MODEL, Converse

USER = {"role": "user", "content": "Hi"}
CONTEXT = 5000
MANY = "[1" + ",1" * 100_001


def refusal(body: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check_sizes(body, CONTEXT, 420)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("body", "param", "limit"),
    [
        ({"messages": [USER] * 5001}, "messages", "5,000"),
        ({"input": [USER] * 5001}, "input", "5,000"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 5001}]}, "messages", "5,000"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}] * 5001}]}, "messages", "5,000"),
        ({"messages": [USER, {"tool_calls": [{"function": {"arguments": MANY}}]}]}, "messages[1]", "100,000"),
        ({"input": [{"type": "function_call", "arguments": MANY}]}, "input[0]", "100,000"),
        ({"tokens": [1] * 5001}, "tokens", "5,000"),
        ({"prompt": [1] * 5001}, "prompt", "5,000"),
        ({"tools": [{}] * 4097}, "tools", "4,096"),
        ({"logit_bias": {str(i): 1 for i in range(421)}}, "logit_bias", "420"),
        ({"model": "claude-" + "x" * 300}, "model", "256"),
        ({"stop": "x" * 5000}, "stop", "4,096"),
        ({"stop_sequences": ["a", "x" * 5000]}, "stop_sequences", "4,096"),
        ({"response_format": {"json_schema": {"enum": [1] * 50_000}}}, "response_format", "50,000"),
        ({"text": {"format": {"schema": {"a": {str(i): {} for i in range(50_000)}}}}}, "text", "50,000"),
        ({"output_config": {"format": {"schema": [[0] * 300] * 300}}}, "output_config", "50,000"),
        ({"tools": [{"parameters": [1] * MOST_SCHEMA_PARTS}]}, r"tools[0]", "50,000"),
        ({"tools": [{"parameters": [1] * 40_000}] * 7}, "tools", f"{MOST_TOOL_PARTS:,}"),
    ],
)
def test_counts_are_judged_first(body: dict[str, Any], param: str, limit: str) -> None:
    error = refusal(body)
    assert error.param == param
    assert f"at most {limit} " in error.message


def test_usual_sizes_pass() -> None:
    tools = [{"name": f"f{i}", "parameters": {str(j): {"type": "string"} for j in range(20)}} for i in range(500)]
    check_sizes({"messages": [USER] * 5000, "tools": tools, "logit_bias": {"5": 1}, "stop": ["x"] * 4}, CONTEXT, 420)
    check_sizes([1], CONTEXT, 420)
    check_sizes({"messages": "x", "tools": {"a": 1}, "stop": 3, "logit_bias": []}, CONTEXT, 420)


def test_a_prompt_that_cannot_fit_is_not_encoded(serve: Converse, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("x", context_length=100)
    long = "x " * (100 * server.tokenizer.longest_token)

    def encoded(*_: object, **__: object) -> None:
        raise AssertionError("encoded")

    for name in ("encode_text", "encode_messages", "encode_segments"):
        monkeypatch.setattr(Tokenizer, name, encoded)
    routes: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/chat/completions", {"messages": [USER, {"role": "user", "content": long}]}),
        ("/messages", {"messages": [{"role": "user", "content": long}], "max_tokens": 5}),
        ("/responses", {"input": long}),
        ("/completions", {"prompt": long}),
        ("/completions", {"prompt": [long]}),
    )
    for path, body in routes:
        response = server.request("POST", path, json=body)
        assert response.status_code == 400, path
        assert "maximum" in response.json()["error"]["message"], path


def test_values_are_counted_outside_of_strings() -> None:
    with pytest.raises(ApiError, match="at most 250,000 values"):
        decode(json.dumps({"x": [1] * 250_002}).encode(), 10)
    text = ',"\\' * 300_000
    assert decode(json.dumps({"x": [text, {"a": 1}]}).encode(), 10) == {"x": [text, {"a": 1}]}


def test_large_bodies_are_decoded_as_small_ones() -> None:
    messages = [{"role": "user", "content": '日本 \\ " , é' * 100, "n": [1, None, {"a": 2.5}]}] * 2000
    value = {"messages": messages, "a": {"b": [1]}, "text": "x" * PIECEWISE_BYTES, "empty": []}
    for form in (json.dumps(value), " " + json.dumps(value, ensure_ascii=False, indent=1)):
        assert len(form) > PIECEWISE_BYTES
        assert decode(bytearray(form.encode()), 10) == value
    for broken in (json.dumps(value)[:-1], json.dumps(value)[:-3] + "}}"):
        with pytest.raises(ApiError, match="not valid JSON"):
            decode(broken.encode(), 10)


def test_a_byte_order_mark_is_ignored(serve: Converse) -> None:
    mark = b"\xef\xbb\xbf"
    body = mark + json.dumps({"messages": [{"role": "user", "content": "\ufeffHi"}]}).encode()
    server = serve("x")
    headers = {"content-type": "application/json"}
    for path in ("/v1/chat/completions", "/v1/messages"):
        assert server.request("POST", path, content=body, headers=headers).status_code == 200, path
    large = json.dumps({"messages": ["x" * PIECEWISE_BYTES], "a": 1}).encode()
    assert decode(bytearray(mark + large), 10) == json.loads(large)
    for broken in (mark, mark + mark + b"{}", b"{" + mark + b"}"):
        with pytest.raises(ApiError, match="not valid JSON"):
            decode(broken, 10)


def test_half_a_pair_is_replaced() -> None:
    body = rb'{"a": "x\ud83d", "b": "\ud83d\ude00", "c": "\\ud83d", "d": "\ude00y", "e": "\ud83d\ud83d\ude00"}'
    assert decode(body, 10) == {"a": "x\ufffd", "b": "😀", "c": r"\ud83d", "d": "\ufffdy", "e": "\ufffd😀"}


def test_the_limit_follows_the_context() -> None:
    assert body_limit(100) == LEAST_BODY_BYTES
    assert body_limit(1 << 20) == 64 << 20


def test_bodies_are_counted_by_key_and_in_all() -> None:
    bodies = Bodies(100)
    bodies.take("ann", 800)
    with pytest.raises(ApiError) as caught:
        bodies.take("ann", 1)
    assert caught.value.status == 429
    bodies.take("bob", 800)
    with pytest.raises(ApiError) as caught:
        bodies.take("eve", 1)
    assert caught.value.status == 503
    assert (caught.value.headers or {})["retry-after"]
    bodies.give_back("ann", 800)
    bodies.take("eve", 1)


@pytest.mark.parametrize("declared", [True, False])
def test_too_large_is_413(serve: Converse, declared: bool) -> None:
    server = serve("x", settings={"most_body_bytes": 1000})
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 1000}]}).encode()

    async def parts() -> Any:
        yield body[:500]
        yield body[500:]

    response = server.request("POST", "/chat/completions", content=body if declared else parts())
    assert response.status_code == 413
    assert "at most 1,000 bytes" in response.json()["error"]["message"]


def test_a_body_that_dribbles_is_given_up(tokenizer: Tokenizer) -> None:
    """Never quiet for long, and yet too slow in all."""
    app = create_app(StubGenerator([5]), tokenizer, model_name=MODEL, settings=Settings(body_seconds=0.2))
    scope = {
        "type": "http", "method": "POST", "path": "/tokenize", "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(asyncio.wait_for(app(scope, receive, send), 30))
    assert sent[0]["status"] == 408
    assert "too slowly" in sent[1]["body"].decode()


def test_a_key_is_stopped_before_its_body_is_read(serve: Converse) -> None:
    server = serve("x", settings={"keys": Keys.parse(["ann secret-of-ann requests=1"]), "most_body_bytes": 1000})
    headers = {"authorization": "Bearer secret-of-ann"}
    answers = [server.request("POST", "/tokenize", content=b"x" * 2000, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [413, 429]


def test_the_loop_goes_on_while_a_request_is_understood(serve: Converse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding happens in another thread than the one that answers."""
    server, threads = serve("x", context_length=200_000), set()
    encode = Tokenizer.encode_text

    def noted(self: Tokenizer, text: str, trusted: bool = False) -> list[int]:
        threads.add(threading.current_thread().name.rsplit("_", 1)[0])
        return encode(self, text, trusted)

    monkeypatch.setattr(Tokenizer, "encode_text", noted)
    for path in ("/tokenize", "/completions"):
        server.request("POST", path, json={"prompt": "Hello " * 1000, "max_tokens": 1})
    server.post(messages=[{"role": "user", "content": "Hello " * 100_000}])
    assert threads == {"dsv4-request", "dsv4-large-request"}


def test_a_panic_ends_its_request_only(serve: Converse, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Rust libraries raise when they panic is no Exception."""

    class Panic(BaseException):
        pass

    def broken(*_: object, **__: object) -> None:
        raise Panic("called `Option::unwrap()` on a `None` value")

    server = serve("why</think>x")
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_segments", broken)
        for text in ("Hi", "Hi " * 2000):
            response = server.post(messages=[{"role": "user", "content": text}])
            assert response.status_code == 500
            assert response.json()["error"]["message"] == "internal error: Panic"
    assert server.post().status_code == 200


def test_ready_tells_of_a_failing_engine(serve: Converse) -> None:
    server = serve("x")
    assert server.request("GET", "/ready").status_code == 200
    server.generator.failing = "12 steps in a row have failed: RuntimeError"
    response = server.request("GET", "/ready")
    assert (response.status_code, response.json()["reason"]) == (503, "12 steps in a row have failed: RuntimeError")
    assert server.request("GET", "/health").status_code == 200


def test_ending_all_answers() -> None:
    async def run() -> list[str]:
        generator = Endable(StubGenerator([7] * 1000, delay=0.01))
        outcomes: list[str] = []

        async def read() -> None:
            try:
                async for _ in generator.stream([1], SamplingParams(max_tokens=900)):
                    pass
                outcomes.append("whole")
            except ApiError as error:
                outcomes.append(error.message)

        tasks = [asyncio.create_task(read()) for _ in range(3)]
        await asyncio.sleep(0.05)
        generator.end()
        await asyncio.gather(*tasks)
        await read()
        return outcomes

    began = time.monotonic()
    assert asyncio.run(run()) == ["the server is stopping"] * 4
    assert time.monotonic() - began < 9


def test_a_backend_has_the_limit_of_its_settings(tokenizer: Tokenizer) -> None:
    def most(**fields: Any) -> int:
        settings = Settings(**fields)
        return Backend(Endable(StubGenerator([5])), tokenizer, MODEL, SamplingDefaults(), settings).bodies.most

    assert (most(), most(most_body_bytes=7)) == (LEAST_BODY_BYTES, 7)


@pytest.mark.parametrize(
    ("body", "beside"),
    [
        (b'{"messages": []}', False),
        (b'{"tools": []}', True),
        (b'{"\\u0074ools": []}', True),
        (b'{"text": {"format": {"sch\\u0065ma": {}}}}', True),
    ],
)
def test_small_bodies_that_take_time_are_read_beside_the_event_loop(body: bytes, beside: bool) -> None:
    """Also if the word that says so is written with escapes."""

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def where() -> str:
        request = Request({"type": "http"}, receive)
        return await Workers().run(request, body, lambda: threading.current_thread().name)

    assert asyncio.run(where()).startswith("dsv4-request") is beside
