// How often the experts that a layer's router names early are chosen in the end: what is worth reading ahead.
#pragma once
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace dsv4 {

// By layer and rank: a token's first guess is right more often than its last one. What was guessed counts whether it was
// read or not. Any address that belongs to a layer names it. Threads may use it at once.
class GuessRecord {
   public:
    // guesses and choices [T, K] of a layer
    void learn(const void* layer, const int64_t* guessed, const int64_t* chosen, int64_t T, int64_t K);
    // Experts that are needed with a chance of at least `least`, likeliest first, from guesses [T, K].
    std::vector<int64_t> worth_reading(const void* layer, const int64_t* guessed, int64_t T, int64_t K, int64_t E,
                                       double least);

   private:
    struct Count {
        double right = 3, made = 4;  // before anything was learned
    };
    std::vector<Count>& ranks(const void* layer, int64_t K);

    std::mutex lock;
    std::unordered_map<const void*, std::vector<Count>> counts;
};

}  // namespace dsv4
