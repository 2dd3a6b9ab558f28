"""The spans of answers: what they tell, that they hold no text unless that is wanted, and what is off by default."""

import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from dsv4.cli.server_flags import ServerFlags
from dsv4.generation import BusyError, PromptProgress, TokenEvent
from dsv4.server.accounts.tracing import BETWEEN_NOTES, ExportNotes, Tracing, collector_address
from dsv4.server.mcp.routes import tool_name
from tests.server.conftest import Converse, Server
from tests.server.test_chat import CALL, TOOLS

PROGRESS = (PromptProgress(8, 24, 8, None, 0.0), PromptProgress(24, 24, 8, 0.0, 0.001))
SECRET = "a question that nobody else may read"
CLIENT_TRACE, CLIENT_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

Traced = Callable[..., tuple[Tracing, Any]]


@pytest.fixture
def traced() -> Traced:
    """`traced(...)`: a `Tracing` and the memory that its spans go to."""
    pytest.importorskip("opentelemetry.sdk.trace", reason="needs the extra otel")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    def build(*, content: bool = False, **options: Any) -> tuple[Tracing, Any]:
        memory, provider = InMemorySpanExporter(), TracerProvider(**options)
        provider.add_span_processor(SimpleSpanProcessor(memory))
        return Tracing(provider, content=content), memory

    return build


def record(server: Server, traced: Traced, **options: Any) -> Any:
    server.app.state.backend.tracing, memory = traced(**options)
    return memory


def by_name(memory: Any) -> dict[str, Any]:
    spans = memory.get_finished_spans()
    names = [span.name for span in spans]
    assert len(set(names)) == len(names)
    return dict(zip(names, spans, strict=True))


