"""Rollouts over HTTP: the tokens are those of the engine, and a server that dies is continued elsewhere."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from dsv4.encoding import Tokenizer
from dsv4.engine import EngineService
from dsv4.generation import (
    BusyError,
    ContextLengthError,
    FinishReason,
    RequestOptions,
    SamplingParams,
    TokenEvent,
    TokenGenerator,
)
from dsv4.posttraining.http import HttpGenerator, ServerLostError
from dsv4.posttraining.rollout import RolloutRunner, RolloutSettings
from dsv4.posttraining.types import Prompt
from dsv4.testing.stub import StubGenerator
from tests.posttraining.policies import Lengths, run
from tests.server.conftest import Server, listening

PARAMS = SamplingParams(max_tokens=20, logprobs=True, seed=5)


def client(tokenizer: Tokenizer, url: str, **more: Any) -> HttpGenerator:
    return HttpGenerator(url, tokenizer.bos_id, tokenizer.eos_id, 400, **more)


async def told(generator: TokenGenerator, prompt: list[int], params: SamplingParams) -> list[TokenEvent]:
    return [event async for event in generator.stream(prompt, params)]


@pytest.fixture(scope="module")
def address(tokenizer: Tokenizer, service: EngineService) -> Iterator[str]:
    yield from _listening(Server(tokenizer, service))  # pyrefly: ignore


def _listening(server: Server) -> Iterator[str]:
    with listening(server) as address:
        yield address


def test_events_are_those_of_the_engine(tokenizer: Tokenizer, service: EngineService, address: str) -> None:
    remote = client(tokenizer, address)
    assert isinstance(remote, TokenGenerator)
    for changes in ({}, {"temperature": 0.0}, {"top_p": 0.5, "seed": 9}, {"logit_bias": ((tokenizer.eos_id, 20.0),)}):
        params = replace(PARAMS, stop_ids=(tokenizer.eos_id,), **changes)
        prompt = [tokenizer.bos_id, *range(40, 60)]
        expected, got = run(told(service, prompt, params)), run(told(remote, prompt, params))
        tokens = [(e.token, e.logprobs) for e in expected]
        assert [(e.token, e.logprobs) for e in got if e.token is not None] == tokens
        assert got[-1].finish == expected[-1].finish
        ended = tokens[-1][0] == tokenizer.eos_id
        assert (got[-1].token == tokenizer.eos_id) == ended == ("logit_bias" in changes)


def test_control_tokens_and_calls_end_no_answer(tokenizer: Tokenizer) -> None:
    said = [tokenizer.token_id(text) for text in ("</think>", "<｜User｜>", "<think>", "｜DSML｜")]
    said += tokenizer.encode_text("\n\n<｜DSML｜tool_calls>\n</｜DSML｜tool_calls>x", trusted=True)
    stub = StubGenerator([*said, tokenizer.eos_id], context_length=400)
    with listening(Server(tokenizer, stub)) as address:
        params = SamplingParams(max_tokens=50, logprobs=True, stop_ids=(tokenizer.eos_id,))
        events = run(told(client(tokenizer, address), [tokenizer.bos_id, 50], params))
    assert [event.token for event in events] == [*said, tokenizer.eos_id]
    assert events[-1].finish is FinishReason.STOP
    assert stub.calls[0].prompt == [tokenizer.bos_id, 50]
    assert not stub.calls[0].closed_early


def test_rollouts_over_http_are_those_of_the_engine(tokenizer: Tokenizer, service: EngineService, address: str) -> None:
    prompts = [Prompt(f"p{i}", (tokenizer.bos_id, 50 + i, 60), "math") for i in range(2)]

    def batch(generator: Any) -> Any:
        settings = RolloutSettings(group=2, max_tokens=30)
        runner = RolloutRunner(generator, {"math": Lengths()}, settings, end=tokenizer.eos_id)
        return run(runner.batch(prompts, 0))

    assert batch(client(tokenizer, address)) == batch(service)


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close a connection in the end; who is cancelled does not wait for what is still to be sent."""
    try:
        yield
    except asyncio.CancelledError:
        writer.transport.abort()
        raise
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """The address of a server that answers so; all its connections are closed behind it."""
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with closing(writer):
            await answer(reader, writer)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.create_task(serve(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "answered what is not HTTP"),
        (b"HTTP/1.1 200 OK\r\n", "answered what is not HTTP"),
        (b"SSH-2.0\r\n\r\n", "answered what is not HTTP"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata", "died in the middle of an answer"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n", "died in the middle of an answer"),
        (b"HTTP/1.1 200 OK\r\n\r\n: nothing\n", "ended an answer without a reason"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": [{"text": "a"}]}\n', "gives no token ids"),
        (b"HTTP/1.1 502 Bad\r\n\r\nproxy", "answers 502: proxy"),
    ],
)
def test_a_server_that_dies_is_told(tokenizer: Tokenizer, answer: bytes, error: str) -> None:
    async def ask() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)

        async with answering(serve) as url:
            with pytest.raises(ServerLostError, match=error):
                await told(client(tokenizer, url), [tokenizer.bos_id, 50], PARAMS)

    run(ask())


