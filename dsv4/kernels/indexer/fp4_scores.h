// Indexer scores where queries and keys are both e2m1: whole-number products of bytes, exact on every machine.
//
// Blocks of 32 dims are added in float32 in order, each product with its scales being exact; then heads in order. See
// fp4_tiles.h for the codes.
#pragma once
#include "fp4_tiles.h"

namespace dsv4 {

// Heads of one query: codes [N][B * 32] in the order of a tile, scales [N][B], what the sums start at [N][B], weights [N].
struct ByteQuery {
    const int8_t* codes;
    const float* scale;
    const int32_t* start;
    const float* weight;
    int64_t heads;

    ByteQuery from(int64_t n, int64_t blocks) const {
        return {codes + n * blocks * INDEX_BLOCK, scale + n * blocks, start + n * blocks, weight + n, heads - n};
    }
};

inline int32_t four_codes(const int8_t* codes) {
    int32_t four;
    std::memcpy(&four, codes, 4);
    return four;
}

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
// score[k] += sum over HEADS heads of weight * relu(q . key) for a tile of keys
template <int HEADS>
[[gnu::always_inline]] inline void add_heads(const ByteQuery& q, const float* tile, int64_t blocks, vf* score) {
    const float* key_scale = tile + blocks * STEPS * TILE;
    __m512 dot[HEADS][VECTORS];
    for (int n = 0; n < HEADS; n++)
        for (int v = 0; v < VECTORS; v++) dot[n][v] = _mm512_setzero_ps();
    for (int64_t b = 0; b < blocks; b++) {
        __m512i sum[HEADS][VECTORS];
        for (int n = 0; n < HEADS; n++)
            for (int v = 0; v < VECTORS; v++) sum[n][v] = _mm512_set1_epi32(q.start[n * blocks + b]);
#pragma GCC unroll 8
        for (int64_t s = 0; s < STEPS; s++) {
            __m512i key[VECTORS];
            for (int v = 0; v < VECTORS; v++) key[v] = _mm512_loadu_si512(tile + (b * STEPS + s) * TILE + v * W);
            for (int n = 0; n < HEADS; n++) {
                const __m512i value = _mm512_set1_epi32(four_codes(q.codes + (n * blocks + b) * INDEX_BLOCK + 4 * s));
                for (int v = 0; v < VECTORS; v++) sum[n][v] = _mm512_dpbusd_epi32(sum[n][v], key[v], value);
            }
        }
        for (int v = 0; v < VECTORS; v++) {
            const __m512 scale = _mm512_loadu_ps(key_scale + b * TILE + v * W);
            for (int n = 0; n < HEADS; n++)
                dot[n][v] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum[n][v]), scale),
                                            _mm512_set1_ps(q.scale[n * blocks + b]), dot[n][v]);
        }
    }
    for (int n = 0; n < HEADS; n++)
        for (int v = 0; v < VECTORS; v++) score[v] = fma(splat(q.weight[n]), max(vf{}, (vf)dot[n][v]), score[v]);
}
constexpr int MOST_HEADS = 4;  // whose sums fit into the registers
#elif defined(__AVX2__)
// Holds a value in a register: else the compiler regroups whole-number sums until they no longer fit.
inline __m256i keep(__m256i x) {
    __asm__("" : "+x"(x));
    return x;
}

template <int HEADS>
[[gnu::always_inline]] inline void add_heads(const ByteQuery& q, const float* tile, int64_t blocks, vf* score) {
    constexpr int V = int(TILE / 8);
    static_assert(V == VECTORS, "a tile has three vectors of eight keys");
    const float* key_scale = tile + blocks * STEPS * TILE;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 dot[HEADS][V];
    for (int n = 0; n < HEADS; n++)
        for (int v = 0; v < V; v++) dot[n][v] = _mm256_setzero_ps();
    for (int64_t b = 0; b < blocks; b++) {
        __m256i sum[HEADS][V];  // of pairs, as 16 bits: at most 8 * 2 * 24 * 12
        for (int n = 0; n < HEADS; n++)
            for (int v = 0; v < V; v++) sum[n][v] = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int64_t s = 0; s < STEPS; s++) {
            __m256i key[V];
            for (int v = 0; v < V; v++)
                key[v] = keep(_mm256_loadu_si256((const __m256i*)(tile + (b * STEPS + s) * TILE + 8 * v)));
            for (int n = 0; n < HEADS; n++) {
                const __m256i value = _mm256_set1_epi32(four_codes(q.codes + (n * blocks + b) * INDEX_BLOCK + 4 * s));
                for (int v = 0; v < V; v++)
                    sum[n][v] = keep(_mm256_add_epi16(sum[n][v], _mm256_maddubs_epi16(key[v], value)));
            }
        }
        for (int n = 0; n < HEADS; n++)
            for (int v = 0; v < V; v++) {
                const __m256i start = _mm256_set1_epi32(q.start[n * blocks + b]);
                const __m256 whole = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_madd_epi16(sum[n][v], ones), start));
                const __m256 scaled = _mm256_mul_ps(whole, _mm256_loadu_ps(key_scale + b * TILE + 8 * v));
                dot[n][v] = _mm256_fmadd_ps(scaled, _mm256_set1_ps(q.scale[n * blocks + b]), dot[n][v]);
            }
    }
    for (int n = 0; n < HEADS; n++)
        for (int v = 0; v < V; v++) score[v] = fma(splat(q.weight[n]), max(vf{}, (vf)dot[n][v]), score[v]);
}
constexpr int MOST_HEADS = 2;
#else
template <int HEADS>
[[gnu::always_inline]] inline void add_heads(const ByteQuery& q, const float* tile, int64_t blocks, vf* score) {
    const float* key_scale = tile + blocks * STEPS * TILE;
    for (int n = 0; n < HEADS; n++)
        for (int64_t k = 0; k < TILE; k++) {
            float dot = 0;
            for (int64_t b = 0; b < blocks; b++) {
                int32_t sum = q.start[n * blocks + b];
                for (int64_t s = 0; s < STEPS; s++) {
                    const uint8_t* key = reinterpret_cast<const uint8_t*>(tile + (b * STEPS + s) * TILE + k);
                    for (int64_t i = 0; i < 4; i++) sum += q.codes[(n * blocks + b) * INDEX_BLOCK + 4 * s + i] * key[i];
                }
                dot = fma(float(sum) * key_scale[b * TILE + k], q.scale[n * blocks + b], dot);
            }
            score[k / W][k % W] = fma(q.weight[n], 0 > dot ? 0 : dot, score[k / W][k % W]);
        }
}
constexpr int MOST_HEADS = 1;
#endif

[[gnu::always_inline]] inline void byte_tile_scores(const ByteQuery& q, const float* tile, int64_t blocks, vf* score) {
    for (int v = 0; v < VECTORS; v++) score[v] = vf{};
    int64_t n = 0;
    for (; n + MOST_HEADS <= q.heads; n += MOST_HEADS) add_heads<MOST_HEADS>(q.from(n, blocks), tile, blocks, score);
    if constexpr (MOST_HEADS > 2) {
        if (q.heads - n == 3) return add_heads<3>(q.from(n, blocks), tile, blocks, score);
        if (q.heads - n == 2) return add_heads<2>(q.from(n, blocks), tile, blocks, score);
    }
    for (; n < q.heads; n++) add_heads<1>(q.from(n, blocks), tile, blocks, score);
}

}  // namespace dsv4
