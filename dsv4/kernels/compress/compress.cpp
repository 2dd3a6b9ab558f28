// Gated pooling of finished blocks: a softmax over a block's rows for each channel, then the weighted sum.
//
// N blocks, m rows per block, C channels; rows are `stride` floats apart.

#include "native/exponential.h"
#include "structs.h"

using namespace dsv4;

namespace {

constexpr int64_t SMALL = 20000;  // values that one thread does sooner than two

// the rows of one pass in order: previous (first half of the columns), then own (second half, or all of them)
template <typename Visit>
void each_row(const PoolCall& call, int64_t block, int64_t column, Visit visit) {
    if (call.previous_Nm)
        for (int64_t i = 0; i < call.rows; i++) {
            const int64_t row = call.previous_Nm[block * call.rows + i];
            if (row >= 0) visit(call.score + row * call.score_stride + column, call.kv + row * call.kv_stride + column);
        }
    const int64_t shift = column + (call.previous_Nm ? call.dim : 0);
    for (int64_t i = 0; i < call.rows; i++) {
        const int64_t row = call.own_Nm[block * call.rows + i];
        visit(call.score + row * call.score_stride + shift, call.kv + row * call.kv_stride + shift);
    }
}

// `count` <= W channels of one block
void pool(const PoolCall& call, int64_t block, int64_t column, int count) {
    const auto take = [count](const float* p) { return count == W ? load(p) : load_part(p, count); };
    vf top = splat(-INFINITY), total{}, sum{};
    each_row(call, block, column, [&](const float* score, const float*) { top = max(take(score), top); });
    each_row(call, block, column, [&](const float* score, const float* kv) {
        const vf weight = exp(take(score) - top);
        total = total + weight;
        sum = fma(weight, take(kv), sum);
    });
    float* out = call.out_NC + block * call.dim + column;
    if (count == W)
        store(out, sum / total);
    else
        store_part(out, sum / total, count);
}

}  // namespace

extern "C" void dsv4_pool(const PoolCall* given) {
    const PoolCall& call = *given;
    const int64_t parts = (call.dim + W - 1) / W, work = call.blocks * call.rows * call.dim;
    const int threads = work > SMALL ? call.threads : 1;
    const auto part = [&](int64_t i) {
        const int64_t column = i % parts * W, left = call.dim - column;
        pool(call, i / parts, column, int(left < W ? left : W));
    };
    parallel(threads, call.blocks * parts, part, shares(call.blocks * parts, threads));
}
