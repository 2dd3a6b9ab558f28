// FP8 and FP4 weights as pairs of bfloat16, times activations that went through FP8: their values, scales included, are
// exact in bfloat16, so a product of release numerics is a chain of bfloat16 dot products and nothing else.
//
// A chunk is 128 columns: one block of FP8, four of FP4. Weights below 2^-126 count as 0. The NaN bytes of e4m3 read
// as 480.
#pragma once
#include "dequant.h"
#include "native/bf16.h"

namespace dsv4 {

static_assert(!BF16_DOT || W == 16, "a chunk is decoded as vectors of 16 lanes");

// a product of 2 W columns
struct Dot {
    static vf add(vf w, vf x, vf sum) { return dot_bf16(w, x, sum); }
};

// the W numbers of a, then those of b, as bfloat16; they are bfloat16 already
inline vf pack_bf16(vf a, vf b) {
#if defined(__AVX512BF16__)
    return (vf)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
#else
    vhu v;
    for (int i = 0; i < W; i++) {
        v[i] = uint16_t(uint32_t(((vi)a)[i]) >> 16);
        v[i + W] = uint16_t(uint32_t(((vi)b)[i]) >> 16);
    }
    return (vf)v;
#endif
}

// magnitudes of e4m3 codes times a scale: lower and upper bytes of their bfloat16
struct alignas(64) Fp8Table {
    uint8_t low[128], high[128];
};
struct Fp8Tables {
    Fp8Table at[256];
    const Fp8Table& operator[](int byte) const { return at[byte]; }
};
extern const Fp8Tables FP8_TABLES;

// entry byte & 127 of a table in two vectors
inline vb look_up_7_bits(vb first, vb second, vb bytes) {
#if defined(__AVX512VBMI__)
    return (vb)_mm512_permutex2var_epi8((__m512i)first, (__m512i)bytes, (__m512i)second);
#else
    for (int i = 0; i < W * 4; i++) bytes[i] = bytes[i] & 64 ? second[bytes[i] & 63] : first[bytes[i] & 63];
    return bytes;
#endif
}

inline vb look_up_7_bits(const uint8_t* table, vb bytes) {
    return look_up_7_bits(load_as<vb>(table), load_as<vb>(table + 4 * W), bytes);
}

struct Fp8Dot {
    static constexpr int CHUNK = FP8_BLOCK, PARTS = 2, VECTORS = CHUNK / (2 * W), SHARED_ROWS = FP8_BLOCK;
    static constexpr bool DIRECT = true;
    using Unit = Dot;
    const uint8_t *w, *scale;
    int64_t K, blocks;
    Fp8Dot(const void* data, const void* scale, int64_t K)
        : w((const uint8_t*)data), scale((const uint8_t*)scale), K(K), blocks((K + FP8_BLOCK - 1) / FP8_BLOCK) {}
    // of every 64 columns the groups of 8 with even numbers, then those with odd ones
    static void arrange(const float* in, float* out) {
        constexpr int GROUP = 16;  // bytes of 8 bfloat16
        for (int half = 0; half < 2; half++, in += 4 * W, out += 2 * W) {
            const vf packed[2] = {pack_bf16(load(in), load(in + W)), pack_bf16(load(in + 2 * W), load(in + 3 * W))};
            for (int i = 0; i < 4; i++) {
                std::memcpy((char*)out + i * GROUP, (const char*)packed + 2 * i * GROUP, GROUP);
                std::memcpy((char*)out + (4 + i) * GROUP, (const char*)packed + (2 * i + 1) * GROUP, GROUP);
            }
        }
    }

