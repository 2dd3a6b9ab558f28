// Indexer scores of one query against a tile of keys, in registers. Lanes: keys.
//
// N heads, I dims. A score is one chain over the heads of weight * relu(dot), each dot one chain over I: no lane sees
// another, so tiles change no bit.
#pragma once
#include "native/transpose.h"
#include "rows/rows.h"

namespace dsv4 {

constexpr int VECTORS = 3;
constexpr int64_t TILE = VECTORS * W;  // keys of a tile, stored as [I][TILE]

// which lanes are above x, one bit each
inline unsigned above(vf lanes, float x) {
#if defined(__AVX512F__)
    return unsigned(_mm512_cmp_ps_mask((__m512)lanes, _mm512_set1_ps(x), _CMP_GT_OQ));
#elif defined(__AVX2__)
    return unsigned(_mm256_movemask_ps(_mm256_cmp_ps((__m256)lanes, _mm256_set1_ps(x), _CMP_GT_OQ)));
#else
    unsigned bits = 0;
    for (int i = 0; i < W; i++) bits |= unsigned(lanes[i] > x) << i;
    return bits;
#endif
}

// score[v] += sum over HEADS heads of weight * relu(q . key)
template <int HEADS>
inline void add_heads(const float* q, const float* weight, const float* tile, int64_t dim, vf* score) {
    vf dot[HEADS][VECTORS];
    for (int n = 0; n < HEADS; n++)
        for (int v = 0; v < VECTORS; v++) dot[n][v] = vf{};
    for (int64_t i = 0; i < dim; i++) {
        vf key[VECTORS];
        for (int v = 0; v < VECTORS; v++) key[v] = load(tile + i * TILE + v * W);
        for (int n = 0; n < HEADS; n++) {
            const vf value = splat(q[n * dim + i]);
            for (int v = 0; v < VECTORS; v++) dot[n][v] = fma(value, key[v], dot[n][v]);
        }
    }
    for (int n = 0; n < HEADS; n++)
        for (int v = 0; v < VECTORS; v++) score[v] = fma(splat(weight[n]), max(vf{}, dot[n][v]), score[v]);
}

inline void tile_scores(const float* q_NI, const float* weight_N, const float* tile, int64_t heads, int64_t dim,
                        vf* score) {
    for (int v = 0; v < VECTORS; v++) score[v] = vf{};
    int64_t n = 0;
    for (; n + 4 <= heads; n += 4) add_heads<4>(q_NI + n * dim, weight_N + n, tile, dim, score);
    if (heads - n == 3) add_heads<3>(q_NI + n * dim, weight_N + n, tile, dim, score);
    if (heads - n == 2) add_heads<2>(q_NI + n * dim, weight_N + n, tile, dim, score);
    if (heads - n == 1) add_heads<1>(q_NI + n * dim, weight_N + n, tile, dim, score);
}

#if defined(__AVX2__)
// out[j * out_stride + i] = in[i * in_stride + j] for 8 x 8 floats
inline void transpose8(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
    __m256 v[8];
    for (int i = 0; i < 8; i++) v[i] = _mm256_loadu_ps(in + i * in_stride);
    turn_eight(v);
    for (int i = 0; i < 8; i++) _mm256_storeu_ps(out + i * out_stride, v[i]);
}
#endif

// TILE rows of `dim` floats -> [dim][TILE]
inline void arrange_tile(const float* rows, int64_t dim, float* tile) {
    int64_t done = 0;
#if defined(__AVX2__)
    done = dim / 8 * 8;
    for (int64_t k = 0; k < TILE; k += 8)
        for (int64_t i = 0; i < done; i += 8) transpose8(rows + k * dim + i, dim, tile + i * TILE + k, TILE);
#endif
    for (int64_t k = 0; k < TILE; k++)
        for (int64_t i = done; i < dim; i++) tile[i * TILE + k] = rows[k * dim + i];
}

}  // namespace dsv4
