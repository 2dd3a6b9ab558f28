"""Several requests at once through the faces that hide the engine."""

from dsv4.engine import Engine
from dsv4.generation import SamplingParams, collect
from dsv4.testing.tiny import tiny_model

GREEDY = SamplingParams(max_tokens=6, temperature=0)


def engine() -> Engine:
    made = Engine(tiny_model(), context_length=1024, sequences=3)
    made.ends = frozenset()
    return made


def test_open_iterators_do_not_lose_each_others_tokens() -> None:
    shared = engine()
    alone = [collect(engine().generate([5, 6, n], GREEDY)).tokens for n in (1, 2)]
    first = shared.generate([5, 6, 1], GREEDY)
    head = [next(first), next(first)]
    second = collect(shared.generate([5, 6, 2], GREEDY)).tokens
    assert second == alone[1]
    assert [event.token for event in [*head, *first]] == alone[0]
    assert shared.check_integrity()


def test_requests_without_limits_run_side_by_side() -> None:
    """Every request may fill the context, and they still do not wait for each other."""
    shared = engine()
    for n in range(3):
        shared.submit([1, n], SamplingParams(max_tokens=100_000, temperature=0))
    assert len(shared.step()) == 3


def test_closing_an_iterator_frees_its_place() -> None:
    shared = engine()
    stream = shared.generate([1, 2, 3], GREEDY)
    next(stream)
    assert not shared.check_integrity()
    stream.close()  # type: ignore[attr-defined]
    assert shared.check_integrity()
