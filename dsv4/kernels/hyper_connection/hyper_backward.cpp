// Gradients of hyper-connections; see hyper.cpp for what they compute.
//
// Tokens are taken in fixed pieces whose sums are added in order, so threads change no bit.
#include <algorithm>
#include <vector>

#include "moe/moe_math.h"
#include "native/parallel.h"
#include "native/product.h"
#include "structs.h"

using namespace dsv4;

namespace {

constexpr int MOST_STREAMS = 8, MOST_MIXES = (2 + MOST_STREAMS) * MOST_STREAMS;
constexpr int64_t PIECE = 96;     // tokens one thread takes at a time; whole vectors
constexpr int64_t COLUMNS = 128;  // of the projection's gradient

int64_t width_of(const EnterBackward& e) { return e.S * e.D; }
int64_t mixes_of(const EnterBackward& e) { return e.grad_comb_TSS ? (2 + e.S) * e.S : e.S; }
int64_t kinds_of(const EnterBackward& e) { return e.grad_comb_TSS ? 3 : 1; }
int kind_of(const EnterBackward& e, int64_t mix) { return mix < e.S ? 0 : mix < 2 * e.S ? 1 : 2; }

// W tokens, one per lane
struct Lanes {
    vf mix[MOST_MIXES], grad[MOST_MIXES];  // of the gates; grad first holds those of pre, post, comb
    vf rms, pull, pre[MOST_STREAMS];
};

// Normalises m[S * S] as the forward pass does and takes its gradient back through every step:
// y = x / d with d = sum x + eps has dx = (dy - sum(dy y)) / d.
void sinkhorn_backward(const vf* gates, vf* grad, int S, int iterations, float eps, std::vector<vf>& saved) {
    const int size = S * S, halves = 2 * iterations - 1;
    saved.resize(size_t(size + halves * (size + S)));
    vf *soft = saved.data(), m[MOST_STREAMS * MOST_STREAMS];
    for (int j = 0; j < S; j++) {
        const vf* row = gates + j * S;
        vf most = row[0], total{};
        for (int k = 1; k < S; k++) most = max(most, row[k]);
        for (int k = 0; k < S; k++) soft[j * S + k] = exponential(row[k] - most), total = total + soft[j * S + k];
        for (int k = 0; k < S; k++) soft[j * S + k] = soft[j * S + k] / total, m[j * S + k] = soft[j * S + k] + eps;
    }
    vf* keep = soft + size;
    for (int half = 0; half < halves; half++, keep += size + S) {
        const int along = half % 2 ? 1 : S, across = half % 2 ? S : 1;
        for (int i = 0; i < S; i++) {
            vf total = m[i * across];
            for (int j = 1; j < S; j++) total = total + m[i * across + j * along];
            keep[size + i] = 1.0f / (total + eps);
            for (int j = 0; j < S; j++) m[i * across + j * along] = m[i * across + j * along] * keep[size + i];
        }
        std::copy_n(m, size, keep);
    }
    for (int half = halves - 1; half >= 0; half--) {
        keep -= size + S;
        const int along = half % 2 ? 1 : S, across = half % 2 ? S : 1;
        for (int i = 0; i < S; i++) {
            vf pull{};
            for (int j = 0; j < S; j++) pull = fma(grad[i * across + j * along], keep[i * across + j * along], pull);
            for (int j = 0; j < S; j++)
                grad[i * across + j * along] = (grad[i * across + j * along] - pull) * keep[size + i];
        }
    }
    for (int j = 0; j < S; j++) {
        vf pull{};
        for (int k = 0; k < S; k++) pull = fma(grad[j * S + k], soft[j * S + k], pull);
        for (int k = 0; k < S; k++) grad[j * S + k] = (grad[j * S + k] - pull) * soft[j * S + k];
    }
}

// tokens [t, t + rows): their mixes before the norm are there; what the collapse and the later steps give back
void gather(const EnterBackward& e, int64_t t, int64_t rows, const float* raw, Lanes& lanes) {
    const int64_t S = e.S, D = e.D, X = mixes_of(e);
    lanes = Lanes{};
    for (int64_t i = 0; i < rows; i++) {
        const float* x = e.x_TSD + (t + i) * width_of(e);
        lanes.rms[i] = 1.0f / std::sqrt(dot(x, x, width_of(e)) / float(width_of(e)) + e.norm_eps);
        for (int64_t s = 0; s < S; s++) lanes.grad[s][i] = dot(x + s * D, e.grad_TD + (t + i) * D, D);
        for (int64_t j = 0; j < X; j++) lanes.mix[j][i] = raw[i * X + j];
        if (!e.grad_comb_TSS) continue;
        for (int64_t s = 0; s < S; s++) lanes.grad[S + s][i] = e.grad_post_TS[(t + i) * S + s];
        for (int64_t j = 0; j < S * S; j++) lanes.grad[2 * S + j][i] = e.grad_comb_TSS[(t + i) * S * S + j];
    }
}

// Gradients of the raw mixes of W tokens into lanes.grad; adds those of scale and base to `sums` [kinds + X].
void through_gates(const EnterBackward& e, Lanes& lanes, vf* sums, std::vector<vf>& saved) {
    const int S = int(e.S), X = int(mixes_of(e));
    vf gate[MOST_MIXES], pull{};
    for (int i = 0; i < X; i++) {
        lanes.mix[i] = lanes.mix[i] * lanes.rms;
        gate[i] = fma(lanes.mix[i], splat(e.scale[kind_of(e, i)]), splat(e.base_X[i]));
    }
    for (int i = 0; i < std::min(X, 2 * S); i++) {
        const vf open = sigmoid(gate[i]);
        if (i < S) lanes.pre[i] = open + e.eps;
        lanes.grad[i] = lanes.grad[i] * open * (1.0f - open) * (i < S ? 1.0f : 2.0f);
    }
    if (e.grad_comb_TSS) sinkhorn_backward(gate + 2 * S, lanes.grad + 2 * S, S, e.iterations, e.eps, saved);
    for (int i = 0; i < X; i++) {
        const int kind = kind_of(e, i);
        sums[kinds_of(e) + i] = sums[kinds_of(e) + i] + lanes.grad[i];
        sums[kind] = fma(lanes.grad[i], lanes.mix[i], sums[kind]);
        lanes.grad[i] = lanes.grad[i] * e.scale[kind] * lanes.rms;
        pull = fma(lanes.grad[i], lanes.mix[i], pull);
    }
    // rms = (mean x^2 + eps)^-1/2
    lanes.pull = pull * lanes.rms * (-1.0f / float(width_of(e)));
}

// tokens [t, t + rows) of the piece: d_raw [T, X] and the gradient of x
void piece(const EnterBackward& e, int64_t t, float* d_raw, float* sums) {
    static thread_local Scratch memory;
    static thread_local std::vector<vf> saved;
    const int64_t rows = std::min(PIECE, e.T - t), X = mixes_of(e), Z = width_of(e), S = e.S, D = e.D;
    float *raw = memory.floats(PIECE * (X + 1 + S)), *pull = raw + PIECE * X, *pre = pull + PIECE;
    const float* x = e.x_TSD + t * Z;
    product(rows_view(x, Z), rows_view(e.fn_XZ, Z).turned(), raw, X, rows, X, Z);
    vf totals[3 + MOST_MIXES] = {};
    d_raw += t * X;
    for (int64_t r = 0; r < rows; r += W) {
        Lanes lanes;
        const int64_t count = std::min<int64_t>(W, rows - r);
        gather(e, t + r, count, raw + r * X, lanes);
        through_gates(e, lanes, totals, saved);
        for (int64_t i = 0; i < count; i++) {
            pull[r + i] = lanes.pull[i];
            for (int64_t j = 0; j < X; j++) d_raw[(r + i) * X + j] = lanes.grad[j][i];
            for (int64_t s = 0; s < S; s++) pre[(r + i) * S + s] = lanes.pre[s][i];
        }
    }
    for (int64_t i = 0; i < kinds_of(e) + X; i++) sums[i] = sum(totals[i]);
    float* d_x = e.d_x_TSD + t * Z;
    product(rows_view(d_raw, X), rows_view(e.fn_XZ, Z), d_x, Z, rows, Z, X);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t s = 0; s < S; s++) {
            const float *g = e.grad_TD + (t + r) * D, *from = x + r * Z + s * D;
            float *to = d_x + r * Z + s * D, p = pre[r * S + s], q = pull[r];
            for (int64_t d = 0; d < D; d++) to[d] += from[d] * q + g[d] * p;
        }
}

