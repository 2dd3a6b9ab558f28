"""Sequences in one store do not see each other: not their neighbours, not who was there before."""

import pytest
import torch
from torch import Tensor

from dsv4.cache import CacheStore, Place, StepCache
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config, tiny_model

TOKENS = 300
CHUNKS = [130, 1, 1, 126, 3, 39]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


def store_for(model: Transformer, sequences: int = 2) -> CacheStore:
    store = CacheStore(model.config, "fp32", tokens=1024, slots=sequences)
    for tensor in tensors(store):
        tensor.fill_(float("nan"))
    return store


def tensors(store: CacheStore) -> list[Tensor]:
    return [t for layer in store.layers for t in (*layer.slot_tensors(), *layer.page_tensors())]


@torch.inference_mode()
def run(model: Transformer, store: CacheStore, tokens: Tensor, slot: int, pages: list[int], start: int = 0) -> Tensor:
    done, out = start, []
    for count in CHUNKS:
        part = tokens[done - start : done - start + count]
        if not len(part):
            break
        sequences = model.pack([len(part)], [done])
        out.append(model.logits(model.hidden(part, sequences, StepCache(store, sequences, [Place(slot, pages)]))))
        done += len(part)
    return torch.cat(out)


def random_tokens(count: int = TOKENS) -> Tensor:
    return torch.randint(0, tiny_config().vocab_size, (count,))


@pytest.mark.parametrize("length", [3, 131, TOKENS])
def test_a_freed_place_leaves_no_trace(model: Transformer, length: int) -> None:
    store, own = store_for(model), random_tokens(length)
    slot, pages = store.slots.take(1), store.pages.take(2)
    run(model, store, random_tokens(), slot[0], pages)
    store.slots.give_back(slot)
    store.pages.give_back(pages)
    assert (store.slots.take(1), store.pages.take(2)) == (slot, pages)
    assert torch.equal(run(model, store, own, slot[0], pages), run(model, store_for(model), own, slot[0], pages))


def test_a_step_writes_only_to_its_own_slot_and_pages(model: Transformer) -> None:
    store = store_for(model, 3)
    run(model, store, random_tokens(), 1, [3, 1])
    for layer, spec in zip(store.layers, store.spec.layers, strict=True):
        for tensor in layer.slot_tensors():
            assert tensor[[0, 2]].isnan().all()
        for tensor in layer.page_tensors():
            written = ~tensor.isnan().any(1)
            entries = TOKENS // spec.ratio
            assert int(written.sum()) == (entries if spec.index < 4 else 0)
            per_page = 256 // spec.ratio
            first, second = min(entries, per_page), max(0, entries - per_page)
            assert written[3 * per_page : 3 * per_page + first].all()
            assert written[per_page : per_page + second].all()


def test_the_window_ring_holds_the_last_rows_by_position(model: Transformer) -> None:
    store = store_for(model)
    tokens = random_tokens(200)
    run(model, store, tokens[:70], 0, [0])
    assert store.layers[0].window_SWX[0].isnan().any(1).tolist() == [False] * 70 + [True] * 58
    whole, sequences = store_for(model), model.pack([200])
    run(model, store, tokens, 1, [1])
    with torch.inference_mode():
        model.hidden(tokens, sequences, StepCache(whole, sequences, [Place(0, [0])]))
    for chunked, one in zip(store.layers[:4], whole.layers[:4], strict=True):
        torch.testing.assert_close(chunked.window_SWX[1], one.window_SWX[0], atol=2e-5, rtol=0)


def test_every_sequence_needs_its_place(model: Transformer) -> None:
    store, sequences = store_for(model), model.pack([2, 2])
    with pytest.raises(ValueError, match="2 sequences need as many places, got 1"):
        StepCache(store, sequences, [Place(0, [0])])