def test_a_server_that_is_silent_or_gone_is_lost(tokenizer: Tokenizer) -> None:
    async def ask() -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with answering(serve) as url:
            with pytest.raises(ServerLostError, match=r"said nothing for 0\.2 s"):
                await told(client(tokenizer, url, silence=0.2), [tokenizer.bos_id, 50], PARAMS)
        return url

    gone = run(ask())
    with pytest.raises(ServerLostError, match="cannot be reached"):
        run(told(client(tokenizer, gone), [tokenizer.bos_id, 50], PARAMS))


def test_a_rollout_goes_on_when_its_server_comes_back(
    tokenizer: Tokenizer, service: EngineService, address: str
) -> None:
    """A proxy that cuts the connection after some bytes, again and again."""
    prompts = [Prompt("p", (tokenizer.bos_id, 50, 60), "math")]
    settings = RolloutSettings(group=2, max_tokens=30)

    async def batch() -> Any:
        cuts, port = [], int(address.rsplit(":", 1)[1])

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            async with closing(inner_writer):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                inner_writer.write(head + await reader.readexactly(length))
                left = 3000 + 700 * len(cuts)
                while left > 0 and (data := await inner_reader.read(500)):
                    writer.write(data)
                    left -= len(data)
                cuts.append(left)

        async with answering(serve) as url:
            generator = client(tokenizer, url)
            runner = RolloutRunner(generator, {"math": Lengths()}, settings, end=tokenizer.eos_id)
            groups = await runner.batch(prompts, 0)
        assert sum(left <= 0 for left in cuts) >= 2
        return groups

    whole = RolloutRunner(service, {"math": Lengths()}, settings, end=tokenizer.eos_id)
    assert run(batch()) == run(whole.batch(prompts, 0))


def test_refusals_are_those_of_the_protocol(tokenizer: Tokenizer) -> None:
    begin = tokenizer.bos_id
    full = Server(tokenizer, StubGenerator([50], context_length=20), max_requests=0)
    with listening(full) as address, pytest.raises(BusyError):
        run(told(client(tokenizer, address), [begin, 50], PARAMS))
    with listening(Server(tokenizer, StubGenerator([50], context_length=20, error="no memory"))) as address:
        remote = client(tokenizer, address)
        with pytest.raises(ContextLengthError, match="the prompt has 40 tokens"):
            run(told(remote, [begin, *[50] * 39], PARAMS))
        with pytest.raises(ValueError, match="model"):
            run(told(client(tokenizer, address, model="none"), [begin, 50], PARAMS))
        last = run(told(remote, [begin, 50], PARAMS))[-1]
        assert (last.finish, last.error) == (FinishReason.ERROR, "no memory")
        for params, options, name in (
            (replace(PARAMS, trace=True), None, "trace"),
            (replace(PARAMS, stop_ids=(9,)), None, "stop_ids"),
            (PARAMS, RequestOptions(priority=1), "priority"),
            (PARAMS, RequestOptions(deadline=1), "deadline"),
        ):
            with pytest.raises(ValueError, match=f"{name}: cannot be asked of a server"):
                run(anext(remote.stream([begin, 50], params, options)))
        with pytest.raises(ValueError, match=f"prompts of this server begin with token {begin}"):
            run(told(remote, [50], PARAMS))
    with pytest.raises(ValueError, match="url must be http://host:port"):
        client(tokenizer, "localhost:8000")
    with pytest.raises(ValueError, match="key must be printable, without line ends"):
        HttpGenerator("http://127.0.0.1:9", 0, 1, 64, key="a\nb")
