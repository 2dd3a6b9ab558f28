"""Requests of several prompts or answers in front of an engine whose queue is nearly full, or full."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx
import pytest

from dsv4.encoding import Tokenizer
from dsv4.engine import Engine, EngineService
from dsv4.generation import BusyError, RequestOptions, SamplingParams, TokenEvent
from dsv4.server import create_app
from dsv4.server.dialects import places
from dsv4.server.dialects.completions import prepare_completion
from dsv4.testing.stub import Script, StubGenerator
from dsv4.testing.tiny import tiny_config, tiny_model
from tests.server.conftest import MODEL, Server, listening
from tests.server.test_completion_prompts import chunks_of

PROMPTS = [f"{number} " * (1 + number % 7) for number in range(128)]
STREAMED = pytest.mark.parametrize("stream", [False, True])


class Queueing(StubGenerator):
    """Runs two requests at once and lets `queue` wait. others: places in the queue that other clients hold. With
    `turned_away` they take all places as soon as the first request runs, and leave after so many refusals."""

    def __init__(self, script: Script, *, queue: int, others: int = 0, turned_away: int = 0, **options: Any) -> None:
        super().__init__(script, **options)
        self.queue, self.others, self.turned_away = queue, others, turned_away
        self.waiting = self.running = self.longest = self.refused = 0

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        if self.others + self.waiting >= self.queue:
            self.refused += 1
            if self.refused == self.turned_away:
                self.others = 0
            await asyncio.sleep(0)
            raise BusyError(self.others + self.waiting)
        self.waiting += 1
        self.longest = max(self.longest, self.waiting)
        try:
            await asyncio.sleep(0)
            while self.running >= 2:
                await asyncio.sleep(0.001)
        finally:
            self.waiting -= 1
        if self.turned_away and not self.calls:
            self.others = self.queue
        self.running += 1
        try:
            async for event in super().stream(prompt, params, options):
                yield event
        finally:
            self.running -= 1


def server_of(tokenizer: Tokenizer, script: str | Script = "ok", **options: Any) -> Server:
    if isinstance(script, str):
        script = [*tokenizer.encode_text(script), tokenizer.eos_id]
    return Server(tokenizer, Queueing(script, **options))


def lengths(tokenizer: Tokenizer) -> Script:
    """Answers with the length of the prompt."""
    return lambda prompt, params: [*tokenizer.encode_text(f"{len(prompt)}"), tokenizer.eos_id]


def texts(server: Server, stream: bool, **fields: Any) -> list[str]:
    """The texts of all choices, in order."""
    fields = {"prompt": PROMPTS, **fields}
    if not stream:
        response = server.request("POST", "/v1/completions", json=fields)
        assert response.status_code == 200, response.text
        return [choice["text"] for choice in response.json()["choices"]]
    found: dict[int, str] = {}
    for chunk in chunks_of(server, **fields):
        (choice,) = chunk["choices"]
        found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
    return [found[index] for index in range(len(found))]


@STREAMED
@pytest.mark.parametrize(("queue", "others"), [(128, 0), (5, 0), (5, 4), (1, 0)])
def test_prompts_take_the_places_that_become_free(tokenizer: Tokenizer, queue: int, others: int, stream: bool) -> None:
    server = server_of(tokenizer, lengths(tokenizer), queue=queue, others=others)
    wanted = [str(1 + len(tokenizer.encode_text(prompt))) for prompt in PROMPTS]
    assert texts(server, stream) == wanted
    generator = server.generator
    assert isinstance(generator, Queueing)
    assert generator.longest <= queue - others
    asked = [tokenizer.decode(call.prompt[1:]) for call in generator.calls]
    assert sorted(asked) == sorted(PROMPTS)  # each once
    backend = server.app.state.backend
    assert (backend.running, len(backend.active), backend.metrics.finished["stop"]) == (0, 0, 128)
    assert backend.metrics.finished["abort"] == 0


@STREAMED
def test_answers_of_one_prompt_do_too(tokenizer: Tokenizer, stream: bool) -> None:
    server = server_of(tokenizer, lengths(tokenizer), queue=2)
    assert texts(server, stream, prompt=["a b", "c"], n=20) == ["4"] * 20 + ["2"] * 20


@STREAMED
def test_a_queue_without_a_place_refuses_the_request(tokenizer: Tokenizer, stream: bool) -> None:
    server = server_of(tokenizer, queue=3, others=3)
    response = server.request("POST", "/v1/completions", json={"prompt": PROMPTS, "stream": stream})
    assert response.status_code == 429
    assert "3 requests are waiting" in response.json()["error"]["message"]
    assert response.headers["retry-after"]
    assert not server.generator.calls
    assert server.app.state.backend.running == 0


@STREAMED
def test_places_of_others_are_found_without_a_sign(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """The first prompt is over before others leave the queue, so none of the request is left that could tell."""
    monkeypatch.setattr(places, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(places, "LAST_PAUSE", 0.002)
    server = server_of(tokenizer, queue=3, others=2, turned_away=9)
    generator = server.generator
    assert isinstance(generator, Queueing)
    assert texts(server, stream, prompt=["x", "y", "z"]) == ["ok"] * 3
    assert generator.refused >= 9
    assert generator.calls[0].ended


@STREAMED
@pytest.mark.parametrize(("fault", "status"), [("refused", 400), ("failed", 500)])
def test_the_error_of_one_prompt_ends_the_request_once(
    tokenizer: Tokenizer, fault: str, status: int, stream: bool
) -> None:
    """The prompt waits for a place when others run already."""

    def script(prompt: Sequence[int], params: SamplingParams) -> list[int]:
        if len(prompt) == 1 + len(tokenizer.encode_text(wrong)):
            raise ValueError("seed is wrong") if fault == "refused" else RuntimeError("the engine broke")
        return tokenizer.encode_text("word " * 50)

    wrong = "the wrong one " * 9
    server = server_of(tokenizer, script, queue=4)
    body = {"prompt": [*PROMPTS[:8], wrong, *PROMPTS[8:16]], "stream": stream}
    response = server.request("POST", "/v1/completions", json=body)
    assert response.status_code == (200 if stream else status)
    assert response.text.count('"error"') == 1
    assert "[DONE]" not in response.text
    assert ("seed is wrong" in response.text) == (fault == "refused")
    assert server.app.state.backend.running == 0
    assert all(call.ended or call.closed_early for call in server.generator.calls)
    assert len(server.generator.calls) < 17  # those behind it never began


def test_a_client_that_leaves_a_stream_ends_all(tokenizer: Tokenizer) -> None:
    server = server_of(tokenizer, "word " * 200, queue=4, delay=0.001)
    body = {"prompt": PROMPTS, "stream": True}
    with listening(server) as url:
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
            next(response.iter_lines())
        until = time.monotonic() + 60
        while server.app.state.backend.running and time.monotonic() < until:
            time.sleep(0.01)
        _nothing_is_left(server)
        began = len(server.generator.calls)
    assert len(server.generator.calls) == began < len(PROMPTS)


def test_a_client_that_leaves_before_the_answer_ends_all(tokenizer: Tokenizer) -> None:
    server = server_of(tokenizer, "word " * 200, queue=4, delay=0.001)

    async def run() -> None:
        answer = prepare_completion({"prompt": PROMPTS}, server.app.state.backend, "")
        work = asyncio.ensure_future(answer.complete())
        while not any(call.emitted for call in server.generator.calls):
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await answer.close()

    asyncio.run(run())
    _nothing_is_left(server)


def _nothing_is_left(server: Server) -> None:
    backend, generator = server.app.state.backend, server.generator
    assert isinstance(generator, Queueing)
    assert (backend.running, len(backend.active), generator.waiting, generator.running) == (0, 0, 0, 0)
    assert all(call.ended or call.closed_early for call in generator.calls)
    # prompts that no place was found for were never taken
    assert backend.metrics.finished["abort"] <= 2 + 4


@STREAMED
def test_the_real_engine_answers_more_prompts_than_it_queues(tokenizer: Tokenizer, stream: bool) -> None:
    model = tiny_model(tiny_config(vocab_size=tokenizer.vocab_size))
    service = EngineService(Engine(model, context_length=400, step_tokens=64, sequences=2, queue=3))
    try:
        server = Server(tokenizer, StubGenerator([]))
        fields = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
        server.app = create_app(service, tokenizer, model_name=MODEL)
        several = texts(server, stream, prompt=PROMPTS[:20], **fields)
        alone = [texts(server, stream, prompt=prompt, **fields)[0] for prompt in PROMPTS[:20]]
        assert several == alone
    finally:
        service.close()
