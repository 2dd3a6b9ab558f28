"""One sequence, computed in every way the engine may choose: the logits are those of one forward pass."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from dsv4.cache import CacheStore, Place, StepCache
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config, tiny_model

LENGTH = 300
TOLERANCE = {"atol": 2e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, tiny_config().vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def expected(model: Transformer, tokens: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return [model.logits(model.hidden(row, model.pack([LENGTH]))) for row in tokens]


def poisoned_store(model: Transformer) -> CacheStore:
    """A cache full of NaN: whatever reads what was not written shows at once."""
    store = CacheStore(model.config, "fp32", tokens=2048, slots=3)
    for layer in store.layers:
        for tensor in (*layer.slot_tensors(), *layer.page_tensors()):
            tensor.fill_(float("nan"))
    return store


def run(model: Transformer, tokens: Tensor, chunks: list[list[int]]) -> list[Tensor]:
    """Feed each row of tokens in its own chunks, one chunk per row and step, all rows in one packed batch."""
    store = poisoned_store(model)
    slots = store.slots.take(3)[::-1]
    pages = [store.pages.take(store.spec.pages_for(LENGTH))[::-1] for _ in chunks]
    done, outputs, left = [0] * len(chunks), [[] for _ in chunks], [list(c) for c in chunks]
    with torch.inference_mode():
        while any(left):
            active = [b for b, rest in enumerate(left) if rest]
            counts = [left[b].pop(0) for b in active]
            sequences = model.pack(counts, [done[b] for b in active])
            cache = StepCache(store, sequences, [Place(slots[b], pages[b]) for b in active])
            fed = torch.cat([tokens[b, done[b] : done[b] + n] for b, n in zip(active, counts, strict=True)])
            parts = model.logits(model.hidden(fed, sequences, cache)).split(counts)
            for b, n, part in zip(active, counts, parts, strict=True):
                outputs[b].append(part)
                done[b] += n
    return [torch.cat(parts) for parts in outputs]


CHUNKINGS = {
    "one prefill": [LENGTH],
    "token by token": [1] * LENGTH,
    "around borders of 4": [1, 2, 3, 4, 5, 6, 7, 8, LENGTH - 36],
    "around the window": [127, 1, 1, 126, 45],
    "prefill then decode": [129] + [1] * (LENGTH - 129),
    "around a page": [255, 1, 1, 43],
}


@pytest.mark.parametrize("name", CHUNKINGS)
def test_any_chunking(model: Transformer, tokens: Tensor, expected: list[Tensor], name: str) -> None:
    chunks = CHUNKINGS[name]
    for own, wanted in zip(run(model, tokens, [chunks, chunks[::-1]]), expected, strict=True):
        torch.testing.assert_close(own, wanted, **TOLERANCE)


@given(
    st.lists(st.integers(1, 80), min_size=4, max_size=12),
    st.lists(st.integers(1, 150), min_size=2, max_size=6),
)
@settings(max_examples=8, deadline=None)
def test_random_chunkings_together(first: list[int], second: list[int]) -> None:
    model = tiny_model()
    tokens = torch.randint(0, 97, (2, LENGTH), generator=torch.Generator().manual_seed(6))
    cut = [[n for i, n in enumerate(c) if sum(c[: i + 1]) <= LENGTH] for c in (first, second)]
    with torch.inference_mode():
        for own, row in zip(run(model, tokens, cut), tokens, strict=True):
            wanted = model.logits(model.hidden(row[: len(own)], model.pack([len(own)])))
            torch.testing.assert_close(own, wanted, **TOLERANCE)


@pytest.mark.parametrize("lengths", [[1, 1], [1, 300, 3, 4], [127, 128, 129], [5, 131, 260, 2, 7]])
def test_any_packing(model: Transformer, lengths: list[int]) -> None:
    rows = [torch.randint(0, 97, (n,)) for n in lengths]
    with torch.inference_mode():
        packed = model.logits(model.hidden(torch.cat(rows), model.pack(lengths))).split(lengths)
        for row, own in zip(rows, packed, strict=True):
            torch.testing.assert_close(own, model.logits(model.hidden(row, model.pack([len(row)]))), **TOLERANCE)


@pytest.mark.parametrize("at", [0, 3, 4, 127, 128, 255, 298])
def test_the_future_changes_nothing(model: Transformer, tokens: Tensor, expected: list[Tensor], at: int) -> None:
    changed = tokens[0].clone()
    changed[at + 1 :] = (changed[at + 1 :] + 13) % 97
    with torch.inference_mode():
        own = model.logits(model.hidden(changed, model.pack([LENGTH])))
    torch.testing.assert_close(own[: at + 1], expected[0][: at + 1], **TOLERANCE)
    assert not torch.allclose(own[at + 1 :], expected[0][at + 1 :], atol=1e-2)


def test_training_forward_is_the_same(model: Transformer, tokens: Tensor, expected: list[Tensor]) -> None:
    model.train()
    own = model.logits(model.hidden(tokens[0], model.pack([LENGTH])))
    assert own.requires_grad
    torch.testing.assert_close(own.detach(), expected[0], **TOLERANCE)
    model.eval()
