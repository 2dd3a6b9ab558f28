"""What chat completions tell about a long prompt and about speed, in llama.cpp's fields."""

from dataclasses import replace

import pytest

from dsv4.generation import PromptProgress, TokenEvent
from dsv4.server.accounts.prices import LAUNCH, Price, Prices
from dsv4.testing.stub import StubCall, StubGenerator
from tests.server.conftest import Converse, joined

STEPS = (PromptProgress(8, 24, 8, None), PromptProgress(16, 24, 8, 1.5), PromptProgress(24, 24, 8, 0.0))
NAMES = {
    "cache_n",
    "prompt_n",
    "prompt_ms",
    "prompt_per_second",
    "predicted_n",
    "predicted_ms",
    "predicted_per_second",
    "cost_usd",
}


def test_progress_of_a_prompt(serve: Converse) -> None:
    chunks = serve("why</think>Yes.", progress=STEPS).chunks(return_progress=True)
    told = [chunk for chunk in chunks if "prompt_progress" in chunk]
    assert [chunk["choices"][0]["delta"] for chunk in told] == [{}, {}, {}]
    progress = [chunk["prompt_progress"] for chunk in told]
    assert [(step["processed"], step["total"], step["cache"]) for step in progress] == [
        (8, 24, 8),
        (16, 24, 8),
        (24, 24, 8),
    ]
    assert [step["eta_ms"] for step in progress] == [None, 1500.0, 0.0]
    times = [step["time_ms"] for step in progress]
    assert times == sorted(times)
    # the role comes before, the text behind
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks.index(told[-1]) == 3
    assert joined(chunks, "content") == "Yes."


def test_progress_and_timings_only_where_asked_for(serve: Converse) -> None:
    server = serve("why</think>Yes.", progress=STEPS)
    for chunk in [*server.chunks(), server.answer(), server.answer(return_progress=True)]:
        assert "prompt_progress" not in chunk
        assert "timings" not in chunk


@pytest.mark.parametrize("name", ["return_progress", "timings_per_token"])
def test_a_wrong_type_is_named(serve: Converse, name: str) -> None:
    response = serve("x").post(**{name: "yes"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == name


def test_timings_of_a_stream(serve: Converse) -> None:
    server = serve("why</think>Yes, it is.", delay=0.001, reused=4)
    chunks = server.chunks(timings_per_token=True)
    assert "timings" not in chunks[0]
    told = [chunk["timings"] for chunk in chunks[1:]]
    assert all(set(timing) == NAMES for timing in told)
    counts = [timing["predicted_n"] for timing in told]
    assert counts == sorted(counts)
    usage, last = chunks[-1]["usage"], told[-1]
    assert last["predicted_n"] == usage["completion_tokens"]
    assert (last["cache_n"], last["cache_n"] + last["prompt_n"]) == (4, usage["prompt_tokens"])
    assert last["prompt_ms"] >= 1
    assert last["predicted_ms"] >= 1
    expected = 1000 * (last["predicted_n"] - 1) / last["predicted_ms"]
    assert last["predicted_per_second"] == pytest.approx(expected, rel=0.2)


def test_timings_of_a_whole_answer_have_its_cost(serve: Converse) -> None:
    prices = Prices({"tiny": ((LAUNCH, Price(hit=1.0, miss=10.0, output=100.0)),)})
    server = serve("why</think>Yes.", reused=3, settings={"prices": prices})
    answer = server.answer(timings_per_token=True)
    usage, timing = answer["usage"], answer["timings"]
    cost = 3 * 1.0 + (usage["prompt_tokens"] - 3) * 10.0 + usage["completion_tokens"] * 100.0
    assert timing["cost_usd"] == pytest.approx(cost / 1e6)


def test_drafts_are_counted(serve: Converse, monkeypatch: pytest.MonkeyPatch) -> None:
    real = StubGenerator._events

    def drafted(stub: StubGenerator, call: StubCall) -> list[TokenEvent]:
        events = [event for event in real(stub, call) if event.token is not None]
        drafts = [None, *(event.token if i % 3 else 0 for i, event in enumerate(events[1:]))]
        return [replace(event, draft=draft) for event, draft in zip(events, drafts, strict=True)]

    monkeypatch.setattr(StubGenerator, "_events", drafted)
    timing = serve("why</think>Yes, it is.").answer(timings_per_token=True)["timings"]
    others = timing["predicted_n"] - 1
    assert set(timing) == NAMES | {"draft_n", "draft_n_accepted"}
    assert (timing["draft_n"], timing["draft_n_accepted"]) == (others, others - -(-others // 3))


def test_no_speed_of_a_single_token(serve: Converse) -> None:
    timing = serve("", progress=STEPS).answer(timings_per_token=True)["timings"]
    assert timing["predicted_n"] == 1  # the end token
    assert timing["predicted_per_second"] is None
