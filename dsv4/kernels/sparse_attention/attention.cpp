// Sparse attention over a window, a prefix of entries or a list of entries, read where they lie. See attention.h.
#include <algorithm>

#include "attention_rows.h"
#include "attention_single.h"
#include "attention_tiles.h"
#include "native/transpose.h"

using namespace dsv4;

namespace {

constexpr int64_t MOST_QUERIES = 16, MOST_ROWS = 128;  // of a block
constexpr int64_t IN_PLACE = 128;  // the most floats of rows whose stride does no harm in the cache
constexpr int64_t SMALL = 200000;                      // multiply-adds that one thread does sooner than two

thread_local Workspace own;

// One block on its way through the three phases. What threads share is `space`; each loads rows into its own panel.
struct Task {
    const AttentionCall& call;
    Block block;
    Workspace& space;
    bool single;                      // lanes are keys; else they are query rows
    int64_t x, width, rows, columns;  // X, X filled up to lanes, R, C filled up to vectors
    float *queries, *scores, *output, *total;

    Task(const AttentionCall& c, const Block& b, Workspace& s) : call(c), block(b), space(s) {
        x = (b.last - b.first) * c.heads;
        single = b.last - b.first == 1 && x <= SINGLE && turns(c.window) && (!b.entries || turns(c.entries));
        width = single ? SINGLE : round_up(x, W);
        rows = b.window_count + b.entries;
        columns = round_up(c.dim, W);
        queries = s.queries.floats(width * c.dim);
        scores = s.scores.floats(round_up(rows, W) * width);
        output = s.output.floats(width * columns);
        total = s.state.floats(round_up(width, W));
    }
};

// Float32 rows side by side; whole vectors may be read past C, and as many rows as the largest score tile takes.
struct Panel {
    const float* first;
    int64_t stride;
};

// where rows [from, from + count) of the block lie: of its window, then of its entries
void find_rows(const Task& task, int64_t from, int64_t count, Row* row) {
    const AttentionCall& call = task.call;
    const Rows &window = call.window, &entries = call.entries;
    const int64_t window_left = task.block.window_count - from;
    int64_t i = 0;
    for (; i < std::min(count, window_left); i++)
        row[i] = window.first + (task.block.window_first + from + i) * window.stride;
    if (i == count) return;
    const int64_t entry = i - window_left;
    if (!call.prefix_T) {
        const int64_t* chosen = task.space.list.data() + entry - i;
        for (; i < count; i++) row[i] = entries.first + chosen[i] * entries.stride;
        return;
    }
    const int64_t* page = call.first_BP + call.sequence_T[task.block.first] * call.pages + entry / call.per_page;
    for (int64_t at = entry % call.per_page; i < count; page++, at = 0)
        for (; at < call.per_page && i < count; at++, i++) row[i] = entries.first + (*page + at) * entries.stride;
}

// Columns [c0, c1) of rows [from, from + count) of the block; c0 is a multiple of W. Short window rows are used where
// they lie.
Panel load_panel(const Task& task, int64_t from, int64_t count, int64_t c0, int64_t c1) {
    const AttentionCall& call = task.call;
    const Rows& window = call.window;
    const int64_t window_left = task.block.window_count - from;
    if (window.kind == ROW_FLOAT && call.dim <= IN_PLACE && call.dim % W == 0 && count == PANEL && count <= window_left)
        return {reinterpret_cast<const float*>(window.first + (task.block.window_first + from) * window.stride),
                window.stride / 4};
    const int64_t stride = round_up(task.columns, LINE) + LINE;
    float* panel = own.panel.floats(PANEL * stride);
    Row row[PANEL];
    find_rows(task, from, count, row);
    for (int64_t i = 0; i < count; i++)
        columns_to_float(i < window_left ? window : call.entries, row[i], c0, c1, panel + i * stride);
    return {panel, stride};
}

// Query rows from `from` on to lanes [lane, lane + W) of a group, [C][lanes], which may have fewer; rows that do not
// exist are zeros.
void arrange_rows(const Task& task, const float* q, int64_t from, float* group, int64_t lane, int64_t lanes) {
    const int64_t dim = task.call.dim, rows = std::clamp<int64_t>(task.x - from, 0, W);
    int64_t c = 0;
    for (; rows == W && c + W <= dim; c += W) {
        vf v[W];
        unrolled<W>([&](auto r) { v[r] = load(q + (from + r) * dim + c); });
        transpose<W>(v);
        unrolled<W>([&](auto k) { store(group + (c + k) * lanes + lane, v[k]); });
    }
    for (; c < dim; c++)
        for (int64_t i = 0; i < std::min<int64_t>(W, lanes); i++)
            group[c * lanes + lane + i] = i < rows ? q[(from + i) * dim + c] : 0;
}

// queries as groups of up to LANES query rows, [group][C][lanes], the last group filled up with zeros
void arrange_queries(const Task& task) {
    const int64_t dim = task.call.dim;
    const float* q = task.call.q_THC + task.block.first * task.call.heads * dim;
    for (int64_t from = 0; from < task.width; from += LANES) {
        const int64_t lanes = std::min(LANES, task.width - from);
        for (int64_t i = 0; i < lanes; i += W) arrange_rows(task, q, from + i, task.queries + from * dim, i, lanes);
    }
}

// scores of one panel against one group of query rows, a piece of C
template <int KEYS, int V>
void score_group(const float* panel, int64_t stride, int64_t count, const float* queries, int64_t dim, float* scores,
                 int64_t width, bool more) {
    for (int64_t k = 0; k < count; k += KEYS)
        score_tile<KEYS, V>(panel + k * stride, stride, queries, dim, scores + k * width, width, count - k, more);
}

// the same for a group that is one vector of `filled` query rows
void score_few(int64_t filled, const float* panel, int64_t stride, int64_t count, const float* queries, int64_t dim,
               float* scores, int64_t width, bool more) {
#if defined(__AVX512F__)
    constexpr int64_t KEYS = 12;
    for (int64_t k = 0; k < count && filled <= HALF; k += KEYS)
        score_half<KEYS>(panel + k * stride, stride, queries, dim, scores + k * width, width, count - k, more);
    if (filled <= HALF) return;
#endif
    score_group<12, 1>(panel, stride, count, queries, dim, scores, width, more);
}

// phase 1: plain products of all query rows with rows [from, to)
void score_rows(const Task& task, int64_t from, int64_t to) {
    const int64_t dim = task.call.dim;
    for (int64_t r = from; r < to; r += PANEL) {
        const int64_t count = std::min(PANEL, to - r);
        const Panel panel = load_panel(task, r, count, 0, dim);
        for (int64_t c = 0; c < dim; c += PIECE)
            for (int64_t x = 0; x < task.width; x += LANES) {
                const int64_t lanes = std::min(LANES, task.width - x), piece = std::min(PIECE, dim - c);
                const float* queries = task.queries + x * dim + c * lanes;
                float* scores = task.scores + r * task.width + x;
                if (lanes == LANES)
                    score_group<6, 2>(panel.first + c, panel.stride, count, queries, piece, scores, task.width, c > 0);
                else
                    score_few(task.x - x, panel.first + c, panel.stride, count, queries, piece, scores, task.width,
                              c > 0);
            }
    }
}

// per query row, as floats so that they fit vectors: the rows it reads
struct Limits {
    vi window_first, window_last, entries_last;
};

Limits limits(const Task& task, int64_t x) {
    Limits l{};
    for (int i = 0; i < W; i++) {
        const int64_t row = std::min(x + i, task.x - 1);
        const Reach own_rows = reach(task.call, task.block, task.block.first + row / task.call.heads);
        l.window_first[i] = int32_t(own_rows.window_first);
        l.window_last[i] = int32_t(own_rows.window_last);
        l.entries_last[i] = int32_t(own_rows.entries_last);
    }
    return l;
}

// scaled score; -inf where the query does not read the row
vf masked(vf score, vf scale, const Limits& l, int64_t r, int64_t window) {
    const vi at = vi{} + int32_t(r);
    const vi seen = r < window ? (at >= l.window_first) & (at < l.window_last) : at < l.entries_last;
    return seen ? score * scale : splat(-INFINITY);
}

// phase 2: scores of query rows [from, to), whole vectors, become exp(score - largest); totals with the sink
void weigh(const Task& task, int64_t from, int64_t to) {
    const vf scale = splat(task.call.scale);
    for (int64_t x = from; x < to; x += W) {
        const Limits l = limits(task, x);
        vf sink{};
        for (int i = 0; i < W; i++) sink[i] = task.call.sink_H[(x + i) % task.call.heads];
        vf top = sink, sum{};
        float* scores = task.scores + x;
        for (int64_t r = 0; r < task.rows; r++) {
            const vf score = masked(load(scores + r * task.width), scale, l, r, task.block.window_count);
            top = max(score, top);
            store(scores + r * task.width, score);
        }
        for (int64_t r = 0; r < task.rows; r++) {
            const vf weight = exp(load(scores + r * task.width) - top);
            sum = sum + weight;
            store(scores + r * task.width, weight);
        }
        store(task.total + x, sum + exp(sink - top));
    }
}

// rows [from, to) of one panel for the query rows of one query
void add_values(const Task& task, int64_t query, int64_t from, int64_t to, const float* values, int64_t stride,
                int64_t c0, int64_t c1) {
    if (from >= to) return;
    const int64_t heads = task.call.heads, width = task.width;
    for (int64_t h = 0; h < heads; h += 4) {
        const int64_t x = query * heads + h;
        const float* weights = task.scores + from * width + x;
        float* out = task.output + x * task.columns + c0;
        switch (heads - h) {
            case 1: value_rows<1>(weights, width, values, stride, to - from, out, task.columns, c1 - c0); break;
            case 2: value_rows<2>(weights, width, values, stride, to - from, out, task.columns, c1 - c0); break;
            case 3: value_rows<3>(weights, width, values, stride, to - from, out, task.columns, c1 - c0); break;
            default: value_rows<4>(weights, width, values, stride, to - from, out, task.columns, c1 - c0);
        }
    }
}

// output columns [c0, c1), whole vectors, by panels
void sum_panels(const Task& task, int64_t c0, int64_t c1) {
    const AttentionCall& call = task.call;
    const int64_t window = task.block.window_count;
    for (int64_t r = 0; r < task.rows; r += PANEL) {
        const int64_t end = std::min(r + PANEL, task.rows);
        const Panel panel = load_panel(task, r, end - r, c0, std::min(c1, call.dim));
        for (int64_t t = task.block.first; t < task.block.last; t++) {
            const Reach seen = reach(call, task.block, t);
            const int64_t parts[2][2] = {{std::max(r, seen.window_first), std::min(end, seen.window_last)},
                                         {std::max(r, window), std::min(end, seen.entries_last)}};
            for (const auto& [from, to] : parts) {
                const float* values = panel.first + (from - r) * panel.stride + c0;
                add_values(task, t - task.block.first, from, to, values, panel.stride, c0, c1);
            }
        }
    }
}

// Rows [from, to) of a single query's block in parts of one kind, at most PANEL long: run(kind, first of them, where
// they lie, count). Behind the last address are SINGLE_KEYS - 1 more that can be read.
template <class Run>
void each_part(const Task& task, int64_t from, int64_t to, Run run) {
    const int64_t window = task.block.window_count;
    Row row[PANEL + SINGLE_KEYS];
    for (int64_t count; from < to; from += count) {
        const bool near = from < window;
        count = std::min({PANEL, to - from, near ? window - from : PANEL});
        find_rows(task, from, count, row);
        std::fill_n(row + count, SINGLE_KEYS - 1, row[0]);
        run(near ? task.call.window : task.call.entries, from, row, count);
    }
}

// phase 1 of a single query: scaled scores of rows [from, to); the largest in each lane
vf score_single(const Task& task, int64_t from, int64_t to) {
    vf top = splat(-INFINITY);
    each_part(task, from, to, [&](const Rows& rows, int64_t r, const Row* row, int64_t count) {
        for (int64_t i = 0; i < count; i += SINGLE_KEYS) {
            vf score[SIDES * SINGLE];
            single_scores(rows, row + i, task.queries, task.call.scale, score);
            for (const vf& some : score) top = max(some, top);
            const int64_t here = std::min(SINGLE_KEYS, count - i);
            std::memcpy(task.scores + (r + i) * SINGLE, score, size_t(here * SINGLE) * sizeof(float));
        }
    });
    return top;
}

// phase 2: scores of rows [from, to) become exp(score - largest); `from` begins a vector
void weigh_single(const Task& task, int64_t from, int64_t to, vf top) {
    for (float *at = task.scores + from * SINGLE, *end = task.scores + to * SINGLE; at < end; at += W)
        store(at, exp(load(at) - top));
}

// the sum of all weights and the sink's: one chain over the rows, as `weigh` has it
vf total_single(const Task& task, vf sink, vf top) {
    typedef float Heads __attribute__((vector_size(SINGLE * 4)));
    Heads sum{};
    for (int64_t r = 0; r < task.rows; r++) {
        Heads weight;
        std::memcpy(&weight, task.scores + r * SINGLE, sizeof weight);
        sum = sum + weight;
    }
    vf all{};
    std::memcpy(&all, &sum, sizeof sum);
    return all + exp(sink - top);
}

// phase 3: strips of columns, and the others by panels
void sum_single(const Task& task, int64_t c0, int64_t c1) {
    const AttentionCall& call = task.call;
    const auto fits = [&](int64_t c) {
        return c < c1 && has_strip(call.window, c) && (!task.block.entries || has_strip(call.entries, c));
    };
    for (int64_t c = c0, end; c < c1; c = end) {
        end = c + STRIP_COLUMNS;
        if (!fits(c)) {
            sum_panels(task, c, std::min(end, c1));
            continue;
        }
        while (end < c + STRIPS * STRIP_COLUMNS && fits(end)) end += STRIP_COLUMNS;
        each_part(task, 0, task.rows, [&](const Rows& rows, int64_t r, const Row* row, int64_t count) {
            add_values(rows, row, count, c, end, task.scores + r * SINGLE, task.output + c, task.columns);
        });
    }
}

// phase 3: output columns [c0, c1), whole vectors
void sum_values(const Task& task, int64_t c0, int64_t c1, const float* total) {
    const AttentionCall& call = task.call;
    for (int64_t x = 0; x < task.width; x++) std::fill_n(task.output + x * task.columns + c0, c1 - c0, 0.0f);
    if (task.single)
        sum_single(task, c0, c1);
    else
        sum_panels(task, c0, c1);
    for (int64_t x = 0; x < task.x; x++) {
        const float factor = 1.0f / total[x];
        const float* from = task.output + x * task.columns;
        float* to = call.out_THC + (task.block.first * call.heads + x) * call.dim;
        for (int64_t c = c0; c < std::min(c1, call.dim); c++) to[c] = from[c] * factor;
    }
}

// the rows that a block's queries read; -1 is nothing
void list_chosen(const AttentionCall& call, Block& block, Workspace& space) {
    if (!call.chosen_TK) return;
    space.list.clear();
    const int64_t* chosen = call.chosen_TK + block.first * call.chosen;
    for (int64_t k = 0; k < call.chosen; k++)
        if (chosen[k] >= 0) space.list.push_back(chosen[k]);
    block.entries = int64_t(space.list.size());
}

std::vector<Block> cut(const AttentionCall& call) {
    const int64_t most = call.chosen_TK ? 1 : std::clamp(MOST_ROWS / call.heads, int64_t(1), MOST_QUERIES);
    std::vector<Block> blocks;
    for (int64_t i = 0; i + 1 < call.runs_count; i++)
        for (int64_t t = call.runs[i]; t < call.runs[i + 1];) {
            const int64_t window_first = call.window_T2[2 * t];
            const Neighbours n = neighbours(call, t, call.runs[i + 1], most);
            Block block{t, n.last, window_first, n.window_end - window_first, 0};
            for (int64_t u = t; call.prefix_T && u < block.last; u++)
                block.entries = std::max(block.entries, call.prefix_T[u]);
            t = block.last;
            blocks.push_back(block);
        }
    return blocks;
}

// a part of [0, size), in steps
struct Share {
    int64_t from, to;
};
Share share(int64_t size, int64_t step, int64_t part, int64_t parts) {
    const int64_t steps = (size + step - 1) / step;
    return {std::min(size, steps * part / parts * step), std::min(size, steps * (part + 1) / parts * step)};
}

// keys, then weights, then columns are divided
void run_single(const Task& task, int threads) {
    const AttentionCall& call = task.call;
    std::vector<vf> tops(size_t(threads), splat(-INFINITY));
    parallel(threads, threads, [&](int64_t part) {
        const Share keys = share(task.rows, SINGLE_KEYS, part, threads);
        tops[size_t(part)] = score_single(task, keys.from, keys.to);
    });
    vf sink, top;
    for (int i = 0; i < W; i++) top[i] = sink[i] = call.sink_H[i % SINGLE % call.heads];
    for (const vf& some : tops)
        for (int i = 0; i < W; i++)
            for (int lane = i % SINGLE; lane < W; lane += SINGLE) top[i] = some[lane] > top[i] ? some[lane] : top[i];
    parallel(threads, threads, [&](int64_t part) {
        const Share rows = share(task.rows, W / SINGLE, part, threads);
        weigh_single(task, rows.from, rows.to, top);
    });
    parallel(threads, threads, [&](int64_t part) {
        const Share columns = share(task.columns, STRIP_COLUMNS, part, threads);
        const vf total = total_single(task, sink, top);
        sum_values(task, columns.from, columns.to, (const float*)&total);
    });
}

void run_alone(const AttentionCall& call, Block block) {
    list_chosen(call, block, own);
    const Task task(call, block, own);
    arrange_queries(task);
    if (task.single) return run_single(task, 1);
    score_rows(task, 0, task.rows);
    weigh(task, 0, task.width);
    sum_values(task, 0, task.columns, task.total);
}

// all threads on one block: keys, then query rows, then columns are divided
void run_together(const AttentionCall& call, Block block) {
    list_chosen(call, block, own);
    const Task task(call, block, own);
    arrange_queries(task);
    const int threads = call.threads;
    if (task.single) return run_single(task, threads);
    parallel(threads, threads, [&](int64_t part) {
        const Share keys = share(task.rows, 12, part, threads);
        score_rows(task, keys.from, keys.to);
    });
    parallel(threads, threads, [&](int64_t part) {
        const Share rows = share(task.width, W, part, threads);
        weigh(task, rows.from, rows.to);
    });
    parallel(threads, threads, [&](int64_t part) {
        const Share columns = share(task.columns, W, part, threads);
        if (columns.from < columns.to) sum_values(task, columns.from, columns.to, task.total);
    });
}

}  // namespace

extern "C" void dsv4_sparse_attention(const AttentionCall* given) {
    const AttentionCall& call = *given;
    const std::vector<Block> blocks = cut(call);
    int64_t work = 0;
    for (const Block& b : blocks)
        work += (b.last - b.first) * call.heads * call.dim * (b.window_count + b.entries + call.chosen);
    const bool one = call.threads <= 1 || work < SMALL;
    const int64_t count = int64_t(blocks.size());
    if (!one && count < 2 * call.threads) {
        for (const Block& block : blocks) run_together(call, block);
        return;
    }
    parallel(one ? 1 : call.threads, count, [&](int64_t i) { run_alone(call, blocks[size_t(count - 1 - i)]); });
}
