"""The engine: the tokens are those of the model alone, whoever else runs; every place is given back."""

from collections.abc import Iterator
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from dsv4.engine import Engine
from dsv4.engine.request import Request, RequestStatus
from dsv4.generation import Completion, FinishReason, SamplingParams, TokenEvent, collect
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config, tiny_model

VOCABULARY = 97
PROMPTS = [5, 130, 1, 64, 2]
COUNT = 7
GREEDY = SamplingParams(max_tokens=COUNT, temperature=0)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


@pytest.fixture
def engine(model: Transformer) -> Iterator[Engine]:
    """Three slots, three pages of 256; no token ends an answer, so that lengths are known."""
    engine = Engine(model, context_length=512, cache_tokens=768, sequences=3, step_tokens=48)
    engine.ends = frozenset()
    yield engine
    assert not engine.busy
    assert engine.check_integrity()


def prompt_of(length: int, seed: int = 0) -> list[int]:
    own = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(0, VOCABULARY, (length,), generator=own).tolist()


def drain(engine: Engine) -> dict[Request, list[TokenEvent]]:
    events: dict[Request, list[TokenEvent]] = {}
    while engine.busy:
        for request, event in engine.step():
            events.setdefault(request, []).append(event)
    return events


def together(engine: Engine, jobs: list[tuple[list[int], SamplingParams]]) -> list[Completion]:
    """All jobs in one engine, arriving one per step."""
    requests, events = [], {}
    for prompt, params in jobs:
        requests.append(engine.submit(prompt, params))
        for request, event in engine.step():
            events.setdefault(request, []).append(event)
    for request, more in drain(engine).items():
        events.setdefault(request, []).extend(more)
    return [collect(iter(events[request])) for request in requests]


