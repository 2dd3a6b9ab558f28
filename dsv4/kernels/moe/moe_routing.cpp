// Routing: affinities, the choice of experts, and their weights.
#include "moe_math.h"
#include "native/parallel.h"

using namespace dsv4;

// y = sqrt(softplus(x))
extern "C" void dsv4_affinity(const float* x, float* y, int64_t count, int threads) {
    threads = worth(double(count) * 16, threads);
    const int64_t parts = (count + W - 1) / W;
    const auto part = [&](int64_t at) {
        const int64_t i = at * W;
        if (i + W <= count)
            store(y + i, square_root(softplus(load(x + i))));
        else
            store_part(y + i, square_root(softplus(load_part(x + i, int(count - i)))), int(count - i));
    };
    parallel(threads, parts, part, shares(parts, threads));
}

// ids [T, K] of the largest score + bias, largest first; among equals the lowest id comes first. NaN counts as largest.
extern "C" void dsv4_choose_experts(const float* score, const float* bias, int64_t* ids, int64_t T, int64_t E,
                                    int64_t K, int threads) {
    threads = worth(double(T) * double(E) * 4, threads);
    const auto choose = [&](int64_t t) {
        static thread_local Scratch memory;
        float* best = memory.floats(K);
        int64_t* id = ids + t * K;
        int64_t have = 0;
        for (int64_t e = 0; e < E; e++) {
            const float sum = score[t * E + e] + bias[e], v = sum == sum ? sum : INFINITY;
            if (have == K && !(v > best[K - 1])) continue;
            int64_t at = have < K ? have++ : K - 1;
            for (; at > 0 && v > best[at - 1]; at--) best[at] = best[at - 1], id[at] = id[at - 1];
            best[at] = v, id[at] = e;
        }
    };
    parallel(threads, T, choose, shares(T, threads));
}

// weight [T, K] = score of the chosen / their sum * scale
extern "C" void dsv4_expert_weights(const float* score, const int64_t* ids, float* weight, int64_t T, int64_t E,
                                    int64_t K, float scale) {
    for (int64_t t = 0; t < T; t++) {
        float total = 0;
        for (int64_t k = 0; k < K; k++) total += score[t * E + ids[t * K + k]];
        for (int64_t k = 0; k < K; k++) weight[t * K + k] = score[t * E + ids[t * K + k]] / total * scale;
    }
}

// y = silu(min(gate, limit)) * clip(up, -limit, limit); limit 0: no clamp
extern "C" void dsv4_clamped_swiglu(const float* gate, const float* up, float* y, int64_t count, float limit,
                                    int threads) {
    threads = worth(double(count) * 16, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < count; i += W) {
        const bool whole = i + W <= count;
        vf g = whole ? load(gate + i) : load_part(gate + i, int(count - i));
        vf u = whole ? load(up + i) : load_part(up + i, int(count - i));
        if (limit > 0) {
            g = g > limit ? splat(limit) : g;
            u = u > limit ? splat(limit) : u < -limit ? splat(-limit) : u;
        }
        const vf v = silu(g) * u;
        if (whole)
            store(y + i, v);
        else
            store_part(y + i, v, int(count - i));
    }
}
