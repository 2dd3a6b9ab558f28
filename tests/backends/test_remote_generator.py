"""A generator over servers: the same events as in process, refusals by name, failures that cost one user at most."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from dsv4.backends import replica as replica_module
from dsv4.backends.http import HttpClient, ServerLostError
from dsv4.backends.protocol import ServerProtocol
from dsv4.backends.replica import FIRST_WAIT, LONGEST_WAIT, Replica
from dsv4.backends.vllm import Vllm
from dsv4.encoding.grammar import Grammars
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
from dsv4.server.dialects.constraints import AfterThinking
from dsv4.testing.engine_server import Faults
from dsv4.testing.stub import StubGenerator
from tests.backends.conftest import KINDS, PROMPT, Kind, Site, ask, run, told


@pytest.mark.parametrize("kind", KINDS)
def test_events_are_those_of_the_engine(site: Site, service: EngineService, kind: Kind) -> None:
    info = {"enable_deterministic_inference": True, "grammar_backend": "llguidance"}
    remote = site.remote(site.server(kind, service, info=info))
    assert isinstance(remote, TokenGenerator)
    assert remote.context_length == 400
    for number, changes in enumerate(
        (
            {"temperature": 0.0},
            {"seed": 5},
            {"seed": 9, "top_p": 0.5, "top_k": 7, "min_p": 0.01},
            {"temperature": 0.0, "logprobs": True, "top_logprobs": 3},
            {"seed": 3, "logprobs": True},
            {"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": -0.5},
            {"temperature": 0.0, "logit_bias": ((7, 30.0),), "stop_ids": (7,)},
            {"temperature": 0.0, "max_tokens": 1},
        )
    ):
        params = replace(SamplingParams(max_tokens=20), **changes)
        prompt = [*PROMPT, 60 + number]
        expected = asyncio.run(told(service, params, prompt))
        # where a prompt comes from is told by both, but the first of the two has filled the cache
        wanted = [replace(event, reused=None, version=None) for event in expected]
        got = ask(remote, params, prompt=prompt)
        assert [replace(event, reused=None) for event in got] == wanted
        assert any(event.reused is not None for event in got)


def test_a_long_prompt_that_the_server_repeats(site: Site) -> None:
    context = 300_000
    remote = site.remote(site.server("vllm", StubGenerator([5, 6], context_length=context)))
    prompt = [100_000] * (context - 9)  # more than 1 MiB as JSON, which vLLM's first chunk repeats
    assert [event.token for event in ask(remote, SamplingParams(), prompt=prompt)] == [5, 6, None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cumulative", [True, False])
def test_streams_in_both_forms(site: Site, kind: Kind, cumulative: bool) -> None:
    server = site.server(kind, StubGenerator([5, 6, 7, 1], reused=2), cumulative=cumulative)
    params = SamplingParams(stop_ids=(1,), temperature=0, logprobs=True, top_logprobs=2)
    expected = asyncio.run(told(server.generator, params))
    got = ask(site.remote(server), params)
    assert [event.token for event in got] == [5, 6, 7, 1]
    assert [event.logprobs for event in got] == [event.logprobs for event in expected]
    assert got[-1].finish is FinishReason.STOP
    assert {event.reused for event in got} == {None, 2}
    assert not server.aborted


def test_what_an_engine_cannot_do_is_refused_by_name(site: Site) -> None:
    sglang = site.remote(site.server("sglang", StubGenerator([5])))
    vllm = site.remote(site.server("vllm", StubGenerator([5])))
    for remote, params, options, name in (
        (vllm, SamplingParams(trace=True), None, "trace"),
        (sglang, SamplingParams(trace=True), None, "trace"),
        (sglang, SamplingParams(seed=1), None, "seed"),
        (sglang, SamplingParams(temperature=0.7, logprobs=True), None, "logprobs"),
        (sglang, SamplingParams(), RequestOptions(priority=1), "priority"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            ask(remote, params, options=options)
    with pytest.raises(ContextLengthError):
        ask(vllm, SamplingParams(), prompt=[5] * 4096)
    assert ask(sglang, SamplingParams(seed=1, temperature=0))[0].token == 5


def test_every_server_is_checked_before_the_first_token(site: Site) -> None:
    able = site.server("sglang", StubGenerator([5]), info={"enable_deterministic_inference": True})
    plain = site.server("sglang", StubGenerator([5]))
    for servers in ((able, plain), (plain, able)):
        with pytest.raises(ValueError, match=r"^seed: "):
            ask(site.remote(*servers), SamplingParams(seed=1))
    # the grammar is one of the second part: it must not be refused when the first one was sent
    tokenizer = site.tokenizer
    calls = Grammars(tokenizer).tool_calls([{"name": "f", "parameters": {"type": "object"}}])
    with pytest.raises(ValueError, match=r"^constraint: tool calls and patterns need llguidance"):
        ask(site.remote(plain), SamplingParams(constraint=AfterThinking(calls, tokenizer)))
    assert not able.asked
    assert not plain.asked


def unwell(monkeypatch: pytest.MonkeyPatch) -> Replica:
    """A server whose health is never good."""

    async def health(client: HttpClient, path: str) -> tuple[int, bytes]:
        await asyncio.sleep(0)
        return 503, b""

    monkeypatch.setattr(HttpClient, "get", health)
    return Replica(0, HttpClient("http://127.0.0.1:9"), Vllm("m"))


def test_a_server_that_stays_lost_is_looked_at_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    replica, before = unwell(monkeypatch), time.monotonic()
    for _ in range(3000):
        assert not asyncio.run(replica.look())
    assert replica.next_look <= time.monotonic() + LONGEST_WAIT
    assert replica.next_look >= before + LONGEST_WAIT


def test_one_loss_counts_once_whatever_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = unwell(monkeypatch)
    assert replica.lost(ConnectionError("gone"))
    due = replica.next_look
    assert not any(replica.lost(ConnectionError("gone too")) for _ in range(5))
    assert (replica.next_look, replica.wait) == (due, 2 * FIRST_WAIT)

    async def at_once() -> list[bool]:
        return list(await asyncio.gather(*(replica.look() for _ in range(5))))

    assert asyncio.run(at_once()) == [False] * 5
    assert replica.wait == 4 * FIRST_WAIT


def test_a_look_that_began_before_the_server_came_back_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses, first_asked = [503, 200], asyncio.Event()

    async def health(client: HttpClient, path: str) -> tuple[int, bytes]:
        status = statuses.pop(0)
        if status == 503:
            await first_asked.wait()
        return status, b""

    monkeypatch.setattr(HttpClient, "get", health)
    replica = Replica(0, HttpClient("http://127.0.0.1:9"), Vllm("m"))
    replica.lost(ConnectionError("gone"))

    async def two() -> None:
        slow = asyncio.create_task(replica.look())
        await asyncio.sleep(0)
        assert await replica.look()
        first_asked.set()
        assert await slow

    asyncio.run(two())
    assert (replica.problem, replica.wait) == (None, FIRST_WAIT)


def test_a_server_that_does_not_say_what_it_is_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "ASK_SECONDS", 0.05)

    async def healthy(client: HttpClient, path: str) -> tuple[int, bytes]:
        return 200, b""

    async def never() -> ServerProtocol:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(HttpClient, "get", healthy)
    replica = Replica(0, HttpClient("http://127.0.0.1:9"), Vllm("m"), never)
    assert not asyncio.run(replica.look())
    assert "does not tell what it is within 0.05 s" in str(replica.problem)


def test_a_length_that_is_no_number_is_the_servers_fault() -> None:
    async def get() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: -3\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(ServerLostError, match="not HTTP"):
                await HttpClient(f"http://127.0.0.1:{port}", silence=20).get("/")

    asyncio.run(get())


@pytest.mark.parametrize("kind", KINDS)
def test_owners_share_no_prefixes(site: Site, kind: Kind) -> None:
    server = site.server(kind, StubGenerator([5]))
    remote = site.remote(server)
    for options in (
        RequestOptions(owner="a"),
        RequestOptions(owner="a"),
        RequestOptions(owner="b"),
        RequestOptions(owner="b", keep=False),
        RequestOptions(owner="b", keep=False),
    ):
        ask(remote, SamplingParams(), options=options)
    salts = [body["cache_salt" if kind == "vllm" else "extra_key"] for body in server.asked]
    assert salts[0] == salts[1]
    assert len(set(salts)) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_an_answer_ends_it_there(site: Site, kind: Kind) -> None:
    stub = StubGenerator([5] * 2000, delay=0.01)
    server = site.server(kind, stub)
    remote = site.remote(server)

    async def leave() -> None:
        async with aclosing(remote.stream(PROMPT, SamplingParams(max_tokens=2000))) as events:
            async for _ in events:
                break
        for _ in range(400):
            if stub.calls and stub.calls[0].closed_early:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the answer goes on")

    run(leave, remote)
    assert stub.calls[0].emitted < 1500
    assert remote.counters()["running"] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [0, 500, 502, 503, 429])
def test_a_request_is_tried_again_where_nothing_was_sent(site: Site, kind: Kind, status: int) -> None:
    server = site.server(kind, StubGenerator([5, 6]), faults=Faults(refuse=[status]))
    remote = site.remote(server)
    events = ask(remote, SamplingParams(), options=RequestOptions(label="one"))
    assert [event.token for event in events] == [5, 6, None]
    assert [body["request_id" if kind == "vllm" else "rid"] for body in server.asked] == ["one", "one~1"]
    assert remote.counters()["remote_retries_total"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_get_better_is_told(site: Site, kind: Kind) -> None:
    server = site.server(kind, StubGenerator([5, 6]))
    remote = site.remote(server)
    server.faults.refuse = [503] * 9
    with pytest.raises(BusyError):
        ask(remote, SamplingParams())
    server.faults.refuse = [400]
    with pytest.raises(ValueError, match="refused with 400"):
        ask(remote, SamplingParams())
    for status, sentence in ((401, "refuses it (status 401"), (500, "failed: refused with 500"), (0, "no engine")):
        server.faults.refuse = [status] * 9
        server.asked.clear()
        [event] = ask(remote, SamplingParams())
        assert event.finish is FinishReason.ERROR
        assert sentence in (event.error or "")
        assert "127.0.0.1" not in (event.error or "")
        # an old connection that is cut is replaced without counting as a try
        assert len(server.asked) in {401: (1,), 500: (3,), 0: (3, 4, 5, 6)}[status]
        server.faults.refuse = []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["die", "junk", "fail"])
def test_a_death_in_the_middle_is_an_error_of_that_answer_alone(site: Site, kind: Kind, how: str) -> None:
    stub = StubGenerator([5, 6, 7, 8], error="no memory" if how == "fail" else None)
    first, second = site.server(kind, stub), site.server(kind, StubGenerator([5, 6, 7, 8], delay=0.05))
    remote = site.remote(first, second)
    first.faults = Faults(die_after=2 if how == "die" else None, junk=how == "junk")

    async def both() -> list[list[TokenEvent]]:
        return list(await asyncio.gather(*(told(remote, SamplingParams(), [0, n]) for n in range(2))))

    answers = run(both, remote)
    [broken] = [events for events in answers if events[-1].finish is FinishReason.ERROR] or [None]
    whole = [events for events in answers if events[-1].finish is FinishReason.STOP]
    if how == "junk":  # nothing was sent yet: it is answered by the other one
        assert broken is None
        assert len(whole) == 2
    else:
        assert broken is not None
        assert [event.token for event in broken[:-1]] == [5, 6, 7, 8][: 2 if how == "die" else 4]
        assert ("in the middle" if how == "die" else "no memory") in (broken[-1].error or "")
    assert [event.token for event in whole[-1]] == [5, 6, 7, 8, None]


@pytest.mark.parametrize("begun", [True, False])
def test_a_server_whose_engine_has_died_is_lost(site: Site, begun: bool) -> None:
    """vLLM tells the streams that run of an "EngineCore encountered an issue", answers 500, and ends later."""
    first = site.server("vllm", StubGenerator([5, 6], error="EngineCore encountered an issue. See stack trace (above)"))
    remote = site.remote(first, site.server("vllm", StubGenerator([5, 6], delay=0.05)))
    first.faults = Faults(unhealthy=True, refuse=[] if begun else [500])

    async def both() -> list[list[TokenEvent]]:
        return list(await asyncio.gather(*(told(remote, SamplingParams(), [0, n]) for n in range(2))))

    ends = [events[-1] for events in run(both, remote)]
    errors = [event.error for event in ends if event.error is not None]
    assert errors == (["the engine behind this server stopped in the middle of the answer; ask again"] if begun else [])
    assert (remote.counters()["remote_lost_total"], remote.counters()["remote_engines_lost"]) == (1, 1)


def test_a_lost_server_is_left_and_found_again(site: Site) -> None:
    stubs = [StubGenerator([5, 6]), StubGenerator([5, 6])]
    servers = [site.server("vllm", stub) for stub in stubs]
    remote = site.remote(*servers)
    servers[0].faults = Faults(refuse=[0] * 100, unhealthy=True)

    async def lose_and_find() -> None:
        for number in range(6):
            events = await told(remote, SamplingParams(), [0, number])
            assert [event.token for event in events] == [5, 6, None]
        assert remote.counters()["remote_engines_lost"] == 1
        assert len(servers[0].asked) == 1  # it was asked once, and left then
        assert remote.failing is None
        servers[0].faults = Faults()
        for _ in range(600):
            if remote.counters()["remote_engines_lost"] == 0:
                break
            await asyncio.sleep(0.05)
        asked = len(servers[0].asked)
        for number in range(6):
            await told(remote, SamplingParams(), [1, number])
        assert len(servers[0].asked) > asked

    run(lose_and_find, remote)


def test_requests_that_fail_with_a_lost_server_count_one_loss(site: Site) -> None:
    server = site.server("vllm", StubGenerator([5] * 1000, delay=0.02))
    remote = site.remote(server)

    async def several() -> list[list[TokenEvent]]:
        running = [asyncio.create_task(told(remote, SamplingParams(max_tokens=1000), [0, n])) for n in range(4)]
        while len(server.asked) < 4:
            await asyncio.sleep(0.01)
        server.faults = Faults(die_after=3, refuse=[0] * 100, unhealthy=True)
        return list(await asyncio.gather(*running))

    answers = run(several, remote)
    assert {events[-1].finish for events in answers} == {FinishReason.ERROR}
    # and one that finds it lost does not lose it once more
    [event] = ask(remote, SamplingParams())
    assert event.finish is FinishReason.ERROR
    assert remote.counters()["remote_lost_total"] == 1


def test_without_any_server_the_generator_says_that_it_fails(site: Site) -> None:
    server = site.server("vllm", StubGenerator([5, 6]))
    remote = site.remote(server)
    server.faults = Faults(refuse=[0] * 100, unhealthy=True)

    async def lose() -> None:
        [event] = await told(remote, SamplingParams())
        assert event.finish is FinishReason.ERROR
        assert "no engine" in (event.error or "")
        assert remote.failing is not None
        # a request finds it again at once, without waiting for the next look
        server.faults = Faults()
        assert [event.token for event in await told(remote, SamplingParams())] == [5, 6, None]
        assert remote.failing is None

    run(lose, remote)


def test_a_deadline_ends_an_answer(site: Site) -> None:
    stub = StubGenerator([5] * 1000, delay=0.02)
    remote = site.remote(site.server("vllm", stub))
    events = ask(remote, SamplingParams(max_tokens=1000), options=RequestOptions(deadline=0.3))
    assert (events[-1].finish, events[-1].error) == (FinishReason.ABORT, "the deadline has passed")
    assert len(events) < 900


def test_connections_are_used_again(site: Site) -> None:
    server = site.server("sglang", StubGenerator([5, 6]))
    remote = site.remote(server)
    opened = []

    async def several() -> None:
        connect = asyncio.open_connection

        async def counted(*args: Any, **options: Any) -> Any:
            opened.append(args)
            return await connect(*args, **options)

        asyncio.open_connection = counted  # pyrefly: ignore
        try:
            for _ in range(5):
                await told(remote, SamplingParams())
        finally:
            asyncio.open_connection = connect

    run(several, remote)
    assert len(server.asked) == 5
    assert len(opened) == 1


def test_a_key_with_a_line_end_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="key must be printable, without line ends") as refused:
        HttpClient("http://127.0.0.1:9", "sk-4711\r\nx: y")
    assert "4711" not in str(refused.value)