@torch.inference_mode()
def argmax_by_full_forward(model: Transformer, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        x_TSD = model.hidden(torch.tensor(tokens), model.pack([len(tokens)]))
        tokens.append(int(model.logits(x_TSD[-1:]).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("length", [1, 3, 127, 254])
def test_greedy_is_the_argmax_of_the_whole_forward_pass(engine: Engine, length: int) -> None:
    completion = collect(engine.generate(prompt_of(length), GREEDY))
    assert completion.tokens == argmax_by_full_forward(engine.model, prompt_of(length), COUNT)
    assert completion.finish is FinishReason.LENGTH


@pytest.mark.parametrize("sampled", [False, True])
def test_many_together_say_what_each_says_alone(engine: Engine, sampled: bool) -> None:
    jobs = []
    for i, length in enumerate(PROMPTS):
        params = SamplingParams(max_tokens=4 + 2 * i, seed=i, top_p=0.9) if sampled else GREEDY
        jobs.append((prompt_of(length), params))
    alone = [collect(engine.generate(*job)).tokens for job in jobs]
    assert [completion.tokens for completion in together(engine, jobs)] == alone
    assert len({tuple(tokens) for tokens in alone}) == len(alone)


def test_equal_seeds_say_the_same_and_others_do_not(engine: Engine) -> None:
    seeds = [7, 7, 8]
    first, same, other = together(engine, [(prompt_of(9), SamplingParams(max_tokens=15, seed=s)) for s in seeds])
    assert first.tokens == same.tokens != other.tokens


def test_requests_without_a_seed_differ(engine: Engine) -> None:
    one, other = together(engine, [(prompt_of(9), SamplingParams(max_tokens=20))] * 2)
    assert one.tokens != other.tokens


def test_a_stop_id_ends_the_answer(engine: Engine) -> None:
    free = collect(engine.generate(prompt_of(20), GREEDY)).tokens
    stop = free[4]
    params = SamplingParams(max_tokens=COUNT, temperature=0, stop_ids=(VOCABULARY - 1 - free[0], stop))
    events = list(engine.generate(prompt_of(20), params))
    wanted = free[: free.index(stop)]
    assert events[-1].token == stop
    assert events[-1].finish is FinishReason.STOP
    assert collect(iter(events)).tokens == wanted


def test_the_end_token_ends_the_answer(engine: Engine) -> None:
    free = collect(engine.generate(prompt_of(20), GREEDY)).tokens
    engine.ends = frozenset({free[3]})
    completion = collect(engine.generate(prompt_of(20), GREEDY))
    assert completion.finish is FinishReason.STOP
    assert completion.tokens == free[: free.index(free[3])]


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_max_tokens_is_kept(engine: Engine, limit: int) -> None:
    events = list(engine.generate(prompt_of(6), SamplingParams(max_tokens=limit, temperature=0)))
    assert [event.finish for event in events] == [None] * (limit - 1) + [FinishReason.LENGTH]


def test_an_answer_ends_by_length_only(engine: Engine) -> None:
    free = collect(engine.generate(prompt_of(20), GREEDY)).tokens
    engine.ends = frozenset({free[3]})
    bias = ((free[3], 100.0), (5, -1.0))
    params = replace(GREEDY, stop_ids=(free[4],), logit_bias=bias, ignore_eos=True)
    answer = collect(engine.generate(prompt_of(20), params))
    assert (len(answer.tokens), answer.finish) == (COUNT, FinishReason.LENGTH)
    assert not {free[3], free[4]} & {*answer.tokens}


def test_end_tokens_are_banned_only_where_they_are_ignored() -> None:
    params = SamplingParams(stop_ids=(9, 8), logit_bias=((8, 50.0), (5, -1.0)))
    assert params.without_ends([7]) is params
    ignoring = replace(params, ignore_eos=True).without_ends([7, 9])
    assert ignoring.logit_bias == ((5, -1.0), (7, -100.0), (8, -100.0), (9, -100.0))


@pytest.mark.parametrize(("length", "left"), [(509, 3), (511, 1)])
def test_the_context_ends_the_answer(engine: Engine, length: int, left: int) -> None:
    completion = collect(engine.generate(prompt_of(length), SamplingParams(max_tokens=100, temperature=0)))
    assert len(completion.tokens) == left
    assert completion.finish is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ([3, 97], r"prompt token ids must be in \[0, 97\), got 97"),
        ([-1], r"must be in \[0, 97\), got -1"),
        ([1] * 512, "the prompt has 512 tokens, the context holds 512"),
        ([1] * 600, "the prompt has 600 tokens, the context holds 512"),
    ],
)
def test_impossible_prompts_are_refused(engine: Engine, prompt: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.submit(prompt, GREEDY)
    assert not engine.busy


@pytest.mark.parametrize("length", [0, 1048577])
def test_an_impossible_context_is_refused(model: Transformer, length: int) -> None:
    with pytest.raises(ValueError, match=rf"context_length must be in \[1, 1048576\], got {length}"):
        Engine(model, context_length=length)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_cancel_frees_at_once(engine: Engine, steps: int) -> None:
    keep, drop = engine.submit(prompt_of(70), GREEDY), engine.submit(prompt_of(60), GREEDY)
    for _ in range(steps):
        engine.step()
    engine.cancel(drop)
    engine.cancel(drop)
    assert drop.status is RequestStatus.ENDED
    assert engine.running == (1 if steps else 0)
    events = drain(engine)
    assert drop not in events
    assert events[keep][-1].finish is FinishReason.LENGTH
    assert keep.tokens[70:] == argmax_by_full_forward(engine.model, prompt_of(70), COUNT)


def test_closing_the_iterator_cancels(engine: Engine) -> None:
    events = engine.generate(prompt_of(70), GREEDY)
    next(events)
    assert engine.busy
    events.close()
    assert not engine.busy


def test_more_requests_than_slots_wait_and_finish_in_order(engine: Engine) -> None:
    requests = [engine.submit(prompt_of(4, seed), GREEDY) for seed in range(5)]
    engine.step()
    assert [r.status for r in requests] == [RequestStatus.RUNNING] * 3 + [RequestStatus.WAITING] * 2
    events = drain(engine)
    assert all(events[r][-1].finish is FinishReason.LENGTH for r in requests)
    for seed, request in enumerate(requests):
        assert request.tokens[4:] == argmax_by_full_forward(engine.model, prompt_of(4, seed), COUNT)


def test_a_request_without_pages_waits_and_is_not_overtaken(engine: Engine) -> None:
    first, large, small = (engine.submit(prompt_of(n), GREEDY) for n in (300, 290, 8))
    engine.step()
    assert [r.status for r in (first, large, small)] == [
        RequestStatus.RUNNING,
        RequestStatus.WAITING,
        RequestStatus.WAITING,
    ]
    assert engine.running == 1
    events = drain(engine)
    assert len(events[large]) == len(events[small]) == COUNT
    assert large.tokens[290:] == argmax_by_full_forward(engine.model, prompt_of(290), COUNT)


def test_a_long_prompt_does_not_stall_an_answer(engine: Engine) -> None:
    answer = engine.submit(prompt_of(3), GREEDY)
    engine.step()
    engine.submit(prompt_of(200), SamplingParams(max_tokens=1, temperature=0))
    for _ in range(4):
        assert [request for request, _ in engine.step()] == [answer]
    drain(engine)


def test_logprobs_are_those_of_the_model(engine: Engine) -> None:
    params = SamplingParams(max_tokens=4, temperature=0, logprobs=True, top_logprobs=3)
    completion = collect(engine.generate(prompt_of(30), params))
    tokens = torch.tensor(prompt_of(30) + completion.tokens)
    with torch.inference_mode():
        x_TSD = engine.model.hidden(tokens, engine.model.pack([len(tokens)]))
        log_TV = engine.model.logits(x_TSD).log_softmax(1)
    for i, scores in enumerate(completion.logprobs):
        best = log_TV[29 + i].topk(3)
        assert scores.chosen == pytest.approx(float(best.values[0]), abs=1e-4)
        assert [token for token, _ in scores.top] == best.indices.tolist()
    assert len(completion.logprobs) == 4
    without = list(engine.generate(prompt_of(3), GREEDY))
    assert all(event.logprobs is None for event in without)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_step_that_raised_leaves_nothing_to_reuse_and_the_others_go_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """The step wrote to the cache before it was interrupted; its requests end, nobody continues from what they have."""
    real, calls = engine.runner.run, []

    def run(works: list) -> object:
        ran = real(works)
        calls.append(works)
        if len(calls) == 3:
            raise error
        return ran

    monkeypatch.setattr(engine.runner, "run", run)
    broken = engine.submit(prompt_of(200), GREEDY)
    engine.step()
    engine.step()
    waiting = [engine.submit(prompt_of(9, seed), GREEDY) for seed in range(2)]
    engine.admitting = False
    with pytest.raises(error):
        engine.step()
    engine.admitting = True
    events = drain(engine)
    assert [(e.finish, e.error) for e in events[broken]] == [(FinishReason.ERROR, "the engine failed on this step")]
    for seed, request in enumerate(waiting):
        assert request.tokens[9:] == argmax_by_full_forward(engine.model, prompt_of(9, seed), COUNT)
    again = collect(engine.generate(prompt_of(200), GREEDY))
    assert again.tokens == argmax_by_full_forward(engine.model, prompt_of(200), COUNT)
    assert again.reused == 0


workload = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 140), st.integers(1, 8)),
        st.tuples(st.just("cancel"), st.integers(0, 50), st.just(0)),
        st.tuples(st.just("step"), st.integers(1, 4), st.just(0)),
    ),
    max_size=14,
)


