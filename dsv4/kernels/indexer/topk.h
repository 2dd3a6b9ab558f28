// The k best of a stream of scored entries. What is kept depends on the set of scores alone, not on how it was cut.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "native/simd.h"

namespace dsv4 {

// Reads every score once: one that is above the threshold becomes a candidate, and the threshold rises to the kth best
// whenever there are 2k candidates or more. Entries must come in ascending order, so an entry as good as the kth cannot
// enter, and candidates stay in that order. Scores of -inf and NaN never enter.
class Best {
public:
    void start(int64_t k) {
        k_ = k;
        count_ = 0;
        threshold = -INFINITY;
        room(2 * k + SPARE);
    }
    void add(float score, int32_t entry) {
        rank_[size_t(count_)] = rank_of(score);
        entry_[size_t(count_)] = entry;
        if (++count_ >= 2 * k_ + SPARE) shrink();
    }
    // take over the candidates of a later stretch of the same stream
    void append(const Best& later) {
        room(count_ + later.count_ + SPARE);
        std::copy_n(later.rank_.begin(), later.count_, rank_.begin() + count_);
        std::copy_n(later.entry_.begin(), later.count_, entry_.begin() + count_);
        count_ += later.count_;
        if (count_ > k_) shrink();
    }
    // entry numbers of the best k, ascending; -1 in the places left over
    void write(int64_t* out, int64_t places) {
        if (count_ > k_) shrink();
        for (int64_t i = 0; i < places; i++) out[i] = i < count_ ? entry_[size_t(i)] : -1;
    }

    float threshold = -INFINITY;  // only higher scores can enter

private:
    static constexpr int64_t SPARE = 64;

    // whole numbers in the order of the scores; both zeros are one
    static int32_t rank_of(float score) {
        int32_t bits;
        const float one_zero = score + 0.0f;
        std::memcpy(&bits, &one_zero, 4);
        return bits ^ (bits >> 31 & INT32_MAX);
    }
    static float score_of(int32_t rank) {
        float score;
        rank ^= rank >> 31 & INT32_MAX;
        std::memcpy(&score, &rank, 4);
        return score;
    }
    void room(int64_t places) {
        if (int64_t(rank_.size()) >= places) return;
        rank_.resize(size_t(places));
        entry_.resize(size_t(places));
    }
    int64_t at_least(int32_t rank) const {
        int32_t found = 0;
        for (int64_t i = 0; i < count_; i++) found += rank_[size_t(i)] >= rank;
        return found;
    }
    // keeps the best k of more: the kth best rank by halving, without a branch on a score
    void shrink() {
        const auto [least, most] = std::minmax_element(rank_.begin(), rank_.begin() + count_);
        int64_t low = *least, high = *most;
        while (low < high) {
            const int64_t middle = low + (high - low + 1) / 2;
            if (at_least(int32_t(middle)) >= k_)
                low = middle;
            else
                high = middle - 1;
        }
        const int32_t worst = int32_t(low);
        int64_t ties = k_ - (worst == INT32_MAX ? 0 : at_least(worst + 1)), kept = 0;
        for (int64_t i = 0; i < count_; i++) {
            const int32_t rank = rank_[size_t(i)], entry = entry_[size_t(i)];
            const bool tied = rank == worst;
            rank_[size_t(kept)] = rank;
            entry_[size_t(kept)] = entry;
            kept += (rank > worst) | (tied & (ties > 0));
            ties -= tied;
        }
        count_ = kept;
        threshold = score_of(worst);
    }

    int64_t k_ = 0, count_ = 0;
    std::vector<int32_t> rank_, entry_;
};

}  // namespace dsv4
