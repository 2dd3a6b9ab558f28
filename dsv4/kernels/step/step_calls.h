// The operations a step is made of, as the library exports them one by one, and what its parts share.
#pragma once
#include "sparse_attention/attention.h"
#include "matmul/gemm.h"
#include "moe/residency.h"
#include "quant/quant.h"
#include "rope/rope.h"
#include "step.h"

extern "C" {
void dsv4_rms_norm(const void* x, const float* weight, void* y, int64_t rows, int64_t dim, float eps, int bf16,
                   int threads);
void dsv4_hyper_enter(const void* x, const float* fn, const float* scale, const float* base, const float* norm_weight,
                      void* y, float* post, float* comb, int64_t T, int64_t S, int64_t D, int iterations, float eps,
                      float norm_eps, int bf16, int threads);
void dsv4_hyper_combine(const void* y, const void* x, const float* post, const float* comb, void* out, int64_t T,
                        int64_t S, int64_t D, int bf16, int threads);
void dsv4_affinity(const float* x, float* y, int64_t count, int threads);
void dsv4_choose_experts(const float* score, const float* bias, int64_t* ids, int64_t T, int64_t E, int64_t K,
                         int threads);
void dsv4_expert_weights(const float* score, const int64_t* ids, float* weight, int64_t T, int64_t E, int64_t K,
                         float scale);
int64_t dsv4_expert_mlp(const void* x, const int64_t* ids, const float* weight, const void* const* w1,
                        const void* const* w2, const void* const* w3, const void* const* s1, const void* const* s2,
                        const void* const* s3, const int64_t* near, float* out, int64_t T, int64_t K, int64_t E,
                        int64_t D, int64_t F, int kind, int shared_kind, int quantize, int shared_quantize,
                        float limit, int bf16, int threads);
void dsv4_expert_hint(const int64_t* ids, int64_t count, const void* const* w1, const void* const* w2,
                      const void* const* w3, const void* const* s1, const void* const* s2, const void* const* s3,
                      int64_t E, int64_t D, int64_t F, int kind, int sure);
void dsv4_index_topk(const dsv4::IndexCall* call);
void dsv4_pool(const dsv4::PoolCall* call);
void dsv4_sparse_attention(const dsv4::AttentionCall* call);
void dsv4_pack_entry(const float* x, uint8_t* rows, int64_t count, int64_t dim, int64_t rope, int64_t bytes,
                     int threads);
void dsv4_pack_index(const float* x, uint8_t* rows, int64_t count, int64_t dim, int64_t bytes, int threads);
void dsv4_unpack_index(const uint8_t* rows, float* x, int64_t count, int64_t dim, int64_t bytes, int threads);
}

namespace dsv4 {

// multiply-adds from which a piece of work is shared out: a few microseconds of one thread; while helpers rest, 30 ms, as
// long as a thread that has to wait for a core waits
constexpr double SOME_WORK = SMALL_WORK, MUCH_WORK = 1e9;

// One memory per thing that is alive at the same time as the others. What a large step needed is given back after it.
struct StepSpace {
    Scratch other_streams, y, sub, latent, q, kv, entry, low, index_q, index_weight, head_y;  // activations
    // floats
    Scratch post, comb, x_float, wide, joined, index_joined, pooled, window, attended, score, expert_weight, mixed;
    Scratch index_q_float, index_weight_float, head_float;
    Scratch stored, codes;  // rows as they are stored
    Scratch taps;           // of the layers that the draft head reads
    std::vector<int64_t> ids, chosen;
    Scratch guess_y, guess_score, guess_gates;  // of the next layer's router
    std::vector<int64_t> guessed;  // experts of the last tokens, by its early run; empty: it made none

    void trim() {
        for (Scratch* memory :
             {&other_streams, &y, &sub, &latent, &q, &kv, &entry, &low, &index_q, &x_float, &wide, &joined,
              &index_joined, &pooled, &window, &attended, &mixed, &index_q_float, &stored, &taps})
            memory->trim();
    }
};

// cos and sin of a run of angle rows
struct Turn {
    const float *cos, *sin;
};

struct StepRun {
    const StepModel& model;
    const StepStore& store;
    const StepBatch& batch;
    const StepPlan& plan;
    StepSpace& space;
    const Team& team;
    std::shared_ptr<Arena> arena;  // of the model's routed experts; null: they are read where they lie

    bool bf16() const { return model.bf16 != 0; }
    int64_t T() const { return batch.tokens; }
    int64_t bytes() const { return bf16() ? 2 : 4; }
    void* act(Scratch& memory, int64_t count) const { return memory.bytes(count * bytes()); }
    // Threads for a piece of work. Much more must be at stake where helpers may have to wait for a core.
    int threads(double multiply_adds) const {
        return multiply_adds < (resting(team) ? MUCH_WORK : SOME_WORK) ? 1 : int(batch.threads);
    }
    Turn turn(int64_t row) const { return {batch.cos + row * model.pairs, batch.sin + row * model.pairs}; }
    Turn of_tokens(int64_t ratio) const { return turn(ratio ? T() : 0); }
    Turn of_entries(int64_t ratio) const {
        int64_t row = 2 * T();
        for (const RatioPlan& p : plan.ratios) {
            if (p.ratio == ratio) break;
            row += p.entries();
        }
        return turn(row);
    }
};

// `count` activations as floats, where they are if they are floats already
const float* floats_of(const StepRun& run, const void* x, int64_t count, Scratch& memory);
// and back, rounded once
void to_activations(const StepRun& run, const float* x, int64_t count, void* y);

// a product of y[rows, outputs] = x W^T, both in activation dtype
Product product_of(const StepRun& run, const StepLinear& layer, const void* x, void* y);
// the same in float32, rows of y `pitch` apart
Product float_product(const StepLinear& layer, const float* x, float* y, int64_t pitch);
// products of `rows` rows, none of which reads what another writes
void apply_together(const StepRun& run, const std::vector<Product>& products, int64_t rows);

// one of each
void apply(const StepRun& run, const StepLinear& layer, const void* x, int64_t rows, void* y);
void apply_float(const StepRun& run, const StepLinear& layer, const float* x, int64_t rows, float* y, int64_t pitch);

// A sub-layer's output [T, D] from its input, both in activation dtype.
void step_attention(const StepRun& run, int64_t layer, const void* x_TD, void* y_TD);
// Writes the context rows of the draft head: from the tapped layers' rows [T, taps * D] in activation dtype.
void step_context(const StepRun& run, const void* taps);
// Before block `layer`: the experts that it and later ones will need begin to be read, where they are streamed and its
// attention leaves the disk idle. x: the streams.
void step_read_ahead(const StepRun& run, int64_t layer, const void* x_TSD);
// After its router: compares its choices, `run.space.ids`, with what was guessed.
void step_learn_guesses(const StepRun& run, const StepLayer& layer);
// Returns 0, or 5 or 6 as `dsv4_step`.
int step_mixture(const StepRun& run, int64_t layer, const void* x_TD, void* y_TD);

}  // namespace dsv4