@given(workload)
@settings(max_examples=8, deadline=None)
def test_any_workload_ends_every_request_once_and_shares_no_place(work: list[tuple[str, int, int]]) -> None:
    small = tiny_config(num_hidden_layers=2, compress_ratios=(4, 128, 0), n_routed_experts=2)
    engine = Engine(tiny_model(small), context_length=256, cache_tokens=512, sequences=3, step_tokens=40)
    engine.ends = frozenset()
    requests: list[Request] = []
    ends: dict[Request, list[FinishReason | None]] = {}

    def step() -> None:
        for request, event in engine.step():
            ends.setdefault(request, []).append(event.finish)
        running = [r for r in requests if r.status is RequestStatus.RUNNING]
        places = [(r, r.place) for r in running if r.place is not None]
        assert len(places) == len(running)
        slots, pages = [place.slot for _, place in places], [page for _, place in places for page in place.pages]
        assert len(set(slots)) == len(slots)
        assert len(slots) <= 3
        # a page that two hold was full when the second came: nobody writes to it any more
        for page in set(pages):
            holders = [(r, place.pages) for r, place in places if page in place.pages]
            assert len(holders) == 1 or all(r.cached >= 256 * (held.index(page) + 1) for r, held in holders)

    for what, number, tokens in work:
        if what == "submit":
            params = SamplingParams(max_tokens=tokens, seed=number)
            requests.append(engine.submit(prompt_of(number), params))
        elif what == "cancel" and requests:
            engine.cancel(requests[number % len(requests)])
        elif what == "step":
            for _ in range(number):
                step()
    while engine.busy:
        step()
    assert engine.check_integrity()
    engine.forget()
    assert engine.cache.store.check_integrity()
    for request in requests:
        finishes = ends.get(request, [])
        assert request.status is RequestStatus.ENDED
        assert all(finish is None for finish in finishes[:-1])
        if finishes and finishes[-1] is not None:
            assert len(finishes) == request.params.max_tokens
