"""Casts to and from FP8 (e4m3) and FP4 (e2m1) with block scales, and the Hadamard rotation; plain torch.

Legend: T tokens, K input columns, N output rows, B blocks along K. A leading `...` means any shape.
Everything here is bit-exact with the released inference code (spec: checkpoint.md section 3; report 5.2.1).
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ScaleFormat = Literal["ue8m0", "float32"]

FP8_BLOCK = 128
FP4_BLOCK = 32
FP8_MAX = 448.0
FP4_MAX = 6.0
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# Below these the released casts stop following the data, so that a scale never reaches zero.
_FP8_AMAX_FLOOR = 1e-4
_FP4_AMAX_FLOOR = FP4_MAX * 2.0**-126
# FP4 to FP8 puts the tile's largest scale at 2^6, because 6 * 2^6 <= 448; the smallest may then lie 2^14
# lower, because 0.5 * 2^-8 is e4m3's smallest subnormal.
_FP4_IN_FP8_SHIFT = 6


def e8m0_to_float(scale: Tensor) -> Tensor:
    """Byte b -> 2^(b-127) as float32; 255 is NaN. `scale` is float8_e8m0fnu."""
    return scale.to(torch.float32)


def powers_of_two(scale: Tensor) -> bool:
    """Whether all values are powers of two that e8m0 has, 2^-127 to 2^127."""
    values = scale.to(torch.float32)
    return torch.equal(values.to(torch.float8_e8m0fnu).to(torch.float32), values)


def float_to_e8m0(scale: Tensor) -> Tensor:
    """Powers of two -> e8m0, exactly. Raises ValueError for any other value, NaN and what is out of range."""
    encoded = scale.to(torch.float32).to(torch.float8_e8m0fnu)
    if not powers_of_two(scale):
        raise ValueError("scale must hold powers of two in [2^-127, 2^127] to be stored as e8m0")
    return encoded


def quantize_fp8(x: Tensor, block: int = FP8_BLOCK, scale_format: ScaleFormat = "ue8m0") -> tuple[Tensor, Tensor]:
    """Cast activations to e4m3 with one scale per row and `block` columns.

    x [..., K] -> (q float8_e4m3fn [..., K], scale [..., ceil(K/block)]), value = q * scale. The scale is the
    smallest power of two that fits (float8_e8m0fnu), or amax/448 (float32). The last block may be short. A
    block that holds NaN or infinity gets a NaN scale.
    """
    x_BK = _blocks(x.to(torch.float32), block)
    amax = x_BK.abs().amax(-1, keepdim=True).clamp(min=_FP8_AMAX_FLOOR)
    scale = amax * _float32(1 / FP8_MAX)
    if scale_format == "ue8m0":
        scale = _power_of_two_above(scale)
    elif scale_format != "float32":
        raise ValueError(f"scale_format must be ue8m0 or float32, got {scale_format!r}")
    q = (x_BK / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    scale = scale.squeeze(-1)
    stored = scale.to(torch.float8_e8m0fnu) if scale_format == "ue8m0" else scale
    return q.flatten(-2)[..., : x.shape[-1]], stored


def simulate_fp8(x: Tensor, block: int) -> Tensor:
    """See dsv4.kernels.quant.simulate_fp8."""
    q, scale = quantize_fp8(x, block)
    x_BK = _blocks(q.to(torch.float32), block) * e8m0_to_float(scale).unsqueeze(-1)
    return x_BK.flatten(-2)[..., : x.shape[-1]].to(x.dtype)


def quantize_fp4(x: Tensor, block: int = FP4_BLOCK) -> tuple[Tensor, Tensor]:
    """Cast to e2m1 with one power-of-two scale per row and `block` columns; ties go to the even code.

    x [..., K] -> (packed int8 [..., K/2], scale float8_e8m0fnu [..., K/block]). `block` must be even and
    divide K.
    """
    codes, scale = _fp4_codes(x, block)
    return pack_fp4(codes), scale.to(torch.float8_e8m0fnu)


def simulate_fp4(x: Tensor, block: int) -> Tensor:
    """See dsv4.kernels.quant.simulate_fp4."""
    codes, scale = _fp4_codes(x, block)
    x_BK = fp4_to_float(codes).unflatten(-1, (-1, block)) * scale.unsqueeze(-1)
    return x_BK.flatten(-2).to(x.dtype)


def pack_fp4(codes: Tensor) -> Tensor:
    """Codes 0..15 (uint8 [..., K], K even) -> int8 [..., K/2]; even columns lie in the low nibble."""
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).view(torch.int8)


def unpack_fp4(packed: Tensor) -> Tensor:
    """int8 [..., K/2] -> codes 0..15, uint8 [..., K]; the inverse of `pack_fp4`."""
    bits = packed.view(torch.uint8)
    return torch.stack((bits & 15, bits >> 4), dim=-1).flatten(-2)


def fp4_to_float(codes: Tensor) -> Tensor:
    """Codes 0..15 (uint8) -> float32 values; bit 3 is the sign."""
    signed = (*FP4_VALUES, *(-value for value in FP4_VALUES))
    table = torch.tensor(signed, dtype=torch.float32, device=codes.device)
    return table[codes.to(torch.int32)]


def packed_fp4_to_float(packed: Tensor) -> Tensor:
    """int8 [..., K/2] -> float32 values [..., K]; one look-up per byte."""
    every_byte = torch.arange(256, dtype=torch.uint8, device=packed.device).unsqueeze(-1)
    # Both values of a byte move as one int64, which is several times faster than two floats.
    table = fp4_to_float(unpack_fp4(every_byte)).view(torch.int64).flatten()
    pairs = table.index_select(0, packed.view(torch.uint8).to(torch.int32).flatten())
    return pairs.view(torch.float32).reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def hadamard(x: Tensor) -> Tensor:
    """x [..., K] @ H_K * K^-0.5 with H in Sylvester order, K a power of two; float32 inside, one rounding."""
    K = x.shape[-1]
    if K < 1 or K & (K - 1):
        raise ValueError(f"hadamard: the last dimension must be a power of two, got {K}")
    y = x.to(torch.float32)
    width = 1
    while width < K:
        pair = y.unflatten(-1, (-1, 2, width))
        even, odd = pair.unbind(-2)
        y = torch.stack((even + odd, even - odd), dim=-2).flatten(-3)
        width *= 2
    return (y * K**-0.5).to(x.dtype)


def quantize_fp8_weight(w_NK: Tensor, scale_format: ScaleFormat = "ue8m0") -> tuple[Tensor, Tensor]:
    """Cast a weight to e4m3 with one power-of-two scale per 128x128 tile.

    w [N, K] float -> (float8_e4m3fn [N, K], scale [ceil(N/128), ceil(K/128)] as float8_e8m0fnu or float32).
    Quantising what `dequantize_fp8_weight` returned gives the same values. Works a row of tiles at a time.
    Raises ValueError for NaN or infinity.
    """
    N, K = w_NK.shape
    q_NK = torch.empty(N, K, dtype=torch.float8_e4m3fn, device=w_NK.device)
    scales: list[Tensor] = []
    for rows in _row_slices(N):
        tile = _blocks(w_NK[rows].to(torch.float32), FP8_BLOCK)
        amax_B = tile.abs().amax((0, 2))
        if not bool(amax_B.isfinite().all()):
            raise ValueError(f"weight rows {rows.start}..{rows.stop - 1} hold NaN or infinity")
        scale_B = _power_of_two_above((amax_B / FP8_MAX).clamp(min=2.0**-126))
        scale_B = torch.where(amax_B == 0, torch.ones_like(scale_B), scale_B)
        q = (tile / scale_B[:, None]).clamp(-FP8_MAX, FP8_MAX)
        q_NK[rows] = q.flatten(-2)[:, :K].to(torch.float8_e4m3fn)
        scales.append(scale_B)
    scale = torch.stack(scales) if scales else w_NK.new_empty(0, -(-K // FP8_BLOCK), dtype=torch.float32)
    return q_NK, scale if scale_format == "float32" else float_to_e8m0(scale)


def dequantize_fp8_weight(w_NK: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """e4m3 [N, K] and its 128x128 scales -> float [N, K]. Exact in float32 and bfloat16 (report 5.2.1)."""
    N, K = w_NK.shape
    _check_scale("fp8 weight", w_NK.shape, scale, (-(-N // FP8_BLOCK), -(-K // FP8_BLOCK)))
    out_NK = torch.empty(N, K, dtype=dtype, device=w_NK.device)
    for i, rows in enumerate(_row_slices(N)):
        scale_K = scale[i].to(torch.float32).repeat_interleave(FP8_BLOCK)[:K]
        out_NK[rows] = (w_NK[rows].to(torch.float32) * scale_K).to(dtype)
    return out_NK


def quantize_fp4_weight(w_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Cast a weight to packed e2m1, one e8m0 scale per row and 32 columns; K must divide by 32.

    w [N, K] float -> (int8 [N, K/2], float8_e8m0fnu [N, K/32]). Raises ValueError for NaN or infinity.
    """
    N, K = w_NK.shape
    packed = torch.empty(N, K // 2, dtype=torch.int8, device=w_NK.device)
    scale = torch.empty(N, K // FP4_BLOCK, dtype=torch.float8_e8m0fnu, device=w_NK.device)
    for rows in _row_slices(N):
        tile = w_NK[rows].to(torch.float32)
        if not bool(tile.isfinite().all()):
            raise ValueError(f"weight rows {rows.start}..{rows.stop - 1} hold NaN or infinity")
        packed[rows], scale[rows] = quantize_fp4(tile)
    return packed, scale


def dequantize_fp4_weight(packed: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Packed e2m1 int8 [N, K/2] and e8m0 [N, K/32] -> float [N, K]. Exact in float32 and bfloat16."""
    N, K = packed.shape[0], packed.shape[1] * 2
    _check_scale("fp4 weight", packed.shape, scale, (N, K // FP4_BLOCK), exact=K % FP4_BLOCK == 0)
    out_NK = torch.empty(N, K, dtype=dtype, device=packed.device)
    for rows in _row_slices(N):
        value = packed_fp4_to_float(packed[rows]).unflatten(-1, (-1, FP4_BLOCK))
        out_NK[rows] = (value * scale[rows].to(torch.float32).unsqueeze(-1)).flatten(-2).to(dtype)
    return out_NK


def simulate_fp8_weight(w_NK: Tensor) -> Tensor:
    """See dsv4.kernels.quant.simulate_fp8_weight."""
    return dequantize_fp8_weight(*quantize_fp8_weight(w_NK))


def simulate_fp4_weight(w_NK: Tensor) -> Tensor:
    """See dsv4.kernels.quant.simulate_fp4_weight."""
    return dequantize_fp4_weight(*quantize_fp4_weight(w_NK))


def dequantize_weight(weight: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of a stored weight in either format: packed e2m1 if it is int8, else e4m3."""
    dequantize = dequantize_fp4_weight if weight.dtype == torch.int8 else dequantize_fp8_weight
    return dequantize(weight, scale, dtype)


def fp4_to_fp8_weight(packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The same weight in the FP8 layout, without loss: every value is equal afterwards.

    int8 [N, K/2], e8m0 [N, K/32] -> (float8_e4m3fn [N, K], e8m0 [ceil(N/128), ceil(K/128)]); the tile's scale
    is its largest FP4 scale / 2^6, as the released converter does. Raises ValueError naming the tile where
    this is not exact: non-zero blocks whose scales differ by more than 2^14, or a scale below e8m0's range.
    """
    N, K = packed.shape[0], packed.shape[1] * 2
    _check_scale("fp4 weight", packed.shape, scale, (N, K // FP4_BLOCK), exact=K % FP4_BLOCK == 0)
    out_NK = torch.empty(N, K, dtype=torch.float8_e4m3fn, device=packed.device)
    per_tile = FP8_BLOCK // FP4_BLOCK
    tile_scales: list[Tensor] = []
    for i, rows in enumerate(_row_slices(N)):
        scale_rows = scale[rows].to(torch.float32)
        tile_scale = _blocks(scale_rows, per_tile).amax((0, 2)) / 2.0**_FP4_IN_FP8_SHIFT
        if not bool((tile_scale >= 2.0**-127).all()):
            raise ValueError(f"fp4 to fp8 is not lossless in row tile {i}: a scale is NaN or below 2^-127")
        shift = scale_rows / tile_scale.repeat_interleave(per_tile)[: scale_rows.shape[1]]
        value = packed_fp4_to_float(packed[rows]).unflatten(-1, (-1, FP4_BLOCK)) * shift.unsqueeze(-1)
        value = value.flatten(-2)
        cast = value.to(torch.float8_e4m3fn)
        wrong = (cast.to(torch.float32) != value).any(0).nonzero()
        if len(wrong):
            column = int(wrong[0]) // FP8_BLOCK
            raise ValueError(f"fp4 to fp8 is not lossless in tile ({i}, {column}): scale ratio above 2^14")
        out_NK[rows] = cast
        tile_scales.append(tile_scale)
    scales = torch.stack(tile_scales) if tile_scales else packed.new_empty(0, -(-K // FP8_BLOCK))
    return out_NK, scales.to(torch.float32).to(torch.float8_e8m0fnu)


def _float32(value: float) -> float:
    """The Python float that is `value` rounded to float32, as the released kernels hold their constants."""
    return float(torch.tensor(value, dtype=torch.float32))


def _power_of_two_above(x: Tensor) -> Tensor:
    """2^ceil(log2 x) of positive normal float32, read off the exponent bits; NaN where x is not finite."""
    bits = x.contiguous().view(torch.int32)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0)
    power = (exponent.clamp(max=254) << 23).view(torch.float32)
    return torch.where(x.isfinite(), power, torch.full_like(power, torch.nan))


def _blocks(x: Tensor, block: int) -> Tensor:
    """[..., K] -> [..., B, block], the last block filled up with zeros."""
    missing = -x.shape[-1] % block
    return (F.pad(x, (0, missing)) if missing else x).unflatten(-1, (-1, block))


def _row_slices(N: int) -> Iterator[slice]:
    """Rows one tile high: bounds the working memory to a few tiles, whatever the weight's size."""
    return (slice(i, min(i + FP8_BLOCK, N)) for i in range(0, N, FP8_BLOCK))


def check_fp4_block(x: Tensor, block: int) -> None:
    """Raises ValueError unless FP4 blocks of that many columns fit x."""
    if block < 2 or block % 2 or x.shape[-1] % block:
        raise ValueError(f"fp4: the block must be even and divide the last dimension, got {block} and {x.shape[-1]}")


def _fp4_codes(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Codes (uint8 [..., K]) and float32 scales [..., K/block]."""
    check_fp4_block(x, block)
    x_BK = x.to(torch.float32).unflatten(-1, (-1, block))
    amax = x_BK.abs().amax(-1, keepdim=True).clamp(min=_FP4_AMAX_FLOOR)
    scale = _power_of_two_above(amax * _float32(1 / FP4_MAX))
    scaled = x_BK / scale
    # Codes count steps of 0.5 up to 2, of 1 up to 4, of 2 up to 6: the least of the three counts is the code.
    # torch.round takes ties to even, which in each count is the even code.
    m = scaled.abs()
    magnitude = torch.minimum((m * 2).round_(), m.round() + 2).minimum((m / 2).round_() + 4)
    codes = magnitude.to(torch.uint8) | (scaled.signbit().to(torch.uint8) << 3)
    return codes.flatten(-2), scale.squeeze(-1)


def _check_scale(what: str, shape: torch.Size, scale: Tensor, expected: tuple[int, int], *, exact: bool = True) -> None:
    if tuple(scale.shape) != expected or not exact:
        raise ValueError(f"{what} {list(shape)} needs a scale of shape {list(expected)}, got {list(scale.shape)}")
