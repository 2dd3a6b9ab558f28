// Matrix products with weights as stored: see gemm.h for what makes them independent of the batch.
#include "gemm.h"

#include <algorithm>

#include "decode_bf16.h"
#include "gemm_fixed.h"
#include "gemm_tiles.h"
#include "put.h"
#include "quant/quant.h"

namespace dsv4 {

namespace {

bool in_tiles(int kind) { return kind == KIND_FP8_TILES || kind == KIND_FP4_TILES; }

constexpr int64_t DEPTH = 512;         // floats of a panel row; a multiple of every decoder's floats of a chunk
constexpr int64_t PITCH = DEPTH + 16;  // floats from panel row to panel row: off the powers of two that caches dislike
// a tile in registers: activation rows, weight rows. 32 registers hold 24 sums, 4 weights and an activation
constexpr int TILE_M = W == 16 ? 6 : 4, TILE_N = W == 16 ? 4 : 3;

// floats that a prepared or decoded chunk takes
template <class D>
constexpr int64_t STEP = D::VECTORS * W;
template <class D>
constexpr int64_t chunks_of(const D& d) {
    return (d.K + D::CHUNK - 1) / D::CHUNK;
}

// Rows of one block of some decoders share what they are decoded with: chunks of such rows are decoded side by side.
template <class D>
constexpr bool SHARING = requires(const typename D::Row& row) { row.shared(0); };
struct Nothing {};

// R weight rows times M activation rows, decoded in registers, two weight rows at a time where registers allow
template <class D, int R, int M>
void dot_rows(const D& w, int64_t n, const float* const* x, int64_t m, const Output& out) {
    using Unit = typename D::Unit;
    constexpr int V = D::VECTORS, P = V / D::PARTS, TOGETHER = R % 2 || (M > 3 && W < 16) ? 1 : 2;
    typename D::Row row[R];
    for (int r = 0; r < R; r++) row[r] = w.row(n + r, R);
    vf acc[M][R] = {};
    const int64_t whole = w.K / D::CHUNK;
    for (int64_t c = 0; c < whole; c++) {
        const auto shared = [&] {
            if constexpr (SHARING<D>)
                return row[0].shared(c);
            else
                return Nothing{};
        }();
        unrolled<R / TOGETHER * D::PARTS>([&](auto step) __attribute__((always_inline)) {
            constexpr int r = step / D::PARTS * TOGETHER, part = step % D::PARTS;
            vf v[TOGETHER][P];
            unrolled<TOGETHER>([&](auto t) __attribute__((always_inline)) {
                if constexpr (SHARING<D>)
                    row[r + t].get(c, part, v[t], shared);
                else
                    row[r + t].get(c, part, v[t]);
            });
            unrolled<P * M>([&](auto at) {
                constexpr int j = at / M, i = at % M;
                const vf xs = load(x[i] + c * STEP<D> + (part * P + j) * W);
                unrolled<TOGETHER>([&](auto t) { acc[i][r + t] = Unit::add(v[t][j], xs, acc[i][r + t]); });
            });
        });
    }
    if (whole * D::CHUNK < w.K)
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
            vf v[V];
            row[r].tail(whole, v);
            unrolled<M * V>([&](auto step) {
                constexpr int i = step / V, j = step % V;
                const int64_t at = whole * STEP<D> + j * W;
                // activations of float weights may be the caller's own row, which ends at K
                const vf xs = V == 1 ? load_part(x[i] + at, int(w.K - at)) : load(x[i] + at);
                acc[i][r] = Unit::add(v[j], xs, acc[i][r]);
            });
        });
    unrolled<M>([&](auto i) { put<R>(out, m + i, n, acc[i]); });
}

