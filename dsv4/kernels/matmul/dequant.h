// Stored weights to vectors of floats: float32, bfloat16, FP8 (e4m3, scale per 128x128) and FP4 (e2m1, scale per 1x32).
//
// A decoder yields CHUNK columns of one row at a time, as CHUNK / W vectors, in the order that is cheapest for its
// format; in PARTS pieces, so that few vectors are alive at once. A row knows how many bytes ahead to prefetch. The
// activations are laid out in the same order (`arrange`), so that no weight is ever shuffled into place. Unit says how
// a vector of weights and one of activations are multiplied and added.
// Values are exactly those of dequantising to float32, for every scale. Exception: the NaN bytes of e4m3 (0x7f, 0xff),
// which no checkpoint holds, read as 480.
#pragma once
#include "native/simd.h"

namespace dsv4 {

enum Kind {
    KIND_F32,
    KIND_BF16,
    KIND_FP8,
    KIND_FP8_F32SCALE,
    KIND_FP8_WIDE,
    KIND_FP8_F32SCALE_WIDE,
    KIND_FP4,
    KIND_FP4_FIXED,  // FP4 times activations in 16-bit fixed point: gemm_fixed.h
    KIND_FP8_DOT,    // FP8 and FP4 times activations that went through FP8, as bfloat16: decode_bf16.h
    KIND_FP4_DOT,
    KIND_FP8_TILES,  // the same in tiles: gemm_tiles.h
    KIND_FP4_TILES,
};

constexpr int FP8_BLOCK = 128;
constexpr int FP4_BLOCK = 32;

typedef int16_t vh __attribute__((vector_size(W * 4)));
typedef uint16_t vhu __attribute__((vector_size(W * 4)));
typedef uint8_t vb __attribute__((vector_size(W * 4)));

// a product of W columns: fused multiply-adds in float32
struct Fma {
    static vf add(vf w, vf x, vf sum) { return fma(w, x, sum); }
};

template <class V>
inline V load_as(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// Into the second-level cache: asking for lines in the first level at once occupies its few places for misses for as
// long as memory takes, and reads then wait for a place (docs/log.md).
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// Bytes from a read to its prefetch, for `rows` rows read side by side: the same columns of rows read later, as many as
// memory's latency needs, unless those lie too far away to stay in the cache till then.
inline int64_t distance(int64_t row_bytes, int rows) {
    constexpr int64_t AHEAD = 16 << 10, MOST = 64 << 10;
    const int64_t together = row_bytes * rows;
    if (together < 1) return AHEAD;  // rows without columns have nothing to prefetch
    return together <= MOST ? (AHEAD + together - 1) / together * together : AHEAD / rows;
}

// v[r], lane l = the number at 4 l + r of the four vectors
inline void deinterleave_by_4(const vf* in, vf* v) {
    vf even[2], odd[2];
    deinterleave(in[0], in[1], even[0], odd[0]);
    deinterleave(in[2], in[3], even[1], odd[1]);
    deinterleave(even[0], even[1], v[0], v[2]);
    deinterleave(odd[0], odd[1], v[1], v[3]);
}

// 2^(byte - 127), and the same times 2^120 (what a shifted e4m3 needs); 255 is NaN
struct PowerTables {
    float scale[256], times_2_120[256];
};
extern const PowerTables POWERS;

// e2m1 code times 2^(byte - 127): the upper half of its float32, as two tables for byte shuffles
struct alignas(32) Fp4Table {
    uint8_t low[16], high[16];
};
struct Fp4Tables {
    Fp4Table at[256];
    const Fp4Table& operator[](int byte) const { return at[byte]; }
};
extern const Fp4Tables FP4_TABLES;

struct F32 {
    static constexpr int CHUNK = W, PARTS = 1, VECTORS = 1;
    using Unit = Fma;
    static constexpr bool DIRECT = true;
    const float* w;
    int64_t K;
    F32(const void* data, const void*, int64_t K) : w((const float*)data), K(K) {}
    static void arrange(const float* in, float* out) { store(out, load(in)); }

    struct Row {
        const float* w;
        int64_t K, ahead;
        void get(int64_t c, int, vf* out) const {
            prefetch((const char*)(w + c * W) + ahead);
            out[0] = load(w + c * W);
        }
        void tail(int64_t c, vf* out) const { out[0] = load_part(w + c * W, int(K - c * W)); }
    };
    Row row(int64_t n, int rows) const { return {w + n * K, K, distance(K * 4, rows)}; }
};

struct Bf16 {
    static constexpr int CHUNK = 2 * W, PARTS = 1, VECTORS = 2;
    using Unit = Fma;
    static constexpr bool DIRECT = true;
    const uint16_t* w;
    int64_t K;
    Bf16(const void* data, const void*, int64_t K) : w((const uint16_t*)data), K(K) {}
    static void arrange(const float* in, float* out) {
        vf even, odd;
        deinterleave(load(in), load(in + W), even, odd);
        store(out, even);
        store(out + W, odd);
    }

    struct Row {
        const uint16_t* w;
        int64_t K, ahead;
        static void decode(const uint16_t* p, vf* out) {
            const vi v = load_as<vi>(p);
            out[0] = low_half(v);
            out[1] = high_half(v);
        }
        void get(int64_t c, int, vf* out) const {
            prefetch((const char*)(w + c * CHUNK) + ahead);
            decode(w + c * CHUNK, out);
        }
        void tail(int64_t c, vf* out) const {
            uint16_t part[CHUNK] = {};
            std::memcpy(part, w + c * CHUNK, (K - c * CHUNK) * 2);
            decode(part, out);
        }
    };
    Row row(int64_t n, int rows) const { return {w + n * K, K, distance(K * 2, rows)}; }
};

// e4m3 shifted into the place of float32's exponent is the value times 2^-120, subnormals included. WIDE: scales from
// 2^7 up, which times 2^120 are no float32, in two steps.
template <bool FLOAT_SCALE, bool WIDE>
struct Fp8 {
    static constexpr int CHUNK = 4 * W, PARTS = 1, VECTORS = 4;
    using Unit = Fma;
    static constexpr bool DIRECT = !WIDE;  // rare: the panel alone will do
    const uint8_t* w;
    const void* scale;
    int64_t K, blocks;
    Fp8(const void* data, const void* scale, int64_t K)
        : w((const uint8_t*)data), scale(scale), K(K), blocks((K + FP8_BLOCK - 1) / FP8_BLOCK) {}
    static void arrange(const float* in, float* out) {
        vf from[4], v[4];
        for (int j = 0; j < 4; j++) from[j] = load(in + j * W);
        deinterleave_by_4(from, v);
        for (int j = 0; j < 4; j++) store(out + j * W, v[j]);
    }

    struct Row {
        const uint8_t* w;
        const void* scale;
        int64_t K, ahead;
        void decode(const uint8_t* p, int64_t block, vf* out) const {
            constexpr int16_t kept = int16_t(0x87f0);
            const vh v = load_as<vh>(p);
            const vi even = (vi)(((v << 8) >> 4) & kept), odd = (vi)((v >> 4) & kept);
            vf factor;
            if constexpr (WIDE)
                factor = splat(0x1p120f);
            else if constexpr (FLOAT_SCALE)
                factor = splat(((const float*)scale)[block] * 0x1p120f);
            else
                factor = splat(POWERS.times_2_120[((const uint8_t*)scale)[block]]);
            out[0] = low_half(even) * factor;
            out[1] = low_half(odd) * factor;
            out[2] = high_half(even) * factor;
            out[3] = high_half(odd) * factor;
            if constexpr (WIDE) {
                const float s =
                    FLOAT_SCALE ? ((const float*)scale)[block] : POWERS.scale[((const uint8_t*)scale)[block]];
                for (int j = 0; j < 4; j++) out[j] = out[j] * s;
            }
        }
        void get(int64_t c, int, vf* out) const {
            prefetch(w + c * CHUNK + ahead);
            decode(w + c * CHUNK, c * CHUNK / FP8_BLOCK, out);
        }
        void tail(int64_t c, vf* out) const {
            uint8_t part[CHUNK] = {};
            std::memcpy(part, w + c * CHUNK, K - c * CHUNK);
            decode(part, c * CHUNK / FP8_BLOCK, out);
        }
    };
    Row row(int64_t n, int rows) const {
        const int64_t at = n / FP8_BLOCK * blocks;
        const void* s = FLOAT_SCALE ? (const void*)((const float*)scale + at) : (const uint8_t*)scale + at;
        return {w + n * K, s, K, distance(K, rows)};
    }
};

// FP8 without its scales, every weight times 2^-120: for activations that carry the scales (`scaled_rows` in gemm.cpp)
struct Fp8Plain {
    static constexpr int CHUNK = 4 * W, PARTS = 1, VECTORS = 4;
    using Unit = Fma;
    const uint8_t* w;
    int64_t K;
    explicit Fp8Plain(const Fp8<false, false>& f) : w(f.w), K(f.K) {}

    struct Row {
        const uint8_t* w;
        int64_t K, ahead;
        static void decode(const uint8_t* p, vf* out) {
            constexpr int16_t kept = int16_t(0x87f0);
            const vh v = load_as<vh>(p);
            const vi even = (vi)(((v << 8) >> 4) & kept), odd = (vi)((v >> 4) & kept);
            out[0] = low_half(even);
            out[1] = low_half(odd);
            out[2] = high_half(even);
            out[3] = high_half(odd);
        }
        void get(int64_t c, int, vf* out) const {
            prefetch(w + c * CHUNK + ahead);
            decode(w + c * CHUNK, out);
        }
        void tail(int64_t c, vf* out) const {
            uint8_t part[CHUNK] = {};
            std::memcpy(part, w + c * CHUNK, K - c * CHUNK);
            decode(part, out);
        }
    };
    Row row(int64_t n, int rows) const { return {w + n * K, K, distance(K, rows)}; }
};

// per 16 bytes: table[index], index 0..15
inline vb look_up(vb table, vb index) {
#if defined(__AVX512BW__)
    return (vb)_mm512_shuffle_epi8((__m512i)table, (__m512i)index);
#elif defined(__AVX2__)
    return (vb)_mm256_shuffle_epi8((__m256i)table, (__m256i)index);
#else
    vb r;
    for (int i = 0; i < W * 4; i++) r[i] = table[i / 16 * 16 + index[i]];
    return r;
#endif
}

// per 16 bytes: bytes 0..7 of `low` and `high` joined to 16-bit numbers, and bytes 8..15
inline void join_bytes(vb low, vb high, vi& first, vi& second) {
#if defined(__AVX512BW__)
    first = (vi)_mm512_unpacklo_epi8((__m512i)low, (__m512i)high);
    second = (vi)_mm512_unpackhi_epi8((__m512i)low, (__m512i)high);
#elif defined(__AVX2__)
    first = (vi)_mm256_unpacklo_epi8((__m256i)low, (__m256i)high);
    second = (vi)_mm256_unpackhi_epi8((__m256i)low, (__m256i)high);
#else
    vb a, b;
    for (int i = 0; i < W * 4; i += 2) {
        const int from = i / 16 * 16 + i % 16 / 2;
        a[i] = low[from], a[i + 1] = high[from];
        b[i] = low[from + 8], b[i + 1] = high[from + 8];
    }
    first = (vi)a, second = (vi)b;
#endif
}

// A chunk is W / 4 blocks of 32 columns, one per 16 bytes of the vector; each has tables made for its scale.
struct Fp4 {
    static constexpr int CHUNK = 8 * W, PARTS = 2, VECTORS = 8;
    using Unit = Fma;
    static constexpr bool DIRECT = true;
    static constexpr int BLOCKS = W / 4;
    const uint8_t *w, *scale;
    int64_t K;
    Fp4(const void* data, const void* scale, int64_t K)
        : w((const uint8_t*)data), scale((const uint8_t*)scale), K(K) {}
    // Vector: nibble, half of the 16 bytes, half of the 32-bit lane. A half covers 16 columns of every block.
    static void arrange(const float* in, float* out) {
        for (int half = 0; half < 2; half++) {
            vf from[4], v[4];
            for (int j = 0; j < 4; j++) from[j] = load(in + j * W / 16 * FP4_BLOCK + 16 * half + j * W % 16);
            deinterleave_by_4(from, v);
            for (int r = 0; r < 4; r++) store(out + (r % 2 * 4 + half * 2 + r / 2) * W, v[r]);
        }
    }

    struct Row {
        const uint8_t *w, *scale;
        int64_t K, ahead;
        static void tables(const uint8_t* s, vb& low, vb& high) {
#if defined(__AVX2__) && !defined(__AVX512F__)
            const Fp4Table &a = FP4_TABLES[s[0]], &b = FP4_TABLES[s[1]];
            low = (vb)_mm256_inserti128_si256(_mm256_castsi128_si256(_mm_load_si128((const __m128i*)a.low)),
                                              _mm_load_si128((const __m128i*)b.low), 1);
            high = (vb)_mm256_inserti128_si256(_mm256_castsi128_si256(_mm_load_si128((const __m128i*)a.high)),
                                               _mm_load_si128((const __m128i*)b.high), 1);
#else
            for (int b = 0; b < BLOCKS; b++) {
                std::memcpy((uint8_t*)&low + 16 * b, FP4_TABLES[s[b]].low, 16);
                std::memcpy((uint8_t*)&high + 16 * b, FP4_TABLES[s[b]].high, 16);
            }
#endif
        }
        // the low nibbles of a chunk's bytes, or the high ones
        static void decode(const uint8_t* p, const uint8_t* s, int nibble, vf* out) {
            vb low, high;
            tables(s, low, high);
            const vb bytes = load_as<vb>(p);
            const vb code = (nibble ? (vb)((vhu)bytes >> 4) : bytes) & 15;
            vi first, second;
            join_bytes(look_up(low, code), look_up(high, code), first, second);
            out[0] = low_half(first);
            out[1] = high_half(first);
            out[2] = low_half(second);
            out[3] = high_half(second);
        }
        void get(int64_t c, int part, vf* out) const {
            if (part == 0) prefetch(w + c * CHUNK / 2 + ahead);
            decode(w + c * CHUNK / 2, scale + c * BLOCKS, part, out);
        }
        void tail(int64_t c, vf* out) const {
            uint8_t part[CHUNK / 2] = {}, s[BLOCKS];
            std::memset(s, 127, sizeof s);
            std::memcpy(part, w + c * CHUNK / 2, (K - c * CHUNK) / 2);
            std::memcpy(s, scale + c * BLOCKS, (K - c * CHUNK) / FP4_BLOCK);
            decode(part, s, 0, out);
            decode(part, s, 1, out + 4);
        }
    };
    Row row(int64_t n, int rows) const {
        return {w + n * (K / 2), scale + n * (K / FP4_BLOCK), K, distance(K / 2, rows)};
    }
};

}  // namespace dsv4
