// Hyper-connections: S residual streams of D numbers into a sub-layer's input, and its output back into them.
//
// x [T, S, D]; Z = S * D; X = (2 + S) * S mixes in the order pre S, post S, comb S * S (S alone for the head).
#include <algorithm>

#include "matmul/gemm.h"
#include "moe/moe_math.h"
#include "quant/quant.h"

using namespace dsv4;

namespace {

constexpr int MOST_STREAMS = 8;
constexpr int64_t BLOCK = 4 * W;  // tokens one thread takes at a time

struct Entry {
    const void* x;
    bool bf16;
    const float *fn, *scale, *base;
    const float* norm_weight;  // of the RMSNorm that follows; null: none
    void* y;
    float *post, *comb;  // null for the head
    int64_t T, S, D;
    int iterations;
    float eps, norm_eps;

    int64_t width() const { return S * D; }
    int64_t mixes() const { return comb ? (2 + S) * S : S; }
    const char* row(int64_t t) const { return (const char*)x + t * width() * (bf16 ? 2 : 4); }
};

// Alternating normalisation of positive S x S matrices, one per lane: m[j * S + k]
void sinkhorn(vf* m, int S, int iterations, float eps) {
    for (int half = 0; half < 2 * iterations - 1; half++) {
        const int along = half % 2 ? 1 : S, across = half % 2 ? S : 1;  // columns first: the softmax did the rows
        for (int i = 0; i < S; i++) {
            vf total = m[i * across];
            for (int j = 1; j < S; j++) total = total + m[i * across + j * along];
            const vf factor = 1.0f / (total + eps);
            for (int j = 0; j < S; j++) m[i * across + j * along] = m[i * across + j * along] * factor;
        }
    }
}

void softmax_rows(vf* m, int S, float eps) {
    for (int j = 0; j < S; j++) {
        vf* row = m + j * S;
        vf most = row[0], total{};
        for (int k = 1; k < S; k++) most = max(most, row[k]);
        for (int k = 0; k < S; k++) row[k] = exponential(row[k] - most), total = total + row[k];
        for (int k = 0; k < S; k++) row[k] = row[k] / total + eps;
    }
}

// W tokens at once, one per lane: mixes[X] becomes pre, post and comb
void gates(const Entry& e, vf* mixes) {
    const int S = int(e.S);
    for (int i = 0; i < int(e.mixes()); i++) {
        const float s = e.scale[i < S ? 0 : i < 2 * S ? 1 : 2];
        mixes[i] = mixes[i] * s + e.base[i];
    }
    for (int s = 0; s < S; s++) mixes[s] = sigmoid(mixes[s]) + e.eps;
    if (!e.comb) return;
    for (int s = S; s < 2 * S; s++) mixes[s] = sigmoid(mixes[s]) * 2.0f;
    softmax_rows(mixes + 2 * S, S, e.eps);
    sinkhorn(mixes + 2 * S, S, e.iterations, e.eps);
}

// y[t] = sum_s pre[s] x[t, s], then the norm if there is one
void collapse(const Entry& e, int64_t t, const float* x, const float* pre) {
    static thread_local Scratch memory;
    float* sum = memory.floats(e.D + W);
    for (int64_t d = 0; d < e.D; d += W) {
        const int count = int(std::min<int64_t>(W, e.D - d));
        vf total{};
        for (int64_t s = 0; s < e.S; s++) {
            const float* from = x + s * e.D + d;
            total = fma(count == W ? load(from) : load_part(from, count), splat(pre[s]), total);
        }
        store(sum + d, e.bf16 ? round_bf16(total) : total);
    }
    float factor = 1.0f;
    if (e.norm_weight) factor = 1.0f / std::sqrt(dot(sum, sum, e.D) / float(e.D) + e.norm_eps);
    int64_t d = 0;
    for (; d + W <= e.D; d += W) {
        const vf v = e.norm_weight ? load(sum + d) * factor * load(e.norm_weight + d) : load(sum + d);
        store_either(e.y, e.bf16, t * e.D + d, v);
    }
    for (; d < e.D; d++)
        put_either(e.y, e.bf16, t * e.D + d, e.norm_weight ? sum[d] * factor * e.norm_weight[d] : sum[d]);
}

// Tokens [t0, t1), at most W of them: mixes [t1 - t0, X] are there, x in floats.
void finish(const Entry& e, int64_t t0, int64_t t1, const Input& in, const float* mixes) {
    const int64_t X = e.mixes(), S = e.S, rows = t1 - t0;
    vf lanes[(2 + MOST_STREAMS) * MOST_STREAMS] = {};
    for (int64_t r = 0; r < rows; r++) {
        const float* x = in.row(r);
        const float factor = 1.0f / std::sqrt(dot(x, x, e.width()) / float(e.width()) + e.norm_eps);
        for (int64_t i = 0; i < X; i++) lanes[i][r] = mixes[r * X + i] * factor;
    }
    gates(e, lanes);
    for (int64_t r = 0; r < rows; r++) {
        float pre[MOST_STREAMS];
        for (int64_t s = 0; s < S; s++) pre[s] = lanes[s][r];
        collapse(e, t0 + r, in.row(r), pre);
        if (!e.comb) continue;
        for (int64_t s = 0; s < S; s++) e.post[(t0 + r) * S + s] = lanes[S + s][r];
        for (int64_t i = 0; i < S * S; i++) e.comb[(t0 + r) * S * S + i] = lanes[2 * S + i][r];
    }
}

Input floats_of(const Entry& e, int64_t t, int64_t rows, Scratch& memory) {
    const int64_t width = e.width(), pitch = prepared_size(KIND_F32, width) + 16;
    if (usable_in_place(KIND_F32, e.bf16, width, false, rows)) return {(const float*)e.row(t), width, nullptr};
    float* to = memory.floats(rows * pitch);
    for (int64_t r = 0; r < rows; r++) prepare(KIND_F32, e.row(t + r), e.bf16, width, false, to + r * pitch);
    return {to, pitch, nullptr};
}

// few tokens: the threads share out the projection's rows
static_assert(DIRECT_ROWS <= W);  // `finish` has a lane for each
void few(const Entry& e, int threads) {
    static thread_local Scratch memory, mixes_memory;
    const int64_t X = e.mixes();
    const Input in = floats_of(e, 0, e.T, memory);
    float* mixes = mixes_memory.floats(e.T * X);
    const Weight w{KIND_F32, e.fn, nullptr, X, e.width()};
    parallel(threads, (X + 3) / 4, [&](int64_t i) {
        multiply(w, 4 * i, std::min(4 * i + 4, X), in, 0, e.T, Output{mixes, X, false});
    });
    finish(e, 0, e.T, in, mixes);
}

void block(const Entry& e, int64_t t) {
    static thread_local Scratch memory, mixes_memory;
    const int64_t X = e.mixes(), rows = std::min(BLOCK, e.T - t);
    const Input in = floats_of(e, t, rows, memory);
    float* mixes = mixes_memory.floats(rows * X);
    multiply(Weight{KIND_F32, e.fn, nullptr, X, e.width()}, 0, X, in, 0, rows, Output{mixes, X, false});
    for (int64_t r = 0; r < rows; r += W)
        finish(e, t + r, t + std::min(r + W, rows), Input{in.row(r), in.pitch, nullptr}, mixes + r * X);
}

}  // namespace

