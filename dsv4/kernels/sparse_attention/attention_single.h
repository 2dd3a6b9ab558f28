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
#if defined(__AVX2__) && !defined(DSV4_WIDE)
#define DSV4_SINGLE_AVX2
#endif
#endif

// Vectors of keys whose scores grow side by side: with one, sums wait for each other on AVX2; AVX-512 gains nothing.
#if defined(DSV4_SINGLE_AVX2)
constexpr int64_t SIDES = 2;
#else
constexpr int64_t SIDES = 1;
#endif
constexpr int64_t SINGLE_KEYS = SIDES * W;

// where a row lies
using Row = const uint8_t*;

// Scores of SINGLE_KEYS keys as they grow over C; q: the query's columns [C][SINGLE]. All that adds is inlined: in memory
// the sums would be stored after every column.
struct KeyScores {
    const float* q;
    vf sum[SINGLE][SIDES] = {};

    // the next column of the keys
    [[gnu::always_inline]] void add(const vf (&key)[SIDES]) {
        for (int64_t h = 0; h < SINGLE; h++) {
            const vf value = splat(q[h]);
            for (int64_t s = 0; s < SIDES; s++) sum[h][s] = fma(key[s], value, sum[h][s]);
        }
        q += SINGLE;
    }
};

#if defined(__AVX512F__) || defined(DSV4_SINGLE_AVX2)
#if defined(__AVX512VBMI__) || defined(DSV4_SINGLE_AVX2)
constexpr bool READS_ENTRIES = true;
#else
constexpr bool READS_ENTRIES = false;
#endif

// whether keys of this kind can be lanes: their columns come in quarters of 16 bytes
inline bool turns(const Rows& rows) {
    if (rows.kind == ROW_ENTRY) return READS_ENTRIES && (rows.dim - rows.rope) % 16 == 0 && rows.rope % 8 == 0;
    return rows.kind == ROW_BF16 ? rows.dim % 8 == 0 : rows.kind == ROW_FLOAT && rows.dim % 4 == 0;
}

#if defined(__AVX512F__)
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

// scores by head, [SINGLE], of keys in the order of key_of -> [W][SINGLE]
inline void turn_scores(const Dwords (&by_head)[SINGLE], Dwords* by_key) { turn_quarters(by_head, by_key); }
#else
// the same with lanes in the order of the rows
inline void turn_rows(const Row* row, int64_t at, Dwords* out) {
    const auto quarter = [&](int64_t r) { return _mm_loadu_si128((const __m128i*)(row[r] + at)); };
    Dwords x[4];
    for (int64_t i = 0; i < 4; i++)
        x[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(i)), quarter(i + 4), 1);
    turn_quarters(x, out);
}

inline void turn_scores(const Dwords (&by_head)[SINGLE], Dwords* by_key) {
    Dwords two[SINGLE];  // keys in each: 0 and 4, 1 and 5, ...
    turn_quarters(by_head, two);
    for (int64_t i = 0; i < SINGLE; i += 2) {
        by_key[i / 2] = _mm256_permute2x128_si256(two[i], two[i + 1], 0x20);
        by_key[i / 2 + 2] = _mm256_permute2x128_si256(two[i], two[i + 1], 0x31);
    }
}
#endif

// the 16 bytes at `at` of SINGLE_KEYS rows, as run(i, dword i of each) for i = 0 to 3
template <class Run>
[[gnu::always_inline]] inline void each_dword(const Row* row, int64_t at, Run run) {
    Dwords turned[SIDES][4];
    for (int64_t s = 0; s < SIDES; s++) turn_rows(row + s * W, at, turned[s]);
    unrolled<4>([&](auto i) __attribute__((always_inline)) {
        vi dword[SIDES];
        for (int64_t s = 0; s < SIDES; s++) dword[s] = (vi)turned[s][i];
        run(dword);
    });
}

[[gnu::always_inline]] inline void add_floats(const Row* row, int64_t columns, KeyScores& scores) {
    for (int64_t c = 0; c < columns; c += 4)
        each_dword(row, 4 * c, [&](const vi (&value)[SIDES]) __attribute__((always_inline)) {
            vf key[SIDES];
            for (int64_t s = 0; s < SIDES; s++) key[s] = (vf)value[s];
            scores.add(key);
        });
}

// bfloat16 columns from byte `at` on
[[gnu::always_inline]] inline void add_bf16(const Row* row, int64_t at, int64_t columns, KeyScores& scores) {
    for (int64_t c = 0; c < columns; c += 8)
        each_dword(row, at + 2 * c, [&](const vi (&two)[SIDES]) __attribute__((always_inline)) {
            vf first[SIDES], second[SIDES];
            for (int64_t s = 0; s < SIDES; s++) first[s] = low_half(two[s]), second[s] = high_half(two[s]);
            scores.add(first);
            scores.add(second);
        });
}

