// Gradients of sparse attention, the scores computed again a block of queries at a time.
//
// X = (queries of a block) * H query rows; R rows of a block: its window rows, then every entry that one of its queries
// reads, filled up with zero rows to whole vectors. Blocks follow one another and threads share out the work within a
// block, so every gradient is added up in the same order whatever the number of threads.
#include <algorithm>

#include "attention_parts.h"
#include "native/product.h"

using namespace dsv4;

namespace {

constexpr int64_t SMALL = 200000;  // multiply-adds that one thread does sooner than two

struct Room {
    Scratch panel, mask, weights, d_scores, d_rows, sinks;
    std::vector<int64_t> entries;  // rows of the entries of the block, in order
    std::vector<int32_t> place;    // of each entry row in that list, only good for rows in it

    void trim() {
        for (Scratch* memory : {&panel, &mask, &weights, &d_scores, &d_rows, &sinks}) memory->trim();
    }
};

// the entry rows that the part's queries read, each once
void list_entries(const AttentionCall& call, const Part& part, Room& room) {
    room.entries.clear();
    if (call.prefix_T) {
        const int64_t most = *std::max_element(call.prefix_T + part.first, call.prefix_T + part.last);
        const int64_t* first = call.first_BP + call.sequence_T[part.first] * call.pages;
        for (int64_t e = 0; e < most; e++) room.entries.push_back(first[e / call.per_page] + e % call.per_page);
    }
    if (call.chosen_TK) {
        const int64_t* chosen = call.chosen_TK + part.first * call.chosen;
        const int64_t* end = call.chosen_TK + part.last * call.chosen;
        int64_t low = INT64_MAX, high = -1;
        for (const int64_t* c = chosen; c < end; c++)
            if (*c >= 0) low = std::min(low, *c), high = std::max(high, *c);
        for (int64_t row = low; row <= high; row++) room.place[size_t(row)] = -1;
        for (const int64_t* c = chosen; c < end; c++)
            if (*c >= 0) room.place[size_t(*c)] = 0;
        for (int64_t row = low; row <= high; row++)
            if (room.place[size_t(row)] == 0) {
                room.place[size_t(row)] = int32_t(room.entries.size());
                room.entries.push_back(row);
            }
    }
}

// One block on its way; threads share everything.
struct Task {
    const AttentionBackward& back;
    const AttentionCall& call;
    Part part;
    Room& room;
    int64_t dim, heads, x, rows, width;
    float *panel, *mask, *weights, *d_scores, *d_rows;

