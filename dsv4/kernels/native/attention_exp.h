// exp of a vector, and memory that a thread keeps between calls.
#pragma once
#include <cstdlib>

#include "simd.h"

namespace dsv4 {

// e^x for x <= 88, at most 2 ulp off; -inf gives exactly 0, NaN stays NaN
inline vf exp(vf x) {
    x = x < splat(-110.0f) ? splat(-110.0f) : x;  // below: 0 after rounding
    const vf magic = splat(12582912.0f);          // adding it rounds to a whole number
    const vf n = fma(x, splat(1.44269504f), magic) - magic;
    vf r = fma(n, splat(-0.693359375f), x);  // n * ln 2 in two parts, the first exact
    r = fma(n, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r) + splat(1.0f);
    // 2^n as two factors, so that results below the normal range are rounded once
    const vi whole = __builtin_convertvector(n, vi), low = whole >> 1, high = whole - low;
    return p * (vf)((low + 127) << 23) * (vf)((high + 127) << 23);
}

// Floats that start at a cache line; grows and never shrinks. New memory is zero.
class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }

    float* floats(int64_t count) {
        if (count > size_) {
            std::free(memory_);
            size_ = (count + 15) / 16 * 16;
            memory_ = static_cast<float*>(std::aligned_alloc(64, size_t(size_) * 4));
            if (!memory_) std::abort();
            std::memset(memory_, 0, size_t(size_) * 4);
        }
        return memory_;
    }

private:
    float* memory_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace dsv4
