"""Integers of 2, 4 or 8 bits in int32 words, with one scale for a group of columns of a row.

compressed-tensors, "pack-quantized" (W4A16, W8A16, W4A16_ASYM)
    weight_packed [N, K * bits / 32], weight_scale [N, groups], weight_shape = (N, K): columns lie in a word from the
    lowest bits up, stored as value + 2^(bits-1). weight_zero_point [N * bits / 32, groups], packed along the rows in
    the same way; weight_g_idx [K], the group of each column. value = (code - zero) * scale

GPTQ, and AutoRound's "auto_round:auto_gptq"
    qweight [K * bits / 32, N], scales [groups, N], qzeros, g_idx [K]. Only symmetric weights are read: their zero is
    2^(bits-1), whatever qzeros holds (versions of the format differ by one there).
"""

import torch
from torch import Tensor

from dsv4.checkpoint.requantized.method import Method, Parts, Shape, Specs, expect

WORD = 32
BITS = (2, 4, 8)
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_INT4_STEPS = (4, 5, 6, 7, 7.5, 8)  # of a scale's size in the largest value of its group
_INDICES = (torch.int32, torch.int64)


def unpack(words_RW: Tensor, bits: int, columns: int) -> Tensor:
    """int32 words [R, W] -> the numbers 0..2^bits-1 in them, int32 [R, columns]."""
    shifts = torch.arange(0, WORD, bits, dtype=torch.int32)
    numbers = (words_RW.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return numbers.flatten(-2)[:, :columns]


def pack(numbers_RC: Tensor, bits: int) -> Tensor:
    """The inverse, for whole words: numbers 0..2^bits-1 [R, C] -> int32 [R, C * bits / 32]."""
    shifts = torch.arange(0, WORD, bits, dtype=torch.int64)
    words_RW = (numbers_RC.to(torch.int64).unflatten(-1, (-1, WORD // bits)) << shifts).sum(-1)
    return torch.where(words_RW >= 1 << (WORD - 1), words_RW - (1 << WORD), words_RW).to(torch.int32)


def quantize_w4a16(w_NK: Tensor, group: int) -> dict[str, Tensor]:
    """Float [N, K] -> the tensors of a symmetric 4-bit weight of compressed-tensors with one scale for `group` columns.

    The scale of a group is the one of several (its largest value is to become 4, 5, 6, 7, 7.5 or 8 steps) with the
    least squared error: FP4 blocks whose largest value is 1, 1.5, 2 or 3 of their own scale are kept exactly. Raises
    ValueError for NaN or infinity.
    """
    w_NGC = w_NK.to(torch.float32).unflatten(-1, (-1, group))
    largest_NG1 = w_NGC.abs().amax(-1, keepdim=True)
    if not bool(largest_NG1.isfinite().all()):
        raise ValueError("weight holds NaN or infinity")
    best_NG1 = torch.full_like(largest_NG1, torch.inf)
    codes_NGC, scale_NG1 = torch.zeros_like(w_NGC), torch.zeros_like(largest_NG1)
    for steps in _INT4_STEPS:
        scale = (largest_NG1 / steps).to(torch.bfloat16).to(torch.float32)
        codes = torch.where(scale == 0, 0.0, (w_NGC / scale).round().clamp(-8, 7))
        error_NG1 = (codes * scale - w_NGC).square().sum(-1, keepdim=True)
        better = error_NG1 < best_NG1
        codes_NGC, scale_NG1 = torch.where(better, codes, codes_NGC), torch.where(better, scale, scale_NG1)
        best_NG1 = torch.where(better, error_NG1, best_NG1)
    return {
        "weight_packed": pack(codes_NGC.flatten(1) + 8, 4),
        "weight_scale": scale_NG1.squeeze(-1).to(torch.bfloat16),
        "weight_shape": torch.tensor(w_NK.shape, dtype=torch.int64),
    }


def _bits(words: int, columns: int) -> int:
    """The size of numbers of which `columns` fill `words`; 0 if there is none."""
    return next((bits for bits in BITS if -(-columns * bits // WORD) == words), 0)


def _groups_problem(name: str, specs: Specs, groups: int, columns: int, index: str) -> str | None:
    if groups < 1 or columns % groups:
        return f"{name} has {groups} groups, which do not divide {columns} columns"
    return expect(index, specs[index], _INDICES, (columns,)) if index in specs else None


def _compressed_tensors_problem(specs: Specs, shape: Shape) -> str | None:
    N, K = shape
    packed, scale = specs["weight_packed"], specs["weight_scale"]
    bits = _bits(packed.shape[-1], K) if len(packed.shape) == 2 else 0
    if not bits or packed.dtype != torch.int32 or packed.shape[0] != N:
        return f"weight_packed should hold {K} columns of 2, 4 or 8 bits in I32 [{N}, ...], is {packed}"
    if len(scale.shape) != 2 or scale.shape[0] != N or scale.dtype not in _FLOATS:
        return f"weight_scale should be BF16 [{N}, groups], is {scale}"
    groups = scale.shape[1]
    problem = _groups_problem("weight_scale", specs, groups, K, "weight_g_idx")
    if problem is None and "weight_zero_point" in specs:
        rows = -(-N * bits // WORD)
        problem = expect("weight_zero_point", specs["weight_zero_point"], (torch.int32,), (rows, groups))
    return problem or expect("weight_shape", specs["weight_shape"], _INDICES, (2,))


def _compressed_tensors_values(parts: Parts, shape: Shape) -> Tensor:
    N, K = shape
    stored = tuple(int(size) for size in parts["weight_shape"])
    if stored != shape:
        raise ValueError(f"weight_shape is {list(stored)}, the model has {list(shape)}")
    bits = _bits(parts["weight_packed"].shape[1], K)
    codes_NK = unpack(parts["weight_packed"], bits, K)
    zero_NG: Tensor | int = 1 << (bits - 1)
    if "weight_zero_point" in parts:
        zero_NG = unpack(parts["weight_zero_point"].T, bits, N).T
    return _values(codes_NK, zero_NG, parts["weight_scale"], parts.get("weight_g_idx"))


def _gptq_problem(specs: Specs, shape: Shape) -> str | None:
    N, K = shape
    packed, scale = specs["qweight"], specs["scales"]
    bits = _bits(packed.shape[0], K) if len(packed.shape) == 2 else 0
    if not bits or packed.dtype != torch.int32 or packed.shape[1] != N:
        return f"qweight should hold {K} rows of 2, 4 or 8 bits in I32 [..., {N}], is {packed}"
    if len(scale.shape) != 2 or scale.shape[1] != N or scale.dtype not in _FLOATS:
        return f"scales should be F16 [groups, {N}], is {scale}"
    return _groups_problem("scales", specs, scale.shape[0], K, "g_idx")


def _gptq_values(parts: Parts, shape: Shape) -> Tensor:
    _, K = shape
    bits = _bits(parts["qweight"].shape[0], K)
    codes_NK = unpack(parts["qweight"].T, bits, K)
    return _values(codes_NK, 1 << (bits - 1), parts["scales"].T, parts.get("g_idx"))


def _values(codes_NK: Tensor, zero_NG: Tensor | int, scale_NG: Tensor, group_K: Tensor | None) -> Tensor:
    """(code - zero) * scale in float32; without `group_K`, groups are equal runs of columns."""
    G, scale_NG = scale_NG.shape[1], scale_NG.to(torch.float32)
    if group_K is None:
        codes_NGK = codes_NK.unflatten(1, (G, -1))
        zero = zero_NG.unsqueeze(-1) if isinstance(zero_NG, Tensor) else zero_NG
        return ((codes_NGK - zero).to(torch.float32) * scale_NG.unsqueeze(-1)).flatten(1)
    if not 0 <= int(group_K.min()) <= int(group_K.max()) < G:
        raise ValueError(f"the groups of columns must lie in 0..{G - 1}")
    group_K = group_K.to(torch.int64)
    zero = zero_NG[:, group_K] if isinstance(zero_NG, Tensor) else zero_NG
    return (codes_NK - zero).to(torch.float32) * scale_NG[:, group_K]


COMPRESSED_TENSORS = Method(
    "packed integers (compressed-tensors)",
    frozenset({"weight_packed", "weight_scale", "weight_shape"}),
    frozenset({"weight_zero_point", "weight_g_idx", "input_global_scale", "input_scale"}),
    _compressed_tensors_problem,
    _compressed_tensors_values,
)
GPTQ = Method(
    "packed integers (GPTQ, AutoRound)",
    frozenset({"qweight", "scales"}),
    frozenset({"qzeros", "g_idx"}),
    _gptq_problem,
    _gptq_values,
)
