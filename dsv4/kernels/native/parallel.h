// How many threads a piece of work is worth, and memory that a thread keeps between calls.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace dsv4 {

// multiply-adds below which waking a second thread costs more than it saves
constexpr double SMALL_WORK = 50e3;

inline int worth(double multiply_adds, int threads) { return multiply_adds < SMALL_WORK ? 1 : threads; }

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
