// Gated pooling: what one call gets.
#pragma once
#include <cstdint>

// Mirrored by dsv4/kernels/compress/native.py.
struct PoolCall {
    const float* kv;
    const float* score;
    const int64_t* own_Nm;
    const int64_t* previous_Nm;  // null: no overlap; -1: no such row
    float* out_NC;
    int64_t kv_stride, score_stride, blocks, rows, dim;
    int threads;
};

extern "C" void dsv4_pool(const PoolCall* given);