    Task(const AttentionBackward& b, const Part& p, Room& r) : back(b), call(b.forward), part(p), room(r) {
        dim = call.dim, heads = call.heads;
        x = (p.last - p.first) * heads;
        rows = p.window_count + int64_t(r.entries.size());
        width = round_up(rows, W);
        panel = r.panel.floats(width * dim);
        mask = r.mask.floats((p.last - p.first) * width);
        weights = r.weights.floats(x * width);
        d_scores = r.d_scores.floats(x * width);
        d_rows = r.d_rows.floats(width * dim);
    }
    const float* of_queries(const float* p) const { return p + part.first * heads * dim; }
};

// One query row: plain products become weights, products with the output's gradient become those of the scores. Returns
// what its sink's gradient gets.
float soften(const Task& task, const float* mask, float sink, float inner, float* weights, float* d_scores) {
    const vf scale = splat(task.call.scale);
    vf top = splat(sink), sum{};
    for (int64_t r = 0; r < task.width; r += W) {
        const vf score = fma(load(weights + r), scale, load(mask + r));
        top = max(score, top);
        store(weights + r, score);
    }
    top = splat(largest(top));
    for (int64_t r = 0; r < task.width; r += W) {
        const vf weight = exp(load(weights + r) - top);
        sum = sum + weight;
        store(weights + r, weight);
    }
    const float own = exp(splat(sink) - top)[0], factor = 1.0f / (dsv4::sum(sum) + own);
    // d score = weight * (d weight - sum of weight * d weight), the sum being do . o
    for (int64_t r = 0; r < task.width; r += W) {
        const vf weight = load(weights + r) * factor;
        store(weights + r, weight);
        store(d_scores + r, (load(d_scores + r) - inner) * weight * scale);
    }
    return -own * factor * inner;
}

// queries [from, to) of the block: their weights, the gradients of their scores and their own
void of_queries(const Task& task, Share queries) {
    const int64_t heads = task.heads, dim = task.dim, width = task.width;
    const int64_t x0 = queries.from * heads, count = (queries.to - queries.from) * heads;
    if (count <= 0) return;
    const View panel = rows_view(task.panel, dim);
    const float* q = task.of_queries(task.call.q_THC) + x0 * dim;
    const float* grad = task.of_queries(task.back.grad_THC) + x0 * dim;
    const float* out = task.of_queries(task.call.out_THC) + x0 * dim;
    float *weights = task.weights + x0 * width, *d_scores = task.d_scores + x0 * width;
    float* sinks = task.room.sinks.floats(0) + task.part.first * heads + x0;
    product(rows_view(q, dim), panel.turned(), weights, width, count, width, dim);
    product(rows_view(grad, dim), panel.turned(), d_scores, width, count, width, dim);
    for (int64_t i = 0; i < count; i++) {
        const int64_t query = (x0 + i) / heads;
        float* mask = task.mask + query * width;
        if (i % heads == 0) mask_rows(task.call, task.part, task.width, task.room.place, task.part.first + query, mask);
        const float inner = dot(grad + i * dim, out + i * dim, dim);
        sinks[i] = soften(task, mask, task.call.sink_H[i % heads], inner, weights + i * width, d_scores + i * width);
    }
    float* d_q = task.back.d_q_THC + (task.part.first * heads + x0) * dim;
    product(rows_view(d_scores, width), panel, d_q, dim, count, dim, width);
}

// rows [from, to) of the block: their gradients, added to those of other blocks
void of_rows(const Task& task, Share rows) {
    const int64_t dim = task.dim, count = rows.to - rows.from;
    if (count <= 0) return;
    const View weights = rows_view(task.weights, task.width).turned();
    const View d_scores = rows_view(task.d_scores, task.width).turned();
    const View grad = rows_view(task.of_queries(task.back.grad_THC), dim);
    const View q = rows_view(task.of_queries(task.call.q_THC), dim);
    float* own = task.d_rows + rows.from * dim;
    product(weights.at(rows.from, 0), grad, own, dim, count, dim, task.x);
    product(d_scores.at(rows.from, 0), q, own, dim, count, dim, task.x, Write::ADD);
    for (int64_t r = rows.from; r < rows.to; r++, own += dim) {
        const int64_t entry = r - task.part.window_count;
        float* to = entry < 0 ? task.back.d_window_WC + (task.part.window_first + r) * dim
                              : task.back.d_entries_MC + task.room.entries[size_t(entry)] * dim;
        for (int64_t c = 0; c < dim; c++) to[c] += own[c];
    }
}

void run(const AttentionBackward& back, const Part& part, Room& room, int threads) {
    list_entries(back.forward, part, room);
    const Task task(back, part, room);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        load_panel(task.call, part, room.entries, share(task.width), task.panel);
#pragma omp barrier
        of_queries(task, share(part.last - part.first));
#pragma omp barrier
        of_rows(task, share(task.rows));
    }
}

}  // namespace

extern "C" void dsv4_sparse_attention_backward(const AttentionBackward* given) {
    static thread_local Room room;
    const AttentionBackward& back = *given;
    const AttentionCall& call = back.forward;
    const float* sinks = room.sinks.floats(back.queries * call.heads);
    if (call.chosen_TK) room.place.resize(size_t(back.entry_rows));
    for (const Part& part : cut(call)) {
        const double rows = double(part.window_count + call.chosen);
        const bool small = double(part.last - part.first) * double(call.heads * call.dim) * rows < SMALL;
        run(back, part, room, small ? 1 : call.threads);
    }
    for (int64_t h = 0; h < call.heads; h++) {
        double total = 0;
        for (int64_t t = 0; t < back.queries; t++) total += sinks[t * call.heads + h];
        back.d_sink_H[h] = float(total);
    }
    room.trim();
}
