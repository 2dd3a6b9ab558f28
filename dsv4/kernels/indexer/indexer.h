// The arguments of the indexer.
#pragma once
#include "rows/rows.h"

// Mirrored by dsv4/kernels/indexer/native.py.
struct IndexCall {
    const float* q_TJI;
    const float* weight_TJ;
    dsv4::Rows keys;
    const int64_t* first_BP;
    const int64_t* sequence_T;
    const int64_t* visible_T;
    const int64_t* runs;
    int64_t* out_TK;
    int64_t runs_count, pages, per_page, heads, dim, k, places;
    int threads;
};
