// Products in the tiles of AMX-BF16: see gemm_tiles.h.
//
// A tile of activations is 16 of their rows as prepared. A tile of weights has a row for each pair of columns and a pair
// for each of 16 weight rows: 64 bytes of 16 weight rows are turned so that a lane has the codes of one row, and then
// decoded lane by lane, which leaves the pairs in their places.
#include "gemm_tiles.h"

#include "native/tiles.h"

#if defined(DSV4_TILES)

#include <algorithm>

#include "decode_bf16.h"
#include "quant/quant.h"

namespace dsv4 {

namespace {

constexpr int SIDE = TILE_ROWS_MOST;     // rows of a tile, and weight rows of one
constexpr int64_t BLOCK = 32;            // columns of a tile: 16 pairs
constexpr int64_t TILE = 256;            // 32-bit numbers of a tile
constexpr int64_t DEPTH = 32;            // blocks that are decoded together
constexpr int64_t CODES = 64;            // bytes of a row that are decoded together

static_assert(W == SIDE, "a lane for each weight row of a tile");

int64_t blocks_of(int64_t K) { return (K + BLOCK - 1) / BLOCK; }

// S x S blocks on both sides of the diagonal of 2 S x 2 S ones change places
template <int S, int... L>
inline void swap_blocks(vf& a, vf& b, std::integer_sequence<int, L...>) {
    const vf above = chosen_lanes<(L & S ? W + L - S : L)...>(a, b);
    b = chosen_lanes<(L & S ? W + L : L + S)...>(a, b);
    a = above;
}
template <int S>
inline void swap_all(vf* v) {
    unrolled<W>([&](auto i) {
        if constexpr (!(decltype(i)::value & S)) swap_blocks<S>(v[i], v[i + S], std::make_integer_sequence<int, W>{});
    });
}

// v[d], lane n = what was v[n], lane d
inline void turn(vf* v) {
    swap_all<1>(v);
    swap_all<2>(v);
    swap_all<4>(v);
    swap_all<8>(v);
}

// Which weight rows a tile holds, and their codes.
struct TileRows {
    const uint8_t *codes, *scale;
    int64_t row_bytes, row_scales;  // from row to row; FP8: of a row of blocks
    int count;

