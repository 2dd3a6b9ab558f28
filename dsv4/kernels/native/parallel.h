// How many threads a piece of work is worth, and memory that a thread keeps between calls.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "team.h"

namespace dsv4 {

// multiply-adds below which waking a second thread costs more than it saves
constexpr double SMALL_WORK = 50e3;

inline int worth(double multiply_adds, int threads) { return multiply_adds < SMALL_WORK ? 1 : threads; }

// Calls body(i) for every i in [0, count), `together` neighbours at a time by one of at most `threads` threads: the team
// of the running step, else OpenMP's. Which thread takes what differs from call to call. A body may not call it again.
template <class Body>
void parallel(int threads, int64_t count, const Body& body, int64_t together = 1) {
    if (threads <= 1 || count <= together) {
        for (int64_t i = 0; i < count; i++) body(i);
    } else if (Team* team = active_team()) {
        const auto piece = [](const void* given, int64_t i) { (*(const Body*)given)(i); };
        share_out(*team, piece, &body, count, together, threads);
    } else {
#pragma omp parallel for schedule(dynamic, together) num_threads(threads)
        for (int64_t i = 0; i < count; i++) body(i);
    }
}

// neighbours that one thread takes at a time where there are many small ones
inline int64_t shares(int64_t count, int threads) { return (count + 4 * threads - 1) / (4 * threads); }

// Starts at a cache line; grows, never shrinks by itself; one per thread and use. New memory is zero.
class Scratch {
   public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }
    float* floats(int64_t count) { return (float*)bytes(count * 4); }
    void* bytes(int64_t size) {
        if (size > size_) {
            std::free(memory_);
            size_ = (size + 4095) / 4096 * 4096;
            memory_ = std::aligned_alloc(64, size_);
            if (!memory_) throw std::bad_alloc();
            std::memset(memory_, 0, size_t(size_));
        }
        return memory_;
    }

    // gives back what is more than a call should hold on to
    void trim() {
        if (size_ > KEPT) std::free(memory_), memory_ = nullptr, size_ = 0;
    }

   private:
    static constexpr int64_t KEPT = 64 << 20;
    void* memory_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace dsv4