template <class D, int M>
void direct(const D& w, int64_t n0, int64_t n1, const Input& in, int64_t m0, const Output& out) {
    constexpr int R = M <= 2 ? 4 : 2;
    const float* x[M];
    for (int i = 0; i < M; i++) x[i] = in.row(m0 + i);
    const auto side_by_side = [n1](int64_t n) {
        if constexpr (SHARING<D>)
            if (n % D::SHARED_ROWS + R > D::SHARED_ROWS) return false;
        return n + R <= n1;
    };
    for (int64_t n = n0; n < n1;) {
        if (side_by_side(n))
            dot_rows<D, R, M>(w, n, x, m0, out), n += R;
        else
            dot_rows<D, 1, M>(w, n, x, m0, out), n++;
    }
}

// `rows` prepared rows with the scale of each block of columns multiplied in, and 2^120; false where a number would
// leave float32's range. Powers of two change no bit of a product: weights then need no scale (`Fp8Plain`).
bool scaled_rows(const uint8_t* scale, int64_t K, const Input& in, int64_t m0, int64_t rows, float* out,
                 int64_t pitch) {
    vf most{};
    for (int64_t k = 0; k < K; k += FP8_BLOCK, scale++) {
        if (*scale < 7 || *scale == 255) return false;  // times less than 1: small numbers would lose bits
        const vf factor = splat(POWERS.times_2_120[*scale]);
        const int64_t end = std::min(k + FP8_BLOCK, K);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = k; j < end; j += W) {
                const vf v = load(in.row(m0 + i) + j) * factor;
                store(out + i * pitch + j, v);
                most = max(max(v, -v), most);  // passes over NaN, which is NaN either way
            }
    }
    for (int i = 0; i < W; i++)
        if (!(most[i] < INFINITY)) return false;
    return true;
}

// Rows of one 128-row block share their scales: those go into a copy of the few activation rows.
template <int M>
void direct_scaled(const Fp8<false, false>& w, int64_t n0, int64_t n1, const Input& in, int64_t m0,
                   const Output& out) {
    static thread_local Scratch memory;
    constexpr int64_t ENOUGH = 8;  // weight rows that pay for the copy
    const int64_t padded = (w.K + w.CHUNK - 1) / w.CHUNK * w.CHUNK, pitch = padded + 16;
    const Output shifted{(char*)out.y + m0 * out.pitch * (out.bf16 ? 2 : 4), out.pitch, out.bf16};
    float* x = memory.floats(M * pitch);
    for (int64_t n = n0, end; n < n1; n = end) {
        end = std::min(n1, n / FP8_BLOCK * FP8_BLOCK + FP8_BLOCK);
        const uint8_t* scale = (const uint8_t*)w.scale + n / FP8_BLOCK * w.blocks;
        if (end - n >= ENOUGH && scaled_rows(scale, padded, in, m0, M, x, pitch))
            direct<Fp8Plain, M>(Fp8Plain(w), n, end, Input{x, pitch, nullptr}, 0, shifted);
        else
            direct<Fp8<false, false>, M>(w, n, end, in, m0, out);
    }
}

template <class D, int M>
void direct_best(const D& w, int64_t n0, int64_t n1, const Input& in, int64_t m0, const Output& out) {
    if constexpr (std::is_same_v<D, Fp8<false, false>>)
        direct_scaled<M>(w, n0, n1, in, m0, out);
    else
        direct<D, M>(w, n0, n1, in, m0, out);
}

// At most DECODED_ROWS. More than four take 128 weight rows at a time and several times, from the cache after the first.
template <class D>
void direct_any(const D& w, int64_t n0, int64_t n1, const Input& in, int64_t m0, int64_t m1, const Output& out) {
    switch (m1 - m0) {
        case 1: return direct_best<D, 1>(w, n0, n1, in, m0, out);
        case 2: return direct_best<D, 2>(w, n0, n1, in, m0, out);
        case 3: return direct_best<D, 3>(w, n0, n1, in, m0, out);
        case 4: return direct_best<D, 4>(w, n0, n1, in, m0, out);
    }
    if constexpr (std::is_same_v<typename D::Unit, Dot>) switch (m1 - m0) {
            case 5: return direct<D, 5>(w, n0, n1, in, m0, out);
            case 6: return direct<D, 6>(w, n0, n1, in, m0, out);
            case 7: return direct<D, 7>(w, n0, n1, in, m0, out);
            case 8: return direct<D, 8>(w, n0, n1, in, m0, out);
        }
    for (int64_t n = n0, end; n < n1; n = end) {
        end = std::min(n1, n / FP8_BLOCK * FP8_BLOCK + FP8_BLOCK);
        int64_t m = m0;
        for (int64_t passes = (m1 - m0 + 3) / 4; passes > 0; passes--) {  // rows shared out evenly: 5 are 3 + 2
            const int64_t rows = (m1 - m + passes - 1) / passes;
            direct_any(w, n, end, in, m, m + rows, out);
            m += rows;
        }
    }
}

