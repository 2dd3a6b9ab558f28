// The k best of a stream of scored entries. What is kept depends on the set of scores alone, not on how it was cut.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace dsv4 {

struct Scored {
    float score;
    int32_t entry;
};

// the higher score first, of equal ones the older entry
inline bool better(const Scored& a, const Scored& b) {
    return a.score > b.score || (a.score == b.score && a.entry < b.entry);
}

// Keeps up to 2k candidates; entries must come in ascending order, so an entry as good as the kth cannot enter.
// Scores of -inf and NaN never enter.
class Best {
public:
    void start(int64_t k) {
        k_ = size_t(k);
        kept_.clear();
        kept_.reserve(2 * k_ + 64);
        threshold = -INFINITY;
    }
    void add(float score, int32_t entry) {
        kept_.push_back({score, entry});
        if (kept_.size() >= 2 * k_ + 64) shrink();
    }
    // take over the candidates of a later stretch of the same stream
    void append(const Best& later) {
        kept_.insert(kept_.end(), later.kept_.begin(), later.kept_.end());
        if (kept_.size() > k_) shrink();
    }
    // entry numbers of the best k, ascending; -1 in the places left over
    void write(int64_t* out, int64_t places) {
        if (kept_.size() > k_) shrink();
        const auto older = [](const Scored& a, const Scored& b) { return a.entry < b.entry; };
        std::sort(kept_.begin(), kept_.end(), older);
        for (int64_t i = 0; i < places; i++) out[i] = i < int64_t(kept_.size()) ? kept_[size_t(i)].entry : -1;
    }

    float threshold = -INFINITY;  // only higher scores can enter

private:
    void shrink() {
        std::nth_element(kept_.begin(), kept_.begin() + int64_t(k_) - 1, kept_.end(), better);
        kept_.resize(k_);
        threshold = kept_[k_ - 1].score;
    }

    size_t k_ = 0;
    std::vector<Scored> kept_;
};

}  // namespace dsv4