    struct Row {
        const uint8_t *w, *scale;
        int64_t K, ahead;
        // what all rows of a block share in a chunk
        struct Tables {
            vb low, low_64, high, high_64;
        };
        Tables shared(int64_t c) const {
            const Fp8Table& table = FP8_TABLES[scale[c]];
            return {load_as<vb>(table.low), load_as<vb>(table.low + 64), load_as<vb>(table.high),
                    load_as<vb>(table.high + 64)};
        }
        // half a chunk
        static void decode(const uint8_t* p, const Tables& table, vf* out) {
            const vb bytes = load_as<vb>(p);
            const vb low = look_up_7_bits(table.low, table.low_64, bytes);
            const vb high = look_up_7_bits(table.high, table.high_64, bytes);
            vi first, second;
            join_bytes(low, high | (bytes & 0x80), first, second);
            out[0] = (vf)first, out[1] = (vf)second;
        }
        void get(int64_t c, int part, vf* out, const Tables& tables) const {
            const uint8_t* p = w + c * CHUNK + part * 4 * W;
            prefetch(p + ahead);
            decode(p, tables, out);
        }
        void get(int64_t c, int part, vf* out) const { get(c, part, out, shared(c)); }
        void tail(int64_t c, vf* out) const {
            uint8_t part[CHUNK] = {};
            std::memcpy(part, w + c * CHUNK, K - c * CHUNK);
            const Tables tables = shared(c);
            for (int i = 0; i < PARTS; i++) decode(part + i * 4 * W, tables, out + 2 * i);
        }
    };
    Row row(int64_t n, int rows) const {
        return {w + n * K, scale + n / FP8_BLOCK * blocks, K, distance(K, rows)};
    }
};

// words[index & 31]
inline vhu look_up_words(vhu words, vhu index) {
#if defined(__AVX512BW__)
    return (vhu)_mm512_permutexvar_epi16((__m512i)index, (__m512i)words);
#else
    for (int i = 0; i < 2 * W; i++) index[i] = words[index[i] & 31];
    return index;
#endif
}
// a - b, 0 where b is larger
inline vhu minus_to_zero(vhu a, vhu b) {
#if defined(__AVX512BW__)
    return (vhu)_mm512_subs_epu16((__m512i)a, (__m512i)b);
#else
    for (int i = 0; i < 2 * W; i++) a[i] = a[i] > b[i] ? a[i] - b[i] : 0;
    return a;
#endif
}

// e2m1 codes times 2^125, twice: scales are taken from the exponents, which leaves zeros alone
alignas(64) constexpr uint16_t E2M1[32] = {
    0, 0x7d80, 0x7e00, 0x7e40, 0x7e80, 0x7ec0, 0x7f00, 0x7f40,
    0, 0xfd80, 0xfe00, 0xfe40, 0xfe80, 0xfec0, 0xff00, 0xff40,
    0, 0x7d80, 0x7e00, 0x7e40, 0x7e80, 0x7ec0, 0x7f00, 0x7f40,
    0, 0xfd80, 0xfe00, 0xfe40, 0xfe80, 0xfec0, 0xff00, 0xff40};

// EXTREME: also for scales that the exponents have no room for, 2^-127 and above 2^125; slower
template <bool EXTREME>
struct Fp4Dot {
    static constexpr int CHUNK = 4 * FP4_BLOCK, PARTS = 1, VECTORS = CHUNK / (2 * W), BLOCKS = 4;
    static constexpr bool DIRECT = !EXTREME;  // rare: the panel alone will do
    using Unit = Dot;
    static constexpr uint8_t LARGEST = 252;  // the byte of 2^125
    const uint8_t *w, *scale;
    int64_t K;
    Fp4Dot(const void* data, const void* scale, int64_t K)
        : w((const uint8_t*)data), scale((const uint8_t*)scale), K(K) {}
    // vector r: columns 4 j + r
    static void arrange(const float* in, float* out) {
        vf from[8], v[8];
        for (int j = 0; j < 8; j++) from[j] = load(in + j * W);
        deinterleave_by_4(from, v);
        deinterleave_by_4(from + 4, v + 4);
        for (int r = 0; r < 4; r++) store(out + r * W, pack_bf16(v[r], v[r + 4]));
    }

