// RMSNorm over the rows of a matrix.
#include "native/parallel.h"
#include "quant/quant.h"

using namespace dsv4;

namespace {

// The norm without weight rounds to bfloat16 after every operation when x is bfloat16, as the release computes it.
float stepwise_factor(const float* x, int64_t dim, float eps) {
    vf total{};
    int64_t i = 0;
    for (; i + W <= dim; i += W) total = total + round_bf16(load(x + i) * load(x + i));
    if (i < dim) {
        const vf last = load_part(x + i, int(dim - i));
        total = total + round_bf16(last * last);
    }
    const float mean = round_bf16(round_bf16(sum(total)) / float(dim));
    return round_bf16(1.0f / std::sqrt(round_bf16(mean + eps)));
}

void scale_row(const float* in, const float* weight, float factor, void* y, bool bf16, int64_t at, int64_t dim) {
    const vf f = splat(factor);
    int64_t i = 0;
    for (; i + W <= dim; i += W) {
        const vf v = load(in + i) * f;
        store_either(y, bf16, at + i, weight ? v * load(weight + i) : v);
    }
    for (; i < dim; i++) put_either(y, bf16, at + i, weight ? in[i] * factor * weight[i] : in[i] * factor);
}

}  // namespace

// y[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight; weight (float32) may be null: all ones. x and y are float32, or
// bfloat16 with `bf16`; they may be the same.
extern "C" void dsv4_rms_norm(const void* x, const float* weight, void* y, int64_t rows, int64_t dim, float eps,
                              int bf16, int threads) {
    threads = worth(double(rows) * double(dim), threads);
    const auto norm_row = [&](int64_t r) {
        static thread_local Scratch memory;
        const char* from = (const char*)x + r * dim * (bf16 ? 2 : 4);
        const float* in = as_floats(from, bf16, dim, memory.floats(dim));
        const float factor = bf16 && !weight ? stepwise_factor(in, dim, eps)
                                             : 1.0f / std::sqrt(dot(in, in, dim) / float(dim) + eps);
        scale_row(in, weight, factor, y, bf16, r * dim, dim);
    };
    parallel(threads, rows, norm_row, shares(rows, threads));
}
