"""The scheduler's decisions, and whole workloads carried out on nothing but numbers: everyone ends, nobody starves."""

from dataclasses import dataclass, replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from dsv4.engine.scheduler import PRIORITY_STEPS, Decision, RequestView, SchedulerState, decide

PAGE = 16


def view(number: int, known: int, cached: int = 0, **other: int) -> RequestView:
    values = {"arrival": 0, "priority": 0, "stop": known, "pages": -(-cached // PAGE)} | other
    return RequestView(number=number, known=known, cached=cached, **values)


def state(
    running: list[RequestView], waiting: list[RequestView], pages: int = 100, slots: int = 4, budget: int = 40
) -> SchedulerState:
    return SchedulerState(tuple(running), tuple(waiting), pages, slots, budget, PAGE)


def test_answers_get_their_token_and_prompts_share_the_rest_equally() -> None:
    running = [view(0, 9, 8), view(1, 300), view(2, 50, 49), view(3, 10), view(4, 200)]
    assert dict(decide(state(running, [], budget=40)).parts) == {0: 1, 1: 13, 2: 1, 3: 10, 4: 15}


def test_a_prompt_moves_even_when_answers_fill_the_budget() -> None:
    running = [view(n, 9, 8) for n in range(5)] + [view(5, 30), view(6, 30)]
    assert dict(decide(state(running, [], budget=3)).parts) == {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1}


def test_a_chunk_ends_at_the_next_point_and_drafts_ride_along() -> None:
    running = [view(0, 300, stop=7), view(1, 9, 8, drafts=1)]
    assert dict(decide(state(running, [])).parts) == {0: 7, 1: 2}


def test_the_first_in_rank_is_admitted_and_nobody_overtakes_it() -> None:
    large, small = view(0, 17 * PAGE, arrival=1), view(1, 3, arrival=2)
    assert decide(state([], [small, large], pages=18)).admit == 0
    busy = [view(9, 8, 7)]
    assert decide(state(busy, [small, large], pages=17)) == Decision(parts=((9, 1),))


def test_pages_promised_to_running_prompts_are_not_given_away() -> None:
    running, waiting = [view(0, 10 * PAGE)], [view(1, 5 * PAGE)]
    assert decide(state(running, waiting, pages=15)).admit is None
    assert decide(state(running, waiting, pages=16)).admit == 1


def test_priority_counts_as_waiting_time_and_takes_slots() -> None:
    running = [view(0, 9, 8, arrival=0), view(1, 9, 8, arrival=0, priority=-1)]
    urgent = view(2, 5, arrival=3, priority=1)
    assert decide(state(running, [urgent], slots=0)).preempt == 1
    late = replace(urgent, arrival=3 + 2 * PRIORITY_STEPS)
    assert decide(state(running, [late], slots=0)).preempt is None
    assert decide(state(running, [view(3, 5, arrival=3), late], slots=1)).admit == 3


def test_the_last_in_rank_gives_way_when_pages_run_out() -> None:
    running = [view(0, PAGE + 1, PAGE), view(1, PAGE + 1, PAGE, arrival=1)]
    assert decide(state(running, [], pages=1)).preempt == 1
    assert decide(state(running, [], pages=2)).preempt is None


def test_drafts_cost_no_request_its_place() -> None:
    """Where their pages are missing, the step checks no drafts."""
    running = [view(0, PAGE - 3, PAGE - 4, pages=1, drafts=9), view(1, 9, 8, pages=1)]
    assert decide(state(running, [], pages=1)).parts == ((0, 10), (1, 1))
    assert decide(state(running, [], pages=0)).parts == ((0, 1), (1, 1))


def test_one_request_that_can_never_fit_is_a_bug_of_the_caller() -> None:
    with pytest.raises(RuntimeError, match="a single request needs 2 pages more than there are"):
        decide(state([view(0, 3 * PAGE)], [], pages=1, budget=100))


@dataclass(slots=True)
class Simulated:
    view: RequestView
    left: int  # tokens it will say
    waited: int = 0


class Machine:
    """Carries decisions out on counters: pages, slots, tokens."""

    def __init__(self, pages: int, slots: int, budget: int) -> None:
        self.free, self.slots, self.budget = pages, slots, budget
        self.running: dict[int, Simulated] = {}
        self.waiting: dict[int, Simulated] = {}
        self.done: list[int] = []
        self.preempted = 0

    def step(self) -> None:
        while self.running or self.waiting:
            decision = decide(
                SchedulerState(
                    tuple(s.view for s in self.running.values()),
                    tuple(s.view for s in self.waiting.values()),
                    self.free,
                    self.slots - len(self.running),
                    self.budget,
                    PAGE,
                )
            )
            if decision.preempt is not None:
                out = self.running.pop(decision.preempt)
                self.free += out.view.pages
                out.view = replace(out.view, cached=0, pages=0, stop=out.view.known)
                self.waiting[out.view.number] = out
                self.preempted += 1
            elif decision.admit is not None:
                self.running[decision.admit] = self.waiting.pop(decision.admit)
            else:
                assert decision.parts, "nothing runs although somebody wants to"
                self.run(decision)
                return

    def run(self, decision: Decision) -> None:
        assert len({number for number, _ in decision.parts}) == len(decision.parts)
        assert {n for n, s in self.running.items() if s.view.uncached == 1} <= {n for n, _ in decision.parts}
        for number, count in decision.parts:
            own = self.running[number]
            assert 1 <= count <= own.view.uncached
            cached = own.view.cached + count
            pages = max(own.view.pages, -(-cached // PAGE))
            self.free -= pages - own.view.pages
            assert self.free >= 0, "pages were given twice"
            own.view = replace(own.view, cached=cached, pages=pages)
            if own.view.uncached == 0:
                own.left -= 1
                own.view = replace(own.view, known=own.view.known + 1, stop=own.view.known + 1)
            if own.left == 0:
                self.free += own.view.pages
                self.done.append(number)
                del self.running[number]


arrivals = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 90), st.integers(1, 60), st.integers(-2, 2)), min_size=1, max_size=14
)


@given(arrivals, st.integers(10, 40), st.integers(1, 5), st.integers(1, 60))
@settings(max_examples=2000, deadline=None)
def test_every_request_of_any_workload_ends_exactly_once(
    work: list[tuple[int, int, int, int]], pages: int, slots: int, budget: int
) -> None:
    machine, time = Machine(pages, slots, budget), 0
    # whatever the order and however often it is computed again: at least one token in rank order each step
    bound = sum(gap for gap, *_ in work) + sum((prompt + answer) * (answer + 2) for _, prompt, answer, _ in work) * 3
    coming = [(sum(w[0] for w in work[: i + 1]), *w[1:]) for i, w in enumerate(work)]
    while len(machine.done) < len(work):
        for number, (at, prompt, answer, priority) in enumerate(coming):
            if at == time:
                made = view(number, prompt, arrival=time, priority=priority)
                machine.waiting[number] = Simulated(made, min(answer, pages * PAGE - prompt))
        machine.step()
        time += 1
        assert time <= bound, "somebody starves"
    assert sorted(machine.done) == list(range(len(work)))
    assert machine.free == pages


def test_a_low_priority_is_not_starved_by_a_stream_of_high_ones() -> None:
    machine = Machine(pages=8, slots=1, budget=16)
    machine.waiting[0] = Simulated(view(0, 20, priority=-1), 5)
    for time in range(1, 4000):
        machine.waiting[time] = Simulated(view(time, 3, arrival=time, priority=0), 2)
        machine.step()
        if 0 in machine.done:
            assert time >= PRIORITY_STEPS
            return
    raise AssertionError("starved")
