// Newton-Schulz in float32: M <- a M + (b G + c G^2) M with G = M M^T on the shorter side.
//
// Everything symmetric is computed once and mirrored. Where M is much longer than wide, several steps run on G alone:
// their polynomials in G commute, so they are multiplied up and M is met once. G squares the singular values, which
// costs small ones their precision; it is made anew from M after every few steps (PIECE).
#include "newton_schulz.h"

#include <algorithm>
#include <cmath>

#include "mirror.h"
#include "native/parallel.h"
#include "native/product.h"
#include "native/simd.h"

using namespace dsv4;

namespace {

constexpr int64_t PIECE = 5;  // steps between two Gram matrices

// n <= m; rows of M side by side
struct Room {
    int64_t n, m;
    float *x, *y, *gram, *square, *inner, *total, *spare;

    Room(Scratch& memory, int64_t rows, int64_t columns) : n(rows), m(columns) {
        x = memory.floats(2 * n * m + 5 * n * n);
        y = x + n * m, gram = y + n * m, square = gram + n * n, inner = square + n * n;
        total = inner + n * n, spare = total + n * n;
    }
};

// out = a b, known to be symmetric, [n, n] from [n, k] and [k, n]
void symmetric(View a, View b, float* out, int64_t n, int64_t k) {
    product(a, b, out, n, n, n, k, Write::LOWER);
    mirror(out, n);
}

void gram_of(const Room& r) { symmetric(rows_view(r.x, r.m), rows_view(r.x, r.m).turned(), r.gram, r.n, r.m); }

// a matrix that is its own transpose, as a left operand: read by columns, which needs no turning
View own_transpose(const float* a, int64_t n) { return rows_view(a, n).turned(); }

// inner = a I + b G + c G^2
void polynomial(const Room& r, const float* abc) {
    symmetric(own_transpose(r.gram, r.n), rows_view(r.gram, r.n), r.square, r.n, r.n);
    for (int64_t i = 0; i < r.n * r.n; i++) r.inner[i] = abc[1] * r.gram[i] + abc[2] * r.square[i];
    for (int64_t i = 0; i < r.n; i++) r.inner[i * r.n + i] += abc[0];
}

void apply(Room& r, const float* polynomial) {
    product(own_transpose(polynomial, r.n), rows_view(r.x, r.m), r.y, r.m, r.n, r.m, r.n);
    std::swap(r.x, r.y);
}

// `steps` steps on the Gram matrix alone, then M
void together(Room& r, const float* abc, int64_t steps) {
    const int64_t n = r.n;
    gram_of(r);
    for (int64_t s = 0; s < steps; s++, abc += 3) {
        polynomial(r, abc);
        const View inner = own_transpose(r.inner, n);
        if (s == 0) {
            std::copy_n(r.inner, n * n, r.total);
        } else {
            symmetric(inner, rows_view(r.total, n), r.spare, n, n);
            std::swap(r.total, r.spare);
        }
        if (s + 1 == steps) break;
        symmetric(inner, rows_view(r.gram, n), r.spare, n, n);
        symmetric(own_transpose(r.spare, n), rows_view(r.inner, n), r.gram, n, n);
    }
    apply(r, r.total);
}

// multiply-adds of `steps` steps in units of n^3, for m = ratio * n
double cost_apart(double ratio, int64_t steps) { return double(steps) * (0.5 * ratio + 0.5 + ratio); }
double cost_together(double ratio, int64_t steps) { return 1.5 * ratio + 2.0 * double(steps) - 1.5; }

void orthogonalize(Room& r, const float* abc, int64_t steps) {
    const double ratio = double(r.m) / double(r.n);
    for (int64_t s = 0; s < steps;) {
        const int64_t some = std::min(PIECE, steps - s);
        if (cost_together(ratio, some) < cost_apart(ratio, some)) {
            together(r, abc + 3 * s, some);
            s += some;
        } else {
            gram_of(r);
            polynomial(r, abc + 3 * s++);
            apply(r, r.inner);
        }
    }
}

}  // namespace

namespace dsv4 {

float inverse_norm(const float* x, int64_t n, int64_t m, float tiny) {
    double square = 0;
    for (int64_t row = 0; row < n; row++) square += double(dot(x + row * m, x + row * m, m));
    return 1.0f / std::max(float(std::sqrt(square)), tiny);
}

void newton_schulz(float* x, int64_t n, int64_t m, NewtonSchulzSteps steps, float tiny) {
    static thread_local Scratch memory;
    Room r(memory, std::min(n, m), std::max(n, m));
    const float factor = inverse_norm(x, n, m, tiny);
    const bool tall = n > m;
    const View in = tall ? rows_view(x, m).turned() : rows_view(x, m);
    for (int64_t row = 0; row < r.n; row++)
        for (int64_t c = 0; c < r.m; c++) r.x[row * r.m + c] = in.p[row * in.row + c * in.column] * factor;
    orthogonalize(r, steps.abc, steps.count);
    for (int64_t row = 0; row < n; row++)
        for (int64_t c = 0; c < m; c++) x[row * m + c] = tall ? r.x[c * r.m + row] : r.x[row * r.m + c];
    memory.trim();
}

}  // namespace dsv4
