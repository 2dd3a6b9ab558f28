// Backward passes over attention: parts of neighbouring queries one after another, each shared out among the threads.
#pragma once
#include <omp.h>

#include <algorithm>

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

}  // namespace dsv4
