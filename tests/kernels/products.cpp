// Matrix products checked without Python, for machines that are only emulated: every stored format against float64, and
// any batch against rows alone, bit for bit. Prints what is wrong; exit status 1 if anything is.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "matmul/gemm.h"

using namespace dsv4;

namespace {

uint64_t state = 1;
uint32_t draw() {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return uint32_t(state >> 33);
}
float draw_float() { return float(int(draw() % 2001) - 1000) / 500.0f; }

struct Case {
    int kind;
    bool quantize;
    int64_t N, K;
    std::vector<uint8_t> weight, scale;

    Case(int kind, bool quantize, int64_t N, int64_t K) : kind(kind), quantize(quantize), N(N), K(K) {
        weight.resize(size_t(N * K * 4));
        scale.resize(size_t(N * K / 32 + N + 64));
        for (uint8_t& s : scale) s = uint8_t(118 + draw() % 8);
        for (int64_t i = 0; i < N * K; i++) {
            const float v = draw_float();
            uint32_t bits;
            std::memcpy(&bits, &v, 4);
            if (kind == KIND_F32)
                std::memcpy(&weight[size_t(4 * i)], &v, 4);
            else if (kind == KIND_BF16)
                ((uint16_t*)weight.data())[i] = uint16_t(bits >> 16);
            else
                weight[size_t(i)] = (draw() & 0x7f) == 0x7f ? 0 : uint8_t(draw() & 0xf7);
        }
    }
    double at(int64_t n, int64_t k) const {
        const int64_t i = n * K + k, tiles = (K + 127) / 128;
        if (kind == KIND_F32) return ((const float*)weight.data())[i];
        if (kind == KIND_BF16) {
            const uint32_t bits = uint32_t(((const uint16_t*)weight.data())[i]) << 16;
            float v;
            std::memcpy(&v, &bits, 4);
            return v;
        }
        if (kind == KIND_FP8) {
            const int b = weight[size_t(i)], exponent = b >> 3 & 15, fraction = b & 7;
            const double size = exponent ? std::ldexp(8 + fraction, exponent - 10) : std::ldexp(fraction, -9);
            return (b & 128 ? -size : size) * std::ldexp(1.0, scale[size_t(n / 128 * tiles + k / 128)] - 127);
        }
        const double values[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
        const int code = weight[size_t(i / 2)] >> (k % 2 ? 4 : 0) & 15;
        return (code & 8 ? -values[code & 7] : values[code]) *
               std::ldexp(1.0, scale[size_t(n * (K / 32) + k / 32)] - 127);
    }
    void multiply(const float* x, int64_t M, float* y) const {
        linear({kind, weight.data(), scale.data(), N, K}, x, K, y, N, M, false, quantize, 1);
    }
};

bool right(const Case& c) {
    constexpr int64_t M = 21;
    std::vector<float> x(size_t(M * c.K)), together(size_t(M * c.N)), apart(size_t(M * c.N));
    for (float& v : x) v = draw_float();
    c.multiply(x.data(), M, together.data());
    for (int64_t m = 0, rows; m < M; m += rows) {
        rows = std::min<int64_t>(1 + draw() % 9, M - m);
        c.multiply(x.data() + m * c.K, rows, apart.data() + m * c.N);
    }
    double worst = 0;  // over the sum of sizes
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < c.N; n++) {
            double sum = 0, size = 1e-30;
            for (int64_t k = 0; k < c.K; k++) {
                const double product = c.at(n, k) * x[size_t(m * c.K + k)];
                sum += product, size += std::fabs(product);
            }
            worst = std::max(worst, std::fabs(sum - together[size_t(m * c.N + n)]) / size);
        }
    const bool same = std::memcmp(together.data(), apart.data(), together.size() * sizeof(float)) == 0;
    const bool close = worst < (c.quantize ? 0.0625 : 1e-5);  // e4m3 rounds by 1/16 at most
    if (!same || !close)
        std::printf("kind %d quantize %d N %ld K %ld: same bits %d, off by %g\n", c.kind, c.quantize, long(c.N),
                    long(c.K), same, worst);
    return same && close;
}

}  // namespace

int main() {
    int wrong = 0, cases = 0;
    for (const int kind : {KIND_F32, KIND_BF16, KIND_FP8, KIND_FP4})
        for (const bool quantize : {false, true})
            for (const int64_t K : {32, 96, 160, 1120})
                for (const int64_t N : {1, 31, 130}) wrong += !right(Case(kind, quantize, N, K)), cases++;
    std::printf("%d cases, %d wrong\n", cases, wrong);
    return wrong != 0;
}
