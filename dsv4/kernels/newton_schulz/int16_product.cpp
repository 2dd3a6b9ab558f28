// Products of columns of 16-bit integers. See int16_product.h.
#include "int16_product.h"

#include <algorithm>
#include <cmath>

#include "native/int16.h"
#include "native/parallel.h"
#include "native/transpose.h"

namespace dsv4 {

namespace {

constexpr int NV = 2, PANEL = NV * W;  // a panel: columns whose pairs lie side by side
constexpr int MR = W == 16 ? 8 : 4;    // rows of a tile in registers
constexpr float LARGEST = 32767;
constexpr float SMALLEST_NORM = 1e-15f;  // a shorter column counts as this long: its square would be below float32
constexpr float TO_INTEGER = 0x1.8p23f;  // added to a small float: the integer is in the lower bits, rounded
static_assert(FILLED % PANEL == 0 && PANEL % MR == 0 && FILLED % (2 * W) == 0);

typedef int16_t half_lanes __attribute__((vector_size(W * 2)));

// x / unit as integers in the lower 16 bits of each lane
inline vi rounded(vf x, vf inverse) { return (vi)fma(x, inverse, splat(TO_INTEGER)); }

inline float unit_of(float square) { return std::max(std::sqrt(square), SMALLEST_NORM) / LARGEST; }

}  // namespace

void pack_columns(const float* a, int64_t k, int64_t n, Int16Columns& out) {
    out.k = k, out.n = n;
    for (int64_t j = 0; j < n; j += PANEL) {
        vf square[NV] = {};
        for (int64_t i = 0; i < k; i++)
            unrolled<NV>([&](auto v) {
                const vf x = load(a + i * n + j + v * W);
                square[v] = fma(x, x, square[v]);
            });
        vf inverse[NV];
        unrolled<NV>([&](auto v) {
            for (int l = 0; l < W; l++) square[v][l] = unit_of(square[v][l]);
            inverse[v] = 1.0f / square[v];
            store(out.units + j + v * W, square[v]);
        });
        int32_t* to = out.pairs + j * (k / 2);
        for (int64_t i = 0; i < k; i += 2, to += PANEL)
            unrolled<NV>([&](auto v) {
                const float* from = a + i * n + j + v * W;
                const vi even = rounded(load(from), inverse[v]), odd = rounded(load(from + n), inverse[v]);
                store(to + v * W, (even & 0xffff) | (odd << 16));
            });
    }
}

void pack_turned(const float* a, int64_t k, int64_t n, Int16Columns& out) {
    out.k = k, out.n = n;
    static thread_local Scratch memory;
    int16_t* rows = (int16_t*)memory.bytes(W * k * 2);
    for (int64_t j = 0; j < n; j += W) {
        for (int c = 0; c < W; c++) {
            const float* from = a + (j + c) * k;
            const float unit = out.units[j + c] = unit_of(dot(from, from, k));
            const vf inverse = splat(1.0f / unit);
            for (int64_t i = 0; i < k; i += W) {
                const half_lanes x = __builtin_convertvector(rounded(load(from + i), inverse), half_lanes);
                std::memcpy(rows + c * k + i, &x, sizeof x);
            }
        }
        int32_t* to = out.pairs + j / PANEL * PANEL * (k / 2) + j % PANEL;
        for (int64_t p = 0; p < k / 2; p += W) {
            vf v[W];
            unrolled<W>([&](auto c) { v[c] = (vf)load((const int32_t*)(rows + c * k) + p); });
            transpose<W>(v);
            unrolled<W>([&](auto i) { store(to + (p + i) * PANEL, (vi)v[i]); });
        }
    }
}

namespace {

struct Result {
    float factor;
    Addend first, second;
    float* out;
};

// rows from i and columns from j of a product, VECTORS * W columns wide
template <int VECTORS>
void tile(const Int16Columns& a, const Int16Columns& b, int64_t i, int64_t j, const Result& result) {
    const int64_t pairs = a.k / 2;
    const int32_t* left = a.pairs + i / PANEL * PANEL * pairs + i % PANEL;
    const int32_t* right = b.pairs + j * pairs;
    vi sum[MR][VECTORS] = {};
    for (int64_t p = 0; p < pairs; p++, left += PANEL, right += PANEL) {
        vi columns[VECTORS];
        unrolled<VECTORS>([&](auto v) { columns[v] = load(right + v * W); });
        unrolled<MR>([&](auto r) {
            const vi row = splat(left[r]);
            unrolled<VECTORS>([&](auto v) { sum[r][v] = dot_int16(row, columns[v], sum[r][v]); });
        });
    }
    unrolled<MR>([&](auto r) {
        const vf unit = splat(result.factor * a.units[i + r]);
        unrolled<VECTORS>([&](auto v) {
            const int64_t at = (i + r) * b.n + j + v * W;
            vf y = __builtin_convertvector(sum[r][v], vf) * (unit * load(b.units + j + v * W));
            if (result.first.x) y = fma(load(result.first.x + at), splat(result.first.factor), y);
            if (result.second.x) y = fma(load(result.second.x + at), splat(result.second.factor), y);
            store(result.out + at, y);
        });
    });
}

}  // namespace

void product(const Int16Columns& a, const Int16Columns& b, float factor, Addend first, Addend second, float* out,
             bool lower) {
    const Result result{factor, first, second, out};
    for (int64_t j = 0; j < b.n; j += PANEL)
        for (int64_t i = 0; i < a.n; i += MR) {
            const int64_t below = i + MR - j;  // of a lower product: columns that are needed
            if (lower && below <= 0) continue;
            (lower && below <= W ? tile<1> : tile<NV>)(a, b, i, j, result);
        }
}

}  // namespace dsv4
