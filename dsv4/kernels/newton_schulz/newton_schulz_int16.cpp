// Newton-Schulz with products of 16-bit integers: M <- a M + (b G + c G^2) M, where G = M M^T on
// the shorter side.
//
// Identities stay out of the products, which are then rounded relative to what they change: with N = b G + c G^2 a step
// is M <- a M + N M, and several steps on G alone are M <- t M + R M. As in newton_schulz.cpp those save work where M
// is longer than wide; rounding of G grows by a^2 in each of them, so they are few (PIECE).
#include <algorithm>
#include <utility>

#include "int16_product.h"
#include "mirror.h"
#include "newton_schulz.h"
#include "native/parallel.h"

using namespace dsv4;

namespace {

constexpr int64_t PIECE = 3;  // steps between two Gram matrices; the last piece may have one more

// One matrix, filled up with zeros; s: its shorter side.
struct Iteration {
    bool tall;
    int64_t n, m, s;
    float *x, *gram, *change, *total, *spare;  // M, G, N, R
    Int16Columns long_pairs, gram_pairs, change_pairs, other_pairs;

    Iteration(Scratch& memory, int64_t rows, int64_t columns)
        : tall(rows > columns), n(filled(rows)), m(filled(columns)), s(std::min(n, m)) {
        const int64_t longer = std::max(n, m);
        float* next = memory.floats(n * m + 4 * s * s + n * m / 2 + longer + 3 * (s * s / 2 + s));
        const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
        x = take(n * m);
        for (float** square : {&gram, &change, &total, &spare}) *square = take(s * s);
        long_pairs = {(int32_t*)take(n * m / 2), take(longer), 0, 0};
        for (Int16Columns* pairs : {&gram_pairs, &change_pairs, &other_pairs})
            *pairs = {(int32_t*)take(s * s / 2), take(s), 0, 0};
    }

    void pack(const float* square, Int16Columns& pairs) { pack_columns(square, s, s, pairs); }

    // out = factor * a b + addends, known to be symmetric, as a and b are
    void symmetric(const Int16Columns& a, const Int16Columns& b, float factor, Addend first, Addend second,
                   float* out) {
        product(a, b, factor, first, second, out, true);
        mirror(out, s);
    }

    void make_gram() {
        tall ? pack_columns(x, n, m, long_pairs) : pack_turned(x, m, n, long_pairs);
        symmetric(long_pairs, long_pairs, 1, {}, {}, gram);
    }

    // M <- t M + R M
    void apply(float t, const Int16Columns& r) {
        if (tall) {
            pack_turned(x, m, n, long_pairs);
            product(long_pairs, r, 1, {x, t}, {}, x, false);
        } else {
            pack_columns(x, n, m, long_pairs);
            product(r, long_pairs, 1, {x, t}, {}, x, false);
        }
    }

    // `steps` steps by one Gram matrix
    void piece(const float* abc, int64_t steps) {
        make_gram();
        float t = abc[0];
        for (int64_t i = 0; i < steps; i++, abc += 3) {
            const float a = abc[0];
            pack(gram, gram_pairs);
            symmetric(gram_pairs, gram_pairs, abc[2], {gram, abc[1]}, {}, change);
            pack(change, change_pairs);
            if (steps == 1) return apply(t, change_pairs);
            if (i == 0) {
                std::swap(total, change);
            } else {  // (a + N) (t + R)
                pack(total, other_pairs);
                symmetric(change_pairs, other_pairs, 1, {total, a}, {change, t}, spare);
                std::swap(total, spare);
                t *= a;
            }
            if (i + 1 == steps) break;
            symmetric(change_pairs, gram_pairs, 1, {gram, a}, {}, spare);  // (a + N) G
            pack(spare, other_pairs);
            symmetric(change_pairs, other_pairs, 1, {spare, a}, {}, gram);  // (a + N)^2 G
        }
        pack(total, other_pairs);
        apply(t, other_pairs);
    }

    void run(const float* abc, int64_t steps) {
        const double ratio = double(std::max(n, m)) / double(s);
        for (int64_t i = 0, some; i < steps; i += some) {
            some = steps - i == PIECE + 1 ? PIECE + 1 : std::min(PIECE, steps - i);  // one alone is dear
            // in units of s^3 multiply-adds
            const double together = 1.5 * ratio + 2.0 * double(some) - 1.5, apart = double(some) * (1.5 * ratio + 0.5);
            if (together >= apart) some = 1;
            piece(abc + 3 * i, some);
        }
    }
};

}  // namespace

namespace dsv4 {

void newton_schulz_int16(float* x, int64_t n, int64_t m, NewtonSchulzSteps steps, float tiny) {
    static thread_local Scratch memory;
    Iteration it(memory, n, m);
    const float factor = inverse_norm(x, n, m, tiny);
    std::fill_n(it.x, it.n * it.m, 0.0f);
    for (int64_t row = 0; row < n; row++)
        for (int64_t c = 0; c < m; c++) it.x[row * it.m + c] = x[row * m + c] * factor;
    it.run(steps.abc, steps.count);
    for (int64_t row = 0; row < n; row++) std::copy_n(it.x + row * it.m, m, x + row * m);
    memory.trim();
}

}  // namespace dsv4
