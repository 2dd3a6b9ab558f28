// A block that is one query of at most four heads, as small models decode: lanes are keys, and a stored row becomes
// float32 in registers, once for all heads.
//
// The chains are those of other blocks: scores over C, values over rows in order.
#pragma once
#include <algorithm>

#include "attention.h"
#include "native/transpose.h"

namespace dsv4 {

constexpr int64_t SINGLE = 4;         // heads, filled up with zeros
constexpr int64_t STRIP = W / 4;      // vectors of columns that are summed up at once, as registers allow
constexpr int64_t STRIP_COLUMNS = STRIP * W;
#if defined(__AVX512F__)
constexpr int64_t STRIPS = 1;  // that follow each other while a part of the rows is near
#else
constexpr int64_t STRIPS = 16;
#if defined(__AVX2__) && defined(__F16C__) && !defined(DSV4_WIDE)
#define DSV4_SINGLE_AVX2
#endif
#endif

// where a row lies
using Row = const uint8_t*;

// Scores of W keys as they grow over C; q: the query's columns [C][SINGLE]. All that adds is inlined: in memory the sums
// would be stored after every column.
struct KeyScores {
    const float* q;
    vf sum[SINGLE] = {};

    [[gnu::always_inline]] void add(vf key) {
        for (int64_t h = 0; h < SINGLE; h++) sum[h] = fma(key, splat(q[h]), sum[h]);
        q += SINGLE;
    }
};

#if defined(__AVX512F__)
#if defined(__AVX512VBMI__)
constexpr bool READS_ENTRIES = true;
#else
constexpr bool READS_ENTRIES = false;
#endif

// whether keys of this kind can be lanes: their columns come in quarters of 16 bytes
inline bool turns(const Rows& rows) {
    if (rows.kind == ROW_ENTRY) return READS_ENTRIES && (rows.dim - rows.rope) % 16 == 0 && rows.rope % 8 == 0;
    return rows.kind == ROW_BF16 ? rows.dim % 8 == 0 : rows.kind == ROW_FLOAT && rows.dim % 4 == 0;
}

// Row of the key in each lane: turning puts four keys in a row into the same lane of four quarters.
constexpr int64_t key_of(int64_t lane) { return lane % 4 * 4 + lane / 4; }

// the 16 bytes at `at` of W rows: lane l of out[i] is dword i of row key_of(l)
inline void turn_rows(const Row* row, int64_t at, Dwords* out) {
    const auto quarter = [&](int64_t r) { return _mm_loadu_si128((const __m128i*)(row[r] + at)); };
    Dwords x[4];
    for (int64_t i = 0; i < 4; i++) {
        x[i] = _mm512_inserti32x4(_mm512_castsi128_si512(quarter(4 * i)), quarter(4 * i + 1), 1);
        x[i] = _mm512_inserti32x4(_mm512_inserti32x4(x[i], quarter(4 * i + 2), 2), quarter(4 * i + 3), 3);
    }
    turn_quarters(x, out);
}

[[gnu::always_inline]] inline void add_floats(const Row* row, int64_t columns, KeyScores& scores) {
    for (int64_t c = 0; c < columns; c += 4) {
        Dwords value[4];
        turn_rows(row, 4 * c, value);
        unrolled<4>([&](auto i) __attribute__((always_inline)) { scores.add((vf)value[i]); });
    }
}

// bfloat16 columns from byte `at` on
[[gnu::always_inline]] inline void add_bf16(const Row* row, int64_t at, int64_t columns, KeyScores& scores) {
    for (int64_t c = 0; c < columns; c += 8) {
        Dwords two[4];
        turn_rows(row, at + 2 * c, two);
        unrolled<4>([&](auto i) __attribute__((always_inline)) {
            scores.add((vf)_mm512_slli_epi32(two[i], 16));
            scores.add((vf)_mm512_and_si512(two[i], _mm512_set1_epi32(int(0xFFFF0000))));
        });
    }
}

#if defined(__AVX512VBMI__)
// FP8 columns; scale: offset of their blocks' scale bytes
[[gnu::always_inline]] inline void add_fp8(const Row* row, int64_t columns, int64_t scale, KeyScores& scores) {
    vf factor{};
    for (int64_t c = 0; c < columns; c += 16) {
        if (c % ENTRY_BLOCK == 0) {
            vi bytes;
            for (int64_t l = 0; l < W; l++) bytes[l] = row[key_of(l)][scale + c / ENTRY_BLOCK];
            factor = scales_of<0>(bytes);
        }
        Dwords four[4];
        turn_rows(row, c, four);
        unrolled<4>([&](auto i) __attribute__((always_inline)) {
            const Fp8Values values(four[i]);
            unrolled<4>([&](auto j) __attribute__((always_inline)) { scores.add(values.at(FP8_OF_DWORDS[j]) * factor); });
        });
    }
}
#else
inline void add_fp8(const Row*, int64_t, int64_t, KeyScores&) { __builtin_unreachable(); }
#endif

// Scaled scores of W rows, [W][SINGLE] as vectors; rows: their kind.
inline void single_scores(const Rows& rows, const Row* row, const float* q, float scale, vf* out) {
    KeyScores scores{q};
    if (rows.kind == ROW_ENTRY) {
        const int64_t plain = rows.dim - rows.rope;
        add_fp8(row, plain, plain + 2 * rows.rope, scores);
        add_bf16(row, plain, rows.rope, scores);
    } else if (rows.kind == ROW_BF16) {
        add_bf16(row, 0, rows.dim, scores);
    } else {
        add_floats(row, rows.dim, scores);
    }
    const Dwords by_head[SINGLE] = {(Dwords)scores.sum[0], (Dwords)scores.sum[1], (Dwords)scores.sum[2],
                                    (Dwords)scores.sum[3]};
    Dwords by_key[SINGLE];
    turn_quarters(by_head, by_key);
    for (int64_t i = 0; i < SINGLE; i++) out[i] = (vf)by_key[i] * splat(scale);
}
#elif defined(DSV4_SINGLE_AVX2)
inline bool turns(const Rows& rows) { return rows.dim % W == 0 && rows.rope % W == 0; }

// W columns of W rows, of which `read` gives one
template <class Read>
[[gnu::always_inline]] inline void add_columns(const Row* row, KeyScores& scores, Read read) {
    __m256 column[W];
    for (int r = 0; r < W; r++) column[r] = read(row[r]);
    turn_eight(column);
    unrolled<W>([&](auto i) __attribute__((always_inline)) { scores.add((vf)column[i]); });
}

// Scaled scores of W rows, [W][SINGLE] as vectors; rows: their kind.
inline void single_scores(const Rows& rows, const Row* row, const float* q, float scale, vf* out) {
    KeyScores scores{q};
    const int64_t plain = rows.kind == ROW_ENTRY ? rows.dim - rows.rope : 0;
    if (rows.kind == ROW_FLOAT)
        for (int64_t c = 0; c < rows.dim; c += W)
            add_columns(row, scores, [&](Row one) { return (__m256)load((const float*)one + c); });
    for (int64_t c = 0; c < plain; c += W) {
        const int64_t at = plain + 2 * rows.rope + c / ENTRY_BLOCK;
        add_columns(row, scores, [&](Row one) {
            return _mm256_mul_ps(fp8_eight(one + c), _mm256_set1_ps(scale_of(one[at])));
        });
    }
    if (rows.kind != ROW_FLOAT)
        for (int64_t c = plain; c < rows.dim; c += W)
            add_columns(row, scores, [&](Row one) { return bf16_eight(one + plain + 2 * (c - plain)); });
    const Dwords by_head[SINGLE] = {(Dwords)scores.sum[0], (Dwords)scores.sum[1], (Dwords)scores.sum[2],
                                    (Dwords)scores.sum[3]};
    Dwords by_key[SINGLE];  // of two keys each: 0 and 4, 1 and 5, ...
    turn_quarters(by_head, by_key);
    for (int64_t i = 0; i < SINGLE; i += 2) {
        out[i / 2] = (vf)_mm256_permute2x128_si256(by_key[i], by_key[i + 1], 0x20) * splat(scale);
        out[i / 2 + 2] = (vf)_mm256_permute2x128_si256(by_key[i], by_key[i + 1], 0x31) * splat(scale);
    }
}
#else
inline bool turns(const Rows&) { return false; }
inline void single_scores(const Rows&, const Row*, const float*, float, vf*) { __builtin_unreachable(); }
#endif

// whether columns [c, c + STRIP_COLUMNS) of such a row become float32 in one way
inline bool has_strip(const Rows& rows, int64_t c) {
    const int64_t plain = rows.dim - rows.rope;
    if (c + STRIP_COLUMNS > rows.dim) return false;
    const bool in_block = c / ENTRY_BLOCK == (c + STRIP_COLUMNS - 1) / ENTRY_BLOCK;
    return rows.kind != ROW_ENTRY || c >= plain || (c + STRIP_COLUMNS <= plain && in_block);
}

// out[h][v] += sum_r weights[r][h] * vector v of value(r), r in order
template <class Value>
inline void add_strip(int64_t rows, const float* weights, float* out, int64_t out_stride, Value value) {
    vf sum[SINGLE][STRIP];
    for (int64_t h = 0; h < SINGLE; h++)
        for (int64_t v = 0; v < STRIP; v++) sum[h][v] = load(out + h * out_stride + v * W);
    for (int64_t r = 0; r < rows; r++) {
        vf column[STRIP];
        value(r, column);
        for (int64_t h = 0; h < SINGLE; h++) {
            const vf weight = splat(weights[r * SINGLE + h]);
            for (int64_t v = 0; v < STRIP; v++) sum[h][v] = fma(weight, column[v], sum[h][v]);
        }
    }
    for (int64_t h = 0; h < SINGLE; h++)
        for (int64_t v = 0; v < STRIP; v++) store(out + h * out_stride + v * W, sum[h][v]);
}

#if defined(__AVX512F__)
// The same for stored rows; c: the strip's first column, which has_strip.
inline void add_values(const Rows& rows, const Row* row, int64_t count, int64_t c, const float* weights, float* out,
                       int64_t out_stride) {
    const int64_t plain = rows.kind == ROW_ENTRY ? rows.dim - rows.rope : 0;
    if (rows.kind == ROW_FLOAT)
        return add_strip(count, weights, out, out_stride, [&](int64_t r, vf* column) {
            for (int64_t v = 0; v < STRIP; v++) column[v] = load((const float*)(row[r] + 4 * c) + v * W);
        });
#if defined(__AVX512VBMI__)
    if (c < plain)
        return add_strip(count, weights, out, out_stride, [&](int64_t r, vf* column) {
            const Fp8Values values(_mm512_loadu_si512(row[r] + c));
            const vf scale = splat(scale_of(row[r][plain + 2 * rows.rope + c / ENTRY_BLOCK]));
            unrolled<STRIP>([&](auto v) { column[v] = values.at(FP8_IN_ORDER[v]) * scale; });
        });
#endif
    const int64_t at = plain + 2 * (c - plain);
    add_strip(count, weights, out, out_stride, [&](int64_t r, vf* column) {
        for (int64_t v = 0; v < STRIP; v++) {
            const __m256i half = _mm256_loadu_si256((const __m256i*)(row[r] + at) + v);
            column[v] = (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
        }
    });
}
#elif defined(DSV4_SINGLE_AVX2)
inline void add_values(const Rows& rows, const Row* row, int64_t count, int64_t c, const float* weights, float* out,
                       int64_t out_stride) {
    const int64_t plain = rows.kind == ROW_ENTRY ? rows.dim - rows.rope : 0;
    if (rows.kind == ROW_FLOAT)
        return add_strip(count, weights, out, out_stride, [&](int64_t r, vf* column) {
            for (int64_t v = 0; v < STRIP; v++) column[v] = load((const float*)row[r] + c + v * W);
        });
    if (c < plain)
        return add_strip(count, weights, out, out_stride, [&](int64_t r, vf* column) {
            const vf scale = splat(scale_of(row[r][plain + 2 * rows.rope + c / ENTRY_BLOCK]));
            for (int64_t v = 0; v < STRIP; v++) column[v] = (vf)fp8_eight(row[r] + c + v * W) * scale;
        });
    const int64_t at = plain + 2 * (c - plain);
    add_strip(count, weights, out, out_stride, [&](int64_t r, vf* column) {
        for (int64_t v = 0; v < STRIP; v++) column[v] = (vf)bf16_eight(row[r] + at + 2 * v * W);
    });
}
#else
inline void add_values(const Rows&, const Row*, int64_t, int64_t, const float*, float*, int64_t) {
    __builtin_unreachable();
}
#endif

}  // namespace dsv4
