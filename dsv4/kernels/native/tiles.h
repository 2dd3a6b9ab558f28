// Tiles of AMX-BF16: eight registers of up to 16 rows of 64 bytes, and sums of products of bfloat16 pairs between them.
//
// Kernels call Intel's intrinsics. With DSV4_PLAIN_TILES they are plain C++ that follows Intel's description of each
// instruction (Software Developer's Manual, volume 2), by which any machine tests what is built on them.
#pragma once
#include "bf16.h"

namespace dsv4 {

#if defined(__AMX_BF16__) || defined(DSV4_PLAIN_TILES)
#define DSV4_TILES
constexpr bool TILES = true;
#else
constexpr bool TILES = false;
#endif

#if defined(DSV4_TILES)

constexpr int TILE_ROWS_MOST = 16, TILE_BYTES = 64;

// What LDTILECFG reads: bytes of a row and rows of each register. It clears all registers.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Compilers do not know which memory these instructions read and write: all before is written, all after is read.
inline void tile_memory(const void* seen) { asm volatile("" : : "r"(seen) : "memory"); }

#if defined(DSV4_PLAIN_TILES)

struct PlainTiles {
    TileShapes shapes;
    uint32_t at[8][TILE_ROWS_MOST][TILE_BYTES / 4];
};
inline thread_local PlainTiles plain_tiles;

inline void plain_tile_loadconfig(const void* shapes) {
    plain_tiles = {};
    std::memcpy(&plain_tiles.shapes, shapes, sizeof(TileShapes));
}
inline void plain_tile_release() { plain_tiles = {}; }
inline void plain_tile_zero(int t) { std::memset(plain_tiles.at[t], 0, sizeof plain_tiles.at[t]); }
inline void plain_tile_loadd(int t, const void* from, int64_t stride) {
    plain_tile_zero(t);
    for (int r = 0; r < plain_tiles.shapes.rows[t]; r++)
        std::memcpy(plain_tiles.at[t][r], (const char*)from + r * stride, plain_tiles.shapes.row_bytes[t]);
}
inline void plain_tile_stored(int t, void* to, int64_t stride) {
    for (int r = 0; r < plain_tiles.shapes.rows[t]; r++)
        std::memcpy((char*)to + r * stride, plain_tiles.at[t][r], plain_tiles.shapes.row_bytes[t]);
}

// sum[m, n] += the products of a's row m and b's column n of pairs. The first numbers of the pairs make one chain, the
// second ones another, both from 0; the two chains are added, and that to what was there.
inline void plain_tile_dpbf16ps(int sum, int a, int b) {
    const TileShapes& shapes = plain_tiles.shapes;
    for (int m = 0; m < shapes.rows[sum]; m++)
        for (int n = 0; n < shapes.row_bytes[sum] / 4; n++) {
            float first = 0.0f, second = 0.0f, before;
            for (int k = 0; k < shapes.row_bytes[a] / 4; k++) {
                const uint32_t left = plain_tiles.at[a][m][k], right = plain_tiles.at[b][k][n];
                first = add_upper_product(left << 16, right << 16, first);
                second = add_upper_product(left, right, second);
            }
            std::memcpy(&before, &plain_tiles.at[sum][m][n], 4);
            const float after = flushed(flushed(before) + flushed(first + second));
            std::memcpy(&plain_tiles.at[sum][m][n], &after, 4);
        }
}

// <immintrin.h> declares these for every machine
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig plain_tile_loadconfig
#define _tile_release plain_tile_release
#define _tile_zero plain_tile_zero
#define _tile_loadd plain_tile_loadd
#define _tile_stored plain_tile_stored
#define _tile_dpbf16ps plain_tile_dpbf16ps

#endif
#endif

}  // namespace dsv4
