// Indexer scores of a query that alone reads its keys: packed rows become scores without a tile in memory.
//
// The same sums in the same order as in fp4_scores.h. N heads, B blocks of 32 dims; lanes are keys.
#pragma once
#include "fp4_scores.h"

namespace dsv4 {

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
constexpr int64_t MOST_ROW_HEADS = 4, MOST_ROW_BLOCKS = 4;

constexpr bool reads_rows(int64_t heads, int64_t dim) {
    const int64_t blocks = dim / INDEX_BLOCK;
    return heads <= MOST_ROW_HEADS && dim % INDEX_BLOCK == 0 && (blocks == 1 || blocks == 2 || blocks == 4);
}

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
template <int HEADS, int BLOCKS>
inline vf scores_of_rows(const RowQuery& q, const uint8_t* first) {
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
    return score;
}

template <int BLOCKS>
inline vf scores_of_heads(const RowQuery& q, const uint8_t* first) {
    switch (q.heads) {
        case 0: return vf{};
        case 1: return scores_of_rows<1, BLOCKS>(q, first);
        case 2: return scores_of_rows<2, BLOCKS>(q, first);
        case 3: return scores_of_rows<3, BLOCKS>(q, first);
        default: return scores_of_rows<4, BLOCKS>(q, first);
    }
}
inline vf row_scores(const RowQuery& q, const uint8_t* first, int64_t blocks) {
    if (blocks == 1) return scores_of_heads<1>(q, first);
    return blocks == 2 ? scores_of_heads<2>(q, first) : scores_of_heads<4>(q, first);
}
#else
constexpr bool reads_rows(int64_t, int64_t) { return false; }
struct RowQuery {
    RowQuery(const ByteQuery&, int64_t) {}
};
inline vf row_scores(const RowQuery&, const uint8_t*, int64_t) { __builtin_unreachable(); }
#endif

}  // namespace dsv4
