// Newton-Schulz of one matrix by one thread.
#pragma once
#include <cstdint>

namespace dsv4 {

// Triples a, b, c of the steps M <- a M + b (M M^T) M + c (M M^T)^2 M.
struct NewtonSchulzSteps {
    const float* abc;
    int64_t count;
};

// x [n, m] in place: divided by its Frobenius norm (at least `tiny`), then moved through the steps. The first multiplies
// in float32, the second in 16-bit integers.
void newton_schulz(float* x, int64_t n, int64_t m, NewtonSchulzSteps steps, float tiny);
void newton_schulz_int16(float* x, int64_t n, int64_t m, NewtonSchulzSteps steps, float tiny);

// 1 / Frobenius norm of x [n, m]
float inverse_norm(const float* x, int64_t n, int64_t m, float tiny);

}  // namespace dsv4
