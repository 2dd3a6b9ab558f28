// Indexer scores of a query that alone reads its keys: packed rows become scores without a tile in memory.
//
// The same sums in the same order as in fp4_scores.h. N heads, B blocks of 32 dims; lanes are keys.
#pragma once
#include "fp4_scores.h"

namespace dsv4 {

// ROW_VECTORS: vectors of keys that are scored by one call, if their rows follow each other. With AVX2 a loop over them
// costs less than calls; with AVX-512 it costs more, because a query's codes no longer stay in registers.
#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#define DSV4_READS_ROWS
constexpr int ROW_VECTORS = 1;
#elif defined(__AVX2__) && !defined(DSV4_WIDE)
#define DSV4_READS_ROWS
constexpr int ROW_VECTORS = 8;
#else
constexpr int ROW_VECTORS = 1;
#endif

#if defined(DSV4_READS_ROWS)
constexpr int64_t MOST_ROW_HEADS = 4, MOST_ROW_BLOCKS = 4;

constexpr bool reads_rows(int64_t heads, int64_t dim) {
    const int64_t blocks = dim / INDEX_BLOCK;
    return heads <= MOST_ROW_HEADS && dim % INDEX_BLOCK == 0 && (blocks == 1 || blocks == 2 || blocks == 4);
}

#if defined(__AVX512F__)
// A query's heads side by side: codes [B][STEPS][N], scales and starts [B][N].
struct RowQuery {
    int32_t codes[MOST_ROW_BLOCKS * STEPS * MOST_ROW_HEADS], start[MOST_ROW_BLOCKS * MOST_ROW_HEADS];
    float scale[MOST_ROW_BLOCKS * MOST_ROW_HEADS], weight[MOST_ROW_HEADS];
    int64_t heads;

    RowQuery(const ByteQuery& q, int64_t blocks) : heads(q.heads) {
        for (int64_t n = 0; n < heads; n++) {
            weight[n] = q.weight[n];
            for (int64_t b = 0; b < blocks; b++) {
                start[b * heads + n] = q.start[n * blocks + b];
                scale[b * heads + n] = q.scale[n * blocks + b];
                for (int64_t s = 0; s < STEPS; s++)
                    codes[(b * STEPS + s) * heads + n] = four_codes(q.codes + (n * blocks + b) * INDEX_BLOCK + 4 * s);
            }
        }
    }
};

// W keys whose packed rows follow each other without a gap
template <int HEADS, int BLOCKS, int SIDES>
inline void scores_of_rows(const RowQuery& q, const uint8_t* first, vf* out) {
    static_assert(SIDES == 1);
    constexpr int64_t SIZE = BLOCKS * (BLOCK_BYTES + 1);
    const vi bytes = some_bytes(first + BLOCKS * BLOCK_BYTES, SIZE, BLOCKS);
    __m512 dot[HEADS];
    for (int n = 0; n < HEADS; n++) dot[n] = _mm512_setzero_ps();
    unrolled<BLOCKS>([&](auto b) __attribute__((always_inline)) {
        Dwords codes[DWORDS];
        turn_block(first + b * BLOCK_BYTES, SIZE, codes);
        __m512i even[HEADS], odd[HEADS];  // two short chains
        for (int n = 0; n < HEADS; n++) even[n] = _mm512_set1_epi32(q.start[b * HEADS + n]), odd[n] = __m512i{};
        unrolled<int(DWORDS)>([&](auto i) __attribute__((always_inline)) {
            const Dwords low = raised(codes[i]), high = raised(high_nibbles(codes[i]));
            const int32_t* value = q.codes + (b * STEPS + 2 * i) * HEADS;
            for (int n = 0; n < HEADS; n++) {
                even[n] = _mm512_dpbusd_epi32(even[n], low, _mm512_set1_epi32(value[n]));
                odd[n] = _mm512_dpbusd_epi32(odd[n], high, _mm512_set1_epi32(value[HEADS + n]));
            }
        });
        const __m512 scale = (__m512)scales_of<b>(bytes);
        for (int n = 0; n < HEADS; n++) {
            const __m512 whole = _mm512_cvtepi32_ps(_mm512_add_epi32(even[n], odd[n]));
            dot[n] = _mm512_fmadd_ps(_mm512_mul_ps(whole, scale), _mm512_set1_ps(q.scale[b * HEADS + n]), dot[n]);
        }
    });
    vf score{};
    for (int n = 0; n < HEADS; n++) score = fma(splat(q.weight[n]), max(vf{}, (vf)dot[n]), score);
    *out = score;
}
#else
// A query's heads side by side: codes [B][STEPS][N], starts and scales [B][N], each in all lanes, so that it is an
// operand in memory. A start stands in the even halves of the lanes, where the sums of pairs begin with it.
struct RowQuery {
    static constexpr int64_t CODES = MOST_ROW_BLOCKS * STEPS * MOST_ROW_HEADS, SUMS = MOST_ROW_BLOCKS * MOST_ROW_HEADS;
    vi codes[CODES], start[SUMS];
    vf scale[SUMS], weight[MOST_ROW_HEADS];
    int64_t heads;

