#include "guesses.h"

#include <algorithm>
#include <numeric>

namespace dsv4 {

namespace {

constexpr double MEMORY = 512;  // guesses of a rank after which older ones count half

}  // namespace

std::vector<GuessRecord::Count>& GuessRecord::ranks(const void* layer, int64_t K) {
    std::vector<Count>& of_layer = counts[layer];
    of_layer.resize(std::max(of_layer.size(), size_t(K)));
    return of_layer;
}

void GuessRecord::learn(const void* layer, const int64_t* guessed, const int64_t* chosen, int64_t T, int64_t K) {
    const std::lock_guard<std::mutex> hold(lock);
    std::vector<Count>& of_layer = ranks(layer, K);
    for (int64_t t = 0; t < T; t++)
        for (int64_t k = 0; k < K; k++) {
            const int64_t* of_token = chosen + t * K;
            Count& count = of_layer[size_t(k)];
            count.made++;
            count.right += std::find(of_token, of_token + K, guessed[t * K + k]) != of_token + K;
            if (count.made > MEMORY) count.made /= 2, count.right /= 2;
        }
}

std::vector<int64_t> GuessRecord::worth_reading(const void* layer, const int64_t* guessed, int64_t T, int64_t K,
                                                int64_t E, double least) {
    std::vector<double> unneeded(size_t(E), 1.0);
    const std::lock_guard<std::mutex> hold(lock);
    for (int64_t k = 0; k < K; k++) {
        const Count count = ranks(layer, K)[size_t(k)];
        const double wrong = 1 - count.right / count.made;
        for (int64_t t = 0; t < T; t++) unneeded[size_t(guessed[t * K + k])] *= wrong;
    }
    std::vector<int64_t> ids(size_t(E), 0);
    std::iota(ids.begin(), ids.end(), 0);
    const auto rest = std::stable_partition(ids.begin(), ids.end(),
                                            [&](int64_t e) { return 1 - unneeded[size_t(e)] >= least; });
    ids.erase(rest, ids.end());
    std::stable_sort(ids.begin(), ids.end(),
                     [&](int64_t a, int64_t b) { return unneeded[size_t(a)] < unneeded[size_t(b)]; });
    return ids;
}

}  // namespace dsv4
