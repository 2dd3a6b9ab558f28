// Products of float32 matrices whose columns are rounded to 16-bit integers: sums are exact, so their order is free.
//
// A column is divided by its norm and multiplied by 32767. No product of two columns can then leave 32 bits, however
// long they are (Cauchy-Schwarz), and a column of k numbers of like size keeps 15 - log2(k) / 2 bits of each.
#pragma once
#include "native/simd.h"

namespace dsv4 {

constexpr int FILLED = 32;  // rows and columns are filled up with zeros to multiples of it
inline int64_t filled(int64_t n) { return (n + FILLED - 1) / FILLED * FILLED; }

// A matrix [k, n] in 16-bit integers: a right operand, or a left one that is to be transposed.
struct Int16Columns {
    int32_t* pairs;  // [n / (2 W)][k / 2][2 W]: rows 2 p and 2 p + 1 of a column side by side
    float* units;    // [n]: what 1 stands for in each column
    int64_t k, n;
};

void pack_columns(const float* a, int64_t k, int64_t n, Int16Columns& out);      // of a [k, n]
void pack_turned(const float* a, int64_t k, int64_t n, Int16Columns& out);  // of a [n, k], transposed

// factor * x, added to a product; it has the product's shape
struct Addend {
    const float* x = nullptr;
    float factor = 0;
};

// out [m, n] = factor * a^T b + addends, from a [k, m] and b [k, n]. `out` may be an addend's x. lower: only what tiles
// on and below the diagonal cover.
void product(const Int16Columns& a, const Int16Columns& b, float factor, Addend first, Addend second, float* out,
             bool lower);

}  // namespace dsv4
