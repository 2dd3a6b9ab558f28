"""The fused step: what it refuses, and that it then writes nothing. What it computes is compared in
tests/engine/test_fused.py."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dsv4.cache import CacheStore, Place
from dsv4.engine.step import FusedStep
from dsv4.engine.step.native import run_step
from dsv4.kernels import native
from dsv4.testing.tiny import tiny_model

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Span(NamedTuple):
    """New tokens of one sequence, the number of tokens before them, its slot and its pages."""

    tokens: list[int]
    cached: int
    slot: int
    pages: list[int]


def run(fused: FusedStep, spans: list[Span], wanted: Any) -> tuple[Tensor, Tensor]:
    places = [Place(span.slot, span.pages) for span in spans]
    return fused.run([span.tokens for span in spans], [span.cached for span in spans], places, wanted)


def made() -> tuple[FusedStep, CacheStore]:
    model = tiny_model()
    store = CacheStore(model.config, "fp32", tokens=1024, slots=2)
    for layer in store.layers:
        for tensor in (*layer.slot_tensors(), *layer.page_tensors()):
            tensor.fill_(float("nan"))
    return FusedStep(model, store), store


@pytest.mark.parametrize(
    ("spans", "wanted", "error", "match"),
    [
        ([Span([97], 0, 0, [0])], [0], IndexError, "not in the vocabulary"),
        ([Span([1, -1], 0, 0, [0])], [0], IndexError, "not in the vocabulary"),
        ([Span([1], 0, 2, [0])], [0], IndexError, "slot does not exist"),
        ([Span([1], 0, -1, [0])], [0], IndexError, "slot does not exist"),
        ([Span([1], 0, 0, [4])], [0], IndexError, "page does not exist"),
        ([Span([1], 0, 0, [-1])], [0], IndexError, "page does not exist"),
        ([Span([1], 256, 0, [0])], [0], IndexError, "too few"),
        ([Span([1], 0, 0, [0]), Span([], 0, 1, [1])], [0], ValueError, "needs a token"),
        ([Span([1], -1, 0, [0])], [0], ValueError, "cached >= 0"),
        ([], [], ValueError, "empty"),
        ([Span([1, 2], 0, 0, [0])], [2], IndexError, "wanted rows"),
        ([Span([1, 2], 0, 0, [0])], [-1], IndexError, "wanted rows"),
    ],
)
def test_refused_and_nothing_written(spans: list[Span], wanted: list[int], error: type[Exception], match: str) -> None:
    fused, cache = made()
    with pytest.raises(error, match=match):
        run(fused, spans, wanted)
    tensors = [t for layer in cache.layers for t in (*layer.slot_tensors(), *layer.page_tensors())]
    assert all(t.isnan().all() for t in tensors)


def test_given_streams_belong_to_a_prediction_block() -> None:
    fused, _ = made()
    with pytest.raises(ValueError, match="prediction block"):
        run_step(fused._backbone, [[1]], [0], [Place(0, [0])], [0], torch.zeros(1, 4, 64))


def test_no_wanted_rows() -> None:
    fused, _ = made()
    x_TSD, logits_NV = run(fused, [Span([1, 2, 3], 0, 0, [0])], [])
    assert x_TSD.shape == (3, 4, 64)
    assert x_TSD.isfinite().all()
    assert logits_NV.shape == (0, 97)


def test_wanted_rows_in_any_order() -> None:
    results = []
    for wanted in ([0, 1, 2, 3, 4], [4, 1, 1]):
        fused, _ = made()
        results.append(run(fused, [Span([5, 6, 7], 0, 0, [0]), Span([8, 9], 0, 1, [1])], wanted))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1][[4, 1, 1]], results[1][1])


def test_neighbours_and_chunks_change_no_bit() -> None:
    tokens = [(7 * i) % 97 for i in range(140)]
    fused, _ = made()
    _, whole = run(fused, [Span(tokens, 0, 0, [0])], range(140))
    fused, _ = made()
    parts = []
    for start, end in ((0, 1), (1, 5), (5, 128), (128, 129), (129, 140)):
        spans = [Span([3, 1, 4], 3 * len(parts), 1, [2]), Span(tokens[start:end], start, 0, [1])]
        parts.append(run(fused, spans, range(3, 3 + end - start))[1])
    assert torch.equal(torch.cat(parts), whole)
