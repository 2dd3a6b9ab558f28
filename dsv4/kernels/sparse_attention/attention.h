// Sparse attention: what one call gets, and how its queries are cut into blocks.
//
// T queries, H heads, C entry dim, X = (queries of a block) * H query rows, R key rows of a block: its window rows, then
// its entries.
//
// Every score is one chain of multiply-adds over C, every output value one chain over the query's own rows in order, and
// the largest score is known before the first exponential. So blocks, panels and threads change no bit.
#pragma once
#include <vector>

#include "native/exponential.h"
#include "rows/rows.h"

namespace dsv4 {

constexpr int64_t PANEL = 48;      // rows that are made float32 at once; a multiple of the keys of any score tile
constexpr int64_t LANES = 2 * W;   // query rows of a full group
constexpr int64_t PIECE = 256;     // part of C multiplied at once: keys and queries of a tile stay in L1
constexpr int64_t LINE = 16;       // floats of a cache line; rows of a panel are spread over the cache by one line more

// Neighbouring queries [first, last) of one sequence, and the rows that at least one of them reads.
struct Block {
    int64_t first, last;
    int64_t window_first, window_count;
    int64_t entries;  // entries after the window: a prefix, or the length of the one query's list
};

// Rows of the block that one query reads: its window, and its entries from the block's first on.
struct Reach {
    int64_t window_first, window_last, entries_last;
};

struct Workspace {
    Scratch queries, scores, output, panel, state;
    std::vector<int64_t> list;
};

inline int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

inline Reach reach(const AttentionCall& call, const Block& block, int64_t t) {
    const int64_t* window = call.window_T2 + 2 * t;
    const int64_t seen = call.prefix_T ? call.prefix_T[t] : block.entries;
    return {window[0] - block.window_first, window[1] - block.window_first, block.window_count + seen};
}

// Queries [t, last) before `border`, at most `most`, whose windows follow each other without a gap, and the row after
// their windows: a row that none of them reads must not be touched.
struct Neighbours {
    int64_t last, window_end;
};
inline Neighbours neighbours(const AttentionCall& call, int64_t t, int64_t border, int64_t most) {
    const int64_t* window = call.window_T2 + 2 * t;
    Neighbours n{t + 1, window[1]};
    while (n.last < border && n.last - t < most) {
        const int64_t* next = call.window_T2 + 2 * n.last;
        if (next[0] < window[0] || next[0] > n.window_end || next[1] < n.window_end) break;
        n.window_end = next[1];
        n.last++;
    }
    return n;
}

}  // namespace dsv4
