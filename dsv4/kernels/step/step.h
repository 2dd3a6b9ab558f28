// One step of a whole model in one call: what it gets, and the arithmetic of where its rows lie.
//
// The step calls the same functions as the operations one by one, on the same rows: its results are theirs bit for bit.
//
// T new tokens, B sequences, S streams, D hidden size, H heads, C head dim, L query latent, I indexer dim, J indexer
// heads, N finished entries of a ratio, m tokens per entry, P rotary pairs, V vocabulary, X bytes of a stored row.
// The structs that the step gets are declared in dsv4/kernels/native/structs.py.
#pragma once
#include <cstdint>
#include <vector>

#include "structs.h"

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