// chunks [c0, c1) of weight rows [n0, n1)
template <class D>
void fill_panel(const D& w, int64_t n0, int64_t n1, int64_t c0, int64_t c1, float* panel) {
    constexpr int V = D::VECTORS, P = V / D::PARTS;
    const int64_t whole = std::min(c1, w.K / D::CHUNK);
    for (int64_t n = n0; n < n1; n++, panel += PITCH) {
        const auto row = w.row(n, 4);
        float* to = panel;
        vf v[V];
        for (int64_t c = c0; c < whole; c++, to += STEP<D>) {
            for (int part = 0; part < D::PARTS; part++) row.get(c, part, v + part * P);
            for (int j = 0; j < V; j++) store(to + j * W, v[j]);
        }
        if (whole < c1) {
            row.tail(whole, v);
            for (int j = 0; j < V; j++) store(to + j * W, v[j]);
        }
    }
}

// What the tiles of a panel share: its width in rows, its depth in floats, and whether it is the first and the last
// of its product. `saved` holds the running vectors between them.
struct Panel {
    const float* rows;
    int64_t columns, depth;
    bool first, last;
    float* saved;
};

// MR activation rows times NR panel rows from `column` on; `saved` is that of the first of these activation rows
template <class Unit, int MR, int NR>
void tile(const float* const* x, const Panel& panel, int64_t column, float* saved, int64_t m, int64_t n,
          const Output& out) {
    const float* rows = panel.rows + column * PITCH;
    vf acc[MR][NR];
    saved += column * W;
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) acc[i][j] = panel.first ? vf{} : load(saved + (i * PANEL_ROWS + j) * W);
    for (int64_t k = 0; k < panel.depth; k += W) {
        vf w[NR];
#pragma GCC unroll 4
        for (int j = 0; j < NR; j++) w[j] = load(rows + j * PITCH + k);
#pragma GCC unroll 6
        for (int i = 0; i < MR; i++) {
            const vf v = load(x[i] + k);
#pragma GCC unroll 4
            for (int j = 0; j < NR; j++) acc[i][j] = Unit::add(w[j], v, acc[i][j]);
        }
    }
    for (int i = 0; i < MR; i++) {
        if (panel.last)
            put<NR>(out, m + i, n + column, acc[i]);
        else
            for (int j = 0; j < NR; j++) store(saved + (i * PANEL_ROWS + j) * W, acc[i][j]);
    }
}

template <class Unit, int MR>
void tiles_of_rows(const float* const* x, const Panel& panel, float* saved, int64_t m, int64_t n, const Output& out) {
    int64_t j = 0;
    for (; j + TILE_N <= panel.columns; j += TILE_N) tile<Unit, MR, TILE_N>(x, panel, j, saved, m, n, out);
    switch (panel.columns - j) {
        case 3: return tile<Unit, MR, 3>(x, panel, j, saved, m, n, out);
        case 2: return tile<Unit, MR, 2>(x, panel, j, saved, m, n, out);
        case 1: return tile<Unit, MR, 1>(x, panel, j, saved, m, n, out);
    }
}

// `rows` activation rows from m on, at most MR, times all of a panel
template <class Unit, int MR>
void some_rows(int64_t rows, const float* const* x, const Panel& panel, float* saved, int64_t m, int64_t n,
               const Output& out) {
    if constexpr (MR > 1)
        if (rows < MR) return some_rows<Unit, MR - 1>(rows, x, panel, saved, m, n, out);
    tiles_of_rows<Unit, MR>(x, panel, saved, m, n, out);
}

