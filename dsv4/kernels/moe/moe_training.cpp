// What training needs of a layer of experts: products for all experts in one call, and the gradient of the activation.
//
// A assignments sorted by expert; expert e has rows first[e] to first[e + 1].
#include <algorithm>
#include <vector>

#include "moe_math.h"
#include "native/parallel.h"
#include "native/product.h"

using namespace dsv4;

namespace {

constexpr int64_t ROWS = 384;    // of one product
constexpr int64_t COLUMNS = 96;  // rows of a weight's gradient made at once

struct Unit {
    int64_t expert, from, to;
};

// the value and both derivatives of silu(min(gate, limit)) * clip(up, -limit, limit); a clamped input has derivative 0
struct Slope {
    vf value, by_gate, by_up;
};
Slope slope(vf gate, vf up, float limit) {
    const vf one = splat(1.0f);
    vf gate_free = one, up_free = one;
    if (limit > 0) {
        gate_free = gate <= limit ? one : vf{};
        up_free = up <= limit && up >= -limit ? one : vf{};
        gate = gate > limit ? splat(limit) : gate;
        up = up > limit ? splat(limit) : up < -limit ? splat(-limit) : up;
    }
    const vf open = sigmoid(gate), active = gate * open;
    return {active * up, fma(active, one - open, open) * up * gate_free, active * up_free};
}

}  // namespace

// out [A, N] = (or +=, `add`) a [A, K] times each expert's matrix: w[e]^T with w [N, K], or with `turned` w [K, N].
extern "C" void dsv4_grouped_rows(const float* a, const float* const* w, float* out, const int64_t* first, int64_t E,
                                  int64_t N, int64_t K, int turned, int add, int threads) {
    std::vector<Unit> units;
    for (int64_t e = 0; e < E; e++)
        for (int64_t r = first[e]; r < first[e + 1]; r += ROWS)
            units.push_back({e, r, std::min(r + ROWS, first[e + 1])});
    threads = worth(double(first[E]) * double(N * K), threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (size_t i = 0; i < units.size(); i++) {
        const Unit u = units[i];
        const View right = turned ? rows_view(w[u.expert], N) : rows_view(w[u.expert], K).turned();
        product(rows_view(a + u.from * K, K), right, out + u.from * N, N, u.to - u.from, N, K,
                add ? Write::ADD : Write::REPLACE);
    }
}

// out[e] [M, N] = a^T b over each expert's rows, a [A, M], b [A, N]; experts without rows are left alone.
extern "C" void dsv4_grouped_weights(const float* a, const float* b, float* const* out, const int64_t* first, int64_t E,
                                     int64_t M, int64_t N, int threads) {
    std::vector<Unit> units;
    for (int64_t e = 0; e < E; e++)
        for (int64_t m = 0; m < M && first[e] < first[e + 1]; m += threads > 1 ? COLUMNS : M)
            units.push_back({e, m, std::min(m + (threads > 1 ? COLUMNS : M), M)});
    threads = worth(double(first[E]) * double(M * N), threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (size_t i = 0; i < units.size(); i++) {
        const auto [e, from, to] = units[i];
        product(rows_view(a + first[e] * M + from, M).turned(), rows_view(b + first[e] * N, N), out[e] + from * N, N,
                to - from, N, first[e + 1] - first[e]);
    }
}

// Gradients of hidden[r] = swiglu(gate[r], up[r]) * weight[r]; `weight` [A], `hidden` and `d_weight` may be null
// together. All outputs are overwritten.
extern "C" void dsv4_swiglu_backward(const float* gate, const float* up, const float* grad, const float* weight,
                                     float* hidden, float* d_gate, float* d_up, float* d_weight, int64_t rows,
                                     int64_t width, float limit, int threads) {
    threads = worth(double(rows) * double(width) * 16, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < rows; r++) {
        const float factor = weight ? weight[r] : 1.0f;
        vf total{};
        for (int64_t i = 0; i < width; i += W) {
            const int count = int(std::min<int64_t>(W, width - i));
            const int64_t at = r * width + i;
            const auto take = [=](const float* p) { return count == W ? load(p + at) : load_part(p + at, count); };
            const auto give = [=](float* p, vf v) { count == W ? store(p + at, v) : store_part(p + at, v, count); };
            const Slope s = slope(take(gate), take(up), limit);
            const vf g = take(grad), inner = g * factor;
            total = fma(g, s.value, total);
            if (hidden) give(hidden, s.value * factor);
            give(d_gate, inner * s.by_gate);
            give(d_up, inner * s.by_up);
        }
        if (d_weight) d_weight[r] = sum(total);
    }
}
