"""One step of a whole model as one native call: new tokens of several sequences through all layers, with their cache.

There is no reference.py: the step must equal the model run op by op (`Transformer.hidden` and `logits` on a
`StepCache`) with the native kernels. The native code calls the same functions on the same rows, so streams, logits and
all rows written to the store have the same bits; tests/engine/test_fused.py compares them.

Legend: T tokens, S streams, D hidden size, P frequency pairs, R gathered rows, V vocabulary, N wanted rows.
"""

import ctypes
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import torch
from torch import Tensor

from dsv4.cache import Place
from dsv4.engine.step.pack import PackedStep, readable
from dsv4.kernels import native
from dsv4.kernels.moe.residency import unread
from dsv4.kernels.native.structs import StepBatch

_COLUMNS = ("token_T", "count_B", "cached_B", "slot_B", "window_from_B", "entries_from_B")
_COLUMNS += ("page_count_B", "pages", "wanted_N")
_FEW, _MANY = 64, 32768  # sizes of the pieces that one call of torch's cos gets
_WRONG = {
    1: (IndexError, "a token is not in the vocabulary"),
    2: (IndexError, "a slot does not exist"),
    3: (IndexError, "a page does not exist, or a sequence has too few pages"),
    4: (ValueError, "every sequence needs a token, and cached >= 0"),
    5: (IndexError, "an expert of the table does not exist"),
}


@cache
def _function(name: str, pointers: int) -> Callable[..., int]:
    return native.function(name, [ctypes.c_void_p] * pointers, ctypes.c_int)