    RowQuery(const ByteQuery& q, int64_t blocks) : heads(q.heads) {
        for (int64_t n = 0; n < heads; n++) {
            weight[n] = splat(q.weight[n]);
            for (int64_t b = 0; b < blocks; b++) {
                start[b * heads + n] = vi{} + (q.start[n * blocks + b] & 0xFFFF);
                scale[b * heads + n] = splat(q.scale[n * blocks + b]);
                for (int64_t s = 0; s < STEPS; s++)
                    codes[(b * STEPS + s) * heads + n] =
                        vi{} + four_codes(q.codes + (n * blocks + b) * INDEX_BLOCK + 4 * s);
            }
        }
    }
};

// The scale bytes of W keys, those of one key as a number. Two bytes are joined outside the vectors' units, which have
// enough to do; the compiler would join them there.
template <int BLOCKS>
inline vi scale_bytes(const uint8_t* first, int64_t stride) {
    if constexpr (BLOCKS != 2) return some_bytes(first, stride, BLOCKS);
    const auto four = [&](int64_t k) {
        uint64_t all = 0;
        for (int64_t i = 3; i >= 0; i--) {
            uint16_t two;
            std::memcpy(&two, first + (k + i) * stride, 2);
            all = all << 16 | two;
            __asm__("" : "+r"(all));
        }
        return int64_t(all);
    };
    return (vi)_mm256_cvtepu16_epi32(_mm_set_epi64x(four(4), four(0)));
}

// `SIDES` vectors of keys side by side, whose packed rows follow each other without a gap
template <int HEADS, int BLOCKS, int SIDES>
inline void scores_of_rows(const RowQuery& q, const uint8_t* first, vf* score) {
    constexpr int64_t SIZE = BLOCKS * (BLOCK_BYTES + 1);
    vi bytes[SIDES];
    for (int s = 0; s < SIDES; s++) bytes[s] = scale_bytes<BLOCKS>(first + s * W * SIZE + BLOCKS * BLOCK_BYTES, SIZE);
    vf dot[HEADS][SIDES] = {};
    unrolled<BLOCKS>([&](auto b) __attribute__((always_inline)) {
        Dwords codes[SIDES][DWORDS];
        for (int s = 0; s < SIDES; s++) turn_block(first + s * W * SIZE + b * BLOCK_BYTES, SIZE, codes[s]);
        __m256i sum[HEADS][SIDES];  // of pairs, as 16 bits: at most 8 * 2 * 24 * 12, and the start half of that
        for (int n = 0; n < HEADS; n++)
            for (int s = 0; s < SIDES; s++) sum[n][s] = (__m256i)q.start[b * HEADS + n];
        const auto add = [&](const Dwords (&key)[SIDES], const vi* value) __attribute__((always_inline)) {
            for (int n = 0; n < HEADS; n++) {
                const __m256i code = SIDES > 1 ? keep((__m256i)value[n]) : (__m256i)value[n];
                for (int s = 0; s < SIDES; s++)
                    sum[n][s] = keep(_mm256_add_epi16(sum[n][s], _mm256_maddubs_epi16(key[s], code)));
            }
        };
        unrolled<int(DWORDS)>([&](auto i) __attribute__((always_inline)) {
            Dwords low[SIDES], high[SIDES];
            for (int s = 0; s < SIDES; s++) low[s] = raised(codes[s][i]), high[s] = raised(high_nibbles(codes[s][i]));
            const vi* value = q.codes + (b * STEPS + 2 * i) * HEADS;
            add(low, value);
            add(high, value + HEADS);
        });
        for (int s = 0; s < SIDES; s++) {
            const vf scale = scales_of<b>(bytes[s]);
            for (int n = 0; n < HEADS; n++) {
                const __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(sum[n][s], _mm256_set1_epi16(1)));
                dot[n][s] = fma((vf)whole * scale, q.scale[b * HEADS + n], dot[n][s]);
            }
        }
    });
    for (int s = 0; s < SIDES; s++) {
        score[s] = vf{};
        for (int n = 0; n < HEADS; n++) score[s] = fma(q.weight[n], max(vf{}, dot[n][s]), score[s]);
    }
}
#endif

template <int HEADS, int BLOCKS>
inline void scores_of_vectors(const RowQuery& q, const uint8_t* first, int vectors, vf* score) {
    constexpr int64_t SIZE = W * BLOCKS * (BLOCK_BYTES + 1);
    int v = 0;
    if constexpr (ROW_VECTORS > 1)
        for (; v + 2 <= vectors; v += 2) scores_of_rows<HEADS, BLOCKS, 2>(q, first + v * SIZE, score + v);
    if (v < vectors) scores_of_rows<HEADS, BLOCKS, 1>(q, first + v * SIZE, score + v);
}
template <int BLOCKS>
inline void scores_of_heads(const RowQuery& q, const uint8_t* first, int vectors, vf* score) {
    switch (q.heads) {
        case 0: return void(std::fill_n(score, vectors, vf{}));
        case 1: return scores_of_vectors<1, BLOCKS>(q, first, vectors, score);
        case 2: return scores_of_vectors<2, BLOCKS>(q, first, vectors, score);
        case 3: return scores_of_vectors<3, BLOCKS>(q, first, vectors, score);
        default: return scores_of_vectors<4, BLOCKS>(q, first, vectors, score);
    }
}
// `vectors` <= ROW_VECTORS vectors of keys whose packed rows follow each other without a gap
inline void row_scores(const RowQuery& q, const uint8_t* first, int64_t blocks, int vectors, vf* score) {
    if (blocks == 1) return scores_of_heads<1>(q, first, vectors, score);
    return blocks == 2 ? scores_of_heads<2>(q, first, vectors, score) : scores_of_heads<4>(q, first, vectors, score);
}
#else
constexpr bool reads_rows(int64_t, int64_t) { return false; }
struct RowQuery {
    RowQuery(const ByteQuery&, int64_t) {}
};
inline void row_scores(const RowQuery&, const uint8_t*, int64_t, int, vf*) { __builtin_unreachable(); }
#endif

}  // namespace dsv4