def test_an_answer_is_a_span_with_its_parts(serve: Converse, traced: Traced) -> None:
    server = serve("six times seven</think>Forty-two.", progress=PROGRESS, reused=8, delay=0.002)
    memory = record(server, traced)
    answer = server.answer(temperature=0.5, thinking=False, max_tokens=50, seed=7)
    spans = by_name(memory)
    assert set(spans) == {"chat tiny", "queue", "prefill", "decode"}
    whole = spans.pop("chat tiny")
    told, usage = dict(whole.attributes), answer["usage"]
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.provider.name"] == "dsv4"
    assert told["gen_ai.request.temperature"] == 0.5
    assert told["gen_ai.request.seed"] == 7
    assert told["gen_ai.request.stream"] is False
    assert told["gen_ai.response.id"] == answer["id"]
    assert told["gen_ai.response.finish_reasons"] == ("stop",)
    assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.cache_read.input_tokens"] == 8
    assert told["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert "error.type" not in told
    for part in spans.values():
        assert part.parent.span_id == whole.context.span_id
        assert whole.start_time - 1_000_000 <= part.start_time <= part.end_time <= whole.end_time + 1_000_000
    assert abs(spans["queue"].end_time - spans["prefill"].start_time) < 1_000_000
    assert abs(spans["prefill"].end_time - spans["decode"].start_time) < 1_000_000


def test_each_call_that_is_written_is_a_span(serve: Converse, traced: Traced) -> None:
    server = serve(CALL, delay=0.001)
    memory = record(server, traced)
    chunks = server.chunks(tools=TOOLS)
    call = by_name(memory)["tool_call weather"]
    sent = [each for chunk in chunks for each in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert call.attributes["gen_ai.tool.call.id"] == sent[0]["id"]
    assert call.end_time > call.start_time


@pytest.mark.parametrize("content", [False, True])
def test_texts_are_recorded_only_where_that_is_wanted(serve: Converse, traced: Traced, content: bool) -> None:
    server = serve("thought</think>answered")
    memory = record(server, traced, content=content)
    server.answer(messages=[{"role": "user", "content": SECRET}], stop=["stop here"])
    everything = json.dumps([json.loads(span.to_json()) for span in memory.get_finished_spans()])
    for text in (SECRET, "thought", "answered"):
        assert (text in everything) is content
    assert "stop here" not in everything
    if content:
        told = by_name(memory)["chat tiny"].attributes
        (message,) = json.loads(told["gen_ai.output.messages"])
        assert message["parts"] == [
            {"type": "reasoning", "content": "thought"},
            {"type": "text", "content": "answered"},
        ]


def test_a_clients_trace_goes_on(serve: Converse, traced: Traced) -> None:
    server = serve("Hi.")
    memory = record(server, traced)
    server.request(
        "POST",
        "/v1/messages",
        json={"model": "tiny", "max_tokens": 20, "messages": [{"role": "user", "content": "Hi"}]},
        headers={"traceparent": f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01"},
    )
    whole = by_name(memory)["chat tiny"]
    assert f"{whole.context.trace_id:032x}" == CLIENT_TRACE
    assert f"{whole.parent.span_id:016x}" == CLIENT_SPAN


def test_what_is_not_sampled_costs_no_spans(serve: Converse, traced: Traced) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    server = serve("Hi.")
    memory = record(server, traced, sampler=ALWAYS_OFF)
    server.answer()
    assert memory.get_finished_spans() == ()


@pytest.mark.parametrize(("error", "kind"), [("the engine failed", "engine_error"), (None, "refused")])
def test_a_failed_answer_tells_its_error(
    serve: Converse, traced: Traced, monkeypatch: pytest.MonkeyPatch, error: str | None, kind: str
) -> None:
    server = serve("Hi", ended=False, error=error)
    if error is None:

        async def refuse(*_: Any) -> AsyncIterator[TokenEvent]:
            raise BusyError(9)
            yield

        monkeypatch.setattr(server.app.state.backend.generator, "stream", refuse, raising=False)
    memory = record(server, traced)
    assert server.post().status_code >= 400
    whole = by_name(memory)["chat tiny"]
    assert whole.attributes["error.type"] == kind
    assert whole.attributes["gen_ai.response.finish_reasons"] == (kind,)
    assert not whole.status.is_ok


def test_several_answers_are_several_spans_of_one_request(serve: Converse, traced: Traced) -> None:
    server = serve("Hi.")
    memory = record(server, traced)
    server.answer(n=3)
    whole = [span for span in memory.get_finished_spans() if span.name == "chat tiny"]
    assert [span.attributes["gen_ai.request.choice.count"] for span in whole] == [3, 3, 3]


def test_a_tool_of_the_server_is_a_span(traced: Traced) -> None:
    tracing, memory = traced()
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "read_file", "arguments": {}}}
    with tracing.tool(tool_name(message), {}):
        pass
    with pytest.raises(OSError, match="broken"), tracing.tool("write_file", {}):
        raise OSError("broken")
    spans = by_name(memory)
    assert spans["execute_tool read_file"].attributes["gen_ai.operation.name"] == "execute_tool"
    assert spans["execute_tool write_file"].attributes["error.type"] == "abort"


def test_without_the_flag_nothing_is_traced(serve: Converse) -> None:
    assert serve("Hi.").app.state.backend.tracing is None
    assert ServerFlags()._tracing() is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"otel": "localhost:4318"}, r"--otel must be an address \(http://...\) or env, got 'localhost:4318'"),
        ({"otel": "http://"}, "--otel must be an address"),
        ({"otel": "http://127.0.0.1:99999"}, "--otel must be an address"),
        ({"otel": "http://[::1"}, "--otel must be an address"),
        ({"otel": "http://a b:4318"}, "--otel must be an address"),
        ({"otel": "env", "otel_sample": 0.0}, r"--otel-sample must be in \(0, 1\], got 0.0"),
        ({"otel_content": True}, "--otel-sample and --otel-content need --otel"),
    ],
)
def test_wrong_flags_are_named(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ServerFlags(**flags)._tracing()


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:4318", "http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"]
)
def test_the_path_of_traces_is_added_once(endpoint: str) -> None:
    assert collector_address(endpoint) == "http://127.0.0.1:4318/v1/traces"


def test_a_collector_that_is_away_is_told_seldom(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("exporter")
    notes = ExportNotes()
    logger.addHandler(notes)
    for number in range(50):
        logger.warning("try %d failed", number)
    notes._next -= BETWEEN_NOTES
    logger.warning("still away")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["warning"], line["left_out"]) for line in lines] == [("try 0 failed", 0), ("still away", 49)]


def test_a_collector_that_hangs_does_not_hold_the_end(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    tracing, _ = traced()
    hanging = threading.Event()
    monkeypatch.setattr(tracing._provider, "shutdown", hanging.wait)
    monkeypatch.setattr("dsv4.server.accounts.tracing.CLOSING", 0.01)
    tracing.close()
    hanging.set()