template <class D>
void through_panel(const D& w, int64_t n0, int64_t n1, const Input& in, int64_t m0, int64_t m1, const Output& out) {
    static thread_local Scratch panel_memory, saved_memory;
    constexpr int64_t PANEL_CHUNKS = DEPTH / STEP<D>;
    static_assert(DEPTH % STEP<D> == 0);
    const int64_t chunks = chunks_of(w), groups = (m1 - m0 + TILE_M - 1) / TILE_M;
    float* rows = panel_memory.floats(PANEL_ROWS * PITCH);
    float* saved = chunks > PANEL_CHUNKS ? saved_memory.floats((m1 - m0) * PANEL_ROWS * W) : nullptr;
    for (int64_t c = 0; c < chunks; c += PANEL_CHUNKS) {
        const int64_t count = std::min(PANEL_CHUNKS, chunks - c);
        fill_panel(w, n0, n1, c, c + count, rows);
        const Panel panel{rows, n1 - n0, count * STEP<D>, c == 0, c + count == chunks, saved};
        int64_t m = m0;
        for (int64_t g = groups; g > 0; g--) {  // rows shared out evenly: 5 are 3 + 2
            const int64_t together = (m1 - m + g - 1) / g;
            const float* x[TILE_M];
            for (int64_t i = 0; i < together; i++) x[i] = in.row(m + i) + c * STEP<D>;
            some_rows<typename D::Unit, TILE_M>(together, x, panel, saved + (m - m0) * PANEL_ROWS * W, m, n0, out);
            m += together;
        }
    }
}

template <class D>
void through_panels(const D& w, int64_t n0, int64_t n1, const Input& in, int64_t m0, int64_t m1, const Output& out) {
    for (int64_t n = n0; n < n1; n += PANEL_ROWS)
        through_panel(w, n, std::min(n + PANEL_ROWS, n1), in, m0, m1, out);
}

template <class D>
void prepare_as(const void* x, bool bf16, int64_t K, bool quantize, float* out) {
    static thread_local Scratch memory;
    float* room = memory.floats(K);
    const float* in = as_floats(x, bf16, K, room);
    if (quantize) through_fp8(in, room, K), in = room;
    if (in == out) std::memcpy(room, in, K * sizeof(float)), in = room;
    const int64_t whole = K / D::CHUNK * D::CHUNK;
    for (int64_t k = 0; k < whole; k += D::CHUNK, out += STEP<D>) D::arrange(in + k, out);
    if (whole < K) {
        float part[D::CHUNK] = {};
        std::memcpy(part, in + whole, (K - whole) * sizeof(float));
        D::arrange(part, out);
    }
}

}  // namespace

int exact_kind(int kind, const void* scale, int64_t N, int64_t K) {
    const int64_t count = ((N + FP8_BLOCK - 1) / FP8_BLOCK) * ((K + FP8_BLOCK - 1) / FP8_BLOCK);
    if (kind == KIND_FP8) {
        uint8_t most = 0;
        for (int64_t i = 0; i < count; i++) most = std::max(most, ((const uint8_t*)scale)[i]);
        return most >= 127 + 7 ? KIND_FP8_WIDE : kind;
    }
    if (kind == KIND_FP8_F32SCALE)
        for (int64_t i = 0; i < count; i++)
            if (!(std::fabs(((const float*)scale)[i]) < 128.0f)) return KIND_FP8_F32SCALE_WIDE;
    return kind;
}

int product_kind(int kind, bool quantize) {
    if (!quantize) return kind;
    if (kind == KIND_FP4) return TILES ? KIND_FP4_TILES : BF16_DOT ? KIND_FP4_DOT : KIND_FP4_FIXED;
    if (kind == KIND_FP8) return TILES ? KIND_FP8_TILES : BF16_DOT ? KIND_FP8_DOT : KIND_FP8;
    return kind;
}

