// Packed e2m1 keys as tiles of bytes, and e2m1 queries in the same order of dims.
//
// A value is code * 2^e / 2 with a whole code of at most 12. Keys are stored as code + 12, so that one factor is unsigned;
// a sum over a block of 32 then starts at -12 * (sum of the query's codes). N heads, B blocks of 32 dims; lanes are keys.
//
// A packed dword holds eight dims, and a dword of a tile four: first the even ones, then the odd ones. So a tile is turned
// round while it is still packed, and a mask and a shift unpack it.
#pragma once
#include "indexer_tiles.h"

namespace dsv4 {

constexpr int64_t STEPS = INDEX_BLOCK / 4;          // of four codes, the bytes of one 32-bit lane
constexpr int64_t BLOCK_BYTES = INDEX_BLOCK / 2;    // of a packed row
constexpr int64_t DWORDS = BLOCK_BYTES / 4;
constexpr int LARGEST_CODE = 12;
constexpr int8_t FP4_TWICE[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
constexpr uint8_t FP4_RAISED[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

// 32-bit places of a tile: codes [B][STEPS][TILE], scales [B][TILE]
inline int64_t byte_tile_size(int64_t blocks) { return blocks * (STEPS + 1) * TILE; }

// the codes of a query's row in the order of a tile [B][STEPS][4]; dims after the last one are 0
inline void query_codes(const uint8_t* packed, int64_t dim, int8_t* out) {
    for (int64_t i = 0; i < (dim + INDEX_BLOCK - 1) / INDEX_BLOCK * INDEX_BLOCK; i++) {
        const int8_t code = i < dim ? FP4_TWICE[(packed[i / 2] >> (i % 2 * 4)) & 15] : int8_t(0);
        out[i / 8 * 8 + i % 2 * 4 + i % 8 / 2] = code;
    }
}

// One block of W keys: tile[s][k] for s < STEPS; row[k] + at: the packed codes of key k.
#if defined(__AVX512F__) || defined(__AVX2__)
#if defined(__AVX512F__)
using Dwords = __m512i;
inline __m128i quarter(const uint8_t* from) { return _mm_loadu_si128((const __m128i*)from); }
inline Dwords packed_rows(const uint8_t* const* row, int64_t at) {
    Dwords x = _mm512_castsi128_si512(quarter(row[0] + at));
    x = _mm512_inserti32x4(x, quarter(row[4] + at), 1);
    x = _mm512_inserti32x4(x, quarter(row[8] + at), 2);
    return _mm512_inserti32x4(x, quarter(row[12] + at), 3);
}
inline Dwords low_pairs(Dwords a, Dwords b) { return _mm512_unpacklo_epi32(a, b); }
inline Dwords high_pairs(Dwords a, Dwords b) { return _mm512_unpackhi_epi32(a, b); }
inline Dwords low_halves(Dwords a, Dwords b) { return _mm512_unpacklo_epi64(a, b); }
inline Dwords high_halves(Dwords a, Dwords b) { return _mm512_unpackhi_epi64(a, b); }
inline void put_codes(Dwords codes, float* even, float* odd) {
    const Dwords table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)FP4_RAISED));
    const Dwords nibble = _mm512_set1_epi8(15);
    _mm512_storeu_si512(even, _mm512_shuffle_epi8(table, _mm512_and_si512(codes, nibble)));
    _mm512_storeu_si512(odd, _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi32(codes, 4), nibble)));
}
#else
using Dwords = __m256i;
inline Dwords packed_rows(const uint8_t* const* row, int64_t at) {
    const __m256i x = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)(row[0] + at)));
    return _mm256_inserti128_si256(x, _mm_loadu_si128((const __m128i*)(row[4] + at)), 1);
}
inline Dwords low_pairs(Dwords a, Dwords b) { return _mm256_unpacklo_epi32(a, b); }
inline Dwords high_pairs(Dwords a, Dwords b) { return _mm256_unpackhi_epi32(a, b); }
inline Dwords low_halves(Dwords a, Dwords b) { return _mm256_unpacklo_epi64(a, b); }
inline Dwords high_halves(Dwords a, Dwords b) { return _mm256_unpackhi_epi64(a, b); }
inline void put_codes(Dwords codes, float* even, float* odd) {
    const Dwords table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)FP4_RAISED));
    const Dwords nibble = _mm256_set1_epi8(15);
    _mm256_storeu_si256((Dwords*)even, _mm256_shuffle_epi8(table, _mm256_and_si256(codes, nibble)));
    _mm256_storeu_si256((Dwords*)odd, _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi32(codes, 4), nibble)));
}
#endif
inline void block_of_keys(const uint8_t* const* row, int64_t at, float* tile) {
    Dwords x[4];
    for (int i = 0; i < 4; i++) x[i] = packed_rows(row + i, at);
    const Dwords a = low_pairs(x[0], x[1]), b = low_pairs(x[2], x[3]);
    const Dwords c = high_pairs(x[0], x[1]), d = high_pairs(x[2], x[3]);
    put_codes(low_halves(a, b), tile, tile + TILE);
    put_codes(high_halves(a, b), tile + 2 * TILE, tile + 3 * TILE);
    put_codes(low_halves(c, d), tile + 4 * TILE, tile + 5 * TILE);
    put_codes(high_halves(c, d), tile + 6 * TILE, tile + 7 * TILE);
}
#else
inline void block_of_keys(const uint8_t* const* row, int64_t at, float* tile) {
    for (int64_t k = 0; k < W; k++)
        for (int64_t i = 0; i < INDEX_BLOCK; i++) {
            const uint8_t code = FP4_RAISED[(row[k][at + i / 2] >> (i % 2 * 4)) & 15];
            reinterpret_cast<uint8_t*>(tile + (i / 8 * 2 + i % 2) * TILE + k)[i % 8 / 2] = code;
        }
}
#endif

// the scales of a block of TILE keys from their bytes, as scale_of has them
inline void block_scales(const uint8_t* bytes, float* scale) {
    for (int64_t k = 0; k < TILE; k++) {
        const uint32_t normal = uint32_t(bytes[k]) << 23, smallest = 0x00400000;
        const uint32_t bits = normal > smallest ? normal : smallest;
        scale[k] = float_of_bits(bits == 0x7F800000 ? 0x7FC00000 : bits);
    }
}

// a tile of bytes from the packed rows of TILE keys
inline void arrange_byte_tile(const uint8_t* const* row, int64_t dim, int64_t blocks, float* tile) {
    const uint8_t* whole[TILE];
    uint8_t filled[TILE][BLOCK_BYTES], bytes[TILE];
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t at = b * BLOCK_BYTES, rest = dim / 2 - at;
        for (int64_t k = 0; k < TILE; k++) bytes[k] = row[k][dim / 2 + b];
        block_scales(bytes, tile + (blocks * STEPS + b) * TILE);
        if (rest >= BLOCK_BYTES) {
            for (int64_t k = 0; k < TILE; k += W) block_of_keys(row + k, at, tile + b * STEPS * TILE + k);
            continue;
        }
        // a short block is filled up with zeros
        std::memset(filled, 0, sizeof filled);
        for (int64_t k = 0; k < TILE; k++) {
            std::memcpy(filled[k], row[k] + at, size_t(rest));
            whole[k] = filled[k];
        }
        for (int64_t k = 0; k < TILE; k += W) block_of_keys(whole + k, 0, tile + b * STEPS * TILE + k);
    }
}

}  // namespace dsv4
