"""Requests that are sent again: what is told, when a server counts as gone, and what is not tried twice."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from dsv4.evals.retries import BrokenAnswerError, Retries
from dsv4.evals.suite import Answer
from dsv4.verify.endpoint import RefusedError, UnreachableError

URL = "http://127.0.0.1:9"
LOST, BUSY = UnreachableError("All connection attempts failed"), RefusedError(503, "busy", "")


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.evals.retries.WAITS", (0.01,) * 4)


def sends(*outcomes: Exception | str) -> tuple[Callable[[], Awaitable[Answer]], list[str]]:
    """What gives these outcomes, one after another and the last for ever, and a list that grows with each."""
    called: list[str] = []

    async def send() -> Answer:
        found = outcomes[min(len(called), len(outcomes) - 1)]
        called.append(str(found))
        if isinstance(found, Exception):
            raise found
        return Answer(found)

    return send, called


def test_a_lost_server_is_asked_again_and_the_user_is_told() -> None:
    told: list[str] = []
    send, called = sends(LOST, LOST, "hello")
    assert asyncio.run(Retries(URL, told.append).ask(send)).content == "hello"
    assert len(called) == 3
    assert len(told) == 3
    assert told[0].startswith(f"{URL}: All connection attempts failed; the requests that failed are sent again in")
    assert "try 2 of 5, the last one at about " in told[0]
    assert "try 3 of 5" in told[1]
    assert told[2] == f"{URL} answers again"


def test_a_server_that_is_gone_is_given_up_for_all() -> None:
    told: list[str] = []
    retries = Retries(URL, told.append)
    send, called = sends(LOST)
    with pytest.raises(UnreachableError, match=f"{URL}: given up after 5 tries, the last with: All connection"):
        asyncio.run(retries.ask(send))
    assert len(called) == 5
    assert told[-1].startswith(f"{URL}: given up after 5 tries")
    with pytest.raises(UnreachableError, match="given up"):
        asyncio.run(retries.ask(send))
    assert len(called) == 5, "nothing is sent to a server that is gone"


def test_many_requests_that_fail_at_once_are_told_of_once() -> None:
    told: list[str] = []
    retries = Retries(URL, told.append)

    async def all_at_once() -> list[BaseException | Answer]:
        return await asyncio.gather(*(retries.ask(sends(LOST)[0]) for _ in range(32)), return_exceptions=True)

    assert all(isinstance(found, UnreachableError) for found in asyncio.run(all_at_once()))
    assert len(told) == 4 + 1


def test_a_request_that_always_fails_does_not_end_a_server_that_answers_others() -> None:
    retries = Retries(URL)

    async def beside() -> None:
        failing = asyncio.create_task(retries.ask(sends(LOST)[0]))
        await asyncio.sleep(0.02)
        await retries.ask(sends("hello")[0])
        with pytest.raises(UnreachableError):
            await failing
        assert (await retries.ask(sends("still here")[0])).content == "still here"

    asyncio.run(beside())


def test_a_server_that_breaks_one_answer_is_not_gone() -> None:
    told: list[str] = []
    retries = Retries(URL, told.append)
    send, called = sends(BrokenAnswerError("the stream ends without [DONE]"))
    with pytest.raises(UnreachableError, match="given up after 5 tries, the last with: the stream ends"):
        asyncio.run(retries.ask(send))
    assert len(called) == 5
    assert asyncio.run(retries.ask(sends("hello")[0])).content == "hello"
    assert len(told) == 4


def test_a_busy_server_is_asked_again_and_is_not_gone() -> None:
    told: list[str] = []
    retries = Retries(URL, told.append)
    send, called = sends(BUSY)
    with pytest.raises(UnreachableError, match="given up after 5 tries, the last with: status 503: busy"):
        asyncio.run(retries.ask(send))
    assert len(called) == 5
    assert asyncio.run(retries.ask(sends("hello")[0])).content == "hello"
    assert len(told) == 4


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_what_is_wrong_with_a_request_is_not_tried_again(status: int) -> None:
    send, called = sends(RefusedError(status, "no", ""))
    with pytest.raises(RefusedError):
        asyncio.run(Retries(URL).ask(send))
    assert len(called) == 1
