// Reads of a checkpoint's files past the system's page cache, and the memory that they go to.
#pragma once
#include <cstdint>

namespace dsv4 {

constexpr int64_t BLOCK = 4096;  // what reads past the page cache are aligned to

// A file: its map, and descriptors with and without the page cache.
struct ExpertFile {
    const char* base;
    int64_t bytes;
    int cached = -1, direct = -1;
};

// Opens the descriptors. Returns 0, or the system's error.
int open_file(ExpertFile& file, const char* path);
void close_file(const ExpertFile& file);

// Reads `bytes` from byte `first` on, both multiples of BLOCK, as far as the file goes. From the page cache where it has
// the bytes, else past it where the file system allows it. Returns 0, or the system's error.
int read_file(const ExpertFile& file, int64_t first, int64_t bytes, char* to);

// Pages of the system, aligned to BLOCK and zero; null if it gives none.
char* new_memory(int64_t bytes);
void free_memory(char* memory, int64_t bytes);

}  // namespace dsv4
