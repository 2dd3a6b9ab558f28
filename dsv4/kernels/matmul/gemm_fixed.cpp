// FP4 products in integers: see gemm_fixed.h.
//
// A chunk is 8 W columns: 4 W bytes of weights, and 4 vectors of 2 W numbers of 16 bits. A block of 32 columns has 16
// bytes of them, so each vector holds 8 columns of every block, and lanes 4 b to 4 b + 3 of a sum belong to block b.
#include "gemm_fixed.h"

#include <algorithm>

#include "put.h"
#include "quant/quant.h"

namespace dsv4 {

namespace {

constexpr int CHUNK = 8 * W, BLOCKS = CHUNK / FP4_BLOCK, VECTORS = 4;
constexpr int GROUP = 4;                      // chunks whose scales fill one vector
constexpr int64_t PANEL_CHUNKS = 1024 / CHUNK;  // decoded together: 1,024 columns
constexpr int ROWS = 6;                       // activation rows that share a decoded chunk
constexpr float STEP = 0x1p-15f;              // of a product: activations in 2^-6, weights in halves and 8 bits up

// e2m1 codes in halves
alignas(16) constexpr int8_t HALVES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// lane l = a[2 l] b[2 l] + a[2 l + 1] b[2 l + 1]
inline vi pair_products(vh a, vh b) {
#if defined(__AVX512BW__)
    return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    vi r;
    for (int l = 0; l < W; l++) r[l] = int32_t(a[2 * l]) * b[2 * l] + int32_t(a[2 * l + 1]) * b[2 * l + 1];
    return r;
#endif
}

inline vb every_16(const void* table) {
    vb v;
    for (int b = 0; b < BLOCKS; b++) std::memcpy((uint8_t*)&v + 16 * b, table, 16);
    return v;
}

// Columns 4 j, 4 j + 2, 4 j + 1 and 4 j + 3 of every block, times 2^9.
inline void decode(const uint8_t* p, vb halves, vh* out) {
    const vb bytes = load_as<vb>(p);
    const vh even = (vh)look_up(halves, bytes & 15), odd = (vh)look_up(halves, (vb)((vhu)bytes >> 4) & 15);
    constexpr int16_t upper = int16_t(0xff00);
    out[0] = even << 8;
    out[1] = even & upper;
    out[2] = odd << 8;
    out[3] = odd & upper;
}

// 2^(byte - 127) of a group's W bytes, block by block (GROUP chunks of it side by side); 0 is a subnormal, 255 NaN
inline vf powers(const uint8_t* bytes) {
    vi v;
#if defined(__AVX512F__)
    const __m128i turn = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    v = (vi)_mm512_cvtepu8_epi32(_mm_shuffle_epi8(_mm_loadu_si128((const __m128i*)bytes), turn));
#elif defined(__AVX2__)
    const __m128i turn = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, -1, -1, -1, -1, -1, -1, -1, -1);
    v = (vi)_mm256_cvtepu8_epi32(_mm_shuffle_epi8(_mm_loadl_epi64((const __m128i*)bytes), turn));
#else
    for (int i = 0; i < W; i++) v[i] = bytes[i % GROUP * BLOCKS + i / GROUP];
#endif
    const vi least = vi{} + 0x400000, bits = v << 23, not_a_number = (v == 255) & 0x7fc00000;
    return (vf)((bits > least ? bits : least) | not_a_number);
}

// lane l: the scale of its block in chunk C of a group
template <int C>
inline vf spread(vf scales) {
#if defined(DSV4_WIDE)
    return chosen_lanes<C, C, C, C, C + 4, C + 4, C + 4, C + 4, C + 8, C + 8, C + 8, C + 8, C + 12, C + 12, C + 12,
                        C + 12>(scales, scales);
#else
    return chosen_lanes<C, C, C, C, C + 4, C + 4, C + 4, C + 4>(scales, scales);
#endif
}

// A chunk of a prepared row, or of a decoded weight row: its numbers, and a vector of the scales of their blocks.
constexpr int RECORD = (VECTORS + 1) * W;  // floats
struct Records {
    const float* at;
    vh get(int64_t c, int v) const { return load_as<vh>(at + c * RECORD + v * W); }
    vf scale(int64_t c) const { return load(at + c * RECORD + VECTORS * W); }
};

// A prepared row: a record for each chunk, then its scales once more, in the places of a group's weight scales.
struct Activations : Records {
    const float* grouped;
    Activations() = default;
    Activations(const float* row, int64_t chunks) : Records{row}, grouped(row + chunks * RECORD) {}
    vf group_scales(int64_t g) const { return load(grouped + g * W); }
};

int64_t chunks_of(int64_t K) { return (K + CHUNK - 1) / CHUNK; }

// the products of chunk c, times 2^15 and without their scales
inline vf chunk_sum(const vh* w, const Records& x, int64_t c) {
    const vi t = (pair_products(w[0], x.get(c, 0)) + pair_products(w[1], x.get(c, 1))) +
                 (pair_products(w[2], x.get(c, 2)) + pair_products(w[3], x.get(c, 3)));
    return __builtin_convertvector(t, vf);
}

struct Row {
    const uint8_t *w, *scale;
    int64_t K, ahead;
    Row(const Weight& from, int64_t n, int together)
        : w((const uint8_t*)from.data + n * (from.K / 2)),
          scale((const uint8_t*)from.scale + n * (from.K / FP4_BLOCK)),
          K(from.K),
          ahead(distance(from.K / 2, together)) {}
    const uint8_t* at(int64_t c) const { return w + c * (CHUNK / 2); }
    vf scales(int64_t group) const { return powers(scale + group * W); }
};

// a last group of columns, made whole with zeros
struct RowEnd {
    uint8_t w[GROUP * CHUNK / 2] = {}, scale[W];
    int chunks;
    explicit RowEnd(const Row& row) {
        const int64_t from = row.K / (GROUP * CHUNK) * (GROUP * CHUNK), rest = row.K - from;
        std::memset(scale, 127, sizeof scale);
        std::memcpy(w, row.w + from / 2, rest / 2);
        std::memcpy(scale, row.scale + from / FP4_BLOCK, rest / FP4_BLOCK);
        chunks = int(chunks_of(rest));
    }
};

// run(chunk of the group as a constant) for the first `count` chunks of a group
template <class F>
inline void for_chunks(int count, F run) {
    run(std::integral_constant<int, 0>{});
    if (count > 1) run(std::integral_constant<int, 1>{});
    if (count > 2) run(std::integral_constant<int, 2>{});
    if (count > 3) run(std::integral_constant<int, 3>{});
}

// R weight rows times M activation rows, decoded in registers
template <int R, int M>
void dot_rows(const Weight& w, int64_t n, const Activations* x, int64_t m, const Output& out) {
    const vb halves = every_16(HALVES);
    const int64_t groups = w.K / (GROUP * CHUNK);
    vf acc[M][R] = {};
    const auto add = [&](int r, const uint8_t* bytes, vf scale, int64_t c) {
        vh v[VECTORS];
        decode(bytes, halves, v);
#pragma GCC unroll 4
        for (int i = 0; i < M; i++)
            acc[i][r] = fma(chunk_sum(v, x[i], c), M == 1 ? scale : scale * x[i].scale(c), acc[i][r]);
    };
    for (int64_t g = 0; g < groups; g++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const Row row(w, n + r, R);
            const vf scales = M == 1 ? row.scales(g) * x[0].group_scales(g) : row.scales(g);
            for_chunks(GROUP, [&](auto C) {
                const int64_t c = g * GROUP + C;
                if (C % (64 * 2 / CHUNK) == 0) prefetch(row.at(c) + row.ahead);
                add(r, row.at(c), spread<C>(scales), c);
            });
        }
    if (groups * GROUP * CHUNK < w.K)
        for (int r = 0; r < R; r++) {
            const RowEnd end(Row(w, n + r, R));
            const vf scales = M == 1 ? powers(end.scale) * x[0].group_scales(groups) : powers(end.scale);
            for_chunks(end.chunks, [&](auto C) {
                add(r, end.w + C * (CHUNK / 2), spread<C>(scales), groups * GROUP + C);
            });
        }
    for (int i = 0; i < M; i++) put<R>(out, m + i, n, acc[i]);
}

template <int M>
void direct(const Weight& w, int64_t n0, int64_t n1, const Input& in, int64_t m0, const Output& out) {
    constexpr int R = M == 1 ? 4 : 2;
    Activations x[M];
    for (int i = 0; i < M; i++) x[i] = Activations(in.row(m0 + i), chunks_of(w.K));
    int64_t n = n0;
    for (; n + R <= n1; n += R) dot_rows<R, M>(w, n, x, m0, out);
    for (; n < n1; n++) dot_rows<1, M>(w, n, x, m0, out);
}

// Decoded weight rows, PANEL_CHUNKS records each.
struct Panel {
    float* room;
    static constexpr int64_t PITCH = PANEL_CHUNKS * RECORD + 16, FLOATS = PANEL_ROWS * PITCH;
    Records row(int64_t n) const { return {room + n * PITCH}; }

