// RMSNorm over the rows of a matrix.
#include "simd.h"

using namespace dsv4;

// y[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight; weight may be null (all ones). x and y may be the same.
extern "C" void dsv4_rms_norm(const float* x, const float* weight, float* y, int64_t rows, int64_t dim, float eps,
                              int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows > 1)
    for (int64_t r = 0; r < rows; r++) {
        const float* in = x + r * dim;
        float* out = y + r * dim;
        const float factor = 1.0f / std::sqrt(dot(in, in, dim) / float(dim) + eps);
        const vf f = splat(factor);
        int64_t i = 0;
        for (; i + W <= dim; i += W) {
            const vf v = load(in + i) * f;
            store(out + i, weight ? v * load(weight + i) : v);
        }
        for (; i < dim; i++) out[i] = weight ? in[i] * factor * weight[i] : in[i] * factor;
    }
}