#if defined(DSV4_SINGLE_AVX2)
// e4m3 codes shifted into the place of float32's exponent are values times 2^-120, subnormals included. Writes what
// makes values of the codes of each row, from its scale byte at `at`. Scales from 2^8 up, times 2^120, are no float32:
// with such a one among them true is given back, and the factors lack 2^120.
inline bool fp8_factors(const Row* row, int64_t count, int64_t at, float* factor) {
    constexpr int MOST = 254 - 120;
    int most = 0;
    for (int64_t r = 0; r < count; r++) {
        most = std::max(most, int(row[r][at]));
        factor[r] = float_of_bits(uint32_t(row[r][at] + 120) << 23);
    }
    for (int64_t r = 0; most > MOST && r < count; r++) factor[r] = scale_of(row[r][at]);
    return most > MOST;
}

// FP8 columns [c, end) of one block
template <bool LARGE>
[[gnu::always_inline]] inline void add_codes(const Row* row, int64_t c, int64_t end, const float* factor,
                                             KeyScores& scores) {
    for (; c < end; c += 16)
        each_dword(row, c, [&](const vi (&four)[SIDES]) __attribute__((always_inline)) {
            vf key[4][SIDES];
            for (int64_t s = 0; s < SIDES; s++) {
                const Dwords kept = _mm256_set1_epi16(int16_t(0x87F0)), code = (Dwords)four[s];
                const vi even = (vi)_mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(code, 8), 4), kept);
                const vi odd = (vi)_mm256_and_si256(_mm256_srai_epi16(code, 4), kept);
                key[0][s] = low_half(even), key[1][s] = low_half(odd);
                key[2][s] = high_half(even), key[3][s] = high_half(odd);
                for (auto& column : key) {
                    if (LARGE) column[s] = column[s] * splat(0x1p120f);
                    column[s] = column[s] * load(factor + s * W);
                }
            }
            for (const auto& column : key) scores.add(column);
        });
}

// FP8 columns; scale: offset of their blocks' scale bytes
[[gnu::always_inline]] inline void add_fp8(const Row* row, int64_t columns, int64_t scale, KeyScores& scores) {
    for (int64_t c = 0; c < columns; c += ENTRY_BLOCK) {
        float factor[SINGLE_KEYS];
        const int64_t end = std::min(c + ENTRY_BLOCK, columns);
        if (fp8_factors(row, SINGLE_KEYS, scale + c / ENTRY_BLOCK, factor))
            add_codes<true>(row, c, end, factor, scores);
        else
            add_codes<false>(row, c, end, factor, scores);
    }
}
#elif defined(__AVX512VBMI__)
// FP8 columns; scale: offset of their blocks' scale bytes
[[gnu::always_inline]] inline void add_fp8(const Row* row, int64_t columns, int64_t scale, KeyScores& scores) {
    vf factor{};
    for (int64_t c = 0; c < columns; c += 16) {
        if (c % ENTRY_BLOCK == 0) {
            vi bytes;
            for (int64_t l = 0; l < W; l++) bytes[l] = row[key_of(l)][scale + c / ENTRY_BLOCK];
            factor = scales_of<0>(bytes);
        }
        each_dword(row, c, [&](const vi (&four)[SIDES]) __attribute__((always_inline)) {
            const Fp8Values values((Dwords)four[0]);
            unrolled<4>([&](auto j) __attribute__((always_inline)) {
                scores.add({values.at(FP8_OF_DWORDS[j]) * factor});
            });
        });
    }
}
#else
inline void add_fp8(const Row*, int64_t, int64_t, KeyScores&) { __builtin_unreachable(); }
#endif

