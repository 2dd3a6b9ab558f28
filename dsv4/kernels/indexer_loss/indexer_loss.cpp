// The indexer's KL to its own layer's attention, with its gradients, a part of neighbouring queries at a time.
//
// Q queries of a part; R panel rows: its window rows, then its S considered entries, filled up with zero rows to whole
// vectors; J indexer heads. As in the backward pass of attention, every gradient is added up in the same order whatever
// the number of threads.
#include <algorithm>
#include <cmath>

#include "native/product.h"
#include "sparse_attention/attention_parts.h"

using namespace dsv4;

namespace {

constexpr double SMALL = 200000;  // multiply-adds that one thread does sooner than two

struct Room {
    Scratch panel, keys, mask, weights, target, dots, d_keys;
    std::vector<int64_t> rows;    // of the part's entries, in order
    std::vector<int32_t> place;   // of each entry number in that list, only good for numbers in it

    void trim() {
        for (Scratch* memory : {&panel, &keys, &mask, &weights, &target, &dots, &d_keys}) memory->trim();
    }
};

// One part on its way; threads share everything.
struct Task {
    const IndexerLossCall& call;
    const AttentionCall& read;
    Part part;
    Room& room;
    int64_t queries, entries, some, width;  // some: entries filled up to vectors
    float *panel, *keys, *mask, *weights, *target, *dots, *d_keys;

