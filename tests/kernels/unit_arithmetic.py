"""What units of bfloat16 products compute, in numpy: VDPBF16PS, TDPBF16PS, and products of stored weights made of them.

Stated from Intel's Software Developer's Manual (volume 2), in float64 with one rounding to float32; nothing is shared
with the kernels. Legend: T activation rows, N weight rows, K columns; P pairs of a tile's row.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
SMALLEST = np.float32(2.0**-126)


def flushed(x: Floats) -> Floats:
    """Numbers below 2^-126 are zeros of their sign."""
    return np.where(np.abs(x) < SMALLEST, np.copysign(np.float32(0), x), x)


def added_product(a: Floats, b: Floats, c: Floats) -> Floats:
    """c + a b with one rounding, of and to numbers that are flushed. a and b have the 8 bits of bfloat16."""
    product = flushed(a).astype(np.float64) * flushed(b).astype(np.float64)  # exact
    c64 = flushed(c).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        total = product + c64
        back = total - product
        error = (product - (total - back)) + (c64 - back)  # total + error is exact
        # an odd last bit says that something was cut off, so that the next rounding is the only one
        bits = total.view(np.int64)
        even = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
        bits = np.where(even, bits + np.where((error > 0) == (total > 0), 1, -1), bits)
        return flushed(bits.view(np.float64).astype(np.float32))


def vdpbf16ps(total: Floats, w: Floats, x: Floats) -> Floats:
    """total + the products of pairs (the last axis of w and x): the second, then the first."""
    return added_product(w[..., 0], x[..., 0], added_product(w[..., 1], x[..., 1], total))


def tdpbf16ps(total: Floats, x_TP2: Floats, w_NP2: Floats) -> Floats:
    """total + the products of P pairs: a chain of the first numbers of the pairs and one of the second ones, from 0."""
    first, second = np.zeros_like(total), np.zeros_like(total)
    for p in range(x_TP2.shape[1]):
        first = added_product(x_TP2[:, None, p, 0], w_NP2[None, :, p, 0], first)
        second = added_product(x_TP2[:, None, p, 1], w_NP2[None, :, p, 1], second)
    with np.errstate(invalid="ignore", over="ignore"):
        return flushed(flushed(total) + flushed(first + second))


def padded(values: Floats, to: int) -> Floats:
    """Rows filled up with zeros to whole groups of columns."""
    return np.pad(values, ((0, 0), (0, -values.shape[1] % to)))


def by_dot_products(x_TK: Floats, w_NK: Floats, fp4: bool) -> Floats:
    """x_TK w_NK^T as a chain of VDPBF16PS in 16 lanes over groups of 128 columns, then the sum of the lanes."""
    if fp4:  # pairs of a lane are four columns apart
        order = np.arange(128).reshape(32, 4).T.reshape(4, 16, 2)
    else:  # groups of eight columns, of each 64 those with even numbers first
        order = np.arange(128).reshape(2, 4, 2, 8).transpose(0, 2, 1, 3).reshape(4, 16, 2)
    x_TK, w_NK = padded(x_TK, 128), padded(w_NK, 128)
    lanes = np.zeros((len(x_TK), len(w_NK), 16), np.float32)
    for start in range(0, x_TK.shape[1], 128):
        for places in start + order:
            lanes = vdpbf16ps(lanes, w_NK[None, :, places], x_TK[:, None, places])
    with np.errstate(invalid="ignore", over="ignore"):
        for half in (8, 4, 2, 1):
            lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def by_tiles(x_TK: Floats, w_NK: Floats, fp4: bool) -> Floats:
    """x_TK w_NK^T as a chain of TDPBF16PS over blocks of 32 columns."""
    wide = 8 if fp4 else 4  # columns of 32 bits of codes; a pair is one of each half
    order = np.arange(32).reshape(-1, 2, wide // 2).transpose(0, 2, 1).reshape(16, 2)
    x_TK, w_NK = padded(x_TK, 32), padded(w_NK, 32)
    total = np.zeros((len(x_TK), len(w_NK)), np.float32)
    for start in range(0, x_TK.shape[1], 32):
        total = tdpbf16ps(total, x_TK[:, start + order], w_NK[:, start + order])
    return total
