// One step of a whole model in one call: what it gets, and the arithmetic of where its rows lie.
//
// The step calls the same functions as the operations one by one, on the same rows: its results are theirs bit for bit.
//
// T new tokens, B sequences, S streams, D hidden size, H heads, C head dim, L query latent, I indexer dim, J indexer
// heads, N finished entries of a ratio, m tokens per entry, P rotary pairs, V vocabulary, X bytes of a stored row.
// The structs below are mirrored by dsv4/engine/step/structs.py; tests/kernels/test_structs.py compares them.
#pragma once
#include <cstdint>
#include <vector>

// A linear layer [outputs, inputs] as stored; with a scale its input goes through FP8, o_a's excepted.
struct StepLinear {
    const void *weight, *scale;
    int64_t outputs, inputs, kind;
};

// A hyper-connection, and the norm of the sub-layer behind it.
struct StepConnection {
    const float *fn, *scale, *base, *norm;
};

struct StepCompressor {
    StepLinear kv, gate;
    const float *bias, *norm;
};

struct StepExperts {
    const void *const *w1, *const *w2, *const *w3, *const *s1, *const *s2, *const *s3;
    int64_t inner, kind, shared_kind;
};

struct StepLayer {
    int64_t ratio, overlap;  // overlap: entries also read the block before their own
    StepConnection attention, mixture;
    StepLinear q_a, q_b, kv, o_a, o_b;
    const float *q_norm, *kv_norm, *sink;
    StepCompressor main, index;
    StepLinear index_q, index_weight;
    StepLinear router;
    const float* router_bias;      // null: experts come from the table
    const int64_t* router_table;   // [V, experts per token]
    StepExperts experts;
};

// `embedded_*` and `streams_*` are set for a prediction block only: it starts from streams and the next token.
struct StepModel {
    int64_t bf16, simulate, layers, streams, dim, vocabulary, heads, head_dim, pairs, groups, window;
    int64_t index_heads, index_dim, index_topk, experts, per_token, iterations;
    float norm_eps, connection_eps, limit, expert_scale, attention_scale, index_scale;
    const float *plain_P, *long_P;
    const void* embedding;
    StepConnection head;
    StepLinear output, embedded_proj, streams_proj;
    const float *embedded_norm, *streams_norm;
    const StepLayer* layer;
};

struct StepStoreLayer {
    uint8_t *window, *entries, *index;
    float *main_tail, *index_tail;
};

// row_kind: 0 float32, 1 bfloat16, 2 packed. *_bytes: of a stored row.
struct StepStore {
    int64_t row_kind, entry_bytes, index_bytes, page_tokens, slots, pages;
    const StepStoreLayer* layer;
};

// Per sequence: `count` new tokens after `cached` ones, its slot, its pages, and where it lives (`Span` of
// the contract). given: streams [T, S, D] a prediction block starts from. cos, sin: of the angles of `dsv4_step_plan`.
struct StepBatch {
    int64_t tokens, sequences, wanted;
    const int64_t *token_T, *count_B, *cached_B, *slot_B, *window_from_B, *entries_from_B, *page_count_B, *pages;
    const int64_t* wanted_N;
    const float *cos, *sin;
    const void* given_TSD;
    void* x_TSD;
    float* logits_NV;
    int64_t threads;
};

namespace dsv4 {

// Rows of one ring a step reads (flattened over slots), and which new rows it keeps and where.
struct RingPlan {
    std::vector<int64_t> kept;     // rows of the ring that are still needed
    std::vector<int64_t> keep;     // new rows ...
    std::vector<int64_t> keep_at;  // ... and the rows of the ring they go to
};

struct RatioPlan {
    int64_t ratio, per_page, longest = 0;
    bool overlap;
    RingPlan tail;                        // joined rows: all kept ones, then the T new ones
    std::vector<int64_t> visible_T, own_Nm, previous_Nm, position_N;
    std::vector<int64_t> target_N;        // the entry's row in the store, -1: it is there already
    std::vector<int64_t> first_BP;
    int64_t entries() const { return int64_t(position_N.size()); }
};

struct StepPlan {
    std::vector<int64_t> runs, position_T, sequence_T;
    RingPlan window;
    std::vector<int64_t> window_rows;  // joined rows, per sequence its kept ones and then its new: i, or -1 - new row
    std::vector<int64_t> window_T2;
    int64_t widest = 0;  // pages of the sequence that has most
    std::vector<RatioPlan> ratios;

    const RatioPlan& of(int64_t ratio) const;
};

// Returns 0, or which of the batch's numbers is wrong: 1 a token, 2 a slot, 3 a page or too few pages, 4 a length.
int make_plan(const StepModel& model, const StepStore& store, const StepBatch& batch, StepPlan& plan);

}  // namespace dsv4