    void set(int64_t n, int64_t c, const uint8_t* bytes, vb halves, vf scale) {
        float* to = room + n * PITCH + c * RECORD;
        vh v[VECTORS];
        decode(bytes, halves, v);
        std::memcpy(to, v, sizeof v);
        store(to + VECTORS * W, scale);
    }

    // chunks [from, to) of weight rows [n0, n1); `from` starts a group
    void fill(const Weight& w, int64_t n0, int64_t n1, int64_t from, int64_t to) {
        const vb halves = every_16(HALVES);
        const int64_t groups = std::min(to / GROUP, w.K / (GROUP * CHUNK));
        for (int64_t n = n0; n < n1; n++) {
            const Row row(w, n, 4);
            for (int64_t g = from / GROUP; g < groups; g++) {
                const vf scales = row.scales(g);
                for_chunks(GROUP, [&](auto C) {
                    const int64_t c = g * GROUP + C;
                    prefetch(row.at(c) + row.ahead);
                    set(n - n0, c - from, row.at(c), halves, spread<C>(scales));
                });
            }
            if (groups * GROUP >= to) continue;
            const RowEnd end(row);
            const vf scales = powers(end.scale);
            for_chunks(end.chunks, [&](auto C) {
                set(n - n0, groups * GROUP + C - from, end.w + C * (CHUNK / 2), halves, spread<C>(scales));
            });
        }
    }
};

// A panel's chunks [from, from + count) for `rows` activation rows; `saved` holds the running vectors between panels.
struct Pass {
    const Panel& panel;
    int64_t from, count;
    bool first, last;
    float* saved;
};

template <int M>
void tile(const Pass& pass, const Activations* x, int64_t row, int64_t column, int64_t m, int64_t n,
          const Output& out) {
    vf acc[M];
    float* saved = pass.saved + (row * PANEL_ROWS + column) * W;
    for (int i = 0; i < M; i++) acc[i] = pass.first ? vf{} : load(saved + i * PANEL_ROWS * W);
    const Records from = pass.panel.row(column);
    const float* at[M];
    for (int i = 0; i < M; i++) at[i] = x[i].at + pass.from * RECORD;
    for (int64_t c = 0; c < pass.count; c++) {
        vh w[VECTORS];
        for (int v = 0; v < VECTORS; v++) w[v] = from.get(c, v);
        const vf scale = from.scale(c);
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
            const Records a{at[i]};
            acc[i] = fma(chunk_sum(w, a, c), scale * a.scale(c), acc[i]);
        }
    }
    for (int i = 0; i < M; i++) {
        if (pass.last)
            put<1>(out, m + i, n, acc + i);
        else
            store(saved + i * PANEL_ROWS * W, acc[i]);
    }
}

