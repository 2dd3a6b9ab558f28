// Gradients of RMSNorm. Rows are taken in fixed pieces whose sums are added in order, so threads change no bit.
#include <algorithm>

#include "native/parallel.h"
#include "native/simd.h"

using namespace dsv4;

namespace {

constexpr int64_t PIECE = 128;  // rows

// with n = x r, r = (mean x^2 + eps)^-1/2 and g the gradient of n: dx = (g - n mean(g n)) r
void row(const float* x, const float* weight, const float* grad, float eps, int64_t dim, float* d_x, float* d_weight) {
    const float r = 1.0f / std::sqrt(dot(x, x, dim) / float(dim) + eps);
    vf pull{};
    int64_t i = 0;
    for (; i < dim; i += W) {
        const int count = int(std::min<int64_t>(W, dim - i));
        const auto take = [count](const float* p) { return count == W ? load(p) : load_part(p, count); };
        const vf normed = take(x + i) * r, g = take(grad + i);
        pull = fma(weight ? g * take(weight + i) : g, normed, pull);
        if (!weight) continue;
        const vf total = fma(g, normed, load(d_weight + i));
        store(d_weight + i, total);
    }
    const float back = sum(pull) / float(dim);
    for (i = 0; i < dim; i += W) {
        const int count = int(std::min<int64_t>(W, dim - i));
        const auto take = [count](const float* p) { return count == W ? load(p) : load_part(p, count); };
        const vf normed = take(x + i) * r, g = weight ? take(grad + i) * take(weight + i) : take(grad + i);
        const vf d = (g - normed * back) * r;
        count == W ? store(d_x + i, d) : store_part(d_x + i, d, count);
    }
}

}  // namespace

// d_x [rows, dim] and d_weight [dim] of dsv4_rms_norm; weight and d_weight may be null. float32.
extern "C" void dsv4_rms_norm_backward(const float* x, const float* weight, const float* grad, float* d_x,
                                       float* d_weight, int64_t rows, int64_t dim, float eps, int threads) {
    static thread_local Scratch memory;
    const int64_t pieces = (rows + PIECE - 1) / PIECE, pitch = (dim + W - 1) / W * W;
    threads = worth(2 * double(rows) * double(dim), threads);
    float* sums = weight ? memory.floats(pieces * pitch) : nullptr;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t p = 0; p < pieces; p++) {
        if (weight) std::fill_n(sums + p * pitch, pitch, 0.0f);
        for (int64_t r = p * PIECE; r < std::min(rows, (p + 1) * PIECE); r++)
            row(x + r * dim, weight, grad + r * dim, eps, dim, d_x + r * dim, weight ? sums + p * pitch : nullptr);
    }
    for (int64_t i = 0; weight && i < dim; i++) {
        float total = 0;
        for (int64_t p = 0; p < pieces; p++) total += sums[p * pitch + i];
        d_weight[i] = total;
    }
}