int64_t data_bytes(const Weight& w) {
    switch (w.kind) {
        case KIND_F32: return w.N * w.K * 4;
        case KIND_BF16: return w.N * w.K * 2;
        case KIND_FP4:
        case KIND_FP4_DOT:
        case KIND_FP4_TILES:
        case KIND_FP4_FIXED: return w.N * (w.K / 2);
        default: return w.N * w.K;
    }
}

int64_t scale_bytes(const Weight& w) {
    const int64_t tiles = (w.N + FP8_BLOCK - 1) / FP8_BLOCK * ((w.K + FP8_BLOCK - 1) / FP8_BLOCK);
    switch (w.kind) {
        case KIND_F32:
        case KIND_BF16: return 0;
        case KIND_FP4:
        case KIND_FP4_DOT:
        case KIND_FP4_TILES:
        case KIND_FP4_FIXED: return w.N * (w.K / FP4_BLOCK);
        case KIND_FP8:
        case KIND_FP8_DOT:
        case KIND_FP8_TILES:
        case KIND_FP8_WIDE: return tiles;
        default: return tiles * 4;
    }
}

Weight rows_of(const Weight& w, int64_t n0, int64_t count) {
    const Weight before{w.kind, w.data, w.scale, n0, w.K};
    const char *data = (const char*)w.data + data_bytes(before), *scale = (const char*)w.scale;
    return {w.kind, data, scale ? scale + scale_bytes(before) : nullptr, count, w.K};
}

int64_t prepared_size(int kind, int64_t K) {
    if constexpr (TILES)
        if (in_tiles(kind)) return tiles_size(K);
    if (kind == KIND_FP4_FIXED) return fixed_size(K);
    int64_t size = 0;
    with_decoder(kind, [&](auto* d) {
        using D = std::remove_pointer_t<decltype(d)>;
        size = (K + D::CHUNK - 1) / D::CHUNK * STEP<D>;
    });
    return size;
}

void prepare(int kind, const void* x, bool bf16, int64_t K, bool quantize, float* out) {
    static thread_local Scratch memory;
    const auto floats = [&] { return as_floats(x, bf16, K, bf16 ? memory.floats(K) : nullptr); };
    if (kind == KIND_FP4_FIXED) return prepare_fixed(floats(), K, out);
    if constexpr (TILES)
        if (in_tiles(kind)) return prepare_tiles(kind, floats(), K, out);
    with_decoder(kind, [&](auto* d) { prepare_as<std::remove_pointer_t<decltype(d)>>(x, bf16, K, quantize, out); });
}

bool usable_in_place(int kind, bool bf16, int64_t K, bool quantize, int64_t rows) {
    return kind == KIND_F32 && !bf16 && !quantize && (rows <= DIRECT_ROWS || (K % W == 0 && K <= 2 * DEPTH));
}

void multiply(const Weight& w, int64_t n0, int64_t n1, const Input& in, int64_t m0, int64_t m1, const Output& out) {
    if (m1 <= m0 || n1 <= n0) return;
    if (w.kind == KIND_FP4_FIXED) return multiply_fixed(w, n0, n1, in, m0, m1, out);
    if constexpr (TILES)
        if (in_tiles(w.kind)) return multiply_tiles(w, n0, n1, in, m0, m1, out);
    with_decoder(w.kind, [&](auto* d) {
        using D = std::remove_pointer_t<decltype(d)>;
        const D decoder(w.data, w.scale, w.K);
        if constexpr (std::is_same_v<D, Fp4Dot<false>>)
            if (decoder.has_extreme(n0, n1))
                return through_panels(Fp4Dot<true>(w.data, w.scale, w.K), n0, n1, in, m0, m1, out);
        if constexpr (D::DIRECT)
            if (m1 - m0 <= DECODED_ROWS) return direct_any(decoder, n0, n1, in, m0, m1, out);
        through_panels(decoder, n0, n1, in, m0, m1, out);
    });
}

}  // namespace dsv4
