// A whole step: embedding, blocks on residual streams, collapse, norm, head; or the same for a prediction block.
#include <algorithm>

#include "step_calls.h"

namespace dsv4 {

const float* floats_of(const StepRun& run, const void* x, int64_t count, Scratch& memory) {
    if (!run.bf16()) return (const float*)x;
    float* to = memory.floats(count);
    bf16_to_float((const uint8_t*)x, count, to);
    return to;
}

void to_activations(const StepRun& run, const float* x, int64_t count, void* y) {
    if (!run.bf16()) {
        std::memcpy(y, x, size_t(count) * sizeof(float));
        return;
    }
    int64_t i = 0;
    for (; i + W <= count; i += W) store_either(y, true, i, load(x + i));
    for (; i < count; i++) put_either(y, true, i, x[i]);
}

Product product_of(const StepRun& run, const StepLinear& layer, const void* x, void* y) {
    const Weight w{int(layer.kind), layer.weight, layer.scale, layer.outputs, layer.inputs};
    return {w, x, w.K, y, w.N, run.bf16(), layer.scale != nullptr};
}

Product float_product(const StepLinear& layer, const float* x, float* y, int64_t pitch) {
    const Weight w{int(layer.kind), layer.weight, layer.scale, layer.outputs, layer.inputs};
    return {w, x, w.K, y, pitch, false, false};
}

void apply_together(const StepRun& run, const std::vector<Product>& products, int64_t rows) {
    double work = 0;
    for (const Product& p : products) work += double(rows) * double(p.w.N * p.w.K);
    linear_together(products.data(), int64_t(products.size()), rows, run.threads(work));
}

void apply(const StepRun& run, const StepLinear& layer, const void* x, int64_t rows, void* y) {
    apply_together(run, {product_of(run, layer, x, y)}, rows);
}

void apply_float(const StepRun& run, const StepLinear& layer, const float* x, int64_t rows, float* y, int64_t pitch) {
    apply_together(run, {float_product(layer, x, y, pitch)}, rows);
}

int step_mixture(const StepRun& run, int64_t index, const void* x, void* y) {
    const StepModel& m = run.model;
    const StepLayer& layer = m.layer[index];
    const int64_t T = run.T(), E = m.experts, K = m.per_token;
    float* score = run.space.score.floats(T * E);
    apply_float(run, layer.router, floats_of(run, x, T * m.dim, run.space.x_float), T, score, E);
    dsv4_affinity(score, score, T * E, run.threads(double(T * E) * 16));
    std::vector<int64_t>& ids = run.space.ids;
    ids.resize(size_t(T * K));
    if (layer.router_bias)
        dsv4_choose_experts(score, layer.router_bias, ids.data(), T, E, K, run.threads(double(T * E) * 4));
    else
        for (int64_t t = 0; t < T; t++)
            for (int64_t k = 0; k < K; k++) ids[size_t(t * K + k)] = layer.router_table[run.batch.token_T[t] * K + k];
    for (const int64_t id : ids)
        if (id < 0 || id >= E) return 5;
    if (layer.used_E)
        for (const int64_t id : ids) layer.used_E[id]++;
    step_learn_guesses(run, layer);
    float* weight = run.space.expert_weight.floats(T * K);
    dsv4_expert_weights(score, ids.data(), weight, T, E, K, m.expert_scale);
    const StepExperts& e = layer.experts;
    float* out = run.bf16() ? run.space.mixed.floats(T * m.dim) : (float*)y;
    const int64_t unread =
        dsv4_expert_mlp(x, ids.data(), weight, e.w1, e.w2, e.w3, e.s1, e.s2, e.s3, e.near, out, T, K, E, m.dim,
                    e.inner, int(e.kind), int(e.shared_kind), e.kind > KIND_BF16, e.shared_kind > KIND_BF16, m.limit,
                    run.bf16(), run.threads(double(T) * double(K + 1) * 3.0 * double(m.dim * e.inner)));
    if (run.bf16()) to_activations(run, out, T * m.dim, y);
    return unread == -1 ? 0 : 6;
}

namespace {

// the streams a backbone starts from: each token's embedding in all of them
void embed(const StepRun& run, char* x) {
    const StepModel& m = run.model;
    const int64_t size = m.dim * run.bytes();
    for (int64_t t = 0; t < run.T(); t++)
        for (int64_t s = 0; s < m.streams; s++)
            std::memcpy(x + (t * m.streams + s) * size, (const char*)m.embedding + run.batch.token_T[t] * size, size);
}

// the streams a prediction block starts from: e_proj(norm(embedding of the next token)) + h_proj(norm(stream))
void join_prediction(const StepRun& run, void* x) {
    const StepModel& m = run.model;
    const int64_t T = run.T(), S = m.streams, D = m.dim, size = D * run.bytes();
    char* embedded = (char*)run.act(run.space.y, T * D);
    for (int64_t t = 0; t < T; t++)
        std::memcpy(embedded + t * size, (const char*)m.embedding + run.batch.token_T[t] * size, size);
    dsv4_rms_norm(embedded, m.embedded_norm, embedded, T, D, m.norm_eps, run.bf16(), run.threads(double(T * D)));
    void* shared = run.act(run.space.sub, T * D);
    apply(run, m.embedded_proj, embedded, T, shared);
    void* streams = run.act(run.space.other_streams, T * S * D);
    dsv4_rms_norm(run.batch.given_TSD, m.streams_norm, streams, T * S, D, m.norm_eps, run.bf16(),
                  run.threads(double(T * S * D)));
    apply(run, m.streams_proj, streams, T * S, x);
    for (int64_t r = 0; r < T * S; r++)
        for (int64_t d = 0; d < D; d++) {
            const float sum = get_either(shared, run.bf16(), r / S * D + d) + get_either(x, run.bf16(), r * D + d);
            put_either(x, run.bf16(), r * D + d, sum);
        }
}

// Streams -> streams of one block; x and `other` change places twice. Returns 0 or the code of a problem.
int block(const StepRun& run, int64_t index, void* x, void* other) {
    const StepModel& m = run.model;
    const int64_t T = run.T(), S = m.streams, D = m.dim;
    void *y = run.act(run.space.y, T * D), *out = run.act(run.space.sub, T * D);
    float *post = run.space.post.floats(T * S), *comb = run.space.comb.floats(T * S * S);
    const int enter = run.threads(double(T) * double(S * D * (2 + S) * S));
    const int combine = run.threads(double(T) * double(S * S * D));
    for (int half = 0; half < 2; half++) {
        const StepConnection& c = half ? m.layer[index].mixture : m.layer[index].attention;
        dsv4_hyper_enter(x, c.fn, c.scale, c.base, c.norm, y, post, comb, T, S, D, int(m.iterations),
                         m.connection_eps, m.norm_eps, run.bf16(), enter);
        if (half == 0)
            step_attention(run, index, y, out);
        else if (const int wrong = step_mixture(run, index, y, out))
            return wrong;
        dsv4_hyper_combine(out, x, post, comb, other, T, S, D, run.bf16(), combine);
        std::swap(x, other);
    }
    return 0;
}

// the arena of the first layer that has one
std::shared_ptr<Arena> arena_of_model(const StepModel& m) {
    for (int64_t i = 0; i < m.layers; i++)
        if (auto arena = arena_of(m.layer[i].experts.w1, m.experts)) return arena;
    return nullptr;
}

// the mean of the streams of each token, as the draft head reads a layer: row t of place `at` among `taps`
void tap(const StepRun& run, const void* x, int64_t at, int64_t taps, void* y) {
    const int64_t S = run.model.streams, D = run.model.dim;
    const float share = float(1.0 / double(S));
    for (int64_t t = 0; t < run.T(); t++)
        for (int64_t d = 0; d < D; d++) {
            float total = get_either(x, run.bf16(), t * S * D + d);
            for (int64_t s = 1; s < S; s++) total += get_either(x, run.bf16(), (t * S + s) * D + d);
            put_either(y, run.bf16(), (t * taps + at) * D + d, total * share);
        }
}

void head(const StepRun& run) {
    const StepModel& m = run.model;
    const int64_t N = run.batch.wanted, size = m.streams * m.dim * run.bytes();
    char* rows = (char*)run.act(run.space.other_streams, N * m.streams * m.dim);
    for (int64_t n = 0; n < N; n++)
        std::memcpy(rows + n * size, (const char*)run.batch.x_TSD + run.batch.wanted_N[n] * size, size);
    void* y = run.act(run.space.head_y, N * m.dim);
    void* collapsed = run.batch.rows_ND ? run.batch.rows_ND : y;
    dsv4_hyper_enter(rows, m.head.fn, m.head.scale, m.head.base, run.batch.rows_ND ? nullptr : m.head.norm, collapsed,
                     nullptr, nullptr, N, m.streams, m.dim, 1, m.connection_eps, m.norm_eps, run.bf16(),
                     run.threads(double(N) * double(m.streams * m.streams * m.dim)));
    if (run.batch.rows_ND)
        dsv4_rms_norm(collapsed, m.head.norm, y, N, m.dim, m.norm_eps, run.bf16(), run.threads(double(N * m.dim)));
    const float* y_float = floats_of(run, y, N * m.dim, run.space.head_float);
    apply_float(run, m.output, y_float, N, run.batch.logits_NV, m.vocabulary);
}

}  // namespace

}  // namespace dsv4

