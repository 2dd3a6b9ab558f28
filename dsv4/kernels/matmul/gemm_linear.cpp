// The linear layer: work of one product, or of several, shared out among threads.
#include <algorithm>
#include <vector>

#include "gemm.h"

using namespace dsv4;

namespace {

constexpr int64_t BAND = 4 * TILE_ROWS;  // activation rows prepared at a time: bounds the memory for them
constexpr int64_t PIECES = 8;            // of each thread: small enough to even out two, long enough to stream
constexpr int64_t PIECE_ROWS = 16;       // a piece is a multiple of them

Weight as_computed(const Product& p) {
    Weight w = p.w;
    w.kind = exact_kind(product_kind(w.kind, p.quantize), w.scale, w.N, w.K);
    return w;
}

char* element(void* y, bool bf16, int64_t i) { return (char*)y + i * (bf16 ? 2 : 4); }

// bands of at most BAND rows: `in` holds rows [m0, m1), numbered from 0
void multiply_band(const Weight& w, const Input& in, int64_t rows, const Output& out, int threads) {
    const int64_t tile_rows = std::min<int64_t>(rows, TILE_ROWS), across = (rows + tile_rows - 1) / tile_rows;
    int64_t step = PANEL_ROWS;
    while (step >= 24 && across * (w.N / step) < threads * 4) step /= 2;
    const int64_t down = (w.N + step - 1) / step;
    parallel(threads, across * down, [&](int64_t unit) {
        const int64_t n = unit / across * step, m = unit % across * tile_rows;
        multiply(w, n, std::min(n + step, w.N), in, m, std::min(m + tile_rows, rows), out);
    });
}

void many_rows(const Product& p, int64_t M, int threads) {
    static thread_local Scratch memory;
    const Weight w = as_computed(p);
    const int64_t kind = product_kind(p.w.kind, p.quantize), pitch = prepared_size(int(kind), w.K) + 16;
    threads = worth(double(M) * double(w.N) * double(w.K), threads);
    for (int64_t m = 0; m < M; m += BAND) {
        const int64_t rows = std::min(BAND, M - m);
        const char* from = element((void*)p.x, p.bf16, m * p.x_pitch);
        Input in{(const float*)from, p.x_pitch, nullptr};
        if (!usable_in_place(int(kind), p.bf16, w.K, p.quantize, rows)) {
            float* to = memory.floats(rows * pitch);
            in = Input{to, pitch, nullptr};
            const auto prepare_row = [&](int64_t r) {
                prepare(int(kind), element((void*)from, p.bf16, r * p.x_pitch), p.bf16, w.K, p.quantize,
                        to + r * pitch);
            };
            parallel(threads, rows, prepare_row, shares(rows, threads));
        }
        multiply_band(w, in, rows, Output{element(p.y, p.bf16, m * p.y_pitch), p.y_pitch, p.bf16}, threads);
    }
}

// One of several products of few rows: its activations, and how many rows of it are a piece of work.
struct Prepared {
    const Product* product;
    Weight w;
    int kind;  // as activations are prepared for it
    Input in;
    int64_t at = -1, step = 0;  // at: where its activations are prepared, -1 = they are read where they lie

    bool like(const Prepared& o) const {
        const Product &a = *product, &b = *o.product;
        return kind == o.kind && a.x == b.x && a.x_pitch == b.x_pitch && w.K == o.w.K && a.quantize == b.quantize;
    }
    int64_t pitch() const { return prepared_size(kind, w.K) + 16; }
    int64_t pieces() const { return (w.N + step - 1) / step; }
    void multiply_piece(int64_t piece, int64_t M) const {
        const int64_t n = piece * step;
        multiply(w, n, std::min(n + step, w.N), in, 0, M, Output{product->y, product->y_pitch, product->bf16});
    }
};

// the activations of each product, prepared once where several products read the same
void prepare_all(std::vector<Prepared>& all, int64_t M) {
    static thread_local Scratch memory;
    int64_t size = 0;
    for (Prepared& p : all) {
        p.in = {(const float*)p.product->x, p.product->x_pitch, nullptr};
        if (usable_in_place(p.kind, p.product->bf16, p.w.K, p.product->quantize, M)) continue;
        const auto same = std::find_if(all.data(), &p, [&](const Prepared& o) { return o.at >= 0 && o.like(p); });
        p.at = same == &p ? size : same->at;
        if (same == &p) size += M * p.pitch();
    }
    float* to = memory.floats(size);
    int64_t done = 0;
    for (Prepared& p : all) {
        if (p.at < 0) continue;
        const Product& given = *p.product;
        for (int64_t m = 0; p.at == done && m < M; m++)
            prepare(p.kind, element((void*)given.x, given.bf16, m * given.x_pitch), given.bf16, p.w.K, given.quantize,
                    to + p.at + m * p.pitch());
        if (p.at == done) done += M * p.pitch();
        p.in = {to + p.at, p.pitch(), nullptr};
    }
}

// Pieces of all products of few rows are shared out together: between two of them no thread waits.
void few_rows(const Product* products, int64_t count, int64_t M, int threads) {
    std::vector<Prepared> all;
    double work = 0;
    int64_t bytes = 0;
    for (int64_t i = 0; i < count; i++) {
        const Product& p = products[i];
        all.push_back({&p, as_computed(p), product_kind(p.w.kind, p.quantize), {}});
        work += double(M) * double(p.w.N) * double(p.w.K), bytes += data_bytes(p.w);
    }
    threads = worth(work, threads);
    prepare_all(all, M);
    int64_t pieces = 0;
    for (Prepared& p : all) {
        const int64_t row = std::max<int64_t>(1, data_bytes({p.w.kind, nullptr, nullptr, 1, p.w.K}));
        const int64_t rows = bytes / (threads * PIECES) / row;
        p.step = std::max<int64_t>(1, (rows + PIECE_ROWS - 1) / PIECE_ROWS) * PIECE_ROWS;
        pieces += p.pieces();
    }
    parallel(threads, pieces, [&](int64_t piece) {
        const Prepared* p = all.data();
        for (; piece >= p->pieces(); p++) piece -= p->pieces();
        p->multiply_piece(piece, M);
    });
}

}  // namespace

namespace dsv4 {

void linear_together(const Product* products, int64_t count, int64_t M, int threads) {
    if (M <= 0) return;
    if (M <= DIRECT_ROWS) return few_rows(products, count, M, threads);
    for (int64_t i = 0; i < count; i++) many_rows(products[i], M, threads);
}

void linear(const Weight& w, const void* x, int64_t x_pitch, void* y, int64_t y_pitch, int64_t M, bool bf16,
            bool quantize, int threads) {
    const Product one{w, x, x_pitch, y, y_pitch, bf16, quantize};
    linear_together(&one, 1, M, threads);
}

}  // namespace dsv4

// y[M, N] = x[M, K] W[N, K]^T. x and y are float32, or bfloat16 with `bf16`; kind: dequant.h; quantize: x goes through
// FP8 in blocks of 128 columns.
extern "C" void dsv4_linear(const void* x, const void* weight, const void* scale, void* y, int64_t M, int64_t N,
                            int64_t K, int kind, int bf16, int quantize, int threads) {
    linear(Weight{kind, weight, scale, N, K}, x, K, y, N, M, bf16, quantize, threads);
}
