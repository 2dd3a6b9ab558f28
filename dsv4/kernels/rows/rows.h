// Cache rows of every storage kind as float32: float32, bfloat16, packed entries (e4m3), packed indexer keys (e2m1).
// The layout of packed rows is described in dsv4/kernels/rows/__init__.py.
#pragma once
#include "native/simd.h"
#include "structs.h"

namespace dsv4 {

constexpr int64_t ENTRY_BLOCK = 64, INDEX_BLOCK = 32;

enum RowKind : int { ROW_FLOAT = 0, ROW_BF16 = 1, ROW_ENTRY = 2, ROW_INDEX = 3 };

inline float float_of_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline uint32_t bits_of_float(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

// 2^(byte - 127); 255 is NaN
inline float scale_of(uint8_t byte) {
    if (byte == 0) return float_of_bits(0x00400000);
    return byte == 255 ? float_of_bits(0x7FC00000) : float_of_bits(uint32_t(byte) << 23);
}

// scales from byte I of each number, as scale_of has them
template <int I>
inline vf scales_of(vi bytes) {
    const vi normal = (bytes >> (8 * I) & 255) << 23, smallest = vi{} + 0x00400000;
    const vi bits = normal > smallest ? normal : smallest;
    return (vf)(bits == 0x7F800000 ? vi{} + 0x7FC00000 : bits);
}

// e4m3 and float16 share sign and fraction order: the code moved by 7 is the value / 2^8. NaN codes come only with a
// NaN scale, so they need no care.
inline float fp8_value(uint8_t code) {
    const int exponent = (code >> 3) & 15, fraction = code & 7;
    const float m = exponent ? float_of_bits(uint32_t(exponent + 120) << 23 | uint32_t(fraction) << 20)
                             : float(fraction) * (1.0f / 512);
    return code & 0x80 ? -m : m;
}

#if defined(__AVX512VBMI__)
// e4m3 as bfloat16, which holds it exactly: the upper and the lower bytes of the 128 codes without a sign.
struct Fp8Table {
    alignas(64) uint8_t upper[128], lower[128];

    constexpr Fp8Table() : upper{}, lower{} {
        for (int code = 0; code < 128; code++) {
            const int exponent = code >> 3, fraction = code & 7, top = fraction > 3 ? 2 : fraction > 1 ? 1 : 0;
            const int small = fraction ? (118 + top) << 7 | (fraction << (7 - top) & 127) : 0;
            const int bits = exponent ? (exponent + 120) << 7 | fraction << 4 : small;
            upper[code] = uint8_t(bits >> 8), lower[code] = uint8_t(bits);
        }
    }
};
inline constexpr Fp8Table FP8_TABLE;

// Of 64 bfloat16 given as upper and lower bytes, the 16 that lane l has at place first + l * step, as float32.
struct Fp8Places {
    alignas(64) uint8_t byte[64];

    constexpr Fp8Places(int first, int step) : byte{} {
        for (int l = 0; l < 16; l++)
            byte[4 * l + 2] = uint8_t(first + l * step), byte[4 * l + 3] = uint8_t(64 + first + l * step);
    }
};
inline constexpr Fp8Places FP8_IN_ORDER[4] = {{0, 1}, {16, 1}, {32, 1}, {48, 1}};
inline constexpr Fp8Places FP8_OF_DWORDS[4] = {{0, 4}, {1, 4}, {2, 4}, {3, 4}};

struct Fp8Values {
    __m512i upper, lower;

    explicit Fp8Values(__m512i code) {  // a look-up reads seven bits of a code
        const auto half = [](const uint8_t* from) { return _mm512_load_si512(from); };
        upper = _mm512_permutex2var_epi8(half(FP8_TABLE.upper), code, half(FP8_TABLE.upper + 64));
        lower = _mm512_permutex2var_epi8(half(FP8_TABLE.lower), code, half(FP8_TABLE.lower + 64));
        upper = _mm512_ternarylogic_epi32(upper, code, _mm512_set1_epi8(char(0x80)), 0xF8);  // upper | code & sign
    }
    vf at(const Fp8Places& places) const {
        const __m512i byte = _mm512_load_si512(places.byte);
        return (vf)_mm512_maskz_permutex2var_epi8(0xCCCCCCCCCCCCCCCC, lower, byte, upper);
    }
};
#endif

#if defined(__F16C__) && defined(__AVX2__)
inline __m256 fp8_eight(const uint8_t* code) {
    const __m128i b = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i*)code));
    const __m128i magnitude = _mm_slli_epi16(_mm_and_si128(b, _mm_set1_epi16(0x7F)), 7);
    const __m128i sign = _mm_slli_epi16(_mm_and_si128(b, _mm_set1_epi16(0x80)), 8);
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(magnitude, sign)), _mm256_set1_ps(256.0f));
}
#endif