using namespace dsv4;

// of this thread's last `dsv4_step_plan`, for the `dsv4_step` that follows it
static thread_local StepPlan planned;

// Plans the step, and fills the angles in radians, one row of P per turn: the T tokens in plain layers, the T tokens in
// the others, then for each ratio (in the order of the layers) the entries finished. Returns as `make_plan`.
extern "C" int dsv4_step_plan(const StepModel* model, const StepStore* store, const StepBatch* batch, float* angle) {
    planned = StepPlan{};
    if (const int wrong = make_plan(*model, *store, *batch, planned)) return wrong;
    const auto fill = [&](const std::vector<int64_t>& positions, const float* frequency) {
        for (const int64_t position : positions)
            for (int64_t p = 0; p < model->pairs; p++) *angle++ = float(position) * frequency[p];
    };
    fill(planned.position_T, model->plain_P);
    fill(planned.position_T, model->long_P);
    for (const RatioPlan& ratio : planned.ratios) fill(ratio.position_N, model->long_P);
    return 0;
}

// Runs the step that was planned for the same arguments: writes the store's rows, the streams after the last block, and
// the logits of the wanted rows. Returns 0, 5 for an id that names no expert, or 6 for an expert that could not be read
// from its file.
extern "C" int dsv4_step(const StepModel* model, const StepStore* store, const StepBatch* batch) {
    static thread_local StepSpace space;
    const StepPlaces* const given = batch->places;
    const ThreadPlaces places = given ? ThreadPlaces{given->cpus, given->first, given->node, given->threads, given->nodes}
                                      : ThreadPlaces{};
    const TeamUse use(int(batch->threads), given ? &places : nullptr);
    const StepRun run{*model, *store, *batch, planned, space, use.team(), arena_of_model(*model)};
    if (batch->given_TSD)
        join_prediction(run, batch->x_TSD);
    else
        embed(run, (char*)batch->x_TSD);
    void* other = run.act(space.other_streams, batch->tokens * model->streams * model->dim);
    const StepDraft* draft = model->draft;
    void* taps = draft ? run.act(space.taps, batch->tokens * draft->taps * model->dim) : nullptr;
    int wrong = 0;
    for (int64_t i = 0, at = 0; i < model->layers && !wrong; i++) {
        residency_progress(run.arena.get(), i, model->layers);
        step_read_ahead(run, i, batch->x_TSD);
        wrong = block(run, i, batch->x_TSD, other);
        if (draft && at < draft->taps && draft->tap_layers[at] == i) tap(run, batch->x_TSD, at++, draft->taps, taps);
    }
    residency_progress(run.arena.get(), 0, 0);
    if (!wrong && draft) step_context(run, taps);
    if (!wrong && batch->wanted) head(run);
    space.trim();
    return wrong;
}
