"""`dsv4 bench serve` on stubs: what it sends, what it counts, and that it ends."""

import json
import math
import re
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dsv4.bench.serving.page import page
from dsv4.bench.serving.run import BenchReport, run
from dsv4.bench.serving.settings import BenchSettings, LoadLevel
from dsv4.bench.serving.target import BenchTarget
from dsv4.cli.bench_serve import bench_serve
from dsv4.cli.workload_flags import WorkloadFlags
from dsv4.encoding import Tokenizer
from dsv4.generation import RequestOptions, SamplingParams, TokenEvent
from dsv4.testing.stub import StubGenerator
from dsv4.verify.endpoint import Endpoint
from dsv4.workload.kinds import Workload
from dsv4.workload.timing import ServiceLimits
from dsv4.workload.trace import PromptBlock, TraceRequest, sessions_of, write_trace
from tests.conftest import ROOT
from tests.server.conftest import Server, listening
from tests.verify.raw_server import STREAM, drips, raw_server


class Watched(StubGenerator):
    """Knows how many answers ran at a time."""

    running = most = 0

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async for event in super().stream(prompt, params, options):
                yield event
        finally:
            self.running -= 1


class Front:
    """An application around a server that refuses requests with some fields, and reports no usage."""

    def __init__(self, server: Server, refused: Sequence[str]) -> None:
        self._app, self._refused = server.app, refused
        self.app: Any = self

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        if set(json.loads(body)) & set(self._refused):
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b'{"error": {"message": "unknown field"}}'})
            return
        told = [{"type": "http.request", "body": body}]

        async def again() -> Any:
            return told.pop() if told else await receive()

        async def silent(event: Any) -> None:
            if "body" in event:
                event["body"] = event["body"].replace(b'"usage"', b'"other"')
            await send(event)

        await self._app(scope, again, silent)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(ROOT / "models" / "nano")


@pytest.fixture
def words(tokenizer: Tokenizer) -> list[int]:
    """Tokens that are text of their own each."""
    return [t for t in range(tokenizer.vocab_size) if re.fullmatch(rb" [a-z]{3,}", tokenizer.token_bytes(t))][:20] * 50


def stub(tokenizer: Tokenizer, words: list[int], **options: Any) -> tuple[Server, Watched]:
    generator = Watched(words, 65_536, **options)
    return Server(tokenizer, generator), generator


def measured(*servers: Any, **settings: Any) -> BenchReport:
    """The report of a run over servers that stand ready."""
    urls, made = [], [listening(server) for server in servers]
    try:
        urls = [server.__enter__() for server in made]
        targets = [BenchTarget(Endpoint(url, silence=600), f"server {place}") for place, url in enumerate(urls)]
        chosen: dict[str, Any] = {"loads": (LoadLevel(users=2),), "requests": 8, "seconds": 30, **settings}
        return run(targets, BenchSettings(**chosen), lambda line: None, lambda point: None)
    finally:
        for server in made[: len(urls)]:
            server.__exit__(None, None, None)


def test_lengths_and_counts_are_as_asked(tokenizer: Tokenizer, words: list[int]) -> None:
    server, generator = stub(tokenizer, words)
    report = measured(server, workload=Workload(input=300, output=12))
    (point,) = report.points
    asked = generator.calls[-8:]
    assert all(abs(len(call.prompt) - 300) < 30 for call in asked)
    assert len({tuple(call.prompt) for call in asked}) == 8
    assert {call.params.max_tokens for call in asked} == {12}
    assert (point.summary.finished, point.summary.generated, point.summary.errors) == (8, 96, {})
    assert point.summary.prompt == sum(len(call.prompt) for call in asked)
    assert all(len(timing.arrivals) <= 12 and timing.first > 0 for timing in point.timings)
    assert report.warnings["server 0"] == []
    assert generator.most == 2