template <int M>
void tiles_of_rows(const Pass& pass, const Activations* x, int64_t row, int64_t columns, int64_t m, int64_t n0,
                   const Output& out) {
    for (int64_t n = 0; n < columns; n++) tile<M>(pass, x, row, n, m, n0 + n, out);
}

void through_panel(const Weight& w, int64_t n0, int64_t n1, const Input& in, int64_t m0, int64_t m1,
                   const Output& out) {
    static thread_local Scratch panel_memory, saved_memory;
    const int64_t chunks = chunks_of(w.K), groups = (m1 - m0 + ROWS - 1) / ROWS;
    Panel panel{panel_memory.floats(Panel::FLOATS)};
    float* saved = chunks > PANEL_CHUNKS ? saved_memory.floats((m1 - m0) * PANEL_ROWS * W) : nullptr;
    for (int64_t c = 0; c < chunks; c += PANEL_CHUNKS) {
        const int64_t count = std::min(PANEL_CHUNKS, chunks - c);
        panel.fill(w, n0, n1, c, c + count);
        const Pass pass{panel, c, count, c == 0, c + count == chunks, saved};
        int64_t m = m0;
        for (int64_t g = groups; g > 0; g--) {  // rows shared out evenly: 5 are 3 + 2
            const int64_t rows = (m1 - m + g - 1) / g;
            Activations x[ROWS];
            for (int64_t i = 0; i < rows; i++) x[i] = Activations(in.row(m + i), chunks);
            switch (rows) {
                case 6: tiles_of_rows<6>(pass, x, m - m0, n1 - n0, m, n0, out); break;
                case 5: tiles_of_rows<5>(pass, x, m - m0, n1 - n0, m, n0, out); break;
                case 4: tiles_of_rows<4>(pass, x, m - m0, n1 - n0, m, n0, out); break;
                case 3: tiles_of_rows<3>(pass, x, m - m0, n1 - n0, m, n0, out); break;
                case 2: tiles_of_rows<2>(pass, x, m - m0, n1 - n0, m, n0, out); break;
                default: tiles_of_rows<1>(pass, x, m - m0, n1 - n0, m, n0, out);
            }
            m += rows;
        }
    }
}

}  // namespace

