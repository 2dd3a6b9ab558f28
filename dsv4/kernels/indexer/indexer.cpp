// Indexer scores and top-k: blocks of queries share tiles of keys, each query keeps a running choice.
//
// T queries, N heads, I dims, K places of the result.
#include "native/exponential.h"
#include "fp4_rows.h"
#include "topk.h"

using namespace dsv4;

extern "C" void dsv4_pack_index(const float* x, uint8_t* rows, int64_t count, int64_t dim, int64_t bytes, int threads);

namespace {

constexpr int64_t PANEL_TILES = 4, PANEL_KEYS = PANEL_TILES * TILE;
constexpr int64_t QUERY_FLOATS = 1 << 16;  // of a block: they stay in the L2 cache
constexpr int64_t MOST_FETCHED = 4096;    // bytes of a page
constexpr int64_t SMALL = 500000;          // multiply-adds that one thread does sooner than two

int64_t blocks_of(const IndexCall& call) { return (call.dim + INDEX_BLOCK - 1) / INDEX_BLOCK; }

int64_t row_bytes(const IndexCall& call) { return call.dim / 2 + blocks_of(call); }  // of packed keys

// neighbouring queries of one sequence; `seen`: the most entries one of them sees
struct Block {
    int64_t first, last, seen;
};

// Queries of a block that are e2m1 exactly, as ByteQueries; for each some of its heads.
struct ByteQueries {
    std::vector<int8_t> codes;
    std::vector<int32_t> starts;
    std::vector<float> scales, weights;
    std::vector<int64_t> heads;

    void make_room(size_t count, size_t most, size_t blocks) {
        codes.resize(count * most * blocks * INDEX_BLOCK);
        starts.resize(count * most * blocks);
        scales.resize(count * most * blocks);
        weights.resize(count * most);
        heads.assign(count, 0);
    }
    ByteQuery of(size_t place, int64_t most, int64_t blocks) const {
        const size_t head = place * size_t(most), first = head * size_t(blocks);
        return {codes.data() + first * INDEX_BLOCK, scales.data() + first, starts.data() + first,
                weights.data() + head, heads[place]};
    }
    // one more head of a query from its packed row
    void add(size_t place, int64_t most, int64_t dim, int64_t blocks, const uint8_t* row, float weight) {
        const size_t head = place * size_t(most) + size_t(heads[place]++), first = head * size_t(blocks);
        int8_t* code = codes.data() + first * INDEX_BLOCK;
        query_codes(row, dim, code);
        for (int64_t b = 0; b < blocks; b++) {
            scales[first + size_t(b)] = 0.25f * scale_of(row[dim / 2 + b]);
            int32_t sum = 0;
            for (int64_t i = 0; i < INDEX_BLOCK; i++) sum += code[b * INDEX_BLOCK + i];
            starts[first + size_t(b)] = -LARGEST_CODE * sum;
        }
        weights[head] = weight;
    }
};

struct Workspace {
    Scratch rows, tiles, byte_tiles;
    std::vector<Best> best;
    std::vector<char> exact;        // which queries of a block are e2m1 exactly
    ByteQueries all, raising;       // of these: all heads, and those whose weight is positive
    std::vector<char> doubtful;     // whose positive heads excluded too few keys of the last panel
    std::vector<uint8_t> packed, gathered;  // a query; rows that do not follow each other, made to do so
    std::vector<float> values;
};
thread_local Workspace own;

// Entries [from, to) of one sequence, one after another. Pages are long, so it rarely divides.
struct Walk {
    const IndexCall& call;
    const int64_t *page, *last;
    int64_t at;  // in the page