def test_two_servers_get_the_same_in_turns(tokenizer: Tokenizer, words: list[int]) -> None:
    (one, first), (two, second) = stub(tokenizer, words, delay=0.004), stub(tokenizer, words, reused=3)
    loads = (LoadLevel(users=1), LoadLevel(users=4), LoadLevel(rate=200.0))
    report = measured(one, two, loads=loads, workload=Workload(input=60, output=5), limits=ServiceLimits(ttft=20.0))
    assert [(p.target, p.load.name) for p in report.points] == [
        (target, load) for load in ("1 user", "4 users", "200/s") for target in ("server 0", "server 1")
    ]
    assert sorted(call.prompt for call in first.calls) == sorted(call.prompt for call in second.calls)
    assert {point.summary.good for point in report.points} == {8}
    assert first.most > 2
    assert report.points[1].summary.cached == 24
    text = page(report)
    assert text.count("<svg") == 6
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)
    assert "server 0" in text
    assert "server 1" in text
    kept = json.loads(json.dumps(report.to_dict()))
    assert len(kept["points"]) == 6
    assert kept["points"][0]["goodput"] > 0


def test_agents_send_back_the_answers(tokenizer: Tokenizer, words: list[int]) -> None:
    server, generator = stub(tokenizer, words)
    workload = Workload("agent", input=40, output=8, shared=100, turns=3, tool=20)
    report = measured(server, workload=workload, requests=6)
    assert report.points[0].summary.finished == 6
    prompts = sorted((call.prompt for call in generator.calls[-6:]), key=len)
    grown = [(a, b) for a in prompts for b in prompts if len(b) > len(a) and b[: len(a)] == a]
    assert len(grown) >= 4  # each later prompt begins with the whole earlier one of its session
    said = tokenizer.decode(words[:4])
    assert all(said in tokenizer.decode(b) for _, b in grown)


def test_a_trace_is_sent(tokenizer: Tokenizer, words: list[int], tmp_path: Path) -> None:
    shared = PromptBlock("a", 80)
    trace = [TraceRequest((shared, PromptBlock(str(n), 40)), 3 + n, at=0.01 * n) for n in range(4)]
    server, generator = stub(tokenizer, words)
    report = measured(server, loads=(LoadLevel(),), trace=tuple(sessions_of(trace)))
    assert report.points[0].load.name == "as traced"
    assert sorted(call.params.max_tokens for call in generator.calls[-4:]) == [3, 4, 5, 6]
    start = {tuple(call.prompt[:60]) for call in generator.calls[-4:]}
    assert len(start) == 1


def test_what_an_endpoint_refuses_is_told(tokenizer: Tokenizer, words: list[int]) -> None:
    server, _ = stub(tokenizer, words)
    report = measured(Front(server, ["ignore_eos", "stream_options"]), workload=Workload(input=50, output=4))
    told = " ".join(report.warnings["server 0"])
    assert "ignore_eos" in told
    assert "`stream_options` is refused" in told
    for what in ("prompts", "answers"):
        assert f"tokens of {what} are not reported" in told
    assert "no hit rate" in told
    assert report.points[0].summary.finished == 8
    assert report.points[0].summary.hit_rate is None


def test_short_answers_and_errors_are_counted(tokenizer: Tokenizer, words: list[int]) -> None:
    (short, _), (broken, _) = stub(tokenizer, words[:2]), stub(tokenizer, words[:3], error="planted")
    report = measured(short, broken, workload=Workload(input=50, output=9))
    first, second = report.points
    assert first.summary.short == 8
    assert any("ended before the length" in text for text in report.warnings["server 0"])
    assert second.summary.finished == 0
    assert sum(second.summary.errors.values()) == 8
    assert "planted" in page(report) or "error in the stream" in page(report)


@pytest.mark.parametrize(
    "event",
    ['{"choices": [null]}', '{"choices": 5}', '{"choices": {"a": 1}}', '{"choices": [{"delta": "x"}]}', "[1]"],
)
def test_an_event_of_another_form_is_an_error_of_the_server(event: str) -> None:
    class Odd(Endpoint):
        def events(self, body: Any, until: float = math.inf) -> Iterator[str]:
            yield event

    timing = BenchTarget(Odd("http://127.0.0.1:9"), "odd").ask([], 4, 0.0, math.inf)
    assert timing.error == "an event is no part of a chat completion"