// one token of the way out of a sub-layer
struct CombineBackward {
    const float *y_TD, *x_TSD, *post_TS, *comb_TSS, *grad_TSD;
    float *d_y_TD, *d_x_TSD, *d_post_TS, *d_comb_TSS;
    int64_t T, D;
};

template <int S>
void combine_token(const CombineBackward& c, int64_t t) {
    const int64_t D = c.D;
    const float *y = c.y_TD + t * D, *x = c.x_TSD + t * S * D, *g = c.grad_TSD + t * S * D;
    const float *post = c.post_TS + t * S, *comb = c.comb_TSS + t * S * S;
    vf d_post[S] = {}, d_comb[S][S] = {};
    for (int64_t d = 0; d < D; d += W) {
        const int count = int(std::min<int64_t>(W, D - d));
        const auto take = [count](const float* p) { return count == W ? load(p) : load_part(p, count); };
        const auto give = [count](float* p, vf v) { count == W ? store(p, v) : store_part(p, v, count); };
        vf grad[S], d_y{};
        const vf from = take(y + d);
        for (int k = 0; k < S; k++) {
            grad[k] = take(g + k * D + d);
            d_y = fma(grad[k], splat(post[k]), d_y);
            d_post[k] = fma(grad[k], from, d_post[k]);
        }
        give(c.d_y_TD + t * D + d, d_y);
        for (int j = 0; j < S; j++) {
            const vf in = take(x + j * D + d);
            vf d_x{};
            for (int k = 0; k < S; k++) {
                d_x = fma(grad[k], splat(comb[j * S + k]), d_x);
                d_comb[j][k] = fma(grad[k], in, d_comb[j][k]);
            }
            give(c.d_x_TSD + (t * S + j) * D + d, d_x);
        }
    }
    for (int k = 0; k < S; k++) {
        c.d_post_TS[t * S + k] = sum(d_post[k]);
        for (int j = 0; j < S; j++) c.d_comb_TSS[(t * S + j) * S + k] = sum(d_comb[j][k]);
    }
}