    Walk(const IndexCall& c, int64_t sequence, int64_t from, int64_t to) : call(c), at(from % c.per_page) {
        page = c.first_BP + sequence * c.pages + from / c.per_page;
        last = c.first_BP + sequence * c.pages + (to - 1) / c.per_page;
    }
    int64_t left() const { return call.per_page - at; }  // whose rows follow each other
    const uint8_t* row() const { return call.keys.first + (*page + at) * call.keys.stride; }
    void skip(int64_t count) {  // at most `left`
        at += count;
        if (at < call.per_page) return;
        page++, at = 0;
        if (page < last && page[1] != *page + call.per_page) fetch(page[1]);
    }
    // The machine itself foresees rows that follow each other. It cannot know where the next page lies.
    void fetch(int64_t first) const {
        const uint8_t* row = call.keys.first + first * call.keys.stride;
        const int64_t size = std::min(call.per_page * call.keys.stride, MOST_FETCHED);
        for (int64_t i = 0; i < size; i += 64) __builtin_prefetch(row + i);
    }
};

// entries [from, from + count) as tiles; places after them hold whatever was there; `to`: where the sequence ends
const float* load_tiles(const IndexCall& call, int64_t sequence, int64_t from, int64_t count, int64_t to) {
    float* rows = own.rows.floats(TILE * call.dim);
    float* tiles = own.tiles.floats(PANEL_KEYS * call.dim);
    Walk walk(call, sequence, from, to);
    Rows one = call.keys;
    for (int64_t done = 0; done < count; done += TILE) {
        for (int64_t i = 0; i < std::min(TILE, count - done); i++, walk.skip(1)) {
            one.first = walk.row();
            row_to_float(one, 0, rows + i * call.dim);
        }
        arrange_tile(rows, call.dim, tiles + done * call.dim);
    }
    return tiles;
}

// At most `most` rows from a walk's place on, without a gap between them; the walk goes on. `here`: how many it went.
// There are whole vectors of rows; those behind `here` are copies.
const uint8_t* next_rows(const IndexCall& call, Walk& walk, int64_t most, int64_t& here) {
    const int64_t stride = row_bytes(call);
    here = std::min(most, walk.left()) / W * W;
    if (here && call.keys.stride == stride) {
        const uint8_t* first = walk.row();
        walk.skip(here);
        return first;
    }
    here = std::min(int64_t(W), most);
    own.gathered.resize(size_t(W * stride));
    uint8_t* first = own.gathered.data();
    for (int64_t i = 0; i < W; i++) {
        std::memcpy(first + i * stride, i < here ? walk.row() : first, size_t(stride));
        if (i < here) walk.skip(1);
    }
    return first;
}

// the same as tiles of bytes
const float* load_byte_tiles(const IndexCall& call, int64_t sequence, int64_t from, int64_t count, int64_t to) {
    const int64_t blocks = blocks_of(call), size = byte_tile_size(blocks);
    float* tiles = own.byte_tiles.floats(PANEL_TILES * size);
    Walk walk(call, sequence, from, to);
    for (int64_t done = 0, here; done < count; done += W) {
        const uint8_t* first = next_rows(call, walk, std::min(int64_t(W), count - done), here);
        arrange_byte_rows(first, row_bytes(call), call.dim, blocks, tiles + done / TILE * size + done % TILE);
    }
    return tiles;
}

// find the queries of a block that e2m1 holds exactly and lay out their codes; whether a query is one depends on it
// alone
void find_exact(const IndexCall& call, const Block& block) {
    const int64_t heads = call.heads, dim = call.dim, blocks = blocks_of(call), bytes = row_bytes(call);
    const size_t count = size_t(block.last - block.first);
    own.exact.assign(count, 0);
    own.doubtful.assign(count, 0);
    if (call.keys.kind != ROW_INDEX) return;
    own.packed.resize(size_t(heads * bytes));
    own.values.resize(size_t(dim));
    own.all.make_room(count, size_t(heads), size_t(blocks));
    own.raising.make_room(count, size_t(heads), size_t(blocks));
    for (size_t t = 0; t < count; t++) {
        const int64_t token = block.first + int64_t(t);
        const float *q = call.q_TJI + token * heads * dim, *weight = call.weight_TJ + token * heads;
        dsv4_pack_index(q, own.packed.data(), heads, dim, bytes, 1);
        bool exact = true;
        for (int64_t n = 0; n < heads && exact; n++) {
            const uint8_t* row = own.packed.data() + n * bytes;
            index_to_float(row, dim, own.values.data());
            exact = std::equal(own.values.begin(), own.values.end(), q + n * dim);
            own.all.add(t, heads, dim, blocks, row, weight[n]);
            if (weight[n] > 0) own.raising.add(t, heads, dim, blocks, row, weight[n]);
        }
        own.exact[t] = exact;
    }
}

// offer entries [from, end) of some vectors of keys to the choice of one query
void offer(const vf* score, int vectors, int64_t from, int64_t end, Best& best) {
    for (int v = 0; v < vectors; v++) {
        unsigned lanes = above(score[v], best.threshold);
        for (; lanes; lanes &= lanes - 1) {
            const int lane = __builtin_ctz(lanes);
            const int64_t entry = from + v * W + lane;
            if (entry < end && score[v][lane] > best.threshold) best.add(score[v][lane], int32_t(entry));
        }
    }
}

// The heads of positive weight alone never give less than all heads do, in rounded numbers too, because another head
// can only lower the sum. So keys none of which gets above the threshold by them need no more. That pays where most
// keys fail: behind the first MANY * k of them, and unless many passed in the panel before.
struct Bound {
    static constexpr int64_t MANY = 128, OFTEN = 4;
    const bool used;
    char& doubtful;
    int64_t tried = 0, passed = 0;

    // scored: keys before the panel
    Bound(const IndexCall& call, size_t place, int64_t scored)
        : used(scored > MANY * call.k && own.raising.heads[place] < call.heads && !own.doubtful[place]),
          doubtful(own.doubtful[place]) {}
    ~Bound() { doubtful = OFTEN * passed > tried; }

