// Gradients of gated pooling; see compress.cpp. Channels are shared out among threads, so rows may be used repeatedly.
#include <algorithm>
#include <vector>

#include "native/exponential.h"
#include "structs.h"

using namespace dsv4;

namespace {

constexpr int64_t SMALL = 20000;  // values that one thread does sooner than two

// Mirrored by dsv4/kernels/compress/native.py. Gradients of rows lie `pitch` floats apart and hold zeros at first.
struct Place {
    int64_t row, column;
};

// the places one entry is made of: rows of the block before (first half of the columns), then the block's own
void list_places(const PoolCall& call, int64_t block, int64_t column, std::vector<Place>& places) {
    places.clear();
    if (call.previous_Nm)
        for (int64_t i = 0; i < call.rows; i++) {
            const int64_t row = call.previous_Nm[block * call.rows + i];
            if (row >= 0) places.push_back({row, column});
        }
    const int64_t shift = column + (call.previous_Nm ? call.dim : 0);
    for (int64_t i = 0; i < call.rows; i++) places.push_back({call.own_Nm[block * call.rows + i], shift});
}

// with p the softmax of the scores and y = sum p kv: d kv = p dy, d score = p (kv - y) dy
void pool_backward(const PoolBackward& back, int64_t block, int64_t column, int count, std::vector<Place>& places,
                   std::vector<vf>& weights) {
    const PoolCall& call = back.forward;
    const auto take = [count](const float* p) { return count == W ? load(p) : load_part(p, count); };
    const auto add = [&](float* p, vf v) { count == W ? store(p, load(p) + v) : store_part(p, take(p) + v, count); };
    list_places(call, block, column, places);
    weights.resize(places.size());
    vf top = splat(-INFINITY), total{};
    for (const Place& at : places) top = max(take(call.score + at.row * call.score_stride + at.column), top);
    for (size_t i = 0; i < places.size(); i++) {
        weights[i] = exp(take(call.score + places[i].row * call.score_stride + places[i].column) - top);
        total = total + weights[i];
    }
    const vf grad = take(back.grad_NC + block * call.dim + column), y = take(call.out_NC + block * call.dim + column);
    for (size_t i = 0; i < places.size(); i++) {
        const Place& at = places[i];
        const vf share = weights[i] / total * grad;
        add(back.d_kv + at.row * back.pitch + at.column, share);
        add(back.d_score + at.row * back.pitch + at.column,
            share * (take(call.kv + at.row * call.kv_stride + at.column) - y));
    }
}

}  // namespace

extern "C" void dsv4_pool_backward(const PoolBackward* given) {
    const PoolCall& call = given->forward;
    const int64_t work = call.blocks * call.rows * call.dim;
#pragma omp parallel for schedule(static) num_threads(call.threads) if (call.threads > 1 && work > SMALL)
    for (int64_t column = 0; column < call.dim; column += W) {
        static thread_local std::vector<Place> places;
        static thread_local std::vector<vf> weights;
        const int count = int(std::min<int64_t>(W, call.dim - column));
        for (int64_t block = 0; block < call.blocks; block++)
            pool_backward(*given, block, column, count, places, weights);
    }
}