// Scaled scores of SINGLE_KEYS rows, [SINGLE_KEYS][SINGLE] as vectors; rows: their kind.
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
    for (int64_t s = 0; s < SIDES; s++) {
        Dwords by_head[SINGLE], by_key[SINGLE];
        for (int64_t h = 0; h < SINGLE; h++) by_head[h] = (Dwords)scores.sum[h][s];
        turn_scores(by_head, by_key);
        for (int64_t i = 0; i < SINGLE; i++) out[s * SINGLE + i] = (vf)by_key[i] * splat(scale);
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

// out[h][v] += sum_r weights[r][h] * vector v of value(r), r in order. ALTERNATE: its two vectors are the even and the odd
// columns.
template <bool ALTERNATE, class Value>
inline void add_strip(int64_t rows, const float* weights, float* out, int64_t out_stride, Value value) {
    vf sum[SINGLE][STRIP];
    for (int64_t h = 0; h < SINGLE; h++) {
        for (int64_t v = 0; v < STRIP; v++) sum[h][v] = load(out + h * out_stride + v * W);
        if constexpr (ALTERNATE) deinterleave(sum[h][0], sum[h][1], sum[h][0], sum[h][1]);
    }
    for (int64_t r = 0; r < rows; r++) {
        vf column[STRIP];
        value(r, column);
        for (int64_t h = 0; h < SINGLE; h++) {
            const vf weight = splat(weights[r * SINGLE + h]);
            for (int64_t v = 0; v < STRIP; v++) sum[h][v] = fma(weight, column[v], sum[h][v]);
        }
    }
    for (int64_t h = 0; h < SINGLE; h++) {
        if constexpr (ALTERNATE) {
            constexpr auto lanes = std::make_integer_sequence<int, W>{};
            const vf even = sum[h][0], odd = sum[h][1];
            sum[h][0] = zip<0>(even, odd, lanes), sum[h][1] = zip<W / 2>(even, odd, lanes);
        }
        for (int64_t v = 0; v < STRIP; v++) store(out + h * out_stride + v * W, sum[h][v]);
    }
}

#if defined(__AVX512F__)
// The same for stored rows; c: the first column of one strip, which has_strip.
inline void add_values(const Rows& rows, const Row* row, int64_t count, int64_t c, int64_t, const float* weights,
                       float* out, int64_t out_stride) {
    const int64_t plain = rows.kind == ROW_ENTRY ? rows.dim - rows.rope : 0;
    if (rows.kind == ROW_FLOAT)
        return add_strip<false>(count, weights, out, out_stride, [&](int64_t r, vf* column) {
            for (int64_t v = 0; v < STRIP; v++) column[v] = load((const float*)(row[r] + 4 * c) + v * W);
        });
#if defined(__AVX512VBMI__)
    if (c < plain)
        return add_strip<false>(count, weights, out, out_stride, [&](int64_t r, vf* column) {
            const Fp8Values values(_mm512_loadu_si512(row[r] + c));
            const vf scale = splat(scale_of(row[r][plain + 2 * rows.rope + c / ENTRY_BLOCK]));
            unrolled<STRIP>([&](auto v) { column[v] = values.at(FP8_IN_ORDER[v]) * scale; });
        });
#endif
    const int64_t at = plain + 2 * (c - plain);
    add_strip<false>(count, weights, out, out_stride, [&](int64_t r, vf* column) {
        for (int64_t v = 0; v < STRIP; v++) {
            const __m256i half = _mm256_loadu_si256((const __m256i*)(row[r] + at) + v);
            column[v] = (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
        }
    });
}
#elif defined(DSV4_SINGLE_AVX2)
// FP8 columns of a strip; scale: offset of their block's scale byte
inline void add_fp8_values(const Row* row, int64_t count, int64_t c, int64_t scale, const float* weights, float* out,
                           int64_t out_stride) {
    float factor[PANEL];
    const auto values = [&](int64_t r, vf times, vf* column) {
        const Dwords code = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(row[r] + c)));
        const vi two = (vi)_mm256_and_si256(_mm256_slli_epi16(code, 4), _mm256_set1_epi16(int16_t(0x87F0)));
        column[0] = low_half(two) * times, column[1] = high_half(two) * times;
    };
    if (fp8_factors(row, count, scale, factor))
        return add_strip<true>(count, weights, out, out_stride, [&](int64_t r, vf* column) {
            values(r, splat(0x1p120f), column);
            for (int64_t v = 0; v < STRIP; v++) column[v] = column[v] * splat(factor[r]);
        });
    add_strip<true>(count, weights, out, out_stride, [&](int64_t r, vf* column) { values(r, splat(factor[r]), column); });
}

// The same for at most PANEL stored rows; columns [c, end) are strips, each of which has_strip; out: that of column c.
inline void add_values(const Rows& rows, const Row* row, int64_t count, int64_t c, int64_t end, const float* weights,
                       float* out, int64_t out_stride) {
    const int64_t plain = rows.kind == ROW_ENTRY ? rows.dim - rows.rope : 0;
    for (; c < end; c += STRIP_COLUMNS, out += STRIP_COLUMNS) {
        const int64_t at = plain + 2 * (c - plain);
        if (rows.kind == ROW_FLOAT)
            add_strip<false>(count, weights, out, out_stride, [&](int64_t r, vf* column) {
                for (int64_t v = 0; v < STRIP; v++) column[v] = load((const float*)row[r] + c + v * W);
            });
        else if (c < plain)
            add_fp8_values(row, count, c, plain + 2 * rows.rope + c / ENTRY_BLOCK, weights, out, out_stride);
        else
            add_strip<true>(count, weights, out, out_stride, [&](int64_t r, vf* column) {
                const vi two = (vi)_mm256_loadu_si256((const __m256i*)(row[r] + at));
                column[0] = low_half(two), column[1] = high_half(two);
            });
    }
}
#else
inline void add_values(const Rows&, const Row*, int64_t, int64_t, int64_t, const float*, float*, int64_t) {
    __builtin_unreachable();
}
#endif

}  // namespace dsv4
