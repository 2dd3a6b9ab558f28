// The next-token loss of rows of logits, and its gradient in their place.
#include <algorithm>

#include "moe/moe_math.h"
#include "native/parallel.h"

using namespace dsv4;

namespace {

// one row: -log softmax(logits)[target]; the logits become (softmax - one-hot) * weight
float row(float* logits, int64_t size, int64_t target, float weight, bool& first) {
    const auto count = [size](int64_t i) { return int(std::min<int64_t>(W, size - i)); };
    vf top = splat(-INFINITY), total{};
    int64_t i = 0;
    for (; i + W <= size; i += W) top = max(load(logits + i), top);
    float most = largest(top);
    for (; i < size; i++) most = std::max(most, logits[i]);
    const float own = logits[target];
    first = own >= most;
    for (i = 0; i + W <= size; i += W) {
        const vf e = exponential(load(logits + i) - most);
        total = total + e;
        store(logits + i, e);
    }
    float sum = dsv4::sum(total);
    for (; i < size; i++) {
        logits[i] = exponential(splat(logits[i] - most))[0];
        sum += logits[i];
    }
    const float factor = weight / sum;
    for (i = 0; i < size; i += W) {
        if (count(i) == W)
            store(logits + i, load(logits + i) * factor);
        else
            store_part(logits + i, load_part(logits + i, count(i)) * factor, count(i));
    }
    logits[target] -= weight;
    return std::log(sum) + most - own;
}

}  // namespace

// logits [rows, size] become the gradient of sum(weight * loss); loss [rows]; right: the target has the largest logit.
extern "C" void dsv4_vocab_rows(float* logits, const int64_t* target, const float* weight, float* loss, bool* right,
                                int64_t rows, int64_t size, int threads) {
    threads = worth(double(rows) * double(size) * 16, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < rows; r++) loss[r] = row(logits + r * size, size, target[r], weight[r], right[r]);
}