// The sub-layer's input y [T, D] in x's dtype, post [T, S] and comb [T, S, S] in float32; with null post and comb the
// collapse before the head. S <= 8.
extern "C" void dsv4_hyper_enter(const void* x, const float* fn, const float* scale, const float* base,
                                 const float* norm_weight, void* y, float* post, float* comb, int64_t T, int64_t S,
                                 int64_t D, int iterations, float eps, float norm_eps, int bf16, int threads) {
    const Entry e{x, bool(bf16), fn, scale, base, norm_weight, y, post, comb, T, S, D, iterations, eps, norm_eps};
    threads = worth(double(T) * double(e.width() * e.mixes()), threads);
    if (T <= DIRECT_ROWS) return T ? few(e, threads) : void();
    parallel(threads, (T + BLOCK - 1) / BLOCK, [&](int64_t i) { block(e, i * BLOCK); });
}

// out[t, k] = post[t, k] y[t] + sum_j comb[t, j, k] x[t, j]
extern "C" void dsv4_hyper_combine(const void* y, const void* x, const float* post, const float* comb, void* out,
                                   int64_t T, int64_t S, int64_t D, int bf16, int threads) {
    constexpr int64_t STEP = 512;
    const int64_t steps = (D + STEP - 1) / STEP;
    threads = worth(double(T) * double(S * S * D), threads);
    const auto part = [&](int64_t unit) {
        const int64_t t = unit / steps, d0 = unit % steps * STEP, d1 = std::min(D, d0 + STEP);
        const float *p = post + t * S, *c = comb + t * S * S;
        int64_t d = d0;
        for (; d + W <= d1; d += W) {
            const vf from = load_either(y, bf16, t * D + d);
            vf in[MOST_STREAMS];
            for (int64_t j = 0; j < S; j++) in[j] = load_either(x, bf16, (t * S + j) * D + d);
            for (int64_t k = 0; k < S; k++) {
                vf total{};
                for (int64_t j = 0; j < S; j++) total = fma(splat(c[j * S + k]), in[j], total);
                store_either(out, bf16, (t * S + k) * D + d, fma(splat(p[k]), from, total));
            }
        }
        for (; d < d1; d++)
            for (int64_t k = 0; k < S; k++) {
                float total = 0;
                for (int64_t j = 0; j < S; j++)
                    total = fma(c[j * S + k], get_either(x, bf16, (t * S + j) * D + d), total);
                put_either(out, bf16, (t * S + k) * D + d, fma(p[k], get_either(y, bf16, t * D + d), total));
            }
    };
    parallel(threads, T * steps, part, shares(T * steps, threads));
}
