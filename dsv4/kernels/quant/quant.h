// bfloat16 to and from float32, and the FP8 cast of activations.
#pragma once
#include "matmul/dequant.h"

namespace dsv4 {

inline float from_bf16(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float x;
    std::memcpy(&x, &wide, 4);
    return x;
}
// to nearest, ties to even; NaN stays NaN
inline uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float round_bf16(float x) { return from_bf16(to_bf16(x)); }
inline vf round_bf16(vf x) {
    const vi bits = (vi)x;
    const vi rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & int32_t(0xffff0000);
    const vi is_nan = (bits & 0x7fffffff) > 0x7f800000;
    return (vf)(is_nan ? bits | 0x400000 : rounded);
}

// W numbers of x (float32 or bfloat16) from element i on, and back with one rounding
inline vf load_either(const void* x, bool bf16, int64_t i) {
    if (!bf16) return load((const float*)x + i);
    float lanes[W];
    for (int j = 0; j < W; j++) lanes[j] = from_bf16(((const uint16_t*)x)[i + j]);
    return load(lanes);
}
inline float get_either(const void* x, bool bf16, int64_t i) {
    return bf16 ? from_bf16(((const uint16_t*)x)[i]) : ((const float*)x)[i];
}
inline void put_either(void* y, bool bf16, int64_t i, float v) {
    if (bf16)
        ((uint16_t*)y)[i] = to_bf16(v);
    else
        ((float*)y)[i] = v;
}
inline void store_either(void* y, bool bf16, int64_t i, vf v) {
    if (!bf16) return store((float*)y + i, v);
    for (int j = 0; j < W; j++) ((uint16_t*)y)[i + j] = to_bf16(v[j]);
}

// x[K] as float32, in place where it is that already
const float* as_floats(const void* x, bool bf16, int64_t K, float* room);

// values of an FP8 round trip in blocks of `block` columns with power-of-two scales; in and out may be the same
void through_fp8(const float* in, float* out, int64_t K, int64_t block = FP8_BLOCK);

// x[K] through FP8 in blocks of 128 columns, as multiples of 2^-6 of each block's scale (rounded to even where e4m3 has
// finer steps, below 2^-3) and that scale; a block with a number that is not finite is zeros with scale NaN.
void through_fp8_fixed(const float* x, int16_t* numbers, float* scales, int64_t K);

}  // namespace dsv4
