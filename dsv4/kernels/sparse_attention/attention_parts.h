// Backward passes over attention: parts of neighbouring queries one after another, each shared out among the threads.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention.h"

namespace dsv4 {

constexpr int64_t BLOCK_ROWS = 128, MOST_QUERIES = 64;  // query rows of a part, and its queries

struct Part {
    int64_t first, last;  // queries
    int64_t window_first, window_count;
};

// a part of [0, size)
struct Share {
    int64_t from, to;
};
inline Share share(int64_t size) {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    return {size * thread / threads, size * (thread + 1) / threads};
}

inline std::vector<Part> cut(const AttentionCall& call) {
    const int64_t most = std::clamp(BLOCK_ROWS / call.heads, int64_t(1), MOST_QUERIES);
    std::vector<Part> parts;
    for (int64_t i = 0; i + 1 < call.runs_count; i++)
        for (int64_t t = call.runs[i]; t < call.runs[i + 1];) {
            const int64_t window_first = call.window_T2[2 * t];
            const Neighbours n = neighbours(call, t, call.runs[i + 1], most);
            parts.push_back({t, n.last, window_first, n.window_end - window_first});
            t = n.last;
        }
    return parts;
}

// rows [rows.from, rows.to) of `out` as float32: those of `listed`, then zeros
inline void load_listed(const Rows& stored, const std::vector<int64_t>& listed, int64_t dim, Share rows, float* out) {
    for (int64_t r = rows.from; r < rows.to; r++) {
        if (r < int64_t(listed.size()))
            row_to_float(stored, listed[size_t(r)], out + r * dim);
        else
            std::fill_n(out + r * dim, dim, 0.0f);
    }
}

// rows [rows.from, rows.to) of a part's panel: its window rows, then the listed entries, then zeros
inline void load_panel(
    const AttentionCall& call, const Part& part, const std::vector<int64_t>& listed, Share rows, float* panel
) {
    const int64_t near = part.window_count, dim = call.dim;
    for (int64_t r = rows.from; r < std::min(rows.to, near); r++)
        row_to_float(call.window, part.window_first + r, panel + r * dim);
    load_listed(call.entries, listed, dim, {std::max(rows.from - near, int64_t(0)), rows.to - near}, panel + near * dim);
}

// `mask` of a part's panel, `width` long: 0 for the rows that query t reads, else -inf. The panel has the part's window
// rows, then its entries: a prefix of them is read, or chosen ones, which lie in the panel in the order of `place`.
inline void mask_rows(
    const AttentionCall& call, const Part& part, int64_t width, const std::vector<int32_t>& place, int64_t t, float* mask
) {
    const int64_t *window = call.window_T2 + 2 * t, near = part.window_count;
    std::fill_n(mask, width, -INFINITY);
    for (int64_t r = window[0] - part.window_first; r < window[1] - part.window_first; r++) mask[r] = 0;
    if (!call.chosen_TK && call.prefix_T) std::fill_n(mask + near, call.prefix_T[t], 0.0f);
    for (int64_t k = 0; call.chosen_TK && k < call.chosen; k++) {
        const int64_t entry = call.chosen_TK[t * call.chosen + k];
        if (entry >= 0) mask[near + place[size_t(entry)]] = 0;
    }
}

}  // namespace dsv4
