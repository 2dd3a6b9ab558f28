// C = A B for one thread, all float32, operands in any orientation: what backward passes are made of.
//
// Every output element is one chain of multiply-adds in the order of K, cut into fixed pieces; which rows and columns
// are computed together changes no bit.
#pragma once
#include <cstdint>

namespace dsv4 {

// Row i, column j of a matrix lies at p[i * row + j * column].
struct View {
    const float* p;
    int64_t row, column;

    View turned() const { return {p, column, row}; }
    View at(int64_t i, int64_t j) const { return {p + i * row + j * column, row, column}; }
};
inline View rows_view(const float* p, int64_t pitch) { return {p, pitch, 1}; }

enum class Write {
    REPLACE,
    ADD,
    LOWER,  // replace, and only what tiles on and below the diagonal cover: for products known to be symmetric
};

// c[m, n], rows `pitch` floats apart, from a [m, k] and b [k, n]
void product(View a, View b, float* c, int64_t pitch, int64_t m, int64_t n, int64_t k, Write write = Write::REPLACE);

}  // namespace dsv4