    Task(const IndexerLossCall& c, const Part& p, Room& r) : call(c), read(c.attention), part(p), room(r) {
        queries = p.last - p.first, entries = int64_t(r.rows.size());
        some = round_up(entries, W), width = p.window_count + some;
        panel = r.panel.floats(width * read.dim);
        keys = r.keys.floats(some * c.dim);
        mask = r.mask.floats(queries * width);
        weights = r.weights.floats(queries * read.heads * width);
        target = r.target.floats(queries * some);
        dots = r.dots.floats(queries * c.heads * some);
        d_keys = r.d_keys.floats(some * c.dim);
    }
};

// the rows of the entries that the part's queries consider, each once
void list_entries(const IndexerLossCall& call, const Part& part, Room& room) {
    const AttentionCall& read = call.attention;
    const int64_t* first = read.first_BP + read.sequence_T[part.first] * read.pages;
    const auto add = [&](int64_t entry) { room.rows.push_back(first[entry / read.per_page] + entry % read.per_page); };
    room.rows.clear();
    if (!read.chosen_TK) {
        const int64_t most = *std::max_element(read.prefix_T + part.first, read.prefix_T + part.last);
        for (int64_t entry = 0; entry < most; entry++) add(entry);
        return;
    }
    const int64_t* chosen = read.chosen_TK + part.first * read.chosen;
    const int64_t* end = read.chosen_TK + part.last * read.chosen;
    int64_t most = -1;
    for (const int64_t* c = chosen; c < end; c++) most = std::max(most, *c);
    room.place.assign(size_t(most + 1), -1);
    for (const int64_t* c = chosen; c < end; c++)
        if (*c >= 0) room.place[size_t(*c)] = 0;
    for (int64_t entry = 0; entry <= most; entry++)
        if (room.place[size_t(entry)] == 0) {
            room.place[size_t(entry)] = int32_t(room.rows.size());
            add(entry);
        }
}

// One query row: adds what it gives to each entry, of its softmax over window, entries and sink, to `target`.
void add_head(const Task& task, const float* mask, float sink, float* weights, float* target) {
    const vf scale = splat(task.read.scale);
    const int64_t whole = task.width / W * W, rest = task.width - whole;
    vf top = splat(sink), sum{};
    for (int64_t r = 0; r < whole; r += W) {
        const vf score = fma(load(weights + r), scale, load(mask + r));
        top = max(score, top);
        store(weights + r, score);
    }
    float most = largest(top), tail = 0;
    for (int64_t r = whole; r < task.width; r++) {
        weights[r] = fma(weights[r], task.read.scale, mask[r]);
        most = std::max(most, weights[r]);
    }
    for (int64_t r = 0; r < whole; r += W) {
        const vf weight = exp(load(weights + r) - most);
        sum = sum + weight;
        store(weights + r, weight);
    }
    if (rest) {
        // lanes past the end must not count
        const vf last = exp(load_part(weights + whole, int(rest)) - most);
        store_part(weights + whole, last, int(rest));
        for (int64_t i = 0; i < rest; i++) tail += last[i];
    }
    const float factor = 1.0f / (dsv4::sum(sum) + tail + exp(splat(sink - most))[0]);
    const float* own = weights + task.part.window_count;
    for (int64_t s = 0; s < task.some; s += W) store(target + s, fma(load(own + s), splat(factor), load(target + s)));
}

// `target` over all heads becomes a distribution; zeros where it is nothing
void normalise(const Task& task, float* target) {
    vf sum{};
    for (int64_t s = 0; s < task.some; s += W) sum = sum + load(target + s);
    const vf factor = splat(1.0f / std::max(dsv4::sum(sum), 1e-30f));
    for (int64_t s = 0; s < task.some; s += W) store(target + s, load(target + s) * factor);
}

// The indexer's softmax of one query over its entries (`open`: 0, else -inf) minus the target, in place of the target;
// the KL. `dots` are the products of its heads with the keys.
float spread(const Task& task, const float* open, const float* dots, const float* weight, float* target) {
    const int64_t some = task.some, heads = task.call.heads;
    static thread_local Scratch memory;
    float* scores = memory.floats(some);
    vf top = splat(-INFINITY), sum{};
    for (int64_t s = 0; s < some; s += W) {
        vf score{};
        for (int64_t j = 0; j < heads; j++) score = fma(max(load(dots + j * some + s), vf{}), splat(weight[j]), score);
        score = score + load(open + s);
        top = max(score, top);
        store(scores + s, score);
    }
    const float most = largest(top);
    if (most == -INFINITY) return 0;  // nothing to consider: the target is zeros
    for (int64_t s = 0; s < some; s += W) sum = sum + exp(load(scores + s) - most);
    const float total = dsv4::sum(sum), rest = most + std::log(total);
    double kl = 0;
    for (int64_t s = 0; s < task.entries; s++)
        if (target[s] > 0) kl += double(target[s]) * double(std::log(target[s]) - (scores[s] - rest));
    const vf factor = splat(1.0f / total);
    for (int64_t s = 0; s < some; s += W)
        store(target + s, exp(load(scores + s) - most) * factor - load(target + s));
    return float(kl);
}

// One query: products of its indexer heads become their gradients; the gradients of its head weights.
void turn_back(const Task& task, const float* spread, const float* weight, float* dots, float* d_weight) {
    for (int64_t j = 0; j < task.call.heads; j++, dots += task.some) {
        vf sum{};
        for (int64_t s = 0; s < task.some; s += W) {
            const vf dot = load(dots + s), by = load(spread + s);
            sum = fma(max(dot, vf{}), by, sum);
            store(dots + s, dot > vf{} ? by * weight[j] : vf{});
        }
        d_weight[j] = dsv4::sum(sum);
    }
}

// queries [from, to) of the part: their loss, and the gradients of their indexer queries and head weights
void of_queries(const Task& task, Share queries) {
    const AttentionCall& read = task.read;
    const IndexerLossCall& call = task.call;
    const int64_t count = queries.to - queries.from, t0 = task.part.first + queries.from, width = task.width;
    if (count <= 0) return;
    float* weights = task.weights + queries.from * read.heads * width;
    float* dots = task.dots + queries.from * call.heads * task.some;
    const View panel = rows_view(task.panel, read.dim), keys = rows_view(task.keys, call.dim);
    const View q = rows_view(read.q_THC + t0 * read.heads * read.dim, read.dim);
    const View index = rows_view(call.index_TJI + t0 * call.heads * call.dim, call.dim);
    product(q, panel.turned(), weights, width, count * read.heads, width, read.dim);
    product(index, keys.turned(), dots, task.some, count * call.heads, task.some, call.dim);
    for (int64_t i = 0; i < count; i++) {
        const int64_t t = t0 + i;
        float* mask = task.mask + (queries.from + i) * width;
        float* target = task.target + (queries.from + i) * task.some;
        float* own = dots + i * call.heads * task.some;
        const float* weight = call.weight_TJ + t * call.heads;
        mask_rows(task.read, task.part, task.width, task.room.place, t, mask);
        std::fill_n(target, task.some, 0.0f);
        for (int64_t h = 0; h < read.heads; h++)
            add_head(task, mask, read.sink_H[h], weights + (i * read.heads + h) * width, target);
        normalise(task, target);
        call.loss_T[t] = spread(task, mask + task.part.window_count, own, weight, target);
        turn_back(task, target, weight, own, call.d_weight_TJ + t * call.heads);
    }
    float* d_index = call.d_index_TJI + t0 * call.heads * call.dim;
    product(rows_view(dots, task.some), keys, d_index, call.dim, count * call.heads, call.dim, task.some);
}

// entries [from, to) of the part: the gradients of their keys, added to those of other parts
void of_entries(const Task& task, Share entries) {
    const IndexerLossCall& call = task.call;
    const int64_t count = entries.to - entries.from, dim = call.dim;
    if (count <= 0) return;
    const View back = rows_view(task.dots, task.some).turned();
    const View index = rows_view(call.index_TJI + task.part.first * call.heads * dim, dim);
    float* own = task.d_keys + entries.from * dim;
    product(back.at(entries.from, 0), index, own, dim, count, dim, task.queries * call.heads);
    for (int64_t s = entries.from; s < entries.to; s++, own += dim) {
        float* to = call.d_index_MI + task.room.rows[size_t(s)] * dim;
        for (int64_t c = 0; c < dim; c++) to[c] += own[c];
    }
}

void run(const IndexerLossCall& call, const Part& part, Room& room) {
    list_entries(call, part, room);
    if (room.rows.empty()) return;
    const Task task(call, part, room);
    const double width = double(task.width * call.attention.heads * call.attention.dim + task.some * call.heads * call.dim);
    const int threads = double(task.queries) * width < SMALL ? 1 : call.attention.threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        load_panel(task.read, part, room.rows, share(task.width), task.panel);
        load_listed(call.index, room.rows, call.dim, share(task.some), task.keys);
#pragma omp barrier
        of_queries(task, share(task.queries));
#pragma omp barrier
        of_entries(task, share(task.entries));
    }
}

}  // namespace

// Gradients and losses must be zeros.
extern "C" void dsv4_indexer_loss(const IndexerLossCall* call) {
    static thread_local Room room;
    for (const Part& part : cut(call->attention)) run(*call, part, room);
    room.trim();
}
