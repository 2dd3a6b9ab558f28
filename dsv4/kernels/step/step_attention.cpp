// Attention of one layer of a step: queries, the rows it adds to the store, and what each query reads.
#include <algorithm>

#include "step_calls.h"

namespace dsv4 {

namespace {

// rows of `dim` values as the store will hold them: all but the rotary dims through FP8
void simulate_entry(const StepRun& run, void* rows, int64_t count) {
    const int64_t dim = run.model.head_dim, split = dim - 2 * run.model.pairs;
    float* room = run.space.wide.floats(dim);
    for (int64_t r = 0; r < count && run.model.simulate; r++) {
        char* row = (char*)rows + r * dim * run.bytes();
        through_fp8(as_floats(row, run.bf16(), split, room), room, split, ENTRY_BLOCK);
        to_activations(run, room, split, row);
    }
}

// indexer rows of `dim` values: Hadamard rotation, then FP4, each rounded to the activation dtype
void simulate_index(const StepRun& run, void* rows, int64_t count) {
    const int64_t dim = run.model.index_dim, packed = dim / 2 + dim / INDEX_BLOCK;
    if (!run.model.simulate) return;
    const float factor = float(1.0 / std::sqrt(double(dim)));
    float* room = run.space.wide.floats(dim);
    uint8_t* codes = (uint8_t*)run.space.codes.bytes(packed);
    for (int64_t r = 0; r < count; r++) {
        char* row = (char*)rows + r * dim * run.bytes();
        const float* from = as_floats(row, run.bf16(), dim, room);
        if (from != room) std::copy_n(from, dim, room);
        for (int64_t width = 1; width < dim; width *= 2)
            for (int64_t i = 0; i < dim; i += 2 * width)
                for (int64_t j = i; j < i + width; j++) {
                    const float even = room[j], odd = room[j + width];
                    room[j] = even + odd, room[j + width] = even - odd;
                }
        for (int64_t i = 0; i < dim; i++) room[i] = run.bf16() ? round_bf16(room[i] * factor) : room[i] * factor;
        dsv4_pack_index(room, codes, 1, dim, packed, 1);
        dsv4_unpack_index(codes, room, 1, dim, packed, 1);
        to_activations(run, room, dim, row);
    }
}

// rows as they are stored, `bytes` each
const uint8_t* stored(const StepRun& run, const void* rows, int64_t count, int64_t dim, int64_t bytes, bool index) {
    uint8_t* to = (uint8_t*)run.space.stored.bytes(count * bytes);
    const float* x = floats_of(run, rows, count * dim, run.space.wide);
    if (run.store.row_kind == ROW_FLOAT) return (const uint8_t*)x;
    if (run.store.row_kind == ROW_BF16)
        for (int64_t i = 0; i < count * dim; i++) ((uint16_t*)to)[i] = to_bf16(x[i]);
    else if (index)
        dsv4_pack_index(x, to, count, dim, bytes, run.threads(double(count * dim) * 8));
    else
        dsv4_pack_entry(x, to, count, dim, 2 * run.model.pairs, bytes, run.threads(double(count * dim) * 8));
    return to;
}

void put(const RatioPlan& plan, const uint8_t* rows, int64_t bytes, uint8_t* buffer) {
    for (int64_t n = 0; n < plan.entries(); n++)
        if (const int64_t to = plan.target_N[size_t(n)]; to >= 0)
            std::memcpy(buffer + to * bytes, rows + n * bytes, size_t(bytes));
}

Rows stored_rows(const StepRun& run, const uint8_t* first, int64_t dim, int64_t bytes, bool index) {
    const int64_t kind = run.store.row_kind == ROW_ENTRY && index ? ROW_INDEX : run.store.row_kind;
    return {first, bytes, dim, index ? 0 : 2 * run.model.pairs, int(kind)};
}

// Room for the rows of a compressor, kept ones and then the T new ones, and the products that make the new ones.
float* join_tail(const StepRun& run, const RatioPlan& plan, const StepCompressor& layer, const float* x,
                 Scratch& memory, std::vector<Product>& products) {
    const int64_t W2 = layer.kv.outputs, kept = int64_t(plan.tail.kept.size());
    float* joined = memory.floats((kept + run.T()) * 2 * W2);
    float* rows = joined + kept * 2 * W2;
    products.push_back(float_product(layer.kv, x, rows, 2 * W2));
    products.push_back(float_product(layer.gate, x, rows + W2, 2 * W2));
    return joined;
}

// The entries a compressor finishes, normalised and rotated, [N, dim] in activation dtype; the ring keeps the tail.
void* compress(const StepRun& run, const RatioPlan& plan, const StepCompressor& layer, float* joined, float* ring,
               int64_t dim) {
    const int64_t T = run.T(), W2 = layer.kv.outputs, kept = int64_t(plan.tail.kept.size());
    float* rows = joined + kept * 2 * W2;
    for (int64_t t = 0; t < T; t++) {
        const float* bias = layer.bias + run.plan.position_T[size_t(t)] % plan.ratio * W2;
        float* score = rows + t * 2 * W2 + W2;
        for (int64_t i = 0; i < W2; i++) score[i] += bias[i];
    }
    const size_t size = size_t(2 * W2) * sizeof(float);
    for (int64_t i = 0; i < kept; i++)
        std::memcpy(joined + i * 2 * W2, ring + plan.tail.kept[size_t(i)] * 2 * W2, size);
    for (size_t i = 0; i < plan.tail.keep.size(); i++)
        std::memcpy(ring + plan.tail.keep_at[i] * 2 * W2, rows + plan.tail.keep[i] * 2 * W2, size);
    const int64_t N = plan.entries();
    void* entry = run.act(run.space.entry, N * dim);
    if (!N) return entry;
    float* pooled = run.space.pooled.floats(N * dim);
    const int threads = run.threads(double(N * dim) * double(plan.ratio) * 8);
    const PoolCall call{joined, joined + W2, plan.own_Nm.data(), plan.overlap ? plan.previous_Nm.data() : nullptr,
                        pooled, 2 * W2, 2 * W2, N, plan.ratio, dim, threads};
    dsv4_pool(&call);
    to_activations(run, pooled, N * dim, entry);
    dsv4_rms_norm(entry, layer.norm, entry, N, dim, run.model.norm_eps, run.bf16(), run.threads(double(N) * dim));
    const Turn turn = run.of_entries(plan.ratio);
    rope(entry, turn.cos, turn.sin, entry, N, 1, dim, run.model.pairs, false, run.bf16(), run.threads(double(N) * dim));
    return entry;
}

// new window rows join those of the rings, as floats in the order of `window_rows`; the rings keep the last ones
const float* join_window(const StepRun& run, const StepStoreLayer& store, const void* kv) {
    const int64_t dim = run.model.head_dim, bytes = run.store.entry_bytes;
    const std::vector<int64_t>& order = run.plan.window_rows;
    const uint8_t* fresh = stored(run, kv, run.T(), dim, bytes, false);
    const Rows rings = stored_rows(run, store.window, dim, bytes, false);
    const Rows rows = stored_rows(run, fresh, dim, bytes, false);
    float* joined = run.space.window.floats(int64_t(order.size()) * dim + W);
    for (size_t i = 0; i < order.size(); i++) {
        float* to = joined + int64_t(i) * dim;
        if (order[i] >= 0)
            row_to_float(rings, run.plan.window.kept[size_t(order[i])], to);
        else
            row_to_float(rows, -1 - order[i], to);
        // as read back in the activation dtype
        for (int64_t c = 0; run.bf16() && c < dim; c++) to[c] = round_bf16(to[c]);
    }
    for (size_t i = 0; i < run.plan.window.keep.size(); i++)
        std::memcpy(store.window + run.plan.window.keep_at[i] * bytes, fresh + run.plan.window.keep[i] * bytes, bytes);
    return joined;
}

// products of kv to window rows as the store will hold them, in place, [T, C] in activation dtype
void window_rows(const StepRun& run, const StepLayer& layer, void* y) {
    const int64_t T = run.T(), C = run.model.head_dim;
    const Turn turn = run.of_tokens(layer.ratio);
    const int threads = run.threads(double(T * C));
    dsv4_rms_norm(y, layer.kv_norm, y, T, C, run.model.norm_eps, run.bf16(), threads);
    rope(y, turn.cos, turn.sin, y, T, 1, C, run.model.pairs, false, run.bf16(), threads);
    simulate_entry(run, y, T);
}

// the indexer's choice as rows of the store, [T, index_topk], -1 = none; q and weight are products
const int64_t* choose(const StepRun& run, const StepStoreLayer& store, const RatioPlan& plan, void* q,
                      const void* weight) {
    const StepModel& m = run.model;
    const int64_t T = run.T(), J = m.index_heads, I = m.index_dim, k = m.index_topk;
    const Turn turn = run.of_tokens(plan.ratio);
    rope(q, turn.cos, turn.sin, q, T, J, I, m.pairs, false, run.bf16(), run.threads(double(T) * J * I));
    simulate_index(run, q, T * J);
    float* scaled = run.space.index_weight_float.floats(T * J);
    for (int64_t i = 0; i < T * J; i++) {
        const float w = get_either(weight, run.bf16(), i) * m.index_scale;
        scaled[i] = run.bf16() ? round_bf16(w) : w;
    }
    std::vector<int64_t>& chosen = run.space.chosen;
    chosen.resize(size_t(T * k));
    const IndexCall call{floats_of(run, q, T * J * I, run.space.index_q_float), scaled,
                         stored_rows(run, store.index, I, run.store.index_bytes, true), plan.first_BP.data(),
                         run.plan.sequence_T.data(), plan.visible_T.data(), run.plan.runs.data(), chosen.data(),
                         int64_t(run.plan.runs.size()), run.plan.widest, plan.per_page, J, I, k,
                         std::min(k, plan.longest), run.threads(double(T * J * I) * double(plan.longest))};
    dsv4_index_topk(&call);
    for (int64_t t = 0; t < T; t++) {
        const int64_t* first = plan.first_BP.data() + run.plan.sequence_T[size_t(t)] * run.plan.widest;
        for (int64_t i = t * k; i < (t + 1) * k; i++) {
            int64_t& entry = chosen[size_t(i)];
            if (entry >= 0) entry = first[entry / plan.per_page] + entry % plan.per_page;
        }
    }
    return chosen.data();
}

// Where the products of a layer's input and of its latent go.
struct Projected {
    void *latent, *q, *kv;
    float *main, *index;  // rows of the compressors
    void *index_q, *index_weight;
    bool indexes;  // the queries read what the indexer chooses
};

// All products of the layer's input, then the queries of the latent.
Projected project_input(const StepRun& run, const StepLayer& layer, const void* x) {
    const StepModel& m = run.model;
    const int64_t T = run.T(), J = m.index_heads, rank = layer.q_a.outputs;
    Projected to{run.act(run.space.latent, T * rank), run.act(run.space.q, T * m.heads * m.head_dim),
                 run.act(run.space.kv, T * m.head_dim), nullptr, nullptr, nullptr, nullptr, false};
    std::vector<Product> of_x{product_of(run, layer.q_a, x, to.latent), product_of(run, layer.kv, x, to.kv)};
    std::vector<Product> of_latent{product_of(run, layer.q_b, to.latent, to.q)};
    if (layer.ratio) {
        const RatioPlan& plan = run.plan.of(layer.ratio);
        const float* x_float = floats_of(run, x, T * m.dim, run.space.x_float);
        to.main = join_tail(run, plan, layer.main, x_float, run.space.joined, of_x);
        if (plan.overlap) to.index = join_tail(run, plan, layer.index, x_float, run.space.index_joined, of_x);
        to.indexes = plan.overlap && plan.longest > m.index_topk;
        if (to.indexes) {
            to.index_q = run.act(run.space.index_q, T * J * m.index_dim);
            to.index_weight = run.act(run.space.index_weight, T * J);
            of_x.push_back(product_of(run, layer.index_weight, x, to.index_weight));
            of_latent.push_back(product_of(run, layer.index_q, to.latent, to.index_q));
        }
    }
    apply_together(run, of_x, T);
    dsv4_rms_norm(to.latent, layer.q_norm, to.latent, T, rank, m.norm_eps, run.bf16(), run.threads(double(T) * rank));
    apply_together(run, of_latent, T);
    return to;
}

// adds the layer's finished entries (and indexer keys) to the store and says which of them each query reads
void add_entries(const StepRun& run, const StepLayer& layer, const StepStoreLayer& store, const Projected& from,
                 AttentionCall& call) {
    const StepModel& m = run.model;
    const RatioPlan& plan = run.plan.of(layer.ratio);
    const int64_t N = plan.entries();
    void* entry = compress(run, plan, layer.main, from.main, store.main_tail, m.head_dim);
    simulate_entry(run, entry, N);
    put(plan, stored(run, entry, N, m.head_dim, run.store.entry_bytes, false), run.store.entry_bytes, store.entries);
    if (plan.overlap) {
        entry = compress(run, plan, layer.index, from.index, store.index_tail, m.index_dim);
        simulate_index(run, entry, N);
        put(plan, stored(run, entry, N, m.index_dim, run.store.index_bytes, true), run.store.index_bytes, store.index);
    }
    call.entries = stored_rows(run, store.entries, m.head_dim, run.store.entry_bytes, false);
    if (from.indexes) {
        call.chosen_TK = choose(run, store, plan, from.index_q, from.index_weight);
        call.chosen = m.index_topk;
    } else if (plan.longest) {
        call.prefix_T = plan.visible_T.data();
        call.first_BP = plan.first_BP.data();
        call.sequence_T = run.plan.sequence_T.data();
        call.pages = run.plan.widest;
        call.per_page = plan.per_page;
    }
}

// grouped low-rank output: heads in groups, each to its rank, then all to D
void project(const StepRun& run, const StepLayer& layer, const void* o, void* y) {
    const int64_t T = run.T(), G = run.model.groups, K = layer.o_a.inputs, rank = layer.o_a.outputs / G;
    void* low = run.act(run.space.low, T * G * rank);
    const int64_t bytes = run.bytes();
    const Weight all{int(layer.o_a.kind), layer.o_a.weight, layer.o_a.scale, G * rank, K};
    std::vector<Product> products;
    for (int64_t g = 0; g < G; g++)
        products.push_back({rows_of(all, g * rank, rank), (const char*)o + g * K * bytes, G * K,
                            (char*)low + g * rank * bytes, G * rank, run.bf16(), false});
    apply_together(run, products, T);
    apply(run, layer.o_b, low, T, y);
}

}  // namespace

void step_attention(const StepRun& run, int64_t index, const void* x, void* y) {
    const StepModel& m = run.model;
    const StepLayer& layer = m.layer[index];
    const StepStoreLayer& store = run.store.layer[index];
    const int64_t T = run.T(), H = m.heads, C = m.head_dim;
    const bool bf16 = run.bf16();
    const Turn turn = run.of_tokens(layer.ratio);
    const int few = run.threads(double(T * H * C));
    const Projected projected = project_input(run, layer, x);
    void *q = projected.q, *kv = projected.kv;
    dsv4_rms_norm(q, nullptr, q, T * H, C, m.norm_eps, bf16, few);
    rope(q, turn.cos, turn.sin, q, T, H, C, m.pairs, false, bf16, few);
    window_rows(run, layer, kv);

    float* out = run.space.attended.floats(T * H * C);
    AttentionCall call{};
    call.out_THC = out;
    if (layer.ratio) add_entries(run, layer, store, projected, call);
    call.window = {(const uint8_t*)join_window(run, store, kv), C * 4, C, 0, ROW_FLOAT};
    call.q_THC = floats_of(run, q, T * H * C, run.space.wide);
    call.window_T2 = run.plan.window_T2.data();
    call.runs = run.plan.runs.data();
    call.runs_count = int64_t(run.plan.runs.size());
    call.sink_H = layer.sink;
    call.heads = H, call.dim = C;
    call.scale = m.attention_scale;
    const int64_t longest = layer.ratio ? run.plan.of(layer.ratio).longest : 0;
    call.threads = run.threads(2.0 * double(T * H * C) * double(m.window + (call.chosen ? call.chosen : longest)));
    dsv4_sparse_attention(&call);
    void* o = bf16 ? q : out;
    if (bf16) to_activations(run, out, T * H * C, o);
    rope(o, turn.cos, turn.sin, o, T, H, C, m.pairs, true, bf16, few);
    project(run, layer, o, y);
}

void step_context(const StepRun& run, const void* taps) {
    const StepDraft& draft = *run.model.draft;
    const int64_t T = run.T(), D = run.model.dim, C = run.model.head_dim, bytes = run.store.entry_bytes;
    void* context = run.act(run.space.y, T * D);
    apply(run, draft.main_proj, taps, T, context);
    dsv4_rms_norm(context, draft.main_norm, context, T, D, run.model.norm_eps, run.bf16(), run.threads(double(T * D)));
    void* kv = run.act(run.space.kv, T * C);
    const RingPlan& ring = run.plan.window;
    for (int64_t s = 0; s < draft.stages; s++) {
        apply(run, draft.stage[s].kv, context, T, kv);
        window_rows(run, draft.stage[s], kv);
        const uint8_t* fresh = stored(run, kv, T, C, bytes, false);
        for (size_t i = 0; i < ring.keep.size(); i++)
            std::memcpy(draft.store[s].window + ring.keep_at[i] * bytes, fresh + ring.keep[i] * bytes, size_t(bytes));
    }
}

}  // namespace dsv4
