// Where the rows of a step lie: the index arithmetic of dsv4/cache/layers.py and dsv4/model/inputs.py.
#include <algorithm>

#include "step.h"

namespace dsv4 {

namespace {

int64_t ring_rows(const RatioPlan& plan, const StepStore& store) {
    return (plan.overlap ? 2 * plan.ratio : plan.ratio) - 1 + store.taken_back;
}

// how many of the last `tokens` tokens a compressor still needs
int64_t tail_length(const RatioPlan& plan, int64_t tokens) {
    int64_t closed = tokens / plan.ratio;
    if (plan.overlap) closed = std::max<int64_t>(0, closed - 1);
    return tokens - closed * plan.ratio;
}

// new rows [row, row + count) of positions old, old + 1, ... that a ring of `size` rows keeps
void keep_last(RingPlan& ring, int64_t slot, int64_t size, int64_t row, int64_t old, int64_t count) {
    for (int64_t i = std::max<int64_t>(0, count - size); i < count; i++) {
        ring.keep.push_back(row + i);
        ring.keep_at.push_back(slot * size + (old + i) % size);
    }
}

int check(const StepModel& model, const StepStore& store, const StepBatch& batch) {
    int64_t tokens = 0, page = 0;
    for (int64_t t = 0; t < batch.tokens; t++)
        if (batch.token_T[t] < 0 || batch.token_T[t] >= model.vocabulary) return 1;
    for (int64_t b = 0; b < batch.sequences; b++) {
        if (batch.slot_B[b] < 0 || batch.slot_B[b] >= store.slots) return 2;
        if (batch.count_B[b] < 1 || batch.cached_B[b] < 0) return 4;
        const int64_t end = batch.cached_B[b] + batch.count_B[b];
        bool paged = false;
        for (int64_t i = 0; i < model.layers; i++) paged |= model.layer[i].ratio > 0;
        if (paged && batch.page_count_B[b] * store.page_tokens < end) return 3;
        for (int64_t i = 0; i < batch.page_count_B[b]; i++, page++)
            if (batch.pages[page] < 0 || batch.pages[page] >= store.pages) return 3;
        tokens += batch.count_B[b];
    }
    return tokens == batch.tokens ? 0 : 4;
}

void plan_tokens(const StepModel& model, const StepStore& store, const StepBatch& batch, StepPlan& plan) {
    const int64_t ring = store.window_rows;
    plan.runs.push_back(0);
    for (int64_t b = 0; b < batch.sequences; b++) {
        const int64_t old = batch.cached_B[b], count = batch.count_B[b], row = plan.runs.back();
        const int64_t from = std::min(batch.window_from_B[b], old);
        // a draft block reads the whole window before itself, a token one row less and itself
        const int64_t first = std::max({old - model.window + (batch.block ? 0 : 1), from, int64_t(0)});
        const int64_t start = int64_t(plan.window_rows.size());
        for (int64_t p = first; p < old; p++) {
            plan.window_rows.push_back(int64_t(plan.window.kept.size()));
            plan.window.kept.push_back(batch.slot_B[b] * ring + p % ring);
        }
        for (int64_t i = 0; i < count; i++) {
            plan.window_rows.push_back(-1 - (row + i));
            plan.position_T.push_back(old + i);
            plan.sequence_T.push_back(b);
            const int64_t last = start + old - first + (batch.block ? count : i + 1);
            plan.window_T2.push_back(batch.block ? start : std::max(start, last - model.window));
            plan.window_T2.push_back(last);
        }
        if (!batch.block) keep_last(plan.window, batch.slot_B[b], ring, row, old, count);
        plan.runs.push_back(row + count);
        plan.widest = std::max(plan.widest, batch.page_count_B[b]);
    }
}

// what one compressor does with the new tokens of sequence b; kept: joined rows of all sequences that are kept ones
void plan_sequence(const StepBatch& batch, int64_t b, const int64_t* pages, int64_t row, int64_t ring, RatioPlan& plan) {
    const int64_t old = batch.cached_B[b], count = batch.count_B[b], ratio = plan.ratio;
    const int64_t first = old / ratio, end = (old + count) / ratio, slot = batch.slot_B[b];
    keep_last(plan.tail, slot, ring, row, old, count);
    for (int64_t i = 0; i < count; i++) plan.visible_T.push_back((old + i + 1) / ratio);
    plan.longest = std::max(plan.longest, end);
    if (first == end) return;
    // joined rows for now: kept ones counted from 0, new ones as -1 - row
    const int64_t from = old - tail_length(plan, old), kept = int64_t(plan.tail.kept.size());
    for (int64_t p = from; p < old; p++) plan.tail.kept.push_back(slot * ring + p % ring);
    const auto joined = [&](int64_t p) { return p < old ? kept + p - from : -1 - (row + p - old); };
    for (int64_t entry = first; entry < end; entry++) {
        for (int64_t i = 0; i < ratio; i++) {
            plan.own_Nm.push_back(joined(entry * ratio + i));
            if (plan.overlap) plan.previous_Nm.push_back(entry ? joined((entry - 1) * ratio + i) : INT64_MIN);
        }
        plan.position_N.push_back(entry * ratio);
        const bool there = entry < batch.entries_from_B[b] / ratio;
        plan.target_N.push_back(there ? -1 : pages[entry / plan.per_page] * plan.per_page + entry % plan.per_page);
    }
}

RatioPlan plan_ratio(const StepStore& store, const StepBatch& batch, const StepPlan& step, const StepLayer& layer) {
    const int64_t per_page = store.page_tokens / layer.ratio;
    RatioPlan plan{layer.ratio, per_page, 0, layer.overlap != 0, {}, {}, {}, {}, {}, {}, {}};
    const int64_t* pages = batch.pages;
    plan.first_BP.assign(size_t(batch.sequences * step.widest), 0);
    for (int64_t b = 0; b < batch.sequences; b++) {
        plan_sequence(batch, b, pages, step.runs[size_t(b)], ring_rows(plan, store), plan);
        for (int64_t i = 0; i < batch.page_count_B[b]; i++)
            plan.first_BP[size_t(b * step.widest + i)] = pages[i] * plan.per_page;
        pages += batch.page_count_B[b];
    }
    const int64_t kept = int64_t(plan.tail.kept.size());
    const auto settle = [kept](int64_t row) { return row == INT64_MIN ? -1 : row < 0 ? kept - 1 - row : row; };
    for (int64_t& row : plan.own_Nm) row = settle(row);
    for (int64_t& row : plan.previous_Nm) row = settle(row);
    return plan;
}

}  // namespace

const RatioPlan& StepPlan::of(int64_t ratio) const {
    for (const RatioPlan& plan : ratios)
        if (plan.ratio == ratio) return plan;
    __builtin_unreachable();
}

int make_plan(const StepModel& model, const StepStore& store, const StepBatch& batch, StepPlan& plan) {
    if (const int wrong = check(model, store, batch)) return wrong;
    plan_tokens(model, store, batch, plan);
    for (int64_t i = 0; i < model.layers; i++) {
        const int64_t ratio = model.layer[i].ratio;
        const auto same = [ratio](const RatioPlan& p) { return p.ratio == ratio; };
        if (ratio && std::none_of(plan.ratios.begin(), plan.ratios.end(), same))
            plan.ratios.push_back(plan_ratio(store, batch, plan, model.layer[i]));
    }
    return 0;
}

}  // namespace dsv4