    struct Row {
        const uint8_t *w, *scale;
        int64_t K, ahead;
        // the exponents to take away, in the words of each block
        static vhu lowered(uint32_t scales) {
#if defined(__AVX512BW__)
            const __m512i by = _mm512_sub_epi8(_mm512_set1_epi8(char(LARGEST)), _mm512_set1_epi32(int(scales)));
            const __m512i places = _mm512_set_epi64(
                0x0380038003800380, 0x0380038003800380, 0x0280028002800280, 0x0280028002800280, 0x0180018001800180,
                0x0180018001800180, 0x0080008000800080, 0x0080008000800080);
            return (vhu)_mm512_srli_epi16(_mm512_shuffle_epi8(by, places), 1);
#else
            vhu v;
            for (int i = 0; i < 2 * W; i++) v[i] = uint16_t(uint8_t(LARGEST - (scales >> (i / 8 * 8))) << 7);
            return v;
#endif
        }
        // codes 4 i + r by the table of all scales
        static vhu decode_any(vhu bytes, const uint8_t* s, int r) {
            for (int i = 0; i < 2 * W; i++) {
                const Fp4Table& table = FP4_TABLES[s[i / 8]];
                const int code = bytes[i] >> (4 * r) & 15;
                bytes[i] = uint16_t(table.low[code] | table.high[code] << 8);
            }
            return bytes;
        }
        static void decode(const uint8_t* p, const uint8_t* s, vf* out) {
            const vhu bytes = load_as<vhu>(p);
            if constexpr (EXTREME) {
                for (int r = 0; r < VECTORS; r++) out[r] = (vf)decode_any(bytes, s, r);
            } else {
                const vhu table = load_as<vhu>(E2M1), by = lowered(load_as<uint32_t>(s));
                for (int r = 0; r < VECTORS; r++)
                    out[r] = (vf)minus_to_zero(look_up_words(table, bytes >> (4 * r)), by);
            }
        }
        void get(int64_t c, int, vf* out) const {
            prefetch(w + c * CHUNK / 2 + ahead);
            decode(w + c * CHUNK / 2, scale + c * BLOCKS, out);
        }
        void tail(int64_t c, vf* out) const {
            uint8_t part[CHUNK / 2] = {}, s[BLOCKS];
            std::memset(s, 127, sizeof s);
            std::memcpy(part, w + c * CHUNK / 2, (K - c * CHUNK) / 2);
            std::memcpy(s, scale + c * BLOCKS, (K - c * CHUNK) / FP4_BLOCK);
            decode(part, s, out);
        }
    };
    // whether weight rows [n0, n1) have such a scale
    bool has_extreme(int64_t n0, int64_t n1) const {
        uint8_t found = 0;
        for (int64_t i = n0 * (K / FP4_BLOCK); i < n1 * (K / FP4_BLOCK); i++) found |= uint8_t(scale[i] + 3) < 4;
        return found;
    }
    Row row(int64_t n, int rows) const {
        return {w + n * (K / 2), scale + n * (K / FP4_BLOCK), K, distance(K / 2, rows)};
    }
};

// run(decoder type as a null pointer) for a kind
template <class F>
inline void with_decoder(int kind, F run) {
    switch (kind) {
        case KIND_F32: return run((F32*)nullptr);
        case KIND_BF16: return run((Bf16*)nullptr);
        case KIND_FP8: return run((Fp8<false, false>*)nullptr);
        case KIND_FP8_F32SCALE: return run((Fp8<true, false>*)nullptr);
        case KIND_FP8_WIDE: return run((Fp8<false, true>*)nullptr);
        case KIND_FP8_F32SCALE_WIDE: return run((Fp8<true, true>*)nullptr);
        case KIND_FP4: return run((Fp4*)nullptr);
    }
    if constexpr (BF16_DOT) {
        if (kind == KIND_FP8_DOT) return run((Fp8Dot*)nullptr);
        run((Fp4Dot<false>*)nullptr);
    }
}

}  // namespace dsv4