def _rows_of_angles(packed: PackedStep, counts: Sequence[int], cached: Sequence[int]) -> int:
    ends = [(old, old + count) for old, count in zip(cached, counts, strict=True)]
    return 2 * sum(counts) + sum(end // ratio - old // ratio for ratio in packed.ratios for old, end in ends)


def _cos_sin(angle_RP: Tensor) -> tuple[Tensor, Tensor]:
    """By torch's functions, so that the bits are those of `kernels.rope.rotation`."""
    if angle_RP.numel() > _MANY:
        return angle_RP.cos(), angle_RP.sin()
    # MKL wakes all threads for 128 numbers; on a busy machine that takes longer than the rest of a small step
    cos_RP, sin_RP = torch.empty_like(angle_RP), torch.empty_like(angle_RP)
    parts = (t.flatten().split(_FEW) for t in (angle_RP, cos_RP, sin_RP))
    for angle, cos, sin in zip(*parts, strict=True):
        torch.cos(angle, out=cos)
        torch.sin(angle, out=sin)
    return cos_RP, sin_RP


def run_step(
    packed: PackedStep,
    tokens: Sequence[Sequence[int]],
    cached: Sequence[int],
    places: Sequence[Place],
    wanted: Sequence[int],
    given_TSD: Tensor | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """(streams after the last block [T, S, D], logits [N, V] fp32 of the rows `wanted`); writes the store.

    Each sequence has its new tokens, the number of tokens before them, and its place. A prediction block starts from
    `given_TSD`, the backbone's streams before each token. meanwhile: called just before the native code, which does not
    hold Python's lock. Records no gradient. Raises ValueError for an empty batch or sequence and for lengths that do
    not fit, IndexError for a token, slot, page or row that does not exist; in both cases nothing is written. Raises
    OSError if an expert cannot be read from its file.
    """
    T, model = sum(map(len, tokens)), packed.model
    _check(packed, T, wanted, given_TSD)
    x_TSD = torch.empty(T, model.streams, model.dim, dtype=packed.dtype)
    logits_NV = torch.empty(len(wanted), model.vocabulary)
    batch = StepBatch(given_TSD=native.pointer(given_TSD), x_TSD=x_TSD.data_ptr(), logits_NV=logits_NV.data_ptr())
    _run(packed, batch, tokens, cached, places, wanted, meanwhile)
    return x_TSD, logits_NV


def run_blocks(
    packed: PackedStep, tokens: Sequence[Sequence[int]], cached: Sequence[int], places: Sequence[Place]
) -> tuple[Tensor, Tensor]:
    """(collapsed rows [T, D] before the norm, logits [T, V] fp32) of draft blocks: each sequence is one block, whose
    rows read the ring before it and each other. Writes no row of the store. Raises as `run_step`."""
    T, model = sum(map(len, tokens)), packed.model
    _check(packed, T, (), None)
    x_TSD = torch.empty(T, model.streams, model.dim, dtype=packed.dtype)
    rows_TD = torch.empty(T, model.dim, dtype=packed.dtype)
    logits_TV = torch.empty(T, model.vocabulary)
    batch = StepBatch(block=1, x_TSD=x_TSD.data_ptr(), rows_ND=rows_TD.data_ptr(), logits_NV=logits_TV.data_ptr())
    _run(packed, batch, tokens, cached, places, range(T))
    return rows_TD, logits_TV


def _run(
    packed: PackedStep,
    batch: StepBatch,
    tokens: Sequence[Sequence[int]],
    cached: Sequence[int],
    places: Sequence[Place],
    wanted: Sequence[int],
    meanwhile: Callable[[], None] | None = None,
) -> None:
    """Complete the batch, which has its outputs, and run it."""
    counts = list(map(len, tokens))
    columns: list[Iterable[int]] = [
        [token for part in tokens for token in part],
        counts,
        cached,
        [place.slot for place in places],
        [place.window_from for place in places],
        [place.entries_from for place in places],
        [len(place.pages) for place in places],
        _pages(places),
        wanted,
    ]
    numbers, starts = array("q"), []
    for column in columns:
        starts.append(8 * len(numbers))
        numbers.extend(column)
    address = numbers.buffer_info()[0]
    angle_RP = torch.empty(_rows_of_angles(packed, counts, cached), packed.model.pairs)
    batch.tokens, batch.sequences, batch.wanted = sum(counts), len(counts), len(wanted)
    for name, start in zip(_COLUMNS, starts, strict=True):
        setattr(batch, name, address + start)
    batch.threads = torch.get_num_threads()
    if packed.places is not None:
        batch.places = ctypes.pointer(packed.places)
    pointers = (ctypes.addressof(packed.model), ctypes.addressof(packed.store), ctypes.addressof(batch))
    _raise(_function("dsv4_step_plan", 4)(*pointers, angle_RP.data_ptr()))
    cos_RP, sin_RP = _cos_sin(angle_RP)
    batch.cos, batch.sin = cos_RP.data_ptr(), sin_RP.data_ptr()
    if meanwhile is not None:
        meanwhile()
    _raise(_function("dsv4_step", 3)(*pointers))


def _pages(places: Sequence[Place]) -> "array[int]":
    """The pages of all places. A place of a running request has them as an array: a million tokens have 4,096, and one
    number at a time takes longer than a tenth of the step."""
    pages = array("q")
    for place in places:
        pages.extend(place.pages)
    return pages


def _check(packed: PackedStep, T: int, wanted: Sequence[int], given_TSD: Tensor | None) -> None:
    if not T:
        raise ValueError("run_step: the batch is empty")
    if wanted and not 0 <= min(wanted) <= max(wanted) < T:
        raise IndexError(f"run_step: wanted rows must be in [0, {T})")
    if (given_TSD is not None) != packed.predicts:
        raise ValueError("run_step: a prediction block, and only that, starts from given streams")
    shape = (T, packed.model.streams, packed.model.dim)
    if given_TSD is not None and (
        given_TSD.shape != shape or given_TSD.dtype != packed.dtype or not readable(given_TSD)
    ):
        raise ValueError(f"run_step: given streams must be contiguous [T, S, D] of {packed.dtype}")


def _raise(code: int) -> None:
    if code == 6:
        raise unread()
    if code:
        kind, text = _WRONG[code]
        raise kind(f"run_step: {text}")
