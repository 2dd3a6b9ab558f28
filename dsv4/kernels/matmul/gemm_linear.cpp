// The linear layer: work of one product shared out among threads.
#include <algorithm>

#include "gemm.h"

using namespace dsv4;

namespace {

constexpr int64_t BAND = 4 * TILE_ROWS;  // activation rows prepared at a time: bounds the memory for them

// bands of at most BAND rows: `in` holds rows [m0, m1), numbered from 0
void multiply_band(const Weight& w, const Input& in, int64_t rows, const Output& out, int threads) {
    const int64_t tile_rows = rows <= TILE_ROWS ? rows : TILE_ROWS;
    const int64_t across = (rows + tile_rows - 1) / tile_rows;
    int64_t step = PANEL_ROWS;
    if (rows <= DIRECT_ROWS)  // pieces small enough to even out two threads, long enough to stream
        step = std::max<int64_t>(16, (w.N / (threads * 8) + 15) / 16 * 16);
    else
        while (step >= 24 && across * (w.N / step) < threads * 4) step /= 2;
    const int64_t down = (w.N + step - 1) / step;
    parallel(threads, across * down, [&](int64_t unit) {
        const int64_t n = unit / across * step, m = unit % across * tile_rows;
        multiply(w, n, std::min(n + step, w.N), in, m, std::min(m + tile_rows, rows), out);
    });
}

}  // namespace

namespace dsv4 {

void linear(const Weight& given, const void* x, int64_t x_pitch, void* y, int64_t y_pitch, int64_t M, bool bf16,
            bool quantize, int threads) {
    static thread_local Scratch memory;
    Weight w = given;
    const int kind = product_kind(given.kind, quantize);
    w.kind = exact_kind(kind, w.scale, w.N, w.K);
    threads = worth(double(M) * double(w.N) * double(w.K), threads);
    const int64_t bytes = bf16 ? 2 : 4, pitch = prepared_size(kind, w.K) + 16;
    for (int64_t m = 0; m < M; m += BAND) {
        const int64_t rows = std::min(BAND, M - m);
        const char* from = (const char*)x + m * x_pitch * bytes;
        Input in{(const float*)from, x_pitch, nullptr};
        if (!usable_in_place(kind, bf16, w.K, quantize, rows)) {
            float* to = memory.floats(rows * pitch);
            in = Input{to, pitch, nullptr};
            const int sharing = rows > DIRECT_ROWS ? threads : 1;
            const auto prepare_row = [&](int64_t r) {
                prepare(kind, from + r * x_pitch * bytes, bf16, w.K, quantize, to + r * pitch);
            };
            parallel(sharing, rows, prepare_row, shares(rows, sharing));
        }
        multiply_band(w, in, rows, Output{(char*)y + m * y_pitch * bytes, y_pitch, bf16}, threads);
    }
}

}  // namespace dsv4

// y[M, N] = x[M, K] W[N, K]^T. x and y are float32, or bfloat16 with `bf16`; kind: dequant.h; quantize: x goes through
// FP8 in blocks of 128 columns.
extern "C" void dsv4_linear(const void* x, const void* weight, const void* scale, void* y, int64_t M, int64_t N,
                            int64_t K, int kind, int bf16, int quantize, int threads) {
    linear(Weight{kind, weight, scale, N, K}, x, K, y, N, M, bf16, quantize, threads);
}