inline void fp8_to_float(const uint8_t* code, float scale, int64_t count, float* out) {
    int64_t i = 0;
#if defined(__AVX512VBMI__)
    for (; i + 64 <= count; i += 64) {
        const Fp8Values values(_mm512_loadu_si512(code + i));
        for (int v = 0; v < 4; v++) store(out + i + v * W, values.at(FP8_IN_ORDER[v]) * scale);
    }
#endif
#if defined(__AVX512F__)
    const __m512 wide_scale = _mm512_set1_ps(scale), wide_up = _mm512_set1_ps(256.0f);
    for (; i + 16 <= count; i += 16) {
        const __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(code + i)));
        const __m256i magnitude = _mm256_slli_epi16(_mm256_and_si256(b, _mm256_set1_epi16(0x7F)), 7);
        const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(b, _mm256_set1_epi16(0x80)), 8);
        const __m512 value = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(magnitude, sign)), wide_up);
        _mm512_storeu_ps(out + i, _mm512_mul_ps(value, wide_scale));
    }
#endif
#if defined(__F16C__) && defined(__AVX2__)
    const __m256 s = _mm256_set1_ps(scale);
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(out + i, _mm256_mul_ps(fp8_eight(code + i), s));
#endif
    for (; i < count; i++) out[i] = fp8_value(code[i]) * scale;
}

#if defined(__AVX2__)
inline __m256 bf16_eight(const uint8_t* in) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)in));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
#endif

inline void bf16_to_float(const uint8_t* in, int64_t count, float* out) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= count; i += 16) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(in + 2 * i)));
        _mm512_storeu_si512(out + i, _mm512_slli_epi32(wide, 16));
    }
#endif
#if defined(__AVX2__)
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(out + i, bf16_eight(in + 2 * i));
#endif
    for (; i < count; i++) {
        uint16_t half;
        std::memcpy(&half, in + 2 * i, 2);
        out[i] = float_of_bits(uint32_t(half) << 16);
    }
}

constexpr float FP4_VALUE[16] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0f, -0.5, -1, -1.5, -2, -3, -4, -6};

// `count` values, even; two codes per byte
inline void fp4_to_float(const uint8_t* code, float scale, int64_t count, float* out) {
    int64_t i = 0;
#if defined(__AVX2__)
    const __m256 table = _mm256_loadu_ps(FP4_VALUE), s = _mm256_set1_ps(scale);
    const __m256i place = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    for (; i + 8 <= count; i += 8) {
        uint32_t four;
        std::memcpy(&four, code + i / 2, 4);
        const __m256i c = _mm256_srlv_epi32(_mm256_set1_epi32(int(four)), place);
        const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(c, _mm256_set1_epi32(8)), 28);
        const __m256 value = _mm256_xor_ps(_mm256_permutevar8x32_ps(table, c), _mm256_castsi256_ps(sign));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(value, s));
    }
#endif
    for (; i < count; i++) out[i] = FP4_VALUE[(code[i / 2] >> (i % 2 * 4)) & 15] * scale;
}

inline void entry_to_float(const uint8_t* row, int64_t dim, int64_t rope, float* out) {
    const int64_t plain = dim - rope;
    const uint8_t* scale = row + plain + 2 * rope;
    for (int64_t i = 0; i < plain; i += ENTRY_BLOCK) {
        const int64_t count = plain - i < ENTRY_BLOCK ? plain - i : ENTRY_BLOCK;
        fp8_to_float(row + i, scale_of(*scale++), count, out + i);
    }
    bf16_to_float(row + plain, rope, out + plain);
}

inline void index_to_float(const uint8_t* row, int64_t dim, float* out) {
    const uint8_t* scale = row + dim / 2;
    for (int64_t i = 0; i < dim; i += INDEX_BLOCK) {
        const int64_t count = dim - i < INDEX_BLOCK ? dim - i : INDEX_BLOCK;
        fp4_to_float(row + i / 2, scale_of(*scale++), count, out + i);
    }
}

// short rows: a call of memcpy costs as much as the copy
inline void copy_floats(const uint8_t* in, int64_t count, float* out) {
    const float* from = reinterpret_cast<const float*>(in);
    int64_t i = 0;
    for (; i + W <= count; i += W) store(out + i, load(from + i));
    for (; i < count; i++) out[i] = from[i];
}

inline void row_to_float(const Rows& rows, int64_t r, float* out) {
    const uint8_t* row = rows.first + r * rows.stride;
    if (rows.kind == ROW_FLOAT) copy_floats(row, rows.dim, out);
    if (rows.kind == ROW_BF16) bf16_to_float(row, rows.dim, out);
    if (rows.kind == ROW_ENTRY) entry_to_float(row, rows.dim, rows.rope, out);
    if (rows.kind == ROW_INDEX) index_to_float(row, rows.dim, out);
}

}  // namespace dsv4
