// Some columns of a stored row as float32: a thread that sums up columns reads no others.
#pragma once
#include <algorithm>

#include "rows/rows.h"

namespace dsv4 {

// Columns [c0, c1) of a row of that kind to the same places of `out`, as row_to_float has them; c0 is a multiple of W.
inline void columns_to_float(const Rows& rows, const uint8_t* row, int64_t c0, int64_t c1, float* out) {
    if (rows.kind == ROW_ENTRY) {
        const int64_t plain = rows.dim - rows.rope;
        const uint8_t* scale = row + plain + 2 * rows.rope;
        for (int64_t i = c0; i < std::min(c1, plain);) {
            const int64_t end = std::min({(i / ENTRY_BLOCK + 1) * ENTRY_BLOCK, c1, plain});
            fp8_to_float(row + i, scale_of(scale[i / ENTRY_BLOCK]), end - i, out + i);
            i = end;
        }
        const int64_t i = std::max(c0, plain);
        if (i < c1) bf16_to_float(row + plain + 2 * (i - plain), c1 - i, out + i);
    } else if (rows.kind == ROW_FLOAT) {
        copy_floats(row + 4 * c0, c1 - c0, out + c0);
    } else {
        bf16_to_float(row + 2 * c0, c1 - c0, out + c0);
    }
}

}  // namespace dsv4
