// Packed e2m1 keys as tiles of bytes, and e2m1 queries in the same order of dims.
//
// A value is code * 2^e / 2 with a whole code of at most 12. Keys are stored as code + 12, so that one factor is unsigned;
// a sum over a block of 32 then starts at -12 * (sum of the query's codes). N heads, B blocks of 32 dims; lanes are keys.
//
// A packed dword holds eight dims, and a dword of a tile four: first the even ones, then the odd ones. So a tile is turned
// round while it is still packed, and a mask and a shift unpack it.
#pragma once
#include <algorithm>

#include "indexer_tiles.h"
#include "native/transpose.h"

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

// One block of W keys whose rows follow each other: tile[s][k] for s < STEPS; first + k * stride + at: the packed codes of
// key k.
#if defined(__AVX512F__) || defined(__AVX2__)
#if defined(__AVX512F__)
inline __m128i quarter(const uint8_t* from) { return _mm_loadu_si128((const __m128i*)from); }
inline Dwords packed_rows(const uint8_t* first, int64_t stride) {
    Dwords x = _mm512_castsi128_si512(quarter(first));
    x = _mm512_inserti32x4(x, quarter(first + 4 * stride), 1);
    x = _mm512_inserti32x4(x, quarter(first + 8 * stride), 2);
    return _mm512_inserti32x4(x, quarter(first + 12 * stride), 3);
}
inline Dwords high_nibbles(Dwords codes) { return _mm512_srli_epi32(codes, 4); }
// the codes in the low nibbles, raised
inline Dwords raised(Dwords codes) {
    const Dwords table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)FP4_RAISED));
#if defined(__AVX512VBMI__)
    return _mm512_permutexvar_epi8(codes, table);  // reads six bits of a code; the table repeats every four
#else
    return _mm512_shuffle_epi8(table, _mm512_and_si512(codes, _mm512_set1_epi8(15)));
#endif
}
inline void put(float* to, Dwords x) { _mm512_storeu_si512(to, x); }
#else
inline Dwords packed_rows(const uint8_t* first, int64_t stride) {
    const __m256i x = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)first));
    return _mm256_inserti128_si256(x, _mm_loadu_si128((const __m128i*)(first + 4 * stride)), 1);
}
inline Dwords high_nibbles(Dwords codes) { return _mm256_srli_epi32(codes, 4); }
inline Dwords raised(Dwords codes) {
    const Dwords table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)FP4_RAISED));
    return _mm256_shuffle_epi8(table, _mm256_and_si256(codes, _mm256_set1_epi8(15)));
}
inline void put(float* to, Dwords x) { _mm256_storeu_si256((Dwords*)to, x); }
#endif
// Still packed: lane k of codes[i] holds dims 8 i to 8 i + 7 of key k.
inline void turn_block(const uint8_t* first, int64_t stride, Dwords* codes) {
    Dwords x[4];
    for (int i = 0; i < 4; i++) x[i] = packed_rows(first + i * stride, stride);
    turn_quarters(x, codes);
}
inline void block_of_keys(const uint8_t* first, int64_t stride, float* tile) {
    Dwords codes[DWORDS];
    turn_block(first, stride, codes);
    for (int64_t i = 0; i < DWORDS; i++) {
        put(tile + 2 * i * TILE, raised(codes[i]));
        put(tile + (2 * i + 1) * TILE, raised(high_nibbles(codes[i])));
    }
}
#else
inline void block_of_keys(const uint8_t* first, int64_t stride, float* tile) {
    for (int64_t k = 0; k < W; k++)
        for (int64_t i = 0; i < INDEX_BLOCK; i++) {
            const uint8_t code = FP4_RAISED[(first[k * stride + i / 2] >> (i % 2 * 4)) & 15];
            reinterpret_cast<uint8_t*>(tile + (i / 8 * 2 + i % 2) * TILE + k)[i % 8 / 2] = code;
        }
}
#endif

// `count` <= 4 bytes of each of W rows as a whole number
inline vi some_bytes(const uint8_t* first, int64_t stride, int64_t count) {
    uint32_t number[W] = {};
    if (count == 2)
        for (int64_t k = 0; k < W; k++) {
            uint16_t two;
            std::memcpy(&two, first + k * stride, 2);
            number[k] = two;
        }
    else if (count == 4)
        for (int64_t k = 0; k < W; k++) std::memcpy(number + k, first + k * stride, 4);
    else
        for (int64_t k = 0; k < W; k++)
            for (int64_t i = 0; i < count; i++) number[k] |= uint32_t(first[k * stride + i]) << (8 * i);
    vi all;
    std::memcpy(&all, number, sizeof all);
    return all;
}

// the scales of W keys, [B][TILE]; first: the scale bytes of the first key
inline void block_scales(const uint8_t* first, int64_t stride, int64_t blocks, float* scale) {
    for (int64_t b = 0; b < blocks; b += 4) {
        const int64_t count = std::min(int64_t(4), blocks - b);
        const vi bytes = some_bytes(first + b, stride, count);
        unrolled<4>([&](auto i) {
            if (i < count) store(scale + (b + i) * TILE, scales_of<i>(bytes));
        });
    }
}

// W places of a tile of bytes from as many packed rows that follow each other
inline void arrange_byte_rows(const uint8_t* first, int64_t stride, int64_t dim, int64_t blocks, float* tile) {
    block_scales(first + dim / 2, stride, blocks, tile + blocks * STEPS * TILE);
    for (int64_t b = 0; b < blocks; b++, tile += STEPS * TILE) {
        const int64_t at = b * BLOCK_BYTES, rest = dim / 2 - at;
        if (rest >= BLOCK_BYTES) {
            block_of_keys(first + at, stride, tile);
            continue;
        }
        // a short block is filled up with zeros
        uint8_t filled[W * BLOCK_BYTES] = {};
        for (int64_t k = 0; k < W; k++) std::memcpy(filled + k * BLOCK_BYTES, first + k * stride + at, size_t(rest));
        block_of_keys(filled, BLOCK_BYTES, tile);
    }
}

}  // namespace dsv4
