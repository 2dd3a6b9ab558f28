// Indexer scores and top-k: blocks of queries share tiles of keys, each query keeps a running choice.
//
// T queries, N heads, I dims, K places of the result.
#include <omp.h>

#include "native/exponential.h"
#include "fp4_scores.h"
#include "topk.h"

using namespace dsv4;

extern "C" void dsv4_pack_index(const float* x, uint8_t* rows, int64_t count, int64_t dim, int64_t bytes, int threads);

namespace {

constexpr int64_t PANEL_TILES = 4, PANEL_KEYS = PANEL_TILES * TILE;
constexpr int64_t QUERY_FLOATS = 1 << 16;  // of a block: they stay in the L2 cache
constexpr int64_t SMALL = 500000;          // multiply-adds that one thread does sooner than two

int64_t blocks_of(const IndexCall& call) { return (call.dim + INDEX_BLOCK - 1) / INDEX_BLOCK; }

// neighbouring queries of one sequence; `seen`: the most entries one of them sees
struct Block {
    int64_t first, last, seen;
};

struct Workspace {
    Scratch rows, tiles, byte_tiles;
    std::vector<Best> best;
    // queries that are e2m1 exactly, as a ByteQuery reads them
    std::vector<uint8_t> packed;
    std::vector<int8_t> codes;
    std::vector<int32_t> starts;
    std::vector<float> scales, values;
    std::vector<char> exact;
};
thread_local Workspace own;

// where the keys of entries [from, from + count) lie
void find_rows(const IndexCall& call, int64_t sequence, int64_t from, int64_t count, const uint8_t** row) {
    const int64_t* page = call.first_BP + sequence * call.pages + from / call.per_page;
    int64_t at = from % call.per_page;
    for (int64_t i = 0; i < count; page++, at = 0) {
        const uint8_t* next = call.keys.first + (*page + at) * call.keys.stride;
        for (const int64_t end = std::min(count, i + call.per_page - at); i < end; i++, next += call.keys.stride)
            row[i] = next;
    }
}

// entries [from, from + count) as tiles; places after them hold whatever was there
const float* load_tiles(const IndexCall& call, int64_t sequence, int64_t from, int64_t count) {
    float* rows = own.rows.floats(TILE * call.dim);
    float* tiles = own.tiles.floats(PANEL_KEYS * call.dim);
    const uint8_t* row[PANEL_KEYS];
    find_rows(call, sequence, from, count, row);
    Rows one = call.keys;
    for (int64_t done = 0; done < count; done += TILE) {
        for (int64_t i = 0; i < std::min(TILE, count - done); i++) {
            one.first = row[done + i];
            row_to_float(one, 0, rows + i * call.dim);
        }
        arrange_tile(rows, call.dim, tiles + done * call.dim);
    }
    return tiles;
}

// the same as tiles of bytes; places after them hold the last entry
const float* load_byte_tiles(const IndexCall& call, int64_t sequence, int64_t from, int64_t count) {
    const int64_t blocks = blocks_of(call), size = byte_tile_size(blocks);
    float* tiles = own.byte_tiles.floats(PANEL_TILES * size);
    const uint8_t* row[PANEL_KEYS];
    find_rows(call, sequence, from, count, row);
    std::fill(row + count, row + PANEL_KEYS, row[count - 1]);
    for (int64_t done = 0; done < count; done += TILE)
        arrange_byte_tile(row + done, call.dim, blocks, tiles + done / TILE * size);
    return tiles;
}

// find the queries of a block that e2m1 holds exactly and lay out their codes; whether a query is one depends on it alone
void find_exact(const IndexCall& call, const Block& block) {
    const int64_t heads = call.heads, dim = call.dim, blocks = blocks_of(call), bytes = dim / 2 + blocks;
    const size_t count = size_t(block.last - block.first), each = size_t(heads * blocks);
    own.exact.assign(count, 0);
    if (call.keys.kind != ROW_INDEX) return;
    own.packed.resize(size_t(heads * bytes));
    own.values.resize(size_t(dim));
    own.codes.resize(count * each * INDEX_BLOCK);
    own.scales.resize(count * each);
    own.starts.resize(count * each);
    for (size_t t = 0; t < count; t++) {
        const float* q = call.q_TJI + (block.first + int64_t(t)) * heads * dim;
        dsv4_pack_index(q, own.packed.data(), heads, dim, bytes, 1);
        bool exact = true;
        for (int64_t n = 0; n < heads && exact; n++) {
            const uint8_t* row = own.packed.data() + n * bytes;
            index_to_float(row, dim, own.values.data());
            exact = std::equal(own.values.begin(), own.values.end(), q + n * dim);
            const size_t at = t * each + size_t(n * blocks);
            int8_t* code = own.codes.data() + at * INDEX_BLOCK;
            query_codes(row, dim, code);
            for (int64_t b = 0; b < blocks; b++) {
                own.scales[at + size_t(b)] = 0.25f * scale_of(row[dim / 2 + b]);
                int32_t sum = 0;
                for (int64_t i = 0; i < INDEX_BLOCK; i++) sum += code[b * INDEX_BLOCK + i];
                own.starts[at + size_t(b)] = -LARGEST_CODE * sum;
            }
        }
        own.exact[t] = exact;
    }
}

// offer the entries [from, end) of a tile to the choice of one query
void offer(const vf* score, int64_t from, int64_t end, Best& best) {
    for (int v = 0; v < VECTORS; v++) {
        unsigned lanes = above(score[v], best.threshold);
        for (; lanes; lanes &= lanes - 1) {
            const int lane = __builtin_ctz(lanes);
            const int64_t entry = from + v * W + lane;
            if (entry < end && score[v][lane] > best.threshold) best.add(score[v][lane], int32_t(entry));
        }
    }
}

// one query against the tiles of a panel
void score_panel(const IndexCall& call, int64_t t, size_t place, const float* tiles, const float* byte_tiles,
                 int64_t panel, int64_t end, Best& best) {
    const int64_t heads = call.heads, dim = call.dim, blocks = blocks_of(call);
    const float* weight = call.weight_TJ + t * heads;
    for (int64_t at = panel; at < end; at += TILE) {
        vf score[VECTORS];
        if (own.exact[place]) {
            const size_t first = place * size_t(heads * blocks);
            const ByteQuery query{own.codes.data() + first * INDEX_BLOCK, own.scales.data() + first,
                                  own.starts.data() + first, weight};
            const float* tile = byte_tiles + (at - panel) / TILE * byte_tile_size(blocks);
            byte_tile_scores(query, tile, heads, blocks, score);
        } else {
            tile_scores(call.q_TJI + t * heads * dim, weight, tiles + (at - panel) * dim, heads, dim, score);
        }
        offer(score, at, end, best);
    }
}

// score entries [from, to) for a block of queries; best[0] belongs to the first query
void score_entries(const IndexCall& call, const Block& block, int64_t from, int64_t to, Best* best) {
    for (int64_t t = block.first; t < block.last; t++) best[t - block.first].start(call.k);
    if (from >= to) return;
    find_exact(call, block);
    const int64_t sequence = call.sequence_T[block.first];
    const bool bytes = std::count(own.exact.begin(), own.exact.end(), 1) > 0;
    const bool floats = std::count(own.exact.begin(), own.exact.end(), 0) > 0;
    for (int64_t panel = from; panel < to; panel += PANEL_KEYS) {
        const int64_t count = std::min(PANEL_KEYS, to - panel);
        const float* tiles = floats ? load_tiles(call, sequence, panel, count) : nullptr;
        const float* byte_tiles = bytes ? load_byte_tiles(call, sequence, panel, count) : nullptr;
        for (int64_t t = block.first; t < block.last; t++) {
            if (call.visible_T[t] <= call.k) continue;  // all of them are chosen
            const size_t place = size_t(t - block.first);
            score_panel(call, t, place, tiles, byte_tiles, panel, std::min(call.visible_T[t], panel + count), best[place]);
        }
    }
}

void write_choice(const IndexCall& call, int64_t t, Best& best) {
    int64_t* out = call.out_TK + t * call.places;
    if (call.visible_T[t] > call.k) return best.write(out, call.places);
    for (int64_t i = 0; i < call.places; i++) out[i] = i < call.visible_T[t] ? i : -1;
}

std::vector<Block> cut(const IndexCall& call, int64_t most) {
    std::vector<Block> blocks;
    for (int64_t i = 0; i + 1 < call.runs_count; i++)
        for (int64_t t = call.runs[i]; t < call.runs[i + 1]; t += most) {
            Block block{t, std::min(t + most, call.runs[i + 1]), 0};
            for (int64_t u = t; u < block.last; u++) block.seen = std::max(block.seen, call.visible_T[u]);
            if (block.seen <= call.k) block.seen = 0;
            blocks.push_back(block);
        }
    return blocks;
}

// few queries: each block's entries are divided among the threads, whose choices are then joined in order
void run_divided(const IndexCall& call, const std::vector<Block>& blocks, int64_t most) {
    const int64_t count = int64_t(blocks.size()), parts = call.threads;
    std::vector<Best> best(size_t(count * parts * most));
#pragma omp parallel for schedule(dynamic) num_threads(call.threads)
    for (int64_t i = 0; i < count * parts; i++) {
        const Block& block = blocks[size_t(i / parts)];
        const int64_t part = i % parts, tiles = (block.seen + TILE - 1) / TILE;
        const int64_t from = tiles * part / parts * TILE, to = tiles * (part + 1) / parts * TILE;
        score_entries(call, block, from, std::min(to, block.seen), &best[size_t(i * most)]);
    }
    for (int64_t b = 0; b < count; b++)
        for (int64_t t = blocks[size_t(b)].first; t < blocks[size_t(b)].last; t++) {
            Best* first = &best[size_t(b * parts * most + t - blocks[size_t(b)].first)];
            for (int64_t part = 1; part < parts; part++) first->append(first[part * most]);
            write_choice(call, t, *first);
        }
}

}  // namespace

extern "C" void dsv4_index_topk(const IndexCall* given) {
    const IndexCall& call = *given;
    const int64_t most = std::clamp(QUERY_FLOATS / (call.heads * call.dim), int64_t(4), int64_t(64));
    const std::vector<Block> blocks = cut(call, most);
    const int64_t count = int64_t(blocks.size());
    int64_t work = 0;
    for (const Block& block : blocks) work += (block.last - block.first) * block.seen * call.heads * call.dim;
    const bool one = call.threads <= 1 || work < SMALL;
    if (!one && count < 2 * call.threads) return run_divided(call, blocks, most);
#pragma omp parallel for schedule(dynamic) num_threads(call.threads) if (!one)
    for (int64_t i = count - 1; i >= 0; i--) {
        const Block& block = blocks[size_t(i)];
        own.best.resize(size_t(most));
        score_entries(call, block, 0, block.seen, own.best.data());
        for (int64_t t = block.first; t < block.last; t++) write_choice(call, t, own.best[size_t(t - block.first)]);
    }
}
