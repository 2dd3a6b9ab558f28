// exp of a vector.
#pragma once
#include "parallel.h"
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

}  // namespace dsv4
