"""The plan of a step, for any mix of prompts and answers."""

import hypothesis.strategies as st
from hypothesis import given

from dsv4.engine.request import Request
from dsv4.engine.scheduler import plan
from dsv4.generation import SamplingParams

PARAMS = SamplingParams(seed=0)
uncached = st.just(1) | st.integers(1, 40)
running_requests = st.lists(st.tuples(st.integers(0, 50), uncached), max_size=12)
budgets = st.integers(1, 6) | st.integers(1, 60)


def requests_of(shapes: list[tuple[int, int]]) -> list[Request]:
    """(cached, uncached) of each."""
    requests = []
    for number, (cached, uncached) in enumerate(shapes):
        request = Request.new(number, [3] * (cached + uncached), PARAMS)
        request.cached = cached
        requests.append(request)
    return requests


@given(running_requests, budgets)
def test_every_plan_is_lawful(shapes: list[tuple[int, int]], budget: int) -> None:
    running = requests_of(shapes)
    parts = plan(running, budget)
    counts = {part.request: part.count for part in parts}
    assert len(counts) == len(parts), "a request is planned twice"
    for request, count in counts.items():
        assert 1 <= count <= request.uncached
    single = [request for request in running if request.uncached == 1]
    assert all(counts.get(request) == 1 for request in single), "an answer waits"
    # the budget holds but for what may not wait: every single token, and one so that prompts always move
    assert sum(counts.values()) <= max(budget, len(single) + 1)
    assert bool(parts) is bool(running)


@given(running_requests, budgets)
def test_prompts_are_served_in_order_of_arrival(shapes: list[tuple[int, int]], budget: int) -> None:
    running = requests_of(shapes)
    counts = {part.request: part.count for part in plan(running, budget)}
    prompts = [request for request in running if request.uncached > 1]
    served = [request for request in prompts if request in counts]
    assert served == prompts[: len(served)], "one overtook another"
    assert all(counts[request] == request.uncached for request in served[:-1]), "cut before the last"
    if len(served) < len(prompts):
        singles = len(running) - len(prompts)
        assert sum(counts[request] for request in served) == max(1, budget - singles), "budget left unused"


@given(running_requests, budgets)
def test_a_plan_changes_no_request(shapes: list[tuple[int, int]], budget: int) -> None:
    running = requests_of(shapes)
    assert plan(running, budget) == plan(running, budget)
    assert [(r.cached, r.uncached) for r in running] == shapes


@given(running_requests, st.integers(1, 20))
def test_every_prompt_is_prefilled_in_the_end(shapes: list[tuple[int, int]], budget: int) -> None:
    running, steps = requests_of(shapes), 0
    while running:
        steps += 1
        for part in plan(running, budget):
            part.request.cached += part.count
        running = [request for request in running if request.uncached]
    assert steps <= sum(uncached for _, uncached in shapes)


def test_a_prompt_moves_even_when_answers_fill_the_budget() -> None:
    running = requests_of([(9, 1), (9, 1), (0, 30), (0, 30), (4, 1)])
    assert [(part.request.number, part.count) for part in plan(running, 2)] == [(0, 1), (1, 1), (4, 1), (2, 1)]
