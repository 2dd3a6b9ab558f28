// y = x W^T for one thread: a range of weight rows times a range of activation rows.
//
// Every output element is one chain of a decoder's unit (`Fma`, `Dot`) over the weight row's chunks, in W lanes, and one
// fixed sum of the lanes. Tiles, panels and threads only decide which chains run side by side: results depend on nothing else.
#pragma once
#include "dequant.h"
#include "native/parallel.h"
#include "native/tiles.h"

namespace dsv4 {

struct Weight {
    int kind;
    const void* data;
    const void* scale;
    int64_t N, K;
};

// Weight rows [n0, n0 + count) of w; n0 is a multiple of 128 where scales cover 128 rows.
Weight rows_of(const Weight& w, int64_t n0, int64_t count);

// how many bytes its rows and its scales take
int64_t data_bytes(const Weight& w);
int64_t scale_bytes(const Weight& w);

// Prepared activations: row m lies at x + (index ? index[m] : m) * pitch. See `prepare`.
struct Input {
    const float* x;
    int64_t pitch;
    const int64_t* index;
    const float* row(int64_t m) const { return x + (index ? index[m] : m) * pitch; }
};

// Row m, column n goes to y[m * pitch + n], float32 or bfloat16.
struct Output {
    void* y;
    int64_t pitch;
    bool bf16;
};

constexpr int DIRECT_ROWS = 8;  // few rows: what threads share out is pieces of all products at once
constexpr int DECODED_ROWS = W == 16 ? 8 : 16;  // up to here weights are decoded in registers, above through a panel (FP4_FIXED: 4)
constexpr int TILE_ROWS = 96;   // activation rows per call of `multiply` that make best use of a panel
constexpr int PANEL_ROWS = TILES ? 64 : 48;  // the most weight rows of a panel

// kind with the activations looked at: FP8 and FP4 times activations that go through FP8 are products of bfloat16 where
// the machine has them (in tiles if it has those), else FP4 is computed in integers
int product_kind(int kind, bool quantize);

// kind with the scales looked at: FP8 with a scale of 2^7 or more takes the slower exact path
int exact_kind(int kind, const void* scale, int64_t N, int64_t K);

// floats that one prepared row takes: columns filled up with zeros to whole chunks (two bfloat16 to a float for the
// kinds of decode_bf16.h and gemm_tiles.h), or the records of gemm_fixed.cpp
int64_t prepared_size(int kind, int64_t K);

// One row of activations (float32 or bfloat16), cast through FP8 if asked (FP4_FIXED and tiles: always), in the order that `kind`
// wants. out may be x, in a row with room for both.
void prepare(int kind, const void* x, bool bf16, int64_t K, bool quantize, float* out);

// whether rows of x can be read where they are
bool usable_in_place(int kind, bool bf16, int64_t K, bool quantize, int64_t rows);

// weight rows [n0, n1) times activation rows [m0, m1)
void multiply(const Weight& w, int64_t n0, int64_t n1, const Input& in, int64_t m0, int64_t m1, const Output& out);

// y[M, N] = x[M, K] W^T with rows `x_pitch` and `y_pitch` elements apart; x and y are float32, or bfloat16 with `bf16`.
// quantize: x goes through FP8 in blocks of 128 columns.
struct Product {
    Weight w;
    const void* x;
    int64_t x_pitch;
    void* y;
    int64_t y_pitch;
    bool bf16, quantize;
};

// Products of M rows each, none of which reads what another writes. With few rows, pieces of all of them are shared out
// as one piece of work.
void linear_together(const Product* products, int64_t count, int64_t M, int threads);

// one product
void linear(const Weight& w, const void* x, int64_t x_pitch, void* y, int64_t y_pitch, int64_t M, bool bf16,
            bool quantize, int threads);

}  // namespace dsv4