    // whether none of some vectors of keys gets above the threshold
    bool fails(const vf* score, int vectors, const Best& best) {
        unsigned any = 0;
        for (int v = 0; v < vectors; v++) any |= above(score[v], best.threshold);
        tried++;
        passed += any != 0;
        return !any;
    }
};

// tiles of a panel for one query
void score_tiles(const IndexCall& call, int64_t t, const float* tiles, int64_t panel, int64_t end, Best& best) {
    const int64_t heads = call.heads, dim = call.dim;
    const float *q = call.q_TJI + t * heads * dim, *weight = call.weight_TJ + t * heads;
    for (int64_t at = panel; at < end; at += TILE) {
        vf score[VECTORS];
        tile_scores(q, weight, tiles + (at - panel) * dim, heads, dim, score);
        offer(score, VECTORS, at, end, best);
    }
}

// the same for a query that is e2m1; scored: keys before the panel
void score_byte_tiles(const IndexCall& call, size_t place, const float* tile, int64_t panel, int64_t end,
                      int64_t scored, Best& best) {
    const int64_t blocks = blocks_of(call), size = byte_tile_size(blocks);
    const ByteQuery all = own.all.of(place, call.heads, blocks), raising = own.raising.of(place, call.heads, blocks);
    Bound bound(call, place, scored);
    for (int64_t at = panel; at < end; at += TILE, tile += size) {
        vf score[VECTORS];
        if (bound.used) {
            byte_tile_scores(raising, tile, blocks, score);
            if (bound.fails(score, VECTORS, best)) continue;
        }
        byte_tile_scores(all, tile, blocks, score);
        offer(score, VECTORS, at, end, best);
    }
}

// the only query of a block reads rows where they lie, which is cheaper than making a tile for one
void score_rows(const IndexCall& call, int64_t sequence, int64_t from, int64_t to, Best& best) {
    const int64_t blocks = blocks_of(call);
    const RowQuery all(own.all.of(0, call.heads, blocks), blocks);
    const RowQuery raising(own.raising.of(0, call.heads, blocks), blocks);
    Walk walk(call, sequence, from, to);
    for (int64_t panel = from; panel < to; panel += PANEL_KEYS) {
        Bound bound(call, 0, panel - from);
        const int64_t end = std::min(to, panel + PANEL_KEYS);
        for (int64_t at = panel, here; at < end; at += here) {
            const uint8_t* first = next_rows(call, walk, std::min(int64_t(ROW_VECTORS * W), end - at), here);
            const int vectors = int((here + W - 1) / W);
            vf score[ROW_VECTORS];
            row_scores(bound.used ? raising : all, first, blocks, vectors, score);
            for (int v = 0; v < vectors; v++) {
                if (bound.used) {
                    if (bound.fails(score + v, 1, best)) continue;
                    row_scores(all, first + v * W * row_bytes(call), blocks, 1, score + v);
                }
                offer(score + v, 1, at + v * W, to, best);
            }
        }
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
    if (block.last - block.first == 1 && bytes && reads_rows(call.heads, call.dim))
        return score_rows(call, sequence, from, to, *best);
    for (int64_t panel = from; panel < to; panel += PANEL_KEYS) {
        const int64_t count = std::min(PANEL_KEYS, to - panel);
        const float* tiles = floats ? load_tiles(call, sequence, panel, count, to) : nullptr;
        const float* byte_tiles = bytes ? load_byte_tiles(call, sequence, panel, count, to) : nullptr;
        for (int64_t t = block.first; t < block.last; t++) {
            if (call.visible_T[t] <= call.k) continue;  // all of them are chosen
            const size_t place = size_t(t - block.first);
            const int64_t end = std::min(call.visible_T[t], panel + count);
            if (own.exact[place])
                score_byte_tiles(call, place, byte_tiles, panel, end, panel - from, best[place]);
            else
                score_tiles(call, t, tiles, panel, end, best[place]);
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
    parallel(call.threads, count * parts, [&](int64_t i) {
        const Block& block = blocks[size_t(i / parts)];
        const int64_t part = i % parts, tiles = (block.seen + TILE - 1) / TILE;
        const int64_t from = tiles * part / parts * TILE, to = tiles * (part + 1) / parts * TILE;
        score_entries(call, block, from, std::min(to, block.seen), &best[size_t(i * most)]);
    });
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
    parallel(one ? 1 : call.threads, count, [&](int64_t i) {
        const Block& block = blocks[size_t(count - 1 - i)];
        own.best.resize(size_t(most));
        score_entries(call, block, 0, block.seen, own.best.data());
        for (int64_t t = block.first; t < block.last; t++) write_choice(call, t, own.best[size_t(t - block.first)]);
    });
}