template <int S>
void combine_tokens(const CombineBackward& c, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t t = 0; t < c.T; t++) combine_token<S>(c, t);
}

}  // namespace

// Gradients of dsv4_hyper_enter; all outputs are overwritten. float32, S <= 8.
extern "C" void dsv4_hyper_enter_backward(const EnterBackward* given) {
    static thread_local Scratch memory, sums_memory;
    const EnterBackward& e = *given;
    const int64_t X = mixes_of(e), Z = width_of(e), pieces = (e.T + PIECE - 1) / PIECE, each = kinds_of(e) + X;
    const int threads = worth(double(e.T) * double(Z * X), e.threads);
    float *d_raw = memory.floats(e.T * X), *sums = sums_memory.floats(pieces * each);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < pieces; i++) piece(e, i * PIECE, d_raw, sums + i * each);
#pragma omp for schedule(dynamic, 1)
        for (int64_t c = 0; c < Z; c += COLUMNS)
            product(rows_view(d_raw, X).turned(), rows_view(e.x_TSD + c, Z), e.d_fn_XZ + c, Z, X,
                    std::min(COLUMNS, Z - c), e.T);
    }
    for (int64_t i = 0; i < each; i++) {
        float total = 0;
        for (int64_t p = 0; p < pieces; p++) total += sums[p * each + i];
        (i < kinds_of(e) ? e.d_scale[i] : e.d_base_X[i - kinds_of(e)]) = total;
    }
}

// Gradients of dsv4_hyper_combine. float32, S <= 8.
extern "C" void dsv4_hyper_combine_backward(const float* y, const float* x, const float* post, const float* comb,
                                            const float* grad, float* d_y, float* d_x, float* d_post, float* d_comb,
                                            int64_t T, int64_t S, int64_t D, int threads) {
    const CombineBackward c{y, x, post, comb, grad, d_y, d_x, d_post, d_comb, T, D};
    threads = worth(double(T) * double(2 * S * S * D), threads);
    switch (S) {
        case 1: return combine_tokens<1>(c, threads);
        case 2: return combine_tokens<2>(c, threads);
        case 3: return combine_tokens<3>(c, threads);
        case 4: return combine_tokens<4>(c, threads);
        case 5: return combine_tokens<5>(c, threads);
        case 6: return combine_tokens<6>(c, threads);
        case 7: return combine_tokens<7>(c, threads);
        case 8: return combine_tokens<8>(c, threads);
    }
}
