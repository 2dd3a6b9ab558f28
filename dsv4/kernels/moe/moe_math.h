// exp of anything, log and what is made of them, W lanes at a time, to about one unit in the last place.
#pragma once
#include "native/exponential.h"
#include "native/simd.h"

namespace dsv4 {

// e^x for any x: infinity above the range, NaN stays NaN
inline vf exponential(vf x) {
    const vf result = exp(min(max(x, splat(-104.0f)), splat(89.0f)));
    return x == x ? result : x;
}

// for positive normal x
inline vf logarithm(vf x) {
    const vi bits = (vi)x - 0x3f3504f3;  // sqrt(1/2): the fraction lies in [sqrt(1/2), sqrt(2))
    const vf e = __builtin_convertvector(bits >> 23, vf);
    const vf f = (vf)((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
    vf p = splat(7.0376836292e-2f);
    p = fma(p, f, splat(-1.1514610310e-1f));
    p = fma(p, f, splat(1.1676998740e-1f));
    p = fma(p, f, splat(-1.2420140846e-1f));
    p = fma(p, f, splat(1.4249322787e-1f));
    p = fma(p, f, splat(-1.6668057665e-1f));
    p = fma(p, f, splat(2.0000714765e-1f));
    p = fma(p, f, splat(-2.4999993993e-1f));
    p = fma(p, f, splat(3.3333331174e-1f));
    vf tail = p * f * f * f;
    tail = fma(e, splat(-2.12194440e-4f), tail);
    tail = fma(f * f, splat(-0.5f), tail);
    return fma(e, splat(0.693359375f), f + tail);
}

inline vf sigmoid(vf x) { return 1.0f / (exponential(-x) + 1.0f); }
inline vf silu(vf x) { return x / (exponential(-x) + 1.0f); }

// log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)); the quotient gives back what 1 + e rounded away
inline vf softplus(vf x) {
    const vf e = exponential((vf)((vi)x | int32_t(0x80000000)));
    const vf u = e + 1.0f;
    const vf y = max(x, vf{}) + (logarithm(u) + (e - (u - 1.0f)) / u);
    return x == x ? y : x;
}

inline vf square_root(vf x) {
    vf r;
    for (int i = 0; i < W; i++) r[i] = std::sqrt(x[i]);
    return r;
}

}  // namespace dsv4
