// Matrix products from packed panels. See product.h.
#include "product.h"

#include <algorithm>

#include "parallel.h"
#include "simd.h"

namespace dsv4 {

namespace {

constexpr int MR = 6, NV = 2, NR = NV * W;  // a tile in registers: rows, vectors, columns
constexpr int64_t KC = 256, MC = 96, NC = 512;  // a piece of the product: A's in the second-level cache, B's behind it

// tiles of MR rows: [tile][k][MR], short ones filled up with zeros
void pack_rows(View a, int64_t m, int64_t k, float* out) {
    for (int64_t i = 0; i < m; i += MR, out += MR * k) {
        const int64_t rows = std::min<int64_t>(MR, m - i);
        if (rows < MR) std::fill_n(out, MR * k, 0.0f);
        if (a.row == 1) {
            for (int64_t j = 0; j < k; j++)
                for (int64_t r = 0; r < rows; r++) out[j * MR + r] = a.p[i + r + j * a.column];
        } else {
            for (int64_t r = 0; r < rows; r++) {
                const float* from = a.p + (i + r) * a.row;
                for (int64_t j = 0; j < k; j++) out[j * MR + r] = from[j * a.column];
            }
        }
    }
}

// tiles of NR columns: [tile][k][NR]
void pack_columns(View b, int64_t k, int64_t n, float* out) {
    for (int64_t j = 0; j < n; j += NR, out += NR * k) {
        const int64_t columns = std::min<int64_t>(NR, n - j);
        if (columns < NR) std::fill_n(out, NR * k, 0.0f);
        if (b.column == 1 && columns == NR) {
            for (int64_t i = 0; i < k; i++) {
                const float* from = b.p + i * b.row + j;
                for (int v = 0; v < NV; v++) store(out + i * NR + v * W, load(from + v * W));
            }
        } else if (b.column == 1) {
            for (int64_t i = 0; i < k; i++) std::memcpy(out + i * NR, b.p + i * b.row + j, size_t(columns) * 4);
        } else {
            for (int64_t c = 0; c < columns; c++) {
                const float* from = b.p + (j + c) * b.column;
                for (int64_t i = 0; i < k; i++) out[i * NR + c] = from[i * b.row];
            }
        }
    }
}

// a tile [MR, NR] from packed operands, to `rows` x `columns` of c
void tile(const float* a, const float* b, int64_t k, float* c, int64_t pitch, int64_t rows, int64_t columns, bool add) {
    vf sum[MR][NV] = {};
    for (int64_t i = 0; i < k; i++, a += MR, b += NR) {
        vf right[NV];
        for (int v = 0; v < NV; v++) right[v] = load(b + v * W);
#pragma GCC unroll 6
        for (int r = 0; r < MR; r++) {
            const vf left = splat(a[r]);
#pragma GCC unroll 2
            for (int v = 0; v < NV; v++) sum[r][v] = fma(left, right[v], sum[r][v]);
        }
    }
    for (int64_t r = 0; r < rows; r++, c += pitch) {
        for (int v = 0; v < NV; v++) {
            const int64_t count = std::min<int64_t>(W, columns - v * W);
            if (count <= 0) break;
            float* to = c + v * W;
            if (count == W)
                store(to, add ? load(to) + sum[r][v] : sum[r][v]);
            else
                store_part(to, add ? load_part(to, int(count)) + sum[r][v] : sum[r][v], int(count));
        }
    }
}

}  // namespace

void product(View a, View b, float* c, int64_t pitch, int64_t m, int64_t n, int64_t k, Write write) {
    static thread_local Scratch left_memory, right_memory;
    const bool lower = write == Write::LOWER;
    if (k == 0 && write != Write::ADD)
        for (int64_t i = 0; i < m; i++) std::fill_n(c + i * pitch, n, 0.0f);
    for (int64_t p = 0; p < k; p += KC) {
        const int64_t depth = std::min(KC, k - p);
        const bool add = write == Write::ADD || p > 0;
        for (int64_t j = 0; j < n; j += NC) {
            const int64_t columns = std::min(NC, n - j);
            float* right = right_memory.floats((columns + NR - 1) / NR * NR * depth);
            pack_columns(b.at(p, j), depth, columns, right);
            for (int64_t i = 0; i < m; i += MC) {
                const int64_t rows = std::min(MC, m - i);
                if (lower && i + rows <= j) continue;
                float* left = left_memory.floats((rows + MR - 1) / MR * MR * depth);
                pack_rows(a.at(i, p), rows, depth, left);
                for (int64_t s = 0; s < columns; s += NR)
                    for (int64_t r = 0; r < rows; r += MR) {
                        if (lower && i + r + MR <= j + s) continue;
                        tile(left + r * depth, right + s * depth, depth, c + (i + r) * pitch + j + s, pitch,
                             std::min<int64_t>(MR, rows - r), std::min<int64_t>(NR, columns - s), add);
                    }
            }
        }
    }
}

}  // namespace dsv4
