// Indexer scores where queries and keys are both e2m1: whole-number products of bytes, exact, about three times as fast
// as float32.
//
// A value is code * 2^e / 2 with a whole code of at most 12. Queries are stored as code + 12, so that one factor is
// unsigned; the sum over a block of 32 then starts at -12 * (sum of the key's codes). Blocks are added in float32 in
// order, each product with its scales being exact. N heads, B blocks of 32 dims; lanes are keys.
#pragma once
#include "indexer_tiles.h"

namespace dsv4 {

constexpr int64_t STEPS = INDEX_BLOCK / 4;  // of four codes, the bytes of one 32-bit lane
constexpr int8_t FP4_TWICE[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
constexpr int LARGEST_CODE = 12;

// 32-bit places of a tile: codes [B][STEPS][TILE], what the sums start at [B][TILE], scales [B][TILE]
inline int64_t byte_tile_size(int64_t blocks) { return blocks * (STEPS + 2) * TILE; }

// one row's codes, filled up with zeros to whole blocks
inline void fp4_to_bytes(const uint8_t* packed, int64_t dim, uint8_t* out) {
    int64_t i = 0;
#if defined(__AVX2__)
    const __m128i table = _mm_loadu_si128((const __m128i*)FP4_TWICE), nibble = _mm_set1_epi8(15);
    for (; i + 32 <= dim; i += 32) {
        const __m128i both = _mm_loadu_si128((const __m128i*)(packed + i / 2));
        const __m128i even = _mm_shuffle_epi8(table, _mm_and_si128(both, nibble));
        const __m128i odd = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(both, 4), nibble));
        _mm_storeu_si128((__m128i*)(out + i), _mm_unpacklo_epi8(even, odd));
        _mm_storeu_si128((__m128i*)(out + i + 16), _mm_unpackhi_epi8(even, odd));
    }
#endif
    for (; i < dim; i++) out[i] = uint8_t(FP4_TWICE[(packed[i / 2] >> (i % 2 * 4)) & 15]);
    for (; i % INDEX_BLOCK; i++) out[i] = 0;
}

// what the sums of a tile start at: pairs of -12 * (sum of two codes of each step)
#if defined(__AVX2__)
inline void start_sums(float* tile, int64_t blocks) {
    const __m256i factor = _mm256_set1_epi8(LARGEST_CODE);
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t k = 0; k < TILE; k += 8) {
            __m256i sum = _mm256_setzero_si256();
            for (int64_t s = 0; s < STEPS; s++) {
                const __m256i key = _mm256_loadu_si256((const __m256i*)(tile + (b * STEPS + s) * TILE + k));
                sum = _mm256_sub_epi16(sum, _mm256_maddubs_epi16(factor, key));
            }
            _mm256_storeu_si256((__m256i*)(tile + (blocks * STEPS + b) * TILE + k), sum);
        }
}
#else
inline void start_sums(float*, int64_t) {}  // the portable sums use signed codes
#endif

#if defined(__AVX2__)
// Holds a value in a register: else the compiler regroups whole-number sums until they no longer fit.
inline __m256i keep(__m256i x) {
    __asm__("" : "+x"(x));
    return x;
}

// score[k] += sum over HEADS heads of weight * relu(q . key) for a tile of keys
template <int HEADS>
inline void add_heads(const uint8_t* q, const float* q_scale, const float* weight, const float* tile, int64_t blocks,
                      float* score) {
    const float *start = tile + blocks * STEPS * TILE, *key_scale = start + blocks * TILE;
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t at = 0; at < TILE; at += 24) {
        __m256 dot[HEADS][3] = {};
        for (int64_t b = 0; b < blocks; b++) {
            __m256i sum[HEADS][3];
            for (int n = 0; n < HEADS; n++)
                for (int v = 0; v < 3; v++) sum[n][v] = _mm256_loadu_si256((const __m256i*)(start + b * TILE + at + 8 * v));
#pragma GCC unroll 8
            for (int64_t s = 0; s < STEPS; s++) {
                __m256i key[3];
                for (int v = 0; v < 3; v++)
                    key[v] = keep(_mm256_loadu_si256((const __m256i*)(tile + (b * STEPS + s) * TILE + at + 8 * v)));
                for (int n = 0; n < HEADS; n++) {
                    int32_t four;
                    std::memcpy(&four, q + (n * blocks + b) * INDEX_BLOCK + 4 * s, 4);
                    const __m256i value = _mm256_set1_epi32(four);
                    for (int v = 0; v < 3; v++)
                        sum[n][v] = keep(_mm256_add_epi16(sum[n][v], _mm256_maddubs_epi16(value, key[v])));
                }
            }
            for (int n = 0; n < HEADS; n++)
                for (int v = 0; v < 3; v++) {
                    const __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(sum[n][v], ones));
                    const __m256 scaled = _mm256_mul_ps(whole, _mm256_loadu_ps(key_scale + b * TILE + at + 8 * v));
                    dot[n][v] = _mm256_fmadd_ps(scaled, _mm256_set1_ps(q_scale[n * blocks + b]), dot[n][v]);
                }
        }
        for (int n = 0; n < HEADS; n++)
            for (int v = 0; v < 3; v++) {
                const __m256 relu = _mm256_max_ps(_mm256_setzero_ps(), dot[n][v]);  // NaN stays NaN
                const __m256 old = _mm256_loadu_ps(score + at + 8 * v);
                _mm256_storeu_ps(score + at + 8 * v, _mm256_fmadd_ps(_mm256_set1_ps(weight[n]), relu, old));
            }
    }
}
#else
template <int HEADS>
inline void add_heads(const uint8_t* q, const float* q_scale, const float* weight, const float* tile, int64_t blocks,
                      float* score) {
    const int8_t* codes = reinterpret_cast<const int8_t*>(tile);
    const float* key_scale = tile + blocks * (STEPS + 1) * TILE;
    for (int n = 0; n < HEADS; n++)
        for (int64_t k = 0; k < TILE; k++) {
            float dot = 0;
            for (int64_t b = 0; b < blocks; b++) {
                int32_t sum = 0;
                for (int64_t i = 0; i < INDEX_BLOCK; i++) {
                    const int32_t value = q[(n * blocks + b) * INDEX_BLOCK + i] - LARGEST_CODE;
                    sum += value * codes[((b * STEPS + i / 4) * TILE + k) * 4 + i % 4];
                }
                dot = fma(float(sum) * key_scale[b * TILE + k], q_scale[n * blocks + b], dot);
            }
            score[k] = fma(weight[n], 0 > dot ? 0 : dot, score[k]);
        }
}
#endif

inline void byte_tile_scores(const uint8_t* q, const float* q_scale, const float* weight, const float* tile,
                             int64_t heads, int64_t blocks, vf* score) {
    float sums[TILE] = {};
    int64_t n = 0;
    for (; n + 2 <= heads; n += 2)
        add_heads<2>(q + n * blocks * INDEX_BLOCK, q_scale + n * blocks, weight + n, tile, blocks, sums);
    if (n < heads) add_heads<1>(q + n * blocks * INDEX_BLOCK, q_scale + n * blocks, weight + n, tile, blocks, sums);
    for (int v = 0; v < VECTORS; v++) score[v] = load(sums + v * W);
}

}  // namespace dsv4