    // v[d], lane n: bytes 4 d to 4 d + 3 from `at` on of row n; 0 where there is no row or no byte
    void get(int64_t at, vf* v) const {
        const int64_t bytes = std::min(CODES, row_bytes - at), ahead = distance(row_bytes, SIDE);
        for (int n = 0; n < SIDE; n++) {
            v[n] = vf{};
            if (n >= count) continue;
            const uint8_t* from = codes + n * row_bytes + at;
            prefetch(from + ahead);
            std::memcpy(&v[n], from, size_t(bytes));
        }
        turn(v);
    }
};

struct TilesFp8 {
    static constexpr int64_t SPAN = CODES, WIDTH = 4;  // columns of CODES bytes, and of a lane
    static TileRows rows(const Weight& w, int64_t n, int64_t end) {
        const int64_t blocks = (w.K + FP8_BLOCK - 1) / FP8_BLOCK, border = n / FP8_BLOCK * FP8_BLOCK + FP8_BLOCK;
        return {(const uint8_t*)w.data + n * w.K, (const uint8_t*)w.scale + n / FP8_BLOCK * blocks, w.K, blocks,
                int(std::min({end, border, n + SIDE}) - n)};
    }
    // the tiles of SPAN columns from k on
    static void decode(const TileRows& rows, int64_t k, float* to) {
        vf codes[W];
        rows.get(k, codes);
        const Fp8Table& table = FP8_TABLES[rows.scale[k / FP8_BLOCK]];
        for (int d = 0; d < W; d++, to += 2 * W) {
            const vb bytes = (vb)codes[d];
            const vhu low = (vhu)look_up_7_bits(table.low, bytes);
            const vhu high = (vhu)(look_up_7_bits(table.high, bytes) | (bytes & 0x80));
            store(to, (vf)((low & 0xff) | (high << 8)));
            store(to + W, (vf)((low >> 8) | (high & 0xff00)));
        }
    }
};

template <bool EXTREME>
struct TilesFp4 {
    static constexpr int64_t SPAN = 2 * CODES, WIDTH = 8;
    static TileRows rows(const Weight& w, int64_t n, int64_t end) {
        const int64_t blocks = w.K / FP4_BLOCK;
        return {(const uint8_t*)w.data + n * (w.K / 2), (const uint8_t*)w.scale + n * blocks, w.K / 2, blocks,
                int(std::min(end, n + SIDE) - n)};
    }
    static vhu any_scale(vhu codes, const uint8_t* scale, int r) {
        for (int i = 0; i < 2 * W; i++) {
            const Fp4Table& table = FP4_TABLES[scale[i / 2]];
            const int code = codes[i] >> (4 * r) & 15;
            codes[i] = uint16_t(table.low[code] | table.high[code] << 8);
        }
        return codes;
    }
    static void decode(const TileRows& rows, int64_t k, float* to) {
        vf codes[W];
        rows.get(k / 2, codes);
        const vhu table = load_as<vhu>(E2M1);
        const int64_t first = k / BLOCK, count = std::min(SPAN / BLOCK, rows.row_scales - first);
        for (int64_t b = 0; b < count; b++) {
            uint8_t scale[W] = {};
            uint32_t lowered[W];
            for (int n = 0; n < rows.count; n++) scale[n] = rows.scale[n * rows.row_scales + first + b];
            for (int n = 0; n < W; n++) lowered[n] = uint8_t(Fp4Dot<false>::LARGEST - scale[n]) * 0x00800080u;
            const vhu by = load_as<vhu>(lowered);
            for (int d = 0; d < 4; d++)
                for (int r = 0; r < 4; r++, to += W) {
                    const vhu pairs = (vhu)codes[4 * b + d];
                    store(to, (vf)(EXTREME ? any_scale(pairs, scale, r)
                                           : minus_to_zero(look_up_words(table, pairs >> (4 * r)), by)));
                }
        }
    }
};

// Tiles 0 to 3 are sums: activation rows 0 to 15 times weight rows 0 to 15 and 16 to 31, then activation rows 16 to 31.
// 4 and 5 are activations, 6 and 7 weights.
void shape_tiles(int64_t rows) {
    static thread_local TileShapes shapes;
    constexpr uint8_t half_of[8] = {0, 0, 1, 1, 0, 1, 2, 2};
    const uint8_t tall[3] = {uint8_t(std::min<int64_t>(rows, SIDE)), uint8_t(std::max<int64_t>(rows - SIDE, 0)), SIDE};
    for (int t = 0; t < 8; t++) {
        shapes.rows[t] = tall[half_of[t]];
        shapes.row_bytes[t] = shapes.rows[t] ? TILE_BYTES : 0;  // neither may be 0 alone
    }
    tile_memory(&shapes);
    _tile_loadconfig(&shapes);
}

// `count` blocks: activations at `a`, rows `pitch` bytes apart; decoded weights at `b`, those of rows 16 to 31 DEPTH
// tiles on. Sums start at 0 or go on from `sums`, and are left there.
template <bool ROWS_2, bool COLUMNS_2>
void add_blocks(const char* a, int64_t pitch, const float* b, int64_t count, bool first, float* sums) {
    if (first) {
        _tile_zero(0);
        if constexpr (COLUMNS_2) _tile_zero(1);
        if constexpr (ROWS_2) _tile_zero(2);
        if constexpr (ROWS_2 && COLUMNS_2) _tile_zero(3);
    } else {
        _tile_loadd(0, sums, TILE_BYTES);
        if constexpr (COLUMNS_2) _tile_loadd(1, sums + TILE, TILE_BYTES);
        if constexpr (ROWS_2) _tile_loadd(2, sums + 2 * TILE, TILE_BYTES);
        if constexpr (ROWS_2 && COLUMNS_2) _tile_loadd(3, sums + 3 * TILE, TILE_BYTES);
    }
    for (int64_t i = 0; i < count; i++, a += TILE_BYTES, b += TILE) {
        _tile_loadd(4, a, pitch);
        _tile_loadd(6, b, TILE_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (COLUMNS_2) {
            _tile_loadd(7, b + DEPTH * TILE, TILE_BYTES);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (ROWS_2) {
            _tile_loadd(5, a + SIDE * pitch, pitch);
            _tile_dpbf16ps(2, 5, 6);
        }
        if constexpr (ROWS_2 && COLUMNS_2) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, TILE_BYTES);
    if constexpr (COLUMNS_2) _tile_stored(1, sums + TILE, TILE_BYTES);
    if constexpr (ROWS_2) _tile_stored(2, sums + 2 * TILE, TILE_BYTES);
    if constexpr (ROWS_2 && COLUMNS_2) _tile_stored(3, sums + 3 * TILE, TILE_BYTES);
    tile_memory(sums);
}

// `columns` numbers of one row of sums
void put_row(const Output& out, int64_t m, int64_t n, const float* sums, int64_t columns) {
    const int64_t at = m * out.pitch + n;
    if (out.bf16) {
        for (int64_t i = 0; i < columns; i++) ((uint16_t*)out.y)[at + i] = to_bf16(sums[i]);
    } else {
        std::memcpy((float*)out.y + at, sums, size_t(columns) * sizeof(float));
    }
}

// Two tiles of weight rows [n, n + count[0] + count[1]) as far as they are decoded: blocks [block, block + count).
struct Pass {
    const float* panel;
    int64_t n, block, blocks;
    int64_t columns[2];
    bool first, last;
};

// times `rows` activation rows from m on, at most 32
void some_rows(const Pass& pass, const Input& in, int64_t m, int64_t rows, float* sums, const Output& out) {
    static thread_local Scratch memory;
    const char* a = (const char*)(in.row(m) + pass.block * W);
    int64_t pitch = in.pitch * int64_t(sizeof(float));
    if (in.index) {  // rows of a tile lie at equal distances
        pitch = (pass.blocks + 1) * TILE_BYTES;
        char* to = (char*)memory.bytes(2 * SIDE * pitch);
        for (int64_t r = 0; r < rows; r++)
            std::memcpy(to + r * pitch, in.row(m + r) + pass.block * W, size_t(pass.blocks * TILE_BYTES));
        a = to;
    }
    tile_memory(a);
    const bool tall = rows > SIDE, wide = pass.columns[1] > 0;
    const auto add = tall ? (wide ? add_blocks<true, true> : add_blocks<true, false>)
                          : (wide ? add_blocks<false, true> : add_blocks<false, false>);
    add(a, pitch, pass.panel, pass.blocks, pass.first, sums);
    if (!pass.last) return;
    for (int64_t r = 0; r < rows; r++)
        for (int t = 0; t < 1 + wide; t++)
            put_row(out, m + r, pass.n + (t ? pass.columns[0] : 0),
                    sums + (r / SIDE * 2 + t) * TILE + r % SIDE * SIDE, pass.columns[t]);
}

template <class D>
void multiply_as(const Weight& w, int64_t n0, int64_t n1, const Input& in, int64_t m0, int64_t m1,
                 const Output& out) {
    static thread_local Scratch panel_memory, sums_memory;
    constexpr int64_t TALL = 2 * SIDE;
    static_assert(DEPTH * BLOCK % D::SPAN == 0);
    const int64_t blocks = blocks_of(w.K);
    float* panel = panel_memory.floats(2 * DEPTH * TILE);
    float* sums = sums_memory.floats((m1 - m0 + TALL - 1) / TALL * 4 * TILE);
    int64_t shaped = 0;
    for (int64_t n = n0, next; n < n1; n = next) {
        const TileRows left = D::rows(w, n, n1), right = D::rows(w, n + left.count, n1);
        next = n + left.count + right.count;
        for (int64_t b = 0; b < blocks; b += DEPTH) {
            const int64_t count = std::min(DEPTH, blocks - b);
            for (int64_t k = b * BLOCK; k < std::min((b + count) * BLOCK, w.K); k += D::SPAN) {
                float* to = panel + (k / BLOCK - b) * TILE;
                D::decode(left, k, to);
                if (right.count > 0) D::decode(right, k, to + DEPTH * TILE);
            }
            tile_memory(panel);
            const Pass pass{panel, n, b, count, {left.count, right.count}, b == 0, b + count == blocks};
            for (int64_t m = m0; m < m1; m += TALL) {
                const int64_t rows = std::min(TALL, m1 - m);
                if (rows != shaped) shape_tiles(shaped = rows);
                some_rows(pass, in, m, rows, sums + (m - m0) / TALL * 4 * TILE, out);
            }
        }
    }
    _tile_release();
}

}  // namespace

int64_t tiles_size(int64_t K) { return blocks_of(K) * W; }

void prepare_tiles(int kind, const float* x, int64_t K, float* out) {
    static thread_local Scratch memory;
    const int64_t padded = blocks_of(K) * BLOCK, width = kind == KIND_FP8_TILES ? TilesFp8::WIDTH : TilesFp4<false>::WIDTH;
    float* in = memory.floats(padded);
    through_fp8(x, in, K);
    std::fill(in + K, in + padded, 0.0f);
    uint32_t* pairs = (uint32_t*)out;
    for (int64_t k = 0; k < padded; k += width)
        for (int64_t r = 0; r < width / 2; r++, pairs++) {
            uint32_t first, second;
            std::memcpy(&first, in + k + r, 4);
            std::memcpy(&second, in + k + width / 2 + r, 4);
            *pairs = first >> 16 | (second & 0xffff0000u);
        }
}

void multiply_tiles(const Weight& w, int64_t n0, int64_t n1, const Input& in, int64_t m0, int64_t m1,
                    const Output& out) {
    if (w.kind == KIND_FP8_TILES) return multiply_as<TilesFp8>(w, n0, n1, in, m0, m1, out);
    if (Fp4Dot<false>(w.data, w.scale, w.K).has_extreme(n0, n1))
        multiply_as<TilesFp4<true>>(w, n0, n1, in, m0, m1, out);
    else
        multiply_as<TilesFp4<false>>(w, n0, n1, in, m0, m1, out);
}

}  // namespace dsv4

#endif
