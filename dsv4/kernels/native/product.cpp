// Matrix products from packed panels. See product.h.
#include "product.h"

#include <algorithm>

#include "parallel.h"
#include "simd.h"
#include "transpose.h"

namespace dsv4 {

namespace {

#if defined(__AVX512F__)
constexpr int MR = 8;  // a tile in registers: rows, vectors, columns
#else
constexpr int MR = 6;
#endif
constexpr int NV = 2, NR = NV * W;
constexpr int64_t KC = 256, MC = 96, NC = 512;  // a piece of the product: A's in the second-level cache, B's behind it

// one tile of MR rows, all there, of which row r starts at p + r * pitch: [k][MR]
void pack_tile(const float* p, int64_t pitch, int64_t k, float* out) {
    int64_t j = 0;
    if constexpr ((MR & (MR - 1)) == 0)
        for (; j + W <= k; j += W, out += MR * W) {
            vf v[MR];
            unrolled<MR>([&](auto r) { v[r] = load(p + r * pitch + j); });
            transpose<MR>(v);
            unrolled<MR>([&](auto r) { store(out + r * W, v[r]); });
        }
    for (; j < k; j++, out += MR)
        for (int r = 0; r < MR; r++) out[r] = p[r * pitch + j];
}

// tiles of MR rows: [tile][k][MR], short ones filled up with zeros
void pack_rows(View a, int64_t m, int64_t k, float* out) {
    for (int64_t i = 0; i < m; i += MR, out += MR * k) {
        const int64_t rows = std::min<int64_t>(MR, m - i);
        const View own = a.at(i, 0);
        if (rows < MR) {
            std::fill_n(out, MR * k, 0.0f);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t j = 0; j < k; j++) out[j * MR + r] = own.p[r * own.row + j * own.column];
        } else if (own.row == 1) {
            for (int64_t j = 0; j < k; j++) std::memcpy(out + j * MR, own.p + j * own.column, MR * sizeof(float));
        } else {
            pack_tile(own.p, own.row, k, out);
        }
    }
}

// W columns, all there, of which column c starts at p + c * pitch: to W floats of each row of [k][NR]
void pack_vector(const float* p, int64_t pitch, int64_t k, float* out) {
    int64_t i = 0;
    for (; i + W <= k; i += W) {
        vf v[W];
        unrolled<W>([&](auto c) { v[c] = load(p + c * pitch + i); });
        transpose<W>(v);
        unrolled<W>([&](auto r) { store(out + (i + r) * NR, v[r]); });
    }
    for (; i < k; i++)
        for (int c = 0; c < W; c++) out[i * NR + c] = p[c * pitch + i];
}

// tiles of NR columns: [tile][k][NR]
void pack_columns(View b, int64_t k, int64_t n, float* out) {
    for (int64_t j = 0; j < n; j += NR, out += NR * k) {
        const int64_t columns = std::min<int64_t>(NR, n - j);
        const View own = b.at(0, j);
        if (columns < NR) std::fill_n(out, NR * k, 0.0f);
        if (own.column == 1) {
            const size_t size = size_t(columns) * sizeof(float);
            for (int64_t i = 0; i < k; i++) {
                const float* from = own.p + i * own.row;
                if (columns == NR)
                    std::memcpy(out + i * NR, from, NR * sizeof(float));  // of a size known here: whole vectors
                else
                    std::memcpy(out + i * NR, from, size);
            }
            continue;
        }
        int64_t c = 0;
        for (; c + W <= columns; c += W) pack_vector(own.p + c * own.column, own.column, k, out + c);
        for (; c < columns; c++)
            for (int64_t i = 0; i < k; i++) out[i * NR + c] = own.p[c * own.column + i];
    }
}

// a tile [MR, VECTORS * W] from packed operands, to `rows` x `columns` of c
template <int VECTORS>
void tile(const float* a, const float* b, int64_t k, float* c, int64_t pitch, int64_t rows, int64_t columns, bool add) {
    vf sum[MR][VECTORS] = {};
    for (int64_t i = 0; i < k; i++, a += MR, b += NR) {
        vf right[VECTORS];
        for (int v = 0; v < VECTORS; v++) right[v] = load(b + v * W);
        unrolled<MR>([&](auto r) {
            const vf left = splat(a[r]);
            for (int v = 0; v < VECTORS; v++) sum[r][v] = fma(left, right[v], sum[r][v]);
        });
    }
    for (int64_t r = 0; r < rows; r++, c += pitch) {
        for (int v = 0; v < VECTORS; v++) {
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
                        const int64_t below = i + r + MR - (j + s);  // of a lower product: columns that are needed
                        if (lower && below <= 0) continue;
                        (lower && below <= W ? tile<1> : tile<NV>)(
                            left + r * depth, right + s * depth, depth, c + (i + r) * pitch + j + s, pitch,
                            std::min<int64_t>(MR, rows - r), std::min<int64_t>(NR, columns - s), add);
                    }
            }
        }
    }
}

}  // namespace dsv4
