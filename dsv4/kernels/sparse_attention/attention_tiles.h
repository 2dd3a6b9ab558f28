// The two products of attention in registers. Lanes: query rows in the first, columns of the output in the second.
#pragma once
#include "attention.h"

namespace dsv4 {

// scores[k][x] (+)= sum_c keys[k][c] * queries[c][x] for KEYS keys and V vectors of query rows; stores `count` <= KEYS
// rows. `more`: the sum goes on from what is there.
template <int KEYS, int V>
inline void score_tile(const float* keys, int64_t stride, const float* queries, int64_t dim, float* scores,
                       int64_t width, int64_t count, bool more) {
    vf sum[KEYS][V];
    for (int k = 0; k < KEYS; k++)
        for (int v = 0; v < V; v++) sum[k][v] = more && k < count ? load(scores + k * width + v * W) : vf{};
    for (int64_t c = 0; c < dim; c++) {
        vf q[V];
        for (int v = 0; v < V; v++) q[v] = load(queries + (c * V + v) * W);
        for (int k = 0; k < KEYS; k++) {
            const vf key = splat(keys[k * stride + c]);
            for (int v = 0; v < V; v++) sum[k][v] = fma(key, q[v], sum[k][v]);
        }
    }
    for (int k = 0; k < KEYS; k++)
        for (int v = 0; v < V; v++)
            if (k < count) store(scores + k * width + v * W, sum[k][v]);
}

#if defined(__AVX512F__)
// The same for a vector of query rows of which only the first half counts: instructions of half the width, of which the
// machine does twice as many.
template <int KEYS>
inline void score_half(const float* keys, int64_t stride, const float* queries, int64_t dim, float* scores,
                       int64_t width, int64_t count, bool more) {
    __m256 sum[KEYS];
    for (int k = 0; k < KEYS; k++) sum[k] = more && k < count ? _mm256_loadu_ps(scores + k * width) : _mm256_setzero_ps();
    for (int64_t c = 0; c < dim; c++) {
        const __m256 q = _mm256_loadu_ps(queries + c * W);
        for (int k = 0; k < KEYS; k++) sum[k] = _mm256_fmadd_ps(_mm256_set1_ps(keys[k * stride + c]), q, sum[k]);
    }
    for (int k = 0; k < KEYS; k++)
        if (k < count) _mm256_storeu_ps(scores + k * width, sum[k]);
}
constexpr int64_t HALF = W / 2;
#else
constexpr int64_t HALF = 0;  // vectors are not wider than what the machine does at once
#endif

// out[x][c] += sum_r weights[r][x] * values[r][c] for X query rows and V vectors of columns, r in order
template <int X, int V>
inline void value_tile(const float* weights, int64_t width, const float* values, int64_t stride, int64_t rows,
                       float* out, int64_t out_stride) {
    vf sum[X][V];
    for (int x = 0; x < X; x++)
        for (int v = 0; v < V; v++) sum[x][v] = load(out + x * out_stride + v * W);
    for (int64_t r = 0; r < rows; r++) {
        vf value[V];
        for (int v = 0; v < V; v++) value[v] = load(values + r * stride + v * W);
        for (int x = 0; x < X; x++) {
            const vf weight = splat(weights[r * width + x]);
            for (int v = 0; v < V; v++) sum[x][v] = fma(weight, value[v], sum[x][v]);
        }
    }
    for (int x = 0; x < X; x++)
        for (int v = 0; v < V; v++) store(out + x * out_stride + v * W, sum[x][v]);
}

// all columns of X query rows, three vectors at a time and never one alone if that can be helped
template <int X>
inline void value_rows(const float* weights, int64_t width, const float* values, int64_t stride, int64_t rows,
                       float* out, int64_t out_stride, int64_t columns) {
    for (int64_t c = 0; c < columns;) {
        const int64_t left = (columns - c) / W;
        if (left == 1) {
            value_tile<X, 1>(weights, width, values + c, stride, rows, out + c, out_stride);
            c += W;
        } else if (left == 2 || left == 4) {
            value_tile<X, 2>(weights, width, values + c, stride, rows, out + c, out_stride);
            c += 2 * W;
        } else {
            value_tile<X, 3>(weights, width, values + c, stride, rows, out + c, out_stride);
            c += 3 * W;
        }
    }
}

}  // namespace dsv4