int64_t fixed_size(int64_t K) {
    const int64_t chunks = chunks_of(K);
    return chunks * RECORD + (chunks + GROUP - 1) / GROUP * W;
}

void prepare_fixed(const float* x, int64_t K, float* out) {
    static thread_local Scratch memory;
    const int64_t chunks = chunks_of(K), blocks = (chunks * CHUNK + FP8_BLOCK - 1) / FP8_BLOCK;
    float* scale = memory.floats(blocks + blocks * FP8_BLOCK / 2);
    int16_t* in_order = (int16_t*)(scale + blocks);
    std::fill(in_order, in_order + blocks * FP8_BLOCK, int16_t(0));
    through_fp8_fixed(x, in_order, scale, K);
    float* grouped = out + chunks * RECORD;
    constexpr int first[VECTORS] = {0, 2, 1, 3};
    for (int64_t c = 0; c < chunks; c++) {
        int16_t* numbers = (int16_t*)(out + c * RECORD);
        for (int v = 0; v < VECTORS; v++)
            for (int i = 0; i < 2 * W; i++)
                numbers[v * 2 * W + i] = in_order[c * CHUNK + i / 8 * FP4_BLOCK + i % 8 * 4 + first[v]];
        const vf s = splat(scale[c * CHUNK / FP8_BLOCK] * STEP);
        store(out + c * RECORD + VECTORS * W, s);
        for (int b = 0; b < BLOCKS; b++) grouped[c / GROUP * W + b * GROUP + c % GROUP] = s[0];
    }
}

void multiply_fixed(const Weight& w, int64_t n0, int64_t n1, const Input& in, int64_t m0, int64_t m1,
                    const Output& out) {
    switch (m1 - m0) {
        case 1: return direct<1>(w, n0, n1, in, m0, out);
        case 2: return direct<2>(w, n0, n1, in, m0, out);
        case 3: return direct<3>(w, n0, n1, in, m0, out);
        case 4: return direct<4>(w, n0, n1, in, m0, out);
    }
    for (int64_t n = n0; n < n1; n += PANEL_ROWS) through_panel(w, n, std::min(n + PANEL_ROWS, n1), in, m0, m1, out);
}

}  // namespace dsv4