def test_a_stream_of_comments_is_cut_in_time() -> None:
    with raw_server(drips(STREAM, b": still here\n\n")) as url:
        began = time.monotonic()
        timing = BenchTarget(Endpoint(url), "odd").ask([], 4, 0.0, began + 0.2)
        assert timing.unfinished
        assert time.monotonic() - began < 15


@pytest.mark.parametrize("load", [LoadLevel(users=2), LoadLevel(rate=50.0)])
def test_a_slow_server_does_not_hold_the_run(tokenizer: Tokenizer, words: list[int], load: LoadLevel) -> None:
    server, _ = stub(tokenizer, words, delay=0.05)
    report = measured(
        server, loads=(load,), workload=Workload(input=20, output=900), requests=10_000, seconds=0.5, patience=0.5
    )  # all answers would take hours
    summary = report.points[0].summary
    assert summary.unfinished > 0
    assert summary.finished == 0
    assert any("were cut" in text for text in report.warnings["server 0"])


def test_the_command(
    tokenizer: Tokenizer, words: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html, data, trace = (tmp_path / name for name in ("r.html", "r.json", "t.jsonl"))
    with listening(stub(tokenizer, words)[0]) as one, listening(stub(tokenizer, words)[0]) as two:
        load = WorkloadFlags("prefix", users=[2], requests=4, input=30, shared=50, output=4)
        with pytest.raises(SystemExit) as ended:
            bench_serve(one, against=[two], report=html, json=data, write_trace=trace, load=load)
        assert ended.value.code == 0
        with pytest.raises(SystemExit) as ended:
            bench_serve(one, load=WorkloadFlags(trace=trace, users=[1]))
        assert ended.value.code == 0
    said = capsys.readouterr()
    assert len([line for line in said.out.splitlines() if " 4/4 " in line]) == 3
    assert html.read_text().startswith("<!doctype html>")
    assert {point["load"] for point in json.loads(data.read_text())["points"]} == {"2 users"}


def test_an_endpoint_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench_serve("http://127.0.0.1:9")
    assert ended.value.code == 2
    assert "cannot be measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"url": "http://192.0.2.1:80"}, "not on this machine .*add --remote"),
        ({"url": "http://localhost.example.org"}, "not on this machine"),
        ({"against": ["http://192.0.2.1"]}, "not on this machine"),
        ({"url": "ftp://127.0.0.1"}, "URL must be http"),
        ({"load": WorkloadFlags(requests=0)}, r"--requests must be in \[1, "),
        ({"load": WorkloadFlags(users=[0])}, r"--users must be in \[1, 1024\]"),
        ({"load": WorkloadFlags(rate=[0.0])}, "--rate must be in"),
        ({"seconds": 0.0}, "--seconds must be in"),
        ({"url": "http://127.0.0.1:99999"}, "URL must be http"),
        ({"url": "http://127.0.0.1:port"}, "URL must be http"),
        ({"load": WorkloadFlags(speed=math.nan)}, "--speed must be more than 0"),
        ({"load": WorkloadFlags(turns=0)}, "--turns must be at least 1"),
        ({"load": WorkloadFlags(max_tpot=-1.0)}, "--max-tpot must be more than 0"),
        ({"extra": "[]"}, "--extra must be a JSON object"),
        ({"report": Path("x.txt")}, "--report writes HTML"),
    ],
)
def test_mistakes_name_the_flag(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench_serve(**{"url": "http://127.0.0.1:9", **flags})


def test_a_trace_without_times_needs_a_load(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.jsonl", [TraceRequest((PromptBlock("a", 5),), 1)])
    with pytest.raises(ValueError, match="give --rate or --users"):
        bench_serve("http://127.0.0.1:9", load=WorkloadFlags(trace=tmp_path / "t.jsonl"))


def test_names_of_endpoints_are_escaped(tokenizer: Tokenizer, words: list[int]) -> None:
    server, _ = stub(tokenizer, words)
    report = measured(server, workload=Workload(input=20, output=2), requests=1)
    report.targets["server 0"] = "<script>alert(1)</script>"
    assert "<script>" not in page(report)
